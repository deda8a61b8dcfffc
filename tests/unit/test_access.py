"""Unknown Error (999): when it is this process that has lost the devices, and when it is not."""

import pytest

from exporter.access import AccessWatch
from exporter.samples import WorkerError
from health.vocabulary import SourceState

LIVE, FAILED = SourceState.LIVE, SourceState.FAILED
UNKNOWN = WorkerError.UNKNOWN


def watched(*seen):
    watch = AccessWatch()
    for state, error, restarts in seen:
        watch = watch.seen(state, error, restarts)
    return watch


def test_access_that_a_fresh_worker_does_not_get_back_is_lost():
    seen = [(LIVE, None, 0), (FAILED, UNKNOWN, 0), (FAILED, UNKNOWN, 1)]
    assert not watched(*seen).lost
    assert watched(*seen, (FAILED, UNKNOWN, 2)).lost


def test_a_worker_that_gets_it_back_ends_the_alarm():
    watch = watched((LIVE, None, 0), (FAILED, UNKNOWN, 0), (LIVE, None, 1), (FAILED, UNKNOWN, 2))
    assert not watch.lost
    assert watch.denied_at == 2


def test_access_that_never_was_is_not_lost():
    assert not watched((FAILED, UNKNOWN, 0), (FAILED, UNKNOWN, 5), (FAILED, UNKNOWN, 50)).lost


@pytest.mark.parametrize("error", [None, *(error for error in WorkerError if error is not UNKNOWN)])
def test_other_failures_are_not_ours(error):
    assert not watched((LIVE, None, 0), (FAILED, error, 0), (FAILED, error, 9)).lost


def test_another_failure_in_between_begins_the_count_anew():
    driver = WorkerError.DRIVER_NOT_LOADED
    watch = watched((LIVE, None, 0), (FAILED, UNKNOWN, 0), (FAILED, driver, 1), (FAILED, UNKNOWN, 2))
    assert not watch.lost


def test_what_is_lost_stays_lost_until_it_works_again():
    lost = watched((LIVE, None, 0), (FAILED, UNKNOWN, 0), (FAILED, UNKNOWN, 2))
    assert lost.seen(FAILED, UNKNOWN, 3).lost
