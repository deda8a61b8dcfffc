"""Tells when this process, and not a device, has lost its access to the devices.

A container loses its device cgroup when systemd reloads its units (NVIDIA container-toolkit issues 48, 251 and
1227); every call of NVML then answers Unknown Error (999), for the life of the container.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from exporter.samples import WorkerError
from health.vocabulary import SourceState

RESTARTS = 2
"""Workers that must fail alike before this process gives up: the one that was running, and a fresh one."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AccessWatch:
    """What is known of our access. Only what was once there can be lost."""

    had: bool = False
    denied_at: int | None = None
    """Worker restarts when Unknown Error was first seen."""
    lost: bool = False

    def seen(self, state: SourceState, error: WorkerError | None, restarts: int) -> AccessWatch:
        """Take in the NVML source's state, its reason and its count of restarts."""
        if state is SourceState.LIVE:
            return self if self.had and self.denied_at is None else AccessWatch(had=True)
        if not self.had or error is not WorkerError.UNKNOWN:
            return self if self.denied_at is None else replace(self, denied_at=None)
        if self.denied_at is None:
            log.warning(
                "NVML answers Unknown Error: has this process lost the devices? The worker starts anew"
            )
            return replace(self, denied_at=restarts)
        return self if restarts < self.denied_at + RESTARTS or self.lost else replace(self, lost=True)
