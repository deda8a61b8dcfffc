"""Pods of one node in memory, with evictions, graces, budgets and a scheduler that a test drives; time is its own."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from typing import Any

import msgspec
from msgspec.structs import replace

from remediation.drain import Eviction, Notice, OwnerNotice
from remediation.drain_state import EvictedPod
from remediation.pod import Pod
from remediation.steps.plugin import DaemonSetView
from runtime.api_errors import ApiError, Cause, Conflict, NotFound, TooManyRequests
from runtime.clock import ManualClock, rfc3339

GPU = "nvidia.com/gpu"
_numbers = count(1)


def make_pod(
    name: str = "", *, namespace: str = "team", gpus: int = 1, owner: str = "ReplicaSet", **fields: Any
) -> Pod:
    """A pod as the API would send it. `owner` is its controller's kind, empty for none.

    `fields`: uid, phase, created, deleted (the deletionTimestamp), grace, empty_dir, mirror, spec (further fields).
    """
    number = next(_numbers)
    metadata: dict[str, Any] = {
        "name": name or f"pod-{number}",
        "namespace": namespace,
        "uid": fields.get("uid", f"uid-{number}"),
    }
    for key, field_name in (("created", "creationTimestamp"), ("deleted", "deletionTimestamp")):
        if fields.get(key) is not None:
            metadata[field_name] = rfc3339(fields[key])
    if fields.get("mirror"):
        metadata["annotations"] = {"kubernetes.io/config.mirror": "hash"}
    if owner:
        group = "batch/v1" if owner == "Job" else "apps/v1"
        reference = {
            "apiVersion": group,
            "kind": owner,
            "name": "owner",
            "uid": "owner-uid",
            "controller": True,
        }
        metadata["ownerReferences"] = [reference]
    resources = (
        {"limits": {GPU: str(gpus)}, "requests": {GPU: str(gpus)}} if gpus else {"requests": {"cpu": "1"}}
    )
    spec: dict[str, Any] = {
        "nodeName": "n1",
        "containers": [{"name": "main", "resources": resources}],
        "volumes": [{"name": "data", "emptyDir": {}}] if fields.get("empty_dir") else [],
        "terminationGracePeriodSeconds": fields.get("grace", 30),
        **fields.get("spec", {}),
    }
    document = {"metadata": metadata, "spec": spec, "status": {"phase": fields.get("phase", "Running")}}
    return msgspec.json.decode(msgspec.json.encode(document), type=Pod)


def budget_refusal(budget: str = "web") -> TooManyRequests:
    """What the API server says when a disruption budget allows nothing now."""
    told = f"The disruption budget {budget} needs 1 healthy pods and has 1 currently"
    message = "Cannot evict pod as it would violate the pod's disruption budget."
    cause = Cause(reason="DisruptionBudget", message=told)
    return TooManyRequests(message, status=429, reason="TooManyRequests", causes=(cause,))


@dataclass
class FakePods:
    """The API that drains and plugin restarts need. `daemon_sets` by `NAMESPACE/NAME`.

    `stubborn`: UIDs that never end. `refusals`: answers to come, by UID; the last stays.
    """

    clock: ManualClock
    pods: dict[str, Pod] = field(default_factory=dict)
    stubborn: set[str] = field(default_factory=set)
    refusals: defaultdict[str, list[ApiError | None]] = field(default_factory=lambda: defaultdict(list))
    notice_refusals: defaultdict[str, list[ApiError | None]] = field(
        default_factory=lambda: defaultdict(list)
    )
    evictions: list[tuple[datetime, Eviction]] = field(default_factory=list)
    notices: list[tuple[datetime, Notice]] = field(default_factory=list)
    deletions: list[tuple[datetime, str]] = field(default_factory=list)
    told_owners: list[OwnerNotice] = field(default_factory=list)
    daemon_sets: dict[str, DaemonSetView] = field(default_factory=dict)
    lists: int = 0

    def put(self, *pods: Pod) -> None:
        for pod in pods:
            self.pods[pod.uid] = pod

    def remove(self, *uids: str) -> None:
        for uid in uids:
            self.pods.pop(uid, None)

    def pods_on(self, node_name: str) -> tuple[Pod, ...]:
        self.lists += 1
        self._let_time_end_pods()
        return tuple(pod for pod in self.pods.values() if pod.spec.node_name == node_name)

    def evict(self, eviction: Eviction) -> None:
        self.evictions.append((self.clock.wall(), eviction))
        pod = self._find(eviction.namespace, eviction.name, eviction.uid)
        _refuse(self.refusals[eviction.uid])
        grace = timedelta(seconds=pod.spec.termination_grace_period_seconds or 0)
        metadata = replace(pod.metadata, deletion_timestamp=self.clock.wall() + grace)
        self.pods[pod.uid] = replace(pod, metadata=metadata)

    def tell(self, notice: Notice) -> None:
        self.notices.append((self.clock.wall(), notice))
        self._find(notice.namespace, notice.name, notice.uid)
        _refuse(self.notice_refusals[notice.uid])

    def tell_owner(self, notice: OwnerNotice) -> None:
        self.told_owners.append(notice)

    def replacements(self, evicted: Sequence[EvictedPod], *, since: datetime) -> tuple[str, ...]:
        owners, gone = {pod.owner_uid for pod in evicted}, {pod.uid for pod in evicted}
        return tuple(
            pod.uid
            for pod in self.pods.values()
            if pod.controller is not None
            and pod.controller.uid in owners
            and pod.uid not in gone
            and (pod.metadata.creation_timestamp or since) >= since
        )

    def daemon_set(self, namespace: str, name: str) -> DaemonSetView:
        try:
            return self.daemon_sets[f"{namespace}/{name}"]
        except KeyError:
            raise NotFound(f'daemonsets.apps "{name}" not found', status=404, reason="NotFound") from None

    def delete_pod(self, namespace: str, name: str, uid: str) -> None:
        self.deletions.append((self.clock.wall(), f"{namespace}/{name}"))
        pod = self._find(namespace, name, uid)
        grace = timedelta(seconds=0 if pod.finished else pod.spec.termination_grace_period_seconds or 0)
        metadata = replace(pod.metadata, deletion_timestamp=self.clock.wall() + grace)
        self.pods[pod.uid] = replace(pod, metadata=metadata)

    def _find(self, namespace: str, name: str, uid: str) -> Pod:
        found = [pod for pod in self.pods.values() if pod.name == f"{namespace}/{name}"]
        if not found:
            raise NotFound(f'pods "{name}" not found', status=404, reason="NotFound")
        if found[0].uid != uid:
            told = f"the UID in the precondition ({uid}) does not match the UID in record ({found[0].uid})"
            raise Conflict(told, status=409, reason="Conflict")
        return found[0]

    def _let_time_end_pods(self) -> None:
        now = self.clock.wall()
        for uid, pod in list(self.pods.items()):
            ends = pod.metadata.deletion_timestamp
            if ends is not None and ends <= now and uid not in self.stubborn:
                del self.pods[uid]


def _refuse(answers: list[ApiError | None]) -> None:
    if not answers:
        return
    answer = answers.pop(0) if len(answers) > 1 else answers[0]
    if answer is not None:
        raise answer
