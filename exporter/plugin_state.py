"""What the plugin probe and the kubelet's pod resources say, taken into the node's state. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from exporter.holdings import Holdings
from exporter.sources.plugin_target import Plugin
from health.diagnose import Diagnosis
from health.plugin_faults import PLUGIN_FAULTS, Look, PluginWatch
from health.report import Fault, Source
from health.vocabulary import Severity, SourceState

PLUGIN = "plugin"
POD_RESOURCES = "pod-resources"

_RESOURCE_LIMIT = 64
"""Resources whose failed allocations are remembered: their names come from whoever creates pods."""


@dataclass(frozen=True, slots=True)
class PluginView:
    """The last words of both sources, and the allocations that have failed (resource: monotonic seconds)."""

    plugins: tuple[Plugin, ...] = ()
    holdings: Holdings = field(default_factory=Holdings)
    failed: Mapping[str, float] = field(default_factory=dict)
    watch: PluginWatch = field(default_factory=PluginWatch)

    def with_failure(self, resource: str, at: float) -> PluginView:
        """An allocation of this resource has failed."""
        known = self.failed.get(resource)
        if known is None and len(self.failed) >= _RESOURCE_LIMIT:
            return self
        return replace(self, failed={**self.failed, resource: at if known is None else max(known, at)})

    def diagnosed(
        self,
        diagnosis: Diagnosis,
        sources: Mapping[str, Source],
        devices: frozenset[str],
        sound: frozenset[str],
        *,
        now: float,
        wall: datetime,
        boot_id: str,
    ) -> tuple[PluginView, Diagnosis]:
        """The view and the diagnosis once time has passed.

        `devices` are the UUIDs of all devices, `sound` those whose own state is healthy.
        """
        fatal = [fault for fault in _devices_own(diagnosis) if fault.severity is Severity.FATAL]
        bad = frozenset(fault.device_uuid for fault in fatal)
        look = Look(
            plugins=self.plugins if is_live(sources, PLUGIN) else None,
            healthy=self.holdings.healthy if is_live(sources, POD_RESOURCES) else None,
            devices=devices,
            sound=sound - {fault.device_uuid for fault in _devices_own(diagnosis)},
            bad=bad,
            drills=bad - {fault.device_uuid for fault in fatal if not fault.drill},
            held=frozenset(held.resource for held in self.holdings.held),
            failed=self.failed,
        )
        known = {key: fault for key, fault in diagnosis.open.items() if key[0] in PLUGIN_FAULTS}
        watch, faults = self.watch.seen(look, known, now=now, wall=wall, boot_id=boot_id)
        if faults != known:
            others = {key: fault for key, fault in diagnosis.open.items() if key not in known}
            diagnosis = replace(diagnosis, open={**others, **faults})
        return (self if watch is self.watch else replace(self, watch=watch)), diagnosis


def is_live(sources: Mapping[str, Source], name: str) -> bool:
    """Whether a source says what is so now."""
    source = sources.get(name)
    return source is not None and source.state is SourceState.LIVE


def _devices_own(diagnosis: Diagnosis) -> list[Fault]:
    """The open faults of devices that are not about how their plugin offers them."""
    return [
        fault for fault in diagnosis.open.values() if fault.device_uuid and fault.kind not in PLUGIN_FAULTS
    ]
