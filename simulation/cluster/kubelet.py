"""The kubelets of the simulated nodes: they register nodes, run the pods that are bound to them, and tell of both.

One component for all nodes, driven by the control plane. What happens to a machine is said from any thread:
`reboot`, `power_off`, `power_on`, `disconnect`, `reconnect`, `restart_kubelet`, `devices_changed`.
"""

from __future__ import annotations

import itertools
import threading
import uuid
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from runtime.clock import Clock
from simulation.cluster.interface import Store, StoreError
from simulation.cluster.kubelet_devices import Holding
from simulation.cluster.kubelet_node import NodePods, NodeShape, Timings, stamp_of
from simulation.cluster.node_status import NodeStatus
from simulation.cluster.view import PODS, Change, View, node_of
from simulation.cluster.workqueue import WorkQueue


class UnknownNodeError(KeyError):
    """No simulated machine has this name."""


@dataclass(slots=True)
class _Machine:
    """One machine and its kubelet; `missed` are the changes that it cannot hear of."""

    shape: NodeShape
    pods: NodePods
    status: NodeStatus
    boots_at: float | None = None
    powered: bool = True
    connected: bool = True
    status_at: float = 0.0
    lease_at: float = 0.0
    report_now: bool = True
    missed: list[Change] = field(default_factory=list)

    @property
    def hears(self) -> bool:
        return self.powered and self.connected


class Kubelets:
    """All simulated kubelets: a component of the control plane. `boot_ids` makes the boot ID of each boot."""

    def __init__(
        self,
        store: Store,
        view: View,
        *,
        clock: Clock,
        timings: Timings | None = None,
        boot_ids: Callable[[], str] = lambda: str(uuid.uuid4()),
        notify: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._view = view
        self._clock = clock
        self._timings = timings or Timings()
        self._boot_ids = boot_ids
        self._notify = notify
        self._machines: dict[str, _Machine] = {}
        self._queue: WorkQueue[str] = WorkQueue()
        self._calls: deque[Callable[[float], None]] = deque()
        self._lock = threading.Lock()
        self._addresses = (
            f"10.{64 + i // 65536 % 64}.{i // 256 % 256}.{i % 256}" for i in itertools.count(1)
        )

    def add_node(self, shape: NodeShape, *, boot_id: str = "") -> None:
        """Switch a machine on: it registers its Node and runs what is bound to it. Raises ValueError for a name
        that is there already."""
        with self._lock:
            if shape.name in self._machines:
                raise ValueError(f"there is a simulated node named {shape.name!r} already")
            pods = NodePods(
                shape,
                store=self._store,
                view=self._view,
                timings=self._timings,
                wake=lambda uid: self._call(lambda now: self._poll(shape.name, uid)),
                pod_address=self._addresses.__next__,
            )
            status = NodeStatus(shape, store=self._store, view=self._view, timings=self._timings)
            self._machines[shape.name] = _Machine(shape=shape, pods=pods, status=status)
        self._call(lambda now: self._switch_on(shape.name, now, boot_id))

    def remove_node(self, name: str) -> None:
        """The machine is gone for good; its Node stays until somebody deletes it."""
        machine = self._machine(name)
        self._call(lambda now: self._remove(machine))

    def reboot(self, name: str, *, seconds: float, boot_id: str = "") -> None:
        """The machine goes down at once, as after `reboot -f`, and is up again after `seconds` with a new boot ID."""
        self.power_off(name)
        self._call(lambda now: self._plan_boot(name, now + seconds, boot_id))

    def power_off(self, name: str) -> None:
        """The machine goes down: its processes end, and nothing is heard of it."""
        self._machine(name)
        self._call(lambda now: self._crash(name))

    def power_on(self, name: str, *, boot_id: str = "") -> None:
        """A machine that is down boots at once."""
        self._machine(name)
        self._call(lambda now: self._plan_boot(name, now, boot_id))

    def disconnect(self, name: str) -> None:
        """The node stops answering, while its processes go on unseen."""
        self._machine(name)
        self._call(lambda now: self._connect(name, False))

    def reconnect(self, name: str) -> None:
        """The node answers again, and its kubelet catches up with what it has missed."""
        self._machine(name)
        self._call(lambda now: self._connect(name, True))

    def restart_kubelet(self, name: str) -> None:
        """The kubelet starts again: pods go on, devices are unknown until their plugins have registered again."""
        self._machine(name)
        self._call(lambda now: self._restart(name, now))

    def devices_changed(self, name: str) -> None:
        """What the node's plugins list or how they answer has changed: the kubelet's open stream tells it so."""
        self._machine(name)
        self._call(lambda now: self._refresh(name, now))

    def boot_id(self, name: str) -> str:
        """The boot ID of the machine's current boot. Raises UnknownNodeError."""
        return self._machine(name).pods.boot_id

    def holdings(self, name: str) -> list[Holding]:
        """Who holds which device, as the kubelet's pod-resources service would say. Raises UnknownNodeError."""
        return self._machine(name).pods.devices.holdings()

    def observe(self, change: Change) -> None:
        """Hand a change of a pod to the kubelet of its node."""
        if change.resource != PODS:
            return
        machine = self._machines.get(node_of(change.object))
        if machine is None:
            return
        if machine.hears:
            self._hear(machine, change)
        else:
            machine.missed.append(change)

    def work(self, now: float) -> bool:
        """Carry out one thing that was said, or do all that is due on one node."""
        if self._calls:
            self._calls.popleft()(now)
            return True
        name = self._queue.pop(now)
        if name is None:
            return False
        machine = self._machines.get(name)
        due = self._sync(machine, now) if machine else None
        if due is not None:
            self._queue.add(name, due)
        return True

    def next_due(self) -> float | None:
        """When there is work next."""
        return 0.0 if self._calls else self._queue.next_due()

    def _sync(self, machine: _Machine, now: float) -> float | None:
        if machine.boots_at is not None and now >= machine.boots_at:
            self._boot(machine, now)
        if not machine.hears:
            return machine.boots_at
        machine.pods.devices_changed(now)
        due = [machine.pods.sync(now, self._clock.wall())]
        listens = machine.pods.devices.listens_from
        if machine.report_now or now >= machine.status_at:
            self._report(machine, now)
        if now >= machine.lease_at:
            self._renew(machine, now)
        due += [machine.status_at, machine.lease_at, listens if listens > now else None]
        return min(time for time in due if time is not None)

    def _report(self, machine: _Machine, now: float) -> None:
        amounts = machine.pods.devices.amounts(now)
        try:
            machine.status.report(
                amounts,
                machine.pods.boot_id,
                now=now,
                moment=self._clock.wall(),
                at_once=machine.report_now,
            )
        except StoreError as error:
            machine.status_at = now + (0.01 if error.code == 409 else self._timings.status)
            return
        machine.status_at, machine.report_now = now + self._timings.status, False

    def _renew(self, machine: _Machine, now: float) -> None:
        machine.lease_at = now + self._timings.lease
        try:
            machine.status.renew(self._clock.wall())
        except StoreError:
            # A Node that was deleted has no Lease either; the kubelet goes on trying.
            return

    def _hear(self, machine: _Machine, change: Change) -> None:
        if change.deleted:
            machine.pods.gone(change.object, stamp_of(self._clock.wall()))
        else:
            machine.pods.changed(change.object, self._clock.monotonic())
        self._queue.add(machine.shape.name)

    def _switch_on(self, name: str, now: float, boot_id: str) -> None:
        machine = self._machines.get(name)
        if machine is None:
            return
        machine.status.register()
        machine.pods.boot_id = boot_id or self._boot_ids()
        machine.pods.devices.refresh(now)
        self._report(machine, now)
        self._renew(machine, now)
        # Spread over the period, so that five thousand nodes do not all write in one moment.
        share = zlib.crc32(name.encode()) % 1000 / 1000
        machine.status_at = min(machine.status_at, now + self._timings.status * share)
        machine.lease_at = now + self._timings.lease * share
        for pod in self._view.pods_on(name):
            machine.pods.changed(pod, now)
        self._queue.add(name)

    def _boot(self, machine: _Machine, now: float) -> None:
        machine.boots_at, machine.powered = None, True
        machine.pods.boot(machine.pods.boot_id, now, stamp_of(self._clock.wall()))
        machine.status_at = machine.lease_at = now
        machine.report_now = True
        if machine.connected:
            self._catch_up(machine)

    def _catch_up(self, machine: _Machine) -> None:
        missed, machine.missed = machine.missed, []
        for change in missed:
            self._hear(machine, change)

    def _plan_boot(self, name: str, at: float, boot_id: str) -> None:
        machine = self._machine(name)
        machine.boots_at = at
        machine.pods.boot_id = boot_id or self._boot_ids()
        self._queue.add(name, at)

    def _crash(self, name: str) -> None:
        machine = self._machine(name)
        machine.powered = False
        machine.boots_at = None
        machine.pods.crash()

    def _connect(self, name: str, connected: bool) -> None:
        machine = self._machine(name)
        machine.connected = connected
        if machine.hears:
            machine.status_at = machine.lease_at = 0.0
            machine.report_now = True
            self._catch_up(machine)
            self._queue.add(name)

    def _restart(self, name: str, now: float) -> None:
        machine = self._machine(name)
        if machine.powered:
            machine.pods.kubelet_restarted(now, stamp_of(self._clock.wall()))
            machine.report_now = True
            self._queue.add(name)

    def _refresh(self, name: str, now: float) -> None:
        machine = self._machine(name)
        if machine.powered:
            machine.pods.devices_changed(now)
            self._queue.add(name)

    def _poll(self, name: str, uid: str) -> None:
        if machine := self._machines.get(name):
            machine.pods.poll(uid)
            self._queue.add(name)

    def _remove(self, machine: _Machine) -> None:
        machine.pods.crash()
        self._machines.pop(machine.shape.name, None)
        self._queue.discard(machine.shape.name)

    def _machine(self, name: str) -> _Machine:
        machine = self._machines.get(name)
        if machine is None:
            raise UnknownNodeError(f"no simulated node is named {name!r}")
        return machine

    def _call(self, what: Callable[[float], None]) -> None:
        self._calls.append(what)
        self._notify()
