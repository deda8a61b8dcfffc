"""One pass of a drain: list the node's pods, tell those that are to be told, evict those whose time has come.

Nothing in it waits. It may be cut off anywhere: the next pass starts from the pods as they are, and every
eviction and notice holds for one pod UID only.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import msgspec

from health.accelerators import ACCELERATOR_RESOURCES
from remediation.cluster import FencedError
from remediation.drain import SCHEDULER_LAG, Eviction, Notice, OwnerNotice, Pass, Verdict, next_pass
from remediation.drain_policy import DrainPolicy
from remediation.drain_report import tell
from remediation.drain_state import EVICTED_LIMIT, Answer, DrainState, EvictedPod, Reply, record
from remediation.orders import DrainOrder
from remediation.pod import Pod
from remediation.steps.outcome import Outcome, Result
from runtime.api_errors import (
    ApiError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from runtime.clock import Clock

log = logging.getLogger(__name__)

_SEVERAL_BUDGETS = "more than one PodDisruptionBudget"
_NAMESPACE_TERMINATING = "NamespaceTerminating"
_UID_DIFFERS = "UID in "


class PodApi(Protocol):
    """What this step needs of the Kubernetes API. Every call raises ApiError; mutations FencedError as well."""

    def pods_on(self, node_name: str) -> tuple[Pod, ...]:
        """All pods that are bound to the node, as they are now."""

    def evict(self, eviction: Eviction) -> None:
        """Ask for the eviction of the pod with this UID, with the pod's own grace."""

    def replacements(self, evicted: Sequence[EvictedPod], *, since: datetime) -> tuple[str, ...]:
        """UIDs of the pods that the controllers of these have made since then, in the same namespaces."""

    def tell(self, notice: Notice) -> None:
        """Put the notice on the pod with this UID, as an annotation and an Event."""

    def tell_owner(self, notice: OwnerNotice) -> None:
        """Write an Event on the controller of evicted pods; one that exists is left as it is."""


@dataclass(frozen=True, slots=True)
class Drained:
    """What a pass came to: the look it rests on, the answers, the state to remember, one sentence for people, and the
    pods whose eviction was accepted."""

    look: Pass
    answers: tuple[Answer, ...]
    state: DrainState
    message: str
    evicted: tuple[Pod, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """How the drain stands."""
        return self.look.verdict

    @property
    def again(self) -> float | None:
        """Seconds until the next pass; None where the verdict is final."""
        return self.look.again


_ENDS = {
    Verdict.GOING_ON: (Result.WAITING, ""),
    Verdict.COMPLETED: (Result.DONE, ""),
    Verdict.COMPLETED_WITH_STUCK: (Result.DONE, ""),
    Verdict.BLOCKED: (Result.BLOCKED, "DrainBlocked"),
    Verdict.DEADLINE: (Result.DEADLINE, "DrainDeadline"),
}


def drain_pass(
    api: PodApi, node_name: str, order: DrainOrder, state: DrainState | None, *, clock: Clock
) -> Outcome:
    """The next pass of a session's drain, as a step's outcome. The gangs it may disrupt are in the state."""
    claimed = state.gangs if state is not None else ()
    try:
        drained = drain(
            api,
            node_name,
            order.policy,
            state,
            clock=clock,
            next_rung_is_reboot=order.next_is_reboot,
            gangs=claimed if order.policy.one_node_per_gang else None,
        )
    except FencedError:
        raise
    except ApiError as error:
        if state is None or clock.wall() < state.started + order.policy.time_limit:
            raise
        message = (
            f"the drain's deadline of {order.policy.deadline} has passed, and nobody knows its pods: {error}"
        )
        return Outcome(Result.DEADLINE, message, hold=_ENDS[Verdict.DEADLINE][1], drain=state)
    if order.about:
        _tell_owners(api, node_name, order, drained.evicted)
    result, hold = _ENDS[drained.verdict]
    after = drained.state
    if drained.verdict.completed and after.evicted_pods:
        after = _with_replacements(api, after)
    return Outcome(result, drained.message, hold=hold, again=drained.again, drain=after)


def drain(
    api: PodApi,
    node_name: str,
    policy: DrainPolicy,
    state: DrainState | None,
    *,
    clock: Clock,
    next_rung_is_reboot: bool,
    accelerators: Sequence[str] = ACCELERATOR_RESOURCES,
    scheduler_lag: timedelta = SCHEDULER_LAG,
    gangs: Collection[str] | None = None,
    jitter: Callable[[], float] = random.random,
) -> Drained:
    """Carry out the next pass of a node's drain; without a state it is the first.

    Raises ApiError where the pods cannot be listed, and FencedError as soon as this controller may not write any
    more; what was sent before stands and needs no record.
    """
    pods = api.pods_on(node_name)
    now = clock.wall()
    look = next_pass(
        pods,
        policy,
        state or DrainState(started=now),
        now,
        next_rung_is_reboot=next_rung_is_reboot,
        accelerators=accelerators,
        scheduler_lag=scheduler_lag,
        gangs=gangs,
    )
    if not look.notices and not look.evictions:
        return Drained(look, (), look.state, look.sentence)
    answers = tuple(_carry_out(api, look, concurrency=policy.concurrency))
    after = record(look.state, answers, clock.wall(), jitter=jitter)
    uids = {one.uid for one in answers if one.reply is Reply.EVICTED}
    evicted = tuple(pod for pod in pods if pod.uid in uids)
    after = _with_evicted(after, evicted)
    return Drained(look, answers, after, tell(look.left, policy, after, gangs), evicted)


def _tell_owners(api: PodApi, node_name: str, order: DrainOrder, evicted: Sequence[Pod]) -> None:
    """People look at what they have made, and not at a pod that is gone. Nothing depends on it."""
    owners = {
        pod.controller.uid: OwnerNotice(
            pod.metadata.namespace, pod.controller, f"pods are evicted from node {node_name}: {order.about}"
        )
        for pod in evicted
        if pod.controller is not None and pod.controller.uid
    }
    for notice in owners.values():
        try:
            api.tell_owner(notice)
        except FencedError:
            raise
        except ApiError as error:
            log.info("the controller of evicted pods cannot be told", extra={"error": str(error)})


def _with_evicted(state: DrainState, evicted: Sequence[Pod]) -> DrainState:
    known = {pod.uid for pod in state.evicted_pods}
    more = [
        EvictedPod(pod.uid, pod.metadata.namespace, pod.controller.uid if pod.controller else "")
        for pod in evicted
        if pod.uid not in known
    ]
    return msgspec.structs.replace(state, evicted_pods=(*state.evicted_pods, *more)[:EVICTED_LIMIT])


def _with_replacements(api: PodApi, state: DrainState) -> DrainState:
    """What the traces of a session are linked to; a drain is complete without it as well."""
    try:
        found = api.replacements(state.evicted_pods, since=state.started)
    except ApiError as error:
        log.info("the replacements of evicted pods cannot be listed", extra={"error": str(error)})
        return state
    return msgspec.structs.replace(state, replacements=found[:EVICTED_LIMIT])


def _carry_out(api: PodApi, look: Pass, *, concurrency: int) -> Iterator[Answer]:
    """Notices first. One slow answer holds up no other: an eviction may take the API server ten seconds."""
    with ThreadPoolExecutor(concurrency, thread_name_prefix="drain") as workers:
        yield from workers.map(lambda notice: _tell(api, notice), look.notices)
        yield from workers.map(lambda eviction: _evict(api, eviction), look.evictions)


def _evict(api: PodApi, eviction: Eviction) -> Answer:
    try:
        api.evict(eviction)
    except FencedError:
        raise
    except ApiError as error:
        return _answer(eviction.uid, _reply_to_eviction(error), error)
    return Answer(eviction.uid, Reply.EVICTED)


def _tell(api: PodApi, notice: Notice) -> Answer:
    try:
        api.tell(notice)
    except FencedError:
        raise
    except NotFound as error:
        return _answer(notice.uid, Reply.GONE, error)
    except (Forbidden, Invalid, Unauthorized) as error:
        if any(cause.field == "metadata.uid" for cause in error.causes):
            return _answer(notice.uid, Reply.GONE, error)
        # The repair does not fail because a pod cannot be told; it gets its time all the same.
        return _answer(notice.uid, Reply.NOT_TOLD, error)
    except ApiError as error:
        return _answer(notice.uid, Reply.GONE if _is_another(error) else Reply.UNANSWERED, error)
    return Answer(notice.uid, Reply.TOLD)


def _answer(uid: str, reply: Reply, error: ApiError) -> Answer:
    if reply is Reply.GONE:
        return Answer(uid, reply)
    causes = "; ".join(cause.message for cause in error.causes if cause.message)
    return Answer(uid, reply, causes or error.message, error.retry_after)


def _reply_to_eviction(error: ApiError) -> Reply:
    """What a refusal means. Source: pkg/registry/core/pod/storage/eviction.go of Kubernetes 1.37.

    The one 500 that is no trouble of the server's has neither reason nor cause, only its message.
    """
    if isinstance(error, NotFound) or _is_another(error):
        return Reply.GONE
    if isinstance(error, TooManyRequests):
        return Reply.BUDGET if error.is_disruption_budget else Reply.THROTTLED
    if isinstance(error, Unavailable) and _SEVERAL_BUDGETS in error.message:
        return Reply.SEVERAL_BUDGETS
    if isinstance(error, Forbidden) and any(one.reason == _NAMESPACE_TERMINATING for one in error.causes):
        return Reply.NAMESPACE_TERMINATING
    if isinstance(error, Forbidden | Invalid | Unauthorized):
        return Reply.REFUSED
    return Reply.UNANSWERED


def _is_another(error: ApiError) -> bool:
    """Whether another pod has the name now. A conflict of any other kind is settled by the next look."""
    return isinstance(error, Conflict) and _UID_DIFFERS in error.message
