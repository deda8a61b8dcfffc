"""A queue of things to look at, each once, now or later, on a clock passed in: what controllers are made of."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from simulation.cluster.interface import StoreError
from simulation.cluster.view import Change

Key = TypeVar("Key", bound=object)

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.005
LAST_RETRY_SECONDS = 1000.0
"""From one failure of a key to its next try, doubled each time (client-go, workqueue/default_rate_limiters.go)."""


class Component(Protocol):
    """A part of the control plane: hears of changes, and does its work in small pieces when it is asked to."""

    def observe(self, change: Change) -> None:
        """Take note of what has changed; nothing is written from here."""

    def work(self, now: float) -> bool:
        """Do one piece of work that is due at `now` (monotonic seconds); whether there was one."""

    def next_due(self) -> float | None:
        """When there is work next (monotonic seconds); None while only a change can bring any."""


class WorkQueue(Generic[Key]):
    """Keys with the time from which each is due. A key is in it once: the earliest time wins."""

    def __init__(self) -> None:
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._due)

    def add(self, key: Key, due: float = 0.0) -> None:
        """Look at `key` at `due`, or at once; those that are due at once come in the order of their adding."""
        known = self._due.get(key)
        if known is not None and known <= due:
            return
        self._due[key] = due
        self._sequence += 1
        heapq.heappush(self._heap, (due, self._sequence, key))

    def discard(self, key: Key) -> None:
        """Forget `key`."""
        self._due.pop(key, None)

    def pop(self, now: float) -> Key | None:
        """The next key that is due, which leaves the queue."""
        due = self.next_due()
        if due is None or due > now:
            return None
        key = heapq.heappop(self._heap)[2]
        del self._due[key]
        return key

    def next_due(self) -> float | None:
        """When the next key is due."""
        while self._heap:
            due, _, key = self._heap[0]
            if self._due.get(key) == due:
                return due
            heapq.heappop(self._heap)
        return None


class Reconciler(Generic[Key]):
    """A queue of keys and the function that brings one of them nearer to what it should be.

    `reconcile(key, now)` returns when to look at the key again (monotonic seconds), or None. A StoreError that it
    raises (a conflict, an object that went away meanwhile) is tried again, later each time, and so is a ValueError
    (an object with a value that cannot be read).
    """

    def __init__(self, reconcile: Callable[[Key, float], float | None]) -> None:
        self._reconcile = reconcile
        self._queue: WorkQueue[Key] = WorkQueue()
        self._failures: dict[Key, int] = {}

    def add(self, key: Key, due: float = 0.0) -> None:
        """Look at `key` at once, or at `due`."""
        self._queue.add(key, due)

    def work(self, now: float) -> bool:
        """Reconcile the next key that is due."""
        key = self._queue.pop(now)
        if key is None:
            return False
        try:
            again = self._reconcile(key, now)
        except (StoreError, ValueError) as error:
            if not isinstance(error, StoreError):
                log.warning("%s cannot be brought on: %s", key, error)
            failures = self._failures.get(key, 0)
            self._failures[key] = min(failures + 1, 32)
            again = now + min(FIRST_RETRY_SECONDS * 2**failures, LAST_RETRY_SECONDS)
        else:
            self._failures.pop(key, None)
        if again is not None:
            self._queue.add(key, again)
        return True

    def next_due(self) -> float | None:
        """When there is work next."""
        return self._queue.next_due()
