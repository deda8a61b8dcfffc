"""Which records of the kernel log are taken: the driver's own lines, each once, and counts of all the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from exporter.sources.kmsg import Record
from health.kernel_line import KernelLine, SxidLine, XidLine, parse
from runtime.clock import Clock

KERNEL_FACILITY = 0
"""Userspace cannot write it: the kernel turns it into facility 1 (kernel/printk/printk.c, devkmsg_write)."""

OUTCOMES = ("other", "xid", "sxid", "address", "driver", "known", "spoofed", "malformed")
"""What became of a line: nothing of the driver's, an Xid, an NVSwitch error, the driver naming the GPU at an
address, another line of the driver, one that was taken before or is not wanted, one that userspace wrote, one
that cannot be read."""

_EXCERPT = 512


@dataclass(frozen=True, slots=True)
class KernelMessage:
    """A line of the driver: its number in the log, when it was written, and when (monotonic) it was read."""

    line: KernelLine
    sequence: int
    time: datetime
    received: float
    excerpt: str
    drill: bool = False


class Intake:
    """Judges records and hands on those of the driver. Used by one thread; `counts` may be read by any."""

    def __init__(
        self,
        *,
        on_message: Callable[[KernelMessage], None],
        clock: Clock,
        after: int = -1,
        since: int = 0,
        drill: bool = False,
    ) -> None:
        self._on_message = on_message
        self._clock = clock
        self._after = after
        self._since = since
        self._drill = drill
        self._drill_until = float("-inf")
        self._booted = clock.wall()
        self.counts = dict.fromkeys(OUTCOMES, 0)

    @property
    def after(self) -> int:
        """The number of the newest line of the driver that was taken."""
        return self._after

    def believe_userspace(self, seconds: float) -> None:
        """Take what userspace wrote as well, marked as a drill, from now on for so long."""
        self._drill_until = self._clock.monotonic() + seconds

    def opened(self) -> None:
        """The log was opened: settle when its time, which counts from boot, began.

        Time that the machine was suspended is in neither of them (Documentation/ABI/testing/dev-kmsg).
        """
        self._booted = self._clock.wall() - timedelta(seconds=self._clock.monotonic())

    def take(self, record: Record | None) -> None:
        """Judge one record that speaks of the driver; None is one that cannot be read."""
        if record is None:
            self.counts["malformed"] += 1
            return
        line = parse(record.message)
        outcome = self._outcome(record, line)
        self.counts[outcome] += 1
        if line is None or outcome in ("known", "spoofed"):
            return
        self._after = record.sequence
        now = self._clock.wall()
        self._on_message(
            KernelMessage(
                line=line,
                sequence=record.sequence,
                time=now if record.microseconds is None else min(now, self._written(record.microseconds)),
                received=self._clock.monotonic(),
                excerpt=record.message[:_EXCERPT],
                drill=record.facility != KERNEL_FACILITY,
            )
        )

    def _outcome(self, record: Record, line: KernelLine | None) -> str:
        if line is None:
            return "malformed" if record.message.startswith("NVRM: Xid (") else _of_driver(record.message)
        if record.facility != KERNEL_FACILITY and not self._drilling():
            return "spoofed"
        if record.sequence <= self._after or record.sequence < self._since:
            return "known"
        if isinstance(line, XidLine):
            return "xid"
        return "sxid" if isinstance(line, SxidLine) else "address"

    def _drilling(self) -> bool:
        return self._drill or self._clock.monotonic() < self._drill_until

    def _written(self, microseconds: int) -> datetime:
        try:
            return self._booted + timedelta(microseconds=microseconds)
        except OverflowError:
            return self._clock.wall()


def _of_driver(message: str) -> str:
    return "driver" if message.startswith(("NVRM:", "nvidia-nvswitch")) else "other"
