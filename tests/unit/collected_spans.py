"""A tracer that keeps what it is given."""

from collections.abc import Iterator

from prometheus_client.metrics_core import Metric

from runtime.spans import SpanRecord
from runtime.tracing import SpanCounts


class Collected:
    """A tracer that keeps what it is given."""

    enabled = True

    def __init__(self) -> None:
        self.spans: list[SpanRecord] = []

    def emit(self, record: SpanRecord) -> None:
        self.spans.append(record)

    def counts(self) -> SpanCounts:
        return SpanCounts()

    def shutdown(self, timeout: float = 3.0) -> None:
        raise AssertionError("nobody ends it here")

    def collect(self) -> Iterator[Metric]:
        return iter(())

    describe = collect
