"""The protocol of the Lease step by step, the thread and the API object that carry it out."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from remediation.election import Action, Election, LeaseRecord, Request
from remediation.lease import KubernetesLeaseApi, LeaseElector
from runtime.api_errors import Conflict, ConnectionFailed, Forbidden, Unavailable
from tests.api_server import ScriptedApi
from tests.fake_lease import FakeLease
from tests.lab.processes import wait_until

WALL = datetime(2026, 1, 1, tzinfo=UTC)


def make(identity: str = "a") -> Election:
    return Election(identity, lease_duration=15, renew_deadline=10)


def turn(election: Election, lease: FakeLease, now: float, *, answered_at: float | None = None) -> Request:
    request = election.request(now, WALL)
    try:
        election.answered(request, lease.carry_out(request), now if answered_at is None else answered_at)
    except Exception as error:
        election.failed(error, now if answered_at is None else answered_at)
    return request


def test_the_first_candidate_looks_and_creates_the_lease() -> None:
    election, lease = make(), FakeLease()
    assert turn(election, lease, 0).action is Action.READ
    assert turn(election, lease, 0).action is Action.CREATE
    assert election.term(9.99) == 0
    assert election.term(10.0) is None


def test_a_renewal_counts_from_before_it_was_sent() -> None:
    election, lease = make(), FakeLease()
    turn(election, lease, 0), turn(election, lease, 0)
    turn(election, lease, 8, answered_at=9.5)
    assert election.leads(17.9)
    assert not election.leads(18.0)


def test_a_renewal_that_is_answered_after_the_deadline_begins_a_new_term() -> None:
    election, lease = make(), FakeLease()
    turn(election, lease, 0), turn(election, lease, 0)
    turn(election, lease, 8, answered_at=10.5)
    assert not election.leads(10.5)
    assert election.ended == "the renew deadline passed"
    turn(election, lease, 11)
    assert election.term(11) == 1


def test_a_challenger_waits_a_whole_lease_duration_after_it_saw_the_record() -> None:
    leader, challenger, lease = make("a"), make("b"), FakeLease()
    turn(leader, lease, 0), turn(leader, lease, 0)
    turn(challenger, lease, 100, answered_at=103)
    assert turn(challenger, lease, 117.9).action is Action.READ
    assert turn(challenger, lease, 118).action is Action.REPLACE
    assert challenger.term(118) == 1


def test_the_times_written_in_a_record_decide_nothing() -> None:
    challenger, lease = make("b"), FakeLease()
    lease.put(LeaseRecord("a", 4, 15, acquired="1999-01-01T00:00:00Z", renewed="1999-01-01T00:00:00Z"))
    turn(challenger, lease, 0)
    assert turn(challenger, lease, 1).action is Action.READ


def test_a_released_lease_is_taken_at_once_and_a_struck_out_one_is_not() -> None:
    leader, challenger, lease = make("a"), make("b"), FakeLease()
    turn(leader, lease, 0), turn(leader, lease, 0)
    freeing = leader.release(1, WALL)
    assert freeing is not None and not leader.leads(1)
    lease.carry_out(freeing)
    turn(challenger, lease, 1)
    assert turn(challenger, lease, 1).action is Action.REPLACE
    assert lease.record is not None
    lease.put(replace(lease.record, holder=""))
    late = make("c")
    turn(late, lease, 2)
    assert turn(late, lease, 3).action is Action.READ


def test_a_leader_whose_renewal_meets_a_label_edit_looks_and_goes_on() -> None:
    election, lease = make(), FakeLease()
    turn(election, lease, 0), turn(election, lease, 0)
    assert lease.record is not None
    lease.put(lease.record)
    turn(election, lease, 2)
    assert turn(election, lease, 2).action is Action.READ
    assert turn(election, lease, 2).action is Action.REPLACE
    assert election.term(11) == 0


def test_a_leader_that_finds_another_holder_stops_at_once() -> None:
    election, lease = make(), FakeLease()
    turn(election, lease, 0), turn(election, lease, 0)
    lease.put(LeaseRecord("b", 1, 15))
    turn(election, lease, 2), turn(election, lease, 2)
    assert not election.leads(2)
    assert election.ended == "the Lease is held by b"


def test_a_lease_that_vanishes_is_waited_out_by_whoever_had_seen_it() -> None:
    leader, challenger, lease = make("a"), make("b"), FakeLease()
    turn(leader, lease, 0), turn(leader, lease, 0), turn(challenger, lease, 0)
    lease.record = None
    assert [turn(challenger, lease, now).action for now in (1, 15.9, 16)] == [
        Action.READ,
        Action.READ,
        Action.CREATE,
    ]
    assert challenger.term(16) == 1
    turn(leader, lease, 2), turn(leader, lease, 2)
    assert not leader.leads(2)


@pytest.mark.parametrize(("duration", "deadline"), [(10, 10), (10, 15), (10, 0)])
def test_a_deadline_that_is_not_below_the_duration_is_refused(duration: float, deadline: float) -> None:
    with pytest.raises(ValueError, match="must lie below"):
        Election("a", lease_duration=duration, renew_deadline=deadline)


@dataclass
class Watcher:
    """What an elector told, in order."""

    told: list[tuple[str, Any]] = field(default_factory=list)

    def elector(self, api: Any, identity: str, **given: Any) -> LeaseElector:
        timing = {"lease_duration": 0.9, "renew_deadline": 0.6, "retry_period": 0.05} | given
        return LeaseElector(
            api,
            identity=identity,
            on_started=lambda transitions: self.told.append(("started", transitions)),
            on_stopped=lambda reason: self.told.append(("stopped", reason)),
            **timing,
        )


@pytest.fixture
def started() -> Any:
    electors: list[LeaseElector] = []

    def start(elector: LeaseElector) -> LeaseElector:
        electors.append(elector)
        elector.start()
        return elector

    yield start
    for elector in electors:
        elector.stop()


Start = Callable[[LeaseElector], LeaseElector]


def test_an_elector_leads_renews_and_hands_over_at_once_when_it_is_stopped(started: Start) -> None:
    lease, first, second = FakeLease(), Watcher(), Watcher()
    leader = started(first.elector(lease, "a"))
    wait_until(leader.is_leader, 5, "leadership")
    wait_until(lambda: lease.writes > 3, 5, "renewals")
    successor = started(second.elector(lease, "b", lease_duration=600, renew_deadline=60))
    wait_until(lambda: successor.holder == "a", 5, "the successor to see the leader")
    assert leader.transitions == 0 and not successor.is_leader()
    leader.stop()
    assert first.told == [("started", 0), ("stopped", "shut down")]
    assert not leader.is_leader()
    wait_until(successor.is_leader, 5, "the successor, long before the lease duration")
    assert successor.transitions == 1


def test_an_elector_fences_itself_when_the_api_is_away_and_comes_back_in_a_new_term(started: Start) -> None:
    lease, watcher = FakeLease(), Watcher()
    elector = started(watcher.elector(lease, "a"))
    wait_until(elector.is_leader, 5, "leadership")
    lease.trouble = ConnectionFailed("connection refused", sent=False)
    wait_until(lambda: len(watcher.told) == 2, 5, "on_stopped")
    assert watcher.told[1] == ("stopped", "the renew deadline passed (connection refused)")
    lease.trouble = None
    wait_until(lambda: len(watcher.told) == 3, 5, "a new term")
    assert watcher.told[2] == ("started", 1)


@pytest.mark.parametrize(
    "trouble", [Forbidden("no", status=403), RuntimeError("unforeseen"), Unavailable("x", status=500)]
)
def test_no_error_ends_the_thread(started: Start, trouble: Exception) -> None:
    lease, watcher = FakeLease(), Watcher()
    lease.trouble = trouble
    elector = started(watcher.elector(lease, "a"))
    seen = threading.Event()
    original = lease.carry_out

    def count(request: Request) -> LeaseRecord | None:
        seen.set()
        return original(request)

    lease.carry_out = count  # type: ignore[method-assign]
    assert seen.wait(5)
    lease.trouble = None
    wait_until(elector.is_leader, 5, "leadership after the trouble")


def test_a_leader_that_cannot_start_its_work_frees_the_lease(started: Start) -> None:
    lease, stopped = FakeLease(), threading.Event()

    def refuse(transitions: int) -> None:
        raise RuntimeError("cannot work")

    elector = LeaseElector(
        lease, identity="a", on_started=refuse, on_stopped=lambda reason: stopped.set(), retry_period=30
    )
    started(elector)
    assert stopped.wait(5)
    wait_until(lambda: lease.record is not None and lease.record.released, 5, "the release")
    assert not elector.is_leader()


def lease_document(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "sickbay", "namespace": "s", "resourceVersion": "7", "labels": {"keep": "me"}},
        "spec": {"strategy": "OldestEmulationVersion", **spec},
    }


def test_a_replaced_lease_keeps_what_others_have_written_on_it(api: ScriptedApi) -> None:
    api.answer("GET", lease_document(holderIdentity="a", leaseTransitions=3, leaseDurationSeconds=15))
    api.answer("PUT", lease_document(holderIdentity="b", leaseTransitions=4))
    lease = KubernetesLeaseApi(api.session(), namespace="s", name="sickbay")
    record = lease.read(timeout=4)
    assert record is not None
    assert (record.holder, record.transitions, record.resource_version) == ("a", 3, "7")
    freed = replace(
        record, holder="", transitions=4, duration_seconds=1, renewed="2026-01-01T00:00:00.000000Z"
    )
    written = lease.replace(freed, timeout=4)
    assert written.holder == "b"
    put = api.requests[-1]
    assert (put.method, put.path) == ("PUT", "/apis/coordination.k8s.io/v1/namespaces/s/leases/sickbay")
    sent = msgspec.json.decode(put.body)
    assert sent["metadata"] == {
        "name": "sickbay",
        "namespace": "s",
        "resourceVersion": "7",
        "labels": {"keep": "me"},
    }
    assert sent["spec"] == {
        "strategy": "OldestEmulationVersion",
        "holderIdentity": None,
        "leaseTransitions": 4,
        "leaseDurationSeconds": 1,
        "acquireTime": None,
        "renewTime": "2026-01-01T00:00:00.000000Z",
    }


def test_a_lease_that_is_absent_reads_as_none_and_a_taken_name_is_a_conflict(api: ScriptedApi) -> None:
    api.refuse("GET", 404, "NotFound")
    api.refuse("POST", 409, "AlreadyExists")
    lease = KubernetesLeaseApi(api.session(), namespace="s", name="sickbay")
    assert lease.read(timeout=4) is None
    with pytest.raises(Conflict) as refused:
        lease.create(LeaseRecord("a", 0, 15, renewed="2026-01-01T00:00:00.000000Z"), timeout=4)
    assert refused.value.already_exists


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"metadata": {"resourceVersion": 5}}', b"\xff"])
def test_an_answer_that_is_no_lease_is_an_api_error(api: ScriptedApi, body: bytes) -> None:
    api.answer("GET", body)
    with pytest.raises(Unavailable, match="not a Lease"):
        KubernetesLeaseApi(api.session(), namespace="s", name="sickbay").read(timeout=4)
