"""How long accelerator pods take from their creation until they are ready, stage by stage. Pure.

Where a watch tells of a pod, stages end when the kubelet has it (it notes that to the nanosecond) and when the watch
tells that it has changed, within milliseconds. Its first word comes once the kubelet has admitted the pod, with its
devices. The stage `scheduled` lies before that, between two times of the control plane that are cut to the second;
so is every stage where pods are only polled. Such a stage is the difference of two cut times: up to a second too
short or too long, right on average, never negative. Each stage lies between two times of one machine's clock.

A pod is measured only if it was seen to come. One that was there before, or that changed while nobody watched, is told
as a trace with the API's times, and measured by no histogram. A kubelet that is started again shows its pods as if
they were new: those have started before it got them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from exporter.pods import PodSeen, PodsListed

STAGES = ("scheduled", "admitted", "running", "ready")
"""Each ends with the moment it is named after; the first begins with the creation."""

TOLD_AGAIN = timedelta(minutes=10)
"""A pod that became ready longer ago is not told again by an agent that starts."""

LIMIT = 1024
"""Pods under way, and pods that are gone, that are remembered. A kubelet runs 110."""


class Outcome(StrEnum):
    """How a dispatch ended. Ended: its containers had done their work before the pod was seen to be ready."""

    READY = "Ready"
    ENDED = "Ended"
    REJECTED = "Rejected"
    FAILED = "Failed"
    DELETED = "Deleted"


class Times(StrEnum):
    """Where a pod's moments come from."""

    WATCHED = "watched"
    API = "api"


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a dispatch, from one moment to the next. `seconds` is never negative."""

    name: str
    began: datetime
    ended: datetime
    seconds: float


@dataclass(frozen=True, slots=True)
class Progress:
    """A pod on its way. `moments` has when each stage ended; `measured` says whether we saw it come."""

    pod: PodSeen
    measured: bool
    times: Times
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
            # The creation is a time that is cut to the second, and so is what it is compared with.
            cut = self.pod.scheduled or moment.replace(microsecond=0)
            until = cut if name == "scheduled" else moment
            ended.append(Stage(name, began, moment, max(0.0, (until - began).total_seconds())))
            began = moment
        return tuple(ended)

    def seen(self, pod: PodSeen) -> Progress:
        """After one more look. A moment that is known stays; an older look that comes late tells nothing new."""
        kept = replace(
            pod,
            created=self.pod.created,
            scheduled=self.pod.scheduled or pod.scheduled,
            arrived=self.pod.arrived or pod.arrived,
            devices=pod.devices or self.pod.devices,
        )
        if pod.ended:
            # Whatever it shows first now has happened before, nobody knows when.
            return replace(self, pod=kept)
        shown = _moments(kept, Times.WATCHED if pod.live and self.times is Times.WATCHED else Times.API)
        new = {name: moment for name, moment in shown.items() if name not in self.moments}
        missed = self.times is Times.WATCHED and not pod.live and new
        return replace(
            self,
            pod=kept,
            measured=self.measured and not missed,
            times=Times.API if missed else self.times,
            moments={**self.moments, **new},
        )


@dataclass(frozen=True, slots=True)
class Told:
    """What is to be told: stages that have just ended and are measured, and the outcome once the whole is over."""

    progress: Progress
    stages: tuple[Stage, ...] = ()
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Dispatches:
    """The pods under way, and the UIDs of those that are over but still there, and of the last that are gone, or that
    were missed: under way, and not there when a watch began anew."""

    under_way: Mapping[str, Progress] = field(default_factory=dict)
    over: frozenset[str] = frozenset()
    gone: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()

    def with_pod(self, pod: PodSeen) -> tuple[Dispatches, Told | None]:
        """A look at a pod. What comes twice, late or out of order changes nothing that is known."""
        if pod.deleted:
            return self._deleted(pod.uid, pod.at)
        if pod.uid in self.over:
            return self, None
        if pod.uid in self.gone:
            # The kubelet was started again, and showed no pod for a moment.
            gone = tuple(uid for uid in self.gone if uid != pod.uid)
            return replace(self, over=self.over | {pod.uid}, gone=gone), None
        known = self.under_way.get(pod.uid)
        if known is None:
            if len(self.under_way) >= LIMIT:
                return self, None
            measured = pod.uid not in self.missed and _was_seen_to_come(pod)
            known = Progress(pod, measured, Times.WATCHED if measured and pod.live else Times.API)
        progress = known.seen(pod)
        outcome = _outcome(progress)
        if outcome is None:
            after = replace(self, under_way={**self.under_way, pod.uid: progress})
        else:
            after = replace(self, under_way=_without(self.under_way, pod.uid), over=self.over | {pod.uid})
        if not progress.measured:
            return after, Told(progress, outcome=outcome) if _is_told_late(progress, outcome) else None
        new = tuple(stage for stage in progress.stages if stage.name not in known.moments)
        return after, Told(progress, new, outcome) if new or outcome else None

    def with_list(self, listed: PodsListed) -> tuple[Dispatches, tuple[Told, ...]]:
        """Only these pods are there. Others are deleted; those that were over will not come again."""
        after, told = self, []
        for uid in [uid for uid in (*self.under_way, *self.over) if uid not in listed.uids]:
            if listed.gap and uid in self.under_way:
                missed = (*after.missed, uid)[-LIMIT:]
                after = replace(after, under_way=_without(after.under_way, uid), missed=missed)
                continue
            after, one = after._deleted(uid, listed.at)
            told += [one] if one else []
        return after, tuple(told)

    def _deleted(self, uid: str, at: datetime) -> tuple[Dispatches, Told | None]:
        progress = self.under_way.get(uid)
        if progress is None and uid not in self.over:
            return self, None
        gone = (*self.gone, uid)[-LIMIT:]
        after = replace(self, under_way=_without(self.under_way, uid), over=self.over - {uid}, gone=gone)
        if progress is None or not progress.measured:
            return after, None
        ended = replace(progress, pod=replace(progress.pod, at=at))
        return after, Told(ended, outcome=Outcome.DELETED)


def _was_seen_to_come(pod: PodSeen) -> bool:
    """Whether its first look is that of a new pod."""
    if pod.listed or pod.arrived is None:
        return False
    if pod.live and (pod.running or pod.phase == "Succeeded"):
        return False
    return pod.admitted is None or pod.admitted >= pod.arrived.replace(microsecond=0)


def _moments(pod: PodSeen, times: Times) -> dict[str, datetime]:
    """The moments that a look shows, up to the first that has not come."""
    arrived = pod.scheduled if times is Times.API else (pod.arrived or pod.at)
    shown: dict[str, datetime] = {}
    for name, moment in zip(STAGES, (arrived, pod.admitted, pod.running, pod.ready), strict=True):
        if moment is None:
            break
        watched = times is Times.WATCHED and name != "scheduled"
        shown[name] = pod.at if watched else min(moment, pod.at)
    return shown


def _outcome(progress: Progress) -> Outcome | None:
    pod = progress.pod
    if "ready" in progress.moments:
        return Outcome.READY
    if pod.rejected:
        return Outcome.REJECTED
    if pod.phase == "Failed":
        return Outcome.FAILED
    return Outcome.ENDED if pod.phase == "Succeeded" else None


def _is_told_late(progress: Progress, outcome: Outcome | None) -> bool:
    """Whether a pod that nobody saw come is worth a trace: it is ready since lately, by its first start."""
    if outcome is not Outcome.READY or progress.pod.restarted:
        return False
    return progress.pod.at - max(progress.moments.values()) <= TOLD_AGAIN


def _without(under_way: Mapping[str, Progress], uid: str) -> Mapping[str, Progress]:
    return {other: progress for other, progress in under_way.items() if other != uid}
