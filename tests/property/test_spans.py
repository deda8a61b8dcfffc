"""Ids of traces and spans under whatever names them."""

from hypothesis import given
from hypothesis import strategies as st

from runtime.spans import span_id_of, trace_id_of

parts = st.lists(st.one_of(st.text(), st.integers()), min_size=1, max_size=5)


@given(parts)
def test_ids_are_a_function_of_their_parts_and_fit_the_wire(given_parts):
    assert 0 < trace_id_of(*given_parts) < 1 << 128
    assert 0 < span_id_of(*given_parts) < 1 << 64
    assert trace_id_of(*given_parts) == trace_id_of(*given_parts)
    assert span_id_of(*given_parts) == span_id_of(*given_parts)


@given(parts, parts)
def test_different_parts_have_different_ids(one, other):
    same = [str(part) for part in one] == [str(part) for part in other]
    assert (trace_id_of(*one) == trace_id_of(*other)) is same
    assert (span_id_of(*one) == span_id_of(*other)) is same
