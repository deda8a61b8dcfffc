"""The repair programs on a simulated host: `python -m simulation.repair reset|reboot|restart-service ...`.

The programs, their flags, receipts and exit codes are those of `sickbay repair`; only what happens to the host is
simulated. A reset changes the machine's file. A reboot and a restart are requests: a file appears, and whoever
plays the host (the lab, the demo) does what it says. A reboot is obeyed by another boot ID in the boot ID's file,
a restart by removing its request.

    {"action": "reboot", "by": "systemctl", "bootID": "..."}        by is "sysrq" where the first did not help
    {"action": "restart", "unit": "kubelet.service"}

A device is held by the process that the machine's file names, and by every process that has its file
`DEVICES/nvidiaMINOR` open.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from remediation.repair.command import add_acting, outliving_sigterm, perform
from remediation.repair.holders import PERSISTENCED, holders_in
from remediation.repair.host import Holder, HostError, Ran, Unit, UnitVerb
from remediation.repair.reboot import Pause
from remediation.repair.receipts import ReceiptFolder
from remediation.repair.reset import PERSISTENCE_UNIT
from runtime.clock import Clock, SystemClock
from simulation.machine import MachineError, load, update
from simulation.nvidia_smi import nvidia_smi


class SimulatedHost:
    """A host that consists of files. `devices` is the folder of the device files that processes may hold open."""

    def __init__(
        self,
        *,
        machine: Path,
        boot_id_path: Path,
        boot_request: Path,
        service_request: Path,
        devices: Path,
        proc: Path = Path("/proc"),
        clock: Clock,
        pause: Pause,
    ) -> None:
        self._machine = machine
        self._boot_id_path = boot_id_path
        self._boot_request = boot_request
        self._service_request = service_request
        self._devices = devices
        self._proc = proc
        self._clock = clock
        self._pause = pause
        self._restarts = 0
        self._persistenced: frozenset[str] = frozenset()

    def boot_id(self) -> str:
        try:
            return self._boot_id_path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise HostError(f"{self._boot_id_path}: {error}") from error

    def holders(self, devices: Sequence[str]) -> tuple[Holder, ...]:
        try:
            machine = load(self._machine)
        except MachineError as error:
            raise HostError(str(error)) from error
        wanted = [device for device in machine.devices if device.uuid in devices]
        named = [
            Holder(pid=0, name=device.held_by, device=device.uuid) for device in wanted if device.held_by
        ]
        files: dict[tuple[int, int], str] = {}
        for device in wanted:
            path = self._devices / f"nvidia{device.minor_number}"
            if path.exists():
                files[_identity(path)] = device.uuid
        # In whatever mount namespace a process has opened it, it is the same file.
        opened = holders_in(self._proc, lambda file, _link: files.get(_identity(file), "")) if files else ()
        return (*named, *opened)

    def run(self, argv: Sequence[str], *, timeout: float) -> Ran:
        return nvidia_smi(self._machine, argv)

    def unit(self, name: str) -> Unit:
        return Unit(loaded=True, active=True, main_pid=1000 + self._restarts, active_since=self._restarts)

    def order_unit(self, verb: UnitVerb, name: str, *, timeout: float) -> Ran:
        if name == PERSISTENCE_UNIT and verb != "restart":
            return self._persistence_daemon(holds=verb == "start")
        _write(self._service_request, {"action": verb, "unit": name})
        deadline = self._clock.monotonic() + timeout
        while self._service_request.exists():
            if self._clock.monotonic() >= deadline:
                return Ran(None, f"nobody obeyed {self._service_request}")
            self._pause(0.05)
        self._restarts += 1
        return Ran(0)

    def reboot_orderly(self) -> Ran:
        self._request_boot("systemctl")
        return Ran(0)

    def reboot_by_sysrq(self) -> None:
        self._request_boot("sysrq")

    def _request_boot(self, by: str) -> None:
        _write(self._boot_request, {"action": "reboot", "by": by, "bootID": self.boot_id()})

    def _persistence_daemon(self, *, holds: bool) -> Ran:
        try:
            if not holds:
                held = {
                    device.uuid for device in load(self._machine).devices if device.held_by == PERSISTENCED
                }
                self._persistenced |= held
            holder = PERSISTENCED if holds else ""
            update(
                self._machine,
                lambda machine: msgspec.structs.replace(
                    machine,
                    devices=tuple(
                        msgspec.structs.replace(device, held_by=holder)
                        if device.uuid in self._persistenced
                        else device
                        for device in machine.devices
                    ),
                ),
            )
        except MachineError as error:
            return Ran(1, str(error))
        return Ran(0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes are those of `sickbay repair`."""
    parser = argparse.ArgumentParser(
        prog="python -m simulation.repair", description="Repairs of a simulated host."
    )
    add_acting(
        parser.add_subparsers(dest="repair", required=True, metavar="PROGRAM"), host_flags=_machine_flags
    )
    flags = parser.parse_args(arguments)
    clock, pause = SystemClock(), threading.Event().wait
    host = SimulatedHost(
        machine=flags.machine,
        boot_id_path=flags.boot_id_path,
        boot_request=flags.boot_request,
        service_request=flags.service_request,
        devices=flags.devices_folder or flags.machine.with_name(f"{flags.machine.name}.devices"),
        proc=flags.proc,
        clock=clock,
        pause=pause,
    )
    with outliving_sigterm():
        outcome = perform(flags, host, ReceiptFolder(flags.receipts), clock=clock, pause=pause)
    sys.stderr.write(f"simulated {flags.repair}: {outcome.message}\n")
    return int(outcome.code)


def _machine_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--machine", required=True, type=Path, metavar="FILE", help="the simulated machine's")
    parser.add_argument(
        "--boot-id-path", required=True, type=Path, metavar="FILE", help="holds the host's boot ID"
    )
    parser.add_argument(
        "--boot-request", required=True, type=Path, metavar="FILE", help="appears for a reboot"
    )
    parser.add_argument(
        "--service-request",
        required=True,
        type=Path,
        metavar="FILE",
        help="appears for a restart, until it is done",
    )
    parser.add_argument("--receipts", required=True, type=Path, metavar="FOLDER", help="the host's receipts")
    parser.add_argument(
        "--devices-folder",
        type=Path,
        metavar="FOLDER",
        help="device files nvidia0, ...; default: MACHINE.devices",
    )
    parser.add_argument(
        "--proc", type=Path, default=Path("/proc"), metavar="PATH", help="where holders are looked for"
    )


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _write(path: Path, request: Mapping[str, str]) -> None:
    """Whoever waits for the file sees all of it, or nothing."""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(request))
        Path(temporary).replace(path)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
