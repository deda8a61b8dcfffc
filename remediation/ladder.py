"""The next step of a session that has fenced its node: up the rungs of its plan. Pure."""

from __future__ import annotations

from datetime import timedelta

from msgspec.structs import replace

from health.report import AcceleratorReport
from health.vocabulary import Advice, FaultKind, Mode, Phase
from remediation import budget, evidence, journal
from remediation.drain_state import DrainState
from remediation.fleet import Node
from remediation.moves import hold, keep, run, said, wait
from remediation.objects import AcceleratorRemediation, JournalEvent, RemediationStatus, Rung
from remediation.orders import DrainOrder, Order, RestartOrder
from remediation.policy import Rule, StepName
from remediation.situation import MODES, RECHECK, Decision, Run, Situation, obstacle

PROOF_WITHIN = timedelta(minutes=2)
"""How long after a repair its faults may still be reported before it counts as one that did not help."""

DRAINED = "Drained"
RESTARTED = "Restarted"
_DONE = {StepName.DRAIN: DRAINED, StepName.RESTART_PLUGIN: RESTARTED}
"""Why a session is in phase Repairing when a step has been taken, and the next one is due."""


def climb(
    at: Situation,
    session: AcceleratorRemediation,
    status: RemediationStatus,
    node: Node,
    report: AcceleratorReport | None,
) -> Decision:
    """Fenced, and its faults last: take the next step of the rung, go on with the one under way, or hold."""
    rung = status.plan[0] if status.plan else None
    if rung is None or not rung.steps[1:]:
        return hold(at, session, status, "NoPlan", "fenced; the policy plans no more")
    if why := _not_now(at, session, status, node, report):
        return wait(session, status, "Waiting", why)
    match _next(status, rung):
        case StepName.DRAIN:
            return _drain(at, session, status, node, rung)
        case StepName.RESTART_PLUGIN:
            return _restart(at, session, status, node)
        case StepName.VERIFY:
            return _await_proof(at, session, status)
        case None:
            message = "drained; the hardware is to be replaced"
            return hold(at, session, status, "ReplaceHardware", message)
        case step:
            return hold(
                at, session, status, "NoRepairStep", f"fenced; {step} is not a step that this version has"
            )


def _next(status: RemediationStatus, rung: Rung) -> str | None:
    """The step to take now; None where the rung has no more."""
    steps = [step for step in rung.steps if step != StepName.CORDON]
    if status.phase is Phase.FENCED or status.step not in steps:
        return steps[0]
    if status.phase is Phase.REPAIRING and status.reason in _DONE.values():
        return next(iter(steps[steps.index(status.step) + 1 :]), None)
    return status.step


def _not_now(
    at: Situation,
    session: AcceleratorRemediation,
    status: RemediationStatus,
    node: Node,
    report: AcceleratorReport | None,
) -> str:
    """Why no step may be taken now, if so: who stands in the way, a policy that is tighter now, no evidence."""
    if pause := at.fleet.control.spec.pause:
        return f"{pause.user} paused everything ({pause.reason or 'no reason given'})"
    if other := obstacle(at, node, report) if report is not None else node.taken_by:
        return other
    rules = _rules(at, status)
    allowed = max((rule.mode for rule in rules), key=MODES.index, default=Mode.OBSERVE)
    if allowed is Mode.OBSERVE:
        return "the policy only observes now"
    if allowed is Mode.APPROVE and session.spec.approval is None:
        return "the policy wants an approval now"
    return evidence.lacking(status, node, report)


def _rules(at: Situation, status: RemediationStatus) -> list[Rule]:
    """The rules that the policy has now for what lasts, that of the gravest incident first."""
    lasting = [incident for incident in status.incidents if incident.cleared_time is None]
    lasting.sort(key=lambda incident: -incident.severity.rank)
    return [rule for incident in lasting if (rule := at.rule_of(incident)) is not None]


def _drain(
    at: Situation, session: AcceleratorRemediation, status: RemediationStatus, node: Node, rung: Rung
) -> Decision:
    name = session.metadata.name
    sentence = f"{name}: drains the node"
    policy = _rules(at, status)[0].drain_for(rung.rung)
    order = DrainOrder(policy, next_is_reboot=rung.rung == Advice.REBOOT_NODE)
    if status.phase is Phase.FENCED:
        if full := _no_room(at, session, status, node):
            return full
        status = replace(status, drain=DrainState(started=at.now.wall))
        return _begin(
            at, session, status, StepName.DRAIN, order=order, phase=Phase.DRAINING, sentence=sentence
        )
    state = status.drain or DrainState(started=at.now.wall)
    elsewhere = at.fleet.gangs_elsewhere(at.name)
    gangs = {*state.gangs, *(set(state.seen_gangs) - elsewhere)}
    if gangs != set(state.gangs):
        # A claim is written with the intent and before the first eviction, and one thread makes all claims.
        status = replace(status, drain=replace(state, gangs=tuple(sorted(gangs))))
    elif (left := at.resume_at - at.now.monotonic) > 0:
        return keep(session, status, f"{name}: drains: {status.message}", left)
    return _go_on(at, session, status, StepName.DRAIN, order=order, sentence=sentence)


def _restart(
    at: Situation, session: AcceleratorRemediation, status: RemediationStatus, node: Node
) -> Decision:
    name = session.metadata.name
    sentence = f"{name}: restarts the device plugin"
    hung = any(
        incident.kind == FaultKind.PLUGIN_HUNG and incident.cleared_time is None
        for incident in status.incidents
    )
    order = RestartOrder(at.policy.device_plugin, hung=hung)
    if status.phase is Phase.FENCED:
        if full := _no_room(at, session, status, node):
            return full
        status = replace(status, restart=None)
        return _begin(
            at,
            session,
            status,
            StepName.RESTART_PLUGIN,
            order=order,
            phase=Phase.REPAIRING,
            sentence=sentence,
        )
    if (left := at.resume_at - at.now.monotonic) > 0:
        return keep(session, status, f"{name}: {status.message}", left)
    return _go_on(at, session, status, StepName.RESTART_PLUGIN, order=order, sentence=sentence)


def _no_room(
    at: Situation, session: AcceleratorRemediation, status: RemediationStatus, node: Node
) -> Decision | None:
    usage = budget.without_room(budget.disrupted, at.fleet, at.policy, node, virtual=False)
    if usage is None:
        return None
    message = "waits for room in the budget of disrupted nodes"
    return wait(session, status, "BudgetUsedUp", message, detail=str(usage))


def _begin(
    at: Situation,
    session: AcceleratorRemediation,
    status: RemediationStatus,
    step: StepName,
    *,
    order: Order,
    phase: Phase,
    sentence: str,
) -> Decision:
    """The first pass of a step: its intent moves the session into the phase."""
    status = journal.moved(
        replace(status, step=""), phase, reason=step, message=said(session, sentence), now=at.now.wall
    )
    return run(at, session, status, step, then=(Phase.REPAIRING, _DONE[step]), sentence=sentence, order=order)


def _go_on(
    at: Situation,
    session: AcceleratorRemediation,
    status: RemediationStatus,
    step: StepName,
    *,
    order: Order,
    sentence: str,
) -> Decision:
    """A further pass under the intent that stands; where an outcome (a failure) has ended it, under a new one."""
    entries = [entry for entry in status.journal if entry.step == step]
    if not entries or entries[-1].event is not JournalEvent.INTENT or entries[-1].epoch != at.epoch:
        return run(
            at, session, status, step, then=(Phase.REPAIRING, _DONE[step]), sentence=sentence, order=order
        )
    return Decision(
        sentence, Run(session, step, status, Phase.REPAIRING, _DONE[step], status.message, order=order)
    )


def _await_proof(at: Situation, session: AcceleratorRemediation, status: RemediationStatus) -> Decision:
    """Repaired, as far as we know, and the faults are still reported."""
    name = session.metadata.name
    done = status.restart.done_time if status.restart is not None else None
    left = (done + PROOF_WITHIN - at.now.wall).total_seconds() if done is not None else 0.0
    if left <= 0:
        return hold(at, session, status, "NotHealed", "the repair did not end the faults")
    return keep(session, status, f"{name}: waits for the proof that the repair helped", min(left, RECHECK))
