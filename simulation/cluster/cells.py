"""What stands in a cell of Table output, in the words of pkg/printers/internalversion/printers.go."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from runtime.clock import TimestampError, parse_rfc3339
from simulation.cluster.interface import Object

Cell = Callable[[Object, datetime], Any]


def age(text: str, now: datetime) -> str:
    """The time since, as kubectl writes it (apimachinery's duration.HumanDuration)."""
    try:
        seconds = int((now - parse_rfc3339(text)).total_seconds())
    except TimestampError:
        return "<unknown>"
    return human(seconds)


def human(seconds: int) -> str:
    """Seconds in words of kubectl: 90s, 5m30s, 3h, 2d4h, 1y20d."""
    if seconds < -1:
        return "<invalid>"
    seconds = max(0, seconds)
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    if hours < 192:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    if days < 730:
        return f"{days}d"
    years, rest = divmod(days, 365)
    return f"{years}y{rest}d" if rest and years < 8 else f"{years}y"


def at(item: Any, *path: str, default: Any = "") -> Any:
    """The value at a path of keys; `default` where there is none."""
    for key in path:
        item = item.get(key) if isinstance(item, dict) else None
    return default if item is None else item


def node_status(item: Object, _now: datetime) -> str:
    """Ready, NotReady or Unknown, and whether it takes pods."""
    ready = [
        c.get("status") for c in at(item, "status", "conditions", default=[]) if c.get("type") == "Ready"
    ]
    status = {"True": "Ready", "False": "NotReady"}.get(ready[0], "Unknown") if ready else "Unknown"
    return f"{status},SchedulingDisabled" if at(item, "spec", "unschedulable") else status


def node_roles(item: Object, _now: datetime) -> str:
    """The roles of its labels."""
    prefix = "node-role.kubernetes.io/"
    labels = at(item, "metadata", "labels", default={})
    return ",".join(sorted(key.removeprefix(prefix) for key in labels if key.startswith(prefix))) or "<none>"


def address(kind: str) -> Cell:
    """A node's first address of a kind."""

    def cell(item: Object, _now: datetime) -> str:
        found = [a["address"] for a in at(item, "status", "addresses", default=[]) if a.get("type") == kind]
        return str(found[0]) if found else "<none>"

    return cell


def _containers(item: Object) -> list[Object]:
    return list(at(item, "status", "containerStatuses", default=[]))


def pod_ready(item: Object, _now: datetime) -> str:
    """How many of its containers are ready."""
    ready = sum(bool(status.get("ready")) for status in _containers(item))
    return f"{ready}/{len(at(item, 'spec', 'containers', default=[]))}"


def pod_status(item: Object, _now: datetime) -> str:
    """Its phase, or what its containers say is wrong."""
    reason = at(item, "status", "reason") or at(item, "status", "phase")
    for status in reversed(_containers(item)):
        state = status.get("state") or {}
        if at(state, "waiting", "reason"):
            reason = state["waiting"]["reason"]
        elif "terminated" in state:
            ended = state["terminated"]
            reason = ended.get("reason") or f"ExitCode:{ended.get('exitCode', 0)}"
    if "deletionTimestamp" in item["metadata"]:
        return "Unknown" if at(item, "status", "reason") == "NodeLost" else "Terminating"
    return str(reason)


def restarts(item: Object, _now: datetime) -> str:
    """Of all containers."""
    return str(sum(int(status.get("restartCount", 0)) for status in _containers(item)))


def job_completions(item: Object, _now: datetime) -> str:
    """Pods that succeeded, of those wanted."""
    succeeded, wanted = (
        at(item, "status", "succeeded", default=0),
        at(item, "spec", "completions", default=None),
    )
    if wanted is not None:
        return f"{succeeded}/{wanted}"
    parallel = at(item, "spec", "parallelism", default=1)
    return f"{succeeded}/1 of {parallel}" if parallel > 1 else f"{succeeded}/1"


def job_status(item: Object, _now: datetime) -> str:
    """Its last condition in a word."""
    true = {c["type"] for c in at(item, "status", "conditions", default=[]) if c.get("status") == "True"}
    for kind, word in (("Complete", "Complete"), ("Failed", "Failed"), ("Suspended", "Suspended")):
        if kind in true:
            return word
    if "deletionTimestamp" in item["metadata"]:
        return "Terminating"
    return "FailureTarget" if "FailureTarget" in true else "Running"


def job_duration(item: Object, now: datetime) -> str:
    """From start to completion, or until now."""
    started, ended = at(item, "status", "startTime"), at(item, "status", "completionTime")
    if not started:
        return ""
    return age(started, parse_rfc3339(ended) if ended else now)


def deployment_ready(item: Object, _now: datetime) -> str:
    """Ready replicas of those wanted."""
    return f"{at(item, 'status', 'readyReplicas', default=0)}/{at(item, 'spec', 'replicas', default=1)}"


def event_age(item: Object, now: datetime) -> str:
    """Since it was last seen."""
    seen = at(item, "lastTimestamp") or at(item, "eventTime") or at(item, "metadata", "creationTimestamp")
    return age(seen, now)


def event_first(item: Object, now: datetime) -> str:
    """Since it was first seen."""
    return age(at(item, "firstTimestamp") or at(item, "eventTime") or at(item, "lastTimestamp"), now)


def event_object(item: Object, _now: datetime) -> str:
    """What it is about."""
    return f"{at(item, 'involvedObject', 'kind').lower()}/{at(item, 'involvedObject', 'name')}"


def budget_limit(field: str) -> Cell:
    """A number or percentage of its spec."""
    return lambda item, _now: str(at(item, "spec", field, default="N/A"))


def template(field: str) -> Cell:
    """A field of the template's containers."""

    def cell(item: Object, _now: datetime) -> str:
        found = at(item, "spec", "template", "spec", "containers", default=[])
        return ",".join(str(container.get(field, "")) for container in found)

    return cell


def selector(item: Object, _now: datetime) -> str:
    """The labels that it selects."""
    labels = at(item, "spec", "selector", "matchLabels", default={})
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items())) or "<none>"


def node_selector(item: Object, _now: datetime) -> str:
    """The nodes that its pods go to."""
    labels = at(item, "spec", "template", "spec", "nodeSelector", default={})
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items())) or "<none>"
