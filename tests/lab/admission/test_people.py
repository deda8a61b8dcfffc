"""People: whose name stands in an approval, a hold or a switch is who wrote it; the controller may not."""

from functools import partial
from typing import Any

import pytest

from tests.lab.admission.world import (
    CONTROLLER_USER,
    MINE,
    OTHER,
    World,
    refused,
    refused_by,
    refused_to_user,
)
from tests.lab.api import Object
from tests.lab.manifests import SESSIONS

APPROVAL = {"approval": {"decision": "Approved", "user": "alice"}}
HOLD = {"hold": {"user": "alice", "reason": "looking at it"}}


@pytest.mark.parametrize("spec", [APPROVAL, HOLD], ids=["approval", "hold"])
def test_a_person_signs_with_her_own_name(world: World, session: str, spec: Object) -> None:
    (field,) = spec
    said = refused_to_user(lambda: world.as_user("bob", session, {"spec": spec}))
    assert f"spec.{field}.user must be bob, who writes it" in said
    world.as_user("alice", session, {"spec": spec})
    assert world.admin.get(session)["spec"][field] == spec[field]
    # What is not touched needs no new name; what is changed does.
    world.as_user("bob", session, {"metadata": {"labels": {"example.com/seen": "yes"}}})
    changed = {"decision": "Denied"} if field == "approval" else {"reason": "mine now"}
    said = refused_to_user(lambda: world.as_user("bob", session, {"spec": {field: changed}}))
    assert f"spec.{field}.user must be bob" in said
    world.as_user("bob", session, {"spec": {field: changed | {"user": "bob"}}})
    world.as_user("carol", session, {"spec": {field: None}})
    assert field not in world.admin.get(session)["spec"]


@pytest.mark.parametrize("spec", [APPROVAL, HOLD], ids=["approval", "hold"])
def test_a_session_cannot_be_born_with_another_persons_name(world: World, spec: Object) -> None:
    (field,) = spec
    message = refused_by("sickbay-session-users", lambda: world.admin.create(SESSIONS, world.session(**spec)))
    assert f"spec.{field}.user must be sickbay-lab-admin" in message


@pytest.mark.parametrize("user", ["alice", CONTROLLER_USER])
@pytest.mark.parametrize("field", ["approval", "hold"])
def test_the_controller_cannot_open_a_session_that_is_already_decided(
    world: World, field: str, user: str
) -> None:
    value: Any = {"user": user} | ({"decision": "Approved"} if field == "approval" else {})
    message = refused_by(
        "sickbay-session-users", lambda: world.controller.create(SESSIONS, world.session(**{field: value}))
    )
    assert f"spec.{field} is for people" in message


def test_the_controller_writes_the_status_of_a_session_and_nothing_else(world: World, session: str) -> None:
    answer = world.controller.patch(f"{session}/status", {"spec": HOLD, "status": {"phase": "Fenced"}})
    assert answer["status"] == {"phase": "Fenced"}
    assert "hold" not in answer["spec"]
    assert 'cannot patch resource "acceleratorremediations"' in refused(
        lambda: world.controller.patch(session, {"spec": HOLD})
    )


@pytest.mark.parametrize("labels", [None, {"sickbay.dev/node-uid": "another"}])
def test_a_session_is_labelled_with_its_nodes_uid(world: World, labels: Object | None) -> None:
    body = world.session()
    body["metadata"]["labels"] = labels
    message = refused_by("sickbay-session-users", lambda: world.controller.create(SESSIONS, body), status=422)
    assert "label sickbay.dev/node-uid must equal spec.nodeUID" in message


def test_the_label_of_a_session_cannot_be_taken_from_it(world: World, session: str) -> None:
    patch = {"metadata": {"labels": {"sickbay.dev/node-uid": None}}}
    refused_by("sickbay-session-users", lambda: world.admin.patch(session, patch), status=422)


def test_a_pause_is_signed_by_who_sets_it(world: World, control: str) -> None:
    pause = {"spec": {"pause": {"user": "alice", "reason": "rack move"}}}
    said = refused_to_user(lambda: world.as_user("bob", control, pause))
    assert "spec.pause.user must be bob, who writes it" in said
    world.as_user("alice", control, pause)
    world.as_user("bob", control, {"spec": {"nodes": [{"name": MINE, "action": "Hold", "user": "bob"}]}})
    world.as_user("bob", control, {"spec": {"pause": None}})
    assert "pause" not in world.admin.get(control)["spec"]


def test_each_entry_of_nodes_is_signed_by_who_sets_or_changes_it(world: World, control: str) -> None:
    hers = {"name": MINE, "action": "Hold", "user": "alice"}
    his = {"name": OTHER, "action": "OptOut", "user": "bob"}
    world.as_user("alice", control, {"spec": {"nodes": [hers]}})
    world.as_user("bob", control, {"spec": {"nodes": [his, hers]}})
    changed = hers | {"action": "OptOut"}
    said = refused_to_user(lambda: world.as_user("bob", control, {"spec": {"nodes": [his, changed]}}))
    assert f"user must be bob, who writes it, in the entries of {MINE}" in said
    world.as_user("carol", control, {"spec": {"nodes": [hers]}})
    assert world.admin.get(control)["spec"]["nodes"] == [hers]


def test_a_full_list_of_nodes_is_still_checked_in_bounds_of_cost(world: World, control: str) -> None:
    """256 entries against 256: the comparison stays below the API server's limit for one policy."""

    def entries(user: str, reason: str) -> list[Object]:
        return [
            {"name": f"node-{number}", "action": "Hold", "user": user, "reason": reason.ljust(512, ".")}
            for number in range(256)
        ]

    world.as_user("alice", control, {"spec": {"nodes": entries("alice", "first")}})
    moved = entries("alice", "first")[::-1]
    world.as_user("bob", control, {"spec": {"nodes": moved}})
    assert world.admin.get(control)["spec"]["nodes"] == moved
    said = refused_to_user(
        lambda: world.as_user("bob", control, {"spec": {"nodes": entries("alice", "second")}})
    )
    assert "spec.nodes: user must be bob" in said


@pytest.mark.parametrize("field", ["pause", "nodes"])
def test_the_controller_keeps_its_memory_and_no_switch(world: World, control: str, field: str) -> None:
    pause = {"user": CONTROLLER_USER}
    spec: Object = {
        field: pause if field == "pause" else [{"name": MINE, "action": "OptOut", "user": CONTROLLER_USER}]
    }
    assert 'cannot patch resource "acceleratorcontrols"' in refused(
        lambda: world.controller.patch(control, {"spec": spec})
    )
    # And if its role were wider: the same request with the rights of an administrator.
    said = refused_to_user(lambda: world.as_user(CONTROLLER_USER, control, {"spec": spec}))
    assert f"spec.{field} is for people" in said
    tokens = {"tokens": 9.5, "refreshedTime": "2026-03-01T12:00:00Z"}
    answer = world.controller.patch(f"{control}/status", {"status": {"startTokens": tokens}})
    assert answer["status"]["startTokens"] == tokens


@pytest.mark.parametrize("spec", [APPROVAL, HOLD], ids=["approval", "hold"])
def test_the_controller_cannot_change_or_remove_a_persons_word(
    world: World, session: str, spec: Object
) -> None:
    (field,) = spec
    world.as_user("alice", session, {"spec": spec})
    for value in (None, {"user": CONTROLLER_USER}):
        said = refused_to_user(partial(world.as_user, CONTROLLER_USER, session, {"spec": {field: value}}))
        assert f"spec.{field} is for people" in said
