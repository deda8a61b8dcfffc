"""Time as our processes see it: a monotonic clock for decisions, a wall clock for records.

Deadlines, freshness and fencing are measured on the monotonic clock alone, because the wall clock
of a machine may step. Wall time goes into objects and logs, where people read it.
"""

import re
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

# RFC 3339, section 5.6. `datetime.fromisoformat` alone would take `20260101` and times without a zone.
_RFC3339 = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt](\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
)


class TimestampError(ValueError):
    """A text that is not an RFC 3339 time."""


class Clock(Protocol):
    """What decides passes a clock in, so that tests can own time."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never goes backwards."""

    def wall(self) -> datetime:
        """The time of day, aware, in UTC."""


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> datetime:
        return datetime.now(UTC)


class ManualClock:
    """A clock that stands still until a test moves it."""

    def __init__(
        self, *, wall: datetime = datetime(2026, 1, 1, tzinfo=UTC), monotonic: float = 1000.0
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic

    def monotonic(self) -> float:
        return self._monotonic

    def wall(self) -> datetime:
        return self._wall

    def advance(self, seconds: float) -> None:
        """Let `seconds` (not negative) pass on both clocks."""
        if seconds < 0:
            raise ValueError(f"time does not go backwards: {seconds}")
        self._monotonic += seconds
        self._wall += timedelta(seconds=seconds)

    def step_wall(self, seconds: float) -> None:
        """Step the wall clock alone, either way, as NTP or an operator would."""
        self._wall += timedelta(seconds=seconds)


def rfc3339(moment: datetime) -> str:
    """`moment` as `2026-01-01T00:00:00.000000Z`, the form of Kubernetes' MicroTime.

    Raises ValueError for a naive datetime: its zone would be a guess.
    """
    if moment.tzinfo is None:
        raise ValueError(f"a time without a zone cannot be written as RFC 3339: {moment!r}")
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def parse_rfc3339(text: str) -> datetime:
    """The aware UTC time that `text` names; digits past microseconds are cut off.

    Raises TimestampError, which shows the text and the form that was expected.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise _not_a_time(text)
    day, clock, fraction, zone = match.groups()
    micros = (fraction or "").ljust(6, "0")[:6]
    zone = "+00:00" if zone in "Zz" else zone
    try:
        return datetime.fromisoformat(f"{day}T{clock}.{micros}{zone}").astimezone(UTC)
    except (ValueError, OverflowError):
        raise _not_a_time(text) from None


def _not_a_time(text: str) -> TimestampError:
    shown = text if len(text) <= 64 else text[:64] + "..."
    return TimestampError(f"{shown!r} is not an RFC 3339 time such as 2026-01-01T00:00:00Z")
