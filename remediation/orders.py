"""What a step that touches more than the cordon is told by the policy, beside the session it is for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from remediation.drain_policy import DrainPolicy
from remediation.plugin_policy import DevicePluginPolicy
from remediation.repair_policy import Baseline


@dataclass(frozen=True, slots=True)
class DrainOrder:
    """How to drain, and whether what follows is a reboot, which also ends the pods that are stuck.

    `about` is what the controllers of evicted pods are told: the fault and the session.
    """

    policy: DrainPolicy
    next_is_reboot: bool
    about: str = ""


@dataclass(frozen=True, slots=True)
class RestartOrder:
    """Which pods are device plugins. `hung`: a plugin was found to hang, so pods may be stuck in admission.

    `after`: the repair that the restart follows, when the plugin is to take the device back: a pod that was made since
    then is a restarted one. Where it fails, the next rung follows.
    """

    policy: DevicePluginPolicy
    hung: bool
    after: datetime | None = None


@dataclass(frozen=True, slots=True)
class CleanOrder:
    """Remove the pods that the kubelet refused since then."""

    since: datetime


@dataclass(frozen=True, slots=True)
class ReleaseOrder:
    """Get everybody off the devices: pause these operands, and ask the agent to let go until then at most."""

    operands: tuple[str, ...]
    deadline: timedelta
    until: datetime


class Proof(StrEnum):
    """By what a Job is judged, never by its own status: the node's boot ID, a receipt, or its container's word."""

    BOOT = "Boot"
    RECEIPT = "Receipt"
    RESULT = "Result"


@dataclass(frozen=True, slots=True)
class JobOrder:
    """Run a PodTemplate of the repair namespace on the node.

    `baseline` is what the container's figures are held against, where it is judged by them; `evident` says whether
    the faults must be found once more before it starts.
    """

    template: str
    namespace: str
    rung: str
    deadline: timedelta
    proof: Proof
    service: str = ""
    baseline: Baseline | None = None
    evident: bool = True


@dataclass(frozen=True, slots=True)
class RestoreOrder:
    """Give back what was taken for a reset."""


Order = DrainOrder | RestartOrder | CleanOrder | ReleaseOrder | JobOrder | RestoreOrder
