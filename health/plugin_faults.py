"""From what a device plugin and the kubelet say to what is wrong with them: faults with a dwell. Pure.

What each of them does when the other dies, hangs or restarts was measured on kubelet 1.37 with NVIDIA's plugin
0.20. The kubelet drops a dead plugin's devices at once, so devices that it still has as healthy while nobody
serves them mean that it believes in a plugin which it cannot reach (two instances on one socket end so); nothing
but its restart heals that. A plugin never takes an unhealthy device back by itself, and forgets about it when it
is restarted. Readings are wrong for up to two seconds around every start of either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import msgspec.structs

from health.plugin_look import DEFAULT_RESOURCE, Look, PluginSeen, Subject, View, holds, told
from health.report import Evidence, Fault
from health.vocabulary import Advice, ClearsOn, FaultKind, Scope, Severity

__all__ = ["CLEAR_SECONDS", "PLUGIN_FAULTS", "Look", "PluginSeen", "PluginWatch", "resource_of"]

PLUGIN_FAULTS: Mapping[str, tuple[Severity, Advice, float]] = {
    FaultKind.PLUGIN_DEAD: (Severity.DEGRADED, Advice.RESTART_PLUGIN, 5.0),
    FaultKind.PLUGIN_HUNG: (Severity.DEGRADED, Advice.RESTART_PLUGIN, 4.0),
    FaultKind.PLUGIN_SOCKET_LOST: (Severity.DEGRADED, Advice.NONE, 5.0),
    FaultKind.PLUGIN_WEDGED: (Severity.FATAL, Advice.RESTART_SERVICE, 5.0),
    FaultKind.DEVICE_NOT_OFFERED: (Severity.DEGRADED, Advice.RESTART_PLUGIN, 15.0),
    FaultKind.DEVICE_OFFERED_THOUGH_BAD: (Severity.DEGRADED, Advice.NONE, 5.0),
}
"""Severity, advice, and for how many seconds it must have been so."""

CLEAR_SECONDS = 5.0
"""For how long it must not have been so."""

SEEN_AGAIN = timedelta(seconds=30)
"""How often a fault that lasts is said to have been seen again."""

_OF_PLUGINS = (
    FaultKind.PLUGIN_DEAD,
    FaultKind.PLUGIN_HUNG,
    FaultKind.PLUGIN_SOCKET_LOST,
    FaultKind.PLUGIN_WEDGED,
)
_CODE_LIMIT = 64
_EXCERPT_LIMIT = 512
_SOURCES = {
    FaultKind.DEVICE_NOT_OFFERED: "pod-resources",
    FaultKind.DEVICE_OFFERED_THOUGH_BAD: "pod-resources",
}

Identity = tuple[str, str]
"""(kind, device UUID), as of the fault."""


@dataclass(frozen=True, slots=True)
class _Track:
    """One possible fault over time.

    `holds` is whether it is so, None while that cannot be told, `since` (monotonic seconds) since when, `began`
    when it last became so. `raised` means that it is a fault.
    """

    holds: bool | None
    since: float
    began: datetime
    raised: bool
    resource: str
    excerpt: str
    drill: bool = False


@dataclass(frozen=True, slots=True)
class PluginWatch:
    """What was seen so far: possible faults, resources that had a plugin, and since when a socket file is gone."""

    tracks: Mapping[Subject, _Track] = field(default_factory=dict)
    known: frozenset[str] = frozenset()
    lost: Mapping[str, float] = field(default_factory=dict)

    def seen(
        self, look: Look, open_faults: Mapping[Identity, Fault], *, now: float, wall: datetime, boot_id: str
    ) -> tuple[PluginWatch, Mapping[Identity, Fault]]:
        """The next watch, and the faults of these kinds that are open from now on.

        `open_faults` are those that were open until now, by whomever they were raised: those that an earlier
        process has raised stay until it is seen that they are over. `now` is in monotonic seconds.
        """
        tracks = {**_adopted(open_faults, self.tracks, now), **self.tracks}
        view = View.of(
            look, known=self.known | _resources(tracks), lost=self.lost, raised=_raised(tracks), now=now
        )
        moved = {
            subject: track
            for subject in _subjects(view, tracks)
            if (track := _moved(tracks.get(subject), subject, view, now, wall)) is not None
        }
        watch = PluginWatch(moved, view.known, view.lost)
        standing: dict[Identity, list[_Track]] = {}
        for subject, track in moved.items():
            if track.raised:
                standing.setdefault((subject.kind, subject.device_uuid), []).append(track)
        faults = {
            identity: _fault(identity, same, open_faults.get(identity), wall, boot_id)
            for identity, same in standing.items()
        }
        return (self if watch == self else watch), faults


def resource_of(code: str) -> str:
    """The resource that the code of such a fault names (`plugin:nvidia.com/gpu`), else ""."""
    return code.removeprefix("plugin:") if code.startswith("plugin:") else ""


def _adopted(
    open_faults: Mapping[Identity, Fault], tracks: Mapping[Subject, _Track], now: float
) -> Mapping[Subject, _Track]:
    """Tracks for the faults that are open and that this watch has not raised itself."""
    own = {(subject.kind, subject.device_uuid) for subject, track in tracks.items() if track.raised}
    return {
        Subject(kind, uuid, resource_of(fault.code) if kind in _OF_PLUGINS else ""): _Track(
            holds=None,
            since=now,
            began=fault.first_seen,
            raised=True,
            resource=resource_of(fault.code) or DEFAULT_RESOURCE,
            excerpt=fault.evidence.excerpt if fault.evidence else "",
            drill=fault.drill,
        )
        for (kind, uuid), fault in open_faults.items()
        if kind in PLUGIN_FAULTS and (kind, uuid) not in own
    }


def _resources(tracks: Mapping[Subject, _Track]) -> frozenset[str]:
    return frozenset(
        subject.resource for subject, track in tracks.items() if track.raised and subject.resource
    )


def _raised(tracks: Mapping[Subject, _Track]) -> frozenset[Subject]:
    return frozenset(subject for subject, track in tracks.items() if track.raised)


def _subjects(view: View, tracks: Mapping[Subject, _Track]) -> Iterable[Subject]:
    """Everything that may be wrong, and everything that is open."""
    possible = [
        *(Subject(kind, "", resource) for resource in view.known for kind in _OF_PLUGINS),
        Subject(FaultKind.DEVICE_NOT_OFFERED, "", ""),
        *(Subject(FaultKind.DEVICE_NOT_OFFERED, uuid, "") for uuid in view.look.sound),
        *(Subject(FaultKind.DEVICE_OFFERED_THOUGH_BAD, uuid, "") for uuid in view.look.bad),
    ]
    return dict.fromkeys([*tracks, *sorted(possible)])


def _moved(track: _Track | None, subject: Subject, view: View, now: float, wall: datetime) -> _Track | None:
    """The track after this look; None where there is nothing to remember."""
    found = holds(subject, view)
    if track is None and not found:
        return None
    if track is None or track.holds is not found:
        began = track.began if track is not None and (track.raised or not found) else wall
        track = _Track(
            holds=found,
            since=now,
            began=began,
            raised=track is not None and track.raised,
            resource=track.resource if track is not None else "",
            excerpt=track.excerpt if track is not None else "",
            drill=track is not None and track.drill,
        )
    if found:
        long_enough = now - track.since >= PLUGIN_FAULTS[subject.kind][2]
        return replace(
            track,
            raised=track.raised or long_enough,
            resource=subject.resource or view.resource_of_devices,
            excerpt=told(subject, view),
            drill=subject.device_uuid in view.look.drills,
        )
    if not track.raised or (found is False and now - track.since >= CLEAR_SECONDS):
        return None
    return track


def _fault(
    identity: Identity, same: list[_Track], known: Fault | None, wall: datetime, boot_id: str
) -> Fault:
    """One fault of what may be wrong with several resources: the oldest names it, the excerpt tells all."""
    kind, uuid = identity
    severity, advice, _ = PLUGIN_FAULTS[kind]
    same = sorted(same, key=lambda track: (track.began, track.resource))
    excerpt = "; ".join(track.excerpt for track in same)[:_EXCERPT_LIMIT]
    evidence = Evidence(source=_SOURCES.get(FaultKind(kind), "plugin"), boot_id=boot_id, excerpt=excerpt)
    fault = Fault(
        kind=kind,
        severity=severity,
        advice=advice.value,
        clears_on=ClearsOn.DWELL.value,
        code=f"plugin:{same[0].resource}"[:_CODE_LIMIT],
        scope=Scope.DEVICE if uuid else Scope.NODE,
        device_uuid=uuid,
        first_seen=min(same[0].began, wall),
        last_seen=wall,
        count=known.count if known else 1,
        drill=all(track.drill for track in same),
        evidence=evidence,
    )
    if known is None:
        return fault
    lasts = any(track.holds for track in same)
    unchanged = msgspec.structs.replace(fault, last_seen=known.last_seen, evidence=known.evidence)
    if known.evidence is not None and known.evidence.excerpt == excerpt and unchanged == known:
        return fault if lasts and wall - known.last_seen >= SEEN_AGAIN else known
    return fault if lasts else msgspec.structs.replace(fault, last_seen=known.last_seen)
