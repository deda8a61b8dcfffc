"""The start-rate limit in use: what is charged, what comes back, and what survives a restart."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from health.vocabulary import Mode
from remediation.budget import StartBucket
from remediation.fleet import Fleet
from remediation.objects import StartTokens
from remediation.policy import StartRate
from runtime.clock import Clock


class StartLimit:
    """The real bucket, and the virtual one that Observe sessions are charged to.

    It belongs to the deciding thread, but for `remember`, which a worker runs.
    """

    def __init__(self, clock: Clock, write: Callable[[StartTokens], None]) -> None:
        self._clock = clock
        self._write = write
        self._buckets: dict[bool, StartBucket] = {}
        self._unwritten: StartTokens | None = None
        self._writing = threading.Lock()

    def restore(self, fleet: Fleet, rate: StartRate) -> None:
        """Begin where the last leader left off: as it wrote it down, or as its sessions tell if that is less.

        Ages are told by the wall clock and are never negative.
        """
        wall = self._clock.wall()
        noted = fleet.control.status.start_tokens
        left = [_after(_starts(fleet), wall, rate)]
        if noted is not None:
            bucket = StartBucket(tokens=noted.tokens, refreshed=-_age(noted.refreshed_time, wall))
            left.append(bucket.at(0.0, per_minute=rate.per_minute, burst=rate.burst).tokens)
        now = self._clock.monotonic()
        self._buckets = {False: StartBucket(tokens=max(0.0, min(left)), refreshed=now)}

    def bucket(self, rate: StartRate, *, virtual: bool) -> StartBucket:
        """The bucket as of now; a full one where nothing was charged yet."""
        now = self._clock.monotonic()
        bucket = self._buckets.get(virtual) or StartBucket(tokens=float(rate.burst), refreshed=now)
        return bucket.at(now, per_minute=rate.per_minute, burst=rate.burst)

    def charge(self, rate: StartRate, *, virtual: bool) -> None:
        """Take a token before the session exists, so that two starts at once cannot share one."""
        self._buckets[virtual] = self.bucket(rate, virtual=virtual).taken()

    def refund(self, rate: StartRate, *, virtual: bool) -> None:
        """Nothing was started for sure: the token goes back."""
        bucket = self.bucket(rate, virtual=virtual)
        self._buckets[virtual] = StartBucket(tokens=bucket.tokens + 1, refreshed=bucket.refreshed)

    def note(self, rate: StartRate) -> None:
        """A session was started, or may have been: the count is to be remembered."""
        tokens = max(0.0, self.bucket(rate, virtual=False).tokens)
        self._unwritten = StartTokens(tokens=tokens, refreshed_time=self._clock.wall())

    def remember(self) -> None:
        """Write the newest count, one writer at a time: so an older count never lands last."""
        while self._unwritten is not None and self._writing.acquire(blocking=False):
            try:
                tokens, self._unwritten = self._unwritten, None
                if tokens is not None:
                    self._write(tokens)
            finally:
                self._writing.release()


def _starts(fleet: Fleet) -> Iterable[datetime]:
    for session in fleet.sessions.values():
        created = session.metadata.creation_timestamp
        if session.spec.mode is not Mode.OBSERVE and created is not None:
            yield created


def _after(starts: Iterable[datetime], wall: datetime, rate: StartRate) -> float:
    """The tokens that are left after these starts."""
    ages = sorted((_age(start, wall) for start in starts), reverse=True)
    bucket = StartBucket(tokens=float(rate.burst), refreshed=-ages[0] if ages else 0.0)
    for age in ages:
        bucket = bucket.at(-age, per_minute=rate.per_minute, burst=rate.burst).taken()
    return bucket.at(0.0, per_minute=rate.per_minute, burst=rate.burst).tokens


def _age(moment: datetime, wall: datetime) -> float:
    return max(timedelta(0), wall - moment).total_seconds()
