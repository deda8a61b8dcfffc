"""Custom resources at the embedded API: pruned, defaulted, refused, and held to their rules."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from health.report import AcceleratorReport
from simulation.cluster.crds import DefinitionError, load
from simulation.cluster.interface import StoreError
from simulation.cluster.records import Writer
from simulation.cluster.rules import UnknownRuleError, rules_of
from simulation.cluster.schema import Node, UnknownKeywordError
from tests.crds import DEFINITIONS, schema_of
from tests.lab.schema_samples import sample
from tests.unit.embedded_rig import REPORTS, SESSIONS, new_store, refusal, remediation, report

VALUES = {"user": "someone", "nodeUID": "u1", "nodeName": "n1"}


def causes(error: StoreError) -> list[tuple[str, str]]:
    return [(cause["field"], cause["reason"]) for cause in error.details["causes"]]


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("kind", sorted(DEFINITIONS))
def test_the_smallest_and_the_largest_object_of_a_kind_are_taken(kind: str, largest: bool) -> None:
    store = new_store()
    resource_id = f"{DEFINITIONS[kind]['spec']['names']['plural']}.sickbay.dev"
    schema = schema_of(kind)["properties"]
    body = {
        "apiVersion": "sickbay.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": "default"},
        "spec": sample(schema["spec"], VALUES, largest=largest),
    }
    store.create(resource_id, body)
    status = sample(schema["status"], VALUES, largest=largest)
    # Each part by itself: a session with all its lists full is larger than what etcd takes.
    for key, value in status.items():
        stored = store.patch(resource_id, "default", {"status": {key: value}}, subresource="status")
        assert stored["status"][key] == value or not largest
        store.patch(resource_id, "default", {"status": None}, subresource="status")


def test_unknown_fields_are_pruned_and_named_and_a_strict_writer_is_refused() -> None:
    store = new_store()
    resource = store.resource(REPORTS)
    body = report("n", spec={"pool": "gpu", "bogus": 1}, other=2)
    written = store.insert(resource, "", body)
    assert set(written.pruned) == {"spec.bogus", "other"}
    assert msgspec.json.decode(written.data)["spec"] == {"pool": "gpu"}
    error = refusal(
        lambda: store.insert(resource, "", report("m", spec={"bogus": 1}), writer=Writer(strict=True))
    )
    assert (error.code, error.reason) == (400, "BadRequest")
    assert 'unknown field "spec.bogus"' in error.message


def test_defaults_are_filled_in_also_in_place_of_null() -> None:
    store = new_store()
    store.create(REPORTS, report("n"))
    device = {"uuid": "GPU-0", "index": 0, "health": None}
    stored = store.patch(REPORTS, "n", {"status": {"devices": [device]}}, subresource="status")
    assert stored["status"]["devices"][0]["health"] == "Unknown"
    assert stored["status"]["deviceAccess"] == "Held"


def test_a_whole_number_with_a_point_is_stored_without_it() -> None:
    store = new_store()
    store.create(REPORTS, report("n"))
    stored = store.patch(REPORTS, "n", {"status": {"sequence": 3.0}}, subresource="status")
    assert type(stored["status"]["sequence"]) is int
    for number in (3.5, 2**70, -(2**64)):
        patch = {"status": {"sequence": number}}
        error = refusal(lambda patch=patch: store.patch(REPORTS, "n", patch, subresource="status"))  # type: ignore[misc]
        assert causes(error) == [
            ("status.sequence", "FieldValueTypeInvalid"),
            ("status", "FieldValueInvalid"),
        ]


def test_a_null_is_a_field_that_is_not_there() -> None:
    store = new_store()
    store.create(REPORTS, report("n"))
    resource = store.resource(REPORTS)

    def write(status: dict[str, Any]) -> Any:
        written = store.modify(resource, "", "n", lambda old: {**old, "status": status}, subresource="status")
        return msgspec.json.decode(written.data)["status"]

    device = {"uuid": "a", "index": 0, "model": None, "partition": None}
    assert write({"devices": [device], "driver": None, "bootID": None}) == {
        "devices": [{"uuid": "a", "index": 0, "health": "Unknown"}],
        "deviceAccess": "Held",
    }
    error = refusal(lambda: write({"devices": [{"uuid": None, "index": 0}, None]}))
    assert causes(error) == [
        ("status.devices[0].uuid", "FieldValueRequired"),
        ("status.devices[1]", "FieldValueTypeInvalid"),
    ]


def test_a_change_of_unknown_fields_alone_is_no_change() -> None:
    store = new_store()
    made = store.create(REPORTS, report("n", spec={"pool": "gpu"}))
    assert store.patch(REPORTS, "n", {"spec": {"bogus": 1}, "other": 2}) == made


def test_below_the_status_subresource_a_sentence_names_the_path_in_the_status() -> None:
    store = new_store()
    store.create(REPORTS, report("n"))
    error = refusal(lambda: store.patch(REPORTS, "n", {"status": {"sequence": -1}}, subresource="status"))
    assert error.details["causes"][0] == {
        "reason": "FieldValueInvalid",
        "message": "Invalid value: -1: sequence in body should be greater than or equal to 0",
        "field": "status.sequence",
    }


def test_each_fault_of_a_report_is_named_with_its_field_and_the_servers_word_for_it() -> None:
    store = new_store()
    store.create(REPORTS, report("n"))
    status = {
        "sequence": -1,
        "observedTime": "yesterday",
        "deviceAccess": 5,
        "bootID": "x" * 100,
        "devices": [{"uuid": "a", "index": 0, "health": "x"}, {"uuid": "b"}],
        "sources": [{"name": "x", "state": "Live"}] * 40,
    }
    error = refusal(lambda: store.patch(REPORTS, "n", {"status": status}, subresource="status"))
    assert sorted(causes(error)) == [
        ("status.bootID", "FieldValueTooLong"),
        ("status.deviceAccess", "FieldValueNotSupported"),
        ("status.deviceAccess", "FieldValueTypeInvalid"),
        ("status.devices[0].health", "FieldValueNotSupported"),
        ("status.devices[1].index", "FieldValueRequired"),
        ("status.observedTime", "FieldValueTypeInvalid"),
        ("status.sequence", "FieldValueInvalid"),
        ("status.sources", "FieldValueTooMany"),
    ]
    assert error.message.startswith('AcceleratorReport.sickbay.dev "n" is invalid: [')
    assert error.details["group"] == "sickbay.dev"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"nodeName": "n2"}, "spec.nodeName"),
        ({"nodeUID": "u2"}, "spec.nodeUID"),
        ({"bootID": "b2"}, "spec.bootID"),
        ({"mode": "Observe"}, "spec.mode"),
        ({"policy": None}, "spec.policy"),
        ({"policy": {"name": "other"}}, "spec.policy"),
    ],
)
def test_what_a_session_is_about_cannot_be_changed(change: dict[str, Any], field: str) -> None:
    store = new_store()
    store.create(SESSIONS, remediation("s", policy={"name": "p"}))
    error = refusal(lambda: store.patch(SESSIONS, "s", {"spec": change}))
    assert causes(error) == [(field, "FieldValueInvalid")]
    assert "is immutable" in error.message
    assert store.patch(SESSIONS, "s", {"spec": {"hold": {"user": "me"}}})["spec"]["hold"] == {"user": "me"}


def test_rules_are_not_asked_of_what_is_invalid_already_and_that_is_said() -> None:
    store = new_store()
    store.create(SESSIONS, remediation("s"))
    error = refusal(lambda: store.patch(SESSIONS, "s", {"spec": {"mode": "Never", "nodeName": "n2"}}))
    assert causes(error) == [("spec.mode", "FieldValueNotSupported"), ("<nil>", "FieldValueInvalid")]
    assert "some validation rules were not checked" in error.message


def test_there_is_one_control_object() -> None:
    store = new_store()
    body = {"apiVersion": "sickbay.dev/v1alpha1", "kind": "AcceleratorControl", "metadata": {"name": "other"}}
    error = refusal(lambda: store.create("acceleratorcontrols.sickbay.dev", body))
    assert "metadata.name must be default" in error.message


def test_a_definition_that_asks_for_more_than_is_enforced_is_not_served() -> None:
    with pytest.raises(UnknownKeywordError, match=r"\.a: anyOf"):
        Node({"type": "object", "properties": {"a": {"type": "string", "anyOf": []}}})
    rule = {"rule": "self.size() > 3", "message": "m"}
    with pytest.raises(UnknownRuleError, match=r"self\.size"):
        list(
            rules_of(
                {
                    "type": "object",
                    "properties": {"a": {"type": "string", "x-kubernetes-validations": [rule]}},
                }
            )
        )


def test_a_folder_with_something_else_is_named(tmp_path: Any) -> None:
    with pytest.raises(DefinitionError, match="no CustomResourceDefinition is there"):
        load(tmp_path)
    (tmp_path / "a.yaml").write_text("kind: Other\n")
    with pytest.raises(DefinitionError, match=r"a\.yaml"):
        load(tmp_path)
    (tmp_path / "a.yaml").write_text("{")
    with pytest.raises(DefinitionError, match="not YAML"):
        load(tmp_path)


NASTY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["sequence", "devices", "faults", "driver", "plugin", "sources", "deviceAccess", "drill", "x"]
)
STORE = new_store()


@settings(max_examples=80, deadline=None)
@given(
    st.dictionaries(
        FIELDS, NASTY | st.lists(st.dictionaries(st.sampled_from(["uuid", "index"]), NASTY)), max_size=4
    )
)
def test_whatever_is_sent_is_refused_or_can_be_read_as_a_report(status: dict[str, Any]) -> None:
    name = f"r{STORE.version}"
    STORE.create(REPORTS, report(name))
    try:
        stored = STORE.patch(REPORTS, name, {"status": status}, subresource="status")
    except StoreError as error:
        assert error.code == 422
        return
    msgspec.convert(stored, AcceleratorReport)
