"""Watches: every change once and in order, from any point that is still known; else 410, and how it says so."""

from __future__ import annotations

import json
import time

import pytest

from runtime.api_errors import Gone, NotFound, watch_error
from runtime.transport import Query
from tests.contract.objects import config_map, lease, node, pod, remediation, report
from tests.contract.world import NODES, REPORTS, SESSIONS, Told, World


def test_a_watch_tells_every_change_since_its_version_in_order(world: World) -> None:
    name = world.fresh("watched")
    path = f"{REPORTS}/{name}"
    start = world.version(REPORTS)
    made = world.create(REPORTS, report(name))
    changed = world.merge(f"{path}/status", {"status": {"sequence": 1}})
    world.delete(path)
    with world.watch(REPORTS, start) as watch:
        events = [watch.next_of(name) for _ in range(3)]
        assert [kind for kind, _ in events] == ["ADDED", "MODIFIED", "DELETED"]
        assert [found for _, found in events[:2]] == [made, changed]
        # And those that come from now on.
        world.create(REPORTS, report(name))
        kind, found = watch.next_of(name)
        assert kind == "ADDED" and found["metadata"]["uid"] != made["metadata"]["uid"]


def test_what_is_deleted_comes_whole_with_the_version_of_its_end(world: World) -> None:
    """The reflector resumes from it, and the controller reads the UID of what went."""
    name = world.fresh("deleted")
    path = f"{REPORTS}/{name}"
    world.create(REPORTS, report(name))
    last = world.merge(f"{path}/status", {"status": {"sequence": 7, "bootID": "b"}})
    world.delete(path)
    with world.watch(REPORTS, last["metadata"]["resourceVersion"]) as watch:
        kind, found = watch.next_of(name)
    assert kind == "DELETED"
    assert (found["kind"], found["apiVersion"]) == (last["kind"], last["apiVersion"])
    assert found["status"] == last["status"]
    assert found["metadata"]["uid"] == last["metadata"]["uid"]
    assert int(found["metadata"]["resourceVersion"]) > int(last["metadata"]["resourceVersion"])


def test_a_watch_resumes_after_each_event_without_a_gap_or_a_double(world: World) -> None:
    names = [world.fresh("resumed") for _ in range(4)]
    version = world.version(world.config_maps)
    for name in names:
        world.create(world.config_maps, config_map(name))
    world.delete(f"{world.config_maps}/{names[0]}")
    wanted = [("ADDED", name) for name in names] + [("DELETED", names[0])]
    for expected in wanted:
        with world.watch(world.config_maps, version) as watch:
            kind, found = watch.next()
        assert (kind, found["metadata"]["name"]) == expected
        version = found["metadata"]["resourceVersion"]


def test_a_patch_that_changes_nothing_is_no_event(world: World) -> None:
    name, after = world.fresh("quiet"), world.fresh("after")
    made = world.create(world.config_maps, config_map(name))
    world.merge(f"{world.config_maps}/{name}", {"metadata": {"labels": {"never": None}}})
    world.create(world.config_maps, config_map(after))
    with world.watch(world.config_maps, made["metadata"]["resourceVersion"]) as watch:
        kind, found = watch.next()
    assert (kind, found["metadata"]["name"]) == ("ADDED", after)


def test_a_watch_of_one_namespace_or_resource_tells_nothing_of_another(world: World) -> None:
    name = world.fresh("own")
    start = world.version(world.config_maps)
    elsewhere = world.collection("configmaps", namespace="default")
    world.create(elsewhere, config_map(world.fresh("elsewhere")))
    world.create(world.leases, lease(world.fresh("lease")))
    world.create(world.config_maps, config_map(name))
    with world.watch(world.config_maps, start) as watch:
        kind, found = watch.next()
    assert (kind, found["metadata"]["name"]) == ("ADDED", name)


def test_a_selector_makes_a_change_into_an_arrival_or_a_leave(world: World) -> None:
    label, name = world.fresh("team"), world.fresh("member")
    path = f"{world.config_maps}/{name}"
    query = {"labelSelector": f"team={label}"}
    made = world.create(world.config_maps, config_map(name, data={"step": "0"}))
    world.merge(path, {"metadata": {"labels": {"team": label}}, "data": {"step": "1"}})
    world.merge(path, {"data": {"step": "2"}})
    left = world.merge(path, {"metadata": {"labels": {"team": None}}, "data": {"step": "3"}})
    world.delete(path)
    world.create(world.config_maps, {**config_map(f"{name}-b"), "data": {"step": "4"}})
    world.merge(f"{path}-b", {"metadata": {"labels": {"team": label}}})
    with world.watch(world.config_maps, made["metadata"]["resourceVersion"], query=query) as watch:
        events = [watch.next() for _ in range(4)]
    assert [(kind, found["data"]["step"]) for kind, found in events] == [
        ("ADDED", "1"),
        ("MODIFIED", "2"),
        # As it was when it was last selected, with the version at which it left.
        ("DELETED", "2"),
        ("ADDED", "4"),
    ]
    gone = events[2][1]["metadata"]
    assert gone["labels"] == {"team": label}
    assert gone["resourceVersion"] == left["metadata"]["resourceVersion"]


def test_a_field_selector_makes_a_change_into_an_arrival_or_a_leave(world: World) -> None:
    name = world.fresh("n")
    made = world.create(NODES, node(name))
    query = {"fieldSelector": f"metadata.name={name},spec.unschedulable=true"}
    world.merge(f"{NODES}/{name}", {"spec": {"unschedulable": True}})
    world.merge(f"{NODES}/{name}", {"spec": {"unschedulable": None}})
    with world.watch(NODES, made["metadata"]["resourceVersion"], query=query) as watch:
        (arrived, first), (left, second) = watch.next(), watch.next()
    assert (arrived, left) == ("ADDED", "DELETED")
    assert first["spec"]["unschedulable"] is True
    assert second["spec"]["unschedulable"] is True


def test_the_pods_of_a_node_can_be_watched(world: World) -> None:
    where, name = world.fresh("node"), world.fresh("pod")
    start = world.version(world.pods)
    world.create(world.pods, pod(world.fresh("other"), node="contract-other"))
    world.create(world.pods, pod(name, node=where))
    query = {"fieldSelector": f"spec.nodeName={where}"}
    with world.watch("/api/v1/pods", start, query=query) as watch:
        kind, found = watch.next()
    assert (kind, found["metadata"]["name"]) == ("ADDED", name)


def test_a_watch_of_sessions_can_be_narrowed_to_a_node(world: World) -> None:
    where, name = world.fresh("node"), world.fresh("session")
    start = world.version(SESSIONS)
    world.create(SESSIONS, remediation(world.fresh("other"), node_name="other"))
    world.create(SESSIONS, remediation(name, node_name=where))
    with world.watch(SESSIONS, start, query={"fieldSelector": f"spec.nodeName={where}"}) as watch:
        assert watch.next()[1]["metadata"]["name"] == name


def test_a_watch_gets_a_bookmark_to_resume_from(world: World) -> None:
    """A bookmark comes two seconds before the end, else once a minute, if anything has happened since the last."""
    start = world.version(SESSIONS)
    world.create(SESSIONS, remediation(world.fresh("session")))
    with world.watch(SESSIONS, start, seconds=world.bookmark_seconds) as watch:
        assert watch.next()[0] == "ADDED"
        made = world.create(SESSIONS, remediation(world.fresh("session")))["metadata"]["resourceVersion"]
        events = watch.raw()
        assert next(events)["type"] == "ADDED"
        event = next(events)
    found = event["object"]
    assert event["type"] == "BOOKMARK"
    assert (found["kind"], found["apiVersion"]) == ("AcceleratorRemediation", "sickbay.dev/v1alpha1")
    assert "name" not in found["metadata"]
    assert int(found["metadata"]["resourceVersion"]) >= int(made)
    name = world.fresh("session")
    world.create(SESSIONS, remediation(name))
    with world.watch(SESSIONS, found["metadata"]["resourceVersion"]) as watch:
        assert watch.next()[1]["metadata"]["name"] == name


def test_the_server_ends_a_watch_in_its_time_and_sends_no_bookmark_unasked(world: World) -> None:
    version = world.version(SESSIONS)
    query: Query = {"watch": "true", "resourceVersion": version, "timeoutSeconds": 1}
    begun = time.monotonic()
    answer = world.wire.ask("GET", SESSIONS, query=query)
    assert 0.9 <= time.monotonic() - begun <= 3.0
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["transfer-encoding"] == "chunked"


@pytest.mark.parametrize("collection", [REPORTS, SESSIONS])
def test_a_version_that_is_too_old_is_an_error_event_in_a_watch_that_was_accepted(
    world: World, collection: str
) -> None:
    made = report if collection == REPORTS else remediation
    world.create(collection, made(world.fresh("before")))
    world.compact()
    world.create(collection, made(world.fresh("after")))
    with world.watch(collection, "1", seconds=1) as watch:
        events = list(watch.raw())
    assert [event["type"] for event in events] == ["ERROR"]
    status = events[0]["object"]
    assert (status["kind"], status["status"], status["code"]) == ("Status", "Failure", 410)
    error = watch_error(json.dumps(status).encode())
    assert Told(type(error), error.status, error.reason) == Told(Gone, 410, "Expired")
    query: Query = {"watch": "true", "resourceVersion": "1", "timeoutSeconds": 1}
    assert world.wire.ask("GET", collection, query=query).status == 200


def test_a_watch_that_is_up_to_date_does_not_notice_a_compaction(world: World) -> None:
    """Neither one that is open nor one that resumes from its last event."""
    start = world.version(REPORTS)
    before, after, again = (world.fresh("x") for _ in range(3))
    world.create(REPORTS, report(before))
    with world.watch(REPORTS, start) as watch:
        assert watch.next_of(before)[0] == "ADDED"
        world.compact()
        world.create(REPORTS, report(after))
        kind, found = watch.next()
        assert (kind, found["metadata"]["name"]) == ("ADDED", after)
    world.create(REPORTS, report(again))
    with world.watch(REPORTS, found["metadata"]["resourceVersion"]) as watch:
        assert watch.next()[1]["metadata"]["name"] == again


def test_a_watch_of_what_is_not_served_is_not_found(world: World) -> None:
    with pytest.raises(NotFound), world.watch(f"{REPORTS[:-1]}z", "1") as watch:
        watch.next()
