"""Trouble on demand at the embedded API: what each kind does to a client, and how often it strikes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from runtime.api_errors import (
    ApiError,
    Conflict,
    ConnectionFailed,
    Gone,
    NotFound,
    TooManyRequests,
    Unavailable,
)
from runtime.clock import ManualClock
from runtime.kubernetes import Session
from simulation.cluster.faults import Fault, FaultError, Faults, Kind, Target, parse
from simulation.cluster.server import EmbeddedApi
from tests.unit.embedded_rig import eventually, session

NODES = "/api/v1/nodes"
ADMIN = "/sickbay-admin/faults"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def api(clock: ManualClock) -> Iterator[EmbeddedApi]:
    with EmbeddedApi(clock=clock, crds=False) as running:
        running.store.create("nodes", {"metadata": {"name": "n1"}})
        yield running


@pytest.fixture
def client(api: EmbeddedApi) -> Session:
    return session(api)


def fault(kind: Kind, **more: Any) -> Fault:
    return Fault(kind=kind, **more)


def test_a_dropped_request_was_not_carried_out_and_a_lost_response_was(
    api: EmbeddedApi, client: Session
) -> None:
    for kind, name, made in ((Kind.DROP, "dropped", False), (Kind.LOSE_RESPONSE, "lost", True)):
        number = api.faults.add(fault(kind, verb="create", count=1))
        with pytest.raises(ConnectionFailed) as caught:
            client.post(NODES, json.dumps({"metadata": {"name": name}}).encode())
        assert caught.value.maybe_applied
        assert api.faults.struck(number) == 1
        assert (name in [node["metadata"]["name"] for node in api.store.list("nodes")]) is made


@pytest.mark.parametrize(
    ("given", "error", "retry_after"),
    [
        (fault(Kind.CONFLICT), Conflict, None),
        (fault(Kind.GONE), Gone, None),
        (fault(Kind.TOO_MANY), TooManyRequests, None),
        (fault(Kind.TOO_MANY, retry_after=3), TooManyRequests, 3.0),
        (fault(Kind.ERROR), Unavailable, None),
        (fault(Kind.UNAVAILABLE, retry_after=2), Unavailable, 2.0),
    ],
)
def test_a_refusal_is_what_the_client_takes_it_for(
    api: EmbeddedApi, client: Session, given: Fault, error: type[ApiError], retry_after: float | None
) -> None:
    number = api.faults.add(given)
    with pytest.raises(error) as caught:
        client.get(f"{NODES}/n1")
    assert caught.value.retry_after == retry_after
    if isinstance(caught.value, TooManyRequests):
        assert not caught.value.is_disruption_budget
    assert api.faults.remove(number)
    client.get(f"{NODES}/n1")


def test_a_delay_lasts_by_the_servers_clock(api: EmbeddedApi, client: Session, clock: ManualClock) -> None:
    api.faults.add(fault(Kind.DELAY, seconds=3600, verb="get", count=1))
    done = threading.Event()
    caller = threading.Thread(target=lambda: (client.get(f"{NODES}/n1"), done.set()), daemon=True)
    caller.start()
    eventually(lambda: bool(api.faults.describe()[0]["struck"]), "the fault struck")
    assert not done.wait(0.05)
    clock.advance(3601)
    assert done.wait(5)


def test_a_half_open_watch_is_silent_for_ever(api: EmbeddedApi, client: Session, clock: ManualClock) -> None:
    api.faults.add(fault(Kind.HALF_OPEN, count=1))
    lines = client.watch(NODES, query={}, resource_version="1", timeout_seconds=30, inactivity_seconds=0.3)
    reader = threading.Thread(target=lambda: clock.advance(1000), daemon=True)
    reader.start()
    with pytest.raises(ConnectionFailed, match="nothing came"):
        list(lines)


@pytest.mark.parametrize("kind", [Kind.DROP, Kind.HALF_OPEN])
def test_a_watch_that_runs_can_be_struck(api: EmbeddedApi, client: Session, kind: Kind) -> None:
    version = str(api.store.version)
    lines = iter(
        client.watch(NODES, query={}, resource_version=version, timeout_seconds=30, inactivity_seconds=0.5)
    )
    api.store.create("nodes", {"metadata": {"name": "n2"}})
    assert json.loads(next(lines))["object"]["metadata"]["name"] == "n2"
    api.faults.add(fault(kind, verb="watch", resource="nodes", established=True))
    api.store.create("nodes", {"metadata": {"name": "n3"}})
    with pytest.raises(ConnectionFailed):
        list(lines)
    assert api.faults.describe() == []


def test_a_gone_watch_comes_as_an_event_or_as_a_status(api: EmbeddedApi, client: Session) -> None:
    def watch() -> list[bytes]:
        return list(
            client.watch(NODES, query={}, resource_version="1", timeout_seconds=9, inactivity_seconds=5)
        )

    number = api.faults.add(fault(Kind.GONE, verb="watch"))
    (line,) = watch()
    assert json.loads(line)["object"]["code"] == 410
    api.faults.remove(number)
    api.faults.add(fault(Kind.GONE, verb="watch", as_status=True))
    with pytest.raises(Gone):
        watch()


def test_a_stale_read_shows_what_was_before(api: EmbeddedApi, client: Session) -> None:
    api.store.patch("nodes", "n1", {"spec": {"unschedulable": True}})
    api.store.create("nodes", {"metadata": {"name": "n2"}})
    api.faults.add(fault(Kind.STALE, behind=2))
    assert "unschedulable" not in json.loads(client.get(f"{NODES}/n1").body)["spec"]
    listed = json.loads(client.get(NODES).body)
    assert [item["metadata"]["name"] for item in listed["items"]] == ["n1"]
    assert listed["metadata"]["resourceVersion"] == str(api.store.version - 2)
    with pytest.raises(NotFound):
        client.get(f"{NODES}/n2")


def test_a_skewed_clock_shows_in_what_is_written_and_in_the_date(api: EmbeddedApi, client: Session) -> None:
    api.faults.add(fault(Kind.CLOCK_SKEW, seconds=86400, count=1))
    answer = client.post(NODES, b'{"metadata":{"name":"n2"}}')
    assert json.loads(answer.body)["metadata"]["creationTimestamp"] == "2026-01-02T00:00:00Z"
    assert answer.headers["date"] == "Fri, 02 Jan 2026 00:00:00 GMT"
    assert client.get(f"{NODES}/n1").headers["date"] == "Thu, 01 Jan 2026 00:00:00 GMT"


TARGET = Target("create", "pods/eviction", "default", "p1", "system:node:n1", "sickbay-controller/1 epoch/2")


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ({}, True),
        ({"verb": "create"}, True),
        ({"verb": "get"}, False),
        ({"resource": "pods/*"}, True),
        ({"resource": "pods"}, False),
        ({"name": "p?"}, True),
        ({"namespace": "kube-*"}, False),
        ({"user": "system:node:*"}, True),
        ({"user_agent": "*epoch/2*"}, True),
    ],
)
def test_a_fault_strikes_what_fits_all_its_patterns(pattern: dict[str, str], fits: bool) -> None:
    faults = Faults()
    faults.add(fault(Kind.ERROR, **pattern))
    assert (faults.strike(TARGET).kind is Kind.ERROR) is fits


def test_skip_and_count_choose_which_requests_are_struck() -> None:
    faults = Faults()
    faults.add(fault(Kind.ERROR, skip=2, count=3))
    assert [faults.strike(TARGET).kind is Kind.ERROR for _ in range(7)] == [
        False,
        False,
        True,
        True,
        True,
        False,
        False,
    ]


def test_a_probability_repeats_with_its_seed_whatever_else_is_armed() -> None:
    def run(seed: int, *others: Fault) -> list[bool]:
        faults = Faults(seed=seed)
        faults.add(fault(Kind.ERROR, probability=0.3))
        for other in others:
            faults.add(other)
        return ["InternalError" in faults.strike(TARGET).names for _ in range(200)]

    assert run(1) == run(1, fault(Kind.DELAY, seconds=1, probability=0.5))
    assert run(1) != run(2)
    assert 30 < sum(run(1)) < 90


def test_delays_add_up_beside_a_refusal() -> None:
    faults = Faults()
    for given in (
        fault(Kind.DELAY, seconds=1),
        fault(Kind.ERROR),
        fault(Kind.DELAY, seconds=2),
        fault(Kind.CONFLICT),
    ):
        faults.add(given)
    strike = faults.strike(TARGET)
    assert (strike.kind, strike.delay_seconds) == (Kind.ERROR, 3)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b'{"kind":"Drp"}', "did you mean Drop"),
        (b'{"kind":"Drop","verbs":"get"}', "did you mean verb"),
        (b"{}", "kind"),
        (b"[", "not a fault"),
        (b'{"kind":"Drop","count":"x"}', "count"),
    ],
)
def test_what_is_no_fault_is_told_with_the_nearest_word(text: bytes, why: str) -> None:
    with pytest.raises(FaultError, match=why):
        parse(text)


@pytest.mark.parametrize(
    "given",
    [
        fault(Kind.DROP, probability=2),
        fault(Kind.DROP, count=0),
        fault(Kind.DELAY),
        fault(Kind.STALE),
        fault(Kind.ERROR, established=True),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(given: Fault) -> None:
    with pytest.raises(FaultError):
        Faults().add(given)


def test_the_admin_endpoint_arms_shows_and_disarms(api: EmbeddedApi, client: Session) -> None:
    body = b'[{"kind":"Conflict","resource":"nodes","count":1},{"kind":"Delay","seconds":1,"userAgent":"x*"}]'
    assert json.loads(client.post(ADMIN, body).body) == {"numbers": [1, 2]}
    shown = json.loads(client.get(ADMIN).body)["faults"]
    assert shown[0] == {"number": 1, "struck": 0, "kind": "Conflict", "resource": "nodes", "count": 1}
    with pytest.raises(Conflict):
        client.get(f"{NODES}/n1")
    client.request("DELETE", f"{ADMIN}/1")
    assert [armed["number"] for armed in json.loads(client.get(ADMIN).body)["faults"]] == [2]
    client.request("DELETE", ADMIN)
    assert api.faults.describe() == []
    with pytest.raises(ApiError) as caught:
        client.post(ADMIN, b'{"kind":"Conflct"}')
    assert caught.value.status == 400
