"""The status of PodDisruptionBudgets: how many pods there are to be, are healthy, and may be evicted.

Source: pkg/controller/disruption/disruption.go. A percentage needs the scale of the pods' controllers, which Jobs and
DaemonSets do not have: then nothing may be evicted, and the condition says SyncFailed.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from runtime.clock import Clock
from simulation.cluster.interface import Object, Store
from simulation.cluster.kubelet_node import stamp_of
from simulation.cluster.matching import selects
from simulation.cluster.quantities import QuantityError, scaled
from simulation.cluster.replica_sets import replicas_of
from simulation.cluster.view import (
    BUDGETS,
    DEPLOYMENTS,
    PODS,
    REPLICA_SETS,
    Change,
    Key,
    View,
    condition_of,
    controller_of,
    key_of,
    ready,
    terminating,
    uid_of,
)
from simulation.cluster.workloads import moment_of, write_status
from simulation.cluster.workqueue import Reconciler

DELETION_TIMEOUT = timedelta(minutes=2)
"""So long an evicted pod counts as gone before its deletion is seen (DeletionTimeout)."""

Labels = dict[str, str]


class ScaleError(Exception):
    """How many pods there are to be cannot be known; the text is the condition's message."""


class Disruption:
    """The disruption controller: a component of the control plane."""

    def __init__(self, store: Store, view: View, *, clock: Clock) -> None:
        self._store = store
        self._view = view
        self._clock = clock
        self._by_namespace: dict[str, set[Key]] = {}
        self._reconciler: Reconciler[Key] = Reconciler(self._reconcile)
        self.work = self._reconciler.work
        self.next_due = self._reconciler.next_due

    def observe(self, change: Change) -> None:
        """A budget changed, a pod that one selects, or the scale of a workload."""
        namespace = change.key[0]
        if change.resource == BUDGETS:
            known = self._by_namespace.setdefault(namespace, set())
            if change.deleted:
                known.discard(change.key)
            else:
                known.add(change.key)
                self._reconciler.add(change.key)
        elif change.resource == PODS:
            states = [one["metadata"].get("labels") or {} for one in (change.old, change.object) if one]
            self._add(namespace, states)
        elif change.resource in (DEPLOYMENTS, REPLICA_SETS):
            template = change.object["spec"].get("template") or {}
            self._add(namespace, [(template.get("metadata") or {}).get("labels") or {}])

    def _add(self, namespace: str, labels: Sequence[Labels]) -> None:
        for key in self._by_namespace.get(namespace, ()):
            budget = self._view.get(BUDGETS, key)
            if budget is not None and any(selects(budget["spec"].get("selector"), one) for one in labels):
                self._reconciler.add(key)

    def _reconcile(self, key: Key, now: float) -> float | None:
        budget = self._view.get(BUDGETS, key)
        if budget is None or terminating(budget):
            return None
        selector = budget["spec"].get("selector")
        pods = [
            pod
            for pod in self._view.pods_in(key[0])
            if selects(selector, pod["metadata"].get("labels") or {})
        ]
        wall = self._clock.wall()
        disrupted, recheck = _disrupted(budget, pods, wall)
        try:
            expected, desired = self._expected(budget, pods)
        except ScaleError as error:
            self._tell_failure(budget, str(error), wall)
            return None
        healthy = sum(
            ready(pod) and not terminating(pod) and pod["metadata"]["name"] not in disrupted for pod in pods
        )
        allowed = max(0, healthy - desired) if expected > 0 else 0
        status: Object = {
            "observedGeneration": budget["metadata"].get("generation", 0),
            "expectedPods": expected,
            "currentHealthy": healthy,
            "desiredHealthy": desired,
            "disruptionsAllowed": allowed,
            "conditions": [_condition(budget, allowed, stamp_of(wall))],
        }
        if disrupted:
            status["disruptedPods"] = disrupted
        write_status(self._store, BUDGETS, budget, status)
        return now + recheck if recheck is not None else None

    def _expected(self, budget: Object, pods: Sequence[Object]) -> tuple[int, int]:
        """How many pods there are to be, and how many of them healthy. Raises ScaleError."""
        spec = budget["spec"]
        least, most_gone = spec.get("minAvailable"), spec.get("maxUnavailable")
        try:
            if most_gone is not None:
                expected = self._scale(pods)
                return expected, max(0, expected - scaled(most_gone, expected, round_up=True))
            if isinstance(least, str):
                expected = self._scale(pods)
                return expected, scaled(least, expected, round_up=True)
        except QuantityError as error:
            raise ScaleError(str(error)) from error
        return len(pods), int(least or 0)

    def _scale(self, pods: Sequence[Object]) -> int:
        """The replicas that the pods' controllers want together; pods without a controller do not count.

        Raises ScaleError for a controller that has no scale.
        """
        wanted: dict[str, int] = {}
        for pod in pods:
            owner = controller_of(pod)
            if owner is None or owner["uid"] in wanted:
                continue
            if owner["kind"] != "ReplicaSet":
                plural = f"{owner['kind'].lower()}s.{str(owner.get('apiVersion', '')).partition('/')[0]}"
                raise ScaleError(f"{plural} does not implement the scale subresource")
            replica_set = self._view.get(REPLICA_SETS, (key_of(pod)[0], owner["name"]))
            if replica_set is None or uid_of(replica_set) != owner["uid"]:
                continue
            uid, replicas = self._top(replica_set)
            wanted[owner["uid"]] = 0 if uid in wanted and uid != owner["uid"] else replicas
            wanted.setdefault(uid, 0)
        return sum(wanted.values())

    def _top(self, replica_set: Object) -> tuple[str, int]:
        """The UID and replicas of what scales a ReplicaSet: its Deployment, or itself."""
        owner = controller_of(replica_set)
        if owner is not None and owner["kind"] == "Deployment":
            deployment = self._view.get(DEPLOYMENTS, (key_of(replica_set)[0], owner["name"]))
            if deployment is not None and uid_of(deployment) == owner["uid"]:
                return owner["uid"], replicas_of(deployment)
        return uid_of(replica_set), replicas_of(replica_set)

    def _tell_failure(self, budget: Object, message: str, wall: datetime) -> None:
        old = budget.get("status") or {}
        condition = {
            "type": "DisruptionAllowed",
            "status": "False",
            "reason": "SyncFailed",
            "message": message,
        }
        condition["lastTransitionTime"] = _since(budget, "False", stamp_of(wall))
        counts = dict.fromkeys(("expectedPods", "currentHealthy", "desiredHealthy"), 0)
        status = {**counts, **old, "disruptionsAllowed": 0, "conditions": [condition]}
        # The generation is not taken as seen, so that evictions are told to come back.
        write_status(self._store, BUDGETS, budget, status)


def _disrupted(budget: Object, pods: Sequence[Object], wall: datetime) -> tuple[Labels, float | None]:
    """The evictions that are still to be seen, and in how many seconds the first of them is not believed any more."""
    said: Labels = (budget.get("status") or {}).get("disruptedPods") or {}
    live = {pod["metadata"]["name"] for pod in pods if not terminating(pod)}
    left = {
        name: (moment_of(when, wall) + DELETION_TIMEOUT - wall).total_seconds()
        for name, when in said.items()
        if name in live
    }
    kept = {name: said[name] for name, seconds in left.items() if seconds > 0}
    return kept, min((left[name] for name in kept), default=None)


def _condition(budget: Object, allowed: int, stamp: str) -> Object:
    status = "True" if allowed > 0 else "False"
    return {
        "type": "DisruptionAllowed",
        "status": status,
        "reason": "SufficientPods" if allowed > 0 else "InsufficientPods",
        "message": "",
        "observedGeneration": budget["metadata"].get("generation", 0),
        "lastTransitionTime": _since(budget, status, stamp),
    }


def _since(budget: Object, status: str, stamp: str) -> str:
    before = condition_of(budget, "DisruptionAllowed")
    return str(before["lastTransitionTime"]) if before and before.get("status") == status else stamp
