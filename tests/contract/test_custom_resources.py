"""The custom resources: what is filled in, dropped and refused, and that spec and status are written apart.

What a definition says is read from `deploy/crds`, so a new bound is tried without a new test.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

from runtime.api_errors import ApiError, Invalid
from tests.contract.objects import remediation
from tests.contract.world import CONTROLS, SESSIONS, Object, Told, World, refused
from tests.lab.contracts import CONTROL, REPORT, SESSION, VALUES, Contract
from tests.lab.schema_samples import Break, Schema, breaks, sample

CONTRACTS = pytest.mark.parametrize("contract", [REPORT, SESSION, CONTROL], ids=lambda item: item.kind)
PARTS = ("spec", "status")


def stored(world: World, contract: Contract, body: Object) -> Object:
    """The object with its status, made anew."""
    if world.exists(contract.url):
        world.delete(contract.url)
    world.create(contract.path, body)
    return world.merge(f"{contract.url}/status", {"status": body["status"]})


@CONTRACTS
def test_every_field_is_kept(world: World, contract: Contract) -> None:
    body = contract.body()
    found = stored(world, contract, body)
    assert (found["spec"], found["status"]) == (body["spec"], body["status"])


@CONTRACTS
def test_what_is_absent_is_filled_in_from_the_definition(world: World, contract: Contract) -> None:
    body = contract.body()
    for part in PARTS:
        body[part] = _least(contract.schema[part])
    body["metadata"]["labels"]["sickbay.dev/node-uid"] = body["spec"].get("nodeUID", "")
    found = stored(world, contract, body)
    for part in PARTS:
        assert found[part] == _filled(contract.schema[part], body[part])


def test_nothing_is_filled_into_a_part_that_is_not_there(world: World) -> None:
    made = world.create(SESSIONS, remediation(world.fresh("session")))
    assert "status" not in made
    after = world.merge(f"{SESSIONS}/{made['metadata']['name']}/status", {"status": {}})
    assert after["status"] == {"phase": "Pending"}


@CONTRACTS
def test_what_the_definition_does_not_know_is_dropped_at_every_depth(
    world: World, contract: Contract
) -> None:
    before = stored(world, contract, contract.body())
    world.merge(contract.url, {"spec": _with_unknown(before["spec"]), "tomorrow": 1})
    after = world.merge(f"{contract.url}/status", {"status": _with_unknown(before["status"])})
    assert (after["spec"], after["status"]) == (before["spec"], before["status"])
    assert "tomorrow" not in after


@CONTRACTS
def test_every_bound_is_refused_and_the_refusal_names_the_field(world: World, contract: Contract) -> None:
    body = stored(world, contract, contract.body())
    wrong = []
    tried = 0
    for part in PARTS:
        for one in breaks(contract.schema[part], (part,), body[part]):
            tried += 1
            told = _refusal(world, contract, part, one, body)
            if told != (422, "Invalid", True):
                wrong.append(f"{one.field} ({one.why}): {told}")
    assert wrong == []
    assert tried > 10
    assert world.get(contract.url) == body


def test_a_type_and_a_word_are_refused_with_the_reason_of_kubernetes(world: World) -> None:
    path = f"{SESSIONS}/{world.create(SESSIONS, remediation(world.fresh('session')))['metadata']['name']}"
    for status, cause in (
        ({"phase": "Nonsense"}, ("FieldValueNotSupported", "status.phase")),
        ({"attempt": "one"}, ("FieldValueTypeInvalid", "status.attempt")),
        ({"attempt": -1}, ("FieldValueInvalid", "status.attempt")),
        ({"message": "x" * 1025}, ("FieldValueTooLong", "status.message")),
        ({"rung": "no word"}, ("FieldValueInvalid", "status.rung")),
        ({"plan": [{"rung": "A"}]}, ("FieldValueRequired", "status.plan[0].steps")),
        ({"plan": [{"rung": "A", "steps": []}] * 17}, ("FieldValueTooMany", "status.plan")),
    ):
        with pytest.raises(Invalid) as caught:
            world.merge(f"{path}/status", {"status": status})
        _told_among(caught.value, cause)


@CONTRACTS
def test_spec_and_status_are_written_apart(world: World, contract: Contract) -> None:
    body = contract.body()
    if world.exists(contract.url):
        world.delete(contract.url)
    made = world.create(contract.path, body)
    assert "status" not in made and made["metadata"]["generation"] == 1
    same = world.merge(contract.url, {"status": body["status"]})
    assert same == made
    told = world.merge(
        f"{contract.url}/status",
        {"status": body["status"], "spec": {"tomorrow": 1}, "metadata": {"labels": {"a": "b"}}},
    )
    assert (told["spec"], told["status"]) == (body["spec"], body["status"])
    assert (told["metadata"]["labels"], told["metadata"]["generation"]) == (body["metadata"]["labels"], 1)
    assert told["metadata"]["resourceVersion"] != made["metadata"]["resourceVersion"]
    whole = world.replace(contract.url, {**told, "status": {}})
    assert whole["status"] == body["status"]


def test_the_generation_counts_changes_of_the_spec_alone(world: World) -> None:
    path = f"{SESSIONS}/{world.create(SESSIONS, remediation(world.fresh('session')))['metadata']['name']}"
    for where, patch, generation in (
        (path, {"metadata": {"labels": {"a": "b"}}}, 1),
        (f"{path}/status", {"status": {"phase": "Held"}}, 1),
        (path, {"spec": {"hold": {"user": "somebody"}}}, 2),
        (path, {"spec": {"hold": {"user": "somebody"}}}, 2),
        (path, {"spec": {"hold": None}}, 3),
    ):
        assert world.merge(where, patch)["metadata"]["generation"] == generation


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("nodeName", "n2"),
        ("nodeUID", "uid-of-n2"),
        ("bootID", "boot-2"),
        ("mode", "Auto"),
        ("policy", {"name": "another"}),
        ("policy", None),
    ],
)
def test_what_a_session_is_about_cannot_be_changed(world: World, field: str, value: object) -> None:
    name = world.fresh("session")
    world.create(SESSIONS, remediation(name, policy={"name": "p", "hash": ""}))
    with refused(
        Told(Invalid, 422, "Invalid", frozenset({("FieldValueInvalid", f"spec.{field}")}))
    ) as caught:
        world.merge(f"{SESSIONS}/{name}", {"spec": {field: value}})
    assert f"{field} is immutable" in caught.value.message


def test_a_policy_cannot_be_given_to_a_session_that_was_opened_without(world: World) -> None:
    name = world.fresh("session")
    world.create(SESSIONS, remediation(name))
    with refused(Told(Invalid, 422, "Invalid", frozenset({("FieldValueInvalid", "spec.policy")}))):
        world.merge(f"{SESSIONS}/{name}", {"spec": {"policy": {"name": "late"}}})


def test_what_people_decide_can_be_changed(world: World) -> None:
    name = world.fresh("session")
    world.create(SESSIONS, remediation(name, policy={"name": "p"}))
    decided = {"approval": {"decision": "Approved", "user": "somebody"}, "hold": {"user": "somebody"}}
    assert world.merge(f"{SESSIONS}/{name}", {"spec": decided})["spec"]["approval"] == decided["approval"]


def test_there_is_one_control_object(world: World) -> None:
    body = {"apiVersion": "sickbay.dev/v1alpha1", "kind": "AcceleratorControl", "metadata": {"name": "mine"}}
    with pytest.raises(Invalid) as caught:
        world.create(CONTROLS, body)
    assert (caught.value.status, caught.value.reason) == (422, "Invalid")
    assert "metadata.name must be default" in caught.value.message


def test_a_session_without_a_spec_is_refused(world: World) -> None:
    body = remediation(world.fresh("session"))
    del body["spec"]
    with pytest.raises(Invalid) as caught:
        world.create(SESSIONS, body)
    _told_among(caught.value, ("FieldValueRequired", "spec"))


def _told_among(error: Invalid, cause: tuple[str, str]) -> None:
    """The API adds a cause without a field where a rule in CEL could not be tried because of the others."""
    assert (error.status, error.reason) == (422, "Invalid")
    assert [(one.reason, one.field) for one in error.causes if one.field != "<nil>"] == [cause]


def _refusal(world: World, contract: Contract, part: str, one: Break, body: Object) -> tuple[int, str, bool]:
    """Status, reason and whether a cause names the field. A session's spec is tried as a new session's."""
    broken = copy.deepcopy(one.applied_to(body))
    try:
        if contract is SESSION and part == "spec":
            broken["metadata"] = {"name": world.fresh("refused"), "labels": body["metadata"]["labels"]}
            world.create(contract.path, broken)
        else:
            world.replace(contract.url if part == "spec" else f"{contract.url}/status", broken)
    except ApiError as error:
        return error.status, error.reason, one.field in {cause.field for cause in error.causes}
    return 200, "", False


def _least(schema: Schema, name: str = "") -> Any:
    """The required fields alone, and one item in each list."""
    match schema["type"]:
        case "array":
            return [_least(schema["items"])]
        case "object":
            lists = {key for key, below in schema["properties"].items() if below["type"] == "array"}
            wanted = {*schema.get("required", ()), *lists}
            return {key: _least(below, key) for key, below in schema["properties"].items() if key in wanted}
        case _:
            return sample(schema, VALUES, name=name)


def _filled(schema: Schema, value: Any) -> Any:
    """The value with the defaults of the schema, as structural defaulting does it."""
    if isinstance(value, list):
        return [_filled(schema["items"], item) for item in value]
    if not isinstance(value, dict):
        return value
    defaults = {key: below["default"] for key, below in schema["properties"].items() if "default" in below}
    whole = {**defaults, **value}
    return {key: _filled(schema["properties"][key], item) for key, item in whole.items()}


def _with_unknown(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_unknown(item) for item in value]
    if isinstance(value, dict):
        return {key: _with_unknown(item) for key, item in value.items()} | {"tomorrow": {"more": 1}}
    return value
