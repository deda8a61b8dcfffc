"""One node of the fleet: machine, programs and agent together, and what happens to them over time."""

from __future__ import annotations

import math
from collections import Counter
from typing import Protocol

from exporter.holdings import Holding
from runtime.clock import Clock
from simulation.cluster.control_plane import ControlPlane
from simulation.cluster.interface import StoreError
from simulation.cluster.kubelet_node import NodeShape
from simulation.cluster.store import ClusterStore
from simulation.fleet_agent import Agent
from simulation.fleet_faults import Schedule
from simulation.fleet_machine import GPU, MODEL, Machine, built
from simulation.fleet_programs import Host, NodePrograms
from simulation.fleet_rates import Cause, Effect
from simulation.fleet_workloads import OPERAND, USE_LABEL
from simulation.store_session import StoreSession

POOL_LABEL = "sickbay.dev/pool"
_MODEL_LABEL = "nvidia.com/gpu.product"
_RETRY = 0.5


class Habits(Protocol):
    """How long things take on a node: `simulation.fleet.Profile`."""

    @property
    def gpus(self) -> int: ...
    @property
    def renew_interval(self) -> float: ...
    @property
    def boot_seconds(self) -> tuple[float, float]: ...
    @property
    def agent_seconds(self) -> tuple[float, float]: ...
    @property
    def lost_seconds(self) -> tuple[float, float]: ...
    @property
    def recurs_seconds(self) -> tuple[float, float]: ...


class Surroundings(Protocol):
    """What a node needs of its fleet."""

    @property
    def plane(self) -> ControlPlane: ...
    @property
    def schedule(self) -> Schedule: ...
    def wake(self, number: int, at: float) -> None: ...
    def acted(self, node: str, step: str, needed: bool) -> None: ...


class FleetNode:
    """`work` is called when it is due (`next_due`, monotonic seconds)."""

    def __init__(
        self,
        number: int,
        *,
        seed: int,
        pool: str,
        use: str,
        profile: Habits,
        store: ClusterStore,
        clock: Clock,
        fleet: Surroundings,
    ) -> None:
        self.number = number
        self.name = f"gpu-{number:05d}"
        self.machine: Machine = built(self.name, number, gpus=profile.gpus, seed=seed)
        self.machine.changed = self._plugin_changed
        self.agent: Agent | None = None
        self.boots_at = math.inf
        self.starts_at = math.inf
        self.boots = 0
        """How often it has come up again."""
        self._profile = profile
        self._store = store
        self._clock = clock
        self._fleet = fleet
        self._written: Counter[str] = Counter()
        self._rng = self.machine.rng
        host = Host(
            self.machine,
            clock,
            api=StoreSession(store, user_agent="sickbay-repair/simulated"),
            holders=self._holders,
            reboot=lambda: self.go_down(self._drawn(profile.boot_seconds)),
            restart_kubelet=lambda: fleet.plane.kubelets.restart_kubelet(self.name),
            receipts_changed=self._receipts_changed,
            recurs=self._recurs,
            acted=fleet.acted,
        )
        self.programs = NodePrograms(host, self._rng)
        labels = {OPERAND: "true", USE_LABEL: use, _MODEL_LABEL: MODEL.replace(" ", "-")}
        if pool:
            labels[POOL_LABEL] = pool
        self.shape = NodeShape(name=self.name, labels=labels, plugins=self.machine, programs=self.programs)

    def next_due(self) -> float:
        """When to call `work` next."""
        agent = self.agent.next_due() if self.agent is not None else math.inf
        return min(agent, self.boots_at, self.starts_at)

    def work(self, now: float) -> bool:
        """Do what is due; whether there was anything."""
        worked = False
        if now >= self.boots_at:
            self._boot(now)
            worked = True
        if now >= self.starts_at:
            self._start_agent(now)
            worked = True
        if self.agent is not None and now >= self.agent.next_due():
            self.agent.work()
            worked = True
        return worked

    def struck(self, cause: Cause, gpu: int) -> bool:
        """A cause strikes; whether it met anything: a node that is down, or a device that is gone, is spared."""
        if not self.machine.up:
            return False
        match cause.effect:
            case Effect.HOST_LOST:
                back = self._rng.random() < cause.reboot
                self.go_down(self._drawn(self._profile.lost_seconds) if back else math.inf)
            case Effect.HOST_REBOOTED:
                self.go_down(self._drawn(self._profile.boot_seconds))
            case Effect.PLUGIN_HUNG:
                self.machine.hang_plugin()
            case Effect.PLUGIN_CRASHED:
                self.programs.crash_plugin()
            case _:
                return self._xid(cause, self.machine.devices[gpu].uuid)
        return True

    def go_down(self, seconds: float) -> None:
        """The machine goes down at once, with everything on it, and is up again after `seconds` (inf: never)."""
        now = self._clock.monotonic()
        self.machine.up = False
        self._end_agent()
        self.starts_at = math.inf
        if math.isinf(seconds):
            self.boots_at = math.inf
            self._fleet.plane.kubelets.power_off(self.name)
            return
        # The hardware is up before its kubelet is, which starts the plugin.
        self.boots_at = now + 0.9 * seconds
        self._fleet.plane.kubelets.reboot(self.name, seconds=seconds)
        self._fleet.wake(self.number, self.boots_at)

    def writes(self) -> Counter[str]:
        """Writes of this node's report by kind, of all its agents."""
        running = (
            Counter({kind.value: count for kind, count in self.agent.writes.items()}) if self.agent else None
        )
        return self._written + running if running else self._written

    def _xid(self, cause: Cause, uuid: str) -> bool:
        if not self.machine.strike(cause, uuid):
            return False
        text = self.machine.xid_text(cause, uuid)
        self.machine.log.append((self.machine.lines, self._clock.wall(), text))
        if self.agent is not None:
            self.agent.kernel_line(text)
            self._fleet.wake(self.number, self.agent.next_due())
        return True

    def _boot(self, now: float) -> None:
        self.boots_at = math.inf
        self.boots += 1
        for uuid in self.machine.booted():
            self._recurs(uuid)
        self.starts_at = now + self._drawn(self._profile.agent_seconds)

    def _start_agent(self, now: float) -> None:
        """The agent's pod runs, which its kubelet has started: so the Node has this boot's ID by now, or soon."""
        boot_id = self._fleet.plane.kubelets.boot_id(self.name)
        try:
            node = self._store.get("nodes", self.name)
        except StoreError:
            self.starts_at = math.inf
            return
        if node.get("status", {}).get("nodeInfo", {}).get("bootID", "") != boot_id:
            self.starts_at = now + _RETRY
            return
        self.starts_at = math.inf
        self._end_agent()
        self.agent = Agent(
            self.machine,
            store=self._store,
            node_uid=node["metadata"]["uid"],
            boot_id=boot_id,
            clock=self._clock,
            held=self._held,
            rng=self._rng,
            renew_interval=self._profile.renew_interval,
        )

    def _end_agent(self) -> None:
        if self.agent is not None:
            self._written = self.writes()
            self.agent = None

    def _plugin_changed(self) -> None:
        self._fleet.plane.kubelets.devices_changed(self.name)
        if self.agent is not None:
            self.agent.plugin_changed()
            self._fleet.wake(self.number, self.agent.next_due())

    def _receipts_changed(self) -> None:
        if self.agent is not None:
            self.agent.receipts_changed()
            self._fleet.wake(self.number, self.agent.next_due())

    def _recurs(self, uuid: str) -> None:
        """What is still broken shows again later, if the device is there to show it."""
        cause = self.machine.broken[uuid]
        if cause.effect is Effect.DEVICE_LOST:
            return  # after a boot it is not found any more, and says nothing
        gpu = next(device.index for device in self.machine.devices if device.uuid == uuid)
        at = self._clock.monotonic() + self._drawn(self._profile.recurs_seconds)
        self._fleet.schedule.add(cause, at=at, node=self.number, gpu=gpu, again=True)

    def _held(self) -> tuple[Holding, ...]:
        return tuple(
            sorted(
                Holding(
                    resource,
                    device,
                    one.pod["metadata"]["namespace"],
                    one.pod["metadata"]["name"],
                    one.container,
                )
                for one in self._fleet.plane.kubelets.holdings(self.name)
                for resource, devices in one.devices.items()
                for device in devices
            )
        )

    def _holders(self, devices: frozenset[str]) -> str:
        """Who keeps these devices from a reset: a pod, or the agent."""
        pod = next((one for one in self._held() if one.resource == GPU and one.device_id in devices), None)
        if pod is not None:
            return f"the pod {pod.namespace}/{pod.pod}"
        return "the agent" if self.agent is not None and not self.agent.released else ""

    def _drawn(self, bounds: tuple[float, float]) -> float:
        return self._rng.uniform(*bounds)
