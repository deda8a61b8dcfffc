"""The journal of a session and its incidents: what is folded, what is kept, when a fault is over."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from health.report import Fault
from health.vocabulary import Phase, Severity
from remediation.journal import all_cleared, moved, with_entry, with_incidents, with_intent, with_outcome
from remediation.objects import (
    INCIDENT_LIMIT,
    JOURNAL_LIMIT,
    MESSAGE_LIMIT,
    Incident,
    JournalEntry,
    JournalEvent,
    RemediationStatus,
)
from tests.unit.builders import GPU, NOON, OTHER_GPU, fault, later, report


def entry(
    message: str = "m", *, attempt: int = 1, event: JournalEvent = JournalEvent.INTENT, at: float = 0
) -> JournalEntry:
    return JournalEntry(time=later(at), epoch=7, step="Cordon", event=event, attempt=attempt, message=message)


def told(
    *faults: Fault,
    before: RemediationStatus | None = None,
    boot: str = "boot-1",
    at: float = 0,
    acting: bool = True,
) -> RemediationStatus:
    found = report("n1", *faults, boot=boot)
    return with_incidents(before or RemediationStatus(), found, faults if acting else (), later(at))


def test_lines_are_kept_in_their_order() -> None:
    status = RemediationStatus()
    for message in ("a", "b", "c"):
        status = with_entry(status, entry(message))
    assert [line.message for line in status.journal] == ["a", "b", "c"]


def test_a_line_that_says_the_same_again_is_counted_and_keeps_the_last_time_and_attempt() -> None:
    status = with_entry(RemediationStatus(), entry(at=0))
    status = with_entry(status, entry(at=60, attempt=2))
    (line,) = status.journal
    assert (line.count, line.time, line.attempt) == (2, later(60), 2)


def test_a_step_that_is_tried_again_and_again_stays_one_intent_and_one_outcome() -> None:
    status = RemediationStatus()
    for attempt in range(1, 200):
        status = with_entry(status, entry("cordons", attempt=attempt, at=attempt))
        status = with_entry(status, entry("refused", attempt=attempt, event=JournalEvent.OUTCOME, at=attempt))
    assert [(line.message, line.count, line.attempt) for line in status.journal] == [
        ("cordons", 199, 199),
        ("refused", 199, 199),
    ]


@pytest.mark.parametrize("other", [{"step": "Uncordon"}, {"epoch": 8}, {"result": "Done"}, {"message": "n"}])
def test_lines_that_differ_are_not_folded(other: dict[str, object]) -> None:
    status = with_entry(RemediationStatus(), entry())
    assert len(with_entry(status, replace(entry(), **other)).journal) == 2


@pytest.mark.parametrize("begun_with", [0, 63, 64, 65, 300])
def test_a_full_journal_loses_its_second_line_and_never_its_first(begun_with: int) -> None:
    status = RemediationStatus(journal=tuple(entry(str(number)) for number in range(begun_with)))
    for number in range(begun_with, begun_with + 100):
        status = with_entry(status, entry(str(number)))
        assert len(status.journal) <= JOURNAL_LIMIT
    messages = [int(line.message) for line in status.journal]
    assert messages == [0, *range(begun_with + 100 - JOURNAL_LIMIT + 1, begun_with + 100)]


def test_a_message_is_cut_to_what_the_schema_takes() -> None:
    status = with_entry(RemediationStatus(), entry("x" * 5000))
    assert len(status.journal[0].message) == MESSAGE_LIMIT
    assert len(moved(status, Phase.HELD, reason="R", message="x" * 5000, now=NOON).message) == MESSAGE_LIMIT


def test_an_intent_says_what_is_about_to_be_done_and_an_outcome_what_came_of_it() -> None:
    status = with_intent(RemediationStatus(), step="Cordon", attempt=2, epoch=7, now=NOON, message="because")
    assert (status.step, status.attempt, status.leader_epoch) == ("Cordon", 2, 7)
    status = with_outcome(
        status, step="Cordon", attempt=2, epoch=8, now=NOON, result="Done", message="cordoned"
    )
    assert [(line.event, line.attempt, line.epoch, line.result) for line in status.journal] == [
        (JournalEvent.INTENT, 2, 7, ""),
        (JournalEvent.OUTCOME, 2, 8, "Done"),
    ]
    assert status.leader_epoch == 8


@pytest.mark.parametrize("phase", Phase)
def test_only_a_closed_phase_has_a_time_of_closing(phase: Phase) -> None:
    status = moved(RemediationStatus(closed_time=NOON), phase, reason="R", message="m", now=later(5))
    assert status.closed_time == (later(5) if phase.closed else None)


def test_faults_that_act_become_incidents_with_boot_and_serial() -> None:
    status = told(fault(), fault("EngineHung", device=OTHER_GPU))
    assert [(item.kind, item.device_uuid, item.device_serial, item.boot_id) for item in status.incidents] == [
        ("DeviceLost", GPU, "S1", "boot-1"),
        ("EngineHung", OTHER_GPU, "S2", "boot-1"),
    ]
    assert not all_cleared(status)


def test_a_fault_that_does_not_act_is_no_incident() -> None:
    assert told(fault(), acting=False).incidents == ()


def test_the_same_report_again_changes_nothing() -> None:
    faults = (fault(), fault("EngineHung", clears_on="DeviceReset"))
    status = told(*faults)
    assert told(*faults, before=status, at=30) == status
    cleared = told(before=status, at=60)
    assert told(before=cleared, at=90) == cleared


def test_another_code_or_advice_is_taken_over_and_does_not_reset_the_faults_clock() -> None:
    status = told(fault(code="xid:79", advice="ResetDevice", severity=Severity.FATAL))
    changed = fault(code="xid:119", advice="RebootNode", severity=Severity.DEGRADED, seen=later(60))
    (incident,) = told(changed, before=status, at=60).incidents
    assert (incident.first_seen, incident.code, incident.advice) == (NOON, "xid:119", "RebootNode")
    assert incident.severity is Severity.FATAL


def test_a_fault_that_is_no_longer_reported_is_over_now() -> None:
    status = told(before=told(fault(clears_on="DeviceReset")), at=60)
    assert status.incidents[0].cleared_time == later(60)
    assert all_cleared(status)


def test_a_fault_is_not_over_because_its_advice_no_longer_acts() -> None:
    status = told(fault(clears_on="DeviceReset"))
    status = told(fault(clears_on="DeviceReset", advice="None"), before=status, acting=False, at=60)
    assert not all_cleared(status)


def test_a_fault_that_clears_by_a_new_boot_lasts_as_long_as_the_boot_whatever_the_agent_says() -> None:
    status = told(fault(clears_on="NewBoot"))
    same_boot = told(before=status, at=60)
    assert not all_cleared(same_boot)
    assert all_cleared(told(before=same_boot, boot="boot-2", at=90))


def test_a_fault_that_is_reported_from_the_new_boot_too_lasts_on_in_that_boot() -> None:
    status = told(fault(clears_on="NewBoot"), before=told(fault(clears_on="NewBoot")), boot="boot-2")
    assert not all_cleared(told(before=status, boot="boot-2"))
    assert all_cleared(told(before=status, boot="boot-3"))


def test_a_fault_that_returns_is_open_again_with_its_first_time_and_its_latest() -> None:
    cleared = told(before=told(fault(clears_on="DeviceReset")), at=60)
    back = told(fault(clears_on="DeviceReset", seen=later(90)), before=cleared, at=90)
    (incident,) = back.incidents
    assert (incident.first_seen, incident.last_seen, incident.cleared_time) == (NOON, later(90), None)


def test_an_onset_that_follows_between_two_reports_is_remembered() -> None:
    (incident,) = told(fault(seen=later(90)), before=told(fault()), at=90).incidents
    assert (incident.first_seen, incident.last_seen) == (NOON, later(90))


def test_nothing_is_left_of_a_session_without_incidents() -> None:
    assert all_cleared(RemediationStatus())


def test_no_more_incidents_are_kept_than_the_schema_takes_and_those_that_are_over_go_first() -> None:
    def incident(number: int, *, over: bool) -> Incident:
        return Incident(
            kind="EngineHung",
            device_uuid=f"GPU-{number}",
            first_seen=NOON,
            last_seen=NOON,
            cleared_time=NOON if over else None,
        )

    full = RemediationStatus(
        incidents=tuple(incident(number, over=number in (0, 5, 6)) for number in range(INCIDENT_LIMIT))
    )
    faults = [
        fault("EngineHung", device=f"GPU-{number}", clears_on="DeviceReset")
        for number in range(1, INCIDENT_LIMIT)
    ]
    new = fault("DeviceLost", device="GPU-new")
    status = told(*(item for item in faults if item.device_uuid not in ("GPU-5", "GPU-6")), new, before=full)
    devices = [item.device_uuid for item in status.incidents]
    assert len(devices) == INCIDENT_LIMIT
    assert (
        devices[0] == "GPU-0" and devices[-1] == "GPU-new" and "GPU-5" not in devices and "GPU-6" in devices
    )


@given(
    st.lists(
        st.tuples(
            st.sets(
                st.tuples(st.sampled_from(("DeviceLost", "EngineHung")), st.sampled_from((GPU, OTHER_GPU)))
            ),
            st.sampled_from(("boot-1", "boot-2")),
        ),
        max_size=12,
    )
)
def test_whatever_is_reported_a_fault_is_one_incident_whose_first_time_never_moves(
    reports: list[tuple[set[tuple[str, str]], str]],
) -> None:
    status = RemediationStatus()
    first: dict[tuple[str, str], object] = {}
    for number, (identities, boot) in enumerate(reports):
        clears_on = {"DeviceLost": "NewBoot", "EngineHung": "DeviceReset"}
        faults = [
            fault(kind, device=device, clears_on=clears_on[kind], seen=later(number))
            for kind, device in identities
        ]
        status = told(*faults, before=status, boot=boot, at=number)
        found = {incident.identity: incident for incident in status.incidents}
        assert len(found) == len(status.incidents)
        for identity, incident in found.items():
            assert first.setdefault(identity, incident.first_seen) == incident.first_seen
            if identity in identities:
                assert incident.cleared_time is None
            elif identity[0] == "EngineHung":
                assert incident.cleared_time is not None
