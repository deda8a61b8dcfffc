"""Situations that a drain meets, each made the same way on two nodes, and what `kubectl drain` leaves of them.

All pods of a node are in one namespace and carry the label `situation`. What is left of a situation's pods is told
in sorted words: `gone`, `terminating`, `there`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.lab import images
from tests.lab.api import Object

GPU = "example.com/gpu"
SLEEP = ("sleep", "infinity")
ENDS_ON_TERM = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.2; done")
FINALIZER = "example.com/hold"
PRIORITY = "drain-high"

# The drains of the comparison are given so long.
TIME_LIMIT_S = 22
TERMINATING_S = 20


@dataclass(frozen=True)
class Place:
    """Where a situation is made. `owner`: the UID of ConfigMap `owner`."""

    namespace: str
    node: str
    owner: str


@dataclass(frozen=True)
class Situation:
    """`objects` makes it; ready with so many `pods` in `phase` (empty: any phase).

    `left`: what kubectl leaves of its pods at the end of its time; `ours`: what we leave where we differ, and `why`.
    `gpu`: its pods are labelled and ask for accelerators. `deleted`: its pods are deleted just before the drain.
    """

    name: str
    objects: Callable[[Place], Sequence[Object]]
    pods: int = 1
    phase: str = "Running"
    left: str = "gone"
    ours: str = ""
    why: str = ""
    gpu: bool = False
    deleted: bool = False


def _labels(name: str, gpu: bool = False) -> dict[str, str]:
    return {"situation": name, **({"gpu": "yes"} if gpu else {})}


def _spec(
    place: Place,
    *,
    command: Sequence[str] = SLEEP,
    container: Mapping[str, Any] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    main = images.container("main", command, **(container or {}))
    return images.pod_spec([main], **{"nodeSelector": {"kubernetes.io/hostname": place.node}, **fields})


def bare(name: str, *, gpu: bool = False, metadata: Mapping[str, Any] | None = None, **spec: Any) -> Any:
    """A pod without a controller."""

    def objects(place: Place) -> list[Object]:
        made = images.pod(name, _spec(place, **spec), namespace=place.namespace, labels=_labels(name, gpu))
        made["metadata"].update(metadata or {})
        return [made]

    return objects


def managed(
    name: str,
    *,
    kind: str = "ReplicaSet",
    replicas: int = 1,
    gpu: bool = False,
    metadata: Mapping[str, Any] | None = None,
    workload: Mapping[str, Any] | None = None,
    **spec: Any,
) -> Any:
    """A workload of the kind; `workload` adds to its spec, `metadata` to that of its pods."""

    def objects(place: Place) -> list[Object]:
        labels = _labels(name, gpu)
        body: dict[str, Any] = {
            "template": {"metadata": {"labels": labels, **(metadata or {})}, "spec": _spec(place, **spec)},
            **(workload or {}),
        }
        if kind in ("Deployment", "ReplicaSet", "StatefulSet", "DaemonSet"):
            body.setdefault("selector", {"matchLabels": {"situation": name}})
        if kind in ("Deployment", "ReplicaSet", "StatefulSet", "ReplicationController"):
            body["replicas"] = replicas
        version = {"Job": "batch/v1", "ReplicationController": "v1"}.get(kind, "apps/v1")
        return [
            {
                "apiVersion": version,
                "kind": kind,
                "metadata": {"name": name, "namespace": place.namespace},
                "spec": body,
            }
        ]

    return objects


def budgeted(make: Any, name: str, *budgets: Mapping[str, Any]) -> Any:
    """The same with PodDisruptionBudgets over its pods."""

    def objects(place: Place) -> list[Object]:
        made = list(make(place))
        for number, budget in enumerate(budgets):
            made.append(
                {
                    "apiVersion": "policy/v1",
                    "kind": "PodDisruptionBudget",
                    "metadata": {"name": f"{name}-{number}", "namespace": place.namespace},
                    "spec": {"selector": {"matchLabels": {"situation": name}}, **budget},
                }
            )
        return made

    return objects


def owned(name: str, *, controller: bool) -> Any:
    """A bare pod with an owner that is no workload."""

    def objects(place: Place) -> list[Object]:
        reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": place.owner}
        return list(
            bare(name, metadata={"ownerReferences": [{**reference, "controller": controller}]})(place)
        )

    return objects


def ready_and_not(name: str) -> Any:
    """Two ReplicaSets under one label: one pod is ready, one never is."""

    def objects(place: Place) -> list[Object]:
        made = []
        for which, container in (("ready", {}), ("not", NEVER_READY)):
            labels = {"situation": name, "which": which}
            selector = {"selector": {"matchLabels": labels}}
            (one,) = managed(name, workload=selector, metadata={"labels": labels}, container=container)(place)
            one["metadata"]["name"] = f"{name}-{which}"
            made.append(one)
        return made

    return objects


NEVER_READY: dict[str, Any] = {"readinessProbe": {"exec": {"command": ["false"]}, "periodSeconds": 1}}
EMPTY_DIR: list[dict[str, Any]] = [{"name": "data", "emptyDir": {}}]
WANTS_GPU: dict[str, Any] = {"resources": {"limits": {GPU: "1"}}}
ONE_MUST_STAY = {"minAvailable": 1}
ONE_MAY_GO = {"maxUnavailable": 1}

DEVIATES_BACK = (
    "relisted until stable: what comes back to the node is found and evicted again, ever more rarely"
)
DEVIATES_FINISHED = "accelerator pods only: a finished pod holds no device, and its log is evidence"

GPU_SITUATIONS = (
    Situation("gpu-replicaset", managed("gpu-replicaset", gpu=True, container=WANTS_GPU), gpu=True),
    Situation(
        "gpu-init",
        managed(
            "gpu-init",
            gpu=True,
            initContainers=[images.container("first", ["true"], **WANTS_GPU)],
        ),
        gpu=True,
    ),
    Situation("gpu-bare", bare("gpu-bare", gpu=True, container=WANTS_GPU), gpu=True),
    Situation(
        "gpu-emptydir", managed("gpu-emptydir", gpu=True, container=WANTS_GPU, volumes=EMPTY_DIR), gpu=True
    ),
    Situation(
        "gpu-daemonset",
        managed("gpu-daemonset", kind="DaemonSet", gpu=True, container=WANTS_GPU),
        left="there",
        gpu=True,
    ),
    Situation(
        "gpu-finished",
        bare("gpu-finished", gpu=True, container=WANTS_GPU, command=["true"], restartPolicy="Never"),
        phase="Succeeded",
        ours="there",
        why=DEVIATES_FINISHED,
        gpu=True,
    ),
    Situation(
        "gpu-claim",
        lambda place: bare(
            "gpu-claim",
            gpu=True,
            nodeName=place.node,
            resourceClaims=[{"name": "gpu", "resourceClaimName": "none"}],
        )(place),
        phase="Pending",
        gpu=True,
    ),
)

SITUATIONS = (
    Situation("deployment", managed("deployment", kind="Deployment")),
    Situation(
        "deployment-three",
        managed("deployment-three", kind="Deployment", replicas=3),
        pods=3,
        left="gone gone gone",
    ),
    Situation("replicaset", managed("replicaset")),
    Situation("replicationcontroller", managed("replicationcontroller", kind="ReplicationController")),
    Situation("statefulset", managed("statefulset", kind="StatefulSet", workload={"serviceName": "none"})),
    Situation("job", managed("job", kind="Job", restartPolicy="Never")),
    Situation(
        "job-finished",
        managed("job-finished", kind="Job", restartPolicy="Never", command=["true"]),
        phase="Succeeded",
    ),
    Situation("daemonset", managed("daemonset", kind="DaemonSet"), left="there"),
    Situation("static", lambda place: [], left="there"),
    Situation("bare", bare("bare")),
    Situation("bare-never", bare("bare-never", restartPolicy="Never")),
    Situation("owner-no-controller", owned("owner-no-controller", controller=False)),
    Situation("owner-of-any-kind", owned("owner-of-any-kind", controller=True)),
    Situation("emptydir", managed("emptydir", volumes=EMPTY_DIR)),
    Situation("emptydir-bare", bare("emptydir-bare", volumes=EMPTY_DIR)),
    Situation(
        "emptydir-memory",
        managed("emptydir-memory", volumes=[{"name": "d", "emptyDir": {"medium": "Memory"}}]),
    ),
    Situation("succeeded", bare("succeeded", command=["true"], restartPolicy="Never"), phase="Succeeded"),
    Situation("failed", bare("failed", command=["false"], restartPolicy="Never"), phase="Failed"),
    Situation(
        "finished-emptydir",
        bare("finished-emptydir", command=["true"], restartPolicy="Never", volumes=EMPTY_DIR),
        phase="Succeeded",
    ),
    Situation(
        "finished-budget",
        budgeted(
            bare("finished-budget", command=["true"], restartPolicy="Never"), "finished-budget", ONE_MUST_STAY
        ),
        phase="Succeeded",
    ),
    Situation(
        "terminating", managed("terminating", terminationGracePeriodSeconds=TERMINATING_S), deleted=True
    ),
    Situation(
        "terminating-bare",
        bare("terminating-bare", terminationGracePeriodSeconds=TERMINATING_S),
        deleted=True,
    ),
    Situation(
        "terminating-emptydir",
        managed("terminating-emptydir", terminationGracePeriodSeconds=TERMINATING_S, volumes=EMPTY_DIR),
        deleted=True,
    ),
    Situation(
        "terminating-finalizer",
        managed("terminating-finalizer", metadata={"finalizers": [FINALIZER]}),
        left="terminating",
        deleted=True,
    ),
    Situation("finalizer", managed("finalizer", metadata={"finalizers": [FINALIZER]}), left="terminating"),
    Situation(
        "budget-blocks",
        budgeted(managed("budget-blocks"), "budget-blocks", ONE_MUST_STAY),
        left="there",
    ),
    Situation(
        "budget-one-of-two",
        budgeted(managed("budget-one-of-two", replicas=2), "budget-one-of-two", ONE_MAY_GO),
        pods=2,
        left="gone there",
    ),
    Situation(
        "budget-ample",
        budgeted(managed("budget-ample", replicas=2), "budget-ample", {"maxUnavailable": "100%"}),
        pods=2,
        left="gone gone",
    ),
    Situation(
        "two-budgets",
        budgeted(managed("two-budgets"), "two-budgets", ONE_MAY_GO, {"maxUnavailable": "100%"}),
        left="there",
    ),
    Situation(
        "unready-always-allow",
        budgeted(
            managed("unready-always-allow", container=NEVER_READY),
            "unready-always-allow",
            {**ONE_MUST_STAY, "unhealthyPodEvictionPolicy": "AlwaysAllow"},
        ),
    ),
    Situation(
        "unready-blocked",
        budgeted(managed("unready-blocked", container=NEVER_READY), "unready-blocked", ONE_MUST_STAY),
        left="there",
    ),
    Situation(
        "unready-beside-healthy",
        budgeted(ready_and_not("unready-beside-healthy"), "unready-beside-healthy", ONE_MUST_STAY),
        pods=2,
        left="gone there",
    ),
    Situation(
        "pending-init",
        managed("pending-init", initContainers=[images.container("first", SLEEP)]),
        phase="Pending",
    ),
    Situation(
        "pending-image", managed("pending-image", container={"image": "sickbay.test/no:1"}), phase="Pending"
    ),
    Situation(
        "pending-budget",
        budgeted(
            managed("pending-budget", initContainers=[images.container("first", SLEEP)]),
            "pending-budget",
            ONE_MUST_STAY,
        ),
        phase="Pending",
    ),
    Situation("grace-zero", managed("grace-zero", terminationGracePeriodSeconds=0)),
    Situation(
        "grace-long",
        managed("grace-long", terminationGracePeriodSeconds=TIME_LIMIT_S + 6),
        left="terminating",
    ),
    Situation(
        "ends-on-term", managed("ends-on-term", command=ENDS_ON_TERM, terminationGracePeriodSeconds=300)
    ),
    Situation(
        "pre-stop",
        managed(
            "pre-stop",
            container={"lifecycle": {"preStop": {"exec": {"command": ["sleep", "1"]}}}},
            terminationGracePeriodSeconds=3,
        ),
    ),
    Situation("crash-loop", managed("crash-loop", command=["false"]), phase=""),
    Situation("priority", managed("priority", priorityClassName=PRIORITY)),
    Situation(
        "tolerating",
        managed(
            "tolerating", tolerations=[{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]
        ),
        why=DEVIATES_BACK,
    ),
    Situation(
        "gated", managed("gated", schedulingGates=[{"name": "example.com/no"}]), phase="", left="there"
    ),
    *GPU_SITUATIONS,
)
