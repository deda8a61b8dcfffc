"""Which gang a pod belongs to: pods that only make progress together, so that losing one node costs them all. Pure.

A gang is named `KIND/NAMESPACE/NAME`. What is nearest to the workload as a whole counts: a Job of a JobSet is part
of the JobSet.
"""

from __future__ import annotations

from collections.abc import Iterable

from remediation.pod import Pod

_LABELS = (
    ("jobset.sigs.k8s.io/jobset-name", "JobSet"),
    ("leaderworkerset.sigs.k8s.io/name", "LeaderWorkerSet"),
    ("training.kubeflow.org/job-name", "TrainingJob"),
    ("ray.io/cluster", "RayCluster"),
    ("scheduling.x-k8s.io/pod-group", "PodGroup"),
    ("pod-group.scheduling.sigs.k8s.io", "PodGroup"),
)
_ANNOTATIONS = (("scheduling.k8s.io/group-name", "PodGroup"),)
_WORKER_GROUP = "leaderworkerset.sigs.k8s.io/group-index"
GANGS_LIMIT = 128
"""Gangs remembered of one node; the schema allows no more, and a kubelet runs 110 pods."""

_LENGTH = 256
"""Characters of a gang's name; the schema allows no more, and an annotation may have any number."""


def gang_of(pod: Pod) -> str:
    """The pod's gang, empty where it is on its own."""
    metadata = pod.metadata
    for known, found in ((_LABELS, metadata.labels), (_ANNOTATIONS, metadata.annotations)):
        for key, kind in known:
            if name := found.get(key):
                group = metadata.labels.get(_WORKER_GROUP, "") if kind == "LeaderWorkerSet" else ""
                return "/".join((kind, metadata.namespace, name, *([group] if group else [])))[:_LENGTH]
    owner = pod.controller
    if owner is not None and owner.kind == "Job":
        return f"Job/{metadata.namespace}/{owner.name}"
    return ""


def gangs_of(pods: Iterable[Pod]) -> tuple[str, ...]:
    """The gangs that these pods belong to, sorted."""
    return tuple(sorted({gang for pod in pods if (gang := gang_of(pod))}))[:GANGS_LIMIT]
