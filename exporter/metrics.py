"""Metrics of one immutable snapshot. A scrape asks no device; what is not known now is no series."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from prometheus_client import Histogram, ProcessCollector
from prometheus_client.core import Metric

from exporter import families
from exporter.families import Family, MetricFamily
from exporter.holdings import Holdings
from exporter.plugin_state import PLUGIN, POD_RESOURCES, is_live
from exporter.reporting import device_access, device_health, fresh_samples
from exporter.samples import GPU_IS_LOST, DeviceIdentity, DeviceSample
from exporter.sources.plugin_target import PluginState
from exporter.state import NVML, OTHER_CODE, NodeState
from health.vocabulary import DeviceAccess, DeviceHealth, Severity, SourceState
from health.xids import Catalogue
from runtime.exposition import Registry

ALSO_WATCHED = (63, 74, 94, 154)
"""Xids whose counters are there from the start, besides those that the catalogue calls Fatal: `increase()` does
not see the first event of a counter that is born with it."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What the agent counts of itself."""

    kernel_lines: Mapping[str, int] = field(default_factory=dict)
    kernel_lost: int = 0
    worker_restarts: int = 0
    report_writes: Mapping[str, int] = field(default_factory=dict)
    report_failures: Mapping[str, int] = field(default_factory=dict)
    report_written: datetime | None = None
    state_file_failures: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a scrape shows: the node's state at `monotonic` seconds, sampled every `interval` seconds."""

    state: NodeState
    monotonic: float
    interval: float
    version: str
    figures: Figures = Figures()


class _Collector(Protocol):
    def collect(self) -> Iterable[Metric]:
        """The families with their samples."""

    def describe(self) -> Iterable[Metric]:
        """The families without."""


class DeviceCollector:
    """`accelerator_*`."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        return [family.new() for family in families.OF_DEVICES]

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot()
        state = snapshot.state
        samples = fresh_samples(state, monotonic=snapshot.monotonic, interval=snapshot.interval)
        present = [device for device in state.devices if not _lost(samples.get(device.uuid))]
        yield from _readings(present, samples)
        yield _info(present, state)
        yield _health(present, state, samples)
        yield _faults(state)
        yield from _xids(state)
        yield _filled(
            families.SXID_ERRORS,
            [((address, _code(code)), counter.count) for (address, code), counter in state.sxids.items()],
        )
        yield from _kubelet(state)


class AgentCollector:
    """`sickbay_*`."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        return [family.new() for family in families.OF_AGENT]

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot()
        state, figures = snapshot.state, snapshot.figures
        yield _filled(families.BUILD_INFO, [((snapshot.version,), 1)])
        yield _filled(
            families.SOURCE_STATE,
            [
                ((source.name, possible.value), float(source.state is possible))
                for source in state.sources.values()
                for possible in SourceState
            ],
        )
        if state.sampled_at is not None:
            yield _filled(families.SOURCE_LAST_SUCCESS, [((NVML,), state.sampled_at.timestamp())])
        if state.sample is not None:
            yield _filled(families.SOURCE_DURATION, [((NVML,), state.sample.duration_seconds)])
        yield _filled(families.WORKER_RESTARTS, [((), figures.worker_restarts)])
        yield _filled(families.KERNEL_LOG_LINES, _by_label(figures.kernel_lines))
        yield _filled(families.KERNEL_LOG_LOST, [((), figures.kernel_lost)])
        yield _filled(families.REPORT_WRITES, _by_label(figures.report_writes))
        yield _filled(families.REPORT_FAILURES, _by_label(figures.report_failures))
        if figures.report_written is not None:
            yield _filled(families.REPORT_LAST_WRITE, [((), figures.report_written.timestamp())])
        yield _filled(families.STATE_FILE_FAILURES, [((), figures.state_file_failures)])
        held = device_access(state) is DeviceAccess.HELD
        yield _filled(families.DEVICE_ACCESS, [((), float(held))])
        yield _filled(families.DRILL, [((), float(state.drill))])


class _Process:
    """prometheus_client's process metrics, which do not describe themselves."""

    def __init__(self) -> None:
        self._collector = ProcessCollector(registry=None)

    def describe(self) -> Iterable[Metric]:
        return self.collect()

    def collect(self) -> Iterable[Metric]:
        return self._collector.collect()


def publish_histogram() -> Histogram:
    """From a change in the node's state to the API server's answer, without renewals."""
    return Histogram(
        "sickbay_report_publish_duration_seconds",
        "From a change in the node's state to the API server's answer to the write that says it.",
        buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
        registry=None,
    )


def registry(
    snapshot: Callable[[], Snapshot], published: Histogram, others: Iterable[tuple[str, _Collector]] = ()
) -> Registry:
    """All metrics of the agent; `others` are the collectors that its other outlets keep, by name."""
    collectors: Sequence[tuple[str, _Collector]] = (
        ("devices", DeviceCollector(snapshot)),
        ("agent", AgentCollector(snapshot)),
        ("publisher", published),
        ("process", _Process()),
        *others,
    )
    everything = Registry()
    for name, collector in collectors:
        everything.register(collector, name=name)
    return everything


def watched_xids(catalogue: Catalogue) -> tuple[int, ...]:
    """Codes whose counters are there from the start."""
    fatal = {entry.code for entry in catalogue if entry.severity is Severity.FATAL}
    return tuple(sorted(fatal | set(ALSO_WATCHED)))


def _lost(sample: DeviceSample | None) -> bool:
    return sample is not None and sample.error == GPU_IS_LOST


def _readings(
    devices: Sequence[DeviceIdentity], samples: Mapping[str, DeviceSample]
) -> Iterator[MetricFamily]:
    for reading in families.READINGS:
        family = reading.family.new()
        for device in devices:
            if (sample := samples.get(device.uuid)) is None:
                continue
            for label, attribute in reading.attributes.items():
                if (value := getattr(sample, attribute)) is not None:
                    family.add_metric([*_labels(device), *([label] if label else [])], float(value))
        yield family


def _info(devices: Sequence[DeviceIdentity], state: NodeState) -> MetricFamily:
    return _filled(
        families.INFO,
        [
            (
                (
                    *_labels(device),
                    "nvidia",
                    device.model or "",
                    device.serial or "",
                    device.pci_address or "",
                    device.vbios or "",
                    state.driver_version,
                ),
                1,
            )
            for device in devices
        ],
    )


def _health(
    devices: Sequence[DeviceIdentity], state: NodeState, samples: Mapping[str, DeviceSample]
) -> MetricFamily:
    healths = [(device, device_health(state, device.uuid, samples)) for device in devices]
    return _filled(
        families.HEALTH_STATE,
        [
            ((*_labels(device), possible.value), float(health is possible))
            for device, health in healths
            for possible in DeviceHealth
        ],
    )


def _faults(state: NodeState) -> MetricFamily:
    indexes = {device.uuid: str(device.index) for device in state.devices}
    return _filled(
        families.FAULT_ACTIVE,
        [
            ((fault.device_uuid, indexes.get(fault.device_uuid, ""), fault.kind, fault.severity.value), 1)
            for fault in state.diagnosis.faults
        ],
    )


def _xids(state: NodeState) -> Iterator[MetricFamily]:
    indexes = {device.uuid: str(device.index) for device in state.devices}
    counts: dict[tuple[str, str, str], float] = {
        (device.uuid, str(device.index), str(code)): 0
        for device in state.devices
        for code in watched_xids(state.catalogue)
    }
    times: dict[tuple[str, str, str], float] = {}
    for (address, code), counter in state.xids.items():
        uuid = state.addresses.get(address, "")
        key = (uuid, indexes.get(uuid, address), _code(code))
        counts[key] = counts.get(key, 0) + counter.count
        times[key] = max(times.get(key, 0), counter.last.timestamp())
    yield _filled(families.XID_ERRORS, counts.items())
    yield _filled(families.XID_LAST, times.items())


def _kubelet(state: NodeState) -> Iterator[MetricFamily]:
    """Who holds what, and what device plugins do. While the kubelet does not answer its last word is not shown."""
    indexes = {device.uuid: str(device.index) for device in state.devices}
    holdings = state.kubelet.holdings if is_live(state.sources, POD_RESOURCES) else Holdings()
    plugins = state.kubelet.plugins if is_live(state.sources, PLUGIN) else ()
    # A device that is shared has several IDs, of which one container may hold two: that is one series.
    held = dict.fromkeys(
        (one.uuid, one.namespace, one.pod, one.container, one.resource) for one in holdings.held
    )
    yield _filled(
        families.ALLOCATION_INFO,
        [((uuid, indexes.get(uuid, ""), "", *workload), 1) for uuid, *workload in held],
    )
    yield _filled(families.DEVICES, _device_counts(holdings).items())
    yield _filled(
        families.PLUGIN_STATE,
        [
            ((plugin.resource, plugin.socket, possible.value), float(plugin.state is possible))
            for plugin in plugins
            for possible in PluginState
        ],
    )


def _device_counts(holdings: Holdings) -> Mapping[tuple[str, str], int]:
    """Devices by resource and state, where each resource that anybody has has all states."""
    held: dict[str, set[str]] = {}
    for one in holdings.held:
        held.setdefault(one.resource, set()).add(one.device_id)
    counts: dict[tuple[str, str], int] = {}
    for name in sorted(held.keys() | holdings.healthy.keys()):
        taken, healthy = held.get(name, set()), holdings.healthy.get(name, frozenset())
        counts[name, "allocatable"] = len(healthy)
        counts[name, "allocated"] = len(taken)
        counts[name, "free"] = len(healthy - taken)
        counts[name, "unhealthy"] = len(taken - healthy)
    return counts


def _filled(family: Family, samples: Iterable[tuple[Sequence[str], float]]) -> MetricFamily:
    filled = family.new()
    for labels, value in samples:
        filled.add_metric(labels, value)
    return filled


def _labels(device: DeviceIdentity) -> tuple[str, str, str]:
    return (device.uuid, str(device.index), "")


def _code(code: int) -> str:
    return "other" if code == OTHER_CODE else str(code)


def _by_label(counts: Mapping[str, int]) -> list[tuple[tuple[str], float]]:
    return [((label,), count) for label, count in counts.items()]
