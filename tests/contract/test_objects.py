"""One object: made, read, replaced, patched, with the preconditions that keep two writers apart."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from runtime.api_errors import ApiError, Conflict, Invalid, NotFound
from tests.contract.objects import config_map, lease, pod, remediation, report
from tests.contract.world import CONTROLS, NAMESPACES, NODES, REPORTS, SESSIONS, Object, Told, World, refused

TAKEN = Told(Conflict, 409, "AlreadyExists")
CHANGED = Told(Conflict, 409, "Conflict")
ABSENT = Told(NotFound, 404, "NotFound")
OTHER_UID = Told(Invalid, 422, "Invalid", frozenset({("FieldValueInvalid", "metadata.uid")}))


def test_a_created_object_has_a_uid_a_time_and_a_resource_version(world: World) -> None:
    name = world.fresh("made")
    answer = world.wire.ask("POST", world.config_maps, config_map(name, data={"a": "1"}))
    assert answer.status == 201
    assert answer.headers["content-type"].startswith("application/json")
    made = answer.object
    assert (made["kind"], made["apiVersion"], made["data"]) == ("ConfigMap", "v1", {"a": "1"})
    metadata = made["metadata"]
    assert (metadata["name"], metadata["namespace"]) == (name, world.namespace)
    assert metadata["uid"] and metadata["resourceVersion"].isdigit()
    assert len(metadata["creationTimestamp"]) == len("2026-03-01T12:00:00Z")
    assert world.get(f"{world.config_maps}/{name}") == made


def test_a_name_is_taken_once(world: World) -> None:
    name = world.fresh("taken")
    world.create(world.config_maps, config_map(name))
    with refused(TAKEN) as caught:
        world.create(world.config_maps, config_map(name))
    assert isinstance(caught.value, Conflict) and caught.value.already_exists


def test_a_session_of_the_same_name_is_taken_too(world: World) -> None:
    name = world.fresh("session")
    world.create(SESSIONS, remediation(name))
    with refused(TAKEN):
        world.create(SESSIONS, remediation(name))


def test_of_many_who_create_at_once_one_does(world: World) -> None:
    """What keeps two controllers from opening two sessions for one fault."""
    name, start = world.fresh("session"), threading.Barrier(6)

    def create(_: int) -> bool:
        start.wait()
        try:
            world.create(SESSIONS, remediation(name))
        except Conflict as conflict:
            assert conflict.already_exists
            return False
        return True

    with ThreadPoolExecutor(6) as workers:
        assert sum(workers.map(create, range(6))) == 1


def test_patches_of_different_fields_at_once_are_all_carried_out(world: World) -> None:
    path, _ = _made(world, "config_maps")
    patches = [{"metadata": {"annotations": {f"example.com/{number}": "x"}}} for number in range(10)]
    with ThreadPoolExecutor(2) as workers:
        list(workers.map(lambda patch: world.merge(path, patch), patches))
    assert len(world.get(path)["metadata"]["annotations"]) == 10


def test_generate_name_makes_a_name(world: World) -> None:
    body = config_map("")
    body["metadata"] = {"generateName": "some-"}
    first, second = (world.create(world.config_maps, body)["metadata"]["name"] for _ in range(2))
    assert first != second and first.startswith("some-") and len(first) == len("some-12345")


@pytest.mark.parametrize("path", [f"{NODES}/no-such", f"{REPORTS}/no-such", f"{CONTROLS}/no-such"])
def test_what_is_not_there_is_not_found(world: World, path: str) -> None:
    with refused(ABSENT):
        world.get(path)
    with refused(ABSENT):
        world.merge(path, {"metadata": {"labels": {"a": "b"}}})
    with refused(ABSENT):
        world.delete(path)


def test_a_status_of_nobody_is_not_found(world: World) -> None:
    with refused(ABSENT):
        world.merge(f"{REPORTS}/no-such/status", {"status": {"sequence": 1}})


def test_a_resource_that_is_not_served_is_a_404_that_is_no_object(world: World) -> None:
    """How the agent finds out that the definitions are not installed."""
    for path in ("/apis/sickbay.dev/v1alpha1/nonsenses", "/apis/nonsense.dev/v1/things"):
        with pytest.raises(NotFound):
            world.create(path, report("x"))


def test_a_body_that_is_no_json_is_a_bad_request(world: World) -> None:
    assert world.wire.ask("POST", world.config_maps, b'{"kind": ').status == 400
    with refused(Told(Invalid, 400, "BadRequest")):
        world.session.post(REPORTS, b"nonsense")


def test_a_body_of_another_kind_is_a_bad_request(world: World) -> None:
    with refused(Told(Invalid, 400, "BadRequest")):
        world.create(world.leases, config_map(world.fresh("kind")))


def test_a_name_that_no_object_can_have_is_invalid(world: World) -> None:
    with refused(Told(Invalid, 422, "Invalid", frozenset({("FieldValueInvalid", "metadata.name")}))):
        world.create(world.config_maps, config_map("No_Name"))


def test_an_object_of_another_namespace_is_a_bad_request(world: World) -> None:
    body = config_map(world.fresh("elsewhere"))
    body["metadata"]["namespace"] = "elsewhere"
    with refused(Told(Invalid, 400, "BadRequest")):
        world.create(world.config_maps, body)


def test_a_namespace_that_is_not_there_takes_nothing(world: World) -> None:
    with refused(ABSENT):
        world.create(world.collection("configmaps", namespace="no-such"), config_map("x"))
    assert world.names(world.collection("pods", namespace="no-such")) == []
    assert world.get(f"{NAMESPACES}/{world.namespace}")["status"]["phase"] == "Active"


def test_the_resource_version_grows_with_every_change_over_all_objects(world: World) -> None:
    first, second = world.fresh("a"), world.fresh("b")
    one = world.create(world.config_maps, config_map(first))
    two = world.create(world.config_maps, config_map(second))
    three = world.merge(f"{world.config_maps}/{first}", {"data": {"a": "1"}})
    versions = [int(item["metadata"]["resourceVersion"]) for item in (one, two, three)]
    assert versions == sorted(set(versions))
    other = world.create(SESSIONS, remediation(world.fresh("session")))
    assert int(other["metadata"]["resourceVersion"]) > versions[-1]


def test_a_replacement_needs_the_current_resource_version(world: World) -> None:
    name = world.fresh("replaced")
    path = f"{world.config_maps}/{name}"
    old = world.create(world.config_maps, config_map(name))
    new = world.replace(path, {**old, "data": {"a": "1"}})
    assert new["metadata"]["resourceVersion"] != old["metadata"]["resourceVersion"]
    assert new["metadata"]["uid"] == old["metadata"]["uid"]
    with refused(CHANGED) as caught:
        world.replace(path, {**old, "data": {"a": "2"}})
    assert isinstance(caught.value, Conflict) and not caught.value.already_exists
    assert world.get(path)["data"] == {"a": "1"}


def test_a_replacement_of_another_uid_is_a_conflict(world: World) -> None:
    name = world.fresh("replaced")
    made = world.create(world.config_maps, config_map(name))
    made["metadata"]["uid"] = "another"
    with refused(CHANGED):
        world.replace(f"{world.config_maps}/{name}", made)


def test_a_replacement_of_what_is_gone_does_not_bring_it_back(world: World) -> None:
    """Of a Lease it is a conflict: the API makes one of that name anew, were it not for the UID in the body."""
    session = world.create(SESSIONS, remediation(world.fresh("gone")))
    held = world.create(world.leases, lease(world.fresh("gone")))
    for path, old, told in ((SESSIONS, session, ABSENT), (world.leases, held, CHANGED)):
        one = f"{path}/{old['metadata']['name']}"
        world.delete(one)
        with refused(told):
            world.replace(one, old)
        assert not world.exists(one)


def test_a_replacement_under_another_name_is_a_bad_request(world: World) -> None:
    made = world.create(world.config_maps, config_map(world.fresh("replaced")))
    with refused(Told(Invalid, 400, "BadRequest")):
        world.replace(f"{world.config_maps}/another", made)


@pytest.mark.parametrize("collection", ["config_maps", SESSIONS])
def test_a_merge_patch_with_an_old_resource_version_is_a_conflict(world: World, collection: str) -> None:
    path, old = _made(world, collection)
    new = world.merge(path, {"metadata": {"labels": {"a": "1"}}})
    version = old["metadata"]["resourceVersion"]
    with refused(CHANGED):
        world.merge(path, {"metadata": {"resourceVersion": version, "labels": {"a": "2"}}})
    current = {"resourceVersion": new["metadata"]["resourceVersion"], "labels": {"a": "3"}}
    assert world.merge(path, {"metadata": current})["metadata"]["labels"]["a"] == "3"


@pytest.mark.parametrize("collection", ["config_maps", SESSIONS])
def test_a_merge_patch_with_another_uid_is_refused_and_changes_nothing(world: World, collection: str) -> None:
    """It is Invalid, not a Conflict: a UID cannot be changed. (In a PUT and in a DELETE it is a precondition.)"""
    path, made = _made(world, collection)
    with refused(OTHER_UID):
        world.merge(path, {"metadata": {"uid": "another", "labels": {"a": "2"}}})
    assert world.get(path) == made
    old = {"uid": "another", "resourceVersion": "1"}
    with refused(CHANGED):
        world.merge(path, {"metadata": {**old, "labels": {"a": "2"}}})
    right = {"uid": made["metadata"]["uid"], "labels": {"a": "3"}}
    assert world.merge(path, {"metadata": right})["metadata"]["labels"]["a"] == "3"


def test_a_status_patch_with_an_old_resource_version_is_a_conflict(world: World) -> None:
    """What keeps two controllers from writing one session."""
    path, old = _made(world, SESSIONS)
    uid, version = old["metadata"]["uid"], old["metadata"]["resourceVersion"]
    own = {"metadata": {"uid": uid, "resourceVersion": version}}
    world.merge(f"{path}/status", {**own, "status": {"phase": "Fenced"}})
    with refused(CHANGED):
        world.merge(f"{path}/status", {**own, "status": {"phase": "Held"}})
    assert world.get(path)["status"]["phase"] == "Fenced"


def _made_report(world: World) -> tuple[str, Object]:
    """A report of a node with a spec and a status; its path, and how it is put again."""
    name = world.fresh("put")
    path = f"{REPORTS}/{name}"
    world.create(
        REPORTS, {**report(name), "spec": {"maintenance": {"reason": "r", "since": "2026-01-01T00:00:00Z"}}}
    )
    made = world.merge(f"{path}/status", {"status": {"nodeUID": "u", "bootID": "b", "sequence": 3}})
    head = {key: made[key] for key in ("apiVersion", "kind")}
    return path, {**head, "metadata": {"name": name, "resourceVersion": made["metadata"]["resourceVersion"]}}


def test_a_status_that_is_put_is_all_there_is_and_nothing_else_is_touched(world: World) -> None:
    """An agent need not know the controller's part of its report, nor who owns it."""
    path, again = _made_report(world)
    world.merge(path, {"metadata": {"labels": {"a": "1"}}})
    before = world.get(path)
    again["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"]
    after = world.replace(f"{path}/status", {**again, "status": {"nodeUID": "u", "sequence": 4}})
    assert "bootID" not in after["status"]
    assert (after["status"]["nodeUID"], after["status"]["sequence"]) == ("u", 4)
    assert after["spec"] == before["spec"]
    changes = ("resourceVersion", "managedFields", "generation")
    kept = [{k: v for k, v in one["metadata"].items() if k not in changes} for one in (before, after)]
    assert kept[0] == kept[1]
    assert after == world.get(path)


def test_a_status_that_is_put_on_an_old_version_or_on_nothing_is_refused(world: World) -> None:
    """So that an agent which does not know that the controller wrote finds out."""
    path, again = _made_report(world)
    world.merge(path, {"spec": {"maintenance": None}})
    with refused(CHANGED):
        world.replace(f"{path}/status", {**again, "status": {"nodeUID": "u", "sequence": 4}})
    assert world.get(path)["status"]["sequence"] == 3
    world.delete(path)
    with refused(ABSENT):
        world.replace(f"{path}/status", {**again, "status": {"nodeUID": "u"}})


def test_a_status_patch_of_a_custom_resource_is_not_held_back_by_its_uid_alone(world: World) -> None:
    """The API takes nothing of the metadata of such a patch, so it is the resourceVersion that protects a session."""
    path, made = _made(world, SESSIONS)
    after = world.merge(f"{path}/status", {"metadata": {"uid": "another"}, "status": {"phase": "Held"}})
    assert (after["metadata"]["uid"], after["status"]["phase"]) == (made["metadata"]["uid"], "Held")


def test_a_status_patch_of_a_pod_with_another_uid_is_refused(world: World) -> None:
    name = world.fresh("pod")
    world.create(world.pods, pod(name))
    for path in (f"{world.pods}/{name}", f"{world.pods}/{name}/status"):
        with refused(OTHER_UID):
            world.merge(path, {"metadata": {"uid": "another"}, "status": {"message": "x"}})


def test_a_change_of_the_spec_makes_a_status_patch_out_of_date(world: World) -> None:
    """A person's hold must not be overtaken by the controller."""
    path, old = _made(world, SESSIONS)
    world.merge(path, {"spec": {"hold": {"user": "somebody"}}})
    own = {"resourceVersion": old["metadata"]["resourceVersion"]}
    with refused(CHANGED):
        world.merge(f"{path}/status", {"metadata": own, "status": {"phase": "Fenced"}})


def test_nulls_in_a_merge_patch_remove_and_lists_are_replaced(world: World) -> None:
    name = world.fresh("merged")
    path = f"{REPORTS}/{name}"
    world.create(REPORTS, report(name))
    device = {"uuid": "GPU-1", "index": 0, "status": "Healthy"}
    world.merge(f"{path}/status", {"status": {"nodeUID": "u", "bootID": "b", "devices": [device]}})
    after = world.merge(f"{path}/status", {"status": {"nodeUID": None, "devices": []}})["status"]
    assert "nodeUID" not in after
    assert (after["bootID"], after["devices"]) == ("b", [])
    annotated = {"annotations": {"a": "1", "b": "2"}}
    world.merge(path, {"metadata": annotated})
    after = world.merge(path, {"metadata": {"annotations": {"a": None, "never": None}}})
    assert after["metadata"]["annotations"] == {"b": "2"}


def test_a_patch_that_changes_nothing_keeps_the_resource_version(world: World) -> None:
    for collection, patch in (("config_maps", {"data": {"a": "1"}}), (SESSIONS, {"spec": {"bootID": "b"}})):
        path, _ = _made(world, collection, boot="b")
        first = world.merge(path, patch)
        again = world.merge(path, patch)
        assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


def test_a_json_patch_is_carried_out_or_refused_as_a_whole(world: World) -> None:
    path, _ = _made(world, "config_maps")
    add = {"op": "add", "path": "/data", "value": {"a": "1"}}
    assert world.json_patch(path, [add])["data"] == {"a": "1"}
    test = {"op": "test", "path": "/data/a", "value": "other"}
    change = {"op": "replace", "path": "/data/a", "value": "2"}
    with pytest.raises(Invalid) as caught:
        world.json_patch(path, [change, test])
    assert (caught.value.status, caught.value.reason) == (422, "Invalid")
    assert world.get(path)["data"] == {"a": "1"}
    held = {"op": "test", "path": "/data/a", "value": "1"}
    assert world.json_patch(path, [held, {"op": "remove", "path": "/data/a"}]).get("data", {}) == {}


def test_a_patch_of_a_kind_that_nobody_knows_is_refused(world: World) -> None:
    path, _ = _made(world, "config_maps")
    answer = world.wire.ask("PATCH", path, {}, content_type="application/nonsense-patch+json")
    assert (answer.status, answer.object["reason"]) == (415, "UnsupportedMediaType")


def test_a_strategic_merge_patch_is_not_for_custom_resources(world: World) -> None:
    path, _ = _made(world, SESSIONS)
    with pytest.raises(ApiError) as caught:
        world.strategic(path, {"metadata": {"labels": {"a": "1"}}})
    assert (caught.value.status, caught.value.reason) == (415, "UnsupportedMediaType")


def _made(world: World, collection: str, boot: str = "boot-1") -> tuple[str, Object]:
    name = world.fresh("made")
    path = world.config_maps if collection == "config_maps" else collection
    body = config_map(name) if collection == "config_maps" else remediation(name, bootID=boot)
    return f"{path}/{name}", world.create(path, body)
