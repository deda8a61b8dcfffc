"""Rebooting the host: orderly, and when that hangs (processes in D state never end), by the kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from health.receipt import RepairResult
from remediation.repair.host import Host, HostError, Ran
from remediation.repair.once import in_another_boot
from remediation.repair.order import Ended, Order
from runtime.clock import Clock

ORDERLY_SECONDS = 120.0
"""How long an orderly reboot may take before it counts as hung."""

SYSRQ_SECONDS = 30.0
"""How long the kernel may take to restart the machine when told to do so at once."""

Pause = Callable[[float], object]
"""Waits for so many seconds, at most."""


@dataclass(frozen=True, slots=True)
class RebootSettings:
    """Times are in seconds; see the constants."""

    orderly: float = ORDERLY_SECONDS
    sysrq: float = SYSRQ_SECONDS


def reboot(host: Host, order: Order, settings: RebootSettings, *, clock: Clock, pause: Pause) -> Ended:
    """Boot the host anew. On a real host this does not return, unless nothing has helped. Raises HostError."""
    asked = _ask(host)
    if _booted(host, order, settings.orderly, clock=clock, pause=pause):
        return Ended(RepairResult.DONE, "the host has booted")
    said = f"no orderly reboot within {settings.orderly:g} s (systemctl: {asked})"
    host.reboot_by_sysrq()
    if _booted(host, order, settings.sysrq, clock=clock, pause=pause):
        return Ended(RepairResult.DONE, f"{said}; the host has booted by sysrq")
    return Ended(RepairResult.FAILED, f"{said}, and sysrq did not boot the host either")


def _ask(host: Host) -> Ran:
    """A service manager that does not answer is as good a reason to wait, and then to do without it."""
    try:
        return host.reboot_orderly()
    except HostError as error:
        return Ran(None, str(error))


def _booted(host: Host, order: Order, seconds: float, *, clock: Clock, pause: Pause) -> bool:
    deadline = clock.monotonic() + seconds
    while not (booted := _in_another_boot(host, order)) and (left := deadline - clock.monotonic()) > 0:
        pause(min(1.0, left))
    return booted


def _in_another_boot(host: Host, order: Order) -> bool:
    """A host that goes down may not say any more which boot it is in."""
    try:
        return bool(in_another_boot(host, order))
    except HostError:
        return False
