"""One life of the NVML worker, as its parent sees it: requests, replies, its log, its end.

Nothing here blocks longer than it is told to: a worker that a broken device holds in the kernel (D state)
neither answers nor dies, and nobody may wait for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from exporter.samples import DeviceIdentity, Operation, Reply, Request

REPLY_LIMIT = 4 * 2**20
"""Bytes of one reply. A sample of 8 devices takes 6 KiB."""

LOG_LINE_LIMIT = 4096
"""Bytes of one line of the worker's log; longer ones are cut."""

_CHUNK = 65536
_EXIT_WAIT = 0.2

log = logging.getLogger(__name__)


class WorkerLostError(Exception):
    """This worker is of no more use: it has ended, or it does not keep to the protocol."""


class WorkerProcess:
    """A running worker. Not thread-safe; `wake` is a file descriptor that ends a wait when it is readable."""

    def __init__(self, command: Sequence[str], *, wake: int) -> None:
        """Start the command. Raises WorkerLostError if it cannot be started."""
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=_environment(os.environ),
            )
        except OSError as error:
            raise WorkerLostError(f"cannot start {command[0]}: {error.strerror}") from error
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._requests = self._process.stdin
        self._replies = self._process.stdout.fileno()
        self._errors = self._process.stderr.fileno()
        self._partial = {self._replies: bytearray(), self._errors: bytearray()}
        self._last_words = ""
        self._decoder = msgspec.json.Decoder(Reply)
        self._next_id = 0
        self._selector = selectors.DefaultSelector()
        for descriptor in (self._replies, self._errors):
            os.set_blocking(descriptor, False)
            self._selector.register(descriptor, selectors.EVENT_READ)
        self._selector.register(wake, selectors.EVENT_READ)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def send(self, operation: Operation, *, known: tuple[DeviceIdentity, ...]) -> int:
        """Ask for this; the id that the reply will bear. Raises WorkerLostError."""
        self._next_id += 1
        request = Request(self._next_id, operation, known if operation is Operation.ACQUIRE else ())
        try:
            self._requests.write(msgspec.json.encode(request) + b"\n")
        except OSError as error:
            raise WorkerLostError(self._obituary()) from error
        return self._next_id

    def receive(self, timeout: float) -> Reply | None:
        """The next reply, or None after `timeout` seconds or when woken. Raises WorkerLostError."""
        for key, _ in self._selector.select(max(0.0, timeout)):
            if key.fd == self._errors:
                self._read_log()
            elif key.fd == self._replies and (reply := self._read_reply()):
                return reply
        return None

    def kill(self) -> None:
        """End it at once and let go of its pipes. It is gone when `reaped`, which may be never."""
        self._process.kill()
        self._read_log()
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()

    def reaped(self, timeout: float = 0.0) -> bool:
        """Whether the process has ended, and with it all that it held."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        return self._process.returncode is not None

    def _read_reply(self) -> Reply | None:
        buffer = self._partial[self._replies]
        chunk = _read(self._replies)
        if chunk == b"":
            raise WorkerLostError(self._obituary())
        buffer += chunk or b""
        line, newline, rest = buffer.partition(b"\n")
        if len(line) > REPLY_LIMIT:
            raise WorkerLostError(f"the worker's reply is longer than {REPLY_LIMIT} bytes")
        if not newline:
            return None
        if rest:
            raise WorkerLostError(f"the worker says more than it was asked: {bytes(rest[:80])!r}")
        buffer.clear()
        try:
            return self._decoder.decode(line)
        except msgspec.DecodeError as error:
            raise WorkerLostError(f"the worker's reply is no reply: {bytes(line[:80])!r}: {error}") from error

    def _read_log(self) -> None:
        chunk = _read(self._errors)
        if chunk == b"":
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._errors)
        buffer = self._partial[self._errors]
        buffer += chunk or b""
        *lines, rest = buffer.split(b"\n")
        if len(rest) > LOG_LINE_LIMIT or chunk == b"":
            lines.append(rest)
            rest = bytearray()
        self._partial[self._errors] = rest
        for line in filter(None, lines):
            self._last_words = line[:LOG_LINE_LIMIT].decode(errors="replace")
            log.warning("nvml worker %d: %s", self.pid, self._last_words)

    def _obituary(self) -> str:
        self.reaped(_EXIT_WAIT)
        self._read_log()
        code = self._process.returncode
        if code is None:
            end = "has closed its output"
        else:
            end = f"was ended by signal {-code}" if code < 0 else f"has ended with exit code {code}"
        return f"the worker {end}" + (f": {self._last_words}" if self._last_words else "")


def _read(descriptor: int) -> bytes | None:
    """What is there to read; empty at the end, None if there is nothing now."""
    try:
        return os.read(descriptor, _CHUNK)
    except BlockingIOError:
        return None


def _environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """The parent's environment, in which `python -m exporter.worker` finds the same package from anywhere."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, inherited.get("PYTHONPATH", "").split(os.pathsep))]
    return {**inherited, "PYTHONPATH": os.pathsep.join(paths)}
