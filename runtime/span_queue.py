"""A bounded queue of spans and the thread that sends them: whoever puts one never waits, and every one counts.

What is put in is at every moment exactly one of: exported, failed (given up after several attempts, or refused
by the exporter), dropped (the queue was full, or the program was ending), or still in the queue. The batch
that is being sent counts as in the queue, keeps its place there, and goes when its fate is known; so a full
queue drops what arrives, and the bound is exact.

A batch that fails is tried again for about two minutes, while others wait behind it. A collector that is
restarted then loses nothing, and what arrives twice has the same ids. The thread is a daemon, and the program
must not fork.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from time import monotonic

from runtime.spans import SpanRecord

# Between attempts, of which each may take the exporter's timeout: 10 s unless it is set.
PAUSES = (2.0, 5.0, 15.0, 30.0, 60.0)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SpanCounts:
    """Spans by their fate; the sum is the number of spans that were put in."""

    exported: int = 0
    failed: int = 0
    dropped: int = 0
    queued: int = 0


class SpanQueue:
    """`send` is called in the queue's thread with a batch, and says whether the batch arrived.

    `capacity` and `batch` are spans, `delay` is how long a span may wait for its batch to fill, `pauses` the
    waits between the attempts of one batch (seconds). `reason` is asked why a batch failed, for the log.
    """

    def __init__(
        self,
        send: Callable[[Sequence[SpanRecord]], bool],
        *,
        capacity: int,
        batch: int,
        delay: float,
        pauses: Sequence[float] = PAUSES,
        reason: Callable[[], str] = str,
    ) -> None:
        self._send = send
        self._capacity = capacity
        self._batch = batch
        self._delay = delay
        self._pauses = tuple(pauses)
        self._reason = reason
        self._changed = threading.Condition(threading.Lock())
        self._waiting: deque[SpanRecord] = deque()
        self._exported = self._failed = self._dropped = 0
        self._stopping = self._closed = self._failing = False
        self._thread = threading.Thread(target=self._run, name="span-export", daemon=True)
        self._thread.start()

    def put(self, record: SpanRecord) -> None:
        """Take `record`, or drop and count it when the queue is full or stopped."""
        with self._changed:
            waiting = len(self._waiting)
            if waiting >= self._capacity or self._stopping:
                self._dropped += 1
                return
            self._waiting.append(record)
            # The thread sleeps for the first span, and then for the one that fills a batch.
            if waiting == 0 or waiting + 1 == self._batch:
                self._changed.notify()

    def counts(self) -> SpanCounts:
        with self._changed:
            return SpanCounts(self._exported, self._failed, self._dropped, len(self._waiting))

    def stop(self, timeout: float) -> int:
        """Send what can be sent within `timeout` seconds, drop the rest, and return how many those were.

        Nothing is taken any more, and a batch gets one attempt. An attempt that is under way at the deadline
        is abandoned: its spans count as dropped, whatever becomes of them.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout)
        with self._changed:
            self._closed = True
            lost = len(self._waiting)
            self._dropped += lost
            self._waiting.clear()
        return lost

    def _run(self) -> None:
        while batch := self._next():
            self._settle(len(batch), arrived=self._deliver(batch))

    def _next(self) -> list[SpanRecord]:
        """The batch that is due, which stays in the queue; empty when there will be none any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            self._changed.wait_for(lambda: len(self._waiting) >= self._batch or self._stopping, self._delay)
            return list(islice(self._waiting, self._batch))

    def _deliver(self, batch: Sequence[SpanRecord]) -> bool:
        for pause in (*self._pauses, None):
            if self._attempt(batch):
                return True
            with self._changed:
                if pause is None or self._changed.wait_for(lambda: self._stopping, pause):
                    return False
        raise AssertionError("the last pause is None")

    def _attempt(self, batch: Sequence[SpanRecord]) -> bool:
        began = monotonic()
        try:
            arrived = self._send(batch)
        except Exception:
            log.exception("a batch of spans could not be sent", extra={"spans": len(batch)})
            arrived = False
        # Told once when it begins and once when it ends: the exporter would say so with every attempt.
        if arrived and self._failing:
            log.info("spans are exported again")
        elif not arrived and not self._failing:
            log.warning(
                "spans cannot be exported",
                extra={"reason": self._reason(), "seconds": round(monotonic() - began, 3)},
            )
        self._failing = not arrived
        return arrived

    def _settle(self, spans: int, *, arrived: bool) -> None:
        with self._changed:
            if self._closed:
                return
            for _ in range(spans):
                self._waiting.popleft()
            if arrived:
                self._exported += spans
            else:
                self._failed += spans
