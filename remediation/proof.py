"""Proof that a node is healthy again, and what happens then: the dwell, the clean-up, the end. Pure."""

from __future__ import annotations

from datetime import timedelta

from msgspec.structs import replace

from health.plugin_faults import PLUGIN_FAULTS, resource_of
from health.report import AcceleratorReport
from health.vocabulary import DeviceHealth, FaultKind, Mode, Phase, SourceState
from remediation import journal
from remediation.fleet import Node
from remediation.ladder import proof_within
from remediation.moves import Step, close, go_on, hold, keep, run
from remediation.objects import AcceleratorRemediation, RemediationStatus
from remediation.orders import CleanOrder, JobOrder, Proof
from remediation.permission import forbidden
from remediation.policy import StepName
from remediation.repair_state import RepairState
from remediation.repairs import begun
from remediation.situation import RECHECK, Decision, Situation, Write, obstacle
from remediation.steps.job import VERIFICATION_FAILED
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

_NO_VERDICTS = frozenset({"", "None"})
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
    if status.phase is Phase.HELD and status.reason == VERIFICATION_FAILED:
        return keep(session, status, f"{name}: {status.message}")
    if why := unproven(node, status, report):
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
    if before := _before_it_is_given_back(at, session, status, node, report):
        return before
    then = (Phase.RELEASED, _ended_as(status, report))
    if node.unverified and at.policy.verification.unverified:
        sentence = f"{name}: is proven, so its taint goes"
        ends = node.owner_session != name and status.fenced_time is None
        leads_to = then if ends else (Phase.VERIFYING, "FaultsCleared")
        return run(at, session, status, StepName.LIFT_TAINT, then=leads_to, sentence=sentence)
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
    return bool(cleared) and at.now.wall - max(cleared) >= proof_within(at, status)


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


def _before_it_is_given_back(
    at: Situation,
    session: AcceleratorRemediation,
    status: RemediationStatus,
    node: Node,
    report: AcceleratorReport | None,
) -> Decision | None:
    """What is left to do on a node that has been healthy for the whole dwell: a verification, and tidying up."""
    name = session.metadata.name
    if _to_be_verified(at, status, node):
        if _verifying(status):
            return _verify(at, session, status, node, report)
        if why := obstacle(at, node, report):
            return keep(session, status, f"{name}: healthy, and to be verified, but {why}", RECHECK)
        # A session that only proves a new node is about no fault that a rule could allow anything for.
        if not status.incidents or not forbidden(at, session, node, report, status.incidents):
            return _verify(at, session, status, node, report)
    if not _to_be_cleaned(at, session, status, node, report):
        return None
    if (left := at.resume_at - at.now.monotonic) > 0:
        return keep(session, status, f"{name}: {status.message}", left)
    return _clean(at, session, status)


def _to_be_verified(at: Situation, status: RemediationStatus, node: Node) -> bool:
    """Whether a Job is to prove the node: the policy has one, and a repair was carried out or the operator asks."""
    repair = status.repair or RepairState(started=at.now.wall)
    asked = repair.done or (node.unverified and at.policy.verification.unverified)
    return bool(at.policy.verification.template and asked and not repair.verified)


def _verifying(status: RemediationStatus) -> bool:
    """Whether the Job exists, and is seen to its end."""
    repair = status.repair
    return repair is not None and repair.created is not None and status.step == StepName.VERIFY


def _verify(
    at: Situation,
    session: AcceleratorRemediation,
    status: RemediationStatus,
    node: Node,
    report: AcceleratorReport | None,
) -> Decision:
    policy = at.policy.verification
    models = sorted({device.model for device in report.status.devices}) if report is not None else []
    order = JobOrder(
        template=policy.template,
        namespace=at.policy.repair.namespace,
        rung=StepName.VERIFY,
        deadline=timedelta(seconds=policy.deadline),
        proof=Proof.RESULT,
        baseline=next((found for model in models if (found := policy.baseline_for(model))), None),
        evident=False,
    )
    name = session.metadata.name
    step = Step(
        StepName.VERIFY,
        Phase.VERIFYING,
        order,
        f"{name}: runs {policy.template} to prove the node",
        then=(Phase.VERIFYING, "FaultsCleared"),
    )
    if status.step == StepName.VERIFY and status.repair is not None and status.repair.job:
        return go_on(at, session, status, step)
    status = begun(at, status, node, order, session=name, step=StepName.VERIFY)
    return run(at, session, status, step.name, then=step.then, sentence=step.sentence, order=order)


def _ended_as(status: RemediationStatus, report: AcceleratorReport | None) -> str:
    """How a session ends whose node is proven."""
    return "DeviceReplaced" if report is not None and replaced(status, report) else "Healthy"


def replaced(status: RemediationStatus, report: AcceleratorReport) -> frozenset[str]:
    """UUIDs of the incidents' devices in whose place others are: their serials are gone, and as many devices are there.

    Hardware is known by its serial; without one nobody knows that it is another device.
    """
    serials = {device.serial for device in report.status.devices}
    if not status.device_count or _count(report) < status.device_count:
        return frozenset()
    return frozenset(
        one.device_uuid
        for one in status.incidents
        if one.device_uuid and one.device_serial and one.device_serial not in serials
    )


def _count(report: AcceleratorReport) -> int:
    return sum(device.partition is None for device in report.status.devices)


def unproven(node: Node, status: RemediationStatus, report: AcceleratorReport | None) -> str:
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
    if (count := _count(report)) < status.device_count:
        return f"the node has {count} devices, and had {status.device_count}"
    health = {device.uuid: device.health for device in report.status.devices}
    told = {incident.device_uuid for incident in status.incidents if incident.device_uuid}
    for device in report.status.devices:
        if device.uuid in told and device.recovery_action not in _NO_VERDICTS:
            return f"the driver asks for {device.recovery_action} of device {device.uuid}"
    for uuid in sorted(told - replaced(status, report)):
        if uuid not in health:
            return f"device {uuid} is missing"
        if health[uuid] is not DeviceHealth.HEALTHY:
            return f"device {uuid} is {health[uuid]}"
    return _unoffered(node, status, report)


def _unoffered(node: Node, status: RemediationStatus, report: AcceleratorReport) -> str:
    """After a plugin's fault or a repair the Node must list as many devices as are healthy: a kubelet's tick later."""
    if any(device.partition is not None for device in report.status.devices):
        return ""  # a partitioned device is listed under other names, and by other numbers
    told = {resource_of(one.code) for one in status.incidents if one.kind in PLUGIN_KINDS}
    if status.repair is not None and status.repair.done and report.status.plugin is not None:
        told |= {plugin.name for plugin in report.status.plugin.resources}
    healthy = sum(device.health is DeviceHealth.HEALTHY for device in report.status.devices)
    for resource in sorted(told - {""}):
        offered = node.status.allocatable.get(resource, "0")
        if offered.isdecimal() and int(offered) < healthy:
            return f"the node lists {offered} of {resource}, and {healthy} devices are healthy"
    return ""
