"""The controller's objects on the wire, and the names of sessions."""

import string
from datetime import UTC, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from health.vocabulary import Mode, Phase
from remediation.objects import (
    OPENING_ANNOTATION,
    AcceleratorControl,
    AcceleratorRemediation,
    Incident,
    RemediationMetadata,
    RemediationStatus,
    session_name,
)
from tests.unit.builders import GPU, NOON, fault, later, session


def born(opening: str) -> AcceleratorRemediation:
    """A session as the API server stores it on create: without a status."""
    made = session()
    metadata = RemediationMetadata(name="s", annotations={OPENING_ANNOTATION: opening})
    return AcceleratorRemediation(metadata=metadata, spec=made.spec)


def name(**changed: object) -> str:
    given = {
        "node_name": "n1",
        "node_uid": "u1",
        "kind": "DeviceLost",
        "device_uuid": GPU,
        "first_seen": NOON,
    }
    return session_name(**(given | changed))


def test_a_session_is_named_after_its_node_and_ends_in_ten_hex_digits() -> None:
    head, _, digest = name().rpartition("-")
    assert head == "n1"
    assert len(digest) == 10 and set(digest) <= set(string.hexdigits.lower())


def test_the_same_onset_of_the_same_fault_has_the_same_name_and_any_other_has_another() -> None:
    others = [
        name(node_uid="u2"),
        name(kind="EngineHung"),
        name(device_uuid="GPU-b"),
        name(first_seen=later(1)),
        name(succeeding=Mode.AUTO),
        name(succeeding=Mode.APPROVE),
    ]
    assert name() == name()
    assert len({name(), *others}) == len(others) + 1


def test_the_zone_that_a_time_is_written_in_does_not_change_the_name() -> None:
    assert name(first_seen=NOON.astimezone(timezone(timedelta(hours=2)))) == name(first_seen=NOON)


@given(
    st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", fullmatch=True),
)
def test_a_name_is_one_that_kubernetes_takes_however_long_the_nodes_is(node_name: str) -> None:
    made = name(node_name=node_name)
    assert len(made) <= 211
    head, _, _ = made.rpartition("-")
    assert head and head[-1] not in ".-"
    assert node_name.startswith(head)


def test_a_session_without_a_status_has_the_one_that_it_was_born_with() -> None:
    opening = RemediationStatus(phase=Phase.FENCED, reason="ObserveOnly", leader_epoch=7)
    assert born(msgspec.json.encode(opening).decode()).current == opening


def test_a_status_counts_for_more_than_what_the_session_was_born_with() -> None:
    made = born('{"phase":"Held"}')
    written = msgspec.structs.replace(made, status=RemediationStatus(phase=Phase.FENCED))
    assert written.current.phase is Phase.FENCED


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        '"x"',
        '{"phase":"Broken"}',
        '{"journal":[{"time":"noon"}]}',
        '{"fencedTime":"2026-01-01T00:00:00"}',
    ],
)
def test_an_opening_that_somebody_spoiled_is_an_empty_status(text: str) -> None:
    assert born(text).current == RemediationStatus()


def test_a_session_without_annotations_has_an_empty_status() -> None:
    made = msgspec.structs.replace(born("{}"), metadata=RemediationMetadata(name="s"))
    assert made.current == RemediationStatus()


@pytest.mark.parametrize("moment", ["2026-01-01T00:00:00", "2026-01-01", "12 o'clock"])
def test_a_time_without_a_zone_is_not_read_for_it_could_be_compared_with_none(moment: str) -> None:
    document = {"metadata": {}, "spec": {"nodeName": "n", "nodeUID": "u", "bootID": "b", "mode": "Auto"}}
    with pytest.raises(msgspec.ValidationError, match="healthySince"):
        msgspec.json.decode(
            msgspec.json.encode({**document, "status": {"healthySince": moment}}), type=AcceleratorRemediation
        )


def test_words_and_fields_of_a_newer_version_that_are_not_needed_are_passed_over() -> None:
    found = msgspec.json.decode(
        b'{"metadata":{"name":"default","managedFields":[{}]},"spec":{"windows":[1]},"status":{"new":{}}}',
        type=AcceleratorControl,
    )
    assert found.spec.pause is None and found.spec.nodes == ()


def test_an_incident_says_what_its_fault_said_and_of_which_boot_and_device() -> None:
    found = fault("EngineHung", advice="ResetDevice", clears_on="DeviceReset", code="xid:109")
    incident = Incident.of(found, boot_id="boot-1", serial="S1")
    assert incident.identity == found.identity == ("EngineHung", GPU)
    for key in (
        "kind",
        "code",
        "scope",
        "device_uuid",
        "severity",
        "advice",
        "clears_on",
        "drill",
        "first_seen",
        "last_seen",
    ):
        assert getattr(incident, key) == getattr(found, key)
    assert (incident.boot_id, incident.device_serial, incident.cleared_time) == ("boot-1", "S1", None)


def test_a_session_survives_the_wire_unchanged() -> None:
    made = session(phase=Phase.HELD, reason="NoRepairStep")
    assert msgspec.json.decode(msgspec.json.encode(made), type=AcceleratorRemediation) == made
    assert made.current.incidents[0].first_seen.tzinfo is UTC
