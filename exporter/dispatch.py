"""How long accelerator pods take from their creation until they are ready, stage by stage. Pure.

What this agent watched itself has the precision of the watch, milliseconds; the API's own times have whole seconds.
So a pod is measured only if it was seen to come; one that was there before the watch began (this agent was started,
or the kubelet) is told as a trace with the API's times, and measured by no histogram. The creation is a whole second
in either case: the stage `scheduled` is up to a second too long.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from exporter.pods import PodSeen, PodsListed

STAGES = ("scheduled", "admitted", "running", "ready")
"""Each ends with the moment it is named after; the first begins with the creation."""

TOLD_AGAIN = timedelta(minutes=10)
"""A pod that became ready longer ago is not told again by an agent that starts."""

LIMIT = 1024
"""Pods under way that are remembered. A kubelet runs 110."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a dispatch, from one moment to the next."""

    name: str
    began: datetime
    ended: datetime

    @property
    def seconds(self) -> float:
        """Never negative: moments come from two clocks."""
        return max(0.0, (self.ended - self.began).total_seconds())


@dataclass(frozen=True, slots=True)
class Progress:
    """A pod on its way. `moments` has when each stage ended; `measured` says whether we saw it come."""

    pod: PodSeen
    measured: bool
    moments: Mapping[str, datetime] = field(default_factory=dict)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that have ended, in their order."""
        ended: list[Stage] = []
        began = self.pod.created
        for name in STAGES:
            if (moment := self.moments.get(name)) is None:
                break
            moment = max(moment, began)
            ended.append(Stage(name, began, moment))
            began = moment
        return tuple(ended)

    def reached(self, name: str, moment: datetime) -> Progress:
        """The progress with this moment, if it is not known already."""
        return self if name in self.moments else replace(self, moments={**self.moments, name: moment})


@dataclass(frozen=True, slots=True)
class Told:
    """What is to be told: stages that have just ended, and the whole once it is over (`failure`: why it failed)."""

    progress: Progress
    stages: tuple[Stage, ...] = ()
    over: bool = False
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Dispatches:
    """The pods under way, and the UIDs of those that are over but still there."""

    under_way: Mapping[str, Progress] = field(default_factory=dict)
    over: frozenset[str] = frozenset()

    @property
    def names(self) -> set[tuple[str, str]]:
        """(namespace, name) of the pods under way."""
        return {(one.pod.namespace, one.pod.name) for one in self.under_way.values()}

    def with_pod(self, pod: PodSeen) -> tuple[Dispatches, Told | None]:
        """A look at a pod. What comes twice, late or out of order changes nothing that is known."""
        if pod.deleted:
            return self._gone(pod)
        if pod.uid in self.over:
            return self, None
        known = self.under_way.get(pod.uid)
        if known is None:
            if len(self.under_way) >= LIMIT:
                return self, None
            known = Progress(pod, measured=not pod.listed)
        progress = _advanced(replace(known, pod=replace(pod, listed=known.pod.listed)), pod)
        return self._told(known, progress, failure=_failure(pod))

    def with_devices(self, namespace: str, name: str, at: datetime) -> tuple[Dispatches, Told | None]:
        """The kubelet has given devices to a pod, which is when it admitted it."""
        for progress in self.under_way.values():
            if (progress.pod.namespace, progress.pod.name) == (namespace, name):
                if not progress.measured or "scheduled" not in progress.moments:
                    return self, None
                return self._told(progress, progress.reached("admitted", at), failure="")
        return self, None

    def with_list(self, listed: PodsListed) -> Dispatches:
        """Only these pods are there: a watch that was broken has missed that the others went."""
        kept = {uid: progress for uid, progress in self.under_way.items() if uid in listed.uids}
        return Dispatches(kept, self.over & listed.uids)

    def _told(self, known: Progress, progress: Progress, *, failure: str) -> tuple[Dispatches, Told | None]:
        new = [stage for stage in progress.stages if stage.name not in known.moments]
        over = bool(failure) or "ready" in progress.moments
        if over:
            others = {uid: one for uid, one in self.under_way.items() if uid != progress.pod.uid}
            after = Dispatches(others, self.over | {progress.pod.uid})
        else:
            after = replace(self, under_way={**self.under_way, progress.pod.uid: progress})
        if not new and not over:
            return after, None
        if not progress.measured:
            recent = progress.pod.at - max([*progress.moments.values(), progress.pod.created]) <= TOLD_AGAIN
            return after, Told(progress, over=True, failure=failure) if over and recent else None
        return after, Told(progress, tuple(new), over=over, failure=failure)

    def _gone(self, pod: PodSeen) -> tuple[Dispatches, Told | None]:
        progress = self.under_way.get(pod.uid)
        others = {uid: one for uid, one in self.under_way.items() if uid != pod.uid}
        after = Dispatches(others, self.over - {pod.uid})
        if progress is None or not progress.measured:
            return after, None
        gone = replace(progress, pod=replace(progress.pod, at=pod.at))
        return after, Told(gone, over=True, failure="Deleted")


def _advanced(progress: Progress, pod: PodSeen) -> Progress:
    """The moments that this look shows: when we saw them, or the API's own for a pod that nobody saw come."""
    shown = (
        ("scheduled", pod.scheduled or (pod.at if progress.measured else None)),
        ("admitted", pod.admitted),
        ("running", pod.running),
        ("ready", pod.ready),
    )
    for name, moment in shown:
        if moment is None:
            break
        progress = progress.reached(name, pod.at if progress.measured else moment)
    return progress


def _failure(pod: PodSeen) -> str:
    return (pod.reason or "Failed") if pod.failed else ""
