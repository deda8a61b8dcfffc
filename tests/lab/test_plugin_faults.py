"""What goes wrong with a device plugin on a real kubelet is a fault in the node's report, in time, and only then.

The simulated plugin and the agent look at the same machine. The kubelet reports its node's status once a second.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from simulation.machine import load
from simulation.plugin_control import change_control, raise_xid
from tests.lab import manifests
from tests.lab.api import ApiError, Object
from tests.lab.conftest import clean
from tests.lab.gpu_node import GPU, TICK, GpuNode, registrations
from tests.lab.lab import Lab
from tests.lab.processes import Child, wait_until
from tests.lab.rig import Rig

NODE = "faulty"
GPU_OF_ADDRESS_3B = 1
FOUND_WITHIN = 10.0
"""Seconds from a plugin's failure to its fault in the API server: the probe (4), the dwell (5) and the way there."""
MISSED_WITHIN = 20.0
"""The same for a device that is not offered, whose dwell is 15 s."""
CLEARED_WITHIN = 12.0


class Ward:
    """The node, its agent and what its report says."""

    def __init__(self, gpus: GpuNode, rig: Rig) -> None:
        self.gpus, self.rig = gpus, rig

    @property
    def faults(self) -> dict[tuple[str, str], Object]:
        """Open faults by kind and device."""
        status = self.rig.report(NODE).get("status", {})
        return {(fault["kind"], fault.get("deviceUUID", "")): fault for fault in status.get("faults", [])}

    @property
    def kinds(self) -> set[str]:
        return {kind for kind, _ in self.faults}

    def await_fault(self, kind: str, device: str = "", *, within: float = FOUND_WITHIN) -> Object:
        begun = time.monotonic()
        fault = wait_until(
            lambda: self.faults.get((kind, device)), within, f"{kind}, now {self.kinds}", logs=self.rig.logs
        )
        print(f"{kind} in the report after {time.monotonic() - begun:.2f} s")
        return fault

    def await_end(self, kind: str, *, within: float = CLEARED_WITHIN) -> None:
        begun = time.monotonic()
        wait_until(lambda: kind not in self.kinds, within, f"the end of {kind}", logs=self.rig.logs)
        print(f"{kind} is over after {time.monotonic() - begun:.2f} s")

    def await_plugin(self, state: str, *, within: float = FOUND_WITHIN) -> None:
        """Wait until the report and the metrics say this of the plugin."""

        def said() -> bool:
            plugin = self.rig.report(NODE)["status"].get("plugin") or {}
            states = {one["name"]: one["state"] for one in plugin.get("resources", [])}
            port = self.rig.agents[NODE].port
            shown = self.rig.metric("accelerator_plugin_state", port=port, resource=GPU, state=state)
            return states.get(GPU) == state and shown == 1

        wait_until(
            said,
            within,
            f"the plugin to be {state}",
            logs=self.rig.logs,
            ignoring=(ApiError, KeyError, OSError),
        )

    def stays_without(self, kinds: set[str], seconds: float) -> None:
        """None of these faults is there, in the report or in the metrics, over so long."""
        end = time.monotonic() + seconds
        port = self.rig.agents[NODE].port

        def seen() -> set[str]:
            page = self.rig.metrics_page(port)
            return {kind for kind in kinds if f'kind="{kind}"' in page} | (self.kinds & kinds)

        wait_until(lambda: seen() or time.monotonic() > end, seconds + 5, "the time to be over")
        assert seen() == set()


PLUGIN_FAULTS = {
    "PluginDead",
    "PluginHung",
    "PluginWedged",
    "PluginSocketLost",
    "DeviceNotOffered",
    "DeviceOfferedThoughBad",
}


@pytest.fixture(scope="module")
def gpu_node(lab: Lab) -> Iterator[GpuNode]:
    manifests.apply(lab)
    found = GpuNode(lab, lab.add_node(NODE, status_frequency=TICK))
    yield found
    found.observer.close()
    found.stop_plugins()
    lab.remove_node(NODE)


@pytest.fixture
def ward(gpu_node: GpuNode, namespace: str) -> Iterator[Ward]:
    """A node whose plugin does not run yet, and an agent that remembers nothing."""
    gpu_node.namespace = namespace
    rig = Rig(gpu_node.lab)
    rig.start_agent(gpu_node.node, machine=gpu_node.machine)
    try:
        yield Ward(gpu_node, rig)
    finally:
        rig.stop()
        for file in rig.folder.iterdir():
            file.unlink()
        gpu_node.stop_plugins()
        gpu_node.observer.await_nobody()
        clean(gpu_node.lab)


@pytest.fixture
def plugin(ward: Ward) -> Child:
    """The plugin, running, with its 8 devices offered and known to the agent."""
    child = ward.gpus.serve()
    ward.await_plugin("Serving", within=20)
    wait_until(lambda: healthy(ward) == 8, 20, "eight healthy devices", logs=ward.rig.logs)
    return child


def healthy(ward: Ward) -> int:
    devices = ward.rig.report(NODE)["status"].get("devices", [])
    return sum(device.get("health") == "Healthy" for device in devices)


def test_who_holds_which_device_is_in_the_metrics_as_the_kubelet_says_it(ward: Ward, plugin: Child) -> None:
    gpus, rig = ward.gpus, ward.rig
    gpus.run_pod("two", 2)
    held = wait_until(lambda: gpus.held_by("two"), 5, "the holdings")
    port = rig.agents[NODE].port
    labels = {"workload_namespace": gpus.namespace, "workload_pod": "two", "resource": GPU}
    wait_until(
        lambda: rig.metric("accelerator_allocation_info", port=port, **labels) == 2, 5, "the allocations"
    )
    for uuid in held:
        assert rig.metric("accelerator_allocation_info", port=port, uuid=uuid, **labels) == 1
    counts = {
        state: rig.metric("accelerator_devices", port=port, resource=GPU, state=state)
        for state in ("allocatable", "allocated", "free", "unhealthy")
    }
    assert counts == {"allocatable": 8, "allocated": 2, "free": 6, "unhealthy": 0}
    assert ward.kinds == set()


def test_a_plugin_that_is_killed_is_dead_until_it_serves_again(ward: Ward, plugin: Child) -> None:
    plugin.kill()
    fault = ward.await_fault("PluginDead")
    assert (fault["scope"], fault["severity"], fault["advice"]) == ("Node", "Degraded", "RestartPlugin")
    assert (fault["code"], fault.get("deviceUUID", "")) == (f"plugin:{GPU}", "")
    assert ward.kinds == {"PluginDead"}
    ward.gpus.serve()
    ward.await_end("PluginDead")
    assert ward.kinds == set()


def test_a_dead_plugin_is_still_dead_for_an_agent_that_was_restarted(ward: Ward, plugin: Child) -> None:
    plugin.stop()
    fault = ward.await_fault("PluginDead")
    agent = ward.rig.agents[NODE]
    agent.child.kill()
    ward.rig.start_agent(ward.gpus.node, machine=ward.gpus.machine)
    wait_until(
        lambda: ward.rig.metric("accelerator_fault_active", port=agent.port, kind="PluginDead") == 1,
        20,
        "the fault after the restart",
        ignoring=(OSError,),
    )
    ward.stays_without(PLUGIN_FAULTS - {"PluginDead"}, 8)
    assert ward.faults["PluginDead", ""]["firstSeen"] == fault["firstSeen"]


def test_a_hung_plugin_is_found_in_ten_seconds_on_a_node_that_says_all_is_well(
    ward: Ward, plugin: Child
) -> None:
    os.kill(plugin.pid, signal.SIGSTOP)
    try:
        ward.gpus.create_pod("stuck", 1)
        fault = ward.await_fault("PluginHung", within=10.0)
        assert (fault["scope"], fault["severity"], fault["advice"]) == ("Node", "Degraded", "RestartPlugin")
        assert ward.gpus.is_ready()
        assert ward.gpus.offered() == ("8", "8")
        assert ward.gpus.kubelet().text("/healthz") == "ok"
        assert ward.gpus.status("stuck")["phase"] == "Pending"
        assert ward.kinds == {"PluginHung"}
    finally:
        os.kill(plugin.pid, signal.SIGCONT)
    ward.gpus.await_phase("stuck", "Running")
    ward.await_end("PluginHung")


def test_a_socket_file_that_is_removed_is_told_and_left_alone(ward: Ward, plugin: Child) -> None:
    ward.rig.start_controller()
    ward.rig.wait_watching()
    ward.gpus.socket.unlink()
    fault = ward.await_fault("PluginSocketLost")
    assert (fault["severity"], fault.get("advice", "None")) == ("Degraded", "None")
    ward.gpus.run_pod("late", 1)
    ward.stays_without(PLUGIN_FAULTS - {"PluginSocketLost"}, 8)
    assert not ward.rig.node(NODE)["spec"].get("unschedulable")
    os.kill(plugin.pid, signal.SIGHUP)
    ward.await_end("PluginSocketLost")


def test_two_instances_on_one_socket_are_a_wedge_once_the_first_ends_and_the_kubelet_heals_it(
    ward: Ward, plugin: Child
) -> None:
    second = ward.gpus.start_plugin("plugin-2")
    wait_until(
        lambda: "device plugin already connected" in second.log.read_text(),
        10,
        "a refusal",
        logs=[second.log],
    )
    plugin.stop()
    fault = ward.await_fault("PluginWedged")
    assert (fault["scope"], fault["severity"], fault["advice"]) == ("Node", "Fatal", "RestartService")
    assert ward.gpus.offered() == ("8", "8")
    assert "PluginDead" not in ward.kinds
    ward.gpus.node.kill_kubelet()
    wait_until(lambda: registrations(second.log), 10, "the second to be taken")
    ward.await_end("PluginWedged", within=CLEARED_WITHIN + 5)
    assert ward.kinds == set()


def test_a_device_that_the_plugin_keeps_back_although_it_is_healthy_is_not_offered(
    ward: Ward, plugin: Child
) -> None:
    bad = min(ward.gpus.uuids)
    raise_xid(ward.gpus.control, bad, 79)
    ward.gpus.await_offered(8, 7)
    fault = ward.await_fault("DeviceNotOffered", bad, within=MISSED_WITHIN)
    assert (fault.get("scope", "Device"), fault["severity"], fault["advice"]) == (
        "Device",
        "Degraded",
        "RestartPlugin",
    )
    assert healthy(ward) == 8
    assert list(ward.faults) == [("DeviceNotOffered", bad)]
    change_control(ward.gpus.control, lambda now: replace(now, xids=()))
    os.kill(plugin.pid, signal.SIGHUP)
    ward.await_end("DeviceNotOffered")


def test_a_kubelet_that_restarts_with_its_plugin_is_no_fault(ward: Ward, plugin: Child) -> None:
    before = registrations(plugin.log)
    ward.gpus.node.kill_kubelet()
    wait_until(lambda: registrations(plugin.log) > before, 10, "the plugin to be back")
    ward.stays_without(PLUGIN_FAULTS, 18)
    ward.gpus.run_pod("after", 1)


def test_a_kubelet_that_restarts_without_its_plugin_leaves_a_dead_one(ward: Ward, plugin: Child) -> None:
    plugin.kill()
    ward.gpus.node.kill_kubelet()
    ward.await_fault("PluginDead", within=FOUND_WITHIN + 4)
    ward.stays_without(PLUGIN_FAULTS - {"PluginDead"}, 5)
    ward.gpus.serve()
    ward.await_end("PluginDead")


def test_a_bad_gpu_that_is_offered_again_after_a_restart_of_the_plugin_is_told(
    ward: Ward, plugin: Child
) -> None:
    bad = load(ward.gpus.machine).devices[GPU_OF_ADDRESS_3B].uuid
    raise_xid(ward.gpus.control, bad, 79)
    ward.rig.lose_gpu(NODE)
    ward.await_fault("DeviceLost", bad)
    ward.gpus.await_offered(8, 7)
    ward.stays_without(PLUGIN_FAULTS, 8)
    os.kill(plugin.pid, signal.SIGHUP)
    fault = ward.await_fault("DeviceOfferedThoughBad", bad)
    assert (fault["severity"], fault.get("advice", "None")) == ("Degraded", "None")
    assert (fault.get("scope", "Device"), fault["code"]) == ("Device", f"plugin:{GPU}")
    raise_xid(ward.gpus.control, bad, 79)
    ward.await_end("DeviceOfferedThoughBad")
