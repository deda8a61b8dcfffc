"""What the workload controllers share: making pods of a template, revisions' hashes, availability, status writes.

Sources: pkg/controller/controller_utils.go and pkg/api/v1/pod of Kubernetes 1.37.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from runtime.clock import TimestampError, parse_rfc3339
from simulation.cluster.interface import Object, Store
from simulation.cluster.view import (
    PODS,
    condition_of,
    controller_of,
    finished,
    key_of,
    node_of,
    phase_of,
    ready,
    uid_of,
)

BURST = 500
"""Pods that a controller makes or deletes in one pass."""

_SAFE = "bcdfghjklmnpqrstvwxz2456789"
_PHASES = {"Pending": 0, "Unknown": 1, "Running": 2}


def owner_reference(owner: Object, *, api_version: str, kind: str) -> Object:
    """A reference to the controller that makes an object."""
    return {
        "apiVersion": api_version,
        "kind": kind,
        "name": owner["metadata"]["name"],
        "uid": uid_of(owner),
        "controller": True,
        "blockOwnerDeletion": True,
    }


def template_hash(template: Mapping[str, Any], collisions: int = 0) -> str:
    """A short name of a pod template, in the alphabet of `rand.SafeEncodeString`; not the value the real one gets,
    which hashes Go's memory layout."""
    text = json.dumps(template, sort_keys=True, separators=(",", ":")) + (
        str(collisions) if collisions else ""
    )
    value = 2166136261
    for byte in text.encode():
        value = (value ^ byte) * 16777619 % 2**32
    return "".join(_SAFE[ord(digit) % len(_SAFE)] for digit in str(value))


def pod_of(
    template: Mapping[str, Any],
    owner: Object,
    *,
    reference: Object,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    finalizers: Sequence[str] = (),
) -> Object:
    """A pod of a template, to be created in the owner's namespace."""
    metadata = template.get("metadata") or {}
    made: Object = {
        "generateName": f"{owner['metadata']['name']}-",
        "namespace": owner["metadata"]["namespace"],
        "labels": {**(metadata.get("labels") or {}), **(labels or {})},
        "annotations": {**(metadata.get("annotations") or {}), **(annotations or {})},
        "ownerReferences": [reference],
    }
    if held := [*(metadata.get("finalizers") or ()), *finalizers]:
        made["finalizers"] = held
    return {"apiVersion": "v1", "kind": "Pod", "metadata": made, "spec": dict(template.get("spec") or {})}


def available(pod: Object, *, min_ready: float, wall: datetime) -> bool:
    """Whether a pod has been ready for `min_ready` seconds."""
    return ready(pod) and (min_ready <= 0 or available_in(pod, min_ready=min_ready, wall=wall) <= 0)


def available_in(pod: Object, *, min_ready: float, wall: datetime) -> float:
    """Seconds until a ready pod is available, negative afterwards."""
    condition = condition_of(pod, "Ready") or {}
    return min_ready - (wall - moment_of(condition.get("lastTransitionTime"), wall)).total_seconds()


def moment_of(text: object, otherwise: datetime) -> datetime:
    """The time that an object tells, or another one where it tells none."""
    try:
        return parse_rfc3339(str(text or ""))
    except TimestampError:
        return otherwise


def controlled_by(item: Object, uid: str) -> bool:
    """Whether the controller of an object has this UID."""
    controller = controller_of(item)
    return controller is not None and controller.get("uid") == uid


def deletion_order(pods: Sequence[Object], neighbours: Mapping[str, int]) -> list[Object]:
    """Which pods go first when there are too many (ActivePodsWithRanks): unbound, pending, unready, cheap to delete,
    on a node with more of them, ready for a shorter time, restarted more often, younger.

    `neighbours` is the number of active pods of the same workload on each node.
    """
    oldest = datetime.min.replace(tzinfo=UTC)

    def rank(pod: Object) -> tuple[Any, ...]:
        metadata = pod["metadata"]
        since = moment_of((condition_of(pod, "Ready") or {}).get("lastTransitionTime"), oldest)
        born = moment_of(metadata.get("creationTimestamp"), oldest)
        statuses = (pod.get("status") or {}).get("containerStatuses") or ()
        return (
            bool(node_of(pod)),
            _PHASES.get(phase_of(pod), 1),
            ready(pod),
            _deletion_cost(pod),
            -neighbours.get(node_of(pod), 0),
            -since.timestamp() if ready(pod) else 0.0,
            -max((one.get("restartCount", 0) for one in statuses), default=0),
            -born.timestamp() if born is not oldest else 0.0,
            metadata["name"],
        )

    return sorted(pods, key=rank)


def sparse(status: Object, *kept: str) -> Object:
    """The status without counts of zero, but for those that the API always shows (`omitempty` in Go's types)."""
    return {name: value for name, value in status.items() if value != 0 or name in kept}


def write_status(store: Store, resource: str, item: Object, status: Object) -> bool:
    """Replace an object's status if it would change; whether it was written. Raises StoreError, 409 for a stale
    object."""
    if item.get("status") == status:
        return False
    store.update(resource, {**item, "status": status}, subresource="status")
    return True


def delete_pod(store: Store, pod: Object) -> None:
    """Delete a pod with its own grace, if it is still this one. Raises StoreError."""
    namespace, name = key_of(pod)
    store.delete(PODS, name, namespace=namespace, uid=uid_of(pod))


def count_ready(pods: Sequence[Object]) -> int:
    """How many are ready."""
    return sum(ready(pod) and not finished(pod) for pod in pods)


def _deletion_cost(pod: Object) -> int:
    said = (pod["metadata"].get("annotations") or {}).get("controller.kubernetes.io/pod-deletion-cost", "0")
    try:
        return int(said)
    except ValueError:
        return 0
