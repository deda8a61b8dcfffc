"""Drains of arbitrary nodes under arbitrary policies, against an API server that answers whatever it likes."""

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import msgspec
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from health.accelerators import ACCELERATOR_RESOURCES
from remediation.drain import SCHEDULER_LAG, Verdict
from remediation.drain_policy import DrainMode, DrainPolicy, PodSelection, PreDrain, policy_of
from remediation.drain_selection import STUCK_AFTER, Fate, judge
from remediation.drain_state import RETRY_AFTER, DrainState
from remediation.pod import Pod
from remediation.steps.drain import Drained, drain
from runtime.api_errors import ApiError, Conflict, Forbidden, NotFound, TooManyRequests, Unavailable
from runtime.clock import ManualClock
from runtime.quantities import Duration
from tests.fake_pods import FakePods, budget_refusal, make_pod

NOW = datetime(2026, 1, 1, tzinfo=UTC)

_seconds = st.integers(1, 7200).map(Duration)


@st.composite
def drain_policies(draw: st.DrawFn) -> DrainPolicy:
    """Any policy that the file may say."""
    mode = draw(st.sampled_from(DrainMode))
    given = {
        "mode": mode,
        "deadline": draw(_seconds),
        "evict_after": draw(_seconds) if mode is DrainMode.EVICT_AFTER else None,
        "pods": draw(st.sampled_from(PodSelection)),
        "pre_drain": draw(st.none() | st.builds(PreDrain, wait=_seconds)),
        "delete_empty_dir_data": draw(st.booleans()),
        "force": draw(st.booleans()),
        "concurrency": draw(st.integers(1, 32)),
        "one_node_per_gang": draw(st.booleans()),
    }
    try:
        return DrainPolicy(**given)
    except ValueError:
        reject()


@given(drain_policies(), drain_policies())
def test_a_policy_tightened_by_another_is_in_no_respect_looser_than_either(
    one: DrainPolicy, other: DrainPolicy
) -> None:
    both = one.tightened_by(other)
    assert both.tightened_by(other) == both == both.tightened_by(one)
    assert policy_of(both.terms) == both
    for single in (one, other):
        assert both.mode is single.mode or single.mode is not DrainMode.WAIT
        assert both.patience >= single.patience or DrainMode.WAIT in (both.mode, single.mode)
        assert single.pods is PodSelection.ALL or both.pods is PodSelection.ACCELERATOR
        assert both.force <= single.force and both.delete_empty_dir_data <= single.delete_empty_dir_data
        assert both.concurrency <= single.concurrency
        assert both.one_node_per_gang >= single.one_node_per_gang


@given(st.text())
def test_terms_that_nobody_can_read_are_no_policy(terms: str) -> None:
    assert policy_of(terms) is None or policy_of(terms) == DrainPolicy()


ERRORS: list[ApiError | None] = [
    None,
    budget_refusal(),
    TooManyRequests("busy", status=429, retry_after=1),
    TooManyRequests("busy", status=429, retry_after=1e9),
    Unavailable("This pod has more than one PodDisruptionBudget", status=500),
    Unavailable("etcd", status=503),
    Forbidden("no", status=403),
    Conflict("modified", status=409),
    NotFound("gone?", status=404),
    ApiError("what?", status=418),
]


@dataclass
class Fixture:
    """A pod and what will happen to it. `comes`, `ends`: seconds after the start."""

    pod: Pod
    comes: int = 0
    ends: int | None = None
    stubborn: bool = False
    refusals: list[ApiError | None] = field(default_factory=list)
    notice_refusals: list[ApiError | None] = field(default_factory=list)


@st.composite
def fixtures(draw: st.DrawFn) -> Fixture:
    comes = draw(st.sampled_from([0, 0, 0, 3, 70]))
    deleted = draw(st.sampled_from([None, None, None, -300, 20]))
    pod = make_pod(
        gpus=draw(st.sampled_from([0, 1, 1, 8])),
        owner=draw(st.sampled_from(["ReplicaSet", "ReplicaSet", "StatefulSet", "Job", "DaemonSet", ""])),
        phase=draw(st.sampled_from(["Running", "Running", "Running", "Pending", "Succeeded", "Failed"])),
        grace=draw(st.sampled_from([0, 1, 30, 400])),
        empty_dir=draw(st.integers(0, 5)) == 0,
        mirror=draw(st.integers(0, 7)) == 0,
        created=NOW + timedelta(seconds=comes - (3600 if comes == 0 else 0)),
        deleted=None if deleted is None else NOW + timedelta(seconds=deleted),
    )
    return Fixture(
        pod,
        comes=comes,
        ends=draw(st.sampled_from([None, None, 5, 100])),
        stubborn=draw(st.integers(0, 4)) == 0,
        refusals=draw(st.lists(st.sampled_from(ERRORS), max_size=4)),
        notice_refusals=draw(st.lists(st.sampled_from(ERRORS), max_size=2)),
    )


@st.composite
def policies(draw: st.DrawFn) -> DrainPolicy:
    mode = draw(st.sampled_from(list(DrainMode)))
    tells = draw(st.booleans())
    return DrainPolicy(
        mode=mode,
        deadline=Duration.parse(draw(st.sampled_from(["2m", "5m"]))),
        evict_after=Duration.parse("45s") if mode is DrainMode.EVICT_AFTER else None,
        pods=draw(st.sampled_from(list(PodSelection))),
        pre_drain=PreDrain(wait=Duration.parse("20s")) if tells else None,
        delete_empty_dir_data=draw(st.booleans()),
        force=draw(st.integers(0, 3)) > 0,
        concurrency=draw(st.integers(1, 3)),
    )


class Run:
    """A drain from its first look to its verdict; what the session remembers is lost now and then, if asked to."""

    def __init__(
        self, around: list[Fixture], policy: DrainPolicy, *, reboot: bool, loses: list[bool] | None = None
    ) -> None:
        self.clock = ManualClock(wall=NOW)
        self.api = FakePods(self.clock, stubborn={one.pod.uid for one in around if one.stubborn})
        self.around = around
        self.policy = policy
        self.reboot = reboot
        self.loses = loses or []
        self.looks: list[Drained] = []
        self.pods = {one.pod.uid: one.pod for one in around}
        for one in around:
            self.api.refusals[one.pod.uid] = list(one.refusals)
            self.api.notice_refusals[one.pod.uid] = list(one.notice_refusals)

    def to_its_end(self, jitter: float) -> Drained:
        state: DrainState | None = None
        for number in range(3000):
            self._let_things_happen()
            drained = drain(
                self.api,
                "n1",
                self.policy,
                state,
                clock=self.clock,
                next_rung_is_reboot=self.reboot,
                jitter=lambda: jitter,
            )
            self.looks.append(drained)
            if drained.verdict is not Verdict.GOING_ON:
                return drained
            if state is None or not (number < len(self.loses) and self.loses[number]):
                state = msgspec.json.decode(msgspec.json.encode(drained.state), type=DrainState)
            assert drained.again is not None
            assert 0 < drained.again <= 15
            self.clock.advance(drained.again)
        raise AssertionError("the drain does not end")

    def _let_things_happen(self) -> None:
        now = self.clock.wall()
        for one in self.around:
            come, end = NOW + timedelta(seconds=one.comes), one.ends
            if come <= now and one.pod.uid not in self.api.pods and one.pod.uid in self.pods:
                self.api.put(one.pod)
                del self.pods[one.pod.uid]
            if end is not None and not one.stubborn and come + timedelta(seconds=end) <= now:
                self.api.remove(one.pod.uid)


def check(run: Run, last: Drained, *, remembers: bool = True) -> None:
    policy = run.policy
    pods = {one.pod.uid: one.pod for one in run.around}
    times: defaultdict[str, list[datetime]] = defaultdict(list)
    told = defaultdict(list)
    for when, notice in run.api.notices:
        told[notice.uid].append(when)
    for when, eviction in run.api.evictions:
        pod = pods[eviction.uid]
        assert pod.name == f"{eviction.namespace}/{eviction.name}"
        assert policy.mode is not DrainMode.WAIT
        assert not pod.is_mirror
        assert not pod.of_daemon_set or pod.finished
        assert pod.metadata.deletion_timestamp is None
        assert pod.finished or policy.force or pod.controller is not None
        assert pod.finished or policy.delete_empty_dir_data or not pod.has_empty_dir
        if policy.pods is PodSelection.ACCELERATOR:
            assert pod.asks_for(ACCELERATOR_RESOURCES)
            assert not pod.finished
        if not pod.finished:
            assert when >= NOW + timedelta(seconds=policy.evict_after or 0)
            if policy.pre_drain is not None:
                assert told[eviction.uid], "evicted without having been told"
                assert when >= told[eviction.uid][0] + policy.warning
        times[eviction.uid].append(when)
    if remembers:
        for moments in times.values():
            assert all(later - earlier >= RETRY_AFTER for earlier, later in pairwise(moments))
    for look in run.looks:
        assert len(look.look.evictions) <= policy.concurrency
        assert len(look.message) <= 1024
        if look.verdict is not Verdict.GOING_ON:
            assert not look.look.evictions
            assert not look.look.notices
    now = run.clock.wall()
    left = [judge(pod, policy, now, ACCELERATOR_RESOURCES) for pod in run.api.pods_on("n1")]
    left = [one for one in left if one.fate is not Fate.SKIP]
    if last.verdict is Verdict.COMPLETED:
        assert not left
    elif last.verdict is Verdict.COMPLETED_WITH_STUCK:
        assert run.reboot
        assert left
        for one in left:
            ends = one.pod.metadata.deletion_timestamp
            assert ends is not None
            assert now > ends + STUCK_AFTER
    elif last.verdict is Verdict.DEADLINE:
        assert now >= NOW + policy.time_limit
        assert left
    else:
        assert any(one.fate is Fate.BLOCKS for one in left)
    # A pass that found a pod and was forgotten may lie between the two looks that found none.
    if last.verdict.completed and remembers:
        before = run.looks[-2]
        assert before.state.empty_since is not None
        assert now - before.state.empty_since >= SCHEDULER_LAG
        assert all(run.reboot and one.fate is Fate.STUCK for one in before.look.left)
    # A completion that began before the deadline may be settled after it, nothing else; who forgets settles again.
    assert now <= NOW + policy.time_limit + (SCHEDULER_LAG + timedelta(seconds=1)) * (1 + sum(run.loses))


SCENE = {
    "around": st.lists(fixtures(), max_size=6),
    "policy": policies(),
    "reboot": st.booleans(),
    "jitter": st.floats(0, 1, exclude_max=True),
}


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(**SCENE)
def test_a_drain_ends_rightly_and_touches_nothing_it_should_not(
    around: list[Fixture], policy: DrainPolicy, reboot: bool, jitter: float
) -> None:
    run = Run(around, policy, reboot=reboot)
    check(run, run.to_its_end(jitter))


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(**SCENE, loses=st.lists(st.booleans(), max_size=20))
def test_a_controller_that_forgets_what_a_pass_came_to_ends_no_worse(
    around: list[Fixture], policy: DrainPolicy, reboot: bool, jitter: float, loses: list[bool]
) -> None:
    run = Run(around, policy, reboot=reboot, loses=loses)
    check(run, run.to_its_end(jitter), remembers=False)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(**SCENE)
def test_a_drain_before_a_reset_never_completes_with_pods_that_are_stuck(
    around: list[Fixture], policy: DrainPolicy, reboot: bool, jitter: float
) -> None:
    stuck = Fixture(make_pod(deleted=NOW - timedelta(hours=1)), stubborn=True)
    run = Run([*around, stuck], policy, reboot=False)
    last = run.to_its_end(jitter)
    check(run, last)
    assert last.verdict in (Verdict.DEADLINE, Verdict.BLOCKED)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(one=fixtures(), policy=policies())
def test_every_pod_has_one_fate_whose_meaning_kubectl_shares(one: Fixture, policy: DrainPolicy) -> None:
    pod = one.pod
    fate = judge(pod, policy, NOW, ACCELERATOR_RESOURCES).fate
    if policy.mode is DrainMode.WAIT or policy.pods is PodSelection.ACCELERATOR:
        return
    assert (fate is Fate.SKIP) == ((pod.of_daemon_set and not pod.finished) or pod.is_mirror)
    if fate is Fate.BLOCKS:
        assert not pod.finished
        assert (pod.has_empty_dir and not policy.delete_empty_dir_data) or (
            pod.controller is None and not policy.force
        )
