"""The nodes as the scheduler sees them: what each has, what is taken of it, and why a pod cannot go there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simulation.cluster.interface import Object
from simulation.cluster.matching import UNSCHEDULABLE_TAINT, node_selected, tolerates, untolerated
from simulation.cluster.quantities import PODS_RESOURCE, QuantityError, amounts, pod_requests
from simulation.cluster.view import Key, controller_of, finished, key_of, node_of

_UNSCHEDULABLE = {"key": UNSCHEDULABLE_TAINT, "effect": "NoSchedule"}
_LEAST = {"cpu": 100, "memory": 200 * 2**20 * 1000}
"""What a pod that asks for nothing is taken to use when nodes are compared, in thousandths."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a pod cannot go to a node; whether ending pods there could help."""

    reasons: tuple[str, ...]
    resolvable: bool = False


@dataclass(frozen=True, slots=True)
class Taken:
    """What a bound pod takes, of which node, and for which controller (its UID)."""

    node: str
    requests: dict[str, int]
    controller: str


@dataclass(slots=True)
class NodeRoom:
    """One node. Amounts are in thousandths."""

    node: Object
    allocatable: dict[str, int]
    taints: Sequence[Object]
    unschedulable: bool
    taken: dict[str, int] = field(default_factory=dict)
    pods: dict[Key, Taken] = field(default_factory=dict)
    controlled: dict[str, int] = field(default_factory=dict)
    """How many pods each controller has here, by its UID."""

    def refusal(self, spec: Mapping[str, Any], requests: Mapping[str, int]) -> Refusal | None:
        """The first filter that the pod does not pass, in the scheduler's order; None where it fits."""
        tolerations = spec.get("tolerations") or ()
        if self.unschedulable and not tolerates(tolerations, _UNSCHEDULABLE):
            return Refusal(("node(s) were unschedulable",))
        if self.taints and untolerated(tolerations, self.taints, "NoSchedule", "NoExecute") is not None:
            return Refusal(("node(s) had untolerated taint(s)",))
        if (spec.get("nodeSelector") or spec.get("affinity")) and not node_selected(spec, self.node):
            return Refusal(("node(s) didn't match Pod's node affinity/selector",))
        return self._insufficient(requests)

    def fits(self, requests: Mapping[str, int]) -> bool:
        """Whether there is room."""
        taken, there = self.taken, self.allocatable
        for name, amount in requests.items():
            if amount and taken.get(name, 0) + amount > there.get(name, 0):
                return False
        return True

    def free_share(self, requests: Mapping[str, int]) -> float:
        """How empty the node would be with the pod, 0 to 1 (LeastAllocated, of CPU and memory)."""
        total = 0.0
        for name, least in _LEAST.items():
            there = self.allocatable.get(name, 0)
            used = self.taken.get(name, 0) + (requests.get(name) or least)
            if there > used:
                total += (there - used) / there
        return total / len(_LEAST)

    def add(self, key: Key, taken: Taken) -> None:
        """A pod is bound here."""
        self.pods[key] = taken
        for resource, amount in taken.requests.items():
            self.taken[resource] = self.taken.get(resource, 0) + amount
        self.controlled[taken.controller] = self.controlled.get(taken.controller, 0) + 1

    def remove(self, key: Key) -> None:
        """A pod that was bound here takes nothing any more."""
        taken = self.pods.pop(key)
        for resource, amount in taken.requests.items():
            self.taken[resource] -= amount
        self.controlled[taken.controller] -= 1
        if not self.controlled[taken.controller]:
            del self.controlled[taken.controller]

    def _insufficient(self, requests: Mapping[str, int]) -> Refusal | None:
        if self.fits(requests):
            return None
        reasons, resolvable = [], True
        for name, amount in requests.items():
            there = self.allocatable.get(name, 0)
            if not amount or self.taken.get(name, 0) + amount <= there:
                continue
            reasons.append("Too many pods" if name == PODS_RESOURCE else f"Insufficient {name}")
            resolvable = resolvable and amount <= there
        return Refusal(tuple(reasons), resolvable)


class NodeBook:
    """All nodes with what is taken of them, kept up with every change of a node or pod."""

    def __init__(self) -> None:
        self.rooms: dict[str, NodeRoom] = {}
        self._order: list[str] | None = None
        self._bound: dict[Key, Taken] = {}
        self._homeless: dict[str, set[Key]] = {}

    @property
    def order(self) -> list[str]:
        """The nodes' names, sorted."""
        if self._order is None:
            self._order = sorted(self.rooms)
        return self._order

    def put_node(self, node: Object) -> bool:
        """A node is new or has changed; whether a pod might fit now that did not before."""
        name = node["metadata"]["name"]
        spec, before = node.get("spec") or {}, self.rooms.get(name)
        try:
            allocatable = amounts((node.get("status") or {}).get("allocatable"))
        except QuantityError:
            allocatable = {}
        taints = [one for one in spec.get("taints") or () if one.get("effect") in ("NoSchedule", "NoExecute")]
        room = NodeRoom(node, allocatable, taints, bool(spec.get("unschedulable")))
        if before is None:
            self._order = None
            for key in self._homeless.pop(name, ()):
                room.add(key, self._bound[key])
        else:
            room.taken, room.pods, room.controlled = before.taken, before.pods, before.controlled
        self.rooms[name] = room
        return before is None or (
            before.allocatable != allocatable
            or before.taints != taints
            or before.unschedulable != room.unschedulable
            or before.node["metadata"].get("labels") != node["metadata"].get("labels")
        )

    def drop_node(self, name: str) -> None:
        """A node is gone; its pods may outlive it."""
        room = self.rooms.pop(name, None)
        if room is not None:
            self._order = None
            if room.pods:
                self._homeless[name] = set(room.pods)

    def put_pod(self, pod: Object, *, gone: bool) -> str:
        """A pod changed; the name of the node where room has become free by it, or nothing."""
        key, name = key_of(pod), node_of(pod)
        if name and not gone and not finished(pod):
            if key not in self._bound:
                controller = (controller_of(pod) or {}).get("uid", "")
                taken = self._bound[key] = Taken(name, requests_of(pod), controller)
                room = self.rooms.get(name)
                if room is None:
                    self._homeless.setdefault(name, set()).add(key)
                else:
                    room.add(key, taken)
            return ""
        bound = self._bound.pop(key, None)
        if bound is None:
            return ""
        room = self.rooms.get(bound.node)
        if room is None:
            self._homeless.get(bound.node, set()).discard(key)
            return ""
        room.remove(key)
        return bound.node


def requests_of(pod: Object) -> dict[str, int]:
    """What a pod takes of a node; a quantity that cannot be read counts as none, as the API server admits none."""
    try:
        return pod_requests(pod["spec"])
    except QuantityError:
        return {PODS_RESOURCE: 1000}
