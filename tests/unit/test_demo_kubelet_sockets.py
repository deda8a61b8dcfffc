"""The demo's kubelet sockets on the simulated device plugin: what it lists, allocates and loses, and who holds what."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.holdings import healthy_devices, held_devices
from runtime.kubelet_rpc import PodResourcesClient
from simulation.cluster.kubelet_devices import AllocateError, AllocateHangsError, Holding
from simulation.demo.host_files import GPU, HostFiles
from simulation.demo.kubelet_sockets import KubeletSockets
from simulation.machine import load
from simulation.plugin import SimulatedPlugin
from simulation.plugin_control import PluginControl, change_control, control_path
from tests.lab.processes import wait_until


class Node:
    """A host, its kubelet's sockets and a plugin in this process."""

    def __init__(self, folder: Path) -> None:
        self.files = HostFiles("n1", folder)
        self.files.build("boot-1")
        self.uuids = [device.uuid for device in load(self.files.machine).devices]
        self.holdings: list[Holding] = []
        self.changed = threading.Semaphore(0)
        self.sockets = KubeletSockets(
            self.files, holdings=lambda: self.holdings, changed=self.changed.release
        )
        self.sockets.start()
        self.plugin = SimulatedPlugin(machine=self.files.machine, folder=self.files.plugins)

    def healthy(self) -> int:
        return sum(self.sockets.listed().get(GPU, {}).values())

    def tell_plugin(self, **values: object) -> None:
        change_control(control_path(self.files.machine), lambda _: PluginControl(**values))  # type: ignore[arg-type]
        self.plugin.poll()

    def allocated(self, *devices: str) -> bool:
        """Whether the plugin has answered by now."""
        try:
            self.sockets.allocate(GPU, devices)
        except AllocateHangsError:
            return False
        return True


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path / "n1")
    node.plugin.start()
    wait_until(lambda: node.healthy() == 8, 5, "8 healthy devices", every=0.005)
    yield node
    node.plugin.stop()
    node.sockets.stop()


def test_a_plugin_that_registers_is_listed_and_one_that_goes_is_not(node: Node) -> None:
    assert set(node.sockets.listed()[GPU]) == set(node.uuids)
    assert node.changed.acquire(timeout=5)
    node.plugin.stop()
    assert node.changed.acquire(timeout=5)
    assert node.sockets.listed() == {}
    with pytest.raises(AllocateError, match="no device plugin"):
        node.sockets.allocate(GPU, node.uuids[:1])
    node.plugin.start()
    wait_until(lambda: node.healthy() == 8, 5, "8 healthy devices", every=0.005)


def test_a_device_is_allocated_refused_or_waited_for(node: Node) -> None:
    wait_until(lambda: node.allocated(node.uuids[0]), 5, "the plugin's answer", every=0.005)
    node.tell_plugin(allocate_error="no memory left")
    with pytest.raises(AllocateError, match="no memory left"):
        wait_until(lambda: node.allocated(node.uuids[1]), 5, "the plugin's answer", every=0.005)
    node.tell_plugin(allocate_latency_seconds=0.3)
    assert not node.allocated(node.uuids[2])
    wait_until(lambda: node.allocated(node.uuids[2]), 5, "the plugin's answer", every=0.005)


def test_pod_resources_are_the_kubelets_books(node: Node) -> None:
    pod = {"metadata": {"name": "train-1", "namespace": "ml"}}
    node.holdings = [Holding(pod=pod, container="main", devices={GPU: node.uuids[:2]})]
    client = PodResourcesClient(node.files.pod_resources)
    try:
        held = held_devices(client.list())
        assert {(one.namespace, one.pod, one.container) for one in held} == {("ml", "train-1", "main")}
        assert healthy_devices(client.allocatable()) == {GPU: frozenset(node.uuids)}
    finally:
        client.close()


def test_a_kubelet_that_starts_again_gets_its_plugin_back(node: Node) -> None:
    node.sockets.stop()
    assert node.sockets.listed() == {}
    node.sockets.start()

    def back() -> bool:
        node.plugin.poll()
        return node.healthy() == 8

    wait_until(back, 5, "the plugin to register again", every=0.01)


def test_a_boot_empties_what_a_boot_empties(node: Node) -> None:
    node.files.kernel_says("NVRM: something")
    node.files.receipts.mkdir()
    node.files.boot_request.write_text("{}")
    node.files.boot("boot-2")
    assert node.files.kernel_log.read_text() == ""
    assert node.files.boot_id.read_text().strip() == "boot-2"
    assert not node.files.receipts.exists() and not node.files.boot_request.exists()
    assert [device.uuid for device in load(node.files.machine).devices] == node.uuids
