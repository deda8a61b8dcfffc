"""The outlet for dispatches: histograms as stages end, and one trace for each pod once it is over."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from prometheus_client import Counter, Histogram

from exporter.dispatch import TOLD_AGAIN, Dispatches, Told
from exporter.dispatch_trace import Dispatched, spans_of
from exporter.events import AllocationFailed
from exporter.holdings import Holdings
from exporter.pods import PodSeen, PodsListed, failure_reason
from runtime.tracing import Tracer

BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800),
)
"""Seconds: an allocation takes milliseconds, a start behind a large image half an hour."""

REMEMBERED = 256
"""Dispatches that are told again after a restart."""


class DispatchOutlet:
    """Used by the folding thread; its metrics may be read by any."""

    def __init__(self, tracer: Tracer, *, node: str) -> None:
        self._tracer = tracer
        self._node = node
        self._dispatches = Dispatches()
        self.remembered: tuple[Dispatched, ...] = ()
        """The last dispatches that are over, as they were told."""
        self._held: dict[tuple[str, str], tuple[str, ...]] = {}
        self.stages = Histogram(
            "accelerator_dispatch_stage_duration_seconds",
            "From one moment of an accelerator pod's dispatch to the next: scheduled (from its creation, which is "
            "known to the second), admitted (the kubelet has given it devices), running, ready; total is all of them.",
            ["stage", "resource"],
            buckets=BUCKETS,
            registry=None,
        )
        self.allocation = Histogram(
            "accelerator_allocation_duration_seconds",
            "From the moment a pod is bound to this node until the kubelet has given it its devices.",
            ["resource"],
            buckets=BUCKETS,
            registry=None,
        )
        self.failures = Counter(
            "accelerator_allocation_failures",
            "Accelerator pods that failed before they were ready, by the kubelet's reason.",
            ["resource", "reason"],
            registry=None,
        )

    @property
    def waits_for_devices(self) -> bool:
        """Whether a pod on its way has no devices that we know of: the sooner the kubelet is asked, the better."""
        return any(pod not in self._held for pod in self._dispatches.names)

    def take_pod(self, pod: PodSeen | PodsListed) -> AllocationFailed | None:
        """A look at a pod; a failed allocation where this is one."""
        if isinstance(pod, PodsListed):
            self._dispatches = self._dispatches.with_list(pod)
            return None
        self._dispatches, told = self._dispatches.with_pod(pod)
        if told is None:
            return None
        self._tell(told)
        refused = told.over and pod.refused and told.progress.measured
        return AllocationFailed(pod.resource, f"{pod.namespace}/{pod.name}", pod.at) if refused else None

    def take_holdings(self, holdings: Holdings, at: datetime) -> None:
        """Who holds what has changed."""
        held: dict[tuple[str, str], list[str]] = {}
        for one in holdings.held:
            held.setdefault((one.namespace, one.pod), []).append(one.uuid)
        before, self._held = self._held, {pod: tuple(sorted(uuids)) for pod, uuids in held.items()}
        # What was held before a pod was first seen may be of an earlier pod of its name (StatefulSets).
        for namespace, name in self._held.keys() - before.keys():
            self._dispatches, told = self._dispatches.with_devices(namespace, name, at)
            if told is not None:
                self._tell(told)

    def _tell(self, told: Told) -> None:
        pod = told.progress.pod
        for stage in told.stages:
            self.stages.labels(stage.name, pod.resource).observe(stage.seconds)
            if stage.name == "admitted":
                self.allocation.labels(pod.resource).observe(stage.seconds)
        if not told.over:
            return
        if told.progress.measured and told.failure and told.failure != "Deleted":
            self.failures.labels(pod.resource, failure_reason(pod)).inc()
        elif told.progress.measured and not told.failure:
            total = sum(stage.seconds for stage in told.progress.stages)
            self.stages.labels("total", pod.resource).observe(total)
        over = Dispatched.of(told.progress, told.failure, self._held.get((pod.namespace, pod.name), ()))
        self.remembered = (*self.remembered, over)[-REMEMBERED:]
        self._emit(over)

    def restore(self, remembered: Iterable[Dispatched], now: datetime) -> None:
        """What an earlier process has told or was about to: it is told again, the same, and not measured again."""
        recent = tuple(one for one in remembered if now - one.ended <= TOLD_AGAIN)
        self._dispatches = Dispatches(over=frozenset(one.uid for one in recent))
        self.remembered = recent[-REMEMBERED:]
        for one in self.remembered:
            self._emit(one)

    def _emit(self, over: Dispatched) -> None:
        if self._tracer.enabled:
            for span in spans_of(over, node=self._node):
                self._tracer.emit(span)
