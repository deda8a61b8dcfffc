"""What a step that touches pods is told by the policy, beside the session it is for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from remediation.drain_policy import DrainPolicy
from remediation.plugin_policy import DevicePluginPolicy


@dataclass(frozen=True, slots=True)
class DrainOrder:
    """How to drain, and whether what follows is a reboot, which also ends the pods that are stuck."""

    policy: DrainPolicy
    next_is_reboot: bool


@dataclass(frozen=True, slots=True)
class RestartOrder:
    """Which pods are device plugins. `hung`: a plugin was found to hang, so pods may be stuck in admission."""

    policy: DevicePluginPolicy
    hung: bool


@dataclass(frozen=True, slots=True)
class CleanOrder:
    """Remove the pods that the kubelet refused since then."""

    since: datetime


Order = DrainOrder | RestartOrder | CleanOrder
