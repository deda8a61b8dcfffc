"""A pod with accelerators as its kubelet shows it, from the Pods API's messages or from the `/pods` page. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from health.accelerators import is_accelerator, uuid_of
from runtime.kubelet_pods import ContainerState, Pod

PODS = "pods"
"""The name of the source."""

ADMISSION_REASONS = frozenset(
    {
        "UnexpectedAdmissionError",
        "TopologyAffinityError",
        "OutOfcpu",
        "OutOfmemory",
        "OutOfpods",
        "OutOfephemeral-storage",
        "NodeAffinity",
        "NodePorts",
        "Evicted",
    }
)
"""Reasons of a rejected pod that are shown by name (pkg/kubelet/lifecycle, cm/topologymanager, eviction)."""

DEVICE_REASON = "UnexpectedAdmissionError"
"""The kubelet's reason where the device plugin, or its own table of devices, gave none (pkg/kubelet/lifecycle)."""

_ARRIVED = "kubernetes.io/config.seen"
"""When the kubelet got the pod from its source, in nanoseconds; written by it alone (pkg/kubelet/config/config.go)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSeen:
    """One look at one pod. Times of the API have whole seconds, cut; `at` is when we saw it.

    `resource` is its accelerator's name, `devices` those that it was given where the pod itself says so (KEP-4680).
    `listed`: it was there when a watch, or polling, began. `polled`: somebody looked; it is not said when it changed.
    `arrived` is when the kubelet got it, to the microsecond. `admitted` is the pod's startTime, which a pod that is
    rejected has too. `running` and `ready` are when all its containers had started and the pod became Ready.
    `began`: its containers have a status, so the kubelet did not reject it.
    """

    uid: str
    namespace: str
    name: str
    resource: str
    created: datetime
    at: datetime
    scheduled: datetime | None = None
    arrived: datetime | None = None
    admitted: datetime | None = None
    running: datetime | None = None
    ready: datetime | None = None
    phase: str = ""
    reason: str = ""
    devices: tuple[str, ...] = ()
    began: bool = False
    restarted: bool = False
    deleted: bool = False
    listed: bool = False
    polled: bool = False

    @property
    def ended(self) -> bool:
        """Whether its containers have ended for good, or will never start."""
        return self.phase in ("Failed", "Succeeded")

    @property
    def rejected(self) -> bool:
        """Whether the kubelet did not admit it."""
        return self.phase == "Failed" and not self.began

    @property
    def live(self) -> bool:
        """Whether `at` is when the pod changed."""
        return not (self.listed or self.polled)


@dataclass(frozen=True, slots=True)
class PodsListed:
    """The pods that there are, by UID. `gap`: nobody looked before, so what became of the others is not known.

    A kubelet that has just started shows no pod for a moment.
    """

    uids: frozenset[str]
    at: datetime
    gap: bool = True


def seen(pod: Pod, *, at: datetime, deleted: bool = False, listed: bool = False) -> PodSeen | None:
    """A pod of the Pods API; None for one without an accelerator."""
    resource = resource_of(
        name
        for container in (*pod.spec.containers, *pod.spec.init_containers)
        for quantities in (container.resources.limits, container.resources.requests)
        for name, quantity in quantities.items()
        if quantity.text.strip("0")
    )
    if not resource and not deleted:
        return None
    conditions = {one.type: one for one in pod.status.conditions}
    statuses = pod.status.container_statuses
    started = [_started(one.state) for one in statuses]
    return PodSeen(
        uid=pod.metadata.uid,
        namespace=pod.metadata.namespace,
        name=pod.metadata.name,
        resource=resource,
        created=_time(pod.metadata.creation_timestamp) or at,
        at=at,
        scheduled=_since(conditions.get("PodScheduled")),
        arrived=_parsed(pod.metadata.annotations.get(_ARRIVED)),
        admitted=_time(pod.status.start_time) if pod.status.HasField("start_time") else None,
        running=_latest(started, of=len(pod.spec.containers)),
        ready=_since(conditions.get("Ready")),
        phase=pod.status.phase,
        reason=pod.status.reason,
        devices=_devices(
            (given.name, (one.resource_id for one in given.resources))
            for status in statuses
            for given in status.allocated_resources_status
        ),
        began=bool(statuses),
        restarted=any(one.restart_count for one in statuses),
        deleted=deleted,
        listed=listed,
    )


def resource_of(names: Iterable[str]) -> str:
    """The accelerator among the resources, the first by name; empty where there is none."""
    return min((name for name in names if is_accelerator(name)), default="")


def rejection_reason(pod: PodSeen) -> str:
    """Why it was rejected, as one of a bounded set of words."""
    known = pod.reason in ADMISSION_REASONS or pod.reason == f"OutOf{pod.resource}"
    return pod.reason if known else "other"


def from_page(item: Mapping[str, object], *, at: datetime, listed: bool) -> PodSeen | None:
    """A pod of the kubelet's `/pods` page (`core/v1` PodList as JSON); None for one without an accelerator.

    Raises KeyError, TypeError, ValueError and AttributeError for what is not a pod.
    """
    metadata, spec, status = (dict(item[key]) for key in ("metadata", "spec", "status"))  # type: ignore[call-overload]
    containers = [*spec.get("containers", []), *spec.get("initContainers", [])]
    resource = resource_of(
        name
        for container in containers
        for quantities in container.get("resources", {}).values()
        if isinstance(quantities, dict)
        for name, quantity in quantities.items()
        if str(quantity).strip("0")
    )
    if not resource:
        return None
    conditions = {one["type"]: one for one in status.get("conditions", [])}
    statuses = status.get("containerStatuses", [])
    started = [_started_on_page(one.get("state", {})) for one in statuses]
    return PodSeen(
        uid=metadata["uid"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        resource=resource,
        created=_parsed(metadata.get("creationTimestamp")) or at,
        at=at,
        scheduled=_transition(conditions.get("PodScheduled")),
        arrived=_parsed(metadata.get("annotations", {}).get(_ARRIVED)),
        admitted=_parsed(status.get("startTime")),
        running=_latest(started, of=len(spec["containers"])),
        ready=_transition(conditions.get("Ready")),
        phase=status.get("phase", ""),
        reason=status.get("reason", ""),
        devices=_devices(
            (given["name"], (one["resourceID"] for one in given.get("resources", [])))
            for one in statuses
            for given in one.get("allocatedResourcesStatus", [])
        ),
        began=bool(statuses),
        restarted=any(one.get("restartCount", 0) for one in statuses),
        listed=listed,
        polled=True,
    )


def _devices(given: Iterable[tuple[str, Iterable[str]]]) -> tuple[str, ...]:
    """The devices' own names."""
    return tuple(sorted({uuid_of(one) for name, ids in given if is_accelerator(name) for one in ids}))


def _latest(started: Iterable[datetime | None], *, of: int) -> datetime | None:
    """When the last of so many containers started; None while one has not."""
    moments = [moment for moment in started if moment is not None]
    return max(moments) if moments and len(moments) == of else None


def _started(state: ContainerState) -> datetime | None:
    return _time(state.running.started_at) or _time(state.terminated.started_at)


def _started_on_page(state: Mapping[str, Mapping[str, str]]) -> datetime | None:
    return _parsed((state.get("running") or state.get("terminated") or {}).get("startedAt"))


def _time(time: object) -> datetime | None:
    seconds = getattr(time, "seconds", 0)
    try:
        return datetime.fromtimestamp(seconds, UTC) if seconds else None
    except (OverflowError, OSError, ValueError):
        return None


def _since(condition: object) -> datetime | None:
    if condition is None or getattr(condition, "status", "") != "True":
        return None
    return _time(getattr(condition, "last_transition_time", None))


def _transition(condition: Mapping[str, str] | None) -> datetime | None:
    if condition is None or condition.get("status") != "True":
        return None
    return _parsed(condition.get("lastTransitionTime"))


def _parsed(text: str | None) -> datetime | None:
    """A time of RFC 3339 in UTC; None for what is none, or has no zone."""
    try:
        time = datetime.fromisoformat(text) if text else None
        return time.astimezone(UTC) if time is not None and time.tzinfo else None
    except (OverflowError, ValueError):
        return None
