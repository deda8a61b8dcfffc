"""The kernel log source: /dev/kmsg, or a file or FIFO in its place, followed on a thread of its own.

Opening the log reads all that the kernel still has of this boot; what was taken before is told by its number.
A line that does not concern the driver costs one read and two searches in its bytes, so that a flood is cheap.
The kernel wakes who waits for its log on the next timer tick, up to 4 ms at 250 Hz (kernel/printk/printk.c,
wake_up_klogd: a lazy irq_work); the record itself is there at once.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import stat
import threading
from collections.abc import Callable
from pathlib import Path

from exporter.sources.kernel_intake import KERNEL_FACILITY, Intake, KernelMessage
from exporter.sources.kmsg import Lines, Record, bare_message, parse_record, sequence_of
from health.vocabulary import SourceState
from runtime.clock import Clock, SystemClock

RECORD_BYTES = 16 * 2**10
"""The kernel's longest record has 8 KiB, and a read with a shorter buffer is refused (EINVAL)."""

FILE_POLL_SECONDS = 0.01
"""How often the end of a file is looked at; a device, or a FIFO with a writer, wakes us by itself."""

_CHUNK_BYTES = 64 * 2**10
_REFUSALS = 16
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_HINTS = {
    errno.EPERM: "; it needs CAP_SYSLOG where kernel.dmesg_restrict is 1, and the device in the container",
    errno.EACCES: "; it needs root",
}

log = logging.getLogger(__name__)


class KernelLog:
    """Follows the kernel log. Callbacks run on its thread; while one blocks, the kernel keeps the lines.

    `on_state` gets each change: Live when the log is open, Failed with the reason while it cannot be had, which
    is tried again and again. `on_caught_up` is called when all that was there has been read, once an opening.
    Lines up to number `after` were taken before; those below `since` are not wanted.
    """

    def __init__(
        self,
        path: Path,
        *,
        on_message: Callable[[KernelMessage], None],
        on_state: Callable[[SourceState, str], None],
        on_caught_up: Callable[[], None],
        after: int = -1,
        since: int = 0,
        drill: bool = False,
        clock: Clock | None = None,
        read: Callable[[int, int], bytes] = os.read,
    ) -> None:
        self._path = path
        self._read = read
        self._on_state = on_state
        self._on_caught_up = on_caught_up
        self._intake = Intake(
            on_message=on_message, clock=clock or SystemClock(), after=after, since=since, drill=drill
        )
        self._said: tuple[SourceState, str] | None = None
        self._caught_up = False
        self._file: os.stat_result | None = None
        self._first = self._number = -1
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="kernel-log", daemon=True)
        self.lost = 0
        """Records that the kernel overwrote before they were read."""

    @property
    def counts(self) -> dict[str, int]:
        """Lines read so far, by `kernel_intake.OUTCOMES`."""
        return dict(self._intake.counts)

    def start(self) -> None:
        """Begin. Returns at once."""
        self._thread.start()

    def stop(self, timeout: float = 1.0) -> bool:
        """End the thread. False if a callback holds it longer than `timeout` seconds."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def believe_userspace(self, seconds: float) -> None:
        """Drill: take lines that userspace wrote as well, from now on for so long; 0 ends it."""
        self._intake.believe_userspace(seconds)

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while not self._stopping:
            try:
                self._open_and_follow()
                pause = _FIRST_PAUSE
                continue
            except OSError as error:
                hint = _HINTS.get(error.errno or 0, "")
                self._say(SourceState.FAILED, f"{self._path}: {error.strerror}{hint}")
            except Exception as error:
                log.exception("following the kernel log failed")
                self._say(SourceState.FAILED, f"{self._path}: {type(error).__name__}: {error}")
            select.select([self._wake], [], [], pause)
            pause = min(_LONGEST_PAUSE, 2 * pause)

    def _say(self, state: SourceState, message: str) -> None:
        if (state, message) != self._said:
            self._said = (state, message)
            self._on_state(state, message)

    def _open_and_follow(self) -> None:
        # A FIFO that nobody writes to would block a plain open.
        descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = os.fstat(descriptor).st_mode
            self._intake.opened()
            self._caught_up = False
            if stat.S_ISCHR(mode):
                self._say(SourceState.LIVE, "")
                self._follow_device(descriptor)
            elif stat.S_ISREG(mode) or stat.S_ISFIFO(mode):
                self._say(SourceState.LIVE, "")
                self._follow_lines(descriptor, replayed=stat.S_ISREG(mode))
            else:
                raise OSError(errno.EINVAL, "neither a device nor a file nor a FIFO")
        finally:
            os.close(descriptor)

    def _follow_device(self, descriptor: int) -> None:
        """One read gets one record; EPIPE says that the next ones were overwritten."""
        counts, read = self._intake.counts, self._read
        previous = b""
        overwritten = False
        refusals = 0
        while not self._stopping:
            try:
                raw = read(descriptor, RECORD_BYTES)
            except BlockingIOError:
                self._reached_end()
                self._wait(descriptor)
                continue
            except BrokenPipeError:
                overwritten = True
                continue
            except OSError as error:
                refusals += 1
                if error.errno != errno.EINVAL or refusals > _REFUSALS:
                    raise
                counts["malformed"] += 1  # a record that is longer than any kernel's; the next read passes it
                continue
            if overwritten:
                overwritten = False
                self._count_lost(previous, raw)
            refusals = 0
            previous = raw
            if b"NVRM" in raw or b"SXid" in raw:
                self._intake.take(parse_record(raw))
            else:
                counts["other"] += 1

    def _count_lost(self, before: bytes, after: bytes) -> None:
        last, first = sequence_of(before), sequence_of(after)
        if last is None or first is None or first <= last + 1:
            return
        if not self.lost:
            log.warning(
                "the kernel overwrote records before they were read; further ones are only counted",
                extra={"lost": first - last - 1, "sequence": first},
            )
        self.lost += first - last - 1

    def _follow_lines(self, descriptor: int, *, replayed: bool) -> None:
        """A file or FIFO: lines, and an end that is only an end for now."""
        lines = Lines()
        self._start_numbers(os.fstat(descriptor), replayed=replayed)
        while not self._stopping:
            try:
                chunk = self._read(descriptor, _CHUNK_BYTES)
            except BlockingIOError:
                self._reached_end()
                self._wait(descriptor)
                continue
            if chunk:
                dropped = lines.dropped
                for line in lines.feed(chunk):
                    self._take_line(line)
                self._intake.counts["malformed"] += lines.dropped - dropped
                continue
            self._reached_end()
            select.select([self._wake], [], [], FILE_POLL_SECONDS)
            if self._replaced(descriptor):
                return
            if replayed and os.fstat(descriptor).st_size < os.lseek(descriptor, 0, os.SEEK_CUR):
                os.lseek(descriptor, 0, os.SEEK_SET)
                self._first = self._number
                lines = Lines()

    def _take_line(self, line: bytes) -> None:
        """A line is a record with its header, a bare message of the driver, or nothing of ours.

        A line without a header gets the number after that of the line before it.
        """
        if line.startswith(b" "):  # a record's continuation
            return
        number = sequence_of(line)
        self._number = self._number + 1 if number is None else number
        if b"NVRM" not in line and b"SXid" not in line:
            self._intake.counts["other"] += 1
        elif number is not None:
            self._intake.take(parse_record(line))
        else:
            message = bare_message(line)
            record = None if message is None else Record(KERNEL_FACILITY, self._number, None, message)
            self._intake.take(record)

    def _start_numbers(self, file: os.stat_result, *, replayed: bool) -> None:
        """Settle the number before the first line: a line has the same number whenever its file is read again.

        What comes from a FIFO, or in another file's place, was never read before: its numbers go on.
        """
        if self._file is None:
            self._first = self._number = -1 if replayed else self._intake.after
        elif os.path.samestat(self._file, file) and replayed:
            self._number = self._first
        else:
            self._first = self._number
        self._file = file

    def _replaced(self, descriptor: int) -> bool:
        try:
            return not os.path.samestat(self._path.stat(), os.fstat(descriptor))
        except FileNotFoundError:
            return False  # moved away; the old file may still grow until there is a new one

    def _reached_end(self) -> None:
        if not self._caught_up:
            self._caught_up = True
            self._on_caught_up()

    def _wait(self, descriptor: int) -> None:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        poll.poll()
