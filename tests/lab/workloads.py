"""Workloads with GPUs, and where their pods are."""

from __future__ import annotations

from tests.lab import images
from tests.lab.api import Object
from tests.lab.lab import Lab

GPU = "nvidia.com/gpu"


def _gpu_template(app: str, *, gpus: int = 1, node: str = "") -> Object:
    main = images.container("main", ["sleep", "infinity"])
    if gpus:
        main["resources"] = {"limits": {GPU: gpus}}
    where = {"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}
    return {"metadata": {"labels": {"app": app}}, "spec": images.pod_spec([main], **where)}


def deployment(name: str, replicas: int, *, gpus: int = 1, node: str = "") -> Object:
    """A Deployment of pods that hold so many GPUs each; on a node of that name, if one is given."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": _gpu_template(name, gpus=gpus, node=node),
        },
    }


def job(name: str, parallelism: int) -> Object:
    """A Job of so many pods at once, each with a GPU."""
    template = _gpu_template(name)
    template["spec"]["restartPolicy"] = "Never"
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"parallelism": parallelism, "completions": parallelism, "template": template},
    }


def budget(app: str, at_least: int) -> Object:
    """A PodDisruptionBudget for the pods of an app."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": app},
        "spec": {"minAvailable": at_least, "selector": {"matchLabels": {"app": app}}},
    }


def placed(namespace: str, *objects: Object) -> list[Object]:
    """The objects in a namespace."""
    for one in objects:
        one["metadata"]["namespace"] = namespace
    return list(objects)


def pods_of(lab: Lab, namespace: str, **labels: str) -> list[Object]:
    """The pods of a namespace with these labels."""
    found = lab.api.items(f"/api/v1/namespaces/{namespace}/pods")
    return [pod for pod in found if labels.items() <= pod["metadata"].get("labels", {}).items()]


def running(lab: Lab, namespace: str, node: str, **labels: str) -> list[Object]:
    """Those of them that run on a node and are not on their way out."""
    return [
        pod
        for pod in pods_of(lab, namespace, **labels)
        if pod["spec"].get("nodeName") == node
        and pod["status"].get("phase") == "Running"
        and "deletionTimestamp" not in pod["metadata"]
    ]


def cordon(lab: Lab, node: str, wanted: bool) -> None:
    """As `kubectl cordon` and `kubectl uncordon` do."""
    lab.api.patch(f"/api/v1/nodes/{node}", {"spec": {"unschedulable": wanted or None}})


def is_cordoned(lab: Lab, node: str) -> bool:
    """Whether the node is unschedulable."""
    return bool(lab.api.get(f"/api/v1/nodes/{node}")["spec"].get("unschedulable"))
