"""Whatever a collector answers and however much is made, every span has exactly one fate."""

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.span_queue import SpanQueue
from runtime.spans import SpanRecord


def record(number):
    return SpanRecord(name="a", trace_id=1, span_id=number, parent_id=None, start_ns=0, end_ns=1)


def total(counts):
    return counts.exported + counts.failed + counts.dropped + counts.queued


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([True, False, OSError("reset")]), max_size=20),
    st.lists(st.integers(0, 12), max_size=8),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(0, 2),
)
def test_made_is_exported_and_failed_and_dropped_and_queued(answers, bursts, capacity, batch, retries):
    arrived = []

    def send(spans):
        answer = answers.pop() if answers else True
        if isinstance(answer, Exception):
            raise answer
        if answer:
            arrived.extend(span.span_id for span in spans)
        return answer

    queue = SpanQueue(send, capacity=capacity, batch=batch, delay=0, pauses=(0,) * retries)
    made = 0
    for burst in bursts:
        for _ in range(burst):
            made += 1
            queue.put(record(made))
        counts = queue.counts()
        assert total(counts) == made
        assert counts.queued <= capacity
    assert queue.stop(10) == 0
    counts = queue.counts()
    assert (total(counts), counts.queued) == (made, 0)
    assert counts.exported == len(arrived) == len(set(arrived))
    assert arrived == sorted(arrived)
