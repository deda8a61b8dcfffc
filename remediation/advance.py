"""The next step of a session that is open: what people say first, then what the node says, then the plan. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from health.report import AcceleratorReport
from health.vocabulary import DeviceHealth, Mode, Phase, SourceState
from remediation import budget, journal
from remediation.fleet import Node
from remediation.objects import AcceleratorRemediation, NodeAction, RemediationStatus
from remediation.objects import Decision as Verdict
from remediation.policy import StepName, advice_rank, plan_for
from remediation.situation import MODES, RECHECK, Decision, Run, Situation, Write, observed, obstacle

IMPLEMENTED = frozenset({StepName.CORDON, StepName.UNCORDON})
"""The steps that exist. A plan that needs another one ends fenced and held."""

DEVICE_SOURCE = "nvml"
"""The source by which an agent sees its devices: without it nothing about them is proven."""

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
    owns = node.owner_session == name
    if (owns or status.fenced_time is not None) and not node.spec.unschedulable:
        return _uncordoned(at, session, status, owns=owns)
    if hold := _peoples_hold(at, session, status, owns=owns):
        return hold
    report = at.fresh_report
    if report is not None:
        faults = [fault for fault, _ in at.acting_faults(report)]
        taken_in = journal.with_incidents(status, report, faults, at.now.wall)
        status = _replanned(at, session, taken_in, report)
    if (status.incidents or report is not None) and journal.all_cleared(status):
        return _recover(at, session, status, node, report)
    if status.phase is Phase.VERIFYING:
        return _back_to_hold(at, session, status)
    if status.phase is Phase.PENDING:
        return _fence(at, session, status, node, report)
    if status.phase is Phase.FENCED and session.spec.mode is not Mode.OBSERVE:
        return _next_rung(at, session, status)
    return _keep(session, status, f"{name}: {status.phase.value}, {status.reason or 'waits'}")


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
    hold = session.spec.hold
    approval = session.spec.approval
    if hold is not None or switch is NodeAction.HOLD:
        why = hold.reason if hold is not None and hold.reason else "a person holds it"
        return _hold(at, session, status, "HeldByUser", why)
    if switch is NodeAction.OPT_OUT:
        return _hold(at, session, status, "OptedOut", "the node is opted out")
    if approval is not None and approval.decision is Verdict.DENIED:
        if status.fenced_time is None and not owns:
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
    if why := _unproven(node, status, report):
        status = replace(status, healthy_since=None)
        if status.phase is Phase.VERIFYING:
            status = replace(status, reason="NotProvenHealthy", message=why)
        return _keep(session, status, f"{name}: not proven healthy: {why}", RECHECK)
    since = status.healthy_since if status.phase is Phase.VERIFYING else None
    dwelt = (at.now.wall - since).total_seconds() if since is not None else -1.0
    # A dwell that is longer than what was seen of it began before a gap, a restart or a step of the wall clock.
    if not 0 <= dwelt <= 1.01 * at.unbroken + 1:
        status = journal.moved(
            status,
            Phase.VERIFYING,
            reason="FaultsCleared",
            message="waits out the healthy dwell",
            now=at.now.wall,
        )
        status = replace(status, healthy_since=at.now.wall)
        return Decision(f"{name}: its faults are gone, the healthy dwell begins", Write(session, status))
    left = at.policy.healthy_dwell - min(dwelt, at.unbroken)
    if left > 0:
        return _keep(session, status, f"{name}: healthy, dwells", left)
    then = (Phase.RELEASED, "Healthy")
    if node.owner_session == name:
        sentence = f"{name}: healthy for the whole dwell, so the node is given back"
        return run(at, session, status, StepName.UNCORDON, then=then, sentence=sentence)
    sentence = f"{name}: healthy; there is no cordon of ours to lift"
    return close(at, session, status, then, sentence)


def _unproven(node: Node, status: RemediationStatus, report: AcceleratorReport | None) -> str:
    """Why the node is not proven healthy, if it is not: no data is no proof, and a device that is gone is none."""
    if report is None:
        return "no fresh report of the node's present boot"
    if not node.ready:
        return "the node is not Ready"
    for source in report.status.sources:
        broken = source.state in (SourceState.FAILED, SourceState.STALE)
        if broken or (source.name == DEVICE_SOURCE and source.state is not SourceState.LIVE):
            return f"the agent's source {source.name} is {source.state}"
    health = {device.uuid: device.health for device in report.status.devices}
    for uuid in sorted({incident.device_uuid for incident in status.incidents if incident.device_uuid}):
        if uuid not in health:
            return f"device {uuid} is missing"
        if health[uuid] is not DeviceHealth.HEALTHY:
            return f"device {uuid} is {health[uuid]}"
    return ""


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
    if spec.mode is Mode.APPROVE and spec.approval is None:
        return _keep(session, status, f"{name}: waits for approval")
    if report is None:
        return _keep(session, status, f"{name}: no fresh report, so it waits", RECHECK)
    if reason := obstacle(at, node, report):
        return _keep(session, status, f"{name}: {reason}", RECHECK)
    if spec.mode is Mode.OBSERVE:
        status = observed(at, status, StepName.CORDON, "would cordon")
        return Decision(f"{name}: would cordon, only observes", Write(session, status))
    mode = _mode_now(at, session, report)
    if mode is Mode.OBSERVE:
        return _keep(session, status, f"{name}: the policy only observes now")
    if mode is Mode.APPROVE and spec.approval is None:
        return _keep(session, status, f"{name}: the policy wants an approval now")
    pool = at.policy.pool_of(node.metadata.labels)
    for where in (pool, budget.CLUSTER):
        usage = budget.fenced(at.fleet, at.policy, where)
        if usage.exceeded:
            return _keep(session, status, f"{name}: the budget was lowered: {usage}", RECHECK)
    return run(at, session, status, StepName.CORDON, then=then, sentence=f"{name}: cordons")


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


def run(
    at: Situation,
    session: AcceleratorRemediation,
    status: RemediationStatus,
    step: StepName,
    *,
    then: tuple[Phase, str],
    sentence: str,
) -> Decision:
    """Take a step, after which the session is in `then`: a phase and why."""
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
    """End a session without a step."""
    phase, reason = then
    message = sentence.removeprefix(f"{session.metadata.name}: ")
    closed = journal.moved(status, phase, reason=reason, message=message, now=at.now.wall)
    return Decision(sentence, Write(session, replace(closed, leader_epoch=at.epoch)))


def _keep(
    session: AcceleratorRemediation, status: RemediationStatus, sentence: str, again: float | None = None
) -> Decision:
    """Nothing to do but to remember what the report changed."""
    # A session that was just born carries its status in an annotation only, where nobody looks for it.
    changed = status != session.current or session.status is None
    return Decision(sentence, Write(session, status) if changed else None, again)


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
    plan = plan_for(rule, fault.advice)
    rung = plan[0].rung if plan else ""
    if status.rung and advice_rank(rung) <= advice_rank(status.rung):
        return status
    return replace(status, plan=plan, rung=rung)


def _mode_now(at: Situation, session: AcceleratorRemediation, report: AcceleratorReport) -> Mode:
    """The session's mode, or the most that the policy allows now for any of its faults where that is tighter."""
    allowed = [rule.mode for _, rule in at.acting_faults(report)]
    return min(session.spec.mode, max(allowed, key=MODES.index, default=Mode.OBSERVE), key=MODES.index)
