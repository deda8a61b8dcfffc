"""The simulated device plugin on a real kubelet does what NVIDIA's was measured to do, and our sources see it.

The kubelet reports its node's status once a second here; by default it is every 10 s.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from exporter.holdings import Holdings
from exporter.sources.plugin import Plugin, PluginProbe, PluginState
from exporter.sources.pod_resources import PodResourcesSource
from health.vocabulary import SourceState
from runtime.kubelet_rpc import PodsClient
from simulation.machine import load
from simulation.plugin_control import PluginControl, change_control, control_path, raise_xid
from tests.lab import images, plugin_pods
from tests.lab.api import Api, ApiError, Object
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
        self.holdings = Holdings()
        self.plugins: tuple[Plugin, ...] = ()
        self.state: tuple[SourceState, str] | None = None
        self._pod_resources = PodResourcesSource(
            on_holdings=lambda said: setattr(self, "holdings", said),
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

    def pods(self) -> dict[str, list[str]]:
        """The devices that each pod holds."""
        found: dict[str, list[str]] = {}
        for one in self.holdings.held:
            found.setdefault(one.pod, []).append(one.uuid)
        return found

    def await_plugin(self, state: PluginState, deadline: float = 6.0) -> Plugin:
        def found() -> Plugin | None:
            return next((one for one in self.plugins if one.resource == GPU and one.state is state), None)

        return wait_until(found, deadline, f"the plugin to be {state}, in {self.plugins}")


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
        """Start an instance of the plugin; it may be refused."""
        command: list[str | Path] = [sys.executable, "-m", "simulation.plugin", "--machine", self.machine]
        return self.lab.processes.start(
            name, [*command, "--socket-dir", self.socket.parent], cwd=images.PROJECT
        )

    def serve(self) -> Child:
        """Start the plugin and wait until the kubelet has taken it, which the API learns a tick later."""
        log = self.lab.folder / "plugin.log"
        before = registrations(log)
        child = self.start_plugin()
        wait_until(lambda: registrations(log) > before, 10, "the registration", logs=[log])
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

    def kubelet(self) -> Api:
        """The kubelet's own port, as the administrator."""
        return Api(
            f"https://127.0.0.1:{self.node.port}",
            self.lab.ca_path,
            certificate=self.lab.folder / "admin.crt",
            key=self.lab.folder / "admin.key",
        )


@pytest.fixture(scope="module")
def gpu_node(lab: Lab) -> Iterator[GpuNode]:
    found = GpuNode(lab, lab.add_node("gpu", status_frequency=TICK))
    yield found
    found.observer.close()
    found.stop_plugins()
    lab.remove_node("gpu")


@pytest.fixture
def gpus(gpu_node: GpuNode, namespace: str) -> Iterator[GpuNode]:
    gpu_node.namespace = namespace
    yield gpu_node
    gpu_node.stop_plugins()


@pytest.fixture
def plugin(gpus: GpuNode) -> Child:
    """The plugin, running and with its 8 devices offered."""
    return gpus.serve()


def registrations(log: Path) -> int:
    """How often the writer of this log was registered."""
    return log.read_text().count("registered nvidia.com/gpu") if log.exists() else 0


def hold(control: PluginControl, **changes: object) -> PluginControl:
    return msgspec.structs.replace(control, **changes)


def test_a_gpu_pod_holds_the_devices_that_its_environment_names(gpus: GpuNode, plugin: Child) -> None:
    gpus.observer.await_plugin(PluginState.SERVING)
    status = gpus.run_pod("two", 2, scheduled=True)
    held = wait_until(lambda: gpus.observer.pods().get("two"), 3, "the holdings")
    named = gpus.lab.kubectl("logs", "two", f"--namespace={gpus.namespace}").strip().split(",")
    assert sorted(named) == sorted(held)
    assert gpus.observer.holdings.healthy == {GPU: gpus.uuids}
    (resource,) = status["containerStatuses"][0]["allocatedResourcesStatus"]
    assert sorted(one["resourceID"] for one in resource["resources"]) == sorted(held)
    assert {one["health"] for one in resource["resources"]} == {"Healthy"}

    client = PodsClient(gpus.node.kubelet_dir / "pods-api" / "pods-api.sock")
    (seen,) = [pod for pod in client.list() if pod.metadata.name == "two"]
    client.close()
    assert seen.spec.containers[0].resources.limits[GPU].text == "2"
    assert seen.status.phase == "Running"

    gpus.delete_pod("two")
    wait_until(lambda: "two" not in gpus.observer.pods(), 5, "the devices to be free")


def test_a_killed_plugin_leaves_nothing_allocatable_and_all_pods_running(
    gpus: GpuNode, plugin: Child
) -> None:
    gpus.run_pod("before", 1)
    plugin.kill()
    begun = time.monotonic()
    message = gpus.reject_pod("late")
    assert "no healthy devices present; cannot allocate unhealthy devices nvidia.com/gpu" in message
    gpus.await_offered(8, 0)
    print(f"allocatable 0 seen {time.monotonic() - begun:.2f} s after SIGKILL")
    assert gpus.observer.await_plugin(PluginState.DEAD).present
    status = gpus.status("before")
    assert status["phase"] == "Running"
    assert (
        status["containerStatuses"][0]["allocatedResourcesStatus"][0]["resources"][0]["health"] == "Healthy"
    )
    assert len(gpus.observer.pods()["before"]) == 1
    wait_until(lambda: gpus.observer.holdings.healthy == {}, 3, "no healthy device")

    gpus.create_pod("waiting", 1, scheduled=True)
    begun = time.monotonic()
    gpus.serve()
    gpus.await_phase("waiting", "Running")
    print(f"a waiting pod ran {time.monotonic() - begun:.2f} s after the plugin's start")
    gpus.observer.await_plugin(PluginState.SERVING)


def test_a_kubelet_that_restarts_gets_the_plugin_back_and_forgets_what_was_unhealthy(
    gpus: GpuNode, plugin: Child
) -> None:
    gpus.run_pod("survivor", 1)
    (held,) = wait_until(lambda: gpus.observer.pods().get("survivor"), 3, "its device")
    raise_xid(gpus.control, held, 48)
    gpus.await_offered(8, 7)
    gpus.node.kill_kubelet()
    begun = time.monotonic()
    wait_until(
        lambda: plugin.log.read_text().count("registered nvidia.com/gpu") == 2, 10, "the plugin to be back"
    )
    print(f"registered again {time.monotonic() - begun:.2f} s after the new kubelet listened")
    gpus.await_offered(8, 8, 5)
    gpus.stays_offered(8, 8, ticks=1)
    wait_until(lambda: gpus.observer.state == (SourceState.LIVE, ""), 10, "answers to be believed again")
    assert gpus.observer.pods() == {"survivor": [held]}
    assert gpus.status("survivor")["containerStatuses"][0]["restartCount"] == 0


def test_an_unhealthy_device_stays_so_until_the_plugin_restarts(gpus: GpuNode, plugin: Child) -> None:
    bad, other = sorted(gpus.uuids)[:2]
    raise_xid(gpus.control, other, 31)
    raise_xid(gpus.control, bad, 79)
    gpus.await_offered(8, 7)
    change_control(gpus.control, lambda control: hold(control, xids=()))
    gpus.stays_offered(8, 7, ticks=2)
    gpus.run_pod("seven", 7, scheduled=True)
    held = wait_until(lambda: gpus.observer.pods().get("seven"), 3, "the holdings")
    assert sorted(held) == sorted(gpus.uuids - {bad})
    assert gpus.observer.holdings.healthy == {GPU: gpus.uuids - {bad}}
    gpus.observer.await_plugin(PluginState.SERVING)
    os.kill(plugin.pid, signal.SIGHUP)
    gpus.await_offered(8, 8)
    gpus.delete_pod("seven")


def test_a_hung_plugin_holds_up_the_whole_kubelet_which_says_that_all_is_well(
    gpus: GpuNode, plugin: Child
) -> None:
    gpus.observer.await_plugin(PluginState.SERVING)
    os.kill(plugin.pid, signal.SIGSTOP)
    begun = time.monotonic()
    try:
        gpus.create_pod("stuck", 1)
        wait_until(lambda: "stuck" in gpus.observer.pods() or _listed(gpus, "stuck"), 5, "it in the list")
        gpus.create_pod("innocent", 0)
        gpus.observer.await_plugin(PluginState.HUNG)
        print(f"Hung seen {time.monotonic() - begun:.2f} s after SIGSTOP")
        gpus.stays_offered(8, 8, ticks=3)
        for name in ("stuck", "innocent"):
            assert gpus.status(name)["phase"] == "Pending"
            assert "containerStatuses" not in gpus.status(name)
        assert gpus.is_ready()
        assert gpus.kubelet().text("/healthz") == "ok"
    finally:
        os.kill(plugin.pid, signal.SIGCONT)
    begun = time.monotonic()
    gpus.await_phase("stuck", "Running")
    gpus.await_phase("innocent", "Running")
    print(f"both ran {time.monotonic() - begun:.2f} s after SIGCONT")
    gpus.observer.await_plugin(PluginState.SERVING)


def _listed(gpus: GpuNode, name: str) -> bool:
    client = PodsClient(gpus.node.kubelet_dir / "pods-api" / "pods-api.sock")
    try:
        return any(pod.metadata.name == name for pod in client.list())
    finally:
        client.close()


def test_two_instances_on_one_socket_wedge_the_node_until_the_kubelet_restarts(
    gpus: GpuNode, plugin: Child
) -> None:
    second = gpus.start_plugin("plugin-2")
    await_refusal(second)
    assert not gpus.socket.exists()
    plugin.stop()
    gpus.observer.await_plugin(PluginState.DEAD)
    gpus.stays_offered(8, 8, ticks=3)
    assert "GetPreferredAllocation rpc failed" in gpus.reject_pod("late")

    third = gpus.start_plugin("plugin-3")
    await_refusal(third)
    third.stop()
    gpus.stays_offered(8, 8, ticks=1)
    assert gpus.observer.holdings.healthy == {GPU: gpus.uuids}

    gpus.node.kill_kubelet()
    wait_until(lambda: registrations(second.log), 10, "the second to be taken")
    gpus.await_offered(8, 8, 5)
    gpus.run_pod("healed", 1)
    gpus.observer.await_plugin(PluginState.SERVING)


def await_refusal(child: Child) -> None:
    wait_until(
        lambda: "device plugin already connected" in child.log.read_text(), 10, "a refusal", logs=[child.log]
    )
    assert "again in 30 s" in child.log.read_text()


def test_a_socket_file_that_is_removed_is_missed_by_nobody_but_the_probe(
    gpus: GpuNode, plugin: Child
) -> None:
    gpus.observer.await_plugin(PluginState.SERVING)
    gpus.socket.unlink()
    assert not gpus.observer.await_plugin(PluginState.SOCKET_LOST).present
    gpus.stays_offered(8, 8, ticks=2)
    gpus.run_pod("late", 1)
    assert not gpus.socket.exists()


def test_an_allocation_takes_its_time_and_one_that_fails_ends_its_pod(gpus: GpuNode, plugin: Child) -> None:
    change_control(gpus.control, lambda control: hold(control, allocate_latency_seconds=2.0))
    begun = time.monotonic()
    wait_until(lambda: time.monotonic() > begun + 0.2, 1, "the plugin to read it")
    begun = time.monotonic()
    gpus.run_pod("slow", 1)
    assert time.monotonic() - begun >= 2.0
    change_control(gpus.control, lambda _control: PluginControl(allocate_error="no MPS daemon"))
    begun = time.monotonic()
    wait_until(lambda: time.monotonic() > begun + 0.2, 1, "the plugin to read it")
    message = gpus.reject_pod("refused")
    assert "Allocate failed due to rpc error: code = Unknown desc = no MPS daemon" in message
    assert gpus.offered() == ("8", "8")


def test_the_plugin_runs_as_a_daemon_set_and_comes_back_when_its_pod_is_deleted(gpus: GpuNode) -> None:
    daemon_set = plugin_pods.plugin_daemon_set(
        gpus.lab.server,
        namespace=gpus.namespace,
        nodeSelector={"kubernetes.io/hostname": gpus.node.name},
    )
    gpus.lab.apply(daemon_set)
    first = await_plugin_pod(gpus, other_than="")
    gpus.await_offered(8, 8, 5)
    gpus.run_pod("before", 1)
    gpus.lab.api.delete(f"/api/v1/namespaces/{gpus.namespace}/pods/{first}")
    second = await_plugin_pod(gpus, other_than=first)
    log = ("logs", second, f"--namespace={gpus.namespace}")
    wait_until(
        lambda: "registered nvidia.com/gpu" in gpus.lab.kubectl(*log, check=False), 10, "its registration"
    )
    gpus.run_pod("after", 1)
    assert gpus.status("before")["phase"] == "Running"
    gpus.observer.await_plugin(PluginState.SERVING)


def await_plugin_pod(gpus: GpuNode, *, other_than: str) -> str:
    def ready() -> str | None:
        pods = gpus.lab.api.items(
            f"/api/v1/namespaces/{gpus.namespace}/pods?labelSelector=name%3Dnvidia-device-plugin"
        )
        for pod in pods:
            conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions", [])}
            if pod["metadata"]["name"] != other_than and conditions.get("Ready") == "True":
                return str(pod["metadata"]["name"])
        return None

    return wait_until(ready, 20, "the plugin's pod to be Ready", ignoring=(ApiError,), logs=gpus.node.logs)
