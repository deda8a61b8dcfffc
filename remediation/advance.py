"""The next step of a session that is open: what people say first, then what the node says, then the plan. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from health.report import AcceleratorReport
from health.vocabulary import FaultKind, Mode, Phase
from remediation import budget, journal
from remediation.fleet import Node
from remediation.ladder import climb
from remediation.moves import close, hold, keep, run
from remediation.objects import AcceleratorRemediation, NodeAction, RemediationStatus
from remediation.objects import Decision as Verdict
from remediation.orders import RestoreOrder
from remediation.policy import StepName, advice_rank, plan_for
from remediation.proof import CLIMBING, recover
from remediation.repair_state import RepairState
from remediation.repairs import acting, borrowing, recognized
from remediation.situation import (
    MODES,
    RECHECK,
    Decision,
    Situation,
    Write,
    fences_device,
    observed,
    obstacle,
)
from remediation.steps.release import paused_operands

DEVICE_FENCED = "DeviceFenced"
"""Why a session is held whose device the plugin keeps jobs off while the node stays open."""

_PEOPLES_HOLDS = ("HeldByUser", "OptedOut", "ApprovalDenied")


def advance(at: Situation, session: AcceleratorRemediation) -> Decision:
    """A node with a session: what people say first, then what the node says, then the plan."""
    status = session.current
    node = at.node
    name = session.metadata.name
    if node is None:
        sentence = f"{name}: the node is gone"
        return close(at, session, status, (Phase.CANCELLED, "NodeGone"), sentence)
    if node.metadata.uid != session.spec.node_uid:
        sentence = f"{name}: another node has the name now"
        return close(at, session, status, (Phase.CANCELLED, "NodeReplaced"), sentence)
    status = recognized(name, status, node, at.fresh_report, at.now.wall)
    owns = node.owner_session == name
    uncordoned = (owns or status.fenced_time is not None) and not node.spec.unschedulable
    over = bool(status.incidents) and journal.all_cleared(status) and not acting(status)
    if give_back := _lent(at, session, status, node, at_once=uncordoned or over):
        return give_back
    if uncordoned:
        return _uncordoned(at, session, status, owns=owns)
    if stop := _peoples_hold(at, session, status, owns=owns):
        return stop
    report = at.fresh_report
    if report is not None:
        faults = [fault for fault, _ in at.acting_faults(report)]
        taken_in = journal.with_incidents(status, report, faults, at.now.wall)
        status = _replanned(at, session, taken_in, report)
    if (status.incidents or report is not None) and journal.all_cleared(status) and not acting(status):
        return recover(at, session, status, node, report)
    if status.phase is Phase.VERIFYING:
        return _back_to_hold(at, session, status)
    if status.phase is Phase.PENDING:
        return _fence(at, session, status, node, report)
    if status.phase is Phase.HELD and status.reason == DEVICE_FENCED:
        return _device_fenced(at, session, status, report)
    if status.phase is Phase.HELD and status.rung != session.current.rung:
        status = journal.moved(
            status, Phase.FENCED, reason="PlanRaised", message="a graver fault has joined", now=at.now.wall
        )
        return Decision(f"{name}: a graver fault has joined, so it goes on", Write(session, status))
    if status.phase in CLIMBING and session.spec.mode is not Mode.OBSERVE:
        return climb(at, session, status, node, report)
    return keep(session, status, f"{name}: {status.phase.value}, {status.reason or 'waits'}")


def _lent(
    at: Situation, session: AcceleratorRemediation, status: RemediationStatus, node: Node, *, at_once: bool
) -> Decision | None:
    """Give back what was taken for a reset as soon as the reset is over, however that came about.

    It is asked for by no rule and forbidden by no person: a pause must not leave a node without its operands. What the
    Node itself shows to be ours counts too, should its session have been deleted meanwhile.
    """
    if borrowing(status) and not at_once:
        return None
    paused = paused_operands(node.metadata.labels)
    if not paused and (status.repair is None or not status.repair.lent):
        return None
    if (left := at.resume_at - at.now.monotonic) > 0:
        return keep(session, status, f"{session.metadata.name}: {status.message}", left)
    memory = status.repair or RepairState(started=at.now.wall)
    if not memory.lent:
        status = replace(status, repair=replace(memory, operands=paused))
    phase, reason = status.phase, status.reason
    if borrowing(status):
        phase, reason = Phase.FENCED, "Interrupted"
    return run(
        at,
        session,
        status,
        StepName.RESTORE,
        then=(phase, reason),
        sentence=f"{session.metadata.name}: gives back what was taken for the reset",
        order=RestoreOrder(),
    )


def _uncordoned(
    at: Situation, session: AcceleratorRemediation, status: RemediationStatus, *, owns: bool
) -> Decision:
    """The node of a fenced session is schedulable: either we have given it back already, or somebody uncordoned it."""
    name = session.metadata.name
    if status.phase is Phase.VERIFYING and status.step == StepName.UNCORDON and not owns:
        then = (Phase.RELEASED, "Healthy")
        sentence = f"{name}: healthy for the whole dwell, and the node is given back"
    else:
        then = (Phase.CANCELLED, "UncordonedByUser")
        sentence = f"{name}: somebody uncordoned the node, so the session ends"
    return run(at, session, status, StepName.UNCORDON, then=then, sentence=sentence)


def _peoples_hold(
    at: Situation, session: AcceleratorRemediation, status: RemediationStatus, *, owns: bool
) -> Decision | None:
    """Stop where a person says stop, and go on where they no longer do."""
    name = session.metadata.name
    switch = at.fleet.switch(at.name)
    held = session.spec.hold
    approval = session.spec.approval
    if held is not None or switch is NodeAction.HOLD:
        why = held.reason if held is not None and held.reason else "a person holds it"
        return hold(at, session, status, "HeldByUser", why)
    if switch is NodeAction.OPT_OUT:
        return hold(at, session, status, "OptedOut", "the node is opted out")
    if approval is not None and approval.decision is Verdict.DENIED:
        if status.fenced_time is None and not owns:
            sentence = f"{name}: {approval.user} said no"
            return close(at, session, status, (Phase.CANCELLED, "Denied"), sentence)
        return hold(at, session, status, "ApprovalDenied", f"{approval.user} said no")
    if status.phase is Phase.HELD and status.reason in _PEOPLES_HOLDS:
        if status.restart is not None:
            status = replace(status, restart=replace(status.restart, attempts=0))
        if status.repair is not None:
            status = replace(status, repair=status.repair.afresh())
        resumed = Phase.FENCED if status.fenced_time is not None else Phase.PENDING
        status = journal.moved(status, resumed, reason="Resumed", message="", now=at.now.wall)
        return Decision(f"{name}: nobody holds it any more", Write(session, status))
    return None


def _fence(
    at: Situation,
    session: AcceleratorRemediation,
    status: RemediationStatus,
    node: Node,
    report: AcceleratorReport | None,
) -> Decision:
    """A session that has not cordoned yet: it was interrupted, waits for approval, or only observes."""
    name = session.metadata.name
    spec = session.spec
    then = (Phase.FENCED, "Fenced")
    if node.owner_session == name:
        sentence = f"{name}: has cordoned, and was interrupted before it could say so"
        return run(at, session, status, StepName.CORDON, then=then, sentence=sentence)
    if status.incidents and not _beyond_device(at, status, report):
        message = "left to the device plugin, which withholds the device; the node stays open"
        return hold(at, session, status, DEVICE_FENCED, message)
    if spec.mode is Mode.APPROVE and spec.approval is None:
        return keep(session, status, f"{name}: waits for approval")
    if report is None:
        return keep(session, status, f"{name}: no fresh report, so it waits", RECHECK)
    if reason := obstacle(at, node, report):
        return keep(session, status, f"{name}: {reason}", RECHECK)
    if spec.mode is Mode.OBSERVE:
        status = observed(at, status, StepName.CORDON, "would cordon")
        return Decision(f"{name}: would cordon, only observes", Write(session, status))
    mode = _mode_now(at, session, report)
    if mode is Mode.OBSERVE:
        return keep(session, status, f"{name}: the policy only observes now")
    if mode is Mode.APPROVE and spec.approval is None:
        return keep(session, status, f"{name}: the policy wants an approval now")
    pool = at.policy.pool_of(node.metadata.labels)
    for where in (pool, budget.CLUSTER):
        usage = budget.fenced(at.fleet, at.policy, where)
        if usage.exceeded:
            return keep(session, status, f"{name}: the budget was lowered: {usage}", RECHECK)
    return run(at, session, status, StepName.CORDON, then=then, sentence=f"{name}: cordons")


def _device_fenced(
    at: Situation,
    session: AcceleratorRemediation,
    status: RemediationStatus,
    report: AcceleratorReport | None,
) -> Decision:
    """The device plugin keeps jobs off the bad device; where that does not hold, or is not enough, cordon."""
    name = session.metadata.name
    why = _beyond_device(at, status, report)
    if not why:
        return keep(session, status, f"{name}: {status.message}")
    status = journal.moved(status, Phase.PENDING, reason="Fencing", message=why, now=at.now.wall)
    return Decision(f"{name}: {why}, so it is to be cordoned", Write(session, status))


def _beyond_device(at: Situation, status: RemediationStatus, report: AcceleratorReport | None) -> str:
    """Why it does not do to leave what lasts to the device plugin; empty where it does."""
    lasting = journal.lasting(status)
    devices = {incident.device_uuid for incident in lasting}
    for fault in report.status.faults if report is not None else ():
        if fault.kind == FaultKind.DEVICE_OFFERED_THOUGH_BAD and fault.device_uuid in devices:
            return f"the device plugin offers {fault.device_uuid} although it is bad"
    for incident in lasting:
        if not fences_device(at.rule_of(incident), incident):
            return f"{incident.kind} takes the whole node"
    return ""


def _back_to_hold(at: Situation, session: AcceleratorRemediation, status: RemediationStatus) -> Decision:
    """A fault returned during the healthy dwell, or another one came."""
    phase = Phase.FENCED if status.fenced_time is not None else Phase.PENDING
    status = journal.moved(
        status, phase, reason="FaultReturned", message="not healthy after all", now=at.now.wall
    )
    sentence = f"{session.metadata.name}: a fault is back, the dwell is over"
    return Decision(sentence, Write(session, replace(status, healthy_since=None)))


def _replanned(
    at: Situation, session: AcceleratorRemediation, status: RemediationStatus, report: AcceleratorReport
) -> RemediationStatus:
    """The plan moved up where a graver incident joined; it never moves down, and a changed policy does not move it."""
    faults = [(fault, rule) for fault, rule in at.acting_faults(report) if rule.mode is session.spec.mode]
    if not faults:
        return status
    fault, rule = faults[0]
    gravest = max((advice_rank(incident.advice) for incident in session.current.incidents), default=-1)
    if status.rung and advice_rank(fault.advice) <= gravest:
        return status
    plan = plan_for(rule, fault.advice, max_attempts=at.policy.repair.max_attempts)
    rung = plan[0].rung if plan else ""
    if status.rung and advice_rank(rung) <= advice_rank(status.rung):
        return status
    return replace(status, plan=plan, rung=rung)


def _mode_now(at: Situation, session: AcceleratorRemediation, report: AcceleratorReport) -> Mode:
    """The session's mode, or the most that the policy allows now for any of its faults where that is tighter."""
    allowed = [rule.mode for _, rule in at.acting_faults(report)]
    return min(session.spec.mode, max(allowed, key=MODES.index, default=Mode.OBSERVE), key=MODES.index)
