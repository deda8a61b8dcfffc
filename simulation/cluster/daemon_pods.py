"""The pods of a DaemonSet: on which nodes they belong, how they are made and counted. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from simulation.cluster.interface import Object
from simulation.cluster.matching import node_selected, untolerated
from simulation.cluster.quantities import scaled
from simulation.cluster.view import node_of, ready, terminating
from simulation.cluster.workloads import available, owner_reference, pod_of, sparse

HASH = "controller-revision-hash"
GENERATION = "pod-template-generation"

_TOLERATED = (
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
)
"""What every pod of a DaemonSet tolerates (daemon/util/daemonset_util.go, AddOrUpdateDaemonPodTolerations)."""


def should_run(daemon_set: Object, node: Object) -> bool:
    """Whether there should be a pod on the node."""
    return _selected(daemon_set, node) and _tolerated(daemon_set, node, "NoSchedule", "NoExecute")


def may_stay(daemon_set: Object, node: Object) -> bool:
    """Whether a pod that is there stays: a NoSchedule taint does not drive it away."""
    return _selected(daemon_set, node) and _tolerated(daemon_set, node, "NoExecute")


@dataclass(frozen=True, slots=True)
class Place:
    """A node as a DaemonSet sees it: whether a pod should be there, and whether one that is there stays."""

    name: str
    wanted: bool
    stays: bool


def places_of(daemon_set: Object, nodes: Sequence[Object]) -> list[Place]:
    """Every node, decided once for a pass."""
    return [
        Place(node["metadata"]["name"], should_run(daemon_set, node), may_stay(daemon_set, node))
        for node in nodes
    ]


def daemon_pod(daemon_set: Object, node_name: str, digest: str) -> Object:
    """A pod for a node, which the scheduler puts there."""
    template = daemon_set["spec"]["template"]
    spec: dict[str, Any] = template.get("spec") or {}
    affinity = dict(spec.get("affinity") or {})
    field = {"key": "metadata.name", "operator": "In", "values": [node_name]}
    node_affinity = dict(affinity.get("nodeAffinity") or {})
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    terms = (node_affinity.get(required) or {}).get("nodeSelectorTerms") or [{}]
    node_affinity[required] = {"nodeSelectorTerms": [{**term, "matchFields": [field]} for term in terms]}
    tolerations = _tolerations(spec)
    placed = {
        **spec,
        "affinity": {**affinity, "nodeAffinity": node_affinity},
        "tolerations": tolerations,
    }
    return pod_of(
        {**template, "spec": placed},
        daemon_set,
        reference=owner_reference(daemon_set, api_version="apps/v1", kind="DaemonSet"),
        labels={HASH: digest, GENERATION: str(_template_generation(daemon_set))},
    )


def roll_limits(daemon_set: Object, nodes: int) -> tuple[int, int]:
    """How many pods there may be too many (maxSurge, 0), and how many unavailable (maxUnavailable, 1)."""
    rolling = (daemon_set["spec"].get("updateStrategy") or {}).get("rollingUpdate") or {}
    surge = scaled(rolling.get("maxSurge", 0), nodes, round_up=True)
    unavailable = scaled(rolling.get("maxUnavailable", 1), nodes, round_up=True)
    return surge, 1 if surge == 0 and unavailable == 0 else unavailable


def superfluous(pods: Sequence[Object]) -> list[Object]:
    """All but the one that stays: a bound pod before an unbound one, then the oldest."""
    ranked = sorted(
        pods,
        key=lambda pod: (
            not node_of(pod),
            pod["metadata"].get("creationTimestamp") or "",
            pod["metadata"]["name"],
        ),
    )
    return ranked[1:]


def daemon_set_status(
    daemon_set: Object,
    digest: str,
    places: Sequence[Place],
    by_node: Mapping[str, Sequence[Object]],
    *,
    wall: datetime,
) -> Object:
    """The counts of a DaemonSet's status."""
    min_ready = float(daemon_set["spec"].get("minReadySeconds") or 0)
    counts = dict.fromkeys(("desired", "current", "misscheduled", "ready", "updated", "available"), 0)
    for place in places:
        wanted = place.wanted
        pods = [pod for pod in by_node.get(place.name, ()) if not terminating(pod)]
        counts["desired"] += wanted
        if pods and not wanted:
            counts["misscheduled"] += 1
        elif pods:
            oldest = min(pods, key=lambda pod: pod["metadata"].get("creationTimestamp") or "")
            counts["current"] += 1
            counts["ready"] += any(ready(pod) for pod in pods)
            counts["available"] += any(available(pod, min_ready=min_ready, wall=wall) for pod in pods)
            counts["updated"] += (oldest["metadata"].get("labels") or {}).get(HASH) == digest
    status = {
        "observedGeneration": daemon_set["metadata"].get("generation", 0),
        "desiredNumberScheduled": counts["desired"],
        "currentNumberScheduled": counts["current"],
        "numberMisscheduled": counts["misscheduled"],
        "numberReady": counts["ready"],
        "updatedNumberScheduled": counts["updated"],
        "numberAvailable": counts["available"],
        "numberUnavailable": counts["desired"] - counts["available"],
    }
    return sparse(status, *_ALWAYS)


_ALWAYS = ("desiredNumberScheduled", "currentNumberScheduled", "numberMisscheduled", "numberReady")


def _selected(daemon_set: Object, node: Object) -> bool:
    spec = daemon_set["spec"]["template"].get("spec") or {}
    return spec.get("nodeName") in (None, "", node["metadata"]["name"]) and node_selected(spec, node)


def _tolerated(daemon_set: Object, node: Object, *effects: str) -> bool:
    taints = (node.get("spec") or {}).get("taints") or ()
    spec = daemon_set["spec"]["template"].get("spec") or {}
    return not taints or untolerated(_tolerations(spec), taints, *effects) is None


def _tolerations(spec: Mapping[str, Any]) -> list[Object]:
    added = [{"key": key, "operator": "Exists", "effect": effect} for key, effect in _TOLERATED]
    if spec.get("hostNetwork"):
        network = "node.kubernetes.io/network-unavailable"
        added.append({"key": network, "operator": "Exists", "effect": "NoSchedule"})
    return [*(spec.get("tolerations") or ()), *added]


def _template_generation(daemon_set: Object) -> int:
    said = (daemon_set["metadata"].get("annotations") or {}).get(
        "deprecated.daemonset.template.generation", "1"
    )
    return int(said) if said.isdecimal() else 1
