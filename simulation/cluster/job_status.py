"""The status of a Job: its counts, and whether it has ended or is about to. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from simulation.cluster.interface import Object
from simulation.cluster.job_pods import completed_indexes, failed, holds, indexed, written_indexes
from simulation.cluster.kubelet_node import stamp_of
from simulation.cluster.view import active, condition_of, finished, phase_of, ready, terminating, uid_of
from simulation.cluster.workloads import moment_of, sparse

_ENDING = ("FailureTarget", "SuccessCriteriaMet")


@dataclass(frozen=True, slots=True)
class JobCounts:
    """A Job's pods at one moment.

    `uncounted` are the UIDs of pods that have ended and wait to be let go, by `succeeded` and `failed`; they are in
    the totals `succeeded` and `failed` of this class, and not yet in the numbers that the Job's status tells.
    """

    active: int
    ready: int
    terminating: int
    succeeded: int
    failed: int
    indexes: str | None
    restarts: int
    uncounted: Mapping[str, Sequence[str]]
    told: Mapping[str, int]
    held: tuple[Object, ...]
    new_successes: tuple[Object, ...]
    new_failures: tuple[Object, ...]


def count(job: Object, pods: Sequence[Object]) -> JobCounts:
    """Count a Job's pods over what its status has counted before."""
    old = job.get("status") or {}
    ended = {uid_of(pod): pod for pod in pods if holds(pod) and (phase_of(pod) == "Succeeded" or failed(pod))}
    before = old.get("uncountedTerminatedPods") or {}
    known = {kind: list(before.get(kind) or ()) for kind in ("succeeded", "failed")}
    told = {kind: int(old.get(kind) or 0) for kind in known}
    uncounted: dict[str, list[str]] = {}
    fresh: dict[str, list[Object]] = {"succeeded": [], "failed": []}
    for kind, uids in known.items():
        told[kind] += sum(uid not in ended for uid in uids)
        kept = [uid for uid in uids if uid in ended]
        for uid, pod in ended.items():
            if uid not in (*known["succeeded"], *known["failed"]) and (phase_of(pod) == "Succeeded") == (
                kind == "succeeded"
            ):
                fresh[kind].append(pod)
        if kept := [*kept, *(uid_of(pod) for pod in fresh[kind])]:
            uncounted[kind] = kept
    live = [pod for pod in pods if active(pod)]
    indexes = None
    if indexed(job):
        succeeded = [pod for pod in pods if phase_of(pod) == "Succeeded"]
        indexes = completed_indexes(job, succeeded)
        told["succeeded"] = len(indexes)
    totals = {kind: told[kind] + len(uncounted.get(kind, ())) for kind in told}
    return JobCounts(
        active=len(live),
        ready=sum(ready(pod) for pod in live),
        terminating=sum(terminating(pod) and not finished(pod) for pod in pods),
        succeeded=len(indexes) if indexes is not None else totals["succeeded"],
        failed=totals["failed"],
        indexes=written_indexes(indexes) if indexes is not None else None,
        restarts=sum(_restarts(pod) for pod in live if phase_of(pod) in ("Running", "Pending")),
        uncounted=uncounted,
        told=told,
        held=tuple(ended.values()),
        new_successes=tuple(fresh["succeeded"]),
        new_failures=tuple(fresh["failed"]),
    )


def job_status(job: Object, counts: JobCounts, *, wall: datetime) -> Object:
    """The status with these counts, and with what follows from them for the Job's end."""
    old = job.get("status") or {}
    stamp = stamp_of(wall)
    suspended = bool(job["spec"].get("suspend"))
    status: Object = {
        **{
            name: value
            for name, value in old.items()
            if name in ("conditions", "startTime", "completionTime")
        },
        **sparse({"active": counts.active, **counts.told}),
        "ready": counts.ready,
        "terminating": counts.terminating,
        "uncountedTerminatedPods": dict(counts.uncounted),
    }
    if counts.indexes is not None:
        status["completedIndexes"] = counts.indexes
    if suspended:
        status.pop("startTime", None)
        return with_condition(status, "Suspended", "JobSuspended", "Job suspended", stamp=stamp)
    condition = condition_of(job, "Suspended")
    if condition is not None and condition["status"] == "True":
        status = with_condition(status, "Suspended", "JobResumed", "Job resumed", stamp=stamp, holds=False)
        status["startTime"] = stamp
    status.setdefault("startTime", stamp)
    if ending_condition(status) is not None:
        return status
    if reason := _failure(job, counts, status, wall):
        return with_condition(status, "FailureTarget", *reason, stamp=stamp)
    if _complete(job, counts):
        text = "Reached expected number of succeeded pods"
        return with_condition(status, "SuccessCriteriaMet", "CompletionsReached", text, stamp=stamp)
    return status


def with_condition(
    status: Object, kind: str, reason: str, message: str, *, stamp: str, holds: bool = True
) -> Object:
    """The status with a condition set; one that says so already keeps its times."""
    said = "True" if holds else "False"
    before = condition_of({"status": status}, kind)
    if before is not None and before["status"] == said:
        return status
    others = [one for one in status.get("conditions") or () if one["type"] != kind]
    condition = {
        "type": kind,
        "status": said,
        "lastProbeTime": stamp,
        "lastTransitionTime": stamp,
        "reason": reason,
        "message": message,
    }
    return {**status, "conditions": [*others, condition]}


def ending_condition(status: Object) -> Object | None:
    """The condition that says how the Job is about to end."""
    found = (condition_of({"status": status}, kind) for kind in _ENDING)
    return next((one for one in found if one is not None), None)


def ended_status(status: Object, ending: Object, *, wall: datetime) -> Object:
    """The last status: every pod has ended."""
    stamp = stamp_of(wall)
    success = ending["type"] == "SuccessCriteriaMet"
    kind = "Complete" if success else "Failed"
    ended = with_condition(status, kind, ending["reason"], ending["message"], stamp=stamp)
    return {**ended, "completionTime": stamp} if success else ended


def finished_condition(job: Object) -> Object | None:
    """The condition that says that the Job has ended."""
    for kind in ("Complete", "Failed"):
        condition = condition_of(job, kind)
        if condition is not None and condition.get("status") == "True":
            return condition
    return None


def deadline_passed(job: Object, now: float, wall: datetime) -> float | None:
    """When the Job's active deadline passes."""
    seconds = job["spec"].get("activeDeadlineSeconds")
    started = (job.get("status") or {}).get("startTime")
    if seconds is None or job["spec"].get("suspend"):
        return None
    return now + max(0.0, float(seconds) - (wall - moment_of(started, wall)).total_seconds())


def _failure(job: Object, counts: JobCounts, status: Object, wall: datetime) -> tuple[str, str] | None:
    limit = 6 if job["spec"].get("backoffLimit") is None else int(job["spec"]["backoffLimit"])
    on_failure = (job["spec"].get("template") or {}).get("spec", {}).get("restartPolicy") == "OnFailure"
    restarted = on_failure and counts.restarts > 0 and counts.restarts >= limit
    if counts.failed > limit or restarted:
        return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    seconds = job["spec"].get("activeDeadlineSeconds")
    if seconds is not None:
        passed = (wall - moment_of(status["startTime"], wall)).total_seconds()
        if passed >= float(seconds):
            return "DeadlineExceeded", "Job was active longer than specified deadline"
    return None


def _complete(job: Object, counts: JobCounts) -> bool:
    completions = job["spec"].get("completions")
    if completions is None:
        return counts.succeeded > 0 and counts.active == 0
    return counts.succeeded >= int(completions)


def _restarts(pod: Object) -> int:
    status = pod.get("status") or {}
    all_of = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    return sum(int(one.get("restartCount") or 0) for one in all_of)
