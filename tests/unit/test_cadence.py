"""When the report is written: Fatal at once, the rest by a bucket, and a sign of life."""

import math

import msgspec.structs
import pytest

from exporter.cadence import (
    ATTENTIVE_SECONDS,
    BURST,
    REFILL_SECONDS,
    Bucket,
    Due,
    Write,
    attentive,
    due,
    meaning,
    retry_pause,
)
from exporter.reporting import report_status
from exporter.state import NVML
from health.receipt import Receipt, RepairResult
from health.report import Source
from health.vocabulary import DeviceAccess, SourceState
from tests.unit.agent_samples import BOOT, NOW, full_sample, known_state, later, xid

SAMPLES = {device.uuid: device for device in (full_sample(0), full_sample(1))}


def status(state, **changes):
    made = report_status(state, now=NOW, samples=SAMPLES, node_uid="uid", agent_version="1")
    return msgspec.structs.replace(made, **changes)


CALM = status(known_state())
DEGRADED = status(known_state().with_message(xid(94)))
FATAL = status(known_state().with_message(xid(79)))


def next_write(wanted, written, *, bucket=None, renew_at=1030.0, now=1000.0):
    return due(wanted, written, bucket=bucket or Bucket(), renew_at=renew_at, now=now)


EMPTY = Bucket(tokens=0.0, at=1000.0)
BEGUN = Receipt("session", "Reset", 1, BOOT, RepairResult.BEGUN, NOW)
DONE = Receipt("session", "Reset", 1, BOOT, RepairResult.DONE, later(5))


def test_the_first_write_is_at_once():
    assert next_write(CALM, None) == Due(Write.CHANGE, 1000.0)


def test_a_fatal_fault_is_written_at_once_whatever_was_written_before():
    assert next_write(FATAL, CALM, bucket=EMPTY) == Due(Write.FATAL, 1000.0)
    assert next_write(FATAL, None, bucket=EMPTY) == Due(Write.FATAL, 1000.0)


def test_a_rise_to_fatal_is_written_at_once():
    degraded = status(known_state().with_message(xid(74)))
    fatal = status(known_state().with_message(xid(74)).with_message(xid(155)))
    assert next_write(fatal, degraded, bucket=EMPTY).write is Write.FATAL


def test_a_drill_that_becomes_real_is_written_at_once():
    drill = status(known_state().with_message(xid(79, drill=True)))
    assert next_write(FATAL, drill, bucket=EMPTY).write is Write.FATAL


def test_another_change_waits_for_a_token():
    assert next_write(DEGRADED, CALM) == Due(Write.CHANGE, 1000.0)
    assert next_write(DEGRADED, CALM, bucket=EMPTY) == Due(Write.CHANGE, 1000.0 + REFILL_SECONDS)


def test_a_change_that_would_wait_longer_than_the_renewal_rides_on_it():
    assert next_write(DEGRADED, CALM, bucket=EMPTY, renew_at=1002) == Due(Write.RENEWAL, 1002)


def test_without_a_change_the_next_write_is_the_renewal():
    assert next_write(CALM, CALM) == Due(Write.RENEWAL, 1030.0)
    assert next_write(CALM, CALM, renew_at=900.0) == Due(Write.RENEWAL, 1000.0)


@pytest.mark.parametrize(
    ("wanted", "written"),
    [
        (status(known_state(), receipts=(BEGUN,)), CALM),
        (status(known_state(), receipts=(DONE,)), status(known_state(), receipts=(BEGUN,))),
        (status(known_state(), device_access=DeviceAccess.RELEASED), CALM),
        (CALM, status(known_state(), device_access=DeviceAccess.RELEASED)),
    ],
)
def test_what_a_repair_waits_for_is_written_at_once_and_takes_no_token(wanted, written):
    assert next_write(wanted, written, bucket=EMPTY) == Due(Write.REPAIR, 1000.0)


def test_a_receipt_that_is_gone_is_a_change_like_others():
    left = status(known_state(), receipts=(BEGUN,))
    assert next_write(CALM, left, bucket=EMPTY) == Due(Write.CHANGE, 1000.0 + REFILL_SECONDS)


def test_counts_and_times_are_no_change():
    again = status(known_state().with_message(xid(79)).with_message(xid(79, sequence=2, at=later(9))))
    assert again != FATAL
    assert meaning(again) == meaning(FATAL)
    reworded = status(known_state(), sources=(Source(NVML, SourceState.LIVE, "other words"),))
    plain = status(known_state(), sources=(Source(NVML, SourceState.LIVE, ""),))
    assert meaning(reworded) == meaning(plain)


@pytest.mark.parametrize(
    "changed",
    [
        status(known_state(), boot_id="other"),
        status(known_state(), node_uid="other"),
        status(known_state(), drill=True),
        status(known_state(), device_access=DeviceAccess.RELEASED),
        status(known_state(), sources=(Source(NVML, SourceState.STALE),)),
        status(known_state(1)),
        status(known_state(), receipts=(DONE,)),
        DEGRADED,
    ],
)
def test_these_are_changes_of_meaning(changed):
    assert meaning(changed) != meaning(CALM)


def test_a_burst_is_written_and_then_one_every_few_seconds():
    bucket, written, now = Bucket(), [], 0.0
    for _ in range(BURST + 3):
        now = max(now, bucket.ready_at(now))
        bucket = bucket.taken(now)
        written.append(now)
    assert written == pytest.approx([0, 0, 0, 5, 10, 15])


def test_a_rested_bucket_holds_no_more_than_the_burst():
    bucket = Bucket(tokens=0.0, at=0.0)
    for _ in range(BURST):
        assert bucket.ready_at(10_000) == 10_000
        bucket = bucket.taken(10_000)
    assert bucket.ready_at(10_000) > 10_000


def test_a_node_that_is_to_be_repaired_or_is_being_repaired_asks_for_orders_more_often():
    released = msgspec.structs.replace(CALM, device_access=DeviceAccess.RELEASED)
    assert [attentive(status) for status in (FATAL, released)] == [ATTENTIVE_SECONDS] * 2
    assert [attentive(status) for status in (CALM, DEGRADED)] == [math.inf] * 2


@pytest.mark.parametrize(("urgent", "longest"), [(True, 1.0), (False, 10.0)])
def test_a_write_that_fails_is_tried_again_ever_later_up_to_a_bound(urgent, longest):
    pauses = [retry_pause(failures, urgent=urgent) for failures in range(1, 2000)]
    assert pauses[:3] == [0.2, 0.4, 0.8]
    assert pauses == sorted(pauses)
    assert pauses[-1] == longest
