"""The next step of a session that has fenced its node: up the rungs of its plan. Pure."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

from msgspec.structs import replace

from health.report import AcceleratorReport
from health.vocabulary import FaultKind, Phase
from remediation import budget, evidence, journal
from remediation.drain_policy import policy_of
from remediation.drain_state import DrainState
from remediation.fleet import Node
from remediation.gangs import GANGS_LIMIT
from remediation.moves import Step, begin, go_on, hold, keep, wait
from remediation.objects import AcceleratorRemediation, RemediationStatus, Rung
from remediation.orders import DrainOrder, Order, RestartOrder
from remediation.permission import forbidden, rules_of
from remediation.plugin_state import PluginRestart
from remediation.policy import StepName
from remediation.repair_state import RepairState
from remediation.repairs import (
    DONE,
    NOT_HEALED,
    acting,
    begun,
    escalate,
    exhausted,
    in_job,
    job_order,
    lent_too_long,
    pause_left,
    release_order,
    rung_of,
    step_of,
    taken,
)
from remediation.situation import RECHECK, Decision, Situation, Write

PROOF_WITHIN = timedelta(minutes=2)
"""How long after a plugin's restart its faults may still be reported, and how long after its faults are gone a node may
still not be proven healthy, before it is a person's affair; after other repairs the policy says how long."""

NO_REPAIR_STEP = "NoRepairStep"
"""Why a session is held whose next step cannot be taken here: repairs are not switched on, or have no such template."""

_KNOWN = frozenset(StepName)


def climb(
    at: Situation,
    session: AcceleratorRemediation,
    status: RemediationStatus,
    node: Node,
    report: AcceleratorReport | None,
) -> Decision:
    """Fenced, and its faults last: take the next step of the rung, go on with the one under way, or hold."""
    rung = rung_of(status)
    planned = [step for step in rung.steps if step != StepName.CORDON] if rung is not None else []
    if rung is None or not planned:
        return hold(at, session, status, "NoPlan", "fenced; the policy plans no more")
    if strange := next((step for step in planned if step not in _KNOWN), ""):
        # Another version has planned it: what follows may rest on it, so nothing is left out.
        message = f"fenced; {strange} is not a step that this version has"
        return hold(at, session, status, NO_REPAIR_STEP, message)
    steps = [StepName(step) for step in planned]
    if failed := status.repair.failed if status.repair is not None else "":
        assert status.repair is not None
        retry = failed != NO_REPAIR_STEP
        return escalate(at, session, status, failed, status.repair.failure, retry=retry)
    raised = status.rung != session.current.rung and status.phase is Phase.REPAIRING
    if status.phase is not Phase.FENCED and (raised or step_of(status) not in steps):
        # A step of the same name in another rung does not follow the same steps.
        return _stand_back(at, session, status, "PlanRaised", "a graver fault has joined")
    if status.phase is Phase.FENCED and (left := pause_left(at, status, rung)) > 0:
        return keep(session, status, f"{session.metadata.name}: pauses before the next attempt", left)
    step = _next(status, steps)
    if step is None:
        return hold(at, session, status, "ReplaceHardware", "drained; the hardware is to be replaced")
    if step is StepName.VERIFY:
        return _await_proof(at, session, status, report)
    if step not in DONE:
        message = f"fenced; {step} is not a step that this version has"
        return hold(at, session, status, NO_REPAIR_STEP, message)
    hindered = None if in_job(status) else _hindered(at, session, status, node, report)
    return hindered or _take(at, session, status, node, rung, step=step)


def _hindered(
    at: Situation,
    session: AcceleratorRemediation,
    status: RemediationStatus,
    node: Node,
    report: AcceleratorReport | None,
) -> Decision | None:
    """What there is to do instead of the next step, where somebody forbids that or nothing shows that it is needed."""
    after_reset = acting(status)
    about = status.incidents if after_reset else journal.lasting(status)
    if why := forbidden(at, session, node, report, about):
        if status.phase is Phase.FENCED:
            return wait(session, status, "Waiting", why)
        if after_reset and at.now.wall < repaired_at(status) + proof_within(at, status):
            return _wait_after_reset(at, session, status, why)
        return _stand_back(at, session, status, "Waiting", why)
    if not after_reset and (why := evidence.lacking(status, node, report)):
        if lent_too_long(at, status):
            return _stand_back(at, session, status, "Waiting", why)
        return wait(session, status, "Waiting", why)
    return None


def _take(
    at: Situation,
    session: AcceleratorRemediation,
    status: RemediationStatus,
    node: Node,
    rung: Rung,
    *,
    step: StepName,
) -> Decision:
    match step:
        case StepName.DRAIN:
            return _drain(at, session, status, node, rung)
        case StepName.RESTART_PLUGIN:
            return _restart(at, session, status, node, rung)
        case StepName.RELEASE_DEVICES:
            return _release(at, session, status, node)
        case _:
            return _job(at, session, status, node, rung, name=step)


def _next(status: RemediationStatus, steps: list[StepName]) -> StepName | None:
    """The step to take now; None where the rung has no more."""
    if status.phase is Phase.FENCED:
        return steps[0]
    current = step_of(status)
    assert current is not None
    return next(iter(steps[steps.index(current) + 1 :]), None) if taken(status) else current


def _wait_after_reset(
    at: Situation, session: AcceleratorRemediation, status: RemediationStatus, why: str
) -> Decision:
    """The device is reset, and its plugin may not be restarted now: nothing is begun anew when it may."""
    if status.reason == StepName.RESTART_PLUGIN:
        status = journal.moved(
            status, Phase.REPAIRING, reason=DONE[StepName.RESET], message=why, now=at.now.wall
        )
    return wait(session, status, "Waiting", why)


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
    order = DrainOrder(policy, next_is_reboot=StepName.REBOOT in rung.steps, about=_about(session, status))
    step = _step(StepName.DRAIN, order, f"{name}: drains the node")
    if status.phase is Phase.FENCED:
        begun = replace(status, drain=DrainState(started=at.now.wall, terms=policy.terms))
        return _no_room(at, session, status, node) or begin(at, session, begun, step)
    state = status.drain or DrainState(started=at.now.wall)
    if (gangs := _claimed(at, state)) != state.gangs:
        status = replace(status, drain=replace(state, gangs=gangs))
        at = dataclasses.replace(at, resume_at=0.0)
    return go_on(at, session, status, step)


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
    after = status.repair.done_time if acting(status) and status.repair is not None else None
    order = RestartOrder(at.policy.device_plugin, hung=hung, after=after)
    step = _step(StepName.RESTART_PLUGIN, order, f"{name}: restarts the device plugin")
    if taken(status):
        begun = replace(status, restart=PluginRestart(started=at.now.wall))
        return begin(at, session, begun, step)
    if status.phase is Phase.FENCED:
        attempts = status.restart.attempts if status.restart is not None else 0
        if attempts >= rung.max_attempts:
            message = f"the device plugin was restarted ({attempts} of {rung.max_attempts}), and fails again"
            return hold(at, session, status, NOT_HEALED, message)
        begun = replace(status, restart=PluginRestart(started=at.now.wall, attempts=attempts))
        return _no_room(at, session, status, node) or begin(at, session, begun, step)
    return go_on(at, session, status, step)


def _release(
    at: Situation, session: AcceleratorRemediation, status: RemediationStatus, node: Node
) -> Decision:
    step = _step(
        StepName.RELEASE_DEVICES, release_order(at), f"{session.metadata.name}: has the devices released"
    )
    if status.phase is Phase.FENCED or taken(status):
        memory = status.repair or RepairState(started=at.now.wall)
        memory = replace(memory, started=at.now.wall, boot_id=node.status.node_info.boot_id)
        return begin(at, session, replace(status, repair=memory), step)
    return go_on(at, session, status, step)


def _job(
    at: Situation,
    session: AcceleratorRemediation,
    status: RemediationStatus,
    node: Node,
    rung: Rung,
    *,
    name: StepName,
) -> Decision:
    order = job_order(at, status, rung.rung, name)
    sentence = f"{session.metadata.name}: runs {order.template} on the node"
    step = _step(name, order, sentence)
    if status.phase is Phase.FENCED or taken(status) or not _job_named(status):
        if why := exhausted(at, session, status, rung, name):
            return escalate(at, session, status, NOT_HEALED, why, retry=False)
        begins = begun(at, status, node, order, session=session.metadata.name, step=name)
        return (_no_room(at, session, status, node) if status.phase is Phase.FENCED else None) or begin(
            at, session, begins, step
        )
    return go_on(at, session, status, step)


def _job_named(status: RemediationStatus) -> bool:
    """Whether the step has its Job; it has none any more where that was forbidden before it did anything."""
    return status.repair is not None and bool(status.repair.job)


def _about(session: AcceleratorRemediation, status: RemediationStatus) -> str:
    """What a drained workload is told."""
    faults = [
        f"{one.kind} ({one.code or 'no code'}) of {one.device_uuid or 'the node'}"
        for one in journal.lasting(status)
    ]
    more = f" and {len(faults) - 2} more" if len(faults) > 2 else ""
    return f"{', '.join(faults[:2])}{more}; session {session.metadata.name}"


def _no_room(
    at: Situation, session: AcceleratorRemediation, status: RemediationStatus, node: Node
) -> Decision | None:
    usage = budget.without_room(budget.disrupted, at.fleet, at.policy, node, virtual=False)
    if usage is None:
        return None
    message = "waits for room in the budget of disrupted nodes"
    return wait(session, status, "BudgetUsedUp", message, detail=str(usage))


def _step(name: StepName, order: Order, sentence: str) -> Step:
    phase = Phase.DRAINING if name is StepName.DRAIN else Phase.REPAIRING
    return Step(name, phase, order, sentence, then=(Phase.REPAIRING, DONE[name]))


def _await_proof(
    at: Situation,
    session: AcceleratorRemediation,
    status: RemediationStatus,
    report: AcceleratorReport | None,
) -> Decision:
    """Repaired, as far as we know, and the faults are still reported, or nobody reports."""
    name = session.metadata.name
    left = (repaired_at(status) + proof_within(at, status) - at.now.wall).total_seconds()
    if left <= 0:
        message = (
            "the repair did not end the faults" if report else "no fresh report shows that the repair helped"
        )
        return escalate(at, session, status, NOT_HEALED, message)
    return keep(session, status, f"{name}: waits for the proof that the repair helped", min(left, RECHECK))


def repaired_at(status: RemediationStatus) -> datetime:
    """When the last repair was carried out."""
    times = (
        status.restart.done_time if status.restart is not None else None,
        status.repair.done_time if status.repair is not None else None,
    )
    return max((time for time in times if time is not None), default=datetime.min.replace(tzinfo=UTC))


def proof_within(at: Situation, status: RemediationStatus) -> timedelta:
    """How long the proof may take: less after a mere restart of a device plugin than after a reset or a boot."""
    if status.repair is None or not status.repair.done:
        return PROOF_WITHIN
    return timedelta(seconds=at.policy.repair.proof)
