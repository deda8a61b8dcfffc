"""Deletions: with grace, with preconditions, held back by finalizers, and what goes with its owner."""

from __future__ import annotations

from datetime import datetime

import pytest

from runtime.api_errors import Conflict, Forbidden, Invalid, NotFound
from tests.contract.objects import config_map, node, pod, remediation, report, running_pod
from tests.contract.world import NODES, REPORTS, SESSIONS, Told, World, refused
from tests.lab.processes import wait_until

CHANGED = Told(Conflict, 409, "Conflict")
HOLD = "example.com/hold"


def test_an_object_without_finalizers_goes_at_once(world: World) -> None:
    name = world.fresh("session")
    made = world.create(SESSIONS, remediation(name))
    answer = world.wire.ask("DELETE", f"{SESSIONS}/{name}")
    assert answer.status == 200
    assert not world.exists(f"{SESSIONS}/{name}")
    with refused(Told(NotFound, 404, "NotFound")):
        world.delete(f"{SESSIONS}/{name}", uid=made["metadata"]["uid"])


@pytest.mark.parametrize("collection", [SESSIONS, "pods"])
def test_a_deletion_holds_for_one_uid(world: World, collection: str) -> None:
    path = _made(world, collection)
    with refused(CHANGED) as caught:
        world.delete(path, uid="another")
    assert "UID in " in caught.value.message
    found = world.get(path)
    assert "deletionTimestamp" not in found["metadata"]
    world.delete(path, uid=found["metadata"]["uid"])


@pytest.mark.parametrize("collection", [SESSIONS, "pods"])
def test_a_deletion_holds_for_one_resource_version(world: World, collection: str) -> None:
    path = _made(world, collection)
    old = world.get(path)["metadata"]["resourceVersion"]
    new = world.merge(path, {"metadata": {"labels": {"a": "b"}}})["metadata"]["resourceVersion"]
    with refused(CHANGED):
        world.delete(path, resource_version=old)
    world.delete(path, resource_version=new)


def test_a_bound_pod_has_its_grace_and_its_kubelet_ends_it(world: World) -> None:
    target = running_pod(world)
    path = f"{world.pods}/{target['metadata']['name']}"
    world.delete(path, uid=target["metadata"]["uid"])
    first = world.get(path)
    assert first["metadata"]["deletionGracePeriodSeconds"] == 30
    born, ends = (_time(first["metadata"][key]) for key in ("creationTimestamp", "deletionTimestamp"))
    assert 29 <= (ends - born).total_seconds() <= 60
    # Asked again it does not get more time, with its own grace or another.
    world.delete(path)
    world.delete(path, grace_seconds=600)
    assert world.get(path)["metadata"]["deletionTimestamp"] == first["metadata"]["deletionTimestamp"]
    world.delete(path, grace_seconds=5)
    assert _time(world.get(path)["metadata"]["deletionTimestamp"]) < ends
    world.delete(path, grace_seconds=0)
    assert not world.exists(path)


def test_the_watch_of_a_graceful_deletion_tells_both_moments(world: World) -> None:
    target = running_pod(world)
    name = target["metadata"]["name"]
    world.delete(f"{world.pods}/{name}")
    world.delete(f"{world.pods}/{name}", grace_seconds=0)
    with world.watch(world.pods, target["metadata"]["resourceVersion"]) as watch:
        (first, marked), (last, gone) = watch.next_of(name), watch.next_of(name)
        while last == "MODIFIED":
            last, gone = watch.next_of(name)
    assert (first, last) == ("MODIFIED", "DELETED")
    assert "deletionTimestamp" in marked["metadata"]
    assert gone["metadata"]["uid"] == target["metadata"]["uid"]


def test_a_pod_has_the_grace_of_its_spec(world: World) -> None:
    name = world.fresh("pod")
    body = pod(name, node="contract-none")
    body["spec"]["terminationGracePeriodSeconds"] = 7
    world.create(world.pods, body)
    world.delete(f"{world.pods}/{name}")
    assert world.get(f"{world.pods}/{name}")["metadata"]["deletionGracePeriodSeconds"] == 7


def test_a_pod_that_is_not_bound_goes_at_once(world: World) -> None:
    name = world.fresh("pod")
    world.create(world.pods, pod(name))
    world.delete(f"{world.pods}/{name}")
    assert not world.exists(f"{world.pods}/{name}")


def test_a_pod_that_has_ended_goes_at_once(world: World) -> None:
    target = running_pod(world)
    path = f"{world.pods}/{target['metadata']['name']}"
    world.merge(f"{path}/status", {"status": {"phase": "Succeeded"}})
    world.delete(path)
    assert not world.exists(path)


def test_a_finalizer_holds_an_object_until_it_is_taken_off(world: World) -> None:
    name = world.fresh("held")
    path = f"{world.config_maps}/{name}"
    body = config_map(name)
    body["metadata"]["finalizers"] = [HOLD]
    made = world.create(world.config_maps, body)
    world.delete(path)
    held = world.get(path)
    assert held["metadata"]["deletionTimestamp"] and held["metadata"]["deletionGracePeriodSeconds"] == 0
    assert held["metadata"]["uid"] == made["metadata"]["uid"]
    world.delete(path)
    assert world.get(path) == held
    with refused(Told(Conflict, 409, "AlreadyExists")):
        world.create(world.config_maps, config_map(name))
    # It can be changed, and no finalizer can be put on any more.
    changed = world.merge(path, {"data": {"a": "1"}})
    with pytest.raises((Forbidden, Invalid)) as caught:
        world.merge(path, {"metadata": {"finalizers": [HOLD, "example.com/another"]}})
    assert (caught.value.status, caught.value.reason) == (422, "Invalid")
    assert ("FieldValueForbidden", "metadata.finalizers") in {
        (cause.reason, cause.field) for cause in caught.value.causes
    }
    world.merge(path, {"metadata": {"finalizers": None}})
    assert not world.exists(path)
    with world.watch(world.config_maps, changed["metadata"]["resourceVersion"]) as watch:
        kind, _ = watch.next_of(name)
    assert kind == "DELETED"


def test_a_finalizer_holds_a_pod_whose_kubelet_has_ended_it(world: World) -> None:
    """What a drain counts as stuck."""
    target = running_pod(world)
    path = f"{world.pods}/{target['metadata']['name']}"
    world.merge(path, {"metadata": {"finalizers": [HOLD]}})
    world.delete(path)
    world.delete(path, grace_seconds=0)
    held = world.get(path)["metadata"]
    assert held["deletionGracePeriodSeconds"] == 0 and held["finalizers"] == [HOLD]
    world.merge(path, {"metadata": {"finalizers": []}})
    assert not world.exists(path)


def test_nobody_sets_or_takes_back_a_deletion_by_a_patch(world: World) -> None:
    target = running_pod(world)
    path = f"{world.pods}/{target['metadata']['name']}"
    world.delete(path)
    at = world.get(path)["metadata"]["deletionTimestamp"]
    world.merge(path, {"metadata": {"deletionTimestamp": None, "annotations": {"a": "b"}}})
    assert world.get(path)["metadata"]["deletionTimestamp"] == at


def test_a_new_object_of_an_old_name_is_another_one(world: World) -> None:
    name = world.fresh("node")
    first = world.create(NODES, node(name))
    world.delete(f"{NODES}/{name}")
    second = world.create(NODES, node(name))
    assert first["metadata"]["uid"] != second["metadata"]["uid"]
    old = {"uid": first["metadata"]["uid"], "resourceVersion": first["metadata"]["resourceVersion"]}
    with refused(CHANGED):
        world.merge(f"{NODES}/{name}", {"metadata": {**old, "labels": {"a": "b"}}})
    assert "a" not in world.get(f"{NODES}/{name}")["metadata"]["labels"]


def test_a_collection_is_deleted_by_a_selector(world: World) -> None:
    label = world.fresh("many")
    for number in range(3):
        body = config_map(f"{label}-{number}")
        body["metadata"]["labels"] = {"of": label} if number else {}
        world.create(world.config_maps, body)
    answer = world.wire.ask("DELETE", world.config_maps, query={"labelSelector": f"of={label}"})
    assert answer.status == 200
    assert [name for name in world.names(world.config_maps) if label in name] == [f"{label}-0"]


def test_the_report_of_a_node_goes_with_the_node(world: World) -> None:
    name = world.fresh("node")
    owner = world.create(NODES, node(name))
    reference = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": owner["metadata"]["uid"]}
    body = report(name)
    body["metadata"]["ownerReferences"] = [reference]
    kept = report(f"{name}-kept")
    world.create(REPORTS, kept)
    with world.controllers():
        world.create(REPORTS, body)
        world.delete(f"{NODES}/{name}")
        wait_until(lambda: not world.exists(f"{REPORTS}/{name}"), 40, "the report to go with its node")
    assert world.exists(f"{REPORTS}/{name}-kept")


def _made(world: World, collection: str) -> str:
    if collection == "pods":
        return f"{world.pods}/{running_pod(world)['metadata']['name']}"
    name = world.fresh("session")
    world.create(SESSIONS, remediation(name))
    return f"{SESSIONS}/{name}"


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
