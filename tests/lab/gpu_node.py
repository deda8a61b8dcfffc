"""A lab node with simulated GPUs: its plugins, its GPU pods, and what our sources see of them."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from exporter.holdings import Holdings
from exporter.sources.plugin import Plugin, PluginProbe, PluginState
from exporter.sources.pod_resources import PodResourcesSource
from health.vocabulary import SourceState
from runtime.kubelet_rpc import PodResourcesClient
from simulation.machine import load
from simulation.plugin_control import control_path
from tests.lab import images, plugin_pods
from tests.lab.api import Api, Object
from tests.lab.lab import Lab
from tests.lab.node import Node
from tests.lab.processes import Child, wait_until

GPU = "nvidia.com/gpu"
TICK = 1.0
SLACK = 1.5
"""Seconds that a busy machine may add to anything."""


class Observer:
    """Both sources of the agent on one node, and what each said last."""

    def __init__(self, node: Node) -> None:
        self.seen = [Holdings()]
        self.plugins: tuple[Plugin, ...] = ()
        self.state: tuple[SourceState, str] | None = None
        self._pod_resources = PodResourcesSource(
            on_holdings=self.seen.append,
            on_state=lambda state, message: setattr(self, "state", (state, message)),
            socket=node.kubelet_dir / "pod-resources" / "kubelet.sock",
        )
        self._probe = PluginProbe(
            on_plugins=lambda said: setattr(self, "plugins", said),
            on_state=lambda _state, _message: None,
            folder=node.kubelet_dir / "device-plugins",
        )
        self._pod_resources.start()
        self._probe.start()

    def close(self) -> None:
        assert self._pod_resources.close(5)
        assert self._probe.close(5)

    @property
    def healthy(self) -> dict[str, frozenset[str]]:
        """The devices that the kubelet has as healthy."""
        return dict(self.seen[-1].healthy)

    def held_by(self, namespace: str, pod: str, said: int = -1) -> list[str]:
        """The devices that a pod holds, as was last said, or earlier."""
        held = self.seen[said].held
        return [one.uuid for one in held if (one.namespace, one.pod) == (namespace, pod)]

    def await_plugin(self, *states: PluginState, deadline: float = 6.0) -> Plugin:
        def found() -> Plugin | None:
            return next((one for one in self.plugins if one.resource == GPU and one.state in states), None)

        return wait_until(found, deadline, f"the plugin to be {states}")

    def await_nobody(self) -> None:
        """Look now, and wait until it is seen that no plugin serves."""
        self._probe.probe_now()
        self.await_plugin(PluginState.DEAD, PluginState.UNKNOWN)


class GpuNode:
    """A node with a machine, and the plugins that are started on it."""

    def __init__(self, lab: Lab, node: Node) -> None:
        self.lab, self.node = lab, node
        self.machine = plugin_pods.provide_machine(node)
        self.control = control_path(self.machine)
        self.uuids = {device.uuid for device in load(self.machine).devices}
        self.socket = node.kubelet_dir / "device-plugins" / "nvidia-gpu.sock"
        self.observer = Observer(node)
        self.namespace = ""

    def start_plugin(self, name: str = "plugin") -> Child:
        """Start an instance of the plugin; it may be refused. Its log begins anew: it tells of this life only."""
        (self.lab.folder / f"{name}.log").unlink(missing_ok=True)
        command: list[str | Path] = [sys.executable, "-m", "simulation.plugin", "--machine", self.machine]
        return self.lab.processes.start(
            name, [*command, "--socket-dir", self.socket.parent], cwd=images.PROJECT
        )

    def serve(self) -> Child:
        """Start the plugin and wait until the kubelet has taken it, which the API learns a tick later."""
        child = self.start_plugin()
        wait_until(lambda: registrations(child.log), 30, "the registration", logs=[child.log])
        self.await_offered(8, 8)
        return child

    def stop_plugins(self) -> None:
        for name, child in self.lab.processes.children.items():
            if name.startswith("plugin"):
                child.kill()
        self.control.unlink(missing_ok=True)

    def offered(self) -> tuple[str, str]:
        """Capacity and allocatable, as the API server has them."""
        status = self.lab.api.get(f"/api/v1/nodes/{self.node.name}")["status"]
        return status["capacity"].get(GPU, ""), status["allocatable"].get(GPU, "")

    def await_offered(self, capacity: int, allocatable: int, deadline: float = TICK + SLACK) -> None:
        wanted = (str(capacity), str(allocatable))
        wait_until(lambda: self.offered() == wanted, deadline, f"{wanted}, now {self.offered()}")

    def stays_offered(self, capacity: int, allocatable: int, ticks: int = 3) -> None:
        """Nothing else is offered over the next status updates, which are counted by their heartbeats."""
        seen: set[str] = set()
        end = time.monotonic() + 4 * ticks * TICK
        while len(seen) <= ticks:
            assert time.monotonic() < end, "the node's status is not updated"
            assert self.offered() == (str(capacity), str(allocatable))
            seen.add(self._ready()["lastHeartbeatTime"])
            wait_until(lambda: self._ready()["lastHeartbeatTime"] not in seen, 5 * TICK, "a status update")

    def _ready(self) -> Object:
        conditions = self.lab.api.get(f"/api/v1/nodes/{self.node.name}")["status"]["conditions"]
        return next(condition for condition in conditions if condition["type"] == "Ready")

    def is_ready(self) -> bool:
        return bool(self._ready()["status"] == "True")

    def create_pod(self, name: str, gpus: int, *, scheduled: bool = False) -> None:
        """A pod with GPUs on this node; past the scheduler, unless it shall be `scheduled`."""
        pod = images.busybox_pod(
            name,
            command=["sh", "-c", "echo $NVIDIA_VISIBLE_DEVICES; exec sleep 600"],
            namespace=self.namespace,
        )
        if gpus:
            pod["spec"]["containers"][0]["resources"] = {"limits": {GPU: gpus}}
        if not scheduled:
            pod["spec"]["nodeName"] = self.node.name
        self.lab.api.create(f"/api/v1/namespaces/{self.namespace}/pods", pod)

    def status(self, name: str) -> Object:
        status = self.lab.api.get(f"/api/v1/namespaces/{self.namespace}/pods/{name}")["status"]
        return dict(status)

    def await_phase(self, name: str, phase: str, deadline: float = 10) -> Object:
        def reached() -> Object | None:
            status = self.status(name)
            return status if status.get("phase") == phase else None

        return wait_until(reached, deadline, f"pod {name} to be {phase}", logs=self.node.logs)

    def run_pod(self, name: str, gpus: int, *, scheduled: bool = False) -> Object:
        self.create_pod(name, gpus, scheduled=scheduled)
        return self.await_phase(name, "Running")

    def reject_pod(self, name: str) -> str:
        """A GPU pod that the kubelet refuses for good; the message."""
        self.create_pod(name, 1)
        status = self.await_phase(name, "Failed")
        assert status["reason"] == "UnexpectedAdmissionError"
        return str(status["message"])

    def delete_pod(self, name: str) -> None:
        self.lab.api.delete(f"/api/v1/namespaces/{self.namespace}/pods/{name}")
        path = f"/api/v1/namespaces/{self.namespace}/pods/{name}"
        wait_until(lambda: not self.lab.api.exists(path), 15, f"pod {name} to be gone")

    def is_listed(self, pod: str) -> bool:
        """Whether the kubelet's pod resources name a pod."""
        client = PodResourcesClient(self.node.kubelet_dir / "pod-resources" / "kubelet.sock")
        try:
            return any(
                (one.namespace, one.name) == (self.namespace, pod) for one in client.list().pod_resources
            )
        finally:
            client.close()

    def held_by(self, pod: str) -> list[str]:
        return self.observer.held_by(self.namespace, pod)

    def kubelet(self) -> Api:
        """The kubelet's own port, as the administrator."""
        return Api(
            f"https://127.0.0.1:{self.node.port}",
            self.lab.ca_path,
            certificate=self.lab.folder / "admin.crt",
            key=self.lab.folder / "admin.key",
        )


def registrations(log: Path) -> int:
    """How often the writer of this log was registered."""
    return log.read_text().count("registered nvidia.com/gpu") if log.exists() else 0
