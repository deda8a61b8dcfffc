"""The real host, as the container of a repair Job reaches it: by its root, its /proc and its service manager.

Vendor tools run with the root of the driver (chroot): the host's, or that of GPU Operator's driver container, which
is at /run/nvidia/driver. The service manager is asked from within the host's mount namespace, for `systemctl`
does nothing in a chroot.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from remediation.repair.bounded import run_bounded
from remediation.repair.container import refusal
from remediation.repair.holders import holders_in, minor_numbers, named_devices
from remediation.repair.host import Holder, HostError, Ran, RefusedError, Unit, UnitVerb

DRIVER_CONTAINER_ROOT = "run/nvidia/driver"
"""Below the host's root: where GPU Operator's driver container mounts its own root."""

ORDERLY_SECONDS = 60.0
SYNC_SECONDS = 10.0
_LOOK_SECONDS = 10.0
_UNIT_FIELDS = "LoadState,ActiveState,MainPID,ActiveEnterTimestampMonotonic"
_SYSRQ_BOOT_BIT = 128
"""Documentation/admin-guide/sysrq.rst: 0x80 allows reboot; 1 allows everything."""


class RealHost:
    """Refuses (RefusedError) whatever it is asked outside of a repair container, each time before anything else."""

    def __init__(self, root: Path, *, driver_root: str = "") -> None:
        """`root` is where the host's root is mounted, `driver_root` a path of the host; empty: found by itself."""
        self._root = root
        self._driver_root = driver_root
        self._admitted = False

    def boot_id(self) -> str:
        self._demand_container()
        path = self._root / "proc/sys/kernel/random/boot_id"
        try:
            return path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise HostError(f"{path}: {error}") from error

    def holders(self, devices: Sequence[str]) -> tuple[Holder, ...]:
        self._demand_container()
        # The driver answers these reads, and may be hung: so another process asks it.
        known: dict[str, int] = {}
        if files := sorted((self._root / "proc/driver/nvidia/gpus").glob("*/information")):
            known = minor_numbers(run_bounded(["cat", *map(str, files)], timeout=_LOOK_SECONDS).output)
        try:
            return holders_in(
                self._root / "proc", named_devices({device: known.get(device) for device in devices})
            )
        except OSError as error:
            raise HostError(f"{error.filename}: {error.strerror}") from error

    def run(self, argv: Sequence[str], *, timeout: float) -> Ran:
        self._demand_container()
        return run_bounded(in_driver_root(self._root, self._driver_root, argv), timeout=timeout)

    def unit(self, name: str) -> Unit:
        self._demand_container()
        argv = ["systemctl", "show", f"--property={_UNIT_FIELDS}", "--", name]
        ran = run_bounded(in_host(self._root, argv), timeout=_LOOK_SECONDS)
        if not ran.ok:
            raise HostError(f"systemctl show {name}: {ran}")
        return read_unit(ran.output)

    def order_unit(self, verb: UnitVerb, name: str, *, timeout: float) -> Ran:
        self._demand_container()
        return run_bounded(in_host(self._root, ["systemctl", verb, "--", name]), timeout=timeout)

    def reboot_orderly(self) -> Ran:
        self._demand_container()
        leave_the_pod(self._root)
        return run_bounded(in_host(self._root, ["systemctl", "reboot"]), timeout=ORDERLY_SECONDS)

    def reboot_by_sysrq(self) -> None:
        self._demand_container()
        run_bounded(["sync"], timeout=SYNC_SECONDS)
        restart_at_once(self._root)

    def _demand_container(self) -> None:
        """What was true stays true in this process's life, also while a shutdown takes the host apart."""
        if self._admitted:
            return
        if why := refusal(self._root, environ=os.environ):
            raise RefusedError(why)
        self._admitted = True


def in_host(root: Path, argv: Sequence[str]) -> list[str]:
    """`argv` in the host's mount namespace, that of its process 1."""
    return ["nsenter", f"--mount={root}/proc/1/ns/mnt", "--", *argv]


def in_driver_root(root: Path, driver_root: str, argv: Sequence[str]) -> list[str]:
    """`argv` with the driver's root: `driver_root`, else GPU Operator's driver container where it has the tool."""
    below = driver_root.strip("/")
    if not driver_root and (root / DRIVER_CONTAINER_ROOT / "usr/bin" / Path(argv[0]).name).exists():
        below = DRIVER_CONTAINER_ROOT
    return ["chroot", str(root / below), *argv]


def read_unit(shown: str) -> Unit:
    """What `systemctl show` says. A field that is missing or no number counts as not there."""
    fields = dict(line.partition("=")[::2] for line in shown.splitlines())
    return Unit(
        loaded=fields.get("LoadState") == "loaded",
        active=fields.get("ActiveState") == "active",
        main_pid=_number(fields.get("MainPID", "")),
        active_since=_number(fields.get("ActiveEnterTimestampMonotonic", "")),
    )


def leave_the_pod(root: Path) -> None:
    """Move this process out of its pod's cgroup into the host's uppermost one, where that can be done.

    An orderly shutdown kills what is in a container's scope after 90 s, sooner than we give it up.
    """
    for cgroup in ("sys/fs/cgroup", "sys/fs/cgroup/systemd"):
        with contextlib.suppress(OSError):
            _write(root / cgroup / "cgroup.procs", str(os.getpid()))
            return


def restart_at_once(root: Path) -> None:
    """Sysrq's `b`: no sync, no unmount, no process is asked (Documentation/admin-guide/sysrq.rst). Raises HostError."""
    switch = root / "proc/sys/kernel/sysrq"
    # The trigger file is said to work whatever the switch says; so a switch that cannot be set is no reason to stop.
    with contextlib.suppress(OSError):
        allowed = _number(switch.read_text(encoding="ascii"))
        if allowed != 1 and not allowed & _SYSRQ_BOOT_BIT:
            _write(switch, str(allowed | _SYSRQ_BOOT_BIT))
    trigger = root / "proc/sysrq-trigger"
    try:
        _write(trigger, "b")
    except OSError as error:
        raise HostError(f"{trigger}: {error.strerror}") from error


def _write(path: Path, text: str) -> None:
    """One write to a file that is there; none is made."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode("ascii"))
    finally:
        os.close(descriptor)


def _number(text: str) -> int:
    word = text.strip()
    return int(word) if word.isascii() and word.isdecimal() else 0
