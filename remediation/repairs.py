"""The rungs that repair: letting go of the devices, the Job, and the next rung where it did not help. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from msgspec.structs import replace

from health.report import AcceleratorReport
from health.vocabulary import FaultKind, Phase
from remediation import journal
from remediation.fleet import Node
from remediation.moves import hold
from remediation.objects import MESSAGE_LIMIT, AcceleratorRemediation, RemediationStatus, Rung
from remediation.orders import JobOrder, Proof, ReleaseOrder
from remediation.policy import StepName
from remediation.repair_state import DEVICES_LIMIT, FAILURE_LIMIT, FAILURES_LIMIT, RepairState, job_name
from remediation.situation import Decision, Situation, Write

NOT_HEALED = "NotHealed"

JOBS = {
    StepName.RESET: "reset",
    StepName.REBOOT: "reboot",
    StepName.RESTART_SERVICE: "restart-service",
}
"""The PodTemplates of the steps that are Jobs; that of `RunJob` and of the verification is the policy's."""

DONE = {
    StepName.DRAIN: "Drained",
    StepName.RELEASE_DEVICES: "DevicesReleased",
    StepName.RESET: "DevicesReset",
    StepName.REBOOT: "Rebooted",
    StepName.RESTART_SERVICE: "ServiceRestarted",
    StepName.RUN_JOB: "JobDone",
    StepName.RESTART_PLUGIN: "Restarted",
}
"""Why a session is in phase Repairing when a step has been taken, and the next one is due."""

_BY_REASON = {reason: step for step, reason in DONE.items()}
_BORROWING = frozenset({StepName.RELEASE_DEVICES.value, DONE[StepName.RELEASE_DEVICES], StepName.RESET.value})
_AFTER_RESET = frozenset({DONE[StepName.RESET], StepName.RESTART_PLUGIN.value})
_MARGIN = timedelta(minutes=1)


def step_of(status: RemediationStatus) -> StepName | None:
    """The step that a session is in or has just taken; None before the first of a rung."""
    if status.phase is Phase.DRAINING:
        return StepName.DRAIN
    if status.phase is not Phase.REPAIRING:
        return None
    return _BY_REASON.get(status.reason) or next((step for step in DONE if step == status.reason), None)


def taken(status: RemediationStatus) -> bool:
    """Whether the step that the session is in has been taken, so that the next one is due."""
    return status.phase is Phase.REPAIRING and status.reason in _BY_REASON


def borrowing(status: RemediationStatus) -> bool:
    """Whether devices and operands are wanted off the node right now."""
    return status.phase is Phase.REPAIRING and status.reason in _BORROWING


def lent_too_long(at: Situation, status: RemediationStatus) -> bool:
    """Whether the step that wants the devices off the node has stood still for as long as a release may take."""
    since = status.repair.started if status.repair is not None else at.now.wall
    late = at.now.wall >= since + timedelta(seconds=at.policy.repair.release_deadline)
    return borrowing(status) and late


def in_job(status: RemediationStatus) -> bool:
    """Whether the Job of a step exists, which may act at any moment."""
    in_step = status.phase is Phase.REPAIRING and status.reason in (*JOBS, StepName.RUN_JOB)
    return in_step and status.repair is not None and status.repair.created is not None


def acting(status: RemediationStatus) -> bool:
    """Whether something is under way that must be seen to its end, whatever has become of the faults.

    A Job that exists is; and after a reset the device plugin has to take the device back.
    """
    if in_job(status):
        return True
    follows = status.phase is Phase.REPAIRING and status.reason in _AFTER_RESET
    return follows and status.repair is not None and StepName.RESET in status.repair.done


def recognized(
    session: str,
    status: RemediationStatus,
    node: Node,
    report: AcceleratorReport | None,
    now: datetime,
) -> RemediationStatus:
    """The status with what the host shows of a Job whose creation nobody could write down: a receipt, or a new boot.

    A controller may die between the two, and the Job may have ended the faults before another one looks. What follows
    a repair (the device plugin takes the device back, a verification) would be left out if nobody knew of it.
    """
    repair = status.repair
    named = repair is not None and repair.job and repair.created is None
    if repair is None or not named or status.phase is not Phase.REPAIRING or status.reason not in JOBS:
        return status
    identity = (session, status.reason, repair.attempt)
    told = report is not None and any(one.identity == identity for one in report.status.receipts)
    booted = node.status.node_info.boot_id not in ("", repair.boot_id)
    return replace(status, repair=repair.counted(status.rung, now)) if told or booted else status


def release_order(at: Situation) -> ReleaseOrder:
    """What is paused, and until when at most the agent lets go: for as long as both steps may take."""
    policy = at.policy.repair
    whole = timedelta(seconds=policy.release_deadline + policy.reset_deadline)
    return ReleaseOrder(
        operands=policy.operands,
        deadline=timedelta(seconds=policy.release_deadline),
        until=at.now.wall + whole + _MARGIN,
    )


def job_order(at: Situation, status: RemediationStatus, rung: str, step: StepName) -> JobOrder:
    """Which Job a step is, and by what it is judged."""
    policy = at.policy.repair
    seconds = {
        StepName.RESET: policy.reset_deadline,
        StepName.REBOOT: policy.reboot_deadline,
        StepName.RESTART_SERVICE: policy.service_deadline,
    }.get(step, policy.diagnostics_deadline)
    proof = {StepName.REBOOT: Proof.BOOT, StepName.RUN_JOB: Proof.RESULT}.get(step, Proof.RECEIPT)
    return JobOrder(
        template=JOBS.get(step, policy.diagnostics),
        namespace=policy.namespace,
        rung=rung,
        deadline=timedelta(seconds=seconds),
        proof=proof,
        service=_service(status) if step is StepName.RESTART_SERVICE else "",
    )


def _service(status: RemediationStatus) -> str:
    """A fabric is repaired by its manager; what a wedged device plugin needs is a new kubelet."""
    fabric = {FaultKind.FABRIC_FAULT.value, FaultKind.LINK_FAULT.value}
    lasting = journal.lasting(status)
    return "fabric-manager" if lasting and all(one.kind in fabric for one in lasting) else "kubelet"


def begun(
    at: Situation, status: RemediationStatus, node: Node, order: JobOrder, *, session: str, step: str
) -> RemediationStatus:
    """The status in which a Job is named, before it is created."""
    memory = status.repair or RepairState(started=at.now.wall)
    # A number that a Job may have had is not used again: its receipt would speak for the next one.
    attempt = max(1, memory.attempt + (memory.created is not None))
    devices = sorted({one.device_uuid for one in journal.lasting(status) if one.device_uuid})
    name = job_name(order.template, session=session, rung=order.rung, step=step, attempt=attempt)
    return replace(
        status,
        repair=replace(
            memory,
            started=at.now.wall,
            boot_id=node.status.node_info.boot_id,
            devices=tuple(devices[:DEVICES_LIMIT]),
            job=name,
            attempt=attempt,
            created=None,
            ended=None,
        ),
    )


def exhausted(
    at: Situation, session: AcceleratorRemediation, status: RemediationStatus, rung: Rung, step: StepName
) -> str:
    """Why this rung is not taken (again); empty where it may be."""
    attempts = status.repair.attempts_of(rung.rung) if status.repair is not None else 0
    if attempts >= rung.max_attempts:
        return f"it was tried {attempts} of {rung.max_attempts} times"
    return _repeated(at, session, status, step)


def _repeated(
    at: Situation, session: AcceleratorRemediation, status: RemediationStatus, step: StepName
) -> str:
    """Why a device, by its serial, has had this repair too often, wherever it was built in then; or a node, where the
    faults are of no device."""
    serials = {one.device_serial for one in journal.lasting(status) if one.device_serial}
    policy = at.policy.repair.repeats
    since = at.now.wall - timedelta(seconds=policy.within)
    times = 0
    for other in at.fleet.sessions.values():
        current = other.current
        repair = current.repair
        if other.metadata.name == session.metadata.name or repair is None or repair.done_time is None:
            continue
        if serials:
            same = any(one.device_serial in serials for one in current.incidents)
        else:
            same = other.spec.node_uid == session.spec.node_uid
        times += same and step in repair.done and repair.done_time >= since
    if times >= policy.limit:
        what = ", ".join(sorted(serials)) or f"node {session.spec.node_name}"
        return f"{what} has had it {times} times within {policy.within}, and fails again"
    return ""


def pause_left(at: Situation, status: RemediationStatus, rung: Rung) -> float:
    """Seconds until the next attempt of this rung may begin, from the end of the last one; they double each time."""
    repair = status.repair
    attempts = repair.attempts_of(rung.rung) if repair is not None else 0
    if repair is None or not attempts:
        return 0.0
    ended = status.phases[-1].started if status.phases else repair.started
    return (ended + at.policy.repair.pause_after(attempts) - at.now.wall).total_seconds()


def escalate(
    at: Situation,
    session: AcceleratorRemediation,
    status: RemediationStatus,
    reason: str,
    failure: str,
    *,
    retry: bool = True,
) -> Decision:
    """This attempt is over and the faults are not: another one where the rung has any left and `retry` allows it, then
    the next rung, then a person with everything that was tried."""
    memory = status.repair or RepairState(started=at.now.wall)
    told = (*memory.failures, f"{status.rung}: {failure}"[:FAILURE_LIMIT])[-FAILURES_LIMIT:]
    status = replace(status, repair=replace(memory, failed="", failure="", failures=told, verified=False))
    later = _next_rung(status, retry=retry)
    if later is None:
        tale = (*told, _evidence(status))
        share = MESSAGE_LIMIT // len(tale) - len("; ")
        return hold(at, session, status, reason, "; ".join(part[:share] for part in tale))
    message = f"{status.rung}: {failure}; next comes {later.rung}"
    status = replace(status, rung=later.rung)
    status = journal.moved(status, Phase.FENCED, reason="Escalated", message=message, now=at.now.wall)
    return Decision(f"{session.metadata.name}: {message}", Write(session, status))


def _next_rung(status: RemediationStatus, *, retry: bool) -> Rung | None:
    names = [rung.rung for rung in status.plan]
    if status.rung not in names:
        return None
    rung = status.plan[names.index(status.rung)]
    attempts = status.repair.attempts_of(rung.rung) if status.repair is not None else 0
    if retry and 0 < attempts < rung.max_attempts:
        return rung
    return next(iter(status.plan[names.index(status.rung) + 1 :]), None)


def rung_of(status: RemediationStatus) -> Rung | None:
    """The rung that the session is on."""
    return next((rung for rung in status.plan if rung.rung == status.rung), None)


def _evidence(status: RemediationStatus) -> str:
    lasting = [
        f"{one.kind} ({one.code}) of {one.device_uuid or 'the node'}" for one in journal.lasting(status)
    ]
    return f"what lasts: {', '.join(lasting)}" if lasting else "nothing lasts of the faults"
