"""The outlet for dispatches: histograms as stages end, and one trace for each pod once it is over."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from prometheus_client import Counter, Histogram

from exporter.dispatch import STAGES, TOLD_AGAIN, Dispatches, Outcome, Told
from exporter.dispatch_trace import Dispatched, spans_of
from exporter.events import AllocationFailed
from exporter.holdings import Holdings
from exporter.pods import DEVICE_REASON, PodSeen, PodsListed, rejection_reason
from health.accelerators import is_accelerator
from runtime.tracing import Tracer

BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800),
)
"""Seconds: an allocation takes milliseconds, a start behind a large image half an hour."""

TOTAL = "total"

REMEMBERED = 256
"""Dispatches that are told again after a restart."""

RESOURCES = 32
"""Resources that get series of their own; whoever may create pods can make up MIG profiles. The others are `other`."""


class DispatchOutlet:
    """Used by the folding thread; its metrics may be read by any."""

    def __init__(self, tracer: Tracer, *, node: str) -> None:
        self._tracer = tracer
        self._node = node
        self._dispatches = Dispatches()
        self.remembered: tuple[Dispatched, ...] = ()
        """The last dispatches that are over, as they were told."""
        self._held: dict[tuple[str, str], tuple[str, ...]] = {}
        self._resources: set[str] = set()
        self.stages = Histogram(
            "accelerator_dispatch_stage_duration_seconds",
            "From one moment of an accelerator pod's dispatch to the next: scheduled (from its creation to its "
            "binding, two times of the control plane that are cut to the second, so right on average only), admitted "
            "(from then, as the kubelet saw it, until it has given the pod its devices), running, ready; total is all "
            "of them. Pods that were not seen to come are not measured.",
            ["stage", "resource"],
            buckets=BUCKETS,
            registry=None,
        )
        self.allocation = Histogram(
            "accelerator_allocation_duration_seconds",
            "From the moment the kubelet gets a pod that is bound to its node until it has given it its devices. "
            "Where the kubelet has no Pods API (before 1.37) from two times that are cut to the second.",
            ["resource"],
            buckets=BUCKETS,
            registry=None,
        )
        self.failures = Counter(
            "accelerator_allocation_failures",
            "Accelerator pods that the kubelet rejected when they came, by its reason.",
            ["resource", "reason"],
            registry=None,
        )
        self.dispatches = Counter(
            "accelerator_dispatches",
            "Dispatches of accelerator pods that were seen to come, by how they ended: Ready, Rejected by the kubelet, "
            "Failed or Deleted on the way, Ended (succeeded before it was seen to be ready).",
            ["resource", "outcome"],
            registry=None,
        )

    @property
    def collectors(self) -> Sequence[tuple[str, Histogram | Counter]]:
        """The metrics, by the names that the registry knows them by."""
        return (
            ("dispatch stages", self.stages),
            ("allocation", self.allocation),
            ("allocation failures", self.failures),
            ("dispatches", self.dispatches),
        )

    @property
    def waits_for_devices(self) -> bool:
        """Whether a pod on its way has no devices that we know of: the sooner the kubelet is asked, the better."""
        return any(
            not one.pod.devices and (one.pod.namespace, one.pod.name) not in self._held
            for one in self._dispatches.under_way.values()
        )

    def take_pod(self, pod: PodSeen | PodsListed) -> AllocationFailed | None:
        """A look at a pod; a failed allocation where this is one."""
        if isinstance(pod, PodsListed):
            self._dispatches, vanished = self._dispatches.with_list(pod)
            for one in vanished:
                self._tell(one)
            return None
        self._dispatches, told = self._dispatches.with_pod(pod)
        if told is None:
            return None
        self._tell(told)
        if told.outcome is not Outcome.REJECTED or pod.reason != DEVICE_REASON:
            return None
        return AllocationFailed(pod.resource, f"{pod.namespace}/{pod.name}", pod.at)

    def take_holdings(self, holdings: Holdings) -> None:
        """Who holds what has changed, or what there is to hold."""
        held: dict[tuple[str, str], list[str]] = {}
        for one in holdings.held:
            held.setdefault((one.namespace, one.pod), []).append(one.uuid)
        self._held = {pod: tuple(sorted(uuids)) for pod, uuids in held.items()}
        for resource in holdings.healthy:
            if is_accelerator(resource):
                self._label(resource)

    def restore(self, remembered: Iterable[Dispatched], now: datetime) -> None:
        """What an earlier process has told or was about to: it is told again, the same, and not measured again."""
        self.remembered = tuple(remembered)[-REMEMBERED:]
        self._dispatches = Dispatches(over=frozenset(one.uid for one in self.remembered))
        for one in self.remembered:
            if now - one.ended <= TOLD_AGAIN:
                self._emit(one)

    def _tell(self, told: Told) -> None:
        pod, outcome = told.progress.pod, told.outcome
        if told.progress.measured:
            self._measure(told)
        if outcome is None:
            return
        devices = pod.devices or self._held.get((pod.namespace, pod.name), ())
        over = Dispatched.of(told.progress, outcome, devices)
        self.remembered = (*self.remembered, over)[-REMEMBERED:]
        self._emit(over)

    def _measure(self, told: Told) -> None:
        pod = told.progress.pod
        resource = self._label(pod.resource)
        for stage in told.stages:
            self.stages.labels(stage.name, resource).observe(stage.seconds)
            if stage.name == "admitted":
                self.allocation.labels(resource).observe(stage.seconds)
        if told.outcome is None:
            return
        self.dispatches.labels(resource, told.outcome).inc()
        if told.outcome is Outcome.REJECTED:
            self.failures.labels(resource, rejection_reason(pod)).inc()
        elif told.outcome is Outcome.READY:
            self.stages.labels(TOTAL, resource).observe(sum(stage.seconds for stage in told.progress.stages))

    def _label(self, resource: str) -> str:
        """The resource as a label. Its series are there from then on: `increase()` does not see the first event of
        one that is born with it."""
        if resource not in self._resources:
            if len(self._resources) >= RESOURCES:
                return "other"
            self._resources.add(resource)
            for stage in (*STAGES, TOTAL):
                self.stages.labels(stage, resource)
            self.allocation.labels(resource)
            self.failures.labels(resource, DEVICE_REASON)
            for outcome in Outcome:
                self.dispatches.labels(resource, outcome)
        return resource

    def _emit(self, over: Dispatched) -> None:
        if self._tracer.enabled:
            for span in spans_of(over, node=self._node):
                self._tracer.emit(span)
