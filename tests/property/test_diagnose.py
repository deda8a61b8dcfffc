"""What holds for every run of events: no fault's clock restarts, no fault gets milder, order does not matter."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from health import xids
from health.diagnose import Diagnosis, XidEvent
from health.kernel_line import RECOVERY_ACTIONS, XidLine
from health.vocabulary import Advice, Severity

START = datetime(2026, 1, 1, tzinfo=UTC)
BOOT = "boot-1"
CATALOGUE = xids.builtin()
UUIDS = ("", "GPU-a", "GPU-b")

_RANKS = {advice.value: advice.rank for advice in Advice}


@st.composite
def events(draw):
    code = draw(st.integers(0, 200))
    action = draw(st.sampled_from(RECOVERY_ACTIONS)) if code == 154 else ""
    return XidEvent(
        line=XidLine(address="0000:3b:00.0", code=code, recovery_action=action),
        uuid=draw(st.sampled_from(UUIDS)),
        time=START + timedelta(seconds=draw(st.integers(0, 3600))),
        boot_id=BOOT,
        sequence=draw(st.integers(0, 2**40)),
        excerpt=draw(st.text(max_size=600)),
        drill=draw(st.booleans()),
    )


def folded(run):
    diagnosis = Diagnosis()
    for event in run:
        diagnosis = diagnosis.with_xid(event, CATALOGUE)
    return diagnosis


catalogue_only = events().filter(lambda event: not event.line.recovery_action)


@given(st.lists(events(), max_size=30), events())
def test_an_event_never_makes_an_open_fault_younger_or_milder(run, event):
    before = folded(run)
    after = before.with_xid(event, CATALOGUE)
    for identity, fault in after.open.items():
        known = before.open.get(identity)
        if known is None:
            continue
        assert fault.first_seen <= known.first_seen
        assert fault.last_seen >= known.last_seen
        assert fault.severity.rank >= known.severity.rank
        assert _RANKS[fault.advice] >= _RANKS[known.advice]
        assert fault.count >= known.count


@given(st.lists(catalogue_only, max_size=12), st.randoms())
def test_the_order_of_a_burst_does_not_matter_for_what_is_wrong(run, random):
    shuffled = list(run)
    random.shuffle(shuffled)

    def essence(diagnosis):
        return {
            (*fault.identity, fault.severity, fault.advice, fault.first_seen, fault.count)
            for fault in diagnosis.faults
        }

    assert essence(folded(run)) == essence(folded(shuffled))


@given(st.lists(events(), max_size=30))
def test_counts_add_up_to_the_lines_that_were_not_only_counted(run):
    raising = [
        event
        for event in run
        if not event.line.recovery_action and CATALOGUE[event.line.code].kind is not None
    ]
    counted = sum(fault.count for fault in folded(run).faults if fault.kind != "RecoveryRequired")
    assert counted == len(raising)


@given(st.lists(events(), max_size=30))
def test_a_fault_that_no_device_can_be_named_for_never_acts(run):
    for fault in folded(run).faults:
        if not fault.device_uuid:
            assert fault.severity is not Severity.FATAL
            assert fault.advice == Advice.NONE


@given(st.lists(events(), max_size=30), st.integers(0, 7200))
def test_letting_time_pass_is_idempotent_and_raises_nothing(run, seconds):
    diagnosis = folded(run)
    now = START + timedelta(seconds=seconds)
    once = diagnosis.at(now, boot_id=BOOT)
    assert once.at(now, boot_id=BOOT) is once
    assert set(once.open) <= set(diagnosis.open)


@given(st.lists(events(), max_size=30))
def test_a_new_boot_long_after_leaves_nothing(run):
    assert folded(run).at(START + timedelta(days=1), boot_id="boot-2").faults == ()
