"""Objects for contract tests, as small as the API takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.contract.world import Object, World


def config_map(name: str, **fields: Any) -> Object:
    """The smallest object that has no controller and no rules."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, **fields}


def pod(name: str, *, node: str = "", labels: Mapping[str, str] | None = None, **metadata: Any) -> Object:
    """A pod, bound to the node where one is named."""
    spec: Object = {"containers": [{"name": "main", "image": "example.com/none"}]}
    if node:
        spec["nodeName"] = node
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": dict(labels or {}), **metadata},
        "spec": spec,
    }


def running_pod(
    world: World, *, labels: Mapping[str, str] | None = None, ready: bool = True, node: str = "contract-none"
) -> Object:
    """A bound pod whose kubelet, which is the test, says that it runs."""
    name = world.fresh("pod")
    world.create(world.pods, pod(name, node=node, labels=labels))
    status = {
        "phase": "Running",
        "startTime": "2026-03-01T12:00:00Z",
        "conditions": [{"type": "Ready", "status": str(ready)}],
    }
    return world.merge(f"{world.pods}/{name}/status", {"status": status})


def node(name: str) -> Object:
    """A Ready node, with a label as every kubelet gives it: of a node that is born with nothing but a name the API
    never says who has changed it (managedFields).
    """
    conditions = [{"type": "Ready", "status": "True"}, {"type": "MemoryPressure", "status": "False"}]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"conditions": conditions, "nodeInfo": node_info()},
    }


def node_info() -> Object:
    words = ("machineID", "systemUUID", "bootID", "kernelVersion", "osImage", "containerRuntimeVersion")
    more = ("kubeletVersion", "kubeProxyVersion", "operatingSystem", "architecture")
    return {word: "boot-1" if word == "bootID" else "x" for word in (*words, *more)}


def report(name: str, **fields: Any) -> Object:
    return {
        "apiVersion": "sickbay.dev/v1alpha1",
        "kind": "AcceleratorReport",
        "metadata": {"name": name},
        **fields,
    }


def remediation(name: str, *, node_name: str = "n1", **spec: Any) -> Object:
    about = {"nodeName": node_name, "nodeUID": f"uid-of-{node_name}", "bootID": "boot-1", "mode": "Observe"}
    return {
        "apiVersion": "sickbay.dev/v1alpha1",
        "kind": "AcceleratorRemediation",
        "metadata": {"name": name, "labels": {"sickbay.dev/node-uid": f"uid-of-{node_name}"}},
        "spec": {**about, **spec},
    }


def lease(name: str, *, holder: str = "a", transitions: int = 0) -> Object:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "leaseTransitions": transitions},
    }
