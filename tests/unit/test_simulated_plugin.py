"""The simulated device plugin does what NVIDIA's was measured to do, here against a kubelet of the test."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from runtime.kubelet_messages import (
    AllocateRequest,
    ContainerAllocateRequest,
    ContainerPreferredAllocationRequest,
    PreferredAllocationRequest,
)
from runtime.kubelet_rpc import DevicePluginClient
from runtime.unix_rpc import RpcError
from simulation import control
from simulation.machine import MachineError, h100_machine, load, save, update
from simulation.plugin import IGNORED_XIDS, SimulatedPlugin, main, socket_name
from simulation.plugin_control import change_control, control_path, load_control, raise_xid
from tests.kubelet import FakeKubelet
from tests.lab.processes import wait_until

GPU = "nvidia.com/gpu"


class Node:
    """A folder of device plugins, a machine, and a kubelet that can be restarted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "dp"
        self.folder.mkdir()
        self.machine = folder / "machine.json"
        save(self.machine, h100_machine("n1"))
        self.uuids = [device.uuid for device in load(self.machine).devices]
        self.kubelet = FakeKubelet(self.folder)
        self.now = 0.0
        self.plugin = self.new_plugin()

    def new_plugin(self) -> SimulatedPlugin:
        return SimulatedPlugin(machine=self.machine, folder=self.folder, clock=lambda: self.now)

    def restart_kubelet(self) -> None:
        self.kubelet.close()
        self.kubelet = FakeKubelet(self.folder)

    def poll_until(self, condition, what: str, plugin: SimulatedPlugin | None = None) -> None:
        def polled() -> bool:
            (plugin or self.plugin).poll()
            return condition()

        wait_until(polled, 5, what, every=0.005)

    def healthy(self) -> int:
        return self.kubelet.count(GPU)

    def allocate(self, *devices: str):
        container = ContainerAllocateRequest(device_ids=devices)
        return self.kubelet.allocate(GPU, AllocateRequest(container_requests=[container]))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    node.plugin.start()
    wait_until(lambda: node.healthy() == 8, 5, "8 healthy devices", every=0.005)
    yield node
    node.plugin.stop()
    node.kubelet.close()


def test_it_registers_its_devices_under_the_name_that_nvidias_has(node: Node) -> None:
    (request,) = node.kubelet.registrations
    assert (request.version, request.endpoint, request.resource_name) == ("v1beta1", "nvidia-gpu.sock", GPU)
    assert request.options.get_preferred_allocation_available
    assert not request.options.pre_start_required
    assert set(node.kubelet.devices[GPU]) == set(node.uuids)
    assert socket_name("nvidia.com/mig-1g.5gb") == "nvidia-mig-1g.5gb.sock"


def test_it_says_its_options_to_whoever_asks(node: Node) -> None:
    client = DevicePluginClient(node.plugin.socket)
    assert client.options().get_preferred_allocation_available
    client.close()


def test_a_container_learns_its_devices_from_the_environment(node: Node) -> None:
    (container,) = node.allocate(node.uuids[3], node.uuids[1]).container_responses
    assert dict(container.envs) == {"NVIDIA_VISIBLE_DEVICES": f"{node.uuids[3]},{node.uuids[1]}"}


def test_an_unknown_device_is_refused(node: Node) -> None:
    with pytest.raises(RpcError, match="unknown device: GPU-none") as refused:
        node.allocate("GPU-none")
    assert refused.value.code == "UNKNOWN"


def test_the_preferred_devices_contain_those_that_must_be_in(node: Node) -> None:
    a, b, c = node.uuids[:3]
    asked = ContainerPreferredAllocationRequest(
        available_device_ids=[a, b, c], must_include_device_ids=[c], allocation_size=2
    )
    answer = node.kubelet.prefer(GPU, PreferredAllocationRequest(container_requests=[asked]))
    assert [list(one.device_ids) for one in answer.container_responses] == [[c, a]]


def test_allocate_takes_as_long_and_fails_as_it_is_told(node: Node) -> None:
    path = control_path(node.machine)
    change_control(path, lambda now: msgspec.structs.replace(now, allocate_latency_seconds=0.3))
    node.plugin.poll()
    begun = time.monotonic()
    node.allocate(node.uuids[0])
    assert time.monotonic() - begun >= 0.3
    change_control(
        path,
        lambda now: msgspec.structs.replace(
            now, allocate_latency_seconds=0, allocate_error="no MPS daemon", preferred_error="no topology"
        ),
    )
    node.plugin.poll()
    with pytest.raises(RpcError, match="no MPS daemon"):
        node.allocate(node.uuids[0])
    with pytest.raises(RpcError, match="no topology"):
        node.kubelet.prefer(GPU, PreferredAllocationRequest())


def test_an_xid_marks_its_device_for_good(node: Node) -> None:
    raise_xid(control_path(node.machine), node.uuids[2], 48)
    node.poll_until(lambda: node.healthy() == 7, "one device to be marked")
    assert node.kubelet.devices[GPU][node.uuids[2]] == "Unhealthy"
    change_control(control_path(node.machine), lambda now: msgspec.structs.replace(now, xids=()))
    node.plugin.poll()
    assert node.plugin.service.unhealthy == {node.uuids[2]}


@pytest.mark.parametrize("code", sorted(IGNORED_XIDS))
def test_an_xid_of_an_application_marks_nothing(node: Node, code: int) -> None:
    raise_xid(control_path(node.machine), node.uuids[2], code)
    node.plugin.poll()
    assert node.plugin.service.unhealthy == frozenset()


def test_a_lost_gpu_marks_all_devices_and_a_new_life_does_not_help(node: Node) -> None:
    update(node.machine, lambda machine: control.lose(machine, "1"))
    node.poll_until(lambda: node.kubelet.count(GPU, "Unhealthy") == 8, "all devices to be marked")
    node.plugin.restart()
    wait_until(lambda: node.kubelet.count(GPU, "Unhealthy") == 8, 5, "all devices to be marked again")


def test_a_driver_that_fails_marks_all_devices_and_then_the_plugin_does_not_start(node: Node) -> None:
    update(node.machine, lambda machine: control.set_value(machine, "machine", "library_error", "999"))
    node.poll_until(lambda: node.kubelet.count(GPU, "Unhealthy") == 8, "all devices to be marked")
    with pytest.raises(MachineError, match="NVML does not work: error 999"):
        node.plugin.restart()


def test_a_restart_offers_a_marked_device_as_healthy_again(node: Node) -> None:
    raise_xid(control_path(node.machine), node.uuids[2], 79)
    node.poll_until(lambda: node.healthy() == 7, "one device to be marked")
    node.plugin.restart()
    wait_until(lambda: node.healthy() == 8, 5, "all devices to be offered")
    node.plugin.poll()
    assert node.plugin.service.unhealthy == frozenset()


def test_it_registers_anew_when_the_kubelets_socket_is_created_again(node: Node) -> None:
    raise_xid(control_path(node.machine), node.uuids[2], 79)
    node.poll_until(lambda: node.healthy() == 7, "one device to be marked")
    node.restart_kubelet()
    assert not node.plugin.socket.exists()
    node.poll_until(lambda: node.healthy() == 8, "the registration with the new kubelet")
    assert len(node.kubelet.registrations) == 1
    assert node.plugin.socket.is_socket()


def test_it_stays_while_the_kubelet_is_away(node: Node) -> None:
    node.kubelet.close()
    node.plugin.poll()
    assert node.plugin.service is not None
    assert node.plugin.socket.is_socket()


def test_a_socket_file_that_somebody_removes_is_not_noticed(node: Node) -> None:
    node.plugin.socket.unlink()
    node.plugin.poll()
    assert not node.plugin.socket.exists()
    assert list(node.allocate(node.uuids[0]).container_responses)


def test_a_second_instance_is_refused_and_takes_the_socket_file_with_it(node: Node) -> None:
    second = node.new_plugin()
    second.start()
    assert second.service is None
    assert not node.plugin.socket.exists()
    assert len(node.kubelet.registrations) == 2
    assert node.healthy() == 8
    node.now = 29.9
    second.poll()
    assert len(node.kubelet.registrations) == 2
    node.now = 30.0
    second.poll()
    assert len(node.kubelet.registrations) == 3
    node.plugin.stop()
    wait_until(lambda: node.healthy() == 0, 5, "the first instance to be gone")
    node.now = 60.0
    second.poll()
    wait_until(lambda: node.healthy() == 8, 5, "the second to be taken")
    second.stop()
    assert not second.socket.exists()


def test_the_kubelet_sees_at_once_that_it_stops(node: Node) -> None:
    node.plugin.stop()
    wait_until(lambda: node.healthy() == 0, 1, "no device", every=0.001)
    assert not node.plugin.socket.exists()


def test_a_machine_without_devices_offers_nothing(tmp_path: Path) -> None:
    save(tmp_path / "machine.json", h100_machine("n1", devices=0))
    plugin = SimulatedPlugin(machine=tmp_path / "machine.json", folder=tmp_path)
    plugin.start()
    plugin.poll()
    assert not plugin.socket.exists()
    plugin.stop()


def test_a_control_file_that_makes_no_sense_changes_nothing(node: Node, caplog) -> None:
    path = control_path(node.machine)
    raise_xid(path, node.uuids[2], 48)
    node.plugin.poll()
    path.write_text('{"allocate_latency_second": 1}')
    node.plugin.poll()
    assert f"{path}: not a device plugin's control file" in caplog.text
    assert "allocate_latency_second" in caplog.text
    assert node.plugin.service.unhealthy == {node.uuids[2]}
    with pytest.raises(MachineError, match="control file"):
        load_control(path)


def run_plugin(node_folder: Path, machine: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "simulation.plugin", "--machine", machine, "--socket-dir", node_folder]
    return subprocess.Popen([*map(str, command), *flags], stderr=subprocess.PIPE, text=True)


def test_the_program_restarts_on_sighup_and_ends_on_sigterm_and_leaves_no_file(tmp_path: Path) -> None:
    node = Node(tmp_path)
    program = run_plugin(node.folder, node.machine)
    try:
        wait_until(lambda: node.healthy() == 8, 10, "8 healthy devices")
        raise_xid(control_path(node.machine), node.uuids[0], 94)
        wait_until(lambda: node.healthy() == 7, 5, "one device to be marked")
        os.kill(program.pid, signal.SIGHUP)
        wait_until(lambda: node.healthy() == 8, 5, "all devices after SIGHUP")
        program.terminate()
        assert program.wait(5) == 0
        assert not node.plugin.socket.exists()
        assert "SIGHUP: restarting" in program.stderr.read()
    finally:
        program.kill()
        program.communicate()
        node.kubelet.close()


def test_the_program_says_what_is_wrong_with_its_machine(tmp_path: Path) -> None:
    program = run_plugin(tmp_path, tmp_path / "none.json")
    _, errors = program.communicate(timeout=10)
    assert program.returncode == 1
    assert "none.json: No such file or directory" in errors


def test_the_program_without_a_machine_says_how_to_give_one(monkeypatch, capsys) -> None:
    monkeypatch.delenv("SICKBAY_SIMULATED_MACHINE", raising=False)
    with pytest.raises(SystemExit) as refused:
        main([])
    assert refused.value.code == 2
    assert "--machine" in capsys.readouterr().err
