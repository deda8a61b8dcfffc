"""A session told as a trace: from what its object keeps, the same each time, each span once."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from msgspec.structs import replace

from health.vocabulary import Mode, Phase
from remediation import journal
from remediation.drain_state import DrainState, EvictedPod
from remediation.objects import AcceleratorRemediation, RemediationStatus
from remediation.traces import Teller, root_of, spans_of, trace_of
from runtime.spans import SpanRecord, dispatch_trace
from tests.unit.builders import NOON
from tests.unit.builders import session as make_session
from tests.unit.collected_spans import Collected


def at(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def story(*, closed: bool) -> AcceleratorRemediation:
    """Pending, fenced after a second, drained after ten, held; and, if wanted, released."""
    status = journal.moved(RemediationStatus(), Phase.PENDING, reason="Fencing", message="", now=NOON)
    status = journal.with_intent(status, step="Cordon", attempt=1, epoch=3, now=NOON, message="cordons")
    status = journal.with_outcome(
        status, step="Cordon", attempt=1, epoch=3, now=NOON + at(1), result="Done", message="cordoned"
    )
    status = journal.moved(status, Phase.FENCED, reason="Fenced", message="", now=NOON + at(1))
    status = journal.moved(status, Phase.DRAINING, reason="Drain", message="", now=NOON + at(2))
    status = journal.with_intent(
        status, step="Drain", attempt=1, epoch=3, now=NOON + at(2), message="drains the node"
    )
    drain = DrainState(
        started=NOON + at(2), evicted_pods=(EvictedPod("uid-a", "team"),), replacements=("uid-b",)
    )
    status = journal.with_outcome(
        replace(status, drain=drain),
        step="Drain",
        attempt=1,
        epoch=3,
        now=NOON + at(10),
        result="DeadlineReached",
        message="2 pods left",
    )
    status = journal.moved(status, Phase.HELD, reason="DrainDeadline", message="", now=NOON + at(10))
    if closed:
        status = journal.moved(status, Phase.RELEASED, reason="Healthy", message="", now=NOON + at(60))
    return replace(make_session(mode=Mode.AUTO), status=status)


def by_name(spans: Iterator[SpanRecord]) -> dict[str, SpanRecord]:
    return {span.name: span for span in spans}


def test_what_has_ended_is_told_and_what_lasts_is_not() -> None:
    spans = by_name(spans_of(story(closed=False)))
    assert spans.keys() == {"phase Pending", "phase Fenced", "phase Draining", "step Cordon", "step Drain"}
    assert spans["phase Draining"].end_ns - spans["phase Draining"].start_ns == 8_000_000_000


def test_a_closed_session_has_its_root_and_every_span_hangs_on_it() -> None:
    session = story(closed=True)
    spans = by_name(spans_of(session))
    root = spans["remediation"]
    assert root.ref == root_of(session) and root.parent_id is None
    assert root.end_ns - root.start_ns == 60_000_000_000
    assert {span.trace_id for span in spans.values()} == {int(trace_of(session.metadata.name), 16)}
    ids = {span.span_id for span in spans.values()}
    assert len(ids) == len(spans)
    assert all(span.parent_id in ids for span in spans.values() if span is not root)
    assert spans["step Drain"].parent_id == spans["phase Draining"].span_id


def test_the_drain_is_linked_to_the_dispatches_of_evicted_pods_and_of_their_replacements() -> None:
    drain = by_name(spans_of(story(closed=False)))["step Drain"]
    assert [(link.to, link.attributes["sickbay.pod.role"]) for link in drain.links] == [
        (dispatch_trace("uid-a"), "evicted"),
        (dispatch_trace("uid-b"), "replacement"),
    ]
    assert (drain.status, drain.status_message) == ("error", "2 pods left")


@pytest.mark.parametrize("closed", [False, True])
def test_telling_a_session_again_tells_the_same_spans(closed: bool) -> None:
    assert list(spans_of(story(closed=closed))) == list(spans_of(story(closed=closed)))


def test_each_span_is_emitted_once_by_a_process() -> None:
    tracer = Collected()
    teller = Teller(tracer)
    for closed in (False, False, True, True):
        teller.tell(story(closed=closed))
    assert len(tracer.spans) == len({span.span_id for span in tracer.spans}) == 7


def test_a_new_leader_tells_open_sessions_and_just_closed_ones_again() -> None:
    tracer = Collected()
    teller = Teller(tracer)
    now = NOON + at(60)
    teller.tell_again([story(closed=True)], now + timedelta(minutes=9))
    assert len(tracer.spans) == 7
    teller.tell_again([story(closed=False)], now)
    assert len(tracer.spans) == 12
    teller.tell_again([story(closed=True)], now + timedelta(minutes=11))
    assert len(tracer.spans) == 12
