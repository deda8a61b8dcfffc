"""The next step of a session that is open: what people say first, then what the node says, then the plan. Pure."""

from __future__ import annotations

from datetime import timedelta

from msgspec.structs import replace

from health.report import AcceleratorReport
from health.vocabulary import DeviceHealth, FaultKind, Mode, Phase, SourceState
from remediation import budget, journal
from remediation.fleet import Node
from remediation.ladder import climb
from remediation.moves import close, hold, keep, run
from remediation.objects import AcceleratorRemediation, NodeAction, RemediationStatus
from remediation.objects import Decision as Verdict
from remediation.orders import CleanOrder
from remediation.policy import StepName, advice_rank, plan_for
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

DEVICE_FENCED = "DeviceFenced"
"""Why a session is held whose device the plugin keeps jobs off while the node stays open."""

PLUGIN_KINDS = frozenset(
    {
        FaultKind.PLUGIN_DEAD,
        FaultKind.PLUGIN_HUNG,
        FaultKind.PLUGIN_WEDGED,
        FaultKind.PLUGIN_SOCKET_LOST,
        FaultKind.DEVICE_NOT_OFFERED,
    }
)
"""Faults of the device plugin, not of a device."""

BEFORE_ITS_DISCOVERY = timedelta(minutes=2)
"""Pods fail from the moment a plugin fails, which is before its fault is raised, by another clock than ours."""

_CLIMBING = frozenset({Phase.FENCED, Phase.DRAINING, Phase.REPAIRING})

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
    if stop := _peoples_hold(at, session, status, owns=owns):
        return stop
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
    if status.phase is Phase.HELD and status.reason == DEVICE_FENCED:
        return _device_fenced(at, session, status, report)
    if status.phase is Phase.HELD and status.rung != session.current.rung:
        status = journal.moved(
            status, Phase.FENCED, reason="PlanRaised", message="a graver fault has joined", now=at.now.wall
        )
        return Decision(f"{name}: a graver fault has joined, so it goes on", Write(session, status))
    if status.phase in _CLIMBING and session.spec.mode is not Mode.OBSERVE:
        return climb(at, session, status, node, report)
    return keep(session, status, f"{name}: {status.phase.value}, {status.reason or 'waits'}")


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
        resumed = Phase.FENCED if status.fenced_time is not None else Phase.PENDING
        status = journal.moved(status, resumed, reason="Resumed", message="", now=at.now.wall)
        return Decision(f"{name}: nobody holds it any more", Write(session, status))
    return None


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
        return keep(session, status, f"{name}: not proven healthy: {why}", RECHECK)
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
    left = _dwell(at, status) - min(dwelt, at.unbroken)
    if left > 0:
        return keep(session, status, f"{name}: healthy, dwells", left)
    if status.restart is not None and not status.restart.cleaned and session.spec.mode is not Mode.OBSERVE:
        return _clean(at, session, status)
    then = (Phase.RELEASED, "Healthy")
    if node.owner_session == name:
        sentence = f"{name}: healthy for the whole dwell, so the node is given back"
        return run(at, session, status, StepName.UNCORDON, then=then, sentence=sentence)
    sentence = f"{name}: healthy; there is no cordon of ours to lift"
    return close(at, session, status, then, sentence)


def _dwell(at: Situation, status: RemediationStatus) -> float:
    """Seconds without a fault that prove the node: few where a device plugin was all that failed."""
    plugins = all(incident.kind in PLUGIN_KINDS for incident in status.incidents)
    return at.policy.device_plugin.healthy_dwell if plugins and status.incidents else at.policy.healthy_dwell


def _clean(at: Situation, session: AcceleratorRemediation, status: RemediationStatus) -> Decision:
    """Before the node is given back: the pods that failed because of the plugin go."""
    begun = min(incident.first_seen for incident in status.incidents)
    return run(
        at,
        session,
        status,
        StepName.REMOVE_FAILED_PODS,
        then=(Phase.VERIFYING, "FaultsCleared"),
        sentence=f"{session.metadata.name}: removes the pods that the kubelet refused meanwhile",
        order=CleanOrder(begun - BEFORE_ITS_DISCOVERY),
    )


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
    return _unoffered(node, status, report)


def _unoffered(node: Node, status: RemediationStatus, report: AcceleratorReport) -> str:
    """After a plugin's fault: the Node has to list as many devices as are healthy, which is a kubelet's tick later."""
    resources = {
        incident.code.removeprefix("plugin:")
        for incident in status.incidents
        if incident.kind in PLUGIN_KINDS and incident.code.startswith("plugin:")
    }
    healthy = sum(device.health is DeviceHealth.HEALTHY for device in report.status.devices)
    for resource in sorted(resources):
        offered = node.status.allocatable.get(resource, "0")
        if offered.isdecimal() and int(offered) < healthy:
            return f"the node lists {offered} of {resource}, and {healthy} devices are healthy"
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
    devices = {incident.device_uuid for incident in status.incidents if incident.cleared_time is None}
    offered = [
        fault.device_uuid
        for fault in (report.status.faults if report is not None else ())
        if fault.kind == FaultKind.DEVICE_OFFERED_THOUGH_BAD and fault.device_uuid in devices
    ]
    wider = [
        incident
        for incident in status.incidents
        if incident.cleared_time is None and not fences_device(at.rule_of(incident), incident)
    ]
    if not offered and not wider:
        return keep(session, status, f"{name}: {status.message}")
    why = (
        f"the device plugin offers {offered[0]} although it is bad"
        if offered
        else f"{wider[0].kind} takes the whole node"
    )
    status = journal.moved(status, Phase.PENDING, reason="Fencing", message=why, now=at.now.wall)
    return Decision(f"{name}: {why}, so it is to be cordoned", Write(session, status))


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
    plan = plan_for(rule, fault.advice)
    rung = plan[0].rung if plan else ""
    if status.rung and advice_rank(rung) <= advice_rank(status.rung):
        return status
    return replace(status, plan=plan, rung=rung)


def _mode_now(at: Situation, session: AcceleratorRemediation, report: AcceleratorReport) -> Mode:
    """The session's mode, or the most that the policy allows now for any of its faults where that is tighter."""
    allowed = [rule.mode for _, rule in at.acting_faults(report)]
    return min(session.spec.mode, max(allowed, key=MODES.index, default=Mode.OBSERVE), key=MODES.index)
