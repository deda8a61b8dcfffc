"""Sickbay and the device plugin as real pods under their real accounts, on lab nodes with simulated GPUs.

What differs from node to node (machine, kernel log, boot ID) lies in the node's own /var/lib/kubelet, where pods
find it under one name. The network is the host's, so each agent has a port, and a DaemonSet, of its own.
"""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path
from typing import Any

from health.receipt import RECEIPT_FOLDER
from runtime.kubelet_rpc import DEVICE_PLUGIN_FOLDER
from tests.lab import images, manifests, plugin_pods
from tests.lab.api import ApiError, Object
from tests.lab.lab import Lab
from tests.lab.node import Node
from tests.lab.processes import wait_until
from tests.lab.rig import XID_79, sum_of

PLUGIN = "nvidia-device-plugin-ds"
PLUGIN_NAMESPACE = "kube-system"
GPU = "nvidia.com/gpu"

_SHARED = plugin_pods.MACHINE.parent
_BRISK = ("--renew-interval", "1s")
_SHORT_LEASE = ("--lease-duration", "4s", "--renew-deadline", "3s", "--retry-period", "500ms")


class SickbayPods:
    """Deploys everything on a lab whose manifests are applied, and looks at it from outside."""

    def __init__(
        self, lab: Lab, nodes: tuple[Node, ...], *, policy: str, controller_port: int = 0, operand: str = ""
    ) -> None:
        """`controller_port`: where a controller that is no pod of ours shows its metrics. `operand`: the label of the
        nodes by which the device plugin is placed."""
        self.lab = lab
        self.nodes = {node.name: node for node in nodes}
        self.ports = {name: lab.port() for name in self.nodes}
        self._elsewhere = bool(controller_port)
        self.controller_port = controller_port or lab.port()
        self._policy = policy
        self._operand = operand

    def deploy(self) -> None:
        """Apply everything and wait until each agent is known as healthy to a leading controller."""
        for node in self.nodes.values():
            plugin_pods.provide_machine(node)
            self.kernel_log(node.name).write_text("")
            (plugin_pods.machine_path(node).parent / "boot_id").write_text(node.boot_id)
            if self._operand:
                path = f"/api/v1/nodes/{node.name}"
                self.lab.api.patch(path, {"metadata": {"labels": {self._operand: "true"}}})
        # The image's own test runs under `restricted`; here the project comes by hostPath, which that forbids.
        system = manifests.CONTROLLER[0]
        label = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}}
        self.lab.api.patch(f"/api/v1/namespaces/{system}", label)
        placed: dict[str, Any] = {"nodeSelector": {self._operand: "true"}} if self._operand else {}
        plugins = plugin_pods.plugin_daemon_set(
            self.lab.server, namespace=PLUGIN_NAMESPACE, name=PLUGIN, **placed
        )
        controller = () if self._elsewhere else (self._policy_map(), self._controller())
        self.lab.apply(plugins, *controller, *map(self._agent, self.nodes))
        self.wait_offered()
        wait_until(
            lambda: self.metric("sickbay_nodes", state="healthy") == len(self.nodes),
            60,
            "the controller to see fresh reports",
            logs=self.logs,
            ignoring=(OSError,),
        )

    def remove(self) -> None:
        """Take everything away again; waits until no pod of ours is left."""
        for namespace in (manifests.AGENT[0], manifests.CONTROLLER[0], PLUGIN_NAMESPACE):
            self.lab.api.delete(f"/apis/apps/v1/namespaces/{namespace}/daemonsets")
            self.lab.api.delete(f"/apis/apps/v1/namespaces/{namespace}/deployments")
            wait_until(
                lambda where=namespace: not self.lab.api.items(f"/api/v1/namespaces/{where}/pods"),  # type: ignore[misc]
                40,
                f"the pods of {namespace} to be gone",
            )

    def wait_offered(self, count: int = 8) -> None:
        """Wait until the API has this many devices of every node."""

        def offered() -> bool:
            found = self.lab.api.items("/api/v1/nodes")
            have = {one["metadata"]["name"]: one["status"]["allocatable"].get(GPU) for one in found}
            return all(have.get(name) == str(count) for name in self.nodes)

        wait_until(offered, 60, f"{count} devices of every node", logs=self.logs)

    @property
    def logs(self) -> list[Path]:
        return [log for node in self.nodes.values() for log in node.logs]

    def said(self) -> str:
        """The logs of our pods, for a failure's message."""
        spoken = []
        for namespace, name in (manifests.CONTROLLER, manifests.AGENT):
            selector = f"app={name}"
            spoken.append(
                self.lab.kubectl("logs", f"--namespace={namespace}", "-l", selector, "--tail=60", check=False)
            )
        return "\n".join(spoken)

    def kernel_log(self, node: str) -> Path:
        return plugin_pods.machine_path(self.nodes[node]).parent / "kmsg"

    def kernel_says(self, node: str, message: str) -> None:
        with self.kernel_log(node).open("a", encoding="utf-8") as log:
            log.write(f"{message}\n")

    def lose_gpu(self, node: str, *, address: str = "0000:3b:00") -> None:
        self.kernel_says(node, XID_79.format(address=address))

    def metric(self, name: str, *, node: str = "", **labels: str) -> float:
        """Of a node's agent, or of the controller. Raises OSError."""
        return sum_of(self.page(node), name, labels)

    def page(self, node: str = "") -> str:
        """A metrics page. Raises OSError."""
        port = self.ports[node] if node else self.controller_port
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def report(self, node: str) -> Object:
        return self.lab.api.get(f"{manifests.REPORTS}/{node}")

    def faults(self, node: str) -> set[str]:
        """The kinds of the node's open faults; none where there is no report yet."""
        try:
            return {fault["kind"] for fault in self.report(node).get("status", {}).get("faults", [])}
        except ApiError:
            return set()

    def sessions(self, node: str) -> list[Object]:
        found = self.lab.api.items(manifests.SESSIONS)
        return [session for session in found if session["spec"]["nodeName"] == node]

    def wait_phase(self, node: str, *phases: str, deadline: float = 30) -> Object:
        def reached() -> Object | None:
            found = [one for one in self.sessions(node) if one.get("status", {}).get("phase") in phases]
            return found[-1] if found else None

        try:
            return wait_until(reached, deadline, f"a session of {node} in {phases}")
        except Exception as error:
            raise AssertionError(f"{error}\n{self.sessions(node)}\n{self.said()}") from error

    def plugin_pod(self, node: str) -> Object:
        """The plugin's pod on a node that is not on its way out."""

        def found() -> Object | None:
            pods = self.lab.api.items(f"/api/v1/namespaces/{PLUGIN_NAMESPACE}/pods")
            here = [
                pod
                for pod in pods
                if pod["spec"].get("nodeName") == node
                and pod["metadata"].get("labels", {}).get("name") == PLUGIN
                and "deletionTimestamp" not in pod["metadata"]
            ]
            return here[0] if here else None

        return wait_until(found, 20, f"a plugin's pod on {node}")

    def signal_plugin(self, node: str, number: int) -> None:
        """Send a signal to the plugin's process on a node."""
        uid = self.plugin_pod(node)["metadata"]["uid"]
        os.kill(wait_until(lambda: _process_of(uid, "simulation.plugin"), 10, "the plugin's process"), number)

    def _policy_map(self) -> Object:
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "lab-policy", "namespace": manifests.CONTROLLER[0]},
            "data": {"policy.yaml": self._policy},
        }

    def _controller(self) -> Object:
        namespace, name = manifests.CONTROLLER
        command = ["python3", "-m", "sickbay", "controller", "--policy", "/policy/policy.yaml"]
        spec = images.python_spec(
            [*command, "--listen", f"127.0.0.1:{self.controller_port}", *_SHORT_LEASE],
            server=self.lab.server,
            volumes=[{"name": "policy", "configMap": {"name": "lab-policy"}}],
            mounts=[{"name": "policy", "mountPath": "/policy"}],
            security={"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            serviceAccountName=name,
            nodeName=list(self.nodes)[-1],
        )
        return _workload("Deployment", name, namespace, spec, replicas=1)

    def _agent(self, node: str) -> Object:
        namespace, name = manifests.AGENT
        command = [
            *("python3", "-m", "sickbay", "agent", "--node", node),
            *("--kernel-log", str(_SHARED / "kmsg"), "--boot-id", str(_SHARED / "boot_id")),
            *("--state-file", str(_SHARED / "state.json"), "--receipts", str(_SHARED / "receipts")),
            *("--listen", f"127.0.0.1:{self.ports[node]}"),
            *("--worker-command", f"python3 -m simulation.worker --machine {plugin_pods.MACHINE}"),
            *_BRISK,
        ]
        folders = {
            "shared": (_SHARED, False),
            "device-plugins": (DEVICE_PLUGIN_FOLDER, True),
            "pod-resources": (Path("/var/lib/kubelet/pod-resources"), True),
            "pods-api": (Path("/var/lib/kubelet/pods-api"), True),
            "run": (Path(RECEIPT_FOLDER).parent, True),
        }
        spec = images.python_spec(
            command,
            server=self.lab.server,
            volumes=[
                {"name": volume, "hostPath": {"path": str(path), "type": "DirectoryOrCreate"}}
                for volume, (path, _) in folders.items()
            ],
            mounts=[
                {"name": volume, "mountPath": str(path), "readOnly": read_only}
                for volume, (path, read_only) in folders.items()
            ],
            security={"privileged": True},
            serviceAccountName=name,
            nodeSelector={"kubernetes.io/hostname": node},
            tolerations=[{"operator": "Exists"}],
        )
        return _workload("DaemonSet", name, namespace, spec, suffix=node)


def _workload(
    kind: str, name: str, namespace: str, spec: Object, *, suffix: str = "", **fields: int
) -> Object:
    full = f"{name}-{suffix}" if suffix else name
    labels = {"app": name, "instance": full}
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": full, "namespace": namespace},
        "spec": {
            **fields,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def _process_of(pod_uid: str, module: str) -> int | None:
    """The process of a pod that runs a Python module, by its control group."""
    marks = (pod_uid, pod_uid.replace("-", "_"))
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            group = (folder / "cgroup").read_text()
        except OSError:
            continue
        if module.encode() in words and any(mark in group for mark in marks):
            return int(folder.name)
    return None
