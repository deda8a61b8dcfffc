"""The device plugin probe: alive, hung, dead, without its socket file, or no plugin at all."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.sources.plugin import Plugin, PluginProbe, PluginState, Timing, resource_of
from health.vocabulary import SourceState
from runtime.kubelet_messages import DevicePluginOptions
from runtime.kubelet_rpc import GET_OPTIONS, KUBELET_SOCKET_NAME
from runtime.unix_server import RefusedError, UnixServer, unary
from simulation.machine import h100_machine, save
from tests.kubelet import FakeKubelet
from tests.lab.processes import wait_until

NVIDIA = "nvidia-gpu.sock"
FAST = Timing(interval=0.05, deadline=0.3, forget=0.2)
SERVING, SOCKET_LOST, HUNG, DEAD, UNKNOWN = PluginState


class Watched:
    """A probe, and all that it has said."""

    def __init__(self, folder: Path, timing: Timing = FAST) -> None:
        self.seen: list[tuple[Plugin, ...]] = []
        self.states: list[tuple[SourceState, str]] = []
        self.probe = PluginProbe(
            on_plugins=self.seen.append,
            on_state=lambda state, message: self.states.append((state, message)),
            folder=folder,
            timing=timing,
        )
        self.probe.start()

    def last(self, name: str) -> Plugin | None:
        return next((one for one in (self.seen[-1] if self.seen else ()) if one.socket == name), None)

    def await_state(self, state: PluginState, name: str = NVIDIA) -> Plugin:
        def found() -> Plugin | None:
            plugin = self.last(name)
            return plugin if plugin and plugin.state is state else None

        return wait_until(found, 5, f"{name} to be {state} in {self.seen[-2:]}", every=0.005)


def plugin_server(path: Path) -> UnixServer:
    server = UnixServer(path, [unary(GET_OPTIONS, lambda _request, _connection: DevicePluginOptions())])
    server.start()
    return server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "dp"
    folder.mkdir()
    return folder


@pytest.fixture
def watched(folder: Path) -> Iterator[Watched]:
    watched = Watched(folder)
    yield watched
    assert watched.probe.close(5)


def test_a_node_without_a_plugin_is_unknown_not_dead(watched: Watched) -> None:
    plugin = watched.await_state(UNKNOWN)
    assert (plugin.resource, plugin.present) == ("nvidia.com/gpu", False)
    assert plugin.message == "no socket file, and none seen before"
    assert watched.states == [(SourceState.LIVE, "")]


def test_a_plugin_that_serves_and_then_stops_is_dead(folder: Path, watched: Watched) -> None:
    server = plugin_server(folder / NVIDIA)
    assert watched.await_state(SERVING) == Plugin("nvidia.com/gpu", NVIDIA, SERVING, present=True)
    server.stop()
    assert watched.await_state(DEAD).message == "gone, and its socket file with it"
    server = plugin_server(folder / NVIDIA)
    watched.await_state(SERVING)
    server.stop()


def test_a_plugin_that_was_killed_leaves_its_socket_file_and_is_dead(folder: Path, watched: Watched) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / NVIDIA))
    plugin = watched.await_state(DEAD)
    assert plugin.present
    assert plugin.message == "nobody listens at its socket"


def test_a_plugin_without_its_socket_file_is_told_from_a_dead_one(folder: Path, watched: Watched) -> None:
    server = plugin_server(folder / NVIDIA)
    watched.await_state(SERVING)
    (folder / NVIDIA).unlink()
    assert not watched.await_state(SOCKET_LOST).present
    server.stop()
    watched.await_state(DEAD)


def test_what_accepts_and_says_nothing_hangs(folder: Path, watched: Watched) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(folder / NVIDIA))
        silent.listen(8)
        assert watched.await_state(HUNG).message == "no answer to GetDevicePluginOptions in 0.3 s"


def test_a_hung_plugin_whose_queue_is_full_still_hangs(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(folder / NVIDIA))
        silent.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(str(folder / NVIDIA))
        watched = Watched(folder)
        assert "too many wait" in watched.await_state(HUNG).message
        assert watched.probe.close(5)
        for one in waiting:
            one.close()


def test_a_hung_plugin_keeps_one_connection(folder: Path, watched: Watched) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        # Listens before it is seen: one that does not yet is asked by another connection whether anybody is there.
        elsewhere = folder.parent / "elsewhere"
        silent.bind(str(elsewhere))
        silent.listen(8)
        elsewhere.rename(folder / NVIDIA)
        silent.settimeout(5)
        first, _ = silent.accept()
        watched.await_state(HUNG)
        silent.settimeout(1)
        with pytest.raises(TimeoutError):
            silent.accept()
        first.close()


def test_who_listens_and_does_not_serve_is_dead(folder: Path, watched: Watched) -> None:
    with socket.socket(socket.AF_UNIX) as rude:
        rude.bind(str(folder / NVIDIA))
        rude.listen(8)
        rude.settimeout(0.05)
        stop = threading.Event()

        def hang_up() -> None:
            while not stop.is_set():
                try:
                    rude.accept()[0].close()
                except TimeoutError:
                    continue

        thread = threading.Thread(target=hang_up)
        thread.start()
        assert "does not serve" in watched.await_state(DEAD).message
        stop.set()
        thread.join()


def test_a_stopped_process_hangs_and_does_not_hold_up_the_others(tmp_path: Path, folder: Path) -> None:
    kubelet = FakeKubelet(folder)
    save(tmp_path / "machine.json", h100_machine("n1"))
    command = [sys.executable, "-m", "simulation.plugin", "--machine", tmp_path / "machine.json"]
    program = subprocess.Popen([*command, "--socket-dir", folder], stderr=subprocess.DEVNULL)
    other = plugin_server(folder / "amd.com_gpu")
    watched = Watched(folder, Timing(interval=0.05, deadline=2))
    try:
        watched.await_state(SERVING)
        watched.await_state(SERVING, "amd.com_gpu")
        os.kill(program.pid, signal.SIGSTOP)
        begun = time.monotonic()
        threading.Event().wait(0.2)
        other.stop()
        watched.await_state(DEAD, "amd.com_gpu")
        assert time.monotonic() - begun < 1
        watched.await_state(HUNG)
        assert time.monotonic() - begun < 3
        os.kill(program.pid, signal.SIGCONT)
        watched.await_state(SERVING)
        os.kill(program.pid, signal.SIGKILL)
        assert watched.await_state(DEAD).present
    finally:
        program.kill()
        program.wait()
        assert watched.probe.close(5)
        kubelet.close()


def test_other_plugins_are_found_and_named_by_their_sockets(folder: Path, watched: Watched) -> None:
    servers = [plugin_server(folder / name) for name in ("amd.com_gpu", "nvidia-mig-1g.5gb.sock", "odd.sock")]
    plain = plugin_server(folder / KUBELET_SOCKET_NAME)
    (folder / "kubelet_internal_checkpoint").write_text("{}")
    watched.await_state(SERVING, "odd.sock")
    for name in ("amd.com_gpu", "nvidia-mig-1g.5gb.sock"):
        watched.await_state(SERVING, name)
    resources = {plugin.socket: plugin.resource for plugin in watched.seen[-1]}
    assert resources == {
        "amd.com_gpu": "amd.com/gpu",
        NVIDIA: "nvidia.com/gpu",
        "nvidia-mig-1g.5gb.sock": "nvidia.com/mig-1g.5gb",
        "odd.sock": "",
    }
    for server in (*servers, plain):
        server.stop()
    wait_until(lambda: [one.socket for one in watched.seen[-1]] == [NVIDIA], 5, "the others to be forgotten")


def test_a_socket_of_something_else_is_not_shown_unless_it_was_looked_for(
    folder: Path, watched: Watched
) -> None:
    other, odd = UnixServer(folder / NVIDIA, []), UnixServer(folder / "odd.sock", [])
    other.start()
    odd.start()
    wait_until(
        lambda: watched.last(NVIDIA) and "not a device plugin" in watched.last(NVIDIA).message, 5, "it"
    )
    assert watched.last("odd.sock") is None
    odd.stop()
    server = plugin_server(folder / "odd.sock")
    watched.await_state(SERVING, "odd.sock")
    for one in (server, other):
        one.stop()


def test_a_plugin_that_answers_with_an_error_is_unknown(folder: Path, watched: Watched) -> None:
    def refuse(_request, _connection) -> DevicePluginOptions:
        raise RefusedError("INTERNAL", "out of order")

    server = UnixServer(folder / NVIDIA, [unary(GET_OPTIONS, refuse)])
    server.start()
    wait_until(
        lambda: watched.last(NVIDIA) and "out of order" in watched.last(NVIDIA).message, 5, "the error"
    )
    assert watched.last(NVIDIA).state is UNKNOWN
    server.stop()


def test_another_instance_at_the_same_path_is_asked_itself(folder: Path, watched: Watched) -> None:
    first = plugin_server(folder / NVIDIA)
    watched.await_state(SERVING)
    (folder / NVIDIA).unlink()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(folder / NVIDIA))
        silent.listen(8)
        watched.await_state(HUNG)
    first.stop()


def test_who_wants_to_know_now_is_told_now(folder: Path) -> None:
    watched = Watched(folder, Timing(interval=60))
    watched.await_state(UNKNOWN)
    server = plugin_server(folder / NVIDIA)
    watched.probe.probe_now()
    watched.await_state(SERVING)
    assert watched.probe.close(5)
    server.stop()


def test_a_folder_that_is_not_there_is_unsupported_until_it_is(tmp_path: Path) -> None:
    watched = Watched(tmp_path / "later")
    wait_until(lambda: watched.states, 5, "a state")
    assert watched.states[-1] == (SourceState.UNSUPPORTED, f"no folder {tmp_path / 'later'}")
    (tmp_path / "later").mkdir()
    wait_until(lambda: watched.states[-1][0] is SourceState.LIVE, 5, "the folder to be seen")
    assert watched.probe.close(5)


def test_a_folder_that_is_none_is_failed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    watched = Watched(tmp_path / "file")
    wait_until(lambda: watched.states, 5, "a state")
    assert watched.states[-1] == (SourceState.FAILED, f"{tmp_path / 'file'}: Not a directory")
    assert watched.probe.close(5)


@pytest.mark.parametrize(
    ("name", "resource"),
    [
        (NVIDIA, "nvidia.com/gpu"),
        ("nvidia-gpu.shared.sock", "nvidia.com/gpu.shared"),
        ("amd.com_gpu", "amd.com/gpu"),
        ("devices.kubevirt.io_kvm", "devices.kubevirt.io/kvm"),
        ("rdma_shared.sock", ""),
        ("plugin.sock", ""),
        ("amd.com_", ""),
    ],
)
def test_a_sockets_name_may_tell_the_resource(name: str, resource: str) -> None:
    assert resource_of(name) == resource
