"""Which closed sessions have been kept long enough."""

from datetime import timedelta

from health.vocabulary import Phase
from remediation.objects import AcceleratorRemediation
from remediation.retention import KEEP, KEEP_PER_NODE, outlived
from tests.unit.builders import NOON, session


def closed(
    number: int, *, days: float, node_name: str = "n1", phase: Phase = Phase.RELEASED
) -> AcceleratorRemediation:
    return session(
        name=f"{node_name}-{number}", node_name=node_name, phase=phase, closed=NOON - timedelta(days=days)
    )


def names(found: list[AcceleratorRemediation]) -> list[str]:
    return sorted(item.metadata.name for item in found)


def test_a_closed_session_is_kept_for_thirty_days() -> None:
    sessions = [closed(1, days=29.9), closed(2, days=30), closed(3, days=30.1)]
    assert names(outlived(sessions, NOON)) == ["n1-3"]


def test_of_a_node_only_the_newest_twenty_are_kept() -> None:
    sessions = [closed(number, days=number / 10) for number in range(KEEP_PER_NODE + 3)]
    assert names(outlived(sessions, NOON)) == ["n1-20", "n1-21", "n1-22"]
    others = [closed(number, days=number / 10, node_name="n2") for number in range(KEEP_PER_NODE)]
    assert names(outlived([*others, *sessions], NOON)) == ["n1-20", "n1-21", "n1-22"]


def test_an_open_session_is_kept_however_old_it_is() -> None:
    held = session(phase=Phase.HELD, created=NOON - 10 * KEEP)
    assert outlived([held], NOON) == []


def test_a_cancelled_session_is_kept_as_long_as_a_released_one() -> None:
    sessions = [closed(1, days=31, phase=Phase.CANCELLED), closed(2, days=1, phase=Phase.CANCELLED)]
    assert names(outlived(sessions, NOON)) == ["n1-1"]


def test_nothing_is_outlived_where_there_is_nothing() -> None:
    assert outlived([], NOON) == []
