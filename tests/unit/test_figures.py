"""What a verification Job's container says, held against a baseline."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from remediation.figures import judge
from remediation.repair_policy import Baseline

BUS = Baseline(model="H100", minimum={"busbw": 400.0}, maximum={"errors": 0.0})
NUMBERS = st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = SCALARS | NUMBERS | st.lists(SCALARS, max_size=2)


def test_figures_within_their_bounds_are_good_whatever_stands_beside_them() -> None:
    assert judge(0, '{"busbw": 400, "errors": 0, "gpus": ["a", null], "note": "ok"}', BUS) == ""


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ('{"busbw": 399.5, "errors": 0}', "busbw is 399.5, and must be at least 400"),
        ('{"busbw": 500, "errors": 1}', "errors is 1, and must be at most 0"),
        ('{"errors": 0}', "busbw is missing"),
        ('{"busbw": null, "errors": 0}', "busbw is missing"),
        ('{"busbw": "500", "errors": 0}', "busbw is no number ('500')"),
        ('{"busbw": true, "errors": 0}', "busbw is no number (True)"),
        ('{"busbw": [500], "errors": 0}', "busbw is no number ([500])"),
        ('{"busbw": NaN, "errors": 0}', "not a JSON object"),
        ('{"busbw": Infinity, "errors": 0}', "not a JSON object"),
        ("[400]", "not a JSON object"),
        ("", "not a JSON object"),
        ("busbw 400", "not a JSON object of figures: 'busbw 400'"),
    ],
)
def test_what_is_bad_missing_or_no_number_is_named(message: str, told: str) -> None:
    assert told in judge(0, message, BUS)


def test_every_figure_that_is_wrong_is_named_at_once() -> None:
    assert judge(0, '{"busbw": 1}', BUS) == "busbw is 1, and must be at least 400; errors is missing"


def test_a_container_that_fails_has_no_good_figures() -> None:
    told = judge(3, '{"busbw": 500,\n "errors": 0}', BUS)
    assert told == 'it ended with 3: {"busbw": 500, "errors": 0}'
    assert judge(137, "", BUS) == "it ended with 137"


def test_without_a_baseline_it_is_enough_that_the_container_ends_well() -> None:
    assert judge(0, "not even JSON", None) == ""
    assert judge(1, "", None) == "it ended with 1"


@pytest.mark.parametrize("digits", [20, 400, 4000])
def test_a_number_that_is_too_large_for_this_machine_is_judged_and_crashes_nothing(digits: int) -> None:
    assert "errors" not in judge(0, f'{{"busbw": 1{"0" * digits}, "errors": 0}}', BUS)
    assert 0 < len(judge(0, f'{{"busbw": 500, "errors": 1{"0" * digits}}}', BUS)) < 200


def test_json_that_is_nested_without_end_is_no_object_of_figures() -> None:
    for bracket in ("[", '{"a":'):
        for depth in (900, 4000 // len(bracket)):
            assert "not a JSON object" in judge(0, '{"busbw": ' + bracket * depth, BUS)


@settings(max_examples=60)
@given(NUMBERS, NUMBERS)
def test_a_bound_is_kept_exactly(value: float, bound: float) -> None:
    message = json.dumps({"x": value})
    least, most = Baseline(model="", minimum={"x": bound}), Baseline(model="", maximum={"x": bound})
    assert (judge(0, message, least) == "") is (value >= bound)
    assert (judge(0, message, most) == "") is (value <= bound)


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(["busbw", "errors", "other"]), JSON))
def test_nothing_passes_but_finite_numbers_within_the_bounds(figures: dict[str, Any]) -> None:
    bandwidth, errors = (figures.get(key) for key in ("busbw", "errors"))
    plain = all(type(value) in (int, float) and abs(value) < 1e300 for value in (bandwidth, errors))
    told = judge(0, json.dumps(figures), BUS)
    assert (told == "") <= plain
    if plain and "NaN" not in json.dumps(figures) and "Infinity" not in json.dumps(figures):
        assert (told == "") is (bandwidth >= 400 and errors <= 0)


@settings(max_examples=60)
@given(st.text(max_size=40))
@example('{"busbw": "\\ud800"}')
def test_any_message_is_judged_in_a_sentence_that_can_be_written_down(message: str) -> None:
    told = judge(0, message, BUS)
    assert told and len(told) < 1024
