"""Runs a repair as a Job on the node, once at most, and judges it by what it did, never by the Job's own status.

A reboot is proven by the node's boot ID, a reset or a service restart by the receipt that its program left on the
host and the node's agent reports, a verification or diagnosis by its container's own word. The Job's name comes from
session, rung, step and attempt, and its program does nothing where the boot ID or a receipt says that it is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from msgspec.structs import replace

from health.receipt import Receipt, RepairResult
from health.report import AcceleratorReport
from remediation.cluster import FencedError
from remediation.figures import judge
from remediation.fleet import Node
from remediation.orders import JobOrder, Proof
from remediation.policy import StepName
from remediation.repair.order import Exit
from remediation.repair_state import RepairState
from remediation.steps.outcome import Outcome, Result
from runtime.api_errors import ApiError, Conflict, Forbidden, Invalid, NotFound

RECEIPT_LAG = timedelta(seconds=90)
"""How long after its Job has ended a receipt may take: the agent takes its devices back, and looks every second."""

VERIFICATION_FAILED = "VerificationFailed"
"""Why a session is held whose repaired node could not be proven."""

_FORBADE = (Exit.NOT_ALLOWED, Exit.UNREACHABLE)
_ATTEMPTS_LIMIT = 20
"""Whatever forbids a repair that the controller does not see itself, a session does not go on making Jobs for ever."""

_SOON = 1.0
_SECONDS_OF_BOOT = 2.0


@dataclass(frozen=True, slots=True)
class JobView:
    """What is known of a Job and its pod. `ended`: it will start no container any more.

    `exit_code` and `message` are those of the container that has ended last, `trouble` why nothing runs yet.
    """

    ended: bool = False
    exit_code: int | None = None
    message: str = ""
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class RepairJob:
    """A Job to create: a PodTemplate's name, on which node, and what its containers are told."""

    name: str
    template: str
    namespace: str
    node_name: str
    facts: Mapping[str, str]
    deadline_seconds: int


class JobApi(Protocol):
    """What this step needs of the Kubernetes API. Every call raises ApiError; mutations FencedError as well."""

    def get_node(self, name: str) -> Node:
        """A live read. Raises NotFound."""

    def report(self, node_name: str) -> AcceleratorReport | None:
        """The node's report as it is now; None where there is none."""

    def create_job(self, job: RepairJob) -> None:
        """Create it. Raises Conflict (`already_exists`) where it exists, NotFound without its template, Forbidden."""

    def job(self, namespace: str, name: str) -> JobView:
        """How it stands. Raises NotFound."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose Job it is: the session, the step it belongs to, the node and its UID."""

    session: str
    step: StepName
    node_name: str
    node_uid: str


def job_pass(
    api: JobApi, subject: Subject, order: JobOrder, memory: RepairState, *, now: datetime
) -> Outcome:
    """The next look at the Job; the first one creates it."""
    try:
        if done := _booted(api, subject, order, memory, now):
            return done
        if memory.created is None:
            return _create(api, subject, order, memory, now)
        if done := _told(api, subject, order, memory, now):
            return done
        return _waited(api, order, memory, now)
    except FencedError:
        raise
    except ApiError as error:
        if now < (memory.created or memory.started) + order.deadline:
            raise
        return _given_up(f"the deadline has passed, and nobody knows how the Job stands: {error}", memory)


def _booted(
    api: JobApi, subject: Subject, order: JobOrder, memory: RepairState, now: datetime
) -> Outcome | None:
    """A new boot ends every step: it is what a reboot wants, and does what a reset or restart does and more."""
    node = api.get_node(subject.node_name)
    if node.metadata.uid != subject.node_uid:
        return Outcome(Result.CHANGED, "another node has the name now", node, repair=memory)
    boot_id = node.status.node_info.boot_id
    if boot_id in ("", memory.boot_id):
        return None
    ours = order.proof is Proof.BOOT and memory.created is not None
    what = "the node has booted" if ours else "the node has booted meanwhile"
    if not ours:
        memory = memory.without_job()
    return Outcome(Result.DONE, what, node, repair=memory.carried_out(StepName.REBOOT, now))


def _create(api: JobApi, subject: Subject, order: JobOrder, memory: RepairState, now: datetime) -> Outcome:
    job = RepairJob(
        name=memory.job,
        template=order.template,
        namespace=order.namespace,
        node_name=subject.node_name,
        facts={
            "session": subject.session,
            "step": subject.step,
            "attempt": str(memory.attempt),
            "node": subject.node_name,
            "node-uid": subject.node_uid,
            "boot-id": memory.boot_id,
            "devices": ",".join(memory.devices),
            "service": order.service,
        },
        deadline_seconds=max(60, round(order.deadline.total_seconds())),
    )
    try:
        api.create_job(job)
    except Conflict as conflict:
        if not conflict.already_exists:
            raise
    except (NotFound, Forbidden, Invalid) as error:
        message = f"no Job may be made of the PodTemplate {order.namespace}/{order.template}: {error.message}"
        return Outcome(Result.BLOCKED, message, hold="NoRepairStep", repair=memory)
    started = memory.counted(order.rung, now)
    return Outcome(Result.WAITING, f"the Job {job.name} is to run on the node", again=_SOON, repair=started)


def _told(
    api: JobApi, subject: Subject, order: JobOrder, memory: RepairState, now: datetime
) -> Outcome | None:
    """What the receipt says, or for a verification the container; None where nothing is said yet."""
    if order.proof is Proof.RESULT:
        return _by_result(api.job(order.namespace, memory.job), subject, order, memory, now)
    receipt = _receipt(api.report(subject.node_name), subject, memory)
    if receipt is None or receipt.result == RepairResult.BEGUN:
        return None
    if receipt.result == RepairResult.DONE and order.proof is Proof.RECEIPT:
        message = receipt.message or "carried out"
        return Outcome(Result.DONE, message, repair=memory.carried_out(subject.step, now))
    if receipt.result == RepairResult.HELD:
        return Outcome(Result.BLOCKED, receipt.message, hold="DeviceHeld", repair=memory)
    if receipt.result == RepairResult.FAILED:
        return Outcome(Result.BLOCKED, receipt.message or "it failed", hold="RepairFailed", repair=memory)
    return None


def _receipt(report: AcceleratorReport | None, subject: Subject, memory: RepairState) -> Receipt | None:
    if report is None or report.status.node_uid != subject.node_uid:
        return None
    identity = (subject.session, subject.step.value, memory.attempt)
    return next((one for one in report.status.receipts if one.identity == identity), None)


def _by_result(
    view: JobView, subject: Subject, order: JobOrder, memory: RepairState, now: datetime
) -> Outcome | None:
    if view.exit_code is None:
        if not view.ended:
            return None
        message = f"the Job has ended without a word of its container{_because(view)}"
        return Outcome(Result.BLOCKED, message, hold="RepairFailed", repair=memory)
    complaint = judge(view.exit_code, view.message, order.baseline)
    if complaint:
        return Outcome(Result.BLOCKED, complaint, hold=VERIFICATION_FAILED, repair=memory)
    proven = replace(
        memory.carried_out(subject.step, now),
        done_time=memory.done_time or now,
        verified=subject.step is StepName.VERIFY,
    )
    said = " ".join(view.message.split())[:200]
    return Outcome(Result.DONE, f"its figures are good: {said}" if said else "it ended well", repair=proven)


def _waited(api: JobApi, order: JobOrder, memory: RepairState, now: datetime) -> Outcome:
    """Nothing has been proven yet: wait, until the deadline or until nothing can come any more."""
    try:
        view = api.job(order.namespace, memory.job)
    except NotFound:
        view = JobView(ended=True, trouble="somebody deleted the Job")
    assert memory.created is not None
    if now >= memory.created + order.deadline:
        return _given_up(f"nothing shows that it was carried out{_because(view)}", memory)
    if view.ended and view.exit_code in _FORBADE and memory.attempt < _ATTEMPTS_LIMIT:
        message = f"nothing was done, for its last look forbade it{_because(view)}"
        return Outcome(Result.CHANGED, message, repair=memory.refused(order.rung))
    if order.proof is Proof.RECEIPT and view.ended:
        ended = memory.ended or now
        if now >= ended + RECEIPT_LAG:
            return _given_up(f"its Job has ended without a receipt{_because(view)}", memory)
        memory = replace(memory, ended=ended)
    again = _SECONDS_OF_BOOT if order.proof is Proof.BOOT else _SOON
    return Outcome(
        Result.WAITING, f"the Job {memory.job} is on its way{_because(view)}", again=again, repair=memory
    )


def _because(view: JobView) -> str:
    if view.trouble:
        return f" ({view.trouble})"
    if view.exit_code is None:
        return ""
    said = f": {' '.join(view.message.split())[:200]}" if view.message else ""
    return f" (its container ended with {view.exit_code}{said})"


def _given_up(message: str, memory: RepairState) -> Outcome:
    return Outcome(Result.DEADLINE, message, hold="RepairNotSeen", repair=memory)


FACT_PREFIX = "sickbay.dev/"
TEMPLATE_LABEL = "sickbay.dev/template"
_KEPT_SECONDS = 7 * 86400


def job_document(job: RepairJob, pod_spec: Mapping[str, Any]) -> dict[str, Any]:
    """The Job (batch/v1) of a PodTemplate's pod spec: nothing of it is changed but the node it is bound to."""
    metadata = {
        "labels": {TEMPLATE_LABEL: job.template},
        "annotations": {f"{FACT_PREFIX}{key}": value for key, value in job.facts.items()},
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job.name, "namespace": job.namespace, **metadata},
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "podReplacementPolicy": "Failed",
            "ttlSecondsAfterFinished": _KEPT_SECONDS,
            "activeDeadlineSeconds": min(job.deadline_seconds, 86400),
            "template": {"metadata": metadata, "spec": {**pod_spec, "nodeName": job.node_name}},
        },
    }
