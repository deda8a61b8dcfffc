"""The node agent's threads: sources into one queue, one thread that folds it, and the outlets that read the state.

Events of a burst are folded together and told once. The folding thread waits for no device, disk or network.
"""

from __future__ import annotations

import contextlib
import logging
import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec.structs

from exporter.access import AccessWatch
from exporter.cadence import Write, fatal
from exporter.dispatch_outlet import DispatchOutlet
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
from exporter.fold import Fold
from exporter.holdings import Holdings
from exporter.memory import Keeper, Memory
from exporter.metrics import Figures, Snapshot, publish_histogram
from exporter.plugin_state import PLUGIN, POD_RESOURCES
from exporter.pods import PODS, PodSeen, PodsListed
from exporter.publish import Publisher
from exporter.report_writer import ReportApi
from exporter.reporting import fresh_samples, report_status
from exporter.samples import Inventory
from exporter.sources.kernel_log import KernelLog
from exporter.sources.kubelet_metrics import KUBELET_METRICS, KubeletMetrics
from exporter.sources.nvml import NvmlSource, Timing
from exporter.sources.plugin import PluginProbe
from exporter.sources.pod_resources import PodResourcesSource
from exporter.sources.pods import PodsSource
from exporter.sources.receipts import RECEIPTS, ReceiptsSource
from exporter.state import KERNEL_LOG, NVML
from health.receipt import RECEIPT_FOLDER
from health.report import ReportSpec, ReportStatus
from health.vocabulary import SourceState
from health.xids import Catalogue
from runtime.clock import Clock, SystemClock
from runtime.kubelet_page import no_page
from runtime.kubelet_rpc import DEVICE_PLUGIN_FOLDER, POD_RESOURCES_SOCKET, PODS_SOCKET
from runtime.kubernetes import Session
from runtime.tracing import Tracer, TracingOff
from runtime.version import VERSION

QUEUE_LIMIT = 4096
"""Events that wait. A source that finds the queue full waits too, and the kernel keeps its lines meanwhile."""

TICK_SECONDS = 0.5

HEARTBEAT_LIMIT = 30.0
"""Seconds without a fold after which the process counts as dead."""

KEEP_DISPATCHES_SECONDS = 1.0
"""At most so often is the state file written for the sake of dispatches alone: pods come several a second."""

RECEIPTS_SECONDS = 1.0
"""How long the start waits for the receipts to be read, which takes a millisecond."""

_BATCH = 512

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the core needs of the configuration; times in seconds."""

    kernel_log: Path
    worker_command: tuple[str, ...]
    kernel_log_since: int = 0
    sample_interval: float = 5.0
    renew_interval: float = 30.0
    drill: bool = False
    pod_resources_socket: Path = POD_RESOURCES_SOCKET
    device_plugin_folder: Path = DEVICE_PLUGIN_FOLDER
    pods_socket: Path = PODS_SOCKET
    receipts: Path = Path(RECEIPT_FOLDER)


class NodeAgent:
    """Sources, state and outlets of one node. One thread calls `start`, `step` and `stop`; any may ask the rest."""

    def __init__(
        self,
        settings: Settings,
        *,
        boot_id: str,
        catalogue: Catalogue,
        memory: Memory | None = None,
        keeper: Keeper | None = None,
        clock: Clock | None = None,
        tracer: Tracer | None = None,
        node: str = "",
        kubelet_page: Callable[[], Session] = no_page,
    ) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._keeper = keeper
        self._kept = memory
        self._kept_at = -KEEP_DISPATCHES_SECONDS
        self._settled_at = -TICK_SECONDS
        self._node_uid = ""
        self._heartbeat = self._clock.monotonic()
        self._fold = Fold(
            boot_id=boot_id,
            catalogue=catalogue,
            memory=memory,
            drill=settings.drill,
            now=self._clock.wall(),
            monotonic=self._heartbeat,
            sample_interval=settings.sample_interval,
        )
        self._queue: queue.Queue[Event] = queue.Queue(QUEUE_LIMIT)
        self._closing = False
        self._generation = 0
        self._releasing = False
        self._access = AccessWatch()
        self._publisher: Publisher | None = None
        self.published = publish_histogram()
        self.tracer = tracer or TracingOff()
        self.dispatch = DispatchOutlet(self.tracer, node=node)
        self.dispatch.restore(memory.dispatches if memory else (), self._clock.wall())
        self._kernel_log = KernelLog(
            settings.kernel_log,
            on_message=self._enqueue,
            on_state=lambda state, message: self._enqueue(SourceSaid(KERNEL_LOG, state, message)),
            on_caught_up=lambda: self._enqueue(CaughtUp()),
            after=self._fold.state.cursor,
            since=settings.kernel_log_since,
            drill=settings.drill,
            clock=self._clock,
        )
        self._nvml = NvmlSource(
            on_inventory=self._enqueue,
            on_sample=self._enqueue,
            on_state=lambda state, message: self._enqueue(SourceSaid(NVML, state, message)),
            command=settings.worker_command,
            timing=Timing(interval=settings.sample_interval),
        )

        self._pod_resources = PodResourcesSource(
            on_holdings=self._enqueue,
            on_state=lambda state, message: self._enqueue(SourceSaid(POD_RESOURCES, state, message)),
            socket=settings.pod_resources_socket,
        )
        self._plugins = PluginProbe(
            on_plugins=lambda plugins: self._enqueue(Probed(plugins)),
            on_state=lambda state, message: self._enqueue(SourceSaid(PLUGIN, state, message)),
            folder=settings.device_plugin_folder,
        )

        self._pods = PodsSource(
            on_pod=self._enqueue,
            on_state=lambda state, message: self._enqueue(SourceSaid(PODS, state, message)),
            socket=settings.pods_socket,
            page=kubelet_page,
            clock=self._clock,
        )
        self._receipts = ReceiptsSource(
            on_receipts=lambda receipts: self._enqueue(ReceiptsRead(receipts)),
            on_state=lambda state, message: self._enqueue(SourceSaid(RECEIPTS, state, message)),
            boot_id=boot_id,
            folder=settings.receipts,
        )
        self.kubelet_metrics = KubeletMetrics(
            page=kubelet_page,
            on_state=lambda state, message: self._enqueue(SourceSaid(KUBELET_METRICS, state, message)),
        )

    def start(self) -> None:
        """Start the sources. A release or drill that was asked for before a restart still holds."""
        self._obey()
        self._believe()
        if self._keeper:
            self._keeper.start()
        self._receipts.start()
        # Resets first, then the log that still tells of what they have healed: such a fault is not even shown.
        self._receipts.wait_looked(RECEIPTS_SECONDS)
        self._kernel_log.start()
        self._nvml.start()
        self._pod_resources.start()
        self._plugins.start()
        self._pods.start()
        self.kubelet_metrics.start()

    def publish_to(self, api: ReportApi, *, node: str, node_uid: str) -> None:
        """Publish the report from now on."""
        self._node_uid = node_uid
        self._publisher = Publisher(
            api,
            node=node,
            node_uid=node_uid,
            on_met=lambda status: self._enqueue(Met(status)),
            on_spec=self._enqueue,
            on_written=self._note_written,
            sequence=self._fold.sequence,
            renew_interval=self._settings.renew_interval,
            clock=self._clock,
        )
        self._publisher.start()

    def step(self, timeout: float = TICK_SECONDS) -> None:
        """Fold what has come in, waiting at most `timeout` seconds for the first of it, and tell all outlets."""
        before = self._fold.state
        events = self._events(timeout)
        now, monotonic = self._clock.wall(), self._clock.monotonic()
        told, failed = self._dispatched(events)
        self._generation += told
        if events and not failed and self._can_wait(events, monotonic):
            return
        self._settled_at = monotonic
        for event in (*events, *failed):
            try:
                self._fold.take(event, now=now, monotonic=monotonic)
            except Exception:
                # The kernel log would say the same again after a restart: one event must not blind the node.
                log.exception("an event could not be taken in", extra={"event": type(event).__name__})
        self._fold.settle(now=now, monotonic=monotonic)
        self._offer()
        self._generation += self._fold.state is not before
        for event in events:
            self._follow_up(event)
        self._obey()
        self._keep()
        failure = self._nvml.failure
        self._access = self._access.seen(
            self._fold.state.sources[NVML].state, failure.error if failure else None, self._nvml.restarts
        )
        self._heartbeat = self._clock.monotonic()

    def stop(self) -> None:
        """End all threads within 3 s; what was folded is kept."""
        self._closing = True
        self._kernel_log.stop(0.5)
        self._nvml.close(1.0)
        self._pod_resources.close(0.3)
        self._plugins.close(0.3)
        self._pods.close(0.3)
        self._receipts.close(0.2)
        self.kubelet_metrics.close(0.1)
        if self._publisher:
            self._publisher.stop(0.5)
        self.step(0)
        if self._keeper:
            self._keeper.stop(0.5)

    @property
    def generation(self) -> int:
        """Changes whenever the state does."""
        return self._generation

    @property
    def access_lost(self) -> bool:
        """Whether this process has lost the devices for good: only a new container gets them back."""
        return self._access.lost

    def status(self) -> ReportStatus:
        """What the report says now, without its sequence."""
        interval = self._settings.sample_interval
        return report_status(
            self._fold.state,
            now=self._clock.wall(),
            samples=fresh_samples(self._fold.state, monotonic=self._clock.monotonic(), interval=interval),
            node_uid=self._node_uid,
            agent_version=VERSION,
        )

    def snapshot(self) -> Snapshot:
        """What a scrape shows now."""
        publisher = self._publisher
        return Snapshot(
            state=self._fold.state,
            monotonic=self._clock.monotonic(),
            interval=self._settings.sample_interval,
            version=VERSION,
            figures=Figures(
                kernel_lines=self._kernel_log.counts,
                kernel_lost=self._kernel_log.lost,
                worker_restarts=self._nvml.restarts,
                report_writes=dict(publisher.writes) if publisher else {},
                report_failures=dict(publisher.failures) if publisher else {},
                report_written=publisher.last_written if publisher else None,
                state_file_failures=self._keeper.failures if self._keeper else 0,
            ),
        )

    def observed(self) -> bool:
        """Whether every source has said what it has, or that it has nothing."""
        return self._fold.observed

    def healthy(self) -> tuple[bool, str]:
        """Whether this process works. The devices, NVML and the API server are no part of that."""
        silent = self._clock.monotonic() - self._heartbeat
        if silent > HEARTBEAT_LIMIT:
            return False, f"nothing was folded for {silent:.0f} s"
        if not self._kernel_log.alive():
            return False, "the kernel log is not followed any more"
        return True, "ok"

    def ready(self) -> tuple[bool, str]:
        """Whether the devices are known, or known not to be there, and the report, if there is one, is written."""
        nvml = self._fold.state.sources[NVML]
        if not self._fold.state.devices and nvml.state in (SourceState.STALE, SourceState.FAILED):
            return False, f"the devices are not known: NVML is {nvml.state}: {nvml.message}"
        if self._publisher and not self._fold.written:
            return False, "the report has not been written yet"
        return True, "ok"

    def _enqueue(self, event: Event) -> None:
        while True:
            with contextlib.suppress(queue.Full):
                self._queue.put(event, timeout=0.2)
                return
            if self._closing:
                return

    def _events(self, timeout: float) -> list[Event]:
        events: list[Event] = []
        with contextlib.suppress(queue.Empty):
            events.append(self._queue.get(block=timeout > 0, timeout=timeout or None))
            while len(events) < _BATCH:
                events.append(self._queue.get_nowait())
        return events

    def _dispatched(self, events: Sequence[Event]) -> tuple[bool, list[AllocationFailed]]:
        """Tell the outlet of dispatches what has happened to pods; whether anything did, and what failed of it."""
        told, failed = False, []
        for event in events:
            if not isinstance(event, PodSeen | PodsListed | Holdings):
                continue
            told = True
            try:
                if isinstance(event, Holdings):
                    self.dispatch.take_holdings(event)
                elif (failure := self.dispatch.take_pod(event)) is not None:
                    failed.append(failure)
            except Exception:
                log.exception("a pod's dispatch could not be told", extra={"event": type(event).__name__})
        if told and self.dispatch.waits_for_devices:
            self._pod_resources.refresh()
        return told, failed

    def _can_wait(self, events: Sequence[Event], monotonic: float) -> bool:
        """Whether all the rest can wait for the next tick: pods change no state, and come in dozens a second."""
        recently = monotonic - self._settled_at < TICK_SECONDS
        only_pods = all(isinstance(event, PodSeen | PodsListed) for event in events)
        return recently and only_pods and not self._closing

    def _follow_up(self, event: Event) -> None:
        """What an event asks for besides being folded. It may take its time: the report is on its way."""
        match event:
            case SourceSaid():
                why = {"why": event.message} if event.message else {}
                level = logging.WARNING if event.state is SourceState.FAILED else logging.INFO
                log.log(level, "source %s is %s", event.name, event.state, extra=why)
            case Inventory():
                log.info("devices", extra={"count": len(event.devices), "driver": event.driver_version})
                for device in event.unidentified:
                    log.error("a device cannot be named", extra={"index": device.index, "why": device.error})
            case ReportSpec():
                self._believe()
            case _:
                pass

    def _believe(self) -> None:
        left = self._fold.orders.drill_until - self._clock.monotonic()
        self._kernel_log.believe_userspace(max(0.0, left))

    def _obey(self) -> None:
        """Hold or release the devices, as the controller wants it at this moment."""
        releasing = self._fold.orders.released(self._clock.monotonic())
        if releasing != self._releasing:
            self._releasing = releasing
            log.info("letting go of the devices" if releasing else "taking the devices again")
            (self._nvml.release if releasing else self._nvml.acquire)()

    def _offer(self) -> None:
        if self._publisher is None:
            return
        status = self.status()
        if not self._fold.merged:
            if fatal(status):
                self._publisher.hurry()
        elif self._fold.written or self._fold.settled(self._clock.monotonic()) or fatal(status):
            self._publisher.offer(status)

    def _keep(self) -> None:
        if self._keeper is None:
            return
        now = self._clock.monotonic()
        told = self.dispatch.remembered
        if now - self._kept_at < KEEP_DISPATCHES_SECONDS and self._kept is not None:
            told = self._kept.dispatches
        memory = msgspec.structs.replace(self._fold.memory(self._node_uid), dispatches=told)
        if memory != self._kept:
            # Whatever is saved, the newest dispatches are saved with it.
            self._kept = msgspec.structs.replace(memory, dispatches=self.dispatch.remembered)
            self._kept_at = now
            self._keeper.offer(self._kept)

    def _note_written(self, sequence: int, write: Write, seconds: float) -> None:
        if write is not Write.RENEWAL:
            self.published.observe(seconds)
        self._enqueue(Written(sequence))
