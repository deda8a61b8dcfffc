"""What the plugin probe and the kubelet's pod resources say, taken into the node's state. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

import msgspec.structs

from exporter.holdings import Holdings
from exporter.sources.plugin_target import Plugin
from health.diagnose import Diagnosis
from health.plugin_faults import PLUGIN_FAULTS, Look, PluginWatch
from health.report import Fault, Source
from health.vocabulary import Severity, SourceState

PLUGIN = "plugin"
POD_RESOURCES = "pod-resources"


@dataclass(frozen=True, slots=True)
class PluginView:
    """The last words of both sources, and the allocations that have failed (resource: monotonic seconds)."""

    plugins: tuple[Plugin, ...] = ()
    holdings: Holdings = field(default_factory=Holdings)
    failed: Mapping[str, float] = field(default_factory=dict)
    watch: PluginWatch = field(default_factory=PluginWatch)

    def with_failure(self, resource: str, now: float) -> PluginView:
        """An allocation of this resource has failed."""
        return replace(self, failed={**self.failed, resource: now})

    def diagnosed(
        self,
        diagnosis: Diagnosis,
        sources: Mapping[str, Source],
        sound: frozenset[str],
        *,
        now: float,
        wall: datetime,
        boot_id: str,
        seen_again: float,
    ) -> tuple[PluginView, Diagnosis]:
        """The view and the diagnosis once time has passed; `seen_again` seconds make a lasting fault's next mention.

        `sound` are the devices whose own state is healthy.
        """
        probed, asked = _live(sources, PLUGIN), _live(sources, POD_RESOURCES)
        known = {key: fault for key, fault in diagnosis.open.items() if key[0] in PLUGIN_FAULTS}
        look = Look(
            plugins=self.plugins if probed else None,
            healthy=self.holdings.healthy if asked else None,
            sound=sound - {fault.device_uuid for fault in _devices_own(diagnosis)},
            bad=frozenset(
                fault.device_uuid for fault in _devices_own(diagnosis) if fault.severity is Severity.FATAL
            ),
            failed=self.failed,
        )
        watch, raised, over = self.watch.seen(look, known.keys(), now=now, wall=wall, boot_id=boot_id)
        for fault in raised:
            before = known.get(fault.identity)
            if before is None:
                diagnosis = diagnosis.with_fault(fault)
            elif (wall - before.last_seen).total_seconds() >= seen_again:
                # It lasts, but it did not happen again.
                diagnosis = diagnosis.with_fault(msgspec.structs.replace(fault, count=0))
        for kind, uuid in over:
            diagnosis = diagnosis.without(kind, uuid)
        return (self if watch == self.watch else replace(self, watch=watch)), diagnosis


def _devices_own(diagnosis: Diagnosis) -> list[Fault]:
    """The open faults of devices that are not about how their plugin offers them."""
    return [
        fault for fault in diagnosis.open.values() if fault.device_uuid and fault.kind not in PLUGIN_FAULTS
    ]


def _live(sources: Mapping[str, Source], name: str) -> bool:
    source = sources.get(name)
    return source is not None and source.state is SourceState.LIVE
