"""A stand-in for kube-scheduler: binds pending pods to nodes where they fit, or says on them why they fit nowhere.

Filters and texts are those of kube-scheduler 1.37 with its default plugins: unschedulable, taints, node affinity,
resources. Nodes are compared by how empty they would be and by how many pods of the same controller they have. What
is not here: preemption, pod affinity, volumes, host ports, topology constraints of the pod's own. The order is
deterministic: by priority, then by arrival; equal nodes by their names, from where the last search ended.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping

from runtime.clock import Clock
from simulation.cluster.interface import Object, Store, StoreError
from simulation.cluster.kubelet_node import stamp_of
from simulation.cluster.matching import named_nodes
from simulation.cluster.pod_status import conditions
from simulation.cluster.scheduler_nodes import NodeBook, NodeRoom, Refusal, requests_of
from simulation.cluster.view import (
    NODES,
    PODS,
    Change,
    Key,
    View,
    controller_of,
    finished,
    key_of,
    node_of,
    terminating,
    uid_of,
)
from simulation.cluster.workqueue import WorkQueue

ENOUGH_NODES = 100
"""Nodes with room that are compared; the search ends there, as kube-scheduler's does at the latest with 100 to 500."""

FIRST_BACK_OFF_SECONDS = 1.0
LAST_BACK_OFF_SECONDS = 10.0
"""From one attempt for a pod to the next (podInitialBackoffSeconds, podMaxBackoffSeconds)."""

_ELSEWHERE = "node(s) didn't satisfy plugin(s) [NodeAffinity]"
_NOT_HELPFUL = "Preemption is not helpful for scheduling"
_NO_VICTIMS = "No preemption victims found for incoming pod"


class Scheduler:
    """The scheduler: a component of the control plane. `name` is the schedulerName of the pods that it binds."""

    def __init__(self, store: Store, view: View, *, clock: Clock, name: str = "default-scheduler") -> None:
        self._store = store
        self._view = view
        self._clock = clock
        self._name = name
        self._book = NodeBook()
        self._heap: list[tuple[int, int, Key]] = []
        self._queued: set[Key] = set()
        self._later: WorkQueue[Key] = WorkQueue()
        self._unschedulable: dict[Key, Object] = {}
        self._attempts: dict[Key, tuple[int, float]] = {}
        self._sequence = 0
        self._start = 0

    def observe(self, change: Change) -> None:
        """A pod wants a node or has left one, or a node changed."""
        if change.resource == NODES:
            name = change.key[1]
            if change.deleted:
                self._book.drop_node(name)
            elif self._book.put_node(change.object):
                self._retry_on(name)
        elif change.resource == PODS:
            freed = self._book.put_pod(change.object, gone=change.deleted)
            self._note(change)
            if freed:
                self._retry_on(freed)

    def work(self, now: float) -> bool:
        """Try one pod."""
        while (late := self._later.pop(now)) is not None:
            self._push(late)
        if not self._heap:
            return False
        key = heapq.heappop(self._heap)[2]
        self._queued.discard(key)
        pod = self._view.get(PODS, key)
        if pod is not None and self._wants_node(pod):
            self._attempt(key, pod, now)
        return True

    def next_due(self) -> float | None:
        """When there is a pod to try."""
        return 0.0 if self._heap else self._later.next_due()

    def _note(self, change: Change) -> None:
        key = change.key
        if change.deleted or not self._wants_node(change.object):
            self._unschedulable.pop(key, None)
            self._later.discard(key)
            self._attempts.pop(key, None)
            return
        if change.old is None or change.old["spec"] != change.object["spec"]:
            self._push(key)
        elif key in self._unschedulable:
            self._unschedulable[key] = change.object

    def _wants_node(self, pod: Object) -> bool:
        spec = pod["spec"]
        mine = spec.get("schedulerName", self._name) == self._name
        return mine and not (node_of(pod) or terminating(pod) or finished(pod) or spec.get("schedulingGates"))

    def _push(self, key: Key) -> None:
        pod = self._view.get(PODS, key)
        if pod is None or key in self._queued:
            return
        self._unschedulable.pop(key, None)
        self._queued.add(key)
        self._sequence += 1
        heapq.heappush(self._heap, (-int(pod["spec"].get("priority") or 0), self._sequence, key))

    def _retry_on(self, node_name: str) -> None:
        """Try again the pods that would fit on this node by now, each after its back-off."""
        room = self._book.rooms.get(node_name)
        if room is None:
            return
        for key, pod in list(self._unschedulable.items()):
            if room.refusal(pod["spec"], requests_of(pod)) is None:
                del self._unschedulable[key]
                attempts, last = self._attempts.get(key, (1, 0.0))
                delay = FIRST_BACK_OFF_SECONDS * 2.0 ** min(attempts - 1, 8)
                self._later.add(key, last + min(delay, LAST_BACK_OFF_SECONDS))

    def _attempt(self, key: Key, pod: Object, now: float) -> None:
        requests = requests_of(pod)
        attempts = self._attempts.get(key, (0, now))[0] + 1
        self._attempts[key] = (attempts, now)
        room, refusals = self._search(pod, requests)
        try:
            if room is None:
                self._unschedulable[key] = pod
                self._tell(pod, _message(refusals))
            else:
                self._bind(pod, room.node["metadata"]["name"])
        except StoreError as error:
            if error.code != 404:
                self._unschedulable.pop(key, None)
                self._later.add(key, now + (FIRST_BACK_OFF_SECONDS if room is not None else 0.01))

    def _search(self, pod: Object, requests: Mapping[str, int]) -> tuple[NodeRoom | None, dict[str, Refusal]]:
        """The best node, or why each of them cannot be it."""
        order, named = self._book.order, named_nodes(pod["spec"])
        if named is None:
            names = [*order[self._start :], *order[: self._start]]
        else:
            names = [name for name in sorted(named) if name in self._book.rooms]
        refusals: dict[str, Refusal] = {}
        fitting: list[NodeRoom] = []
        for name in names:
            room = self._book.rooms[name]
            refusal = room.refusal(pod["spec"], requests)
            if refusal is not None:
                refusals[name] = refusal
                continue
            fitting.append(room)
            if len(fitting) >= ENOUGH_NODES:
                break
        if named is None and order:
            self._start = (self._start + len(fitting) + len(refusals)) % len(order)
        elif named is not None and not fitting:
            refusals.update(dict.fromkeys(set(order) - named, Refusal((_ELSEWHERE,))))
        return self._best(pod, requests, fitting), refusals

    def _best(self, pod: Object, requests: Mapping[str, int], fitting: list[NodeRoom]) -> NodeRoom | None:
        if len(fitting) < 2:
            return fitting[0] if fitting else None
        owner = (controller_of(pod) or {}).get("uid")

        def score(room: NodeRoom) -> tuple[int, int]:
            siblings = room.controlled.get(owner, 0) if owner else 0
            return -siblings, round(room.free_share(requests) * 100)

        # The first of equals: Python's max keeps it.
        return max(fitting, key=score)

    def _bind(self, pod: Object, node_name: str) -> None:
        metadata = pod["metadata"]
        scheduled = self._told(pod, ("PodScheduled", True, "", ""))
        change = {
            "metadata": {"uid": uid_of(pod), "resourceVersion": metadata["resourceVersion"]},
            "spec": {"nodeName": node_name},
            "status": {"conditions": scheduled},
        }
        namespace, name = key_of(pod)
        self._store.patch(PODS, name, change, namespace=namespace, subresource="binding")

    def _tell(self, pod: Object, message: str) -> None:
        """Write why the pod fits nowhere, if that is news."""
        told = self._told(pod, ("PodScheduled", False, "Unschedulable", message))
        if told == (pod["status"].get("conditions") or []):
            return
        metadata = pod["metadata"]
        change = {
            "metadata": {"uid": uid_of(pod), "resourceVersion": metadata["resourceVersion"]},
            "status": {"conditions": told},
        }
        namespace, name = key_of(pod)
        self._store.patch(PODS, name, change, namespace=namespace, subresource="status")

    def _told(self, pod: Object, said: tuple[str, bool, str, str]) -> list[Object]:
        old = (pod.get("status") or {}).get("conditions") or ()
        stamp = stamp_of(self._clock.wall())
        return conditions(old, [said], stamp, generation=int(pod["metadata"].get("generation") or 0))


def _message(refusals: Mapping[str, Refusal]) -> str:
    """As kube-scheduler puts it, its words on preemption included."""
    total = len(refusals)
    if not total:
        return "no nodes available to schedule pods"
    reasons = Counter(reason for refusal in refusals.values() for reason in refusal.reasons)
    helpful = Counter(_NO_VICTIMS if refusal.resolvable else _NOT_HELPFUL for refusal in refusals.values())
    head = f"0/{total} nodes are available"
    return f"{head}: {_listed(reasons)}. preemption: {head}: {_listed(helpful)}."


def _listed(counts: Counter[str]) -> str:
    return ", ".join(sorted(f"{count} {text}" for text, count in counts.items()))
