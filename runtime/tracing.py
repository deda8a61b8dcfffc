"""Tracing: finished spans go to an OpenTelemetry collector, and nobody ever waits for it.

    tracer = start_tracing(service="sickbay-agent", resource={"k8s.node.name": node})
    registry.register(tracer)
    tracer.emit(SpanRecord(name="pod.dispatch", trace_id=..., span_id=..., parent_id=None, ...))
    tracer.shutdown()

Off unless an endpoint is set (`runtime.trace_settings` says which variables are read): then nothing of
OpenTelemetry is imported and `emit` does nothing. A collector that is down, slow or refuses costs the caller
nothing either: spans wait in a bounded queue, what does not fit is dropped, and each is counted.
"""

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from time import monotonic
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from runtime.span_queue import SpanCounts, SpanQueue
from runtime.spans import AttributeValue, SpanLink, SpanRecord, SpanStatus, TraceRef, span_id_of, trace_id_of
from runtime.trace_context import TraceIdFilter, current_trace, in_trace
from runtime.trace_settings import TraceSettings, read_settings
from runtime.version import VERSION

__all__ = [
    "AttributeValue",
    "SpanCounts",
    "SpanLink",
    "SpanRecord",
    "SpanStatus",
    "TraceIdFilter",
    "TraceRef",
    "Tracer",
    "current_trace",
    "in_trace",
    "span_id_of",
    "start_tracing",
    "trace_id_of",
]

SHUTDOWN_SECONDS = 3.0
_CLOSING_SHARE = 0.1  # of the time for a shutdown, kept for closing connections

log = logging.getLogger(__name__)


class Tracer(Protocol):
    """Where spans go, and the collector of the metrics that say what became of them."""

    @property
    def enabled(self) -> bool:
        """Whether spans go anywhere: a caller may skip making them."""

    def emit(self, record: SpanRecord) -> None:
        """Hand over a finished span. Takes microseconds, never waits for the collector, never raises."""

    def counts(self) -> SpanCounts:
        """What became of the spans so far."""

    def shutdown(self, timeout: float = SHUTDOWN_SECONDS) -> None:
        """Flush what can be flushed within `timeout` seconds, and end. Spans emitted later are dropped."""

    def collect(self) -> Iterator[Metric]:
        """`sickbay_spans_total{result}` and `sickbay_span_queue_length`."""

    def describe(self) -> Iterator[Metric]:
        """The same families without samples."""


def start_tracing(*, service: str, resource: Mapping[str, str] | None = None) -> Tracer:
    """Tracing as this process's environment sets it. Never raises: a mistake is logged, and spans stay off.

    `service` is the program (`sickbay-agent`), `resource` what else every span says of it; the operator's
    OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win over both.
    """
    settings, problems = read_settings(os.environ)
    for problem in problems:
        log.warning("a tracing variable cannot be taken as it is", extra={"reason": str(problem)})
    if settings is None:
        return TracingOff()
    attributes = {"service.name": service, "service.version": VERSION, **(resource or {})}
    try:
        return OtlpTracer(settings, attributes)
    except Exception:
        # The exporter reads certificates and compression by itself, and raises for those.
        log.exception("tracing cannot start and stays off", extra={"endpoint": settings.endpoint})
        return TracingOff()


class TracingOff:
    """No endpoint is set: spans are nobody's."""

    @property
    def enabled(self) -> bool:
        return False

    def emit(self, record: SpanRecord) -> None:
        pass

    def counts(self) -> SpanCounts:
        return SpanCounts()

    def shutdown(self, timeout: float = SHUTDOWN_SECONDS) -> None:
        pass

    def collect(self) -> Iterator[Metric]:
        return _families(SpanCounts())

    def describe(self) -> Iterator[Metric]:
        return _families(None)


class OtlpTracer:
    """Spans go to a collector by OTLP. The constructor imports the SDK and the one exporter in use."""

    def __init__(self, settings: TraceSettings, resource: Mapping[str, str]) -> None:
        from runtime.span_export import OtlpSender

        self._settings = settings
        self._all = settings.ratio >= 1
        self._ended = False
        self._sender = OtlpSender(settings, resource)
        self._queue = SpanQueue(
            self._sender.send,
            capacity=settings.queue,
            batch=settings.batch,
            delay=settings.delay,
            reason=self._sender.reason,
        )

    @property
    def enabled(self) -> bool:
        return True

    def emit(self, record: SpanRecord) -> None:
        if self._all or self._settings.keeps(record.trace_id):
            self._queue.put(record)

    def counts(self) -> SpanCounts:
        return self._queue.counts()

    def shutdown(self, timeout: float = SHUTDOWN_SECONDS) -> None:
        if self._ended:
            return
        self._ended = True
        began = monotonic()
        lost = self._queue.stop(timeout * (1 - _CLOSING_SHARE))
        if lost:
            log.warning("spans were lost at the end", extra={"spans": lost, "reason": self._sender.reason()})
        # In a thread of its own: closing waits for a connection that an export may still hold.
        closing = threading.Thread(target=self._sender.close, name="span-export-close", daemon=True)
        closing.start()
        closing.join(max(0.0, timeout - (monotonic() - began)))

    def collect(self) -> Iterator[Metric]:
        return _families(self.counts())

    def describe(self) -> Iterator[Metric]:
        return _families(None)


def _families(counts: SpanCounts | None) -> Iterator[Metric]:
    spans = CounterMetricFamily(
        "sickbay_spans",
        "Spans by what became of them: exported (the collector took them), failed (given up after several "
        "attempts), dropped (the queue was full, or the program was ending).",
        labels=["result"],
    )
    queue = GaugeMetricFamily("sickbay_span_queue_length", "Spans that wait for the collector.")
    if counts is not None:
        spans.add_metric(["exported"], counts.exported)
        spans.add_metric(["failed"], counts.failed)
        spans.add_metric(["dropped"], counts.dropped)
        queue.add_metric([], counts.queued)
    yield spans
    yield queue
