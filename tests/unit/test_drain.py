"""The drain: which pods, in which order, when again, and when it is over; and what the API server's answers mean."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from health.accelerators import ACCELERATOR_RESOURCES
from remediation.cluster import FencedError
from remediation.drain import SCHEDULER_LAG, Eviction, Notice, Verdict
from remediation.drain_policy import DrainMode, DrainPolicy, PodSelection, PreDrain
from remediation.drain_selection import Fate, judge
from remediation.drain_state import DrainState, Reply
from remediation.pod import Pod
from remediation.pod_api import KubernetesPods
from remediation.steps.drain import Drained, drain
from runtime.api_errors import (
    ApiError,
    Cause,
    ConnectionFailed,
    Forbidden,
    Invalid,
    NotFound,
    TooManyRequests,
    Unavailable,
)
from runtime.clock import ManualClock
from runtime.config import decode_yaml_document
from runtime.config_error import ConfigError
from runtime.quantities import Duration
from tests.api_server import Recorded, ScriptedApi, status_object
from tests.api_server import Reply as HttpReply
from tests.fake_pods import FakePods, budget_refusal, make_pod

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = Duration.parse("1m")
ALL = DrainPolicy(pods=PodSelection.ALL)
FORCE = DrainPolicy(pods=PodSelection.ALL, force=True, delete_empty_dir_data=True)


def fate(pod: Pod, policy: DrainPolicy = ALL) -> Fate:
    return judge(pod, policy, NOW, ACCELERATOR_RESOURCES).fate


class Drain:
    """A drain of node n1, pass by pass."""

    def __init__(self, *pods: Pod, policy: DrainPolicy | None = None, reboot: bool = False) -> None:
        self.clock = ManualClock(wall=NOW)
        self.api = FakePods(self.clock)
        self.api.put(*pods)
        self.policy = policy or DrainPolicy()
        self.reboot = reboot
        self.state: DrainState | None = None
        self.jitter: Callable[[], float] = lambda: 0.0

    def look(self) -> Drained:
        drained = drain(
            self.api,
            "n1",
            self.policy,
            self.state,
            clock=self.clock,
            next_rung_is_reboot=self.reboot,
            jitter=self.jitter,
        )
        # What a session remembers goes through JSON.
        self.state = msgspec.json.decode(msgspec.json.encode(drained.state), type=DrainState)
        assert self.state == drained.state
        return drained

    def run(self, *, passes: int = 5000) -> Drained:
        """Until the verdict is final, always waiting exactly as long as asked."""
        for _ in range(passes):
            drained = self.look()
            if drained.verdict is not Verdict.GOING_ON:
                assert drained.again is None
                return drained
            assert drained.again is not None
            self.clock.advance(drained.again)
        raise AssertionError(f"no end after {passes} passes: {drained.message}")

    @property
    def evicted(self) -> list[str]:
        return [eviction.name for _, eviction in self.api.evictions]


# Which pods.


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        (make_pod(), Fate.EVICT),
        (make_pod(phase="Pending"), Fate.EVICT),
        (make_pod(owner="Job"), Fate.EVICT),
        (make_pod(owner="DaemonSet"), Fate.SKIP),
        (make_pod(owner="DaemonSet", phase="Failed"), Fate.EVICT),
        (make_pod(owner="DaemonSet", deleted=NOW), Fate.SKIP),
        (make_pod(owner="", mirror=True), Fate.SKIP),
        (make_pod(mirror=True, deleted=NOW), Fate.SKIP),
        (make_pod(owner=""), Fate.BLOCKS),
        (make_pod(owner="", phase="Succeeded"), Fate.EVICT),
        (make_pod(owner="", deleted=NOW), Fate.TERMINATING),
        (make_pod(empty_dir=True), Fate.BLOCKS),
        (make_pod(empty_dir=True, phase="Failed"), Fate.EVICT),
        (make_pod(empty_dir=True, deleted=NOW), Fate.TERMINATING),
        (make_pod(deleted=NOW - timedelta(seconds=60)), Fate.TERMINATING),
        (make_pod(deleted=NOW - timedelta(seconds=61)), Fate.STUCK),
    ],
)
def test_the_filters_of_kubectl_drain(pod: Pod, expected: Fate) -> None:
    assert fate(pod) is expected


def test_options_give_leave_to_lose_what_cannot_be_got_back() -> None:
    assert fate(make_pod(owner=""), DrainPolicy(pods=PodSelection.ALL, force=True)) is Fate.EVICT
    only_data = DrainPolicy(pods=PodSelection.ALL, delete_empty_dir_data=True)
    assert fate(make_pod(empty_dir=True), only_data) is Fate.EVICT
    assert fate(make_pod(empty_dir=True, owner=""), only_data) is Fate.BLOCKS


def test_an_owner_that_is_no_controller_makes_no_managed_pod() -> None:
    pod = make_pod()
    owner = msgspec.structs.replace(pod.metadata.owner_references[0], controller=False)
    metadata = msgspec.structs.replace(pod.metadata, owner_references=(owner,))
    assert fate(msgspec.structs.replace(pod, metadata=metadata)) is Fate.BLOCKS


def requesting(quantities: dict[str, str], *, init: bool = False, claims: tuple[str, ...] = ()) -> Pod:
    wanting = {"resources": {"limits": quantities}}
    spec: dict[str, Any] = {
        "containers": [{} if init else wanting],
        "initContainers": [wanting] if init else [],
    }
    return make_pod(spec={**spec, "resourceClaims": [{"name": name} for name in claims]})


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        (requesting({"nvidia.com/gpu": "1"}), True),
        (requesting({"nvidia.com/mig-1g.10gb": "2"}), True),
        (requesting({"nvidia.com/gpu": "0"}), False),
        (requesting({"amd.com/gpu": "8"}, init=True), True),
        (requesting({"amd.com/cpx_nps4": "10"}), True),
        (requesting({"cpu": "1", "memory": "1Gi", "example.com/fpga": "1"}), False),
        (requesting({}), False),
        (requesting({}, claims=("gpu",)), True),
        (make_pod(phase="Succeeded"), False),
        (make_pod(phase="Failed", deleted=NOW), False),
    ],
)
def test_only_pods_that_hold_an_accelerator_are_meant_by_default(pod: Pod, expected: bool) -> None:
    assert (fate(pod, DrainPolicy()) is Fate.EVICT) is expected


def test_the_names_of_accelerators_are_a_parameter() -> None:
    pod = requesting({"example.com/gpu": "1"})
    assert judge(pod, DrainPolicy(), NOW, ("example.com/*",)).fate is Fate.EVICT


# Passes.


def test_a_drain_is_complete_when_two_looks_found_nothing_with_the_schedulers_lag_between_them() -> None:
    run = Drain(make_pod("a", grace=3), make_pod("cpu", gpus=0))
    first = run.look()
    assert first.verdict is Verdict.GOING_ON
    assert run.evicted == ["a"]
    run.clock.advance(3)
    second = run.look()
    assert second.verdict is Verdict.GOING_ON
    assert second.again == 5
    run.clock.advance(4.9)
    assert run.look().verdict is Verdict.GOING_ON
    run.clock.advance(0.1)
    last = run.look()
    assert last.verdict is Verdict.COMPLETED
    assert last.message == "no accelerator pod is left (1 evicted)"
    assert run.evicted == ["a"]


def test_an_empty_node_is_looked_at_twice_as_well() -> None:
    run = Drain()
    assert run.look().verdict is Verdict.GOING_ON
    assert run.run().verdict is Verdict.COMPLETED
    assert run.api.lists == 3


def test_a_pod_that_is_bound_after_the_first_list_is_found() -> None:
    run = Drain()
    run.look()
    late = make_pod("late", created=NOW + timedelta(seconds=1))
    run.clock.advance(3)
    run.api.put(late)
    run.look()
    assert run.evicted == ["late"]
    assert run.run().verdict is Verdict.COMPLETED
    assert run.evicted == ["late"]
    gone = NOW + timedelta(seconds=3 + 30)
    assert run.clock.wall() >= gone + SCHEDULER_LAG


def test_a_look_that_finds_nothing_new_leaves_the_state_and_the_sentence_as_they_were() -> None:
    run = Drain(make_pod("a"), make_pod("b"), policy=DrainPolicy(mode=DrainMode.WAIT))
    before = run.look()
    run.clock.advance(10)
    after = run.look()
    assert after.state == before.state
    assert after.message == before.message == "2 accelerator pods left: 2 running on (team/a, team/b)"


def test_a_pod_that_needs_leave_and_has_none_stops_the_whole_drain() -> None:
    run = Drain(make_pod("a"), make_pod("bare", owner=""), make_pod("data", empty_dir=True))
    drained = run.look()
    assert drained.verdict is Verdict.BLOCKED
    assert "1 without a controller (force is off) (team/bare)" in drained.message
    assert "1 with emptyDir data (deleteEmptyDirData is off) (team/data)" in drained.message
    assert run.evicted == []


def test_a_pod_that_asks_for_no_accelerator_cannot_stop_a_drain_of_accelerator_pods() -> None:
    run = Drain(make_pod("a"), make_pod("bare", owner="", gpus=0))
    assert run.run().verdict is Verdict.COMPLETED


def test_a_pass_sends_no_more_evictions_than_the_policy_allows() -> None:
    pods = [make_pod(f"p{number:02}") for number in range(7)]
    run = Drain(*pods, policy=DrainPolicy(concurrency=3))
    sent = []
    for _ in range(3):
        sent.append(len(run.look().look.evictions))
        run.clock.advance(2)
    assert sent == [3, 3, 1]


def test_pods_that_are_refused_hold_up_no_others() -> None:
    pods = [make_pod(f"p{number}") for number in range(4)]
    run = Drain(*pods, policy=DrainPolicy(concurrency=2))
    for pod in pods[:2]:
        run.api.refusals[pod.uid] = [budget_refusal()]
    run.look()
    run.clock.advance(2)
    run.look()
    assert run.evicted == ["p0", "p1", "p2", "p3"]


@pytest.mark.parametrize(("jitter", "wait"), [(0.0, 5.0), (0.5, 7.5), (0.999, 9.995)])
def test_a_pod_that_a_budget_holds_back_is_tried_again_after_five_seconds_and_a_random_bit(
    jitter: float, wait: float
) -> None:
    pod = make_pod("a")
    run = Drain(pod)
    run.jitter = lambda: jitter
    run.api.refusals[pod.uid] = [budget_refusal(), None]
    first = run.look()
    assert [answer.reply for answer in first.answers] == [Reply.BUDGET]
    assert first.message == (
        "1 accelerator pod left: 1 held back by a disruption budget (team/a): "
        '"The disruption budget web needs 1 healthy pods and has 1 currently"'
    )
    run.clock.advance(wait - 0.01)
    assert run.look().look.evictions == ()
    run.clock.advance(0.01)
    run.look()
    assert run.evicted == ["a", "a"]


def test_a_longer_retry_after_of_the_api_server_is_kept_within_reason() -> None:
    patient, absurd = make_pod("a"), make_pod("b")
    run = Drain(patient, absurd)
    run.api.refusals[patient.uid] = [TooManyRequests("", status=429, retry_after=10)]
    run.api.refusals[absurd.uid] = [TooManyRequests("", status=429, retry_after=86400)]
    state = run.look().state
    assert state.note(patient.uid).not_before == NOW + timedelta(seconds=10)
    assert state.note(absurd.uid).not_before == NOW + timedelta(seconds=60)


def test_a_deadline_that_is_reached_names_the_pods_that_a_budget_holds_back() -> None:
    held, slow = make_pod("held"), make_pod("slow", grace=900)
    run = Drain(held, slow, policy=DrainPolicy(deadline=MINUTE))
    run.api.refusals[held.uid] = [budget_refusal()]
    drained = run.run()
    assert drained.verdict is Verdict.DEADLINE
    assert run.clock.wall() - NOW == timedelta(seconds=60)
    assert drained.look.held_back == ("team/held",)
    assert drained.message.startswith("the drain's deadline of 1m has passed: 2 accelerator pods left")
    assert "1 held back by a disruption budget (team/held)" in drained.message
    assert "1 terminating (team/slow)" in drained.message


def test_nothing_is_evicted_at_the_deadline() -> None:
    pod = make_pod("a")
    run = Drain(pod, policy=DrainPolicy(deadline=MINUTE))
    run.state = DrainState(started=NOW - timedelta(seconds=60))
    assert run.look().verdict is Verdict.DEADLINE
    assert run.evicted == []


def test_a_drain_whose_last_pod_went_at_the_deadline_is_still_completed() -> None:
    run = Drain(make_pod("a", grace=59), policy=DrainPolicy(deadline=MINUTE))
    assert run.run().verdict is Verdict.COMPLETED


@pytest.mark.parametrize("reboot", [True, False])
def test_stuck_pods_are_left_to_a_reboot_and_never_to_a_reset(reboot: bool) -> None:
    stuck, other = make_pod("stuck", grace=10), make_pod("other", grace=1)
    run = Drain(stuck, other, policy=DrainPolicy(deadline=Duration.parse("5m")), reboot=reboot)
    run.api.stubborn = {stuck.uid}
    drained = run.run()
    assert "1 stuck in termination (team/stuck)" in drained.message
    if reboot:
        assert drained.verdict is Verdict.COMPLETED_WITH_STUCK
        assert run.clock.wall() - NOW >= timedelta(seconds=10 + 60 + 5)
        assert [one.pod.name for one in drained.look.left] == ["team/stuck"]
    else:
        assert drained.verdict is Verdict.DEADLINE


def test_a_pod_that_comes_back_for_ever_is_not_evicted_in_a_loop() -> None:
    run = Drain(make_pod("web", grace=1), policy=DrainPolicy(deadline=Duration.parse("1h")))
    drained = run.look()
    while drained.verdict is Verdict.GOING_ON:
        assert drained.again is not None
        run.clock.advance(drained.again)
        if not run.api.pods_on("n1"):
            tolerations = [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]
            run.api.put(make_pod("web", grace=1, created=run.clock.wall(), spec={"tolerations": tolerations}))
        drained = run.look()
    assert drained.verdict is Verdict.DEADLINE
    assert "they tolerate the cordon" in drained.message
    assert 5 < len(run.evicted) < 30


# Modes.


def test_wait_lets_pods_end_by_themselves() -> None:
    running, done = make_pod("running", owner="", empty_dir=True), make_pod("done", phase="Succeeded")
    run = Drain(running, done, policy=DrainPolicy(mode=DrainMode.WAIT, pods=PodSelection.ALL))
    drained = run.look()
    assert drained.again == 15
    assert drained.message == "1 pod left: 1 running on (team/running)"
    run.api.put(
        msgspec.structs.replace(running, status=msgspec.structs.replace(running.status, phase="Failed"))
    )
    assert run.run().verdict is Verdict.COMPLETED
    assert run.evicted == []


def test_wait_ends_at_its_deadline() -> None:
    run = Drain(make_pod("a"), policy=DrainPolicy(mode=DrainMode.WAIT, deadline=MINUTE))
    drained = run.run()
    assert drained.verdict is Verdict.DEADLINE
    assert run.evicted == []
    assert drained.message.endswith("1 accelerator pod left: 1 running on (team/a)")


def test_evict_after_leaves_pods_their_time_and_then_evicts() -> None:
    policy = DrainPolicy(mode=DrainMode.EVICT_AFTER, evict_after=MINUTE)
    run = Drain(make_pod("a"), make_pod("bare", owner=""), policy=policy)
    drained = run.look()
    assert drained.verdict is Verdict.GOING_ON
    assert run.evicted == []
    run.api.remove(*[uid for uid, pod in run.api.pods.items() if pod.controller is None])
    assert run.run().verdict is Verdict.COMPLETED
    ((when, _),) = run.api.evictions
    assert when == NOW + timedelta(seconds=60)


def test_evict_after_asks_for_leave_only_when_it_is_needed() -> None:
    policy = DrainPolicy(mode=DrainMode.EVICT_AFTER, evict_after=MINUTE)
    run = Drain(make_pod("bare", owner=""), policy=policy)
    assert run.run().verdict is Verdict.BLOCKED
    assert run.clock.wall() == NOW + timedelta(seconds=60)


def test_finished_pods_are_taken_away_without_a_wait_where_all_pods_are_meant() -> None:
    pre_drain = PreDrain()
    policy = DrainPolicy(
        mode=DrainMode.EVICT_AFTER,
        evict_after=Duration.parse("10m"),
        pods=PodSelection.ALL,
        pre_drain=pre_drain,
    )
    run = Drain(make_pod("done", phase="Succeeded", owner=""), policy=policy)
    run.look()
    assert run.evicted == ["done"]
    assert run.api.notices == []


@pytest.mark.parametrize(
    ("policy", "told_at", "evicted_at"),
    [
        (DrainPolicy(pre_drain=PreDrain(wait=MINUTE)), 0, 60),
        (
            DrainPolicy(
                mode=DrainMode.EVICT_AFTER, evict_after=Duration.parse("10m"), pre_drain=PreDrain(wait=MINUTE)
            ),
            540,
            600,
        ),
        (
            DrainPolicy(
                mode=DrainMode.EVICT_AFTER, evict_after=Duration.parse("30s"), pre_drain=PreDrain(wait=MINUTE)
            ),
            0,
            60,
        ),
    ],
)
def test_pods_are_told_before_they_are_evicted(policy: DrainPolicy, told_at: int, evicted_at: int) -> None:
    run = Drain(make_pod("a"), policy=policy)
    assert run.run().verdict is Verdict.COMPLETED
    ((told, notice),) = run.api.notices
    ((evicted, _),) = run.api.evictions
    assert (told - NOW).total_seconds() == told_at
    assert (evicted - NOW).total_seconds() == evicted_at
    assert notice.done_by == evicted


def test_wait_tells_pods_the_deadline() -> None:
    run = Drain(
        make_pod("a"),
        policy=DrainPolicy(mode=DrainMode.WAIT, deadline=Duration.parse("9m"), pre_drain=PreDrain()),
    )
    run.look()
    ((_, notice),) = run.api.notices
    assert notice.done_by == NOW + timedelta(minutes=9)


def test_a_pod_that_comes_later_is_told_too() -> None:
    run = Drain(make_pod("a"), policy=DrainPolicy(pre_drain=PreDrain(wait=MINUTE)))
    run.look()
    run.clock.advance(30)
    run.api.put(make_pod("late"))
    assert run.run().verdict is Verdict.COMPLETED
    assert [(when - NOW).total_seconds() for when, _ in run.api.notices] == [0, 30]
    assert [(when - NOW).total_seconds() for when, _ in run.api.evictions] == [60, 90]


def test_a_pod_that_cannot_be_told_is_given_its_time_all_the_same() -> None:
    pod = make_pod("a")
    run = Drain(pod, policy=DrainPolicy(pre_drain=PreDrain(wait=MINUTE)))
    run.api.notice_refusals[pod.uid] = [Forbidden("no patch for you", status=403)]
    assert "1 that could not be told of the drain (team/a)" in run.look().message
    assert run.run().verdict is Verdict.COMPLETED
    assert len(run.api.notices) == 1
    assert run.api.evictions[0][0] == NOW + timedelta(seconds=60)


def test_a_pod_that_was_replaced_before_it_was_told_is_gone() -> None:
    pod = make_pod("a")
    run = Drain(pod, policy=DrainPolicy(pre_drain=PreDrain(wait=MINUTE)))
    immutable = Cause(reason="FieldValueInvalid", message="field is immutable", field="metadata.uid")
    run.api.notice_refusals[pod.uid] = [Invalid("invalid", status=422, causes=(immutable,))]
    assert "1 gone by now (team/a)" in run.look().message


def test_a_notice_that_got_no_answer_is_sent_again() -> None:
    pod = make_pod("a")
    run = Drain(pod, policy=DrainPolicy(pre_drain=PreDrain(wait=MINUTE)))
    run.api.notice_refusals[pod.uid] = [ConnectionFailed("timed out", sent=True), None]
    assert run.run().verdict is Verdict.COMPLETED
    assert [(when - NOW).total_seconds() for when, _ in run.api.notices] == [0, 5]


# Answers.


def test_an_eviction_of_a_pod_that_was_replaced_counts_as_gone_and_leaves_the_other_alone() -> None:
    old, new = make_pod("db-0", owner="StatefulSet"), make_pod("db-0", owner="StatefulSet")

    class Racing(FakePods):
        def evict(self, eviction: Eviction) -> None:
            if eviction.uid == old.uid:
                self.remove(old.uid)
                self.put(msgspec.structs.replace(new, spec=msgspec.structs.replace(new.spec, node_name="n2")))
            super().evict(eviction)

    run = Drain(old)
    run.api = Racing(run.clock, pods={old.uid: old})
    assert [answer.reply for answer in run.look().answers] == [Reply.GONE]
    assert run.run().verdict is Verdict.COMPLETED
    assert [eviction.uid for _, eviction in run.api.evictions] == [old.uid]
    assert new.uid in run.api.pods


def test_a_controller_that_may_not_write_any_more_stops_in_the_middle_of_a_pass() -> None:
    pods = [make_pod(f"p{number}") for number in range(3)]
    run = Drain(*pods)
    for pod in pods:
        run.api.refusals[pod.uid] = [FencedError("not the leader", reason="Fenced")]
    with pytest.raises(FencedError):
        run.look()


def test_pods_that_cannot_be_listed_end_the_pass() -> None:
    class Silent(FakePods):
        def pods_on(self, node_name: str) -> tuple[Pod, ...]:
            raise Unavailable("no answer", status=503)

    run = Drain()
    run.api = Silent(run.clock)
    with pytest.raises(Unavailable):
        run.look()
    assert run.state is None


UID_CONFLICT = "Precondition failed: UID in precondition: old, UID in object meta: new"
SEVERAL = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
BUDGET_CAUSE = {"causes": [{"reason": "DisruptionBudget", "message": "needs 1"}], "retryAfterSeconds": 10}
TERMINATING_CAUSE = {"causes": [{"reason": "NamespaceTerminating", "field": "metadata.namespace"}]}


@pytest.mark.parametrize(
    ("code", "reason", "message", "details", "expected"),
    [
        (404, "NotFound", 'pods "a" not found', {}, Reply.GONE),
        (409, "Conflict", UID_CONFLICT, {}, Reply.GONE),
        (409, "Conflict", "the object has been modified", {}, Reply.UNANSWERED),
        (429, "TooManyRequests", "Cannot evict pod", BUDGET_CAUSE, Reply.BUDGET),
        (429, "TooManyRequests", "too many requests, please try again later", {}, Reply.THROTTLED),
        (500, "", SEVERAL, {}, Reply.SEVERAL_BUDGETS),
        (500, "InternalError", "etcd is sad", {}, Reply.UNANSWERED),
        (504, "Timeout", "couldn't update PodDisruptionBudget", {}, Reply.UNANSWERED),
        (403, "Forbidden", "is being terminated", TERMINATING_CAUSE, Reply.NAMESPACE_TERMINATING),
        (403, "Forbidden", "cannot create resource pods/eviction", {}, Reply.REFUSED),
        (400, "BadRequest", "name in URL does not match", {}, Reply.REFUSED),
        (401, "Unauthorized", "Unauthorized", {}, Reply.REFUSED),
    ],
)
def test_what_the_api_server_answers_to_an_eviction(
    api: ScriptedApi, code: int, reason: str, message: str, details: dict[str, Any], expected: Reply
) -> None:
    answer = json.dumps(status_object(code, reason, message, **details)).encode()
    listing = json.dumps({"metadata": {}, "items": [_raw_pod("a", "uid-a")]}).encode()
    api.route = lambda request: HttpReply(answer, code) if request.method == "POST" else HttpReply(listing)
    clock = ManualClock(wall=NOW)
    pods = KubernetesPods(api.session(), clock=clock, may_write=lambda: True)
    drained = drain(pods, "n1", DrainPolicy(), None, clock=clock, next_rung_is_reboot=False)
    (told,) = drained.answers
    assert told.reply is expected
    if expected is Reply.BUDGET:
        assert told.retry_after == 10
        assert told.message == "needs 1"
    if expected is Reply.GONE:
        assert drained.message == "1 accelerator pod left: 1 gone by now (team/a)"


# The API.


def _raw_pod(name: str, uid: str) -> dict[str, Any]:
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "r", "controller": True}
    metadata = {"name": name, "namespace": "team", "uid": uid, "creationTimestamp": "2025-12-31T23:00:00Z"}
    resources = {"limits": {"nvidia.com/gpu": "1"}}
    return {
        "metadata": {**metadata, "ownerReferences": [owner], "managedFields": [{"manager": "x"}]},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i", "resources": resources}]},
        "status": {"phase": "Running", "podIP": "10.0.0.1"},
    }


def _pod_api(api: ScriptedApi, *, may_write: bool = True) -> KubernetesPods:
    return KubernetesPods(api.session(), clock=ManualClock(wall=NOW), may_write=lambda: may_write)


def test_the_pods_of_a_node_are_listed_in_pages(api: ScriptedApi) -> None:
    def page(request: Recorded) -> HttpReply:
        first = "continue" not in request.query
        items = [_raw_pod("a" if first else "b", "1" if first else "2")]
        return HttpReply(
            json.dumps({"metadata": {"continue": "next" if first else ""}, "items": items}).encode()
        )

    api.route = page
    pods = _pod_api(api).pods_on("n1")
    assert [pod.name for pod in pods] == ["team/a", "team/b"]
    assert all(request.query["fieldSelector"] == "spec.nodeName=n1" for request in api.requests)
    assert len(api.requests) == 2


def test_an_answer_that_is_no_list_of_pods_is_an_api_error(api: ScriptedApi) -> None:
    api.answer("GET", {"metadata": {}, "items": [{"metadata": {"name": 7}}]})
    with pytest.raises(Unavailable, match="not a list of pods"):
        _pod_api(api).pods_on("n1")


def test_an_eviction_carries_the_uid_and_no_grace_of_ours(api: ScriptedApi) -> None:
    api.answer("POST", {}, status=201)
    _pod_api(api).evict(Eviction("team", "a", "uid-a"))
    (request,) = api.requests
    assert request.path == "/api/v1/namespaces/team/pods/a/eviction"
    assert json.loads(request.body) == {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": "a", "namespace": "team"},
        "deleteOptions": {"preconditions": {"uid": "uid-a"}},
    }


def test_a_notice_is_an_annotation_under_the_uid_and_an_event_of_its_own_name(api: ScriptedApi) -> None:
    api.answer("PATCH", {})
    api.answer("POST", {}, status=201)
    api.refuse("POST", 409, "AlreadyExists")
    notice = Notice("team", "a", "uid-a", NOW, "save your work")
    _pod_api(api).tell(notice)
    _pod_api(api).tell(notice)
    patch, event, _, again = api.requests
    assert json.loads(patch.body)["metadata"] == {
        "uid": "uid-a",
        "annotations": {"sickbay.dev/drain-notice": "2026-01-01T00:00:00.000000Z"},
    }
    written = json.loads(event.body)
    assert written["involvedObject"]["uid"] == "uid-a"
    assert written["reason"] == "DrainNotice"
    assert written["message"].startswith("save your work")
    assert written["metadata"]["name"] == json.loads(again.body)["metadata"]["name"]


@pytest.mark.parametrize(
    "call",
    [
        lambda pods: pods.evict(Eviction("team", "a", "u")),
        lambda pods: pods.tell(Notice("team", "a", "u", NOW, "save your work")),
    ],
)
def test_nothing_is_sent_without_a_proven_lease(
    api: ScriptedApi, call: Callable[[KubernetesPods], None]
) -> None:
    with pytest.raises(FencedError):
        call(_pod_api(api, may_write=False))
    assert api.requests == []


def test_errors_of_the_api_pass_through(api: ScriptedApi) -> None:
    api.refuse("POST", 404, "NotFound")
    with pytest.raises(NotFound):
        _pod_api(api).evict(Eviction("team", "a", "u"))
    with pytest.raises(ApiError):
        _pod_api(api).pods_on("n1")


# The policy.


def policy_of(text: str) -> DrainPolicy:
    return decode_yaml_document(text, DrainPolicy, file=Path("policy.yaml"))


def test_a_drain_policy_is_read_from_yaml() -> None:
    text = """
mode: EvictAfter
deadline: 2h
evictAfter: 30m
pods: All
preDrain: {wait: 5m, notice: checkpoint now}
deleteEmptyDirData: true
force: true
concurrency: 4
"""
    expected = DrainPolicy(
        mode=DrainMode.EVICT_AFTER,
        deadline=Duration.parse("2h"),
        evict_after=Duration.parse("30m"),
        pods=PodSelection.ALL,
        pre_drain=PreDrain(wait=Duration.parse("5m"), notice="checkpoint now"),
        delete_empty_dir_data=True,
        force=True,
        concurrency=4,
    )
    assert policy_of(text) == expected
    assert policy_of("{}") == DrainPolicy()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("deadlin: 5m", "deadline"),
        ("mode: evict", "Evict"),
        ("deadline: 300", "300s"),
        ("deadline: 0s", "longer than 0s"),
        ("mode: EvictAfter", "evictAfter beside mode EvictAfter"),
        ("evictAfter: 5m", "only beside EvictAfter"),
        ("{mode: EvictAfter, evictAfter: 2h, deadline: 1h}", "before the deadline of 1h"),
        ("{deadline: 1m, preDrain: {wait: 1m}}", "before the deadline of 1m"),
        ("concurrency: 0", "concurrency"),
        ("preDrain: {notice: ''}", "preDrain.notice"),
    ],
)
def test_a_drain_policy_that_makes_no_sense_is_refused_with_what_was_expected(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        policy_of(text)
    assert "policy.yaml" in str(refused.value)
