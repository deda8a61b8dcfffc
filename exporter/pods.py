"""A pod with accelerators as its kubelet shows it, from the Pods API's messages or from the `/pods` page. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from health.accelerators import is_accelerator
from runtime.kubelet_pods import Pod

PODS = "pods"
"""The name of the source."""

ADMISSION_REASONS = frozenset(
    {
        "UnexpectedAdmissionError",
        "OutOfcpu",
        "OutOfmemory",
        "OutOfpods",
        "TopologyAffinityError",
        "NodeAffinity",
        "Evicted",
    }
)
"""Reasons of a Failed pod that are shown by name (pkg/kubelet/lifecycle, eviction); all others are `other`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSeen:
    """One look at one pod. Times of the API have whole seconds; `at` is when we saw it.

    `resource` is its accelerator's name. `listed`: it was there when the watch began, so nobody saw it come.
    `running` and `ready` are when all its containers had started and the pod became Ready, as the API says.
    """

    uid: str
    namespace: str
    name: str
    resource: str
    created: datetime
    at: datetime
    scheduled: datetime | None = None
    admitted: datetime | None = None
    running: datetime | None = None
    ready: datetime | None = None
    phase: str = ""
    reason: str = ""
    deleted: bool = False
    listed: bool = False

    @property
    def failed(self) -> bool:
        """Whether it ended without success."""
        return self.phase == "Failed"

    @property
    def refused(self) -> bool:
        """Whether the kubelet refused it although the scheduler had found room."""
        return self.failed and self.reason == "UnexpectedAdmissionError"


@dataclass(frozen=True, slots=True)
class PodsListed:
    """The pods that there are, by UID: others are gone."""

    uids: frozenset[str]
    at: datetime


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
    started = [one.state.running.started_at for one in statuses if one.state.HasField("running")]
    all_started = len(started) == len(pod.spec.containers) and bool(started)
    return PodSeen(
        uid=pod.metadata.uid,
        namespace=pod.metadata.namespace,
        name=pod.metadata.name,
        resource=resource,
        created=_time(pod.metadata.creation_timestamp) or at,
        at=at,
        scheduled=_since(conditions.get("PodScheduled")),
        admitted=_time(pod.status.start_time) if pod.status.HasField("start_time") else None,
        running=max((_time(one) or at for one in started), default=None) if all_started else None,
        ready=_since(conditions.get("Ready")),
        phase=pod.status.phase,
        reason=pod.status.reason,
        deleted=deleted,
        listed=listed,
    )


def resource_of(names: Iterable[str]) -> str:
    """The accelerator among the resources, the first by name; empty where there is none."""
    return min((name for name in names if is_accelerator(name)), default="")


def failure_reason(pod: PodSeen) -> str:
    """Why it failed, as one of a bounded set of words."""
    return pod.reason if pod.reason in ADMISSION_REASONS else "other"


def from_page(item: Mapping[str, object], *, at: datetime, listed: bool) -> PodSeen | None:
    """A pod of the kubelet's `/pods` page (`core/v1` PodList as JSON); None for one without an accelerator.

    Raises KeyError, TypeError, ValueError and AttributeError for what is not a pod.
    """
    found: Mapping[str, object] = item
    metadata, spec, status = (dict(found[key]) for key in ("metadata", "spec", "status"))  # type: ignore[call-overload]
    containers = [*spec.get("containers", []), *spec.get("initContainers", [])]
    resource = resource_of(
        name
        for container in containers
        for quantities in container.get("resources", {}).values()
        if isinstance(quantities, dict)
        for name in quantities
    )
    if not resource:
        return None
    conditions = {one["type"]: one for one in status.get("conditions", [])}
    running = [
        one["state"]["running"]["startedAt"]
        for one in status.get("containerStatuses", [])
        if "running" in one.get("state", {})
    ]
    return PodSeen(
        uid=metadata["uid"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        resource=resource,
        created=_parsed(metadata.get("creationTimestamp")) or at,
        at=at,
        scheduled=_transition(conditions.get("PodScheduled")),
        admitted=_parsed(status.get("startTime")),
        running=max(map(_parsed_now, running))
        if running and len(running) == len(spec["containers"])
        else None,
        ready=_transition(conditions.get("Ready")),
        phase=status.get("phase", ""),
        reason=status.get("reason", ""),
        listed=listed,
    )


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
    return datetime.fromisoformat(text) if text else None


def _parsed_now(text: str) -> datetime:
    return datetime.fromisoformat(text)
