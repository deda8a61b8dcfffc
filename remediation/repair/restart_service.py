"""Restarting a service of the host, and seeing that it is another one afterwards."""

from __future__ import annotations

from dataclasses import dataclass

from health.receipt import RepairResult
from remediation.repair.host import Host, Unit
from remediation.repair.order import Ended
from remediation.repair.reboot import Pause
from runtime.clock import Clock

UNITS = {"kubelet": "kubelet.service", "fabric-manager": "nvidia-fabricmanager.service"}
"""The services that can be restarted, and their usual systemd units."""

RESTART_SECONDS = 120.0
"""How long the restart may take."""


@dataclass(frozen=True, slots=True)
class RestartSettings:
    """Times are in seconds: how long the restart may take, and how long the unit may take to be active after it."""

    restart_timeout: float = RESTART_SECONDS
    active_within: float = 30.0


def restart_service(host: Host, unit: str, settings: RestartSettings, *, clock: Clock, pause: Pause) -> Ended:
    """Restart a systemd unit. Done only if it is active with another main process or start. Raises HostError."""
    before = host.unit(unit)
    if not before.loaded:
        return Ended(RepairResult.FAILED, f"the host has no unit {unit}")
    ran = host.order_unit("restart", unit, timeout=settings.restart_timeout)
    if not ran.ok:
        return Ended(RepairResult.FAILED, f"{unit} does not restart, {ran}")
    deadline = clock.monotonic() + settings.active_within
    while not _anew(after := host.unit(unit), before):
        left = deadline - clock.monotonic()
        if left <= 0:
            why = "still the one it was" if after.active else "not active"
            return Ended(
                RepairResult.FAILED, f"{unit} was restarted, but is {why} after {settings.active_within:g} s"
            )
        pause(min(1.0, left))
    return Ended(RepairResult.DONE, f"restarted {unit}, main process {after.main_pid}")


def _anew(after: Unit, before: Unit) -> bool:
    return after.active and (after.main_pid, after.active_since) != (before.main_pid, before.active_since)
