"""How a drain stands, in one sentence for people. Pure; the same as long as nothing changes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from remediation.drain_policy import DrainPolicy, PodSelection
from remediation.drain_selection import Fate, Judgement
from remediation.drain_state import DrainState, PodNote, Reply
from remediation.gangs import gang_of

_NAMED = 4
_LIMIT = 900

_REFUSALS: Mapping[str, str] = {
    Reply.GONE: "gone by now",
    Reply.BUDGET: "held back by a disruption budget",
    Reply.SEVERAL_BUDGETS: "under more than one disruption budget, which the Eviction API does not support",
    Reply.THROTTLED: "that the API server is too busy to evict",
    Reply.NAMESPACE_TERMINATING: "in a namespace that is being deleted",
    Reply.NOT_TOLD: "that could not be told of the drain",
    Reply.REFUSED: "that the API server refuses to evict",
    Reply.UNANSWERED: "whose eviction failed",
}


def tell(
    left: Sequence[Judgement],
    policy: DrainPolicy,
    state: DrainState,
    gangs: Collection[str] | None = None,
) -> str:
    """The pods that are left, grouped by what they wait for, the first few of each by name.

    `gangs`: those that may be disrupted here, None for all.
    """
    what = "accelerator pod" if policy.pods is PodSelection.ACCELERATOR else "pod"
    if not left:
        return f"no {what} is left ({state.evicted} evicted)"
    groups: dict[str, list[str]] = {}
    words: dict[str, str] = {}
    for one in sorted(left, key=lambda one: one.pod.name):
        note = state.note(one.pod.uid)
        standing = _standing(one, note, gangs)
        groups.setdefault(standing, []).append(one.pod.name)
        if one.fate is Fate.EVICT and note.message:
            words.setdefault(standing, note.message)
    parts = [
        f"{len(names)} {standing} ({_names(names)})" + (f': "{words[standing]}"' if standing in words else "")
        for standing, names in groups.items()
    ]
    sentence = f"{len(left)} {what}{'' if len(left) == 1 else 's'} left: {', '.join(parts)}"
    return sentence if len(sentence) <= _LIMIT else f"{sentence[: _LIMIT - 3]}..."


def _standing(one: Judgement, note: PodNote, gangs: Collection[str] | None) -> str:
    if one.fate is not Fate.EVICT:
        return one.reason
    if gangs is not None and (gang := gang_of(one.pod)) and gang not in gangs:
        return f"of {gang}, which wait for a gang that is disrupted on another node"
    if note.refusal:
        return _REFUSALS.get(note.refusal, "not evicted")
    if note.evicted is not None:
        return "evicted, but not going yet"
    if note.told is not None:
        return "told to finish"
    if one.pod.tolerates_cordon:
        return f"{one.reason} (they tolerate the cordon, so they may come back)"
    return one.reason


def _names(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
