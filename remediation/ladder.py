"""The next step of a session that has fenced its node: up the rungs of its plan. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from msgspec.structs import replace

from health.report import AcceleratorReport
from health.vocabulary import Advice, FaultKind, Phase
from remediation import budget, evidence, journal
from remediation.drain_policy import policy_of
from remediation.drain_state import DrainState
from remediation.fleet import Node
from remediation.gangs import GANGS_LIMIT
from remediation.moves import hold, keep, run, said, wait
from remediation.objects import AcceleratorRemediation, JournalEvent, RemediationStatus, Rung
from remediation.orders import DrainOrder, Order, RestartOrder
from remediation.permission import forbidden, rules_of
from remediation.plugin_state import PluginRestart
from remediation.policy import StepName
from remediation.situation import RECHECK, Decision, Run, Situation, Write

PROOF_WITHIN = timedelta(minutes=2)
"""How long after a repair its faults may still be reported, and how long after its faults are gone a node may still
not be proven healthy, before it is a person's affair."""

NOT_HEALED = "NotHealed"
_DONE = {StepName.DRAIN: "Drained", StepName.RESTART_PLUGIN: "Restarted"}
"""Why a session is in phase Repairing when a step has been taken, and the next one is due."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A step that touches pods: its phase, what it is told, and its sentence for people."""

    name: StepName
    phase: Phase
    order: Order
    sentence: str

    @property
    def then(self) -> tuple[Phase, str]:
        """Where it leads."""
        return (Phase.REPAIRING, _DONE[self.name])


def climb(
    at: Situation,
    session: AcceleratorRemediation,
    status: RemediationStatus,
    node: Node,
    report: AcceleratorReport | None,
) -> Decision:
    """Fenced, and its faults last: take the next step of the rung, go on with the one under way, or hold."""
    rung = status.plan[0] if status.plan else None
    steps = [step for step in rung.steps if step != StepName.CORDON] if rung is not None else []
    if rung is None or not steps:
        return hold(at, session, status, "NoPlan", "fenced; the policy plans no more")
    raised = status.rung != session.current.rung and status.phase is Phase.REPAIRING
    if status.phase is not Phase.FENCED and (raised or status.step not in steps):
        # A step of the same name in another rung does not follow the same steps.
        return _stand_back(at, session, status, "PlanRaised", "a graver fault has joined")
    step = _next(status, steps)
    if step is None:
        return hold(at, session, status, "ReplaceHardware", "drained; the hardware is to be replaced")
    if step == StepName.VERIFY:
        return _await_proof(at, session, status, report)
    if step not in _DONE:
        message = f"fenced; {step} is not a step that this version has"
        return hold(at, session, status, "NoRepairStep", message)
    if why := forbidden(at, session, node, report, journal.lasting(status)):
        if status.phase is Phase.FENCED:
            return wait(session, status, "Waiting", why)
        return _stand_back(at, session, status, "Waiting", why)
    if why := evidence.lacking(status, node, report):
        return wait(session, status, "Waiting", why)
    if step == StepName.DRAIN:
        return _drain(at, session, status, node, rung)
    return _restart(at, session, status, node, rung)


def _next(status: RemediationStatus, steps: list[str]) -> str | None:
    """The step to take now; None where the rung has no more."""
    if status.phase is Phase.FENCED:
        return steps[0]
    if status.phase is Phase.REPAIRING and status.reason in _DONE.values():
        return next(iter(steps[steps.index(status.step) + 1 :]), None)
    return status.step


def _stand_back(
    at: Situation, session: AcceleratorRemediation, status: RemediationStatus, reason: str, why: str
) -> Decision:
    """Leave a step that is under way: it begins anew, with its whole time, when it may be taken again."""
    status = journal.moved(status, Phase.FENCED, reason=reason, message=why, now=at.now.wall)
    return Decision(f"{session.metadata.name}: {why}, so it stands back", Write(session, status), RECHECK)


def _drain(
    at: Situation,
    session: AcceleratorRemediation,
    status: RemediationStatus,
    node: Node,
    rung: Rung,
) -> Decision:
    name = session.metadata.name
    policy = rules_of(at, journal.lasting(status))[0].drain_for(rung.rung)
    begun_under = policy_of(status.drain.terms) if status.drain and status.phase is Phase.DRAINING else None
    if begun_under is not None:
        policy = begun_under.tightened_by(policy)
    order = DrainOrder(policy, next_is_reboot=rung.rung == Advice.REBOOT_NODE)
    step = _Step(StepName.DRAIN, Phase.DRAINING, order, f"{name}: drains the node")
    if status.phase is Phase.FENCED:
        begun = replace(status, drain=DrainState(started=at.now.wall, terms=policy.terms))
        return _no_room(at, session, status, node) or _begin(at, session, begun, step)
    state = status.drain or DrainState(started=at.now.wall)
    if (gangs := _claimed(at, state)) != state.gangs:
        status = replace(status, drain=replace(state, gangs=gangs))
    elif (left := at.resume_at - at.now.monotonic) > 0:
        return keep(session, status, f"{name}: drains: {status.message}", left)
    return _go_on(at, session, status, step)


def _claimed(at: Situation, state: DrainState) -> tuple[str, ...]:
    """The gangs that the drain has claimed, with what it may claim now.

    A claim is written with the intent and before the first eviction, and one thread makes all claims. All or none,
    for two nodes that each hold what the other waits for would both wait until their deadlines.
    """
    unclaimed = set(state.seen_gangs) - set(state.gangs)
    if not unclaimed or unclaimed & at.fleet.gangs_elsewhere(at.name):
        return state.gangs
    return tuple(sorted({*state.gangs, *unclaimed}))[:GANGS_LIMIT]


def _restart(
    at: Situation,
    session: AcceleratorRemediation,
    status: RemediationStatus,
    node: Node,
    rung: Rung,
) -> Decision:
    name = session.metadata.name
    hung = any(incident.kind == FaultKind.PLUGIN_HUNG for incident in journal.lasting(status))
    order = RestartOrder(at.policy.device_plugin, hung=hung)
    step = _Step(StepName.RESTART_PLUGIN, Phase.REPAIRING, order, f"{name}: restarts the device plugin")
    if status.phase is Phase.FENCED:
        attempts = status.restart.attempts if status.restart is not None else 0
        if attempts >= rung.max_attempts:
            message = f"the device plugin was restarted ({attempts} of {rung.max_attempts}), and fails again"
            return hold(at, session, status, NOT_HEALED, message)
        begun = replace(status, restart=PluginRestart(started=at.now.wall, attempts=attempts))
        return _no_room(at, session, status, node) or _begin(at, session, begun, step)
    if (left := at.resume_at - at.now.monotonic) > 0:
        return keep(session, status, f"{name}: {status.message}", left)
    return _go_on(at, session, status, step)


def _no_room(
    at: Situation, session: AcceleratorRemediation, status: RemediationStatus, node: Node
) -> Decision | None:
    usage = budget.without_room(budget.disrupted, at.fleet, at.policy, node, virtual=False)
    if usage is None:
        return None
    message = "waits for room in the budget of disrupted nodes"
    return wait(session, status, "BudgetUsedUp", message, detail=str(usage))


def _begin(
    at: Situation, session: AcceleratorRemediation, status: RemediationStatus, step: _Step
) -> Decision:
    """The first pass of a step: its intent moves the session into the phase."""
    message = said(session, step.sentence)
    status = journal.moved(status, step.phase, reason=step.name, message=message, now=at.now.wall)
    return run(at, session, status, step.name, then=step.then, sentence=step.sentence, order=step.order)


def _go_on(
    at: Situation, session: AcceleratorRemediation, status: RemediationStatus, step: _Step
) -> Decision:
    """A further pass under the intent that stands; where an outcome (a failure) has ended it, under a new one."""
    if not _stands(status, step.name, at.epoch):
        return run(at, session, status, step.name, then=step.then, sentence=step.sentence, order=step.order)
    action = Run(session, step.name, status, *step.then, status.message, order=step.order)
    return Decision(step.sentence, action)


def _stands(status: RemediationStatus, step: StepName, epoch: int) -> bool:
    """Whether the last attempt has an intent of this epoch and no outcome. The order of lines says nothing: equal
    ones are folded."""
    events = {
        entry.event
        for entry in status.journal
        if (entry.step, entry.attempt, entry.epoch) == (step, status.attempt, epoch)
    }
    return status.step == step and events == {JournalEvent.INTENT}


def _await_proof(
    at: Situation,
    session: AcceleratorRemediation,
    status: RemediationStatus,
    report: AcceleratorReport | None,
) -> Decision:
    """Repaired, as far as we know, and the faults are still reported, or nobody reports."""
    name = session.metadata.name
    done = status.restart.done_time if status.restart is not None else None
    left = (done + PROOF_WITHIN - at.now.wall).total_seconds() if done is not None else 0.0
    if left <= 0:
        message = (
            "the repair did not end the faults" if report else "no fresh report shows that the repair helped"
        )
        return hold(at, session, status, NOT_HEALED, message)
    return keep(session, status, f"{name}: waits for the proof that the repair helped", min(left, RECHECK))
