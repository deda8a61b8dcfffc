"""What the controller's `spec` asks of this agent now. Pure: both clocks are passed in.

Ends are wall-clock times in the object; here they become deadlines on the monotonic clock once, so that a
step of the wall clock neither prolongs a release nor ends a drill.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

from health.report import ReportSpec


@dataclass(frozen=True, slots=True)
class Orders:
    """Until when (monotonic seconds) the devices are to be released and userspace's kernel lines believed."""

    release_until: float = -math.inf
    drill_until: float = -math.inf

    def released(self, monotonic: float) -> bool:
        """Whether the devices are to be let go of now."""
        return monotonic < self.release_until

    def drilling(self, monotonic: float) -> bool:
        """Whether a drill is on now."""
        return monotonic < self.drill_until


def orders(spec: ReportSpec, *, wall: datetime, monotonic: float) -> Orders:
    """What this spec asks for. Maintenance has no end of its own: it lasts until the controller takes it away."""

    def deadline(until: datetime | None) -> float:
        return -math.inf if until is None else monotonic + (until - wall).total_seconds()

    release = deadline(spec.device_release.until if spec.device_release else None)
    return Orders(
        release_until=math.inf if spec.maintenance else release,
        drill_until=deadline(spec.drill.until if spec.drill else None),
    )
