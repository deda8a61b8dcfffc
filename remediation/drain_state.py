"""What a drain remembers from one pass to the next, in the session's status, and how answers change it. Pure.

A look that finds nothing new leaves the state as it was, so it need not be written again.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from msgspec.structs import replace

from health.report import Time, Wire

RETRY_AFTER = timedelta(seconds=5)
"""The least time between two evictions of one pod; the jitter adds up to as much again."""

RETRY_AFTER_LIMIT = timedelta(seconds=60)
"""The most that the API server's own Retry-After can make of it."""

EVICTED_LIMIT = 64
"""Evicted pods, and replacements, that are remembered by UID."""

NOTES_LIMIT = 256
"""Pods of which something is remembered at a time; the schema allows no more. A kubelet runs 110 unless told
otherwise; of a pod beyond that only what was tried last is forgotten."""

_EXCERPT = 160


class Reply(StrEnum):
    """What the API server said to an eviction or a notice, as far as it makes a difference."""

    EVICTED = "Evicted"
    TOLD = "Told"
    GONE = "Gone"
    BUDGET = "DisruptionBudget"
    SEVERAL_BUDGETS = "SeveralDisruptionBudgets"
    THROTTLED = "Throttled"
    NAMESPACE_TERMINATING = "NamespaceTerminating"
    NOT_TOLD = "NotTold"
    REFUSED = "Refused"
    UNANSWERED = "Unanswered"


BUDGETS = frozenset({Reply.BUDGET, Reply.SEVERAL_BUDGETS})
"""The replies that mean: a PodDisruptionBudget stands in the way."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply about one pod, the API server's own words, and its Retry-After in seconds, if any."""

    uid: str
    reply: Reply
    message: str = ""
    retry_after: float | None = None


class PodNote(Wire, frozen=True):
    """What is remembered of a pod that is still there. `refusal` is the last Reply that was no success."""

    uid: str
    told: Time | None = None
    evicted: Time | None = None
    not_before: Time | None = None
    refusal: str = ""
    message: str = ""


class EvictedPod(Wire, frozen=True):
    """A pod that a drain has evicted: enough to know it, and who replaces it, again."""

    uid: str
    namespace: str
    owner_uid: str = ""


class DrainState(Wire, frozen=True):
    """A drain's memory. `evicted` counts all evictions that were accepted, of pods that are gone as well.

    `empty_since`: the look that found nothing left, as long as no later one found something. `seen_gangs` are the
    gangs that pods on the node belong to, `gangs` those of them that this drain has claimed: no other node of
    theirs is disrupted until it ends. `evicted_pods` are the first that were evicted, `replacements` the UIDs of the
    pods that their controllers had made instead when the drain was over. `terms` are those of the policy under which
    it began: a looser one is for later drains.
    """

    started: Time
    empty_since: Time | None = None
    evicted: int = 0
    pods: tuple[PodNote, ...] = ()
    seen_gangs: tuple[str, ...] = ()
    gangs: tuple[str, ...] = ()
    evicted_pods: tuple[EvictedPod, ...] = ()
    replacements: tuple[str, ...] = ()
    terms: str = ""

    def note(self, uid: str) -> PodNote:
        """What is remembered of a pod; an empty note where there is nothing."""
        return next((note for note in self.pods if note.uid == uid), PodNote(uid))

    def without_others(self, uids: Container[str]) -> DrainState:
        """The state without the notes of pods that are not among these."""
        kept = tuple(note for note in self.pods if note.uid in uids)
        return self if len(kept) == len(self.pods) else replace(self, pods=kept)


def record(
    state: DrainState, answers: Iterable[Answer], now: datetime, *, jitter: Callable[[], float]
) -> DrainState:
    """The state after the answers to a pass came in. `jitter` gives numbers from 0 to 1 (excluded)."""
    notes = {note.uid: note for note in state.pods}
    evicted = state.evicted
    for answer in answers:
        note = notes.get(answer.uid, PodNote(answer.uid))
        notes[answer.uid] = _noted(note, answer, now, _delay(answer) + jitter() * RETRY_AFTER)
        evicted += answer.reply is Reply.EVICTED
    return replace(state, evicted=evicted, pods=tuple(notes.values())[-NOTES_LIMIT:])


def _noted(note: PodNote, answer: Answer, now: datetime, delay: timedelta) -> PodNote:
    if answer.reply is Reply.TOLD:
        return replace(note, told=now, not_before=None, refusal="", message="")
    if answer.reply is Reply.EVICTED:
        return replace(note, evicted=now, not_before=now + delay, refusal="", message="")
    told = now if answer.reply is Reply.NOT_TOLD else note.told
    return replace(
        note,
        told=told,
        not_before=now + delay,
        refusal=answer.reply.value,
        message=" ".join(answer.message.split())[:_EXCERPT],
    )


def _delay(answer: Answer) -> timedelta:
    asked = timedelta(seconds=answer.retry_after or 0)
    return min(max(asked, RETRY_AFTER), RETRY_AFTER_LIMIT)
