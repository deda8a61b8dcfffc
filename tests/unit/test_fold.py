"""Events in their possible orders: start, restart, the own report, orders of the controller."""

from dataclasses import replace

import pytest

from exporter.events import CaughtUp, Met, SourceSaid, Written
from exporter.fold import OTHER_SOURCES, SETTLING_SECONDS, Fold
from exporter.orders import orders
from exporter.reporting import report_status
from exporter.state import KERNEL_LOG, NVML
from health import xids
from health.report import DeviceRelease, Drill, Maintenance, ReportSpec
from health.vocabulary import SourceState
from tests.unit.agent_samples import BOOT, NOW, full_sample, inventory, known_state, later, sample, xid

LIVE_LOG = SourceSaid(KERNEL_LOG, SourceState.LIVE, "")


class Folding:
    """A fold with a clock of its own; every event takes a millisecond."""

    def __init__(self, memory=None, drill=False, at=0.0):
        self.seconds = at
        self.fold = Fold(
            boot_id=BOOT,
            catalogue=xids.builtin(),
            memory=memory,
            drill=drill,
            now=later(at),
            monotonic=1000 + at,
        )
        for source in OTHER_SOURCES:
            said = SourceSaid(source, SourceState.UNSUPPORTED, "no kubelet")
            self.fold.take(said, now=later(at), monotonic=1000 + at)

    def take(self, *events):
        for event in events:
            self.seconds += 0.001
            self.fold.take(event, now=later(self.seconds), monotonic=1000 + self.seconds)
        self.wait(0)
        return self

    def wait(self, seconds):
        self.seconds += seconds
        self.fold.settle(now=later(self.seconds), monotonic=1000 + self.seconds)
        return self

    @property
    def kinds(self):
        return [fault.kind for fault in self.fold.state.diagnosis.faults]

    @property
    def count(self):
        (fault,) = self.fold.state.diagnosis.faults
        return fault.count


def own_report(state):
    return Met(report_status(state, now=NOW, samples={}, node_uid="uid", agent_version="1"))


def test_the_own_report_waits_for_the_replay_so_that_nothing_is_counted_twice():
    before = own_report(known_state().with_message(xid(79)))
    folding = Folding().take(before)
    assert not folding.fold.merged
    folding.take(inventory(0, 1), LIVE_LOG, xid(79), CaughtUp())
    assert folding.fold.merged
    assert (folding.kinds, folding.count) == (["DeviceLost"], 1)


def test_the_own_report_comes_after_the_replay():
    before = own_report(known_state().with_message(xid(79)))
    folding = Folding().take(inventory(0, 1), xid(79), CaughtUp())
    assert not folding.fold.merged
    folding.take(before)
    assert (folding.fold.merged, folding.count) == (True, 1)


def test_the_own_report_is_taken_up_without_a_kernel_log_too():
    before = own_report(known_state().with_message(xid(79)))
    failed = SourceSaid(KERNEL_LOG, SourceState.FAILED, "not there")
    folding = Folding().take(before, failed, SourceSaid(NVML, SourceState.FAILED, "no"))
    assert folding.kinds == ["DeviceLost"]


def test_sources_that_say_nothing_are_not_waited_for_for_ever():
    folding = Folding().take(Met(None))
    assert not folding.fold.merged
    folding.wait(SETTLING_SECONDS + 1)
    assert folding.fold.merged
    assert folding.fold.settled(1000 + folding.seconds)


def test_with_a_state_file_the_report_is_not_taken_up_again():
    first = Folding().take(Met(None), inventory(0, 1), CaughtUp(), xid(94))
    memory = first.fold.memory("uid")
    assert memory.met
    cleared = Folding(memory, at=3600)
    assert cleared.kinds == []
    stale_report = own_report(known_state().with_message(xid(94, at=later(3599))))
    cleared.take(stale_report, CaughtUp())
    assert cleared.fold.merged
    assert cleared.kinds == []


def test_a_file_that_was_written_before_the_report_was_read_does_not_replace_it():
    crashed = Folding().take(inventory(0, 1), CaughtUp())
    memory = crashed.fold.memory("uid")
    assert not memory.met
    folding = Folding(memory).take(own_report(known_state().with_message(xid(79))), CaughtUp())
    assert folding.kinds == ["DeviceLost"]


def test_the_sequence_goes_on_over_a_restart():
    folding = Folding().take(Written(7))
    assert folding.fold.written
    restarted = Folding(folding.fold.memory("uid"))
    assert restarted.fold.sequence == 7
    assert not restarted.fold.written


@pytest.mark.parametrize("last", [SourceState.FAILED, SourceState.UNSUPPORTED, SourceState.RELEASED])
def test_everything_is_observed_when_every_source_has_said_its_last_word(last):
    folding = Folding().take(LIVE_LOG, CaughtUp())
    assert not folding.fold.observed
    assert folding.take(SourceSaid(NVML, last, "why")).fold.observed


def test_everything_is_observed_with_a_sample_and_the_end_of_the_log():
    folding = Folding().take(SourceSaid(NVML, SourceState.LIVE, ""), inventory(0), sample(full_sample(0)))
    assert not folding.fold.observed
    assert folding.take(CaughtUp()).fold.observed


def test_devices_are_released_until_the_time_and_then_taken_again():
    spec = ReportSpec(device_release=DeviceRelease("session", later(60)))
    folding = Folding().take(spec)
    assert folding.fold.orders.released(1000 + 59)
    assert not folding.fold.orders.released(1000 + 61)


def test_a_restart_in_the_middle_of_a_release_keeps_it():
    folding = Folding().take(ReportSpec(device_release=DeviceRelease("session", later(60))))
    restarted = Folding(folding.fold.memory("uid"), at=30)
    assert restarted.fold.orders.released(1000 + 31)
    assert restarted.take(ReportSpec()).fold.orders.released(1000 + 31) is False


def test_maintenance_releases_until_it_is_taken_away():
    folding = Folding().take(ReportSpec(maintenance=Maintenance("driver upgrade", NOW)))
    assert folding.fold.orders.released(1000 + 10**9)
    assert not folding.take(ReportSpec()).fold.orders.released(1000)


def test_a_drill_is_on_until_its_end_and_the_state_says_so():
    folding = Folding().take(ReportSpec(drill=Drill("ada", later(60))))
    assert folding.fold.state.drill
    assert not folding.wait(60).fold.state.drill


def test_a_drill_by_configuration_does_not_end():
    assert Folding(drill=True).wait(10**6).fold.state.drill


def test_an_order_whose_time_is_over_asks_for_nothing():
    spec = ReportSpec(device_release=DeviceRelease("session", later(-1)), drill=Drill("ada", later(-1)))
    given = orders(spec, wall=NOW, monotonic=50)
    assert not given.released(50)
    assert not given.drilling(50)


def test_a_fault_ends_as_time_passes():
    folding = Folding().take(inventory(0, 1), xid(94))
    assert folding.kinds == ["ContainedMemory"]
    assert folding.wait(3600).kinds == []


def test_a_replayed_fault_keeps_the_time_of_its_line():
    folding = Folding(at=300).take(inventory(0, 1), replace(xid(79), time=later(-500)))
    (fault,) = folding.fold.state.diagnosis.faults
    assert fault.first_seen == later(-500)
