"""The simulated device plugin as a DaemonSet, each node with a machine of its own.

A node's machine lies in the node's own /var/lib/kubelet, so that one manifest serves all nodes: pods mount the
folder (a file would be the wrong one after the next change, which replaces it), tests reach it from outside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime.kubelet_rpc import DEVICE_PLUGIN_FOLDER
from simulation.machine import Machine, h100_machine, save
from tests.lab import images
from tests.lab.api import Object
from tests.lab.node import Node

FOLDER = "sickbay-simulation"
MACHINE = Path("/var/lib/kubelet", FOLDER, "machine.json")
"""The machine's file as pods on a node see it."""


def machine_path(node: Node) -> Path:
    """The node's machine file, from outside."""
    return node.kubelet_dir / FOLDER / MACHINE.name


def provide_machine(node: Node, machine: Machine | None = None) -> Path:
    """Give a node its machine, by default one with 8 H100; its file, from outside."""
    path = machine_path(node)
    path.parent.mkdir(exist_ok=True)
    save(path, machine or h100_machine(node.name))
    return path


def plugin_daemon_set(
    server: str,
    *,
    namespace: str,
    name: str = "nvidia-device-plugin",
    resource: str = "nvidia.com/gpu",
    **fields: Any,
) -> Object:
    """A DaemonSet as NVIDIA's static manifest shapes it; `fields` are further fields of its pods' spec.

    Its nodes need a machine (`provide_machine`); `server` is the API server's URL. As in NVIDIA's manifest,
    Ready says that the process has started, not that it has registered.
    """
    folders = {"device-plugins": DEVICE_PLUGIN_FOLDER, "machine": MACHINE.parent}
    spec = images.python_spec(
        ["python3", "-m", "simulation.plugin", "--machine", str(MACHINE), "--resource", resource],
        server=server,
        volumes=[
            {"name": volume, "hostPath": {"path": str(path), "type": "Directory"}}
            for volume, path in folders.items()
        ],
        mounts=[{"name": volume, "mountPath": str(path)} for volume, path in folders.items()],
        security={"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        priorityClassName="system-node-critical",
        tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        **fields,
    )
    labels = {"name": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
            "updateStrategy": {"type": "RollingUpdate"},
        },
    }
