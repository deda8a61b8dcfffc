"""A simulated fleet in real time, for controllers that are processes of their own: it runs in one thread beside the
embedded API, and wakes when something is due or when a client has changed something."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from runtime.clock import Clock
from simulation.cluster.store import ClusterStore
from simulation.fleet import Fleet

_LONGEST_SLEEP = 1.0
_STOP_SECONDS = 10.0
_PAUSE_AFTER_FAILURE = 0.5

log = logging.getLogger(__name__)


class LiveFleet:
    """Drives a fleet between `start` and `stop`. Nothing else may touch the fleet meanwhile but through `call`."""

    def __init__(self, fleet: Fleet, store: ClusterStore, clock: Clock) -> None:
        self._fleet = fleet
        self._clock = clock
        self._calls: deque[Callable[[Fleet], object]] = deque()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)
        store.on_change(self._changed)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin. Returns at once."""
        self._thread.start()

    def stop(self) -> bool:
        """End the thread; whether it ended in time."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(_STOP_SECONDS)
        return not self._thread.is_alive()

    def call(self, act: Callable[[Fleet], object]) -> None:
        """From any thread: do this with the fleet soon, such as `lambda fleet: fleet.inject("gpu-00000", 79)`."""
        self._calls.append(act)
        self._wake.set()

    def _changed(self, resource: str) -> None:
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                while self._calls:
                    self._calls.popleft()(self._fleet)
                self._fleet.step(self._clock.monotonic())
                left = self._fleet.next_due() - self._clock.monotonic()
            except Exception:
                # One thing that somebody asked for, or one node, does not end the whole fleet.
                log.exception("the fleet could not go on with something")
                left = _PAUSE_AFTER_FAILURE
            self._wake.wait(max(0.0, min(left, _LONGEST_SLEEP)))
