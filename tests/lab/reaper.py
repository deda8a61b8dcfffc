"""Where labs live, and how the next start removes what a killed run left.

All labs live in one fixed folder; each holds a flock on its own `lock`, which the kernel frees when the
process ends, however it ends. A lab whose lock is free is dead: its processes, mounts, cgroups and folder
are removed. Ports come in slots of 40, each held by a flock for the lab's life.
"""

import contextlib
import errno
import fcntl
import ipaddress
import os
import shutil
import signal
import socket
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.lab import cgroups
from tests.lab.mounts import mounts_below, unmount
from tests.lab.processes import LabError, start_time

# Short, and not $TMPDIR: paths of sockets below must stay under 108 characters (unix(7)), and every run has to
# find the labs of all others.
PARENT = Path("/tmp/sickbay-labs")
SLOTS_FOLDER = PARENT / ".slots"
CGROUP_PREFIX = "sickbay-lab-"
FIRST_PORT = 20_000
# The default range of ephemeral ports starts at 32768 (ip(7)): the last slot ends below it.
SLOTS = 300
PORTS_PER_SLOT = 40
KILL_DEADLINE_S = 5.0
# Set apart for tests between networks (RFC 2544), so no laptop's network uses it: a /24 for each slot.
ADDRESSES = ipaddress.IPv4Network("198.18.0.0/15")


@dataclass(frozen=True, slots=True)
class Claim:
    """A lab's own folder and ports, for as long as the two locks are held."""

    folder: Path
    first_port: int
    lock: int
    slot: int

    @property
    def cgroup_prefix(self) -> str:
        return f"{CGROUP_PREFIX}{self.folder.name}-"

    @property
    def subnet(self) -> ipaddress.IPv4Network:
        """256 addresses for this lab's Services and pods."""
        number = (self.first_port - FIRST_PORT) // PORTS_PER_SLOT
        return ipaddress.IPv4Network((int(ADDRESSES.network_address) + 256 * number, 24))

    def release(self) -> None:
        """Remove everything that carries this lab's ID, then free the locks.

        Raises LabError where something cannot be removed; the next start of any lab tries again.
        """
        try:
            _clear(self.folder)
            with _gate():
                shutil.rmtree(self.folder)
        finally:
            os.close(self.lock)
            os.close(self.slot)
            with _gate():
                _remove_unused_parent()


def claim() -> Claim:
    """Remove dead labs, then take a new folder and a slot of ports. Raises LabError."""
    with _gate():
        reap_dead()
        slot, first_port = _take_slot()
        folder = PARENT / os.urandom(3).hex()
        folder.mkdir(mode=0o700)
        lock = _try_lock(folder / "lock")
        if lock is None:
            raise LabError(f"{folder}/lock is held by somebody else")
        os.write(lock, f"{os.getpid()} {start_time(os.getpid())}\n".encode())
    return Claim(folder, first_port, lock, slot)


def labs() -> list[Path]:
    """Return the folders of all labs, alive or dead."""
    return [entry for entry in PARENT.glob("*") if entry.is_dir() and not entry.name.startswith(".")]


def reap_dead() -> list[str]:
    """Remove every lab whose process has ended; return their IDs. What cannot be removed yet is a warning."""
    removed = []
    for folder in labs():
        lock = _lock_of_dead(folder)
        if lock is None:
            continue
        try:
            _clear(folder)
            shutil.rmtree(folder)
            removed.append(folder.name)
        except LabError as error:
            # One lab that cannot be removed yet must not keep everybody from starting another.
            warnings.warn(str(error), stacklevel=2)
        finally:
            os.close(lock)
    return removed


def _lock_of_dead(folder: Path) -> int | None:
    """Take the lock of a lab whose process has ended; None where it is alive."""
    path = folder / "lock"
    end = time.monotonic() + KILL_DEADLINE_S
    while (lock := _try_lock(path)) is None and not _alive(path) and time.monotonic() < end:
        # A child caught between fork and exec holds a copy of the lock for the moments until it dies too.
        time.sleep(0.01)
    return lock


def _clear(folder: Path) -> None:
    """Kill the recorded processes of one lab, unmount, remove its cgroups; its folder stays. Raises LabError."""
    _kill_recorded(folder / "pids")
    _unmount(folder)
    left = cgroups.remove(f"{CGROUP_PREFIX}{folder.name}-*")
    if left:
        raise LabError(f"cgroups of lab {folder.name} cannot be removed: {', '.join(map(str, left))}")


@contextlib.contextmanager
def _gate() -> Iterator[None]:
    """One process at a time creates, reaps or removes: a new folder has no lock for an instant.

    The lock is on the parent folder itself, which the last lab removes: then there is a new one to lock.
    """
    while True:
        PARENT.mkdir(mode=0o700, exist_ok=True)
        gate = os.open(PARENT, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(gate, fcntl.LOCK_EX)
            locked = os.fstat(gate)
            if locked.st_uid != os.geteuid():
                raise LabError(f"{PARENT} belongs to user {locked.st_uid}, not to {os.geteuid()}")
            if not _is_parent(locked):
                continue
            yield
            return
        finally:
            os.close(gate)


def _is_parent(locked: os.stat_result) -> bool:
    try:
        return os.path.samestat(locked, PARENT.stat())
    except FileNotFoundError:
        return False


def _remove_unused_parent() -> None:
    """Remove the slots that nobody holds, and the parent folder after its last lab."""
    for path in SLOTS_FOLDER.glob("*"):
        if (slot := _try_lock(path)) is not None:
            path.unlink()
            os.close(slot)
    for folder in (SLOTS_FOLDER, PARENT):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _try_lock(path: Path) -> int | None:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _take_slot() -> tuple[int, int]:
    SLOTS_FOLDER.mkdir(exist_ok=True)
    for number in range(SLOTS):
        lock = _try_lock(SLOTS_FOLDER / str(number))
        if lock is None:
            continue
        first = FIRST_PORT + number * PORTS_PER_SLOT
        if all(_bindable(port) for port in range(first, first + PORTS_PER_SLOT)):
            return lock, first
        os.close(lock)
    raise LabError(
        f"no {PORTS_PER_SLOT} free ports in a row from {FIRST_PORT} on: all {SLOTS} slots are taken"
    )


def _bindable(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True


def _recorded(record: Path) -> list[tuple[int, int]]:
    """Return the PIDs and start times in a file; a line cut short by a kill is none."""
    lines = record.read_text().splitlines() if record.exists() else []
    words = [line.split() for line in lines]
    return [(int(two[0]), int(two[1])) for two in words if len(two) == 2 and all(map(str.isdigit, two))]


def _alive(record: Path) -> list[int]:
    return [pid for pid, started in _recorded(record) if start_time(pid) == started]


def _kill_recorded(record: Path) -> None:
    end = time.monotonic() + KILL_DEADLINE_S
    while alive := _alive(record):
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() >= end:
            raise LabError(f"processes of {record.parent} survive SIGKILL: {alive}")
        time.sleep(0.01)


def _unmount(folder: Path) -> None:
    for point in mounts_below(folder):
        unmount(point)
    # Removing a tree with something mounted in it would delete what is not ours.
    if left := mounts_below(folder):
        raise LabError(f"still mounted, so nothing is deleted: {', '.join(map(str, left))}")
