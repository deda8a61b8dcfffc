"""The report's way into the cluster: the AcceleratorReport of this node, written on a thread of its own.

Only the newest content is ever written. While the API server cannot be had, it is tried again with growing
pauses, and what was overtaken meanwhile is never sent. The answer to each write brings the controller's `spec`.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from functools import partial

from exporter.cadence import LONGEST_PAUSE, Bucket, Write, attentive, due, fatal, meaning, retry_pause
from exporter.report_writer import ReportApi, ReportWriter
from health.report import ReportSpec, ReportStatus
from runtime.api_errors import ApiError, Conflict, Forbidden, Invalid, NotFound, TooManyRequests, Unauthorized
from runtime.clock import Clock, SystemClock

log = logging.getLogger(__name__)


class _StoppingError(Exception):
    """Ends the thread."""


class Publisher:
    """Keeps the report in the cluster as it was last offered. Callbacks run on its thread.

    `on_met` gets what this node's report says when it is first read, None if there is none, or one that cannot
    be read or is of another node of the same name; nothing is written before. `on_spec` gets the controller's
    part when it is first read and whenever it has changed. `on_written` gets each write's sequence number, its
    kind, and the seconds from the change to the answer.
    """

    def __init__(
        self,
        api: ReportApi,
        *,
        node: str,
        node_uid: str,
        on_met: Callable[[ReportStatus | None], None],
        on_spec: Callable[[ReportSpec], None],
        on_written: Callable[[int, Write, float], None],
        sequence: int = 0,
        renew_interval: float = 30.0,
        clock: Clock | None = None,
    ) -> None:
        self._writer = ReportWriter(api, node=node, node_uid=node_uid, sequence=sequence)
        self._on_met = on_met
        self._on_spec = on_spec
        self._on_written = on_written
        self._renew_interval = renew_interval
        self._clock = clock or SystemClock()
        self._condition = threading.Condition()
        self._stopping = False
        self._wanted: ReportStatus | None = None
        self._changed_at: float | None = None
        self._spec: ReportSpec | None = None
        self._bucket = Bucket()
        self._renew_at = float("-inf")
        self._failed_writes = 0
        self._retry_at = float("-inf")
        self._complaint = ""
        self._hurried = False
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self.writes = Counter[str](dict.fromkeys(Write, 0))
        """Successful writes by `Write`."""
        self.failures = Counter[str]()
        """Failed requests by the error's class."""
        self.last_written: datetime | None = None

    def start(self) -> None:
        """Begin. Returns at once."""
        self._thread.start()

    def offer(self, status: ReportStatus) -> None:
        """This is what the report is to say from now on. Returns at once."""
        with self._condition:
            before = self._wanted
            self._wanted = status
            if self._changed_at is None and (before is None or meaning(before) != meaning(status)):
                self._changed_at = self._clock.monotonic()
            if fatal(status) - (fatal(before) if before else frozenset()):
                self._failed_writes = 0
                self._retry_at = float("-inf")
            self._condition.notify()

    def hurry(self) -> None:
        """A Fatal fault waits for the report to be read: try again at once, and soon after that."""
        with self._condition:
            if not self._hurried:
                self._hurried = True
                self._failed_writes = 0
                self._retry_at = float("-inf")
                self._condition.notify()

    def stop(self, timeout: float = 1.0) -> bool:
        """End the thread. False if a request or a callback holds it longer than `timeout` seconds."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._attempt(self._meet):
                self._wait_for_retry()
            while True:
                self._attempt(partial(self._publish, *self._next()))
        except _StoppingError:
            return

    def _attempt(self, act: Callable[[], None]) -> bool:
        """Do this once; whether it worked. If not, the next attempt's time is settled."""
        try:
            act()
        except ApiError as error:
            self._failed(error)
            return False
        except Exception:
            log.exception("publishing the report failed")
            self._pause(None)
            return False
        with self._condition:
            self._failed_writes = 0
            self._retry_at = float("-inf")
            self._hurried = False
        if self._complaint:
            self._complaint = ""
            log.info("the report can be written again")
        return True

    def _meet(self) -> None:
        report = self._writer.meet()
        if report is None:
            self._on_met(None)
            return
        self._on_met(report.status if report.status != ReportStatus() else None)
        self._take_spec(report.spec)

    def _next(self) -> tuple[ReportStatus, Write]:
        """Wait until something is to be written."""
        with self._condition:
            while not self._stopping:
                if self._wanted is None:
                    self._condition.wait()
                    continue
                now = self._clock.monotonic()
                next_write = due(
                    self._wanted, self._writer.written, bucket=self._bucket, renew_at=self._renew_at, now=now
                )
                at = max(next_write.at, self._retry_at)
                if at <= now:
                    return self._wanted, next_write.write
                self._condition.wait(at - now)
        raise _StoppingError

    def _wait_for_retry(self) -> None:
        with self._condition:
            while not self._stopping and (left := self._retry_at - self._clock.monotonic()) > 0:
                self._condition.wait(left)
            if self._stopping:
                raise _StoppingError

    def _publish(self, wanted: ReportStatus, write: Write) -> None:
        begun, now = self._clock.monotonic(), self._clock.wall()
        report = self._writer.write(wanted, now=now)
        self.writes[write] += 1
        self.last_written = now
        self._settle(wanted, write, begun)
        if report is not None:
            self._take_spec(report.spec)

    def _settle(self, wanted: ReportStatus, write: Write, begun: float) -> None:
        now = self._clock.monotonic()
        if write is Write.CHANGE:
            self._bucket = self._bucket.taken(now)
        # Agents that start together, or find the API server again together, shall not renew together for ever.
        interval = min(self._renew_interval, attentive(wanted))
        self._renew_at = now + interval * random.uniform(0.9, 1)  # noqa: S311
        with self._condition:
            changed_at = self._changed_at
            overtaken = self._wanted is not wanted and self._wanted is not None
            differs = overtaken and meaning(self._wanted) != meaning(wanted)  # type: ignore[arg-type]
            self._changed_at = begun if differs else None
        self._on_written(self._writer.sequence, write, now - (begun if changed_at is None else changed_at))

    def _take_spec(self, spec: ReportSpec) -> None:
        if spec != self._spec:
            self._spec = spec
            self._on_spec(spec)

    def _failed(self, error: ApiError) -> None:
        self.failures[type(error).__name__] += 1
        self._pause(error)
        complaint = _complaint(error)
        if complaint != self._complaint:
            self._complaint = complaint
            log.warning(complaint, extra={"why": str(error)})

    def _pause(self, error: ApiError | None) -> None:
        """Settle when to try again: soon for a Fatal fault that nobody knows of yet."""
        with self._condition:
            self._failed_writes += 1
            unknown = fatal(self._wanted) if self._wanted else frozenset()
            if self._writer.written:
                unknown -= fatal(self._writer.written)
            pause = retry_pause(self._failed_writes, urgent=bool(unknown) or self._hurried)
            pause *= random.uniform(0.5, 1)  # noqa: S311
            if isinstance(error, TooManyRequests) and error.retry_after:
                pause = max(pause, min(LONGEST_PAUSE, error.retry_after))
            self._retry_at = self._clock.monotonic() + pause


def _complaint(error: ApiError) -> str:
    if isinstance(error, NotFound):
        if error.request.startswith("POST"):
            return "the cluster has no AcceleratorReports: are the custom resource definitions installed?"
        return "the report was deleted: it is created again"
    if isinstance(error, Forbidden):
        return "the API server forbids the report, by RBAC or an admission policy"
    if isinstance(error, Unauthorized):
        return "the API server does not accept our credentials"
    if isinstance(error, Invalid):
        return "the API server finds the report invalid: are its custom resource definitions of this version?"
    if isinstance(error, Conflict):
        return "the report is being changed by somebody else"
    return "the API server cannot be had: the report is written later"
