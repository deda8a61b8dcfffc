"""The status of a Deployment: its counts, and whether it is available and progresses. Pure."""

from __future__ import annotations

from datetime import datetime

from simulation.cluster.interface import Object
from simulation.cluster.kubelet_node import stamp_of
from simulation.cluster.quantities import scaled
from simulation.cluster.replica_sets import replicas_of
from simulation.cluster.view import condition_of
from simulation.cluster.workloads import moment_of, sparse

DEADLINE_SECONDS = 600


def deployment_status(
    current: Object, seen: Object, new: Object | None, sets: list[Object], *, wall: datetime
) -> Object:
    """The status to write over `current`'s; `seen` is the Deployment as it was when the counts were taken."""
    counts = {name: sum(_count(one, name) for one in sets) for name in _SUMMED}
    available = sum(_count(one, "availableReplicas") for one in sets)
    total = sum(replicas_of(one) for one in sets)
    status: Object = {
        "observedGeneration": seen["metadata"].get("generation", 0),
        **counts,
        "updatedReplicas": _count(new, "replicas") if new is not None else 0,
        "availableReplicas": available,
        "unavailableReplicas": max(0, total - available),
    }
    conditions = [
        _condition(current, _availability(seen, available), stamp_of(wall), moved=False),
        _progressing(current, seen, new, status, wall),
    ]
    return {**sparse(status, "terminatingReplicas"), "conditions": conditions}


def progress_deadline(deployment: Object | None, now: float, wall: datetime) -> float | None:
    """When a Deployment that does not progress has to be looked at again."""
    condition = condition_of(deployment, "Progressing") if deployment is not None else None
    if deployment is None or condition is None or condition.get("reason") in _SETTLED:
        return None
    since = moment_of(condition.get("lastUpdateTime"), wall)
    left = _deadline(deployment) - (wall - since).total_seconds()
    return now + max(left, 1.0)


_SUMMED = ("replicas", "readyReplicas", "terminatingReplicas")
_SETTLED = ("NewReplicaSetAvailable", "ProgressDeadlineExceeded")


def _availability(deployment: Object, available: int) -> tuple[str, str, str, str]:
    wanted = replicas_of(deployment)
    rolling = (deployment["spec"].get("strategy") or {}).get("rollingUpdate") or {}
    least = wanted - scaled(rolling.get("maxUnavailable", "25%"), wanted, round_up=False)
    if available >= least:
        text = "Deployment has minimum availability."
        return "Available", "True", "MinimumReplicasAvailable", text
    text = "Deployment does not have minimum availability."
    return "Available", "False", "MinimumReplicasUnavailable", text


def _progressing(
    current: Object, deployment: Object, new: Object | None, status: Object, wall: datetime
) -> Object:
    name, wanted = deployment["metadata"]["name"], replicas_of(deployment)
    old = current.get("status") or {}
    what = f'ReplicaSet "{new["metadata"]["name"]}"' if new is not None else f'Deployment "{name}"'
    updated = status["updatedReplicas"]
    if updated == wanted == status["replicas"] == status["availableReplicas"]:
        said = ("Progressing", "True", "NewReplicaSetAvailable", f"{what} has successfully progressed.")
        return _condition(current, said, stamp_of(wall), moved=False)
    before = condition_of(current, "Progressing")
    settled = before is not None and before.get("reason") == "NewReplicaSetAvailable"
    if before is not None and settled and updated == status["replicas"]:
        return before
    moved = (
        updated > old.get("updatedReplicas", 0)
        or status["readyReplicas"] > old.get("readyReplicas", 0)
        or status["availableReplicas"] > old.get("availableReplicas", 0)
        or status["observedGeneration"] != old.get("observedGeneration")
    )
    if before is not None and not moved and _expired(current, before, wall):
        said = ("Progressing", "False", "ProgressDeadlineExceeded", f"{what} has timed out progressing.")
        return _condition(current, said, stamp_of(wall), moved=False)
    if before is not None and not moved:
        return before
    said = ("Progressing", "True", "ReplicaSetUpdated", f"{what} is progressing.")
    return _condition(current, said, stamp_of(wall), moved=True)


def _expired(deployment: Object, condition: Object, wall: datetime) -> bool:
    since = moment_of(condition.get("lastUpdateTime"), wall)
    return (wall - since).total_seconds() >= _deadline(deployment)


def _deadline(deployment: Object) -> int:
    said = deployment["spec"].get("progressDeadlineSeconds")
    return DEADLINE_SECONDS if said is None else int(said)


def _condition(current: Object, said: tuple[str, str, str, str], stamp: str, *, moved: bool) -> Object:
    kind, status, reason, message = said
    before = condition_of(current, kind)
    if before is not None and not moved and (before["status"], before["reason"]) == (status, reason):
        return before
    since = before["lastTransitionTime"] if before is not None and before["status"] == status else stamp
    return {
        "type": kind,
        "status": status,
        "lastUpdateTime": stamp,
        "lastTransitionTime": since,
        "reason": reason,
        "message": message,
    }


def _count(replica_set: Object | None, name: str) -> int:
    return int(((replica_set or {}).get("status") or {}).get(name) or 0)
