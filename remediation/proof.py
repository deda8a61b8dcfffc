"""Proof that a node is healthy again, and what happens then: the dwell, the clean-up, the end. Pure."""

from __future__ import annotations

from datetime import timedelta

from msgspec.structs import replace

from health.plugin_faults import PLUGIN_FAULTS, resource_of
from health.report import AcceleratorReport
from health.vocabulary import DeviceHealth, FaultKind, Mode, Phase, SourceState
from remediation import journal
from remediation.fleet import Node
from remediation.ladder import PROOF_WITHIN
from remediation.moves import close, hold, keep, run
from remediation.objects import AcceleratorRemediation, RemediationStatus
from remediation.orders import CleanOrder
from remediation.permission import forbidden
from remediation.policy import StepName
from remediation.situation import RECHECK, Decision, Situation, Write
from remediation.steps.outcome import Result

PLUGIN_KINDS = frozenset(PLUGIN_FAULTS) - {FaultKind.DEVICE_OFFERED_THOUGH_BAD}
"""Faults of the device plugin, not of a device."""

CLIMBING = frozenset({Phase.FENCED, Phase.DRAINING, Phase.REPAIRING})
"""The phases in which a session that has fenced goes up its plan."""

BEFORE_ITS_DISCOVERY = timedelta(minutes=2)
"""Pods fail from the moment a plugin fails, which is before its fault is raised, by another clock than ours."""

PROVING = {"nvml", "kernel-log"}
OF_PLUGINS = {"plugin", "pod-resources"}
"""The sources without which nothing is proven, and those that matter after a device plugin's fault. How long pods
take is no proof of anything."""

DEVICE_SOURCE = "nvml"
"""The source by which an agent sees its devices: without it nothing about them is proven."""

_CLEANING_ATTEMPTS = 3


def recover(
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
        elif status.phase in CLIMBING and _overdue(at, status) and session.spec.mode is not Mode.OBSERVE:
            return hold(at, session, status, "NotProvenHealthy", f"its faults are gone, but {why}")
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
    if _to_be_cleaned(at, session, status, node, report):
        left = at.resume_at - at.now.monotonic
        return (
            keep(session, status, f"{name}: {status.message}", left)
            if left > 0
            else _clean(at, session, status)
        )
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


def _overdue(at: Situation, status: RemediationStatus) -> bool:
    """Whether the faults have been gone for so long that the proof should be there."""
    cleared = [incident.cleared_time for incident in status.incidents if incident.cleared_time is not None]
    return bool(cleared) and at.now.wall - max(cleared) >= PROOF_WITHIN


def _to_be_cleaned(
    at: Situation,
    session: AcceleratorRemediation,
    status: RemediationStatus,
    node: Node,
    report: AcceleratorReport | None,
) -> bool:
    """Whether pods are to be removed before the node is given back. Where that is forbidden now, or fails again and
    again, it is not worth keeping jobs off healthy devices."""
    if status.restart is None or status.restart.cleaned or session.spec.mode is Mode.OBSERVE:
        return False
    failures = sum(
        entry.count
        for entry in status.journal
        if entry.step == StepName.REMOVE_FAILED_PODS and entry.result == Result.FAILED
    )
    return failures < _CLEANING_ATTEMPTS and not forbidden(at, session, node, report, status.incidents)


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
    proving = PROVING | (OF_PLUGINS if any(one.kind in PLUGIN_KINDS for one in status.incidents) else set())
    for source in report.status.sources:
        broken = source.name in proving and source.state in (SourceState.FAILED, SourceState.STALE)
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
    if any(device.partition is not None for device in report.status.devices):
        return ""  # a partitioned device is listed under other names, and by other numbers
    told = {resource_of(one.code) for one in status.incidents if one.kind in PLUGIN_KINDS}
    healthy = sum(device.health is DeviceHealth.HEALTHY for device in report.status.devices)
    for resource in sorted(told - {""}):
        offered = node.status.allocatable.get(resource, "0")
        if offered.isdecimal() and int(offered) < healthy:
            return f"the node lists {offered} of {resource}, and {healthy} devices are healthy"
    return ""
