"""What a repair program may do to the host it runs on: one small interface, which the simulation stands in for.

Everything else of a repair (when, in which order, once only, what is written about it) is the same program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

LINES_SHOWN = 5
CHARACTERS_SHOWN = 400


class HostError(Exception):
    """The host did not do what was asked, or does not say what was asked: one line for a person."""


class RefusedError(Exception):
    """Not in a repair container: nothing of the host was read or changed. The message says what is missing."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has a device file open. `name` is of the kernel (15 characters), or the daemon's known name.

    `pod` is the UID of its pod, where its cgroup tells; `device` the device's UUID, or the file where no device
    could be told.
    """

    pid: int
    name: str
    device: str
    pod: str = ""

    def __str__(self) -> str:
        pod = f" of pod {self.pod}" if self.pod else ""
        return f"{self.name} (process {self.pid}{pod}) has {self.device} open"


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program of the host ended. `code` is None where it did not start, or not end in time."""

    code: int | None
    output: str = ""

    @property
    def ok(self) -> bool:
        """Whether it ended with 0."""
        return self.code == 0

    def __str__(self) -> str:
        """For a message: the exit code and the last lines, bounded."""
        lines = [" ".join(line.split()) for line in self.output.splitlines()]
        text = "; ".join([line for line in lines if line][-LINES_SHOWN:])[-CHARACTERS_SHOWN:]
        shown = "".join(letter if letter.isprintable() else "?" for letter in text) or "no output"
        return f"{'did not end' if self.code is None else f'exit code {self.code}'}: {shown}"


@dataclass(frozen=True, slots=True)
class Unit:
    """A systemd unit: whether there is one, its ActiveState, and what a restart changes.

    `main_pid` is 0 and `active_since` (microseconds, monotonic) 0 where it does not run.
    """

    loaded: bool
    active: bool = False
    main_pid: int = 0
    active_since: int = 0


UnitVerb = Literal["start", "stop", "restart"]


class Host(Protocol):
    """The host. Every method may raise HostError, and the real one RefusedError; each ends within a bounded time."""

    def boot_id(self) -> str:
        """The boot that the host is in, as /proc/sys/kernel/random/boot_id says it."""

    def holders(self, devices: Sequence[str]) -> tuple[Holder, ...]:
        """Who has one of these devices (UUIDs) open. A device that cannot be told from others counts as every one."""

    def run(self, argv: Sequence[str], *, timeout: float) -> Ran:
        """Run a tool of the accelerator's vendor where the driver is installed, for at most `timeout` seconds."""

    def unit(self, name: str) -> Unit:
        """How a systemd unit of the host is."""

    def order_unit(self, verb: UnitVerb, name: str, *, timeout: float) -> Ran:
        """Start, stop or restart a systemd unit of the host, and wait for it."""

    def reboot_orderly(self) -> Ran:
        """Ask the host's service manager for a reboot. It has been asked when this returns, not more."""

    def reboot_by_sysrq(self) -> None:
        """Reboot now: write back what can be written within a bound, then have the kernel restart at once."""
