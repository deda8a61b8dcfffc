"""Log lines carry the ids of the trace that they were written for."""

import io
import json
import logging
import threading

import pytest

from runtime import logs
from runtime.spans import TraceRef
from runtime.trace_context import TraceIdFilter, current_trace, in_trace

PLACE = TraceRef(0xA1, 0xB2)


@pytest.fixture
def lines():
    """A function that returns the lines logged so far, parsed, in the format of a program."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    logs.configure(format="json", stream=stream)
    root.handlers[0].addFilter(TraceIdFilter())
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logging.captureWarnings(False)
    root.handlers[:] = before
    root.setLevel(level)


def test_a_line_inside_a_trace_names_trace_and_span(lines):
    with in_trace(PLACE):
        logging.getLogger("remediation.drain").info("drained")
    assert lines()[0]["trace_id"] == "0" * 30 + "a1"
    assert lines()[0]["span_id"] == "0" * 14 + "b2"


def test_a_line_outside_a_trace_names_none(lines):
    logging.getLogger("agent").info("started")
    assert not {"trace_id", "span_id"} & lines()[0].keys()


def test_ids_that_a_line_was_given_are_kept(lines):
    with in_trace(PLACE):
        logging.getLogger("agent").info("of another trace", extra={"trace_id": "fe"})
    assert lines()[0]["trace_id"] == "fe"
    assert "span_id" not in lines()[0]


def test_traces_nest_and_end_with_an_exception_too():
    inner = TraceRef(3, 4)
    with in_trace(PLACE):
        with pytest.raises(RuntimeError), in_trace(inner):
            assert current_trace.get() == inner
            raise RuntimeError
        assert current_trace.get() == PLACE
        with in_trace(None):
            assert current_trace.get() is None
    assert current_trace.get() is None


def test_a_thread_has_a_place_of_its_own():
    seen = []
    with in_trace(PLACE):
        thread = threading.Thread(target=lambda: seen.append(current_trace.get()))
        thread.start()
        thread.join()
    assert seen == [None]
