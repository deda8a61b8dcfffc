"""Which trace the running code is at work for, and the log lines that say so.

The place is kept in a context variable: each thread and each asyncio task has its own, and a thread that is
started anew begins without one.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from runtime.spans import TraceRef

current_trace: ContextVar[TraceRef | None] = ContextVar("current_trace", default=None)


@contextmanager
def in_trace(place: TraceRef | None) -> Iterator[None]:
    """Let what runs inside belong to `place`, so that its log lines carry the ids; None for to no trace."""
    before = current_trace.set(place)
    try:
        yield
    finally:
        current_trace.reset(before)


class TraceIdFilter(logging.Filter):
    """Adds `trace_id` and `span_id` (hex digits) to every record that is logged inside a trace.

    Nothing is held back. It belongs on a handler (`handler.addFilter(TraceIdFilter())`): a filter on a logger
    does not see the records of the loggers below it. Ids that a record was given by `extra` are kept.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        place = current_trace.get()
        if place is not None and not hasattr(record, "trace_id"):
            record.trace_id = place.trace_hex
            record.span_id = place.span_hex
        return True
