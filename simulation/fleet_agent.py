"""A node's agent without its threads: the real fold, report and cadence, driven by a clock and written through a store.

The sources' events come from the simulated machine; what becomes of them is the agent's own code. A write that the
store refuses is tried again with the publisher's pauses.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from datetime import timedelta

import msgspec
import msgspec.structs

from exporter.cadence import Bucket, Write, attentive, due, fatal, retry_pause
from exporter.events import CaughtUp, Event, Met, Probed, ReceiptsRead, SourceSaid, Written
from exporter.fold import OTHER_SOURCES, Fold
from exporter.holdings import Holding, Holdings
from exporter.report_writer import ReportWriter
from exporter.reporting import report_status
from exporter.samples import Inventory, Sample
from exporter.sources.kernel_intake import KernelMessage
from exporter.state import KERNEL_LOG, NVML, NodeState
from health.diagnose import DWELL
from health.kernel_line import parse
from health.plugin_faults import PLUGIN_FAULTS
from health.report import ReportSpec, ReportStatus
from health.vocabulary import ClearsOn, SourceState
from health.xids import builtin
from runtime.api_errors import ApiError
from runtime.clock import Clock
from runtime.version import VERSION
from simulation.cluster.store import ClusterStore
from simulation.fleet_machine import DRIVER, GPU, LIBRARY, Machine
from simulation.store_session import StoreSession

REPORTS = "acceleratorreports.sickbay.dev"
TICK = 1.0
"""Seconds between an agent's looks at what may have become a fault."""

_FOREVER = 1e12

Held = Callable[[], tuple[Holding, ...]]
"""Who holds which device on the node, as its kubelet says."""


class Agent:
    """The agent of one node in one boot. `work` is called when it is due, and after `tell`."""

    def __init__(
        self,
        machine: Machine,
        *,
        store: ClusterStore,
        node_uid: str,
        boot_id: str,
        clock: Clock,
        held: Held,
        rng: random.Random,
        renew_interval: float = 30.0,
    ) -> None:
        self._machine = machine
        session = StoreSession(store, user_agent="sickbay-agent/simulated")
        self._writer = ReportWriter(session, node=machine.name, node_uid=node_uid)
        self._node_uid = node_uid
        self._clock = clock
        self._held = held
        self._rng = rng
        self._renew_interval = renew_interval
        self.boot_id = boot_id
        now = clock.monotonic()
        self.fold = Fold(
            boot_id=boot_id,
            catalogue=builtin(),
            memory=None,
            drill=False,
            now=clock.wall(),
            monotonic=now,
            sample_interval=_FOREVER,
        )
        self.writes: dict[Write, int] = dict.fromkeys(Write, 0)
        self._events: deque[Event] = deque()
        self._bucket = Bucket()
        self._renew_at = -math.inf
        self._retry_at = -math.inf
        self._failures = 0
        self._due = now
        self._made: ReportStatus | None = None
        self._made_of: NodeState | None = None
        self._begin()

    @property
    def status(self) -> ReportStatus | None:
        """What the report says, as this agent wrote it last."""
        return self._writer.written

    @property
    def released(self) -> bool:
        """Whether it has let go of the devices."""
        return self.fold.state.sources[NVML].state is SourceState.RELEASED

    def next_due(self) -> float:
        """When to call `work` next."""
        return self._due

    def tell(self, event: Event) -> None:
        """A source has something to say; `work` takes it in."""
        self._events.append(event)
        self._due = self._clock.monotonic()

    def kernel_line(self, text: str) -> None:
        """The driver has written a line to the kernel's log."""
        line = parse(text)
        if line is not None:
            now, number = self._clock.monotonic(), self._machine.lines
            self.tell(KernelMessage(line, number, self._clock.wall(), now, text))

    def plugin_changed(self) -> None:
        """The probe and the kubelet's pod resources show something else."""
        self.tell(Probed(self._machine.probed()))
        self._events.append(self._holdings())

    def receipts_changed(self) -> None:
        """A repair has left a receipt."""
        self.tell(ReceiptsRead(self._machine.receipts))

    def work(self) -> None:
        """Take in what was said, let time pass, and write the report where it is time to."""
        now = self._clock.monotonic()
        wanted = self._unchanged(now)
        if wanted is None:
            self._settle(now)
            self._obey(now)
            wanted = self._wanted()
        write_at = max(self._next_write(wanted, now), self._retry_at)
        if write_at <= now:
            self._write(wanted, now)
            if self._obey(now):
                wanted = self._wanted()
            write_at = max(self._next_write(wanted, now), self._retry_at)
        self._due = max(now, min(write_at, self._look_at(now)))

    def _unchanged(self, now: float) -> ReportStatus | None:
        """What the report says still, where nothing was said, nothing is wrong, and time alone changes nothing.

        A fold of nothing into a healthy state is that state; 5,000 agents need not prove it 167 times a second.
        """
        state = self.fold.state
        wrong = (
            self._machine.broken or state.diagnosis.open or state.unattributed or state.kubelet.watch.tracks
        )
        released = self.fold.orders.released(now)
        if wrong or self._events or state is not self._made_of or released != self.released:
            return None
        assert self._made is not None
        return msgspec.structs.replace(self._made, observed_time=self._clock.wall())

    def _begin(self) -> None:
        """Start: the sources say what they have, and the own report is read."""
        machine = self._machine
        for source in (NVML, KERNEL_LOG, *OTHER_SOURCES):
            self._events.append(SourceSaid(source, SourceState.LIVE, ""))
        self._events.append(self._inventory())
        self._events.append(ReceiptsRead(machine.receipts))
        for number, time, text in machine.log:
            if (line := parse(text)) is not None:
                self._events.append(KernelMessage(line, number, time, self._clock.monotonic(), text))
        self._events.append(CaughtUp())
        self._events.append(Probed(machine.probed()))
        self._events.append(self._holdings())
        report = self._writer.meet()
        if report is None:
            self._events.append(Met(None))
            return
        self._events.append(Met(report.status if report.status != ReportStatus() else None))
        self._take_spec(report.spec)

    def _settle(self, now: float) -> None:
        wall = self._clock.wall()
        while self._events:
            self.fold.take(self._events.popleft(), now=wall, monotonic=now)
        if not self.released:
            self.fold.take(self._sample(now), now=wall, monotonic=now)
        self.fold.settle(now=wall, monotonic=now)

    def _obey(self, now: float) -> bool:
        """Let go of the devices, or take them back, as the controller asks; whether there was anything to do."""
        wanted = self.fold.orders.released(now)
        if wanted == self.released:
            return False
        if wanted:
            self._events.append(SourceSaid(NVML, SourceState.RELEASED, ""))
        else:
            self._events.append(SourceSaid(NVML, SourceState.LIVE, ""))
            self._events.append(self._inventory())
        self._settle(now)
        return True

    def _wanted(self) -> ReportStatus:
        state = self.fold.state
        sample = state.sample
        made = report_status(
            state,
            now=self._clock.wall(),
            samples={device.uuid: device for device in sample.devices} if sample else {},
            node_uid=self._node_uid,
            agent_version=VERSION,
        )
        self._made, self._made_of = made, state
        return made

    def _next_write(self, wanted: ReportStatus, now: float) -> float:
        return due(wanted, self.status, bucket=self._bucket, renew_at=self._renew_at, now=now).at

    def _write(self, wanted: ReportStatus, now: float) -> None:
        kind = due(wanted, self.status, bucket=self._bucket, renew_at=self._renew_at, now=now).write
        try:
            report = self._writer.write(wanted, now=self._clock.wall())
        except ApiError:
            self._failures += 1
            pause = retry_pause(self._failures, urgent=bool(fatal(wanted)))
            self._retry_at = now + pause * self._rng.uniform(0.5, 1)
            return
        self._failures, self._retry_at = 0, -math.inf
        self.writes[kind] += 1
        if kind is Write.CHANGE:
            self._bucket = self._bucket.taken(now)
        interval = min(self._renew_interval, attentive(wanted))
        self._renew_at = now + interval * self._rng.uniform(0.9, 1)
        self.fold.take(Written(self._writer.sequence), now=self._clock.wall(), monotonic=now)
        if report is not None:
            self._take_spec(report.spec)

    def _take_spec(self, spec: ReportSpec) -> None:
        if spec != self.fold.state.orders:
            self.fold.take(spec, now=self._clock.wall(), monotonic=self._clock.monotonic())

    def _look_at(self, now: float) -> float:
        """When time alone may change what the report says."""
        state, wall = self.fold.state, self._clock.wall()
        if any(track.holds is not True or not track.raised for track in state.kubelet.watch.tracks.values()):
            return now + TICK
        looks = [
            now + ((fault.last_seen + DWELL - wall) + timedelta(seconds=TICK)).total_seconds()
            for fault in state.diagnosis.open.values()
            if fault.clears_on == ClearsOn.DWELL and fault.kind not in PLUGIN_FAULTS
        ]
        if self.fold.orders.released(now):
            looks.append(self.fold.orders.release_until)
        return min(looks, default=math.inf)

    def _inventory(self) -> Inventory:
        return Inventory(driver_version=DRIVER, nvml_version=LIBRARY, devices=self._machine.present)

    def _sample(self, now: float) -> Sample:
        return Sample(monotonic_seconds=now, duration_seconds=0.01, devices=self._machine.samples())

    def _holdings(self) -> Holdings:
        listed = self._machine.listed().get(GPU, {})
        healthy = frozenset(one for one, good in listed.items() if good)
        return Holdings(held=self._held(), healthy={GPU: healthy} if healthy else {})
