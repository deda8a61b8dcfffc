"""The NVML source: a worker process that samples, and the thread that keeps it.

The source never fails its caller. A worker that is slow makes it `Stale`; one that is stuck, dead or talks
nonsense is killed and started again with growing pauses, and the source is `Failed` meanwhile; a machine
without an NVML library is `Unsupported` and looked at again now and then, as drivers can come later.
"""

from __future__ import annotations

import contextlib
import logging
import random
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from exporter.samples import Inventory, Operation, Released, Reply, Sample, WorkerError, WorkerFailure
from exporter.sources.worker_process import WorkerLostError, WorkerProcess
from health.vocabulary import SourceState

DEFAULT_COMMAND = (sys.executable, "-m", "exporter.worker")

STUCK_LIMIT = 3
"""Killed workers that have not ended yet; with so many of them no further one is started."""

_BURIAL_INTERVAL = 0.2
_LONG = 3600.0

_Answer = TypeVar("_Answer", Inventory, Sample, Released)

log = logging.getLogger(__name__)


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """The source's times, in seconds."""

    interval: float = 5.0
    """From one sample to the next."""
    inventory_interval: float = 300.0
    """From one look-up of the devices to the next."""
    sample_deadline: float = 5.0
    """After so long without an answer the source is Stale; a call to a GPU with a dead GSP takes about 6 s."""
    start_deadline: float = 30.0
    """The same for the first look-up, which initialises each GPU where persistence mode is off."""
    patience: float = 30.0
    """So long after a deadline the worker is killed."""
    pause: float = 1.0
    """Before the first restart; doubles with each further one."""
    longest_pause: float = 60.0
    """The limit of that; a worker that lived longer starts the count anew."""
    unsupported_pause: float = 60.0
    """Until the next look for a library."""


def restart_pause(attempt: int, timing: Timing, *, unsupported: bool) -> float:
    """Seconds until a worker is started after this many failed ones: growing, and jittered by up to a half."""
    doubled = timing.pause * 2.0 ** min(max(0, attempt - 1), 30)
    longest = timing.unsupported_pause if unsupported else min(timing.longest_pause, doubled)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311


class _ClosedError(Exception):
    """The source is being closed: ends its thread."""


class _NvmlFailedError(Exception):
    def __init__(self, failure: WorkerFailure) -> None:
        super().__init__(f"{failure.error}: {failure.message}")
        self.failure = failure


class NvmlSource:
    """Samples the devices on a thread of its own. Callbacks run on that thread and get immutable values.

    `on_inventory` gets the devices at the start and whenever they have changed, `on_sample` each sample,
    `on_state` each change of the state or of its reason. `failure` says why NVML as a whole does not work,
    where that is the reason; it is set before `on_state` is called.
    """

    def __init__(
        self,
        *,
        on_inventory: Callable[[Inventory], None],
        on_sample: Callable[[Sample], None],
        on_state: Callable[[SourceState, str], None],
        command: Sequence[str] = DEFAULT_COMMAND,
        timing: Timing = Timing(),  # noqa: B008 - immutable
    ) -> None:
        self._on_inventory = on_inventory
        self._on_sample = on_sample
        self._on_state = on_state
        self._command = tuple(command)
        self._timing = timing
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._closing = False
        self._release_wanted = False
        self._said: tuple[SourceState, str] | None = None
        self._inventory = Inventory()
        self._dying: list[WorkerProcess] = []
        self._thread = threading.Thread(target=self._run, name="nvml-source", daemon=True)
        self._started = 0
        self.failure: WorkerFailure | None = None

    @property
    def restarts(self) -> int:
        """Workers started after the first."""
        return max(0, self._started - 1)

    def start(self) -> None:
        """Begin. Returns at once."""
        self._thread.start()

    def release(self) -> None:
        """Let go of the devices; the state is `Released` once no process of ours holds them. Returns at once."""
        self._release_wanted = True
        self._wake()

    def acquire(self) -> None:
        """Take the devices again. Returns at once."""
        self._release_wanted = False
        self._wake()

    def close(self, timeout: float = 1.0) -> bool:
        """Kill the worker and end the thread. False if a callback holds it longer than `timeout` seconds."""
        self._closing = True
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        if self._thread.is_alive():
            return False
        self._wake_read.close()
        self._wake_write.close()
        return True

    def _wake(self) -> None:
        # Full wakes as well; closed there is nobody to wake.
        with contextlib.suppress(OSError):
            self._wake_write.send(b".")

    def _run(self) -> None:
        attempt = 0
        with contextlib.suppress(_ClosedError):
            while True:
                self._stay_released(None)
                started = time.monotonic()
                self._live()
                lived = time.monotonic() - started
                attempt = 0 if lived > self._timing.longest_pause else attempt + 1
                unsupported = self._said is not None and self._said[0] is SourceState.UNSUPPORTED
                self._rest(restart_pause(attempt, self._timing, unsupported=unsupported))
        self._bury()

    def _live(self) -> None:
        """One worker, from its start to its end."""
        self._bury()
        if len(self._dying) >= STUCK_LIMIT:
            self._say(SourceState.FAILED, f"killed workers are stuck in the kernel: {self._dying_pids()}")
            return
        worker = None
        try:
            self._started += 1
            worker = WorkerProcess(self._command, wake=self._wake_read.fileno())
            self._serve(worker)
        except WorkerLostError as error:
            self.failure = None
            self._say(SourceState.FAILED, str(error))
        except _NvmlFailedError as error:
            self.failure = error.failure
            if error.failure.error is WorkerError.LIBRARY_NOT_FOUND:
                again = f"looked for again every {self._timing.unsupported_pause:g} s"
                self._say(SourceState.UNSUPPORTED, f"{error} ({again})")
            else:
                self._say(SourceState.FAILED, str(error))
        finally:
            if worker:
                worker.kill()
                if not worker.reaped(_BURIAL_INTERVAL):
                    self._dying.append(worker)

    def _serve(self, worker: WorkerProcess) -> None:
        self._look_up(worker, Operation.ACQUIRE)
        next_look = time.monotonic() + self._timing.inventory_interval
        while True:
            begun = time.monotonic()
            sample = self._ask(worker, Operation.SAMPLE, Sample)
            self.failure = None
            self._say(SourceState.LIVE, "")
            self._call(self._on_sample, sample)
            self._idle(worker, until=begun + self._timing.interval)
            if self._release_wanted:
                self._ask(worker, Operation.RELEASE, Released)
                self._stay_released(worker)
                self._look_up(worker, Operation.ACQUIRE)
            elif time.monotonic() >= next_look:
                self._look_up(worker, Operation.INVENTORY)
                next_look = time.monotonic() + self._timing.inventory_interval

    def _look_up(self, worker: WorkerProcess, operation: Operation) -> None:
        inventory = self._ask(worker, operation, Inventory, deadline=self._timing.start_deadline)
        if inventory != self._inventory:
            self._inventory = inventory
            self._call(self._on_inventory, inventory)

    def _ask(
        self,
        worker: WorkerProcess,
        operation: Operation,
        wanted: type[_Answer],
        *,
        deadline: float | None = None,
    ) -> _Answer:
        """Ask and wait. Raises WorkerLostError, _NvmlFailedError, _ClosedError."""
        request = worker.send(operation, known=self._inventory.devices)
        begun = time.monotonic()
        stale_at = begun + (self._timing.sample_deadline if deadline is None else deadline)
        lost_at = stale_at + self._timing.patience
        while True:
            now = time.monotonic()
            if now >= lost_at or (now >= stale_at and self._release_wanted):
                raise WorkerLostError(
                    f"the worker was killed: no answer to {operation} in {now - begun:.1f} s"
                )
            if now >= stale_at:
                self._say(SourceState.STALE, f"no answer to {operation} in {stale_at - begun:g} s")
            reply = self._listen(worker, (stale_at if now < stale_at else lost_at) - now)
            if reply is None:
                continue
            if isinstance(reply.body, WorkerFailure):
                raise _NvmlFailedError(reply.body)
            if reply.id != request or not isinstance(reply.body, wanted):
                raise WorkerLostError(f"the worker answers {operation} with {type(reply.body).__name__}")
            return reply.body

    def _idle(self, worker: WorkerProcess, *, until: float) -> None:
        while (left := until - time.monotonic()) > 0 and not self._release_wanted:
            if self._listen(worker, left) is not None:
                raise WorkerLostError("the worker answers what it was not asked")

    def _stay_released(self, worker: WorkerProcess | None) -> None:
        """Wait as long as the devices are to be released; `worker`, if any, has released them."""
        while self._release_wanted:
            self._bury()
            if self._dying:
                self._say(SourceState.FAILED, f"killed workers still hold the devices: {self._dying_pids()}")
            else:
                self._say(SourceState.RELEASED, "")
            self._listen(worker, _BURIAL_INTERVAL if self._dying else _LONG)

    def _rest(self, pause: float) -> None:
        until = time.monotonic() + pause
        while (left := until - time.monotonic()) > 0 and not self._release_wanted:
            self._listen(None, left)

    def _listen(self, worker: WorkerProcess | None, timeout: float) -> Reply | None:
        """Wait for the worker, or at most until `release`, `acquire` or `close` is called."""
        if worker:
            reply = worker.receive(timeout)
        else:
            select.select([self._wake_read], [], [], timeout)
            reply = None
        with contextlib.suppress(BlockingIOError):
            self._wake_read.recv(4096)
        if self._closing:
            raise _ClosedError
        return reply

    def _bury(self) -> None:
        self._dying = [worker for worker in self._dying if not worker.reaped()]

    def _dying_pids(self) -> str:
        return ", ".join(f"pid {worker.pid}" for worker in self._dying)

    def _say(self, state: SourceState, message: str) -> None:
        if (state, message) != self._said:
            self._said = (state, message)
            self._call(self._on_state, state, message)

    def _call(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            callback(*arguments)
        except Exception:
            log.exception("a callback of the NVML source failed")
