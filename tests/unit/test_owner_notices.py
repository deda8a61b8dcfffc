"""Who has made the pods that a drain evicts is told why, once, and nothing depends on it."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from remediation.cluster import FencedError
from remediation.drain import OwnerNotice
from remediation.drain_policy import DrainPolicy
from remediation.drain_state import DrainState
from remediation.orders import DrainOrder
from remediation.pod import OwnerReference
from remediation.pod_api import KubernetesPods
from remediation.steps.drain import drain_pass
from remediation.steps.outcome import Result
from runtime.api_errors import Forbidden, Unavailable
from runtime.clock import ManualClock
from tests.api_server import ScriptedApi
from tests.fake_pods import FakePods, make_pod

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
ABOUT = "DeviceLost (xid:79) of GPU-a; session n1-0123456789"


def drained(pods: FakePods, *, about: str = ABOUT) -> DrainState | None:
    order = DrainOrder(DrainPolicy(), next_is_reboot=True, about=about)
    state: DrainState | None = None
    for _ in range(200):
        outcome = drain_pass(pods, "n1", order, state, clock=pods.clock)
        state = outcome.drain
        if outcome.result is not Result.WAITING:
            assert outcome.result is Result.DONE, outcome
            return state
        pods.clock.advance(outcome.again or 1)
    raise AssertionError("the drain does not end")


def node_with(*pods: Any) -> FakePods:
    made = FakePods(ManualClock(wall=NOW))
    made.put(*pods)
    return made


def test_a_controller_is_told_fault_session_and_node_once_for_all_its_pods() -> None:
    pods = node_with(make_pod(), make_pod(), make_pod())
    drained(pods)
    (notice,) = set(pods.told_owners)
    assert notice.namespace == "team" and notice.owner.name == "owner"
    assert notice.message == f"pods are evicted from node n1: {ABOUT}"


def test_a_pod_that_nobody_has_made_has_nobody_to_tell() -> None:
    pods = node_with(make_pod(owner=""))
    order = DrainOrder(DrainPolicy(force=True), next_is_reboot=True, about=ABOUT)
    drain_pass(pods, "n1", order, None, clock=pods.clock)
    assert len(pods.evictions) == 1 and pods.told_owners == []


@pytest.mark.parametrize("error", [Forbidden("no", status=403), Unavailable("not now", status=503)])
def test_a_drain_is_complete_without_its_notice(error: Exception) -> None:
    class Silent(FakePods):
        def tell_owner(self, notice: OwnerNotice) -> None:
            raise error

    pods = Silent(ManualClock(wall=NOW))
    pods.put(make_pod())
    assert drained(pods) is not None


def test_a_controller_that_has_lost_its_lease_tells_nobody() -> None:
    class Fenced(FakePods):
        def tell_owner(self, notice: OwnerNotice) -> None:
            raise FencedError("the lease is not proven", reason="Fenced")

    pods = Fenced(ManualClock(wall=NOW))
    pods.put(make_pod())
    order = DrainOrder(DrainPolicy(), next_is_reboot=True, about=ABOUT)
    with pytest.raises(FencedError):
        drain_pass(pods, "n1", order, None, clock=pods.clock)


def test_the_event_is_about_the_controller_and_one_that_exists_is_left_alone(api: ScriptedApi) -> None:
    owner = OwnerReference(kind="Job", name="train", uid="u1", api_version="batch/v1", controller=True)
    api.answer("POST", {}, status=201)
    api.refuse("POST", 409, "AlreadyExists")
    pods = KubernetesPods(api.session(), clock=ManualClock(wall=NOW), may_write=lambda: True)
    for _ in range(2):
        pods.tell_owner(OwnerNotice("team", owner, ABOUT))
    first, again = api.requests
    assert first.path == "/api/v1/namespaces/team/events"
    event = json.loads(first.body)
    assert event["involvedObject"] == {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "namespace": "team",
        "name": "train",
        "uid": "u1",
    }
    assert (event["reason"], event["message"]) == ("DrainedForRepair", ABOUT)
    assert event["metadata"]["name"] == json.loads(again.body)["metadata"]["name"]
