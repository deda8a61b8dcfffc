"""Leases and Events: of two that write at once one is first, and what the election writes comes back as it was."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from runtime.api_errors import Conflict, Invalid
from tests.contract.objects import lease
from tests.contract.world import Object, Told, World, refused

CHANGED = Told(Conflict, 409, "Conflict")


def test_of_two_who_take_a_lease_one_gets_it(world: World) -> None:
    name = world.fresh("lease")
    path = f"{world.leases}/{name}"
    seen = world.create(world.leases, lease(name))
    first = world.replace(path, _held(seen, "b", 1))
    with refused(CHANGED):
        world.replace(path, _held(seen, "c", 1))
    assert first["spec"]["holderIdentity"] == "b"
    assert world.get(path) == first


def test_of_two_who_create_a_lease_one_does(world: World) -> None:
    name = world.fresh("lease")
    world.create(world.leases, lease(name, holder="a"))
    with refused(Told(Conflict, 409, "AlreadyExists")):
        world.create(world.leases, lease(name, holder="b"))
    assert world.get(f"{world.leases}/{name}")["spec"]["holderIdentity"] == "a"


def test_many_who_race_for_a_lease_count_each_transition_once(world: World) -> None:
    name, wins = world.fresh("lease"), []
    path = f"{world.leases}/{name}"
    world.create(world.leases, lease(name))
    start = threading.Barrier(4)

    def candidate(identity: str) -> None:
        start.wait()
        for _ in range(5):
            seen = world.get(path)
            try:
                world.replace(path, _held(seen, identity, seen["spec"]["leaseTransitions"] + 1))
            except Conflict as conflict:
                assert not conflict.already_exists
            else:
                wins.append(identity)

    threads = [threading.Thread(target=candidate, args=(f"c{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = world.get(path)["spec"]
    assert last["leaseTransitions"] == len(wins) > 0
    assert last["holderIdentity"] == wins[-1] or last["holderIdentity"] in wins


def test_a_lease_keeps_what_it_is_given(world: World) -> None:
    name = world.fresh("lease")
    body = lease(name, holder="a", transitions=3)
    body["metadata"]["labels"] = {"by": "somebody"}
    body["spec"] |= {"acquireTime": "2026-03-01T12:00:00.123456Z", "renewTime": "2026-03-01T12:00:01.000000Z"}
    made = world.create(world.leases, body)
    assert made["spec"] == body["spec"]
    freed = {**made, "spec": {**made["spec"], "holderIdentity": None, "acquireTime": None}}
    after = world.replace(f"{world.leases}/{name}", freed)
    assert after["spec"].keys() == body["spec"].keys() - {"holderIdentity", "acquireTime"}
    assert after["spec"]["leaseTransitions"] == 3
    assert after["metadata"]["labels"] == {"by": "somebody"}


@pytest.mark.parametrize(
    ("field", "value"),
    [("leaseDurationSeconds", 0), ("leaseTransitions", -1)],
)
def test_a_lease_that_makes_no_sense_is_invalid(world: World, field: str, value: Any) -> None:
    body = lease(world.fresh("lease"))
    body["spec"][field] = value
    with refused(Told(Invalid, 422, "Invalid", frozenset({("FieldValueInvalid", f"spec.{field}")}))):
        world.create(world.leases, body)


def test_an_event_is_one_of_its_name(world: World) -> None:
    events = world.collection("events")
    body = _event(world)
    made = world.create(events, body)
    assert (made["reason"], made["count"], made["involvedObject"]) == (
        "DrainNotice",
        1,
        body["involvedObject"],
    )
    with refused(Told(Conflict, 409, "AlreadyExists")):
        world.create(events, body)
    found = world.names(events, fieldSelector="involvedObject.uid=uid-of-pod,reason=DrainNotice")
    assert found == [body["metadata"]["name"]]


def test_an_event_is_of_the_namespace_of_its_object(world: World) -> None:
    body = _event(world)
    body["involvedObject"]["namespace"] = "elsewhere"
    with refused(
        Told(Invalid, 422, "Invalid", frozenset({("FieldValueInvalid", "involvedObject.namespace")}))
    ):
        world.create(world.collection("events"), body)


def _held(seen: Object, holder: str, transitions: int) -> Object:
    return {**seen, "spec": {**seen["spec"], "holderIdentity": holder, "leaseTransitions": transitions}}


def _event(world: World) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{world.fresh('pod')}.0123456789abcdef", "namespace": world.namespace},
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": world.namespace,
            "name": "pod",
            "uid": "uid-of-pod",
        },
        "type": "Warning",
        "reason": "DrainNotice",
        "message": "will be evicted",
        "source": {"component": "sickbay-controller"},
        "firstTimestamp": "2026-03-01T12:00:00Z",
        "lastTimestamp": "2026-03-01T12:00:00Z",
        "count": 1,
    }
