"""A watch over device plugins as tests lead it through time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from health.plugin_faults import Look, PluginWatch
from health.report import Fault

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
GPU = "nvidia.com/gpu"
UUIDS = frozenset(f"GPU-{number}" for number in range(8))


@dataclass(frozen=True)
class Seen:
    """A plugin as a probe shows it."""

    state: str
    present: bool = True
    resource: str = GPU
    socket: str = "nvidia-gpu.sock"


SERVING, HUNG, DEAD = Seen("Serving"), Seen("Hung"), Seen("Dead")
LOST, GONE = Seen("SocketLost", present=False), Seen("Dead", present=False)
NEVER = Seen("Unknown", present=False)
DOUBTFUL = Seen("Unknown", present=True)


@dataclass
class Ward:
    """The watch, the faults that are open, and the time."""

    watch: PluginWatch = field(default_factory=PluginWatch)
    faults: dict[tuple[str, str], Fault] = field(default_factory=dict)
    now: float = 0.0

    def see(
        self,
        *plugins: Seen,
        healthy: Collection[str] | Mapping[str, Collection[str]] | None = UUIDS,
        sound: Iterable[str] = UUIDS,
        bad: Iterable[str] = (),
        drills: Iterable[str] = (),
        devices: Iterable[str] = UUIDS,
        held: Iterable[str] = (),
        failed: Mapping[str, float] | None = None,
        probed: bool = True,
        seconds: float = 0.5,
    ) -> Ward:
        """Look once, `seconds` later. `healthy` are the IDs of GPU, or of several resources."""
        self.now += seconds
        if healthy is not None and not isinstance(healthy, Mapping):
            healthy = {GPU: frozenset(healthy)} if healthy else {}
        look = Look(
            plugins=plugins if probed else None,
            healthy=healthy,
            devices=frozenset(devices),
            sound=frozenset(sound),
            bad=frozenset(bad),
            drills=frozenset(drills),
            held=frozenset(held),
            failed=failed or {},
        )
        wall = NOON + timedelta(seconds=self.now)
        self.watch, faults = self.watch.seen(look, self.faults, now=self.now, wall=wall, boot_id="boot")
        self.faults = dict(faults)
        return self

    def see_for(self, seconds: float, *plugins: Seen, **known: Any) -> Ward:
        """Look twice a second for so long."""
        for _ in range(int(seconds / 0.5)):
            self.see(*plugins, **known)
        return self

    def restart(self) -> Ward:
        """Only the faults outlive the process."""
        self.watch = PluginWatch()
        return self

    @property
    def kinds(self) -> list[str]:
        return sorted(kind for kind, _ in self.faults)

    @property
    def only(self) -> Fault:
        (fault,) = self.faults.values()
        return fault

    @property
    def excerpt(self) -> str:
        evidence = self.only.evidence
        assert evidence is not None
        return evidence.excerpt
