"""A controller that is killed after any of its writes: the node is repaired once, and nothing that was taken is kept.

The kill follows the write as fast as the API server's audit log can be read. Crashes exactly between two writes, at
every place, are the property tests'.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.lab.repair.ward import UNCONTAINED, Ward
from tests.lab.rig import XID_79, Rig

pytestmark = pytest.mark.timeout(400)

WRITES_OF_A_RESET = 24
WRITES_OF_A_REBOOT = 14
"""What an undisturbed session takes, about; a controller that has fewer to make is not killed any more."""

_SEEDED = random.Random(20)
RESETS = sorted(_SEEDED.sample(range(1, WRITES_OF_A_RESET + 1), 3))
REBOOTS = sorted(_SEEDED.sample(range(1, WRITES_OF_A_REBOOT + 1), 2))


class Assassin:
    """Kills the controller as soon as it has made so many writes, and starts the next one."""

    def __init__(self, rig: Rig, audit_log: Path, writes: int) -> None:
        self._rig = rig
        self._log = audit_log.open("rb")
        self._log.seek(0, 2)
        self._left = writes
        self.killed = False

    def watch(self) -> None:
        """Look for new writes, and strike when it is time."""
        while not self.killed and (line := self._log.readline()):
            if not line.endswith(b"\n"):
                self._log.seek(-len(line), 1)
                return
            self._left -= _is_write(json.loads(line))
            if self._left <= 0:
                self.killed = True
                assert self._rig.controller is not None
                self._rig.controller.kill()
                self._rig.start_controller()


def _is_write(event: dict[str, object]) -> bool:
    """Whether it is a write of a leading controller that has been carried out."""
    agent, verb = str(event.get("userAgent", "")), event.get("verb")
    status = event.get("responseStatus")
    code = status.get("code", 0) if isinstance(status, dict) else 0
    resource = event.get("objectRef")
    lease = isinstance(resource, dict) and resource.get("resource") == "leases"
    return (
        agent.startswith("sickbay-controller/")
        and verb in ("create", "patch", "delete")
        and code < 300
        and not lease
    )


def _heal(ward: Ward, line: str, writes: int) -> None:
    assassin = Assassin(ward.rig, ward.lab.audit_log, writes)
    ward.besides = assassin.watch
    try:
        ward.kernel_says(line)
        ward.ends("Released", "Healthy", 180)
    finally:
        ward.besides = None
    assert assassin.killed, "the session was over before the controller was killed"
    ward.is_whole()


@pytest.mark.parametrize("writes", RESETS)
def test_a_device_is_reset_once_whenever_the_controller_dies(ward: Ward, writes: int) -> None:
    _heal(ward, UNCONTAINED, writes)
    assert (ward.resets, ward.host.boots, len(ward.ran("reset"))) == (1, 0, 1)


@pytest.mark.parametrize("writes", REBOOTS)
def test_a_node_boots_once_whenever_the_controller_dies(ward: Ward, writes: int) -> None:
    _heal(ward, XID_79, writes)
    assert (ward.resets, ward.host.boots, len(ward.ran("reboot"))) == (0, 1, 1)


@pytest.mark.deep
@pytest.mark.parametrize("writes", range(1, WRITES_OF_A_RESET + 1))
def test_a_device_is_reset_once_at_every_single_write(ward: Ward, writes: int) -> None:
    _heal(ward, UNCONTAINED, writes)
    assert (ward.resets, ward.host.boots, len(ward.ran("reset"))) == (1, 0, 1)


@pytest.mark.deep
@pytest.mark.parametrize("writes", range(1, WRITES_OF_A_REBOOT + 1))
def test_a_node_boots_once_at_every_single_write(ward: Ward, writes: int) -> None:
    _heal(ward, XID_79, writes)
    assert (ward.resets, ward.host.boots, len(ward.ran("reboot"))) == (0, 1, 1)
