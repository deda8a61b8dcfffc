"""A node's agent without its threads: the real fold, report and cadence, driven by a clock and written through a store.

The sources' events come from the simulated machine; what becomes of them is the agent's own code. A write that the
store refuses is tried again with the publisher's pauses.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import msgspec
import msgspec.structs

from exporter.cadence import Bucket, Write, attentive, due, fatal
from exporter.events import CaughtUp, Event, Met, Probed, ReceiptsRead, SourceSaid, Written
from exporter.fold import OTHER_SOURCES, Fold
from exporter.holdings import Holding, Holdings
from exporter.publish import FIRST_PAUSE, LONGEST_FATAL_PAUSE, LONGEST_PAUSE
from exporter.report_wire import new_report, status_patch, status_update
from exporter.reporting import report_status
from exporter.samples import Inventory, Sample
from exporter.sources.kernel_intake import KernelMessage
from exporter.state import KERNEL_LOG, NVML, NodeState
from health.diagnose import DWELL
from health.kernel_line import parse
from health.plugin_faults import PLUGIN_FAULTS
from health.report import AcceleratorReport, ReportSpec, ReportStatus
from health.vocabulary import ClearsOn, SourceState
from health.xids import builtin
from runtime.clock import Clock
from runtime.version import VERSION
from simulation.cluster.interface import Store, StoreError
from simulation.fleet_machine import DRIVER, GPU, LIBRARY, Machine

REPORTS = "acceleratorreports.sickbay.dev"
TICK = 1.0
"""Seconds between an agent's looks at what may have become a fault."""

_FOREVER = 1e12
_REFUSED = 404
_CONFLICT = 409

Held = Callable[[], tuple[Holding, ...]]
"""Who holds which device on the node, as its kubelet says."""


class Agent:
    """The agent of one node in one boot. `work` is called when it is due, and after `tell`."""

    def __init__(
        self,
        machine: Machine,
        *,
        store: Store,
        node_uid: str,
        boot_id: str,
        clock: Clock,
        held: Held,
        rng: random.Random,
        renew_interval: float = 30.0,
    ) -> None:
        self._machine = machine
        self._store = store
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
        self.status: ReportStatus | None = None
        """What the report says, as this agent wrote it last."""
        self.writes: dict[Write, int] = dict.fromkeys(Write, 0)
        self._events: deque[Event] = deque()
        self._sequence = 0
        self._exists = False
        self._version = ""
        self._bucket = Bucket()
        self._renew_at = -math.inf
        self._retry_at = -math.inf
        self._failures = 0
        self._due = now
        self._spec: Mapping[str, Any] = {}
        self._made: ReportStatus | None = None
        self._made_of: NodeState | None = None
        self._begin()

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
        try:
            found = self._store.get(REPORTS, machine.name)
        except StoreError:
            self._events.append(Met(None))
            return
        report = msgspec.convert(found, AcceleratorReport)
        self._exists = True
        self._sequence = report.status.sequence
        mine = report.status.node_uid in ("", self._node_uid)
        self._events.append(Met(report.status if mine and report.status != ReportStatus() else None))
        self._take_spec(found.get("spec") or {})

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
        status = msgspec.structs.replace(wanted, sequence=self._sequence + 1, renew_time=self._clock.wall())
        try:
            if not self._exists:
                self._store.create(
                    REPORTS, msgspec.json.decode(new_report(self._machine.name, self._node_uid))
                )
                self._exists = True
            answer = self._put(status)
        except StoreError as error:
            self._refused(error, wanted, now)
            return
        self._version = answer["metadata"]["resourceVersion"]
        self._sequence += 1
        self._failures, self._retry_at = 0, -math.inf
        self.status = wanted
        self.writes[kind] += 1
        if kind is Write.CHANGE:
            self._bucket = self._bucket.taken(now)
        interval = min(self._renew_interval, attentive(wanted))
        self._renew_at = now + interval * self._rng.uniform(0.9, 1)
        self.fold.take(Written(self._sequence), now=self._clock.wall(), monotonic=now)
        self._take_spec(answer.get("spec") or {})

    def _put(self, status: ReportStatus) -> Mapping[str, Any]:
        """Write as `exporter.publish` does: over what we wrote last, or over whatever stands there."""
        name, version, self._version = self._machine.name, self._version, ""
        if version:
            body = msgspec.json.decode(status_update(name, status, resource_version=version))
            try:
                return self._store.update(REPORTS, body, subresource="status")
            except StoreError as error:
                if error.code != _CONFLICT:
                    raise
        patch = msgspec.json.decode(status_patch(status))
        return self._store.patch(REPORTS, name, patch, subresource="status")

    def _refused(self, error: StoreError, wanted: ReportStatus, now: float) -> None:
        if error.code == _REFUSED:
            self._exists, self.status = False, None
        self._failures += 1
        longest = LONGEST_FATAL_PAUSE if fatal(wanted) else LONGEST_PAUSE
        pause = min(longest, FIRST_PAUSE * 2.0 ** min(self._failures - 1, 10))
        self._retry_at = now + pause * self._rng.uniform(0.5, 1)

    def _take_spec(self, spec: Mapping[str, Any]) -> None:
        if spec == self._spec and self._spec:
            return
        self._spec = spec
        taken = msgspec.convert(spec, ReportSpec)
        if taken != self.fold.state.orders:
            self.fold.take(taken, now=self._clock.wall(), monotonic=self._clock.monotonic())

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
