"""What is due later, by a clock that may be a test's."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable

from runtime.clock import Clock, SystemClock

_POLL_SECONDS = 0.005


class Timer:
    """A callback that is due at a time of the clock."""

    __slots__ = ("callback", "cancelled")

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Timers:
    """Belongs to one loop. A clock that does not run by itself is looked at every 5 ms."""

    def __init__(self, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        self._clock = clock
        self._loop = loop
        self._runs_itself = isinstance(clock, SystemClock)
        self._due: list[tuple[float, int, Timer]] = []
        self._number = itertools.count()
        self._armed: asyncio.TimerHandle | None = None
        if not self._runs_itself:
            self._poll()

    def later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call back after so many seconds of the clock."""
        timer = Timer(callback)
        heapq.heappush(self._due, (self._clock.monotonic() + seconds, next(self._number), timer))
        if self._runs_itself:
            self._arm()
        return timer

    def close(self) -> None:
        self._due.clear()
        if self._armed is not None:
            self._armed.cancel()

    def _poll(self) -> None:
        self._run()
        self._armed = self._loop.call_later(_POLL_SECONDS, self._poll)

    def _arm(self) -> None:
        if self._armed is not None:
            self._armed.cancel()
            self._armed = None
        while self._due and self._due[0][2].cancelled:
            heapq.heappop(self._due)
        if self._due:
            wait = max(0.0, self._due[0][0] - self._clock.monotonic())
            self._armed = self._loop.call_later(wait, self._wake)

    def _wake(self) -> None:
        self._armed = None
        self._run()
        self._arm()

    def _run(self) -> None:
        while self._due and (self._due[0][2].cancelled or self._due[0][0] <= self._clock.monotonic()):
            timer = heapq.heappop(self._due)[2]
            if not timer.cancelled:
                timer.callback()
