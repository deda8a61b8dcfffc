"""The next step of a session that is open: what people say first, then what the node says, then the plan. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from health.report import AcceleratorReport
from health.vocabulary import Mode, Phase
from remediation import budget, journal
from remediation.fleet import Node
from remediation.objects import AcceleratorRemediation, NodeAction, RemediationStatus
from remediation.objects import Decision as Verdict
from remediation.policy import StepName, advice_rank, plan_for
from remediation.situation import RECHECK, Decision, Run, Situation, Write, observed, obstacle

IMPLEMENTED = frozenset({StepName.CORDON, StepName.UNCORDON})
"""The steps that exist. A plan that needs another one ends fenced and held."""

_MODES = tuple(Mode)
_PEOPLES_HOLDS = ("HeldByUser", "OptedOut")


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
    owns = node.owner_session == name
    if owns and not node.spec.unschedulable:
        sentence = f"{name}: somebody uncordoned the node, so the session ends"
        then = (Phase.CANCELLED, "UncordonedByUser")
        return _run(at, session, status, StepName.UNCORDON, then=then, sentence=sentence)
    if hold := _peoples_hold(at, session, status):
        return hold
    report = at.fresh_report
    if report is not None:
        faults = [fault for fault, _ in at.acting_faults(report)]
        status = _replanned(at, session, journal.with_incidents(status, report, faults, at.now.wall), report)
    if status.incidents and journal.all_cleared(status):
        return _recover(at, session, status, node, report)
    if status.phase is Phase.VERIFYING:
        return _back_to_hold(at, session, status)
    if status.phase is Phase.PENDING:
        return _fence(at, session, status, node, report)
    if status.phase is Phase.FENCED and session.spec.mode is not Mode.OBSERVE:
        return _next_rung(at, session, status)
    return _keep(session, status, f"{name}: {status.phase.value}, {status.reason or 'waits'}")


def _peoples_hold(
    at: Situation, session: AcceleratorRemediation, status: RemediationStatus
) -> Decision | None:
    """Stop where a person says stop, and go on where they no longer do."""
    name = session.metadata.name
    switch = at.fleet.switch(at.name)
    hold = session.spec.hold
    approval = session.spec.approval
    if hold is not None or switch is NodeAction.HOLD:
        why = hold.reason if hold is not None and hold.reason else "a person holds it"
        return _hold(at, session, status, "HeldByUser", why)
    if switch is NodeAction.OPT_OUT:
        return _hold(at, session, status, "OptedOut", "the node is opted out")
    if approval is not None and approval.decision is Verdict.DENIED:
        if status.fenced_time is None:
            sentence = f"{name}: {approval.user} said no"
            return close(at, session, status, (Phase.CANCELLED, "Denied"), sentence)
        return _hold(at, session, status, "ApprovalDenied", f"{approval.user} said no")
    if status.phase is Phase.HELD and status.reason in _PEOPLES_HOLDS:
        resumed = Phase.FENCED if status.fenced_time is not None else Phase.PENDING
        status = journal.moved(status, resumed, reason="Resumed", message="", now=at.now.wall)
        return Decision(f"{name}: nobody holds it any more", Write(session, status))
    return None


def _hold(
    at: Situation, session: AcceleratorRemediation, status: RemediationStatus, reason: str, message: str
) -> Decision:
    sentence = f"{session.metadata.name}: held ({reason}): {message}"
    if status.phase is Phase.HELD and status.reason == reason:
        return Decision(sentence)
    held = journal.moved(status, Phase.HELD, reason=reason, message=message, now=at.now.wall)
    return Decision(sentence, Write(session, replace(held, healthy_since=None)))


def _recover(
    at: Situation,
    session: AcceleratorRemediation,
    status: RemediationStatus,
    node: Node,
    report: AcceleratorReport | None,
) -> Decision:
    """Nothing is left of the faults: wait out the healthy dwell, then give the node back."""
    name = session.metadata.name
    owns = node.owner_session == name
    if report is None or not node.ready or report.status.boot_id != node.status.node_info.boot_id:
        why = (
            "no fresh report"
            if report is None
            else "the node and its report are not of one boot, or it is not Ready"
        )
        return _keep(
            session, replace(status, healthy_since=None), f"{name}: not proven healthy, {why}", RECHECK
        )
    if status.phase is not Phase.VERIFYING or status.healthy_since is None:
        status = journal.moved(
            status,
            Phase.VERIFYING,
            reason="FaultsCleared",
            message="waits out the healthy dwell",
            now=at.now.wall,
        )
        status = replace(status, healthy_since=at.now.wall)
        return Decision(f"{name}: its faults are gone, the healthy dwell begins", Write(session, status))
    left = at.policy.dwell - (at.now.wall - status.healthy_since)
    if left.total_seconds() > 0:
        return _keep(session, status, f"{name}: healthy, dwells", left.total_seconds())
    if owns:
        sentence = f"{name}: healthy for the whole dwell, so the node is given back"
        return _run(
            at, session, status, StepName.UNCORDON, then=(Phase.RELEASED, "Healthy"), sentence=sentence
        )
    sentence = f"{name}: healthy; there is no cordon of ours to lift"
    return close(at, session, status, (Phase.RELEASED, "Healthy"), sentence)


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
    if spec.mode is Mode.APPROVE and spec.approval is None:
        return _keep(session, status, f"{name}: waits for approval")
    if report is None:
        return _keep(session, status, f"{name}: no fresh report, so it waits", RECHECK)
    if reason := obstacle(at, node, report):
        return _keep(session, status, f"{name}: {reason}", RECHECK)
    if _mode_now(at, session, report) is Mode.OBSERVE:
        if spec.mode is Mode.OBSERVE:
            status = observed(at, status, StepName.CORDON, "would cordon")
            return Decision(f"{name}: would cordon, only observes", Write(session, status))
        return _keep(session, status, f"{name}: the policy only observes now")
    pool = at.policy.pool_of(node.metadata.labels)
    for where in (pool, budget.CLUSTER):
        usage = budget.fenced(at.fleet, at.policy, where)
        if usage.used > usage.limit:
            return _keep(session, status, f"{name}: the budget was lowered: {usage}", RECHECK)
    then = (Phase.FENCED, "Fenced")
    return _run(at, session, status, StepName.CORDON, then=then, sentence=f"{name}: cordons")


def _next_rung(at: Situation, session: AcceleratorRemediation, status: RemediationStatus) -> Decision:
    """Fenced: climb the ladder as far as there are steps."""
    steps = status.plan[0].steps if status.plan else ()
    missing = next((step for step in steps if step not in IMPLEMENTED), None)
    if missing is None:
        return _hold(at, session, status, "NoPlan", "fenced; the policy plans no more")
    return _hold(
        at, session, status, "NoRepairStep", f"fenced; {missing} is not a step that this version has"
    )


def _back_to_hold(at: Situation, session: AcceleratorRemediation, status: RemediationStatus) -> Decision:
    """A fault returned during the healthy dwell, or another one came."""
    phase = Phase.FENCED if status.fenced_time is not None else Phase.PENDING
    status = journal.moved(
        status, phase, reason="FaultReturned", message="not healthy after all", now=at.now.wall
    )
    sentence = f"{session.metadata.name}: a fault is back, the dwell is over"
    return Decision(sentence, Write(session, replace(status, healthy_since=None)))


def _run(
    at: Situation,
    session: AcceleratorRemediation,
    status: RemediationStatus,
    step: StepName,
    *,
    then: tuple[Phase, str],
    sentence: str,
) -> Decision:
    attempt = status.attempt + 1 if status.step == step else 1
    message = sentence.removeprefix(f"{session.metadata.name}: ")
    intent = journal.with_intent(
        status, step=step, attempt=attempt, epoch=at.epoch, now=at.now.wall, message=message
    )
    return Decision(sentence, Run(session, step, intent, *then, message))


def close(
    at: Situation,
    session: AcceleratorRemediation,
    status: RemediationStatus,
    then: tuple[Phase, str],
    sentence: str,
) -> Decision:
    phase, reason = then
    message = sentence.removeprefix(f"{session.metadata.name}: ")
    closed = journal.moved(status, phase, reason=reason, message=message, now=at.now.wall)
    return Decision(sentence, Write(session, replace(closed, leader_epoch=at.epoch)))


def _keep(
    session: AcceleratorRemediation, status: RemediationStatus, sentence: str, again: float | None = None
) -> Decision:
    """Nothing to do but to remember what the report changed."""
    changed = status != session.current
    return Decision(sentence, Write(session, status) if changed else None, again)


def _replanned(
    at: Situation, session: AcceleratorRemediation, status: RemediationStatus, report: AcceleratorReport
) -> RemediationStatus:
    """The plan moved up where a graver incident joined; it never moves down."""
    faults = [(fault, rule) for fault, rule in at.acting_faults(report) if rule.mode is session.spec.mode]
    if not faults:
        return status
    fault, rule = faults[0]
    if status.rung and advice_rank(fault.advice) <= advice_rank(status.rung):
        return status
    plan = plan_for(rule, fault.advice)
    return replace(status, plan=plan, rung=plan[0].rung if plan else "")


def _mode_now(at: Situation, session: AcceleratorRemediation, report: AcceleratorReport) -> Mode:
    """The session's mode, or the most that the policy allows now for any of its faults where that is tighter."""
    allowed = [rule.mode for _, rule in at.acting_faults(report)]
    return min(session.spec.mode, max(allowed, key=_MODES.index, default=Mode.OBSERVE), key=_MODES.index)
