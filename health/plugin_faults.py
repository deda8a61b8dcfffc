"""From what a device plugin and the kubelet say to what is wrong with them: faults with a dwell. Pure.

What each of them does when the other dies, hangs or restarts was measured on kubelet 1.37 with NVIDIA's plugin
0.20. The kubelet drops a dead plugin's devices at once, so devices that it still has as healthy while nobody
serves them mean that it believes in a plugin which it cannot reach (two instances on one socket end so); nothing
but its restart heals that. A plugin never takes an unhealthy device back by itself, and forgets about it when it
is restarted. Readings are wrong for up to two seconds around every start of either.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

from health.report import Evidence, Fault
from health.vocabulary import Advice, ClearsOn, FaultKind, Scope, Severity

PLUGIN_FAULTS: Mapping[str, tuple[Severity, Advice, float]] = {
    FaultKind.PLUGIN_DEAD: (Severity.DEGRADED, Advice.RESTART_PLUGIN, 5.0),
    FaultKind.PLUGIN_HUNG: (Severity.DEGRADED, Advice.RESTART_PLUGIN, 3.0),
    FaultKind.PLUGIN_SOCKET_LOST: (Severity.DEGRADED, Advice.NONE, 5.0),
    FaultKind.PLUGIN_WEDGED: (Severity.FATAL, Advice.RESTART_SERVICE, 5.0),
    FaultKind.DEVICE_NOT_OFFERED: (Severity.DEGRADED, Advice.RESTART_PLUGIN, 15.0),
    FaultKind.DEVICE_OFFERED_THOUGH_BAD: (Severity.DEGRADED, Advice.NONE, 5.0),
}
"""Severity, advice, and for how many seconds it must have been so."""

CLEAR_SECONDS = 5.0
"""For how long it must not have been so."""

FRESH_FAILURE = 300.0
"""Seconds for which a failed allocation speaks against a plugin whose socket is lost."""

DEFAULT_RESOURCE = "nvidia.com/gpu"

_CODE_LIMIT = 64
_EXCERPT_LIMIT = 512
_OF_DEVICES = (FaultKind.DEVICE_NOT_OFFERED, FaultKind.DEVICE_OFFERED_THOUGH_BAD)

Identity = tuple[str, str]
"""(kind, device UUID), as of the fault."""


class PluginSeen(Protocol):
    """What a probe finds of one plugin; `state` is Serving, SocketLost, Hung, Dead or Unknown."""

    @property
    def resource(self) -> str: ...
    @property
    def socket(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def present(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Look:
    """All that is known at one moment.

    `plugins` is None while the probe does not work, `healthy` (device IDs by resource, as the kubelet has them)
    while the kubelet does not answer: no data is not a fault. `sound` are the UUIDs of devices that are healthy
    and have no fault, `bad` of those with a Fatal one; of all others nothing is said. `failed` has, by resource,
    when (monotonic seconds) an allocation last failed.
    """

    plugins: tuple[PluginSeen, ...] | None
    healthy: Mapping[str, Collection[str]] | None
    sound: frozenset[str] = frozenset()
    bad: frozenset[str] = frozenset()
    failed: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a look shows: a fault that is raised if it stays."""

    kind: FaultKind
    resource: str
    device_uuid: str = ""
    excerpt: str = ""

    @property
    def identity(self) -> Identity:
        """As of the fault."""
        return (self.kind.value, self.device_uuid)


@dataclass(frozen=True, slots=True)
class _Clock:
    """Since when a finding is there (or, where it is a fault already, is not), in monotonic seconds and wall time."""

    since: float
    began: datetime


@dataclass(frozen=True, slots=True)
class PluginWatch:
    """The findings that are not yet a fault, and the faults that are about to clear, by identity."""

    rising: Mapping[Identity, _Clock] = field(default_factory=dict)
    falling: Mapping[Identity, _Clock] = field(default_factory=dict)

    def seen(
        self, look: Look, open_faults: Collection[Identity], *, now: float, wall: datetime, boot_id: str
    ) -> tuple[PluginWatch, tuple[Fault, ...], tuple[Identity, ...]]:
        """The next watch, the faults to raise or to say again, and those that are over.

        `open_faults` are the faults of these kinds that are open, by whomever they were raised.
        """
        findings = _together(_findings(look, now))
        rising = {key: self.rising.get(key, _Clock(now, wall)) for key in findings}
        undecided = {key for key in open_faults if not _decidable(key, look)}
        falling = {
            key: self.falling.get(key, _Clock(now, wall))
            for key in open_faults
            if key not in findings and key not in undecided
        }
        raised = tuple(
            _fault(finding, rising[key], wall, boot_id)
            for key, finding in findings.items()
            if key in open_faults or now - rising[key].since >= PLUGIN_FAULTS[finding.kind][2]
        )
        over = tuple(key for key, clock in falling.items() if now - clock.since >= CLEAR_SECONDS)
        return replace(self, rising=rising, falling=falling), raised, over


def uuid_of(device_id: str) -> str:
    """The device that an ID of the kubelet's names; NVIDIA's plugin appends `::N` where it shares a device."""
    return device_id.partition("::")[0]


def resource_of(code: str) -> str:
    """The resource that the code of such a fault names (`plugin:nvidia.com/gpu`), else ""."""
    return code.removeprefix("plugin:") if code.startswith("plugin:") else ""


def _findings(look: Look, now: float) -> Iterable[Finding]:
    for plugin in look.plugins or ():
        offered = (look.healthy or {}).get(plugin.resource, ())
        yield from _of_plugin(plugin, offered, look, now)
        if plugin.state == "Serving" and look.healthy is not None:
            yield from _of_devices(plugin.resource, offered, look)


def _of_plugin(plugin: PluginSeen, offered: Collection[str], look: Look, now: float) -> Iterable[Finding]:
    name, socket = plugin.resource, plugin.socket
    gone = plugin.state == "Unknown" and not plugin.present
    if plugin.state == "Hung":
        yield Finding(FaultKind.PLUGIN_HUNG, name, excerpt=f"{socket} does not answer")
    elif plugin.state == "SocketLost":
        failed = look.failed.get(name)
        if failed is not None and now - failed <= FRESH_FAILURE:
            told = f"the socket file {socket} is gone, and an allocation has failed"
            yield Finding(FaultKind.PLUGIN_WEDGED, name, excerpt=told)
        else:
            told = f"serves, but its socket file {socket} is gone"
            yield Finding(FaultKind.PLUGIN_SOCKET_LOST, name, excerpt=told)
    elif plugin.state == "Dead" or gone:
        if offered:
            told = f"the kubelet has {len(offered)} devices of {name} as healthy, and nobody serves {socket}"
            yield Finding(FaultKind.PLUGIN_WEDGED, name, excerpt=told)
        elif not gone:
            yield Finding(FaultKind.PLUGIN_DEAD, name, excerpt=f"nobody serves {socket}")


def _of_devices(resource: str, offered: Collection[str], look: Look) -> Iterable[Finding]:
    uuids = {uuid_of(device_id) for device_id in offered}
    ours = look.sound | look.bad
    if not uuids and resource == DEFAULT_RESOURCE and look.sound:
        told = f"the plugin serves, and the kubelet has none of {len(look.sound)} healthy devices"
        yield Finding(FaultKind.DEVICE_NOT_OFFERED, resource, excerpt=told)
    if not uuids & ours:
        return
    for uuid in sorted(look.sound - uuids):
        told = "healthy, and not among the devices that the kubelet offers"
        yield Finding(FaultKind.DEVICE_NOT_OFFERED, resource, uuid, told)
    for uuid in sorted(look.bad & uuids):
        told = "has a fatal fault, and the kubelet offers it to jobs"
        yield Finding(FaultKind.DEVICE_OFFERED_THOUGH_BAD, resource, uuid, told)


def _together(findings: Iterable[Finding]) -> dict[Identity, Finding]:
    """By identity; where two resources have the same fault, the first is told, with the words of both."""
    together: dict[Identity, Finding] = {}
    for finding in sorted(findings, key=lambda one: (one.identity, one.resource)):
        known = together.get(finding.identity)
        if known is not None:
            finding = replace(known, excerpt=f"{known.excerpt}; {finding.excerpt}")  # noqa: PLW2901
        together[finding.identity] = finding
    return together


def _decidable(key: Identity, look: Look) -> bool:
    """Whether the look could show this fault at all."""
    kind, _ = key
    if look.plugins is None or (look.healthy is None and kind != FaultKind.PLUGIN_HUNG):
        return False
    serving = any(plugin.state == "Serving" for plugin in look.plugins)
    # A probe that has begun anew knows nothing of a plugin that was gone before, with its socket file.
    return serving or kind in (FaultKind.PLUGIN_HUNG, FaultKind.PLUGIN_SOCKET_LOST)


def _fault(finding: Finding, clock: _Clock, wall: datetime, boot_id: str) -> Fault:
    severity, advice, _ = PLUGIN_FAULTS[finding.kind]
    return Fault(
        kind=finding.kind.value,
        severity=severity,
        advice=advice.value,
        clears_on=ClearsOn.DWELL.value,
        code=f"plugin:{finding.resource}"[:_CODE_LIMIT],
        scope=Scope.DEVICE if finding.kind in _OF_DEVICES and finding.device_uuid else Scope.NODE,
        device_uuid=finding.device_uuid,
        first_seen=min(clock.began, wall),
        last_seen=wall,
        evidence=Evidence(source="plugin", boot_id=boot_id, excerpt=finding.excerpt[:_EXCERPT_LIMIT]),
    )
