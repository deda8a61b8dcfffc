"""The simulated device plugin on a real kubelet does what NVIDIA's was measured to do, and our sources see it.

The kubelet reports its node's status once a second here; by default it is every 10 s.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import msgspec
import pytest

from exporter.sources.plugin import PluginState
from health.vocabulary import SourceState
from runtime.kubelet_rpc import PodsClient
from simulation.plugin_control import PluginControl, change_control, raise_xid
from tests.lab import plugin_pods
from tests.lab.api import ApiError
from tests.lab.gpu_node import GPU, TICK, GpuNode, registrations
from tests.lab.lab import Lab
from tests.lab.processes import Child, wait_until


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
    gpu_node.lab.api.delete(f"/apis/apps/v1/namespaces/{namespace}/daemonsets")
    gpu_node.observer.await_nobody()


@pytest.fixture
def plugin(gpus: GpuNode) -> Child:
    """The plugin, running and with its 8 devices offered."""
    return gpus.serve()


def test_a_gpu_pod_holds_the_devices_that_its_environment_names(gpus: GpuNode, plugin: Child) -> None:
    gpus.observer.await_plugin(PluginState.SERVING)
    status = gpus.run_pod("two", 2, scheduled=True)
    held = wait_until(lambda: gpus.held_by("two"), 3, "the holdings")
    named = gpus.lab.kubectl("logs", "two", f"--namespace={gpus.namespace}").strip().split(",")
    assert sorted(named) == sorted(held)
    assert gpus.observer.healthy == {GPU: gpus.uuids}
    (resource,) = status["containerStatuses"][0]["allocatedResourcesStatus"]
    assert sorted(one["resourceID"] for one in resource["resources"]) == sorted(held)
    assert {one["health"] for one in resource["resources"]} == {"Healthy"}

    client = PodsClient(gpus.node.kubelet_dir / "pods-api" / "pods-api.sock")
    (seen,) = [pod for pod in client.list() if pod.metadata.name == "two"]
    client.close()
    assert seen.spec.containers[0].resources.limits[GPU].text == "2"
    assert seen.status.phase == "Running"

    gpus.delete_pod("two")
    wait_until(lambda: not gpus.held_by("two"), 5, "the devices to be free")


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
    wait_until(lambda: len(gpus.held_by("before")) == 1, 3, "the device to be still held")
    wait_until(lambda: gpus.observer.healthy == {}, 3, "no healthy device")

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
    (held,) = wait_until(lambda: gpus.held_by("survivor"), 3, "its device")
    raise_xid(gpus.control, held, 48)
    gpus.await_offered(8, 7)
    wait_until(lambda: len(gpus.observer.healthy[GPU]) == 7, 3, "seven healthy devices")
    before, said = registrations(plugin.log), len(gpus.observer.seen)
    gpus.node.kill_kubelet()
    begun = time.monotonic()
    wait_until(lambda: registrations(plugin.log) > before, 10, "the plugin to be back")
    print(f"registered again {time.monotonic() - begun:.2f} s after the new kubelet listened")
    gpus.await_offered(8, 8, 5)
    gpus.stays_offered(8, 8, ticks=1)
    live = (SourceState.LIVE, "")
    wait_until(
        lambda: gpus.observer.state == live and len(gpus.observer.healthy[GPU]) == 8,
        10,
        "answers to be believed again",
    )
    shown = [
        gpus.observer.held_by(gpus.namespace, "survivor", n) for n in range(said, len(gpus.observer.seen))
    ]
    assert shown == [[held]] * len(shown), "a kubelet that has just started was believed"
    assert gpus.status("survivor")["containerStatuses"][0]["restartCount"] == 0


def test_an_unhealthy_device_stays_so_until_the_plugin_restarts(gpus: GpuNode, plugin: Child) -> None:
    bad, other = sorted(gpus.uuids)[:2]
    raise_xid(gpus.control, other, 31)
    raise_xid(gpus.control, bad, 79)
    gpus.await_offered(8, 7)
    change_control(gpus.control, lambda now: msgspec.structs.replace(now, xids=()))
    gpus.stays_offered(8, 7, ticks=2)
    gpus.run_pod("seven", 7, scheduled=True)
    held = wait_until(lambda: gpus.held_by("seven"), 3, "the holdings")
    assert sorted(held) == sorted(gpus.uuids - {bad})
    assert gpus.observer.healthy == {GPU: gpus.uuids - {bad}}
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
        wait_until(lambda: gpus.is_listed("stuck"), 5, "the pod to be in the kubelet's list")
        gpus.create_pod("innocent", 0)
        gpus.observer.await_plugin(PluginState.HUNG)
        print(f"Hung seen {time.monotonic() - begun:.2f} s after SIGSTOP")
        gpus.stays_offered(8, 8, ticks=3)
        for name in ("stuck", "innocent"):
            assert gpus.status(name)["phase"] == "Pending"
            assert "containerStatuses" not in gpus.status(name)
        assert gpus.is_ready()
        assert gpus.observer.state == (SourceState.LIVE, "")
        assert gpus.kubelet().text("/healthz") == "ok"
    finally:
        os.kill(plugin.pid, signal.SIGCONT)
    begun = time.monotonic()
    gpus.await_phase("stuck", "Running")
    gpus.await_phase("innocent", "Running")
    print(f"both ran {time.monotonic() - begun:.2f} s after SIGCONT")
    gpus.observer.await_plugin(PluginState.SERVING)


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
    assert gpus.observer.healthy == {GPU: gpus.uuids}

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


def test_an_allocation_takes_its_time_and_one_that_fails_ends_its_pod(gpus: GpuNode) -> None:
    change_control(gpus.control, lambda _now: PluginControl(allocate_latency_seconds=2.0))
    plugin = gpus.serve()
    begun = time.monotonic()
    gpus.run_pod("slow", 1)
    assert time.monotonic() - begun >= 2.0
    change_control(gpus.control, lambda _now: PluginControl(allocate_error="no MPS daemon"))
    wait_until(lambda: "no MPS daemon" in plugin.log.read_text(), 5, "the plugin to read it")
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
    gpus.await_offered(8, 8)
    gpus.run_pod("before", 1)
    gpus.lab.api.delete(f"/api/v1/namespaces/{gpus.namespace}/pods/{first}")
    await_plugin_pod(gpus, other_than=first)
    gpus.run_pod("after", 1)
    assert gpus.status("before")["phase"] == "Running"
    gpus.observer.await_plugin(PluginState.SERVING)


def await_plugin_pod(gpus: GpuNode, *, other_than: str) -> str:
    """Wait for a plugin's pod that has registered, which is later than Ready; its name."""
    pods = f"/api/v1/namespaces/{gpus.namespace}/pods"

    def registered() -> str | None:
        for pod in gpus.lab.api.items(f"{pods}?labelSelector=name%3Dnvidia-device-plugin"):
            name = str(pod["metadata"]["name"])
            if name == other_than or pod["status"]["phase"] != "Running":
                continue
            if "registered nvidia.com/gpu" in gpus.lab.api.text(f"{pods}/{name}/log"):
                return name
        return None

    return wait_until(registered, 20, "the plugin's pod", ignoring=(ApiError,), logs=gpus.node.logs)
