"""A simulated device plugin on a real kubelet, which behaves as NVIDIA's does: `python -m simulation.plugin`.

What NVIDIA's does was measured with release 0.20 on kubelet 1.37, and so: it registers once a life; it starts a new
life when kubelet.sock is created again, on SIGHUP, and 30 s after a start that failed, and nothing else heals a
device that is marked; it removes its socket file when a life ends, but does not notice when somebody else does;
a registration that is refused ("already connected") ends that life. An Xid marks its device, an ignored Xid does
not; when a GPU is lost, whose event then names no device, all devices are marked.

The kubelet's socket, the machine and the control file are looked at every 50 ms rather than watched by inotify: it
is one way for all three, late by what a Xid takes anyway (0.07 s, measured), at a thousandth of a core.
"""

from __future__ import annotations

import argparse
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from runtime import logs
from runtime.kubelet_messages import DEVICE_PLUGIN_VERSION, RegisterRequest
from runtime.kubelet_rpc import DEVICE_PLUGIN_FOLDER, KUBELET_SOCKET_NAME, RegistrationClient
from runtime.unix_rpc import Identity, RpcError, identity
from runtime.unix_server import BindError, UnixServer
from simulation.machine import MACHINE_VARIABLE, Machine, MachineError, load
from simulation.plugin_control import PluginControl, control_path, load_control
from simulation.plugin_service import PluginService, options

IGNORED_XIDS = frozenset({13, 31, 43, 45, 68, 109})
"""Errors of applications, which leave a device healthy (internal/rm/health.go, and measured)."""

POLL_SECONDS = 0.05
RETRY_SECONDS = 30.0
"""From a start that failed to the next (cmd/nvidia-device-plugin/main.go)."""
REGISTRATION_SECONDS = 5.0

log = logging.getLogger(__name__)


def socket_name(resource: str) -> str:
    """How NVIDIA's plugin names its socket: `nvidia-gpu.sock` for nvidia.com/gpu."""
    return f"nvidia-{resource.rpartition('/')[2]}.sock"


class SimulatedPlugin:
    """The plugin of one resource. Not thread-safe: `start`, `poll`, `restart` and `stop` are for one thread."""

    def __init__(
        self,
        *,
        machine: Path,
        folder: Path = DEVICE_PLUGIN_FOLDER,
        resource: str = "nvidia.com/gpu",
        control: Path | None = None,
        retry: float = RETRY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._machine_path = machine
        self._control_path = control or control_path(machine)
        self._kubelet_socket = folder / KUBELET_SOCKET_NAME
        self._resource = resource
        self._retry = retry
        self._clock = clock
        self.socket = folder / socket_name(resource)
        self._seen: dict[Path, Identity | None] = {}
        self._machine: Machine | None = None
        self._control = PluginControl()
        self._xids_heard = 0
        self._service: PluginService | None = None
        self._server: UnixServer | None = None
        self._retry_at: float | None = None

    @property
    def service(self) -> PluginService | None:
        """The current life; None between a start that failed and the next."""
        return self._service

    def start(self) -> None:
        """Begin a life. Raises MachineError where there is no machine, or its driver does not work.

        A kubelet that cannot be reached or refuses is no error: that is tried again.
        """
        self._retry_at = None
        self._changed(self._kubelet_socket)
        machine = self._machine = self._load_machine()
        self._control = self._load_control()
        self._xids_heard = len(self._control.xids)
        if not machine.devices:
            log.info("no devices found; waiting")
            return
        service = PluginService(
            self._resource, [device.uuid for device in machine.devices], control=lambda: self._control
        )
        if any(device.lost for device in machine.devices):
            service.mark_unhealthy(service.devices)
        server = UnixServer(self.socket, service.handlers())
        self._service, self._server = service, server
        try:
            server.start()
            log.info("serving %s on %s", self._resource, self.socket)
            self._register()
        except (BindError, RpcError) as error:
            log.error("cannot register with the kubelet: %s; again in %g s", error, self._retry)
            self.stop()
            self._retry_at = self._clock() + self._retry
            return
        log.info("registered %s with the kubelet", self._resource)

    def stop(self) -> None:
        """End this life: the kubelet loses its connection, and the socket file goes, whoever's it is by now."""
        if self._service and self._server:
            self._service.stop()
            self._server.stop()
        self._service = self._server = None

    def restart(self) -> None:
        """End this life and begin the next. Raises MachineError."""
        self.stop()
        self.start()

    def poll(self) -> None:
        """Take what has happened since the last call. Raises MachineError when a restart finds no machine."""
        if self._changed(self._kubelet_socket) and self._seen[self._kubelet_socket]:
            log.info("%s was created: restarting", self._kubelet_socket)
            self.restart()
        elif self._retry_at is not None and self._clock() >= self._retry_at:
            self.restart()
        elif self._service:
            self._look_at_devices(self._service)

    def _register(self) -> None:
        request = RegisterRequest(
            version=DEVICE_PLUGIN_VERSION,
            endpoint=self.socket.name,
            resource_name=self._resource,
            options=options(),
        )
        client = RegistrationClient(self._kubelet_socket)
        try:
            client.register(request, timeout=REGISTRATION_SECONDS)
        finally:
            client.close()

    def _look_at_devices(self, service: PluginService) -> None:
        try:
            if self._changed(self._machine_path):
                self._take_machine(service, load(self._machine_path))
            if self._changed(self._control_path):
                self._control = load_control(self._control_path)
                log.info("control file taken: %s", self._control)
        except MachineError as error:
            log.error("%s", error)
            return
        for xid in self._control.xids[self._xids_heard :]:
            if xid.code not in IGNORED_XIDS and xid.device in service.devices:
                service.mark_unhealthy([xid.device])
        self._xids_heard = len(self._control.xids)

    def _take_machine(self, service: PluginService, machine: Machine) -> None:
        lost_before = (
            {device.uuid for device in self._machine.devices if device.lost} if self._machine else set()
        )
        self._machine = machine
        lost = {device.uuid for device in machine.devices if device.lost}
        if lost - lost_before or machine.library_error:
            service.mark_unhealthy(service.devices)

    def _load_machine(self) -> Machine:
        self._changed(self._machine_path)
        machine = load(self._machine_path)
        if machine.library_error:
            raise MachineError(f"{self._machine_path}: NVML does not work: error {machine.library_error}")
        return machine

    def _load_control(self) -> PluginControl:
        self._changed(self._control_path)
        return load_control(self._control_path)

    def _changed(self, path: Path) -> bool:
        """Whether there is another file at the path than when this was last asked."""
        before, now = self._seen.get(path), identity(path)
        self._seen[path] = now
        return now != before


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT. Exit codes: 0 stopped, 1 no usable machine."""
    plugin = _plugin(_parser().parse_args(arguments))
    logs.configure(format="text")
    signals = _caught_signals()
    try:
        plugin.start()
        while True:
            if not select.select([signals], [], [], POLL_SECONDS)[0]:
                plugin.poll()
            elif set(signals.recv(64)) - {signal.SIGHUP}:
                return 0
            else:
                log.info("SIGHUP: restarting")
                plugin.restart()
    except MachineError as error:
        log.error("%s", error)
        return 1
    finally:
        plugin.stop()


def _caught_signals() -> socket.socket:
    """A socket that yields the numbers of signals as bytes.

    Not `sigtimedwait`: after a SIGSTOP and SIGCONT it may return what is no signal (CPython 3.11, EINTR when the
    time is up).
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach())
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    return reader


def _plugin(given: argparse.Namespace) -> SimulatedPlugin:
    return SimulatedPlugin(
        machine=given.machine,
        folder=given.socket_dir,
        resource=given.resource,
        control=given.control,
        retry=given.retry,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m simulation.plugin", description="A simulated device plugin for a real kubelet."
    )
    machine = os.environ.get(MACHINE_VARIABLE)
    parser.add_argument(
        "--machine",
        type=Path,
        metavar="PATH",
        default=machine,
        required=not machine,
        help=f"the machine's file (default: ${MACHINE_VARIABLE})",
    )
    parser.add_argument(
        "--control", type=Path, metavar="PATH", help="default: the machine's file with .plugin"
    )
    parser.add_argument("--socket-dir", type=Path, metavar="FOLDER", default=DEVICE_PLUGIN_FOLDER)
    parser.add_argument("--resource", metavar="NAME", default="nvidia.com/gpu")
    parser.add_argument(
        "--retry",
        type=float,
        metavar="SECONDS",
        default=RETRY_SECONDS,
        help="from a start that failed to the next (default: %(default)g)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
