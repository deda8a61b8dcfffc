"""The pods of a Job: how they are made, when they count as failed, and which completion index each has. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from simulation.cluster.interface import Object
from simulation.cluster.view import condition_of, phase_of, terminating, uid_of
from simulation.cluster.workloads import moment_of, owner_reference, pod_of

FINALIZER = "batch.kubernetes.io/job-tracking"
INDEX = "batch.kubernetes.io/job-completion-index"


def job_pod(job: Object, index: int | None) -> Object:
    """A pod of the Job's template, with the labels that the API server puts into it."""
    name, uid = job["metadata"]["name"], uid_of(job)
    labels = {
        "batch.kubernetes.io/controller-uid": uid,
        "batch.kubernetes.io/job-name": name,
        "controller-uid": uid,
        "job-name": name,
    }
    annotations = {}
    if index is not None:
        labels[INDEX] = annotations[INDEX] = str(index)
    pod = pod_of(
        job["spec"].get("template") or {},
        job,
        reference=owner_reference(job, api_version="batch/v1", kind="Job"),
        labels=labels,
        annotations=annotations,
        finalizers=(FINALIZER,),
    )
    if index is not None:
        pod["metadata"]["generateName"] = f"{name}-{index}-"
        pod["spec"].setdefault("hostname", f"{name}-{index}")
    return pod


def holds(pod: Object) -> bool:
    """Whether the pod waits to be counted."""
    return FINALIZER in (pod["metadata"].get("finalizers") or ())


def failed(pod: Object) -> bool:
    """Whether a pod counts as failed: one that is being deleted does, unless it has succeeded."""
    return phase_of(pod) == "Failed" or (terminating(pod) and phase_of(pod) != "Succeeded")


def finish_time(pod: Object, otherwise: datetime) -> datetime:
    """When a pod failed: its last container's end, else when it ceased to be ready, else when it was deleted."""
    ends: list[datetime] = []
    for one in (pod.get("status") or {}).get("containerStatuses") or ():
        ended = (one.get("state") or {}).get("terminated")
        if ended is None or not ended.get("finishedAt"):
            ends = []
            break
        ends.append(moment_of(ended["finishedAt"], otherwise))
    if ends:
        return max(ends)
    unready = condition_of(pod, "Ready")
    if unready is not None and unready.get("status") == "False" and phase_of(pod) == "Failed":
        return moment_of(unready.get("lastTransitionTime"), otherwise)
    metadata = pod["metadata"]
    if terminating(pod):
        grace = timedelta(seconds=int(metadata.get("deletionGracePeriodSeconds") or 0))
        return moment_of(metadata["deletionTimestamp"], otherwise) - grace
    return otherwise


def indexed(job: Object) -> bool:
    """Whether each pod of the Job has a completion index."""
    return bool(job["spec"].get("completionMode") == "Indexed")


def completed_indexes(job: Object, succeeded: Sequence[Object]) -> set[int]:
    """The indexes that were completed before, and those of pods that have succeeded."""
    completions = int(job["spec"].get("completions") or 0)
    before = _read(str((job.get("status") or {}).get("completedIndexes") or ""))
    new = {index for pod in succeeded if (index := _index(pod)) is not None}
    return {index for index in before | new if index < completions}


def free_indexes(job: Object, live: Iterable[Object], completed: str, count: int) -> Sequence[int]:
    """The lowest indexes that are neither completed nor run by a pod."""
    taken = _read(completed) | {index for pod in live if (index := _index(pod)) is not None}
    return [index for index in range(int(job["spec"].get("completions") or 0)) if index not in taken][:count]


def written_indexes(indexes: Iterable[int]) -> str:
    """Indexes as `status.completedIndexes` has them: `1,3-5,7`."""
    runs: list[list[int]] = []
    for index in sorted(indexes):
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    parts = []
    for first, last in runs:
        between = "," if last == first + 1 else "-"
        parts.append(str(first) if first == last else f"{first}{between}{last}")
    return ",".join(parts)


def _read(text: str) -> set[int]:
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def _index(pod: Object) -> int | None:
    said = (pod["metadata"].get("annotations") or {}).get(INDEX, "")
    return int(said) if said.isdecimal() else None
