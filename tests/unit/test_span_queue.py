"""The queue of spans: whoever puts one never waits, and every span is counted once."""

import logging
import threading
from time import monotonic

import pytest

from runtime.span_queue import SpanCounts, SpanQueue
from runtime.spans import SpanRecord, span_id_of
from tests.lab.processes import wait_until


def record(number=1):
    return SpanRecord(
        name=str(number), trace_id=1, span_id=span_id_of(number), parent_id=None, start_ns=0, end_ns=1
    )


class Collector:
    """Answers attempts in the order of `answers` (the last for ever), each when it is let."""

    def __init__(self, *answers, open=True):
        self.answers = list(answers)
        self.batches = []
        self.gate = threading.Event()
        if open:
            self.gate.set()

    def __call__(self, batch):
        self.batches.append([span.name for span in batch])
        assert self.gate.wait(30)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def queue_to():
    """Makes queues, and ends them."""
    made = []

    def make(send, *, capacity=10, batch=4, delay=0.01, pauses=(), **given):
        made.append(
            (SpanQueue(send, capacity=capacity, batch=batch, delay=delay, pauses=pauses, **given), send)
        )
        return made[-1][0]

    yield make
    for queue, send in made:
        send.gate.set()
        queue.stop(5)


def settled(queue, counts):
    wait_until(lambda: queue.counts() == counts, 5, f"{counts}, in {queue.counts()}", every=0.002)


def test_spans_arrive_in_order_and_in_batches(queue_to):
    collector = Collector(True, open=False)
    queue = queue_to(collector)
    for number in range(9):
        queue.put(record(number))
    collector.gate.set()
    settled(queue, SpanCounts(exported=9))
    assert [name for batch in collector.batches for name in batch] == [str(number) for number in range(9)]
    assert all(len(batch) <= 4 for batch in collector.batches)


def test_a_full_batch_does_not_wait_for_the_delay(queue_to):
    queue = queue_to(Collector(True), delay=600)
    for number in range(4):
        queue.put(record(number))
    settled(queue, SpanCounts(exported=4))
    queue.put(record())
    assert queue.counts() == SpanCounts(exported=4, queued=1)


def test_a_lone_span_goes_after_the_delay(queue_to):
    collector = Collector(True)
    queue = queue_to(collector, delay=0.05)
    began = monotonic()
    queue.put(record())
    settled(queue, SpanCounts(exported=1))
    assert monotonic() - began >= 0.05


def test_a_full_queue_drops_what_arrives_and_counts_it(queue_to):
    collector = Collector(True, open=False)
    queue = queue_to(collector, capacity=10)
    for number in range(25):
        queue.put(record(number))
    assert queue.counts() == SpanCounts(dropped=15, queued=10)
    collector.gate.set()
    settled(queue, SpanCounts(exported=10, dropped=15))
    assert [name for batch in collector.batches for name in batch] == [str(number) for number in range(10)]


def test_a_batch_that_is_being_sent_is_still_in_the_queue(queue_to):
    collector = Collector(True, open=False)
    queue = queue_to(collector, capacity=4)
    for number in range(4):
        queue.put(record(number))
    wait_until(lambda: collector.batches, 5, "the attempt", every=0.002)
    queue.put(record())
    assert queue.counts() == SpanCounts(dropped=1, queued=4)


def test_a_batch_is_tried_again_until_it_arrives(queue_to):
    collector = Collector(False, False, True)
    queue = queue_to(collector, pauses=(0.001, 0.001, 0.001))
    queue.put(record())
    settled(queue, SpanCounts(exported=1))
    assert collector.batches == [["1"]] * 3


def test_a_batch_is_given_up_after_its_last_attempt_and_the_next_one_goes(queue_to):
    collector = Collector(False, False, True)
    queue = queue_to(collector, batch=1, pauses=(0.001,))
    queue.put(record(1))
    queue.put(record(2))
    settled(queue, SpanCounts(exported=1, failed=1))
    assert collector.batches == [["1"], ["1"], ["2"]]


def test_an_exporter_that_raises_has_failed(queue_to, caplog):
    queue = queue_to(Collector(RuntimeError("no")))
    queue.put(record())
    settled(queue, SpanCounts(failed=1))
    assert "a batch of spans could not be sent" in caplog.text


def test_an_outage_is_told_once_with_its_reason_and_its_end_once(queue_to, caplog):
    caplog.set_level(logging.INFO, "runtime.span_queue")
    collector = Collector(False, False, False, True)
    queue = queue_to(collector, pauses=(0.001,) * 5, reason=lambda: "connection refused")
    queue.put(record())
    settled(queue, SpanCounts(exported=1))
    queue.put(record())
    settled(queue, SpanCounts(exported=2))
    assert [message.getMessage() for message in caplog.records] == [
        "spans cannot be exported",
        "spans are exported again",
    ]
    assert caplog.records[0].reason == "connection refused"


def test_stopping_flushes_at_once_what_waits(queue_to):
    collector = Collector(True)
    queue = queue_to(collector, delay=600)
    for number in range(3):
        queue.put(record(number))
    assert queue.stop(5) == 0
    assert queue.counts() == SpanCounts(exported=3)


def test_stopping_cuts_a_pause_between_attempts_short(queue_to):
    collector = Collector(False)
    queue = queue_to(collector, pauses=(600,))
    queue.put(record())
    wait_until(lambda: collector.batches, 5, "the attempt", every=0.002)
    began = monotonic()
    assert queue.stop(5) == 0
    assert monotonic() - began < 2
    assert queue.counts() == SpanCounts(failed=1)


def test_stopping_waits_no_longer_than_it_may_and_counts_the_rest_as_dropped(queue_to):
    collector = Collector(True, open=False)
    queue = queue_to(collector)
    for number in range(6):
        queue.put(record(number))
    wait_until(lambda: collector.batches, 5, "the attempt", every=0.002)
    began = monotonic()
    assert queue.stop(0.05) == 6
    assert monotonic() - began < 1
    collector.gate.set()
    wait_until(
        lambda: all(thread.name != "span-export" for thread in threading.enumerate()),
        5,
        "the end of the thread",
    )
    # The attempt that was abandoned may have arrived: it is counted once all the same.
    assert queue.counts() == SpanCounts(dropped=6)


def test_what_comes_after_the_end_is_dropped_and_counted(queue_to):
    queue = queue_to(Collector(True))
    queue.stop(5)
    queue.put(record())
    assert queue.counts() == SpanCounts(dropped=1)


def test_every_thread_s_spans_are_counted(queue_to):
    queue = queue_to(Collector(True, False, True, False, True), capacity=300, batch=16, delay=0.001)

    def put():
        for number in range(500):
            queue.put(record(number))

    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    queue.stop(5)
    counts = queue.counts()
    assert counts.exported + counts.failed + counts.dropped == 2000
    assert counts.queued == 0
