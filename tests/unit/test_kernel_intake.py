"""Which records are taken, which are only counted, and when a line was written."""

from datetime import timedelta

import pytest

from exporter.sources.kernel_intake import OUTCOMES, Intake
from exporter.sources.kmsg import Record
from runtime.clock import ManualClock

XID = "NVRM: Xid (PCI:0000:3b:00): 79, pid=1, name=python, GPU has fallen off the bus."
AT = "NVRM: GPU at PCI:0000:02:00: GPU-660d987e-5b28-3bf6-2a2d-1d5ecae7f6df"
SXID = "nvidia-nvswitch1: SXid (PCI:0000:00:08.0): 11004, Non-fatal, Link 36 ingress invalid ACL"


class Taken:
    """An intake, and what it handed on."""

    def __init__(self, **options):
        self.clock = ManualClock()
        self.messages = []
        self.intake = Intake(on_message=self.messages.append, clock=self.clock, **options)
        self.intake.opened()

    def take(self, message=XID, *, sequence=1, facility=0, microseconds=0):
        self.intake.take(Record(facility, sequence, microseconds, message))

    @property
    def counts(self):
        return {outcome: count for outcome, count in self.intake.counts.items() if count}


@pytest.mark.parametrize(
    ("message", "outcome"),
    [
        (XID, "xid"),
        (SXID, "sxid"),
        (AT, "address"),
        ("NVRM: loading NVIDIA UNIX Open Kernel Module", "driver"),
        ("nvidia-nvswitch1: SXid (PCI:0000:00:08.0): 11004, Severity 1 Engine instance 36", "driver"),
        ("NVRM: Xid (PCI:0000:3b", "malformed"),
        ("something else that speaks of NVRM", "other"),
    ],
)
def test_a_line_is_counted_by_what_it_is(message, outcome):
    taken = Taken()
    taken.take(message)
    assert taken.counts == {outcome: 1}
    assert len(taken.messages) == (outcome in ("xid", "sxid", "address"))


def test_what_cannot_be_read_is_counted():
    taken = Taken()
    taken.intake.take(None)
    assert taken.counts == {"malformed": 1}


def test_every_outcome_is_there_from_the_start():
    assert tuple(Taken().intake.counts) == OUTCOMES


def test_a_line_that_userspace_wrote_is_counted_and_not_believed():
    taken = Taken()
    taken.take(facility=1)
    assert taken.counts == {"spoofed": 1}
    assert taken.messages == []


def test_in_a_drill_it_is_believed_and_marked():
    taken = Taken(drill=True)
    taken.take(facility=1)
    taken.take(facility=0, sequence=2)
    assert [message.drill for message in taken.messages] == [True, False]


def test_a_drill_for_a_while_ends_by_itself():
    taken = Taken()
    taken.intake.believe_userspace(60)
    taken.take(facility=1, sequence=1)
    taken.clock.advance(60)
    taken.take(facility=1, sequence=2)
    assert len(taken.messages) == 1
    assert taken.counts == {"xid": 1, "spoofed": 1}


def test_a_drill_can_be_ended_early():
    taken = Taken()
    taken.intake.believe_userspace(60)
    taken.intake.believe_userspace(0)
    taken.take(facility=1)
    assert taken.counts == {"spoofed": 1}


def test_a_line_is_taken_once_however_often_the_log_is_replayed():
    taken = Taken()
    for sequence in (4, 5, 4, 5, 6):
        taken.take(sequence=sequence)
    assert [message.sequence for message in taken.messages] == [4, 5, 6]
    assert taken.counts == {"xid": 3, "known": 2}


def test_lines_of_before_a_restart_or_before_a_drill_are_passed_over():
    restarted, drilled = Taken(after=5), Taken(since=5, drill=True)
    for sequence in (4, 5, 6):
        restarted.take(sequence=sequence)
        drilled.take(sequence=sequence)
    assert [message.sequence for message in restarted.messages] == [6]
    assert [message.sequence for message in drilled.messages] == [5, 6]


def test_a_line_has_the_time_at_which_the_kernel_wrote_it():
    taken = Taken()
    booted = taken.clock.wall() - timedelta(seconds=taken.clock.monotonic())
    taken.take(microseconds=250_000_000)
    assert taken.messages[0].time == booted + timedelta(seconds=250)


def test_a_line_is_never_of_the_future():
    taken = Taken()
    taken.take(microseconds=2**62)
    taken.take(sequence=2, microseconds=10**18)
    assert [message.time for message in taken.messages] == [taken.clock.wall()] * 2


def test_a_step_of_the_wall_clock_does_not_date_lines_anew_while_the_log_is_open():
    taken = Taken()
    taken.take(microseconds=250_000_000)
    taken.clock.step_wall(3600)
    taken.take(sequence=2, microseconds=250_000_000)
    assert taken.messages[0].time == taken.messages[1].time


def test_a_line_without_a_time_is_of_now():
    taken = Taken()
    taken.intake.take(Record(0, 1, None, XID))
    assert taken.messages[0].time == taken.clock.wall()


def test_an_excerpt_is_bounded():
    taken = Taken()
    taken.take(XID + "x" * 5000)
    assert len(taken.messages[0].excerpt) == 512
