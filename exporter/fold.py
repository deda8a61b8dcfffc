"""The fold: events in, one state out, and how far the sources and the report have come. No I/O, no clock."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime, timedelta

from exporter.events import (
    AllocationFailed,
    CaughtUp,
    Event,
    Met,
    Probed,
    ReceiptsRead,
    SourceSaid,
    Written,
)
from exporter.holdings import Holdings
from exporter.memory import Memory, recalled, remembered, with_own_report
from exporter.orders import orders
from exporter.plugin_state import PLUGIN, POD_RESOURCES
from exporter.pods import PODS
from exporter.reporting import fresh_samples, sound_devices
from exporter.samples import Inventory, Sample
from exporter.sources.kernel_intake import KernelMessage
from exporter.sources.kubelet_metrics import KUBELET_METRICS
from exporter.sources.receipts import RECEIPTS
from exporter.state import KERNEL_LOG, NVML, NodeState
from health.report import ReportSpec
from health.vocabulary import SourceState
from health.xids import Catalogue

SETTLING_SECONDS = 5.0
"""How long the first report waits for the sources to say something. A Fatal fault does not wait."""

KUBELET_SOURCES = (PLUGIN, POD_RESOURCES, PODS, KUBELET_METRICS)
OTHER_SOURCES = (*KUBELET_SOURCES, RECEIPTS)

_STARTING = "starting"

log = logging.getLogger(__name__)


class Fold:
    """Used by one thread; `state` is immutable and may be read by any. `monotonic` is in seconds."""

    def __init__(
        self,
        *,
        boot_id: str,
        catalogue: Catalogue,
        memory: Memory | None,
        drill: bool,
        now: datetime,
        monotonic: float,
        sample_interval: float = 5.0,
    ) -> None:
        self._sample_interval = sample_interval
        state = NodeState(boot_id=boot_id, catalogue=catalogue, drill=drill)
        for source in (KERNEL_LOG, NVML, *OTHER_SOURCES):
            state = state.with_source(source, SourceState.STALE, _STARTING)
        self.state = recalled(memory, state, now) if memory else state
        self.orders = orders(self.state.orders, wall=now, monotonic=monotonic)
        self.sequence = memory.sequence if memory else 0
        """The report's newest sequence number."""
        self.written = False
        """The report was written by this process."""
        self.merged = False
        """This node's own report is known, and what it says is in the state."""
        self._own = memory.met if memory else False
        self._drill = drill
        self._started = monotonic
        self._caught_up = False
        self._replayed = False
        """All that the kernel log had at the start is in the state, without what resets have healed."""
        self._met: Met | None = None
        self._heard: set[str] = set()
        """Which of the plugin probe and the pod resources have told what they see."""

    @property
    def observed(self) -> bool:
        """Whether every source has said what it has, or that it has nothing."""
        nvml, kernel_log = self.state.sources[NVML], self.state.sources[KERNEL_LOG]
        sampled = self.state.sample is not None or nvml.state not in (SourceState.LIVE, SourceState.STALE)
        return (
            sampled
            and (self._caught_up or kernel_log.state is SourceState.FAILED)
            and all(self._has_told(name) for name in OTHER_SOURCES)
        )

    def _has_told(self, name: str) -> bool:
        source = self.state.sources[name]
        awaited = (
            source.state is SourceState.LIVE and name in (PLUGIN, POD_RESOURCES) and name not in self._heard
        )
        return source.message != _STARTING and not awaited

    def settled(self, monotonic: float) -> bool:
        """Whether the sources have begun to speak, or had the time to."""
        spoken = all(source.message != _STARTING for source in self.state.sources.values())
        return spoken or monotonic - self._started > SETTLING_SECONDS

    def take(self, event: Event, *, now: datetime, monotonic: float) -> None:
        """Take in one event."""
        match event:
            case KernelMessage():
                self.state = self.state.with_message(self._dated(event, now, monotonic))
            case Sample():
                self.state = self.state.with_sample(event, now)
            case Inventory():
                self.state = self.state.with_inventory(event, now)
            case SourceSaid():
                self.state = self.state.with_source(event.name, event.state, event.message)
            case Probed():
                self._heard.add(PLUGIN)
                self.state = replace(self.state, kubelet=replace(self.state.kubelet, plugins=event.plugins))
            case Holdings():
                self._heard.add(POD_RESOURCES)
                self.state = replace(self.state, kubelet=replace(self.state.kubelet, holdings=event))
            case ReceiptsRead():
                self.state = self.state.with_receipts(event.receipts, now)
            case AllocationFailed():
                ago = max(0.0, (now - event.time).total_seconds()) if event.time else 0.0
                failed = self.state.kubelet.with_failure(event.resource, monotonic - ago)
                self.state = replace(self.state, kubelet=failed)
            case CaughtUp():
                self._caught_up = True
            case Met():
                self._met = event
            case Written():
                self.sequence = event.sequence
                self.written = True
            case ReportSpec():
                self.state = replace(self.state, orders=event)
                self.orders = orders(event, wall=now, monotonic=monotonic)

    def settle(self, *, now: datetime, monotonic: float) -> None:
        """Let time pass: end what has cleared, begin and end drills, take up the own report when it is time."""
        drill = self._drill or self.orders.drilling(monotonic)
        if drill != self.state.drill:
            log.warning("drill: kernel lines of userspace are believed" if drill else "the drill is over")
            self.state = replace(self.state, drill=drill)
        if not self._replayed:
            # The log tells of all of this boot, also of what a reset has healed since.
            self.state = self.state.after_resets()
            self._replayed = self._caught_up
        self._take_up_report(now, monotonic)
        self.state = self._with_plugin_faults(self.state.at(now), now, monotonic)

    def _dated(self, message: KernelMessage, now: datetime, monotonic: float) -> KernelMessage:
        """A line that was not replayed was written just before it was read.

        The kernel's own time of it lags by seconds after some weeks, since no NTP disciplines that clock
        (kernel/printk/printk.c, local_clock), and a fault that is new would seem older than a reset.
        """
        if not self._caught_up:
            return message
        received = now - timedelta(seconds=monotonic - message.received)
        return replace(message, time=max(message.time, received))

    def _with_plugin_faults(self, state: NodeState, now: datetime, monotonic: float) -> NodeState:
        samples = fresh_samples(state, monotonic=monotonic, interval=self._sample_interval)
        kubelet, diagnosis = state.kubelet.diagnosed(
            state.diagnosis,
            state.sources,
            frozenset(device.uuid for device in state.devices),
            sound_devices(state, samples),
            now=monotonic,
            wall=now,
            boot_id=state.boot_id,
        )
        if kubelet is state.kubelet and diagnosis is state.diagnosis:
            return state
        return replace(state, kubelet=kubelet, diagnosis=diagnosis)

    def memory(self, node_uid: str) -> Memory:
        """What is to outlive this process."""
        return remembered(self.state, node_uid=node_uid, sequence=self.sequence, met=self._own)

    def _take_up_report(self, now: datetime, monotonic: float) -> None:
        """Take up what this node's last report says, unless the state file has it already.

        Not before the kernel log has been replayed: only then is it known which of the report's faults the log
        raises by itself, so that none is counted twice.
        """
        if self.merged or self._met is None or not (self._caught_up or self.settled(monotonic)):
            return
        self.merged = True
        if not self._own and self._met.status is not None:
            self.state = with_own_report(self._met.status, self.state, now)
            log.info("the last report was taken up", extra={"faults": len(self._met.status.faults)})
        self._own = True
