"""ReplicaSets as kube-controller-manager keeps them: as many active pods as wanted, made and deleted in bursts.

Source: pkg/controller/replicaset/replica_set.go. A pod that has failed stays, and another is made at once.
"""

from __future__ import annotations

from collections import Counter

from runtime.clock import Clock
from simulation.cluster.interface import Object, Store, StoreError
from simulation.cluster.matching import selects
from simulation.cluster.view import (
    PODS,
    REPLICA_SETS,
    Change,
    Key,
    View,
    active,
    controller_of,
    finished,
    node_of,
    ready,
    terminating,
    uid_of,
)
from simulation.cluster.workloads import (
    BURST,
    available,
    available_in,
    delete_pod,
    deletion_order,
    owner_reference,
    pod_of,
    sparse,
    write_status,
)
from simulation.cluster.workqueue import Reconciler


class ReplicaSets:
    """The ReplicaSet controller: a component of the control plane."""

    def __init__(self, store: Store, view: View, *, clock: Clock) -> None:
        self._store = store
        self._view = view
        self._clock = clock
        self._reconciler: Reconciler[Key] = Reconciler(self._reconcile)
        self.work = self._reconciler.work
        self.next_due = self._reconciler.next_due

    def observe(self, change: Change) -> None:
        """A ReplicaSet changed, or a pod of one."""
        if change.resource == REPLICA_SETS:
            self._reconciler.add(change.key)
        elif change.resource == PODS:
            for pod in (change.old, change.object):
                owner = controller_of(pod) if pod is not None else None
                if owner is not None and owner.get("kind") == "ReplicaSet":
                    self._reconciler.add((change.key[0], owner["name"]))

    def _reconcile(self, key: Key, now: float) -> float | None:
        replica_set = self._view.get(REPLICA_SETS, key)
        if replica_set is None:
            return None
        pods = [pod for pod in self._view.controlled(PODS, uid_of(replica_set)) if active(pod)]
        wanted = replicas_of(replica_set)
        failure: StoreError | None = None
        if not terminating(replica_set):
            try:
                self._scale(replica_set, pods, wanted)
            except StoreError as error:
                failure = error
            # What was made or deleted comes back as an event, and the next pass counts it.
        self._tell(replica_set, pods, failure)
        if failure is not None:
            raise failure
        return self._next_availability(replica_set, pods, now)

    def _scale(self, replica_set: Object, pods: list[Object], wanted: int) -> None:
        missing = wanted - len(pods)
        if missing > 0:
            reference = owner_reference(replica_set, api_version="apps/v1", kind="ReplicaSet")
            template = replica_set["spec"].get("template") or {}
            for _ in range(min(missing, BURST)):
                pod = pod_of(template, replica_set, reference=reference)
                self._store.create(PODS, pod, namespace=replica_set["metadata"]["namespace"])
        elif missing < 0:
            neighbours = Counter(node_of(pod) for pod in self._related(replica_set, pods))
            for pod in deletion_order(pods, neighbours)[: min(-missing, BURST)]:
                delete_pod(self._store, pod)

    def _related(self, replica_set: Object, pods: list[Object]) -> list[Object]:
        """The pods of all ReplicaSets of the same Deployment: where they crowd, the first are deleted."""
        owner = controller_of(replica_set)
        if owner is None:
            return pods
        siblings = self._view.controlled(REPLICA_SETS, owner["uid"])
        return [pod for one in siblings for pod in self._view.controlled(PODS, uid_of(one)) if active(pod)]

    def _tell(self, replica_set: Object, pods: list[Object], failure: StoreError | None) -> None:
        min_ready = float(replica_set["spec"].get("minReadySeconds") or 0)
        labels = (replica_set["spec"].get("template") or {}).get("metadata", {}).get("labels") or {}
        wall = self._clock.wall()
        counts: Object = {
            "replicas": len(pods),
            "fullyLabeledReplicas": sum(
                selects({"matchLabels": labels}, pod["metadata"].get("labels") or {}) for pod in pods
            ),
            "readyReplicas": sum(ready(pod) for pod in pods),
            "availableReplicas": sum(available(pod, min_ready=min_ready, wall=wall) for pod in pods),
            "terminatingReplicas": sum(
                terminating(pod) and not finished(pod)
                for pod in self._view.controlled(PODS, uid_of(replica_set))
            ),
            "observedGeneration": replica_set["metadata"].get("generation", 0),
        }
        status = sparse(counts, "replicas", "terminatingReplicas", "observedGeneration")
        if failure is not None:
            status["conditions"] = [
                {
                    "type": "ReplicaFailure",
                    "status": "True",
                    "reason": "FailedCreate",
                    "message": failure.message,
                }
            ]
        write_status(self._store, REPLICA_SETS, replica_set, status)

    def _next_availability(self, replica_set: Object, pods: list[Object], now: float) -> float | None:
        min_ready = float(replica_set["spec"].get("minReadySeconds") or 0)
        wall = self._clock.wall()
        waits = [
            available_in(pod, min_ready=min_ready, wall=wall) for pod in pods if ready(pod) and min_ready > 0
        ]
        return min((now + wait for wait in waits if wait > 0), default=None)


def replicas_of(item: Object) -> int:
    """The replicas that an object wants; 1 where it does not say."""
    said = item["spec"].get("replicas")
    return 1 if said is None else int(said)
