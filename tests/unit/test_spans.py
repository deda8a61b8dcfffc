"""Ids of spans and traces, and the record of a span."""

import pytest

from runtime.spans import SpanLink, SpanRecord, TraceRef, span_id_of, trace_id_of


def record(**given):
    values = {"name": "a", "trace_id": 1, "span_id": 2, "parent_id": None, "start_ns": 10, "end_ns": 20}
    return SpanRecord(**values | given)


def test_ids_are_the_same_in_every_version():
    # Literal on purpose: a successor that derives others would tell every open trace a second time.
    assert f"{trace_id_of('dispatch', 'uid', 1):032x}" == "9a0ff76dec5479b9100c7d5815876215"
    assert f"{span_id_of('dispatch', 'uid', 1):016x}" == "113169c29530a738"


def test_a_number_and_its_text_are_the_same_part():
    assert trace_id_of("uid", 1) == trace_id_of("uid", "1")


def test_parts_do_not_run_into_each_other():
    assert len({trace_id_of(*parts) for parts in (("ab", "c"), ("a", "bc"), ("abc",), ("ab", "c", ""))}) == 4


def test_a_trace_and_a_span_of_the_same_parts_share_no_digits():
    assert trace_id_of("uid") >> 64 != span_id_of("uid")


@pytest.mark.parametrize("derive", [trace_id_of, span_id_of])
def test_an_id_of_nothing_is_refused(derive):
    with pytest.raises(ValueError, match="at least one part"):
        derive()


def test_a_part_that_is_no_valid_text_has_an_id_too():
    assert trace_id_of("\udcff") != trace_id_of("?")


def test_a_place_shows_its_ids_with_all_their_digits():
    place = TraceRef(0xAB, 0xC)
    assert (place.trace_hex, place.span_hex) == ("0" * 30 + "ab", "0" * 15 + "c")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trace_id": 0}, "the trace id of 'a' must be above zero and fit 128 bits, got 0x0"),
        ({"trace_id": 1 << 128}, "the trace id of 'a' must be above zero"),
        ({"span_id": 1 << 64}, "the span id of 'a' must be above zero and fit 64 bits"),
        ({"span_id": -1}, "the span id of 'a' must be above zero"),
        ({"parent_id": 0}, "the parent's id of 'a' must be above zero"),
    ],
)
def test_an_id_that_the_wire_cannot_carry_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        record(**given)


def test_a_link_to_nowhere_is_refused():
    with pytest.raises(ValueError, match="the linked span's id"):
        SpanLink(TraceRef(1, 0))


@pytest.mark.parametrize(
    ("start", "end", "held"),
    [
        (20, 10, (20, 20)),
        (-5, -3, (0, 0)),
        (5, 1 << 70, (5, (1 << 63) - 1)),
        (1 << 70, 5, ((1 << 63) - 1,) * 2),
    ],
)
def test_times_are_held_in_order_and_within_the_wire(start, end, held):
    made = record(start_ns=start, end_ns=end)
    assert (made.start_ns, made.end_ns) == held


def test_a_record_does_not_change_with_the_mapping_it_was_made_from():
    attributes = {"xid": 79}
    made = record(attributes=attributes, links=(SpanLink(TraceRef(1, 2), attributes),))
    attributes["xid"] = 48
    assert made.attributes == {"xid": 79}
    assert made.links[0].attributes == {"xid": 79}
