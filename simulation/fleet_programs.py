"""What runs in the containers of a simulated node: the device plugin's process, and the repair programs.

The look before a repair is the program's own, at the store. The repair then acts as `sickbay repair` does: not in
another boot than it is meant for, once for each attempt, a reset only where nobody holds the device; and what it did is
in a receipt on the host.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from health.receipt import RESET, Receipt, RepairResult
from remediation.policy import StepName
from remediation.repair.check import Asked, look, refusal
from remediation.repair.order import Exit
from remediation.steps.job import FACT_PREFIX, TEMPLATE_LABEL
from runtime.clock import Clock
from runtime.kubernetes import Session
from simulation.cluster.interface import Object
from simulation.cluster.programs import Launch, Program
from simulation.fleet_machine import Machine

PLUGIN_LABEL = ("app.kubernetes.io/name", "nvidia-device-plugin")
PLUGIN_REGISTERS = 0.6
"""Seconds from a plugin's start to its registration (0.6 to 1.6 measured for a whole restart)."""


class Host:
    """What programs do to the machine they run on, and ask of it. One for each node."""

    def __init__(
        self,
        machine: Machine,
        clock: Clock,
        *,
        api: Session,
        holders: Callable[[frozenset[str]], str],
        reboot: Callable[[], None],
        restart_kubelet: Callable[[], None],
        receipts_changed: Callable[[], None],
        recurs: Callable[[str], None],
        acted: Callable[[str, str, bool], None],
    ) -> None:
        """`holders`: who holds one of these devices, empty for nobody. `recurs`: a device is still broken, which
        shows later. `acted`: (node, step, whether something was broken) of each deed."""
        self.machine = machine
        self.clock = clock
        self.api = api
        self.holders = holders
        self.reboot = reboot
        self.restart_kubelet = restart_kubelet
        self.receipts_changed = receipts_changed
        self.recurs = recurs
        self.acted = acted


class PluginProgram:
    """The device plugin's process."""

    def __init__(self, machine: Machine, *, started: float) -> None:
        self._machine = machine
        self._registers: float | None = started + PLUGIN_REGISTERS
        self._code: int | None = None

    def poll(self, now: float) -> int | None:
        if self._registers is not None and now >= self._registers:
            self._registers = None
            self._machine.plugin_started()
        return self._code

    def due(self) -> float | None:
        return self._registers

    def terminate(self, now: float) -> None:
        self.crash()

    def kill(self) -> None:
        self.crash()

    def crash(self) -> None:
        """It ends with 1."""
        if self._code is None:
            self._code, self._registers = 1, None
            self._machine.plugin_ended()


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a repair is told."""

    session: str
    step: str
    attempt: int
    boot_id: str
    node_uid: str
    devices: tuple[str, ...]

    @classmethod
    def of(cls, pod: Object) -> _Facts:
        notes: Mapping[str, str] = pod["metadata"].get("annotations") or {}

        def said(key: str) -> str:
            return notes.get(f"{FACT_PREFIX}{key}", "")

        attempt = said("attempt")
        devices = tuple(one for one in said("devices").split(",") if one)
        return cls(
            session=said("session"),
            step=said("step"),
            attempt=int(attempt) if attempt.isdecimal() else 0,
            boot_id=said("boot-id"),
            node_uid=said("node-uid"),
            devices=devices,
        )


class RepairProgram:
    """The container `repair` of a repair Job: acts when its time is over, or at its start for a look."""

    def __init__(self, host: Host, launch: Launch, *, seconds: float) -> None:
        self._host = host
        self._facts = _Facts.of(launch.pod)
        self._boot_id = launch.boot_id
        self._look = launch.init
        self._acts_at = launch.started + (0.0 if launch.init else seconds)
        self._code: int | None = None
        self._killed = False

    def poll(self, now: float) -> int | None:
        if self._code is None and now >= self._acts_at and not self._killed:
            self._code = self._acted()
        return self._code

    def due(self) -> float | None:
        return self._acts_at if self._code is None else None

    def terminate(self, now: float) -> None:
        """A repair that has begun is not cut short: it outlives SIGTERM, as the real one does."""

    def kill(self) -> None:
        self._killed = True

    def _acted(self) -> Exit:
        facts, host = self._facts, self._host
        if self._look:
            return self._looked()
        identity = (facts.session, facts.step, facts.attempt)
        if facts.boot_id != self._boot_id or any(one.identity == identity for one in host.machine.receipts):
            return Exit.DONE
        match facts.step:
            case StepName.RESET:
                return self._reset()
            case StepName.REBOOT:
                host.acted(host.machine.name, facts.step, bool(host.machine.broken))
                host.reboot()
                return Exit.DONE
            case StepName.RESTART_SERVICE:
                host.acted(host.machine.name, facts.step, True)
                host.restart_kubelet()
                self._leave(RepairResult.DONE, "the kubelet was restarted")
                return Exit.DONE
        return Exit.REFUSED

    def _looked(self) -> Exit:
        facts, host = self._facts, self._host
        node, uid = host.machine.name, facts.node_uid
        asked = Asked(facts.session, facts.step, node, uid, facts.boot_id, facts.attempt)
        found = look(host.api, asked)
        return Exit.NOT_ALLOWED if refusal(found.session, found.node, found.control, asked) else Exit.DONE

    def _reset(self) -> Exit:
        facts, host = self._facts, self._host
        if holder := host.holders(frozenset(facts.devices)):
            self._leave(RepairResult.HELD, f"held by {holder}")
            return Exit.HELD
        host.acted(host.machine.name, facts.step, any(one in host.machine.broken for one in facts.devices))
        still = host.machine.reset(facts.devices)
        self._leave(RepairResult.DONE, f"{len(facts.devices)} devices were reset", devices=facts.devices)
        for one in still:
            host.recurs(one)
        return Exit.DONE

    def _leave(self, result: RepairResult, message: str, *, devices: tuple[str, ...] = ()) -> None:
        facts = self._facts
        receipt = Receipt(
            session=facts.session,
            step=facts.step,
            attempt=facts.attempt,
            boot_id=facts.boot_id,
            result=result.value,
            time=self._host.clock.wall(),
            devices=devices if facts.step == RESET else (),
            message=message,
        )
        self._host.machine.leave(receipt)
        self._host.receipts_changed()


class NodePrograms:
    """The programs of one node's containers; everything that is neither plugin nor repair does what its annotations
    say."""

    def __init__(self, host: Host, rng: random.Random) -> None:
        self._host = host
        self._rng = rng
        self._plugin: tuple[PluginProgram, Callable[[], None]] | None = None

    def __call__(self, launch: Launch) -> Program | None:
        labels: Mapping[str, str] = launch.pod["metadata"].get("labels") or {}
        if labels.get(PLUGIN_LABEL[0]) == PLUGIN_LABEL[1]:
            program = PluginProgram(self._host.machine, started=launch.started)
            self._plugin = (program, launch.wake)
            return program
        if TEMPLATE_LABEL in labels:
            return RepairProgram(self._host, launch, seconds=self._rng.uniform(3, 20))
        return None

    def crash_plugin(self) -> None:
        """The plugin's process ends by itself; its kubelet starts it again."""
        if self._plugin is not None:
            program, wake = self._plugin
            program.crash()
            wake()
