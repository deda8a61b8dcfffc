"""The drain of a node, one pass at a time: a pure function of its pods, the policy and what was tried so far.

Nothing waits here or in the step that carries a pass out: a pass says when to look again. What is done as
`kubectl drain` does it is in `drain_selection`; what is done otherwise, and why:

- The pods are listed in every pass, not once, since a pod may be bound after the first list; nothing is left
  only when two passes found nothing, with the scheduler's lag between them.
- A pod that keeps coming to the node although it is cordoned (it tolerates that, or names the node) is evicted
  ever more rarely, instead of in a loop.
- Every eviction carries the pod's UID. A pod that was refused is left alone for 5 s and a random bit more.
- A pass sends a bounded number of evictions, and there is always a deadline.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from msgspec.structs import replace

from health.accelerators import ACCELERATOR_RESOURCES
from remediation.drain_policy import DrainMode, DrainPolicy
from remediation.drain_report import tell
from remediation.drain_selection import Fate, Judgement, judge
from remediation.drain_state import BUDGETS, DrainState, PodNote
from remediation.gangs import gang_of, gangs_of
from remediation.pod import OwnerReference, Pod

SCHEDULER_LAG = timedelta(seconds=5)
"""How long after a cordon the scheduler may still bind a pod to the node, from a view that is older."""

POLL = 2.0
"""Seconds until the next look while pods are on their way out."""

PATIENCE = 15.0
"""Seconds until the next look at the latest."""

_SOONEST = 0.5


class Verdict(StrEnum):
    """How a drain stands. All but `GoingOn` are final: the last two are for a person."""

    GOING_ON = "GoingOn"
    COMPLETED = "Completed"
    COMPLETED_WITH_STUCK = "CompletedWithStuckPods"
    BLOCKED = "Blocked"
    DEADLINE = "DeadlineReached"

    @property
    def completed(self) -> bool:
        """Whether the next step of the rung may follow."""
        return self in (Verdict.COMPLETED, Verdict.COMPLETED_WITH_STUCK)


@dataclass(frozen=True, slots=True)
class Eviction:
    """An eviction to send now; it holds for this very UID only."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Notice:
    """A pod to tell that it should be done by `done_by`, in these words."""

    namespace: str
    name: str
    uid: str
    done_by: datetime
    message: str


@dataclass(frozen=True, slots=True)
class OwnerNotice:
    """To the controller of pods that are evicted, once: from where and why."""

    namespace: str
    owner: OwnerReference
    message: str


@dataclass(frozen=True, slots=True)
class Pass:
    """What a look at the node's pods comes to.

    `sentence` says how the drain stands, for people; it is the same as long as nothing changes. `again`: seconds
    until the next look, None where the verdict is final. `held_back`: the pods (`NAMESPACE/NAME`) that a disruption
    budget held back when they were last tried. `judged` has every pod of the node.
    """

    verdict: Verdict
    sentence: str
    state: DrainState
    judged: tuple[Judgement, ...]
    held_back: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()
    evictions: tuple[Eviction, ...] = ()
    again: float | None = None

    @property
    def left(self) -> tuple[Judgement, ...]:
        """The pods that the drain is about and that are still there."""
        return _left(self.judged)


def _left(judged: Iterable[Judgement]) -> tuple[Judgement, ...]:
    return tuple(one for one in judged if one.fate is not Fate.SKIP)


def next_pass(
    pods: Iterable[Pod],
    policy: DrainPolicy,
    state: DrainState,
    now: datetime,
    *,
    next_rung_is_reboot: bool,
    accelerators: Sequence[str] = ACCELERATOR_RESOURCES,
    scheduler_lag: timedelta = SCHEDULER_LAG,
    gangs: Collection[str] | None = None,
) -> Pass:
    """What to do about the pods that are on the node now.

    `next_rung_is_reboot`: the drain makes way for a reboot, which also ends pods that are stuck; a reset does not.
    `gangs`: the gangs that may be disrupted here; pods of others are left alone. None: all may.
    """
    before = state.seen_gangs
    judged = tuple(judge(pod, policy, now, accelerators) for pod in pods)
    left = _left(judged)
    state = replace(state.without_others({one.pod.uid for one in left}), seen_gangs=_seen(left))
    if all(next_rung_is_reboot and one.fate is Fate.STUCK for one in left):
        return _settling(judged, policy, state, now, lag=scheduler_lag)
    state = replace(state, empty_since=None)
    if now >= state.started + policy.time_limit:
        return _final(Verdict.DEADLINE, judged, policy, state)
    if now >= _begin(policy, state) and any(one.fate is Fate.BLOCKS for one in left):
        return _final(Verdict.BLOCKED, judged, policy, state)
    candidates = [one.pod for one in left if one.fate is Fate.EVICT and _free(one.pod, gangs)]
    notices = _notices(candidates, policy, state, now)
    evictions = _evictions(candidates, policy, state, now)
    again = _again(left, policy, state, now, sends=bool(notices or evictions))
    return Pass(
        Verdict.GOING_ON,
        tell(left, policy, state, gangs),
        state,
        judged,
        held_back=_held_back(left, state),
        notices=notices,
        evictions=evictions,
        again=_SOONEST if gangs is not None and set(state.seen_gangs) - set(before) else again,
    )


def _seen(left: Iterable[Judgement]) -> tuple[str, ...]:
    return gangs_of(one.pod for one in left if one.fate is not Fate.BLOCKS)


def _free(pod: Pod, gangs: Collection[str] | None) -> bool:
    """Whether no other node holds the pod's gang back. One that has finished holds nothing together."""
    return gangs is None or pod.finished or (gang := gang_of(pod)) == "" or gang in gangs


def _settling(
    judged: tuple[Judgement, ...], policy: DrainPolicy, state: DrainState, now: datetime, *, lag: timedelta
) -> Pass:
    """Nothing is left, or only what a reboot will end: true if it is still so after the scheduler's lag."""
    left = _left(judged)
    if state.empty_since is not None and now >= state.empty_since + lag:
        return _final(Verdict.COMPLETED_WITH_STUCK if left else Verdict.COMPLETED, judged, policy, state)
    state = replace(state, empty_since=state.empty_since or now)
    assert state.empty_since is not None
    wait = (state.empty_since + lag - now).total_seconds()
    sentence = f"{tell(left, policy, state)}; looks once more, for pods that were bound meanwhile"
    return Pass(Verdict.GOING_ON, sentence, state, judged, again=max(wait, _SOONEST))


def _final(verdict: Verdict, judged: tuple[Judgement, ...], policy: DrainPolicy, state: DrainState) -> Pass:
    left = _left(judged)
    sentence = tell(left, policy, state)
    if verdict is Verdict.BLOCKED:
        sentence = f"nothing is evicted, since some pods may not be: {sentence}"
    if verdict is Verdict.DEADLINE:
        sentence = f"the drain's deadline of {policy.deadline} has passed: {sentence}"
    return Pass(verdict, sentence, state, judged, held_back=_held_back(left, state))


def _begin(policy: DrainPolicy, state: DrainState) -> datetime:
    """From when on pods are evicted; in mode Wait that is never, which the deadline comes before."""
    if policy.mode is DrainMode.WAIT:
        return state.started + policy.time_limit
    return state.started + timedelta(seconds=policy.evict_after or 0)


def _notices(
    pods: Sequence[Pod], policy: DrainPolicy, state: DrainState, now: datetime
) -> tuple[Notice, ...]:
    if policy.pre_drain is None:
        return ()
    due = [pod for pod in pods if _tell_from(state.note(pod.uid), policy, state) <= now]
    return tuple(
        Notice(
            namespace=pod.metadata.namespace,
            name=pod.metadata.name,
            uid=pod.uid,
            done_by=max(_begin(policy, state), now + policy.warning),
            message=policy.pre_drain.notice,
        )
        for pod in due
        if not pod.finished and state.note(pod.uid).told is None
    )


def _evictions(
    pods: Sequence[Pod], policy: DrainPolicy, state: DrainState, now: datetime
) -> tuple[Eviction, ...]:
    """Those whose time has come, the longest due first, so that pods which are refused hold up no others."""
    if policy.mode is DrainMode.WAIT:
        return ()
    due = []
    for pod in pods:
        since = _evict_from(pod, policy, state)
        if since is not None and since <= now:
            due.append((since, pod.name, pod))
    return tuple(
        Eviction(pod.metadata.namespace, pod.metadata.name, pod.uid)
        for _, _, pod in sorted(due, key=lambda one: one[:2])[: policy.concurrency]
    )


def _tell_from(note: PodNote, policy: DrainPolicy, state: DrainState) -> datetime:
    begin = state.started if policy.mode is DrainMode.WAIT else _begin(policy, state) - policy.warning
    return max(begin, state.started, note.not_before or begin)


def _evict_from(pod: Pod, policy: DrainPolicy, state: DrainState) -> datetime | None:
    """From when on this pod may be evicted; None as long as it has not been told.

    One that has finished is only taken off the books: there is nothing to wait for.
    """
    note = state.note(pod.uid)
    if pod.finished:
        return note.not_before or state.started
    if policy.pre_drain is not None and note.told is None:
        return None
    begin = _begin(policy, state)
    told = note.told + policy.warning if note.told is not None else begin
    return max(begin, told, note.not_before or begin, _comeback(pod, begin))


def _comeback(pod: Pod, begin: datetime) -> datetime:
    """A pod that was made after evictions began is given half as long as they had lasted by then.

    For one that was merely bound late that is a moment. One that comes back for ever is evicted a number of times
    that grows with the logarithm of the deadline.
    """
    created = pod.metadata.creation_timestamp
    return begin if created is None or created <= begin else created + (created - begin) / 2


def _held_back(left: Sequence[Judgement], state: DrainState) -> tuple[str, ...]:
    return tuple(
        one.pod.name for one in left if one.fate is Fate.EVICT and state.note(one.pod.uid).refusal in BUDGETS
    )


def _again(
    left: Sequence[Judgement], policy: DrainPolicy, state: DrainState, now: datetime, *, sends: bool
) -> float:
    """Seconds until something may have changed."""
    moments = [state.started + policy.time_limit]
    if policy.mode is DrainMode.EVICT_AFTER and now < _begin(policy, state):
        moments.append(_begin(policy, state))
    for one in left:
        if one.fate is not Fate.EVICT:
            continue
        since = _evict_from(one.pod, policy, state)
        if since is None:
            moments.append(_tell_from(state.note(one.pod.uid), policy, state))
        elif policy.mode is not DrainMode.WAIT:
            moments.append(since)
    moving = sends or any(one.fate in (Fate.TERMINATING, Fate.STUCK) for one in left)
    wait = (min(moments) - now).total_seconds()
    return min(max(wait, _SOONEST), POLL if moving else PATIENCE)
