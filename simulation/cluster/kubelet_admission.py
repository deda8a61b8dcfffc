"""What a kubelet checks besides devices before it takes a pod on (pkg/kubelet/lifecycle/predicate.go). Pure."""

from __future__ import annotations

from collections.abc import Sequence

from simulation.cluster.interface import Object
from simulation.cluster.kubelet_devices import AdmissionError
from simulation.cluster.matching import node_selected
from simulation.cluster.quantities import PODS_RESOURCE, amounts, pod_requests

_WHOLE = frozenset({"memory", "ephemeral-storage"})


def check_fit(pod: Object, node: Object | None, running: Sequence[Object]) -> None:
    """Whether the pod fits beside those that run, and may be on this node at all. Raises AdmissionError.

    A resource that the node does not have at all is not looked at, as the kubelet does with extended ones. An
    unschedulable node takes what is bound to it.
    """
    if node is None:
        return
    wanted = pod_requests(pod["spec"])
    there = amounts((node.get("status") or {}).get("allocatable"))
    used: dict[str, int] = {}
    for other in running:
        for name, amount in pod_requests(other["spec"]).items():
            used[name] = used.get(name, 0) + amount
    for name, amount in wanted.items():
        taken = used.get(name, 0)
        if name not in there or amount == 0 or "/" in name or taken + amount <= there[name]:
            continue
        unit = 1000 if name in _WHOLE or name == PODS_RESOURCE else 1
        raise AdmissionError(
            f"OutOf{name}",
            f"Pod was rejected: Node didn't have enough resource: {name}, requested: {amount // unit}, "
            f"used: {taken // unit}, capacity: {there[name] // unit}",
        )
    if not node_selected(pod["spec"], node):
        text = "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
        raise AdmissionError("NodeAffinity", text)
