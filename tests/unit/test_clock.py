"""Clocks and RFC 3339."""

import contextlib
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.clock import ManualClock, SystemClock, TimestampError, parse_rfc3339, rfc3339


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-08-01T12:30:05Z", datetime(2026, 8, 1, 12, 30, 5, tzinfo=UTC)),
        ("2026-08-01T12:30:05.5Z", datetime(2026, 8, 1, 12, 30, 5, 500_000, tzinfo=UTC)),
        ("2026-08-01T12:30:05.123456789Z", datetime(2026, 8, 1, 12, 30, 5, 123_456, tzinfo=UTC)),
        ("2026-08-01t12:30:05z", datetime(2026, 8, 1, 12, 30, 5, tzinfo=UTC)),
        ("2026-08-01T14:30:05+02:00", datetime(2026, 8, 1, 12, 30, 5, tzinfo=UTC)),
    ],
)
def test_the_forms_that_kubernetes_writes_are_read(text: str, moment: datetime) -> None:
    parsed = parse_rfc3339(text)
    assert parsed == moment
    assert parsed.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "20260801",
        "2026-08-01",
        "2026-08-01T12:30:05",
        "2026-08-01 12:30:05Z",
        "2026-13-01T12:30:05Z",
        "2026-02-30T12:30:05Z",
        "2026-08-01T25:30:05Z",
        "2026-08-01T12:30:05.Z",
        "2026-08-01T12:30:05+99:00",
        "0001-01-01T00:00:00+14:00",
        "\uff12026-08-01T12:30:05Z",
        "2026-08-01T12:30:05Z\n",
        "9" * 10_000,
    ],
)
def test_anything_else_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(TimestampError) as refused:
        parse_rfc3339(text)
    assert "is not an RFC 3339 time such as 2026-01-01T00:00:00Z" in str(refused.value)
    assert len(str(refused.value)) < 200


@given(
    st.datetimes(
        min_value=datetime(1000, 1, 2),  # noqa: DTZ001 - its zone comes from `timezones`
        timezones=st.sampled_from([UTC, timezone(timedelta(hours=-7))]),
    )
)
def test_what_is_written_is_read_back(moment: datetime) -> None:
    text = rfc3339(moment)
    assert len(text) == 27 and text.endswith("Z")
    assert parse_rfc3339(text) == moment


@given(st.text(max_size=40))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    with contextlib.suppress(TimestampError):
        parse_rfc3339(text)


def test_a_time_without_a_zone_is_not_written() -> None:
    with pytest.raises(ValueError, match="without a zone"):
        rfc3339(datetime(2026, 1, 1))  # noqa: DTZ001 - what is refused


def test_the_systems_clock_is_aware_and_moves() -> None:
    clock = SystemClock()
    assert clock.wall().utcoffset() == timedelta(0)
    assert clock.monotonic() <= clock.monotonic()


def test_a_manual_clock_moves_only_when_told() -> None:
    clock = ManualClock(wall=datetime(2026, 1, 1, tzinfo=UTC), monotonic=5.0)
    clock.advance(2.5)
    clock.step_wall(-3600)
    assert clock.monotonic() == 7.5
    assert clock.wall() == datetime(2025, 12, 31, 23, 0, 2, 500_000, tzinfo=UTC)
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)
