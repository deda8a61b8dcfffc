"""The columns of Table output: those that pkg/printers/internalversion prints, and a definition's printer columns."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from simulation.cluster import cells
from simulation.cluster.cells import Cell
from simulation.cluster.interface import Object
from simulation.cluster.resources import ResourceType


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `priority` 0: always, 1: with `-o wide`."""

    name: str
    type: str
    cell: Cell
    priority: int = 0
    description: str = ""


@lru_cache(maxsize=256)
def columns_of(resource: ResourceType) -> tuple[Column, ...]:
    """The columns of a resource, its name first."""
    name = Column("Name", "string", lambda item, _now: item["metadata"].get("name", ""))
    created = Column(
        "Age", "string", lambda item, now: cells.age(item["metadata"].get("creationTimestamp", ""), now)
    )
    if resource.definition is not None:
        printed = resource.definition.get("additionalPrinterColumns")
        return (name, *map(_printer_column, printed)) if printed else (name, created)
    own = _BUILT_IN.get(resource.id)
    if own is None:
        return name, created
    if resource.id == "events":
        return own
    before = _BEFORE_AGE.get(resource.id, len(own))
    plain = [column for column in own if column.priority == 0]
    wide = [column for column in own if column.priority]
    return (name, *plain[:before], created, *plain[before:], *wide)


_STEP = re.compile(r"\.?([A-Za-z0-9_-]+)|\[(\d+)\]")


def _printer_column(spec: Any) -> Column:
    steps = [key or int(index) for key, index in _STEP.findall(spec["jsonPath"])]
    kind = spec["type"]

    def cell(item: Object, now: datetime) -> Any:
        value: Any = item
        for step in steps:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return None
        return cells.age(str(value), now) if kind == "date" else value

    return Column(spec["name"], kind, cell, spec.get("priority", 0), spec.get("description", ""))


def _known(name: str, *path: str) -> Column:
    """A column of `-o wide` that says so when nothing is known."""
    return Column(name, "string", lambda item, _now: cells.at(item, *path) or "<unknown>", 1)


def _column(name: str, *path: str, default: Any = "", kind: str = "string", priority: int = 0) -> Column:
    return Column(name, kind, lambda item, _now: cells.at(item, *path, default=default), priority)


_WORKLOAD = (
    Column("Containers", "string", cells.template("name"), 1),
    Column("Images", "string", cells.template("image"), 1),
    Column("Selector", "string", cells.selector, 1),
)
_BEFORE_AGE = {"nodes": 2}
"""How many columns stand before the age, where it is not the last."""


def _integer(name: str, *path: str, priority: int = 0) -> Column:
    return _column(name, *path, default=0, kind="integer", priority=priority)


_BUILT_IN: dict[str, tuple[Column, ...]] = {
    "configmaps": (Column("Data", "string", lambda item, _now: len(item.get("data") or {})),),
    "namespaces": (_column("Status", "status", "phase"),),
    "nodes": (
        Column("Status", "string", cells.node_status),
        Column("Roles", "string", cells.node_roles),
        _column("Version", "status", "nodeInfo", "kubeletVersion"),
        Column("Internal-IP", "string", cells.address("InternalIP"), 1),
        Column("External-IP", "string", cells.address("ExternalIP"), 1),
        _known("OS-Image", "status", "nodeInfo", "osImage"),
        _known("Kernel-Version", "status", "nodeInfo", "kernelVersion"),
        _known("Container-Runtime", "status", "nodeInfo", "containerRuntimeVersion"),
    ),
    "pods": (
        Column("Ready", "string", cells.pod_ready),
        Column("Status", "string", cells.pod_status),
        Column("Restarts", "string", cells.restarts),
        _column("IP", "status", "podIP", default="<none>", priority=1),
        _column("Node", "spec", "nodeName", default="<none>", priority=1),
        _column("Nominated Node", "status", "nominatedNodeName", default="<none>", priority=1),
        Column("Readiness Gates", "string", lambda _item, _now: "<none>", 1),
    ),
    "deployments.apps": (
        Column("Ready", "string", cells.deployment_ready),
        _column("Up-to-date", "status", "updatedReplicas", default=0),
        _column("Available", "status", "availableReplicas", default=0),
        *_WORKLOAD,
    ),
    "replicasets.apps": (
        _integer("Desired", "spec", "replicas"),
        _integer("Current", "status", "replicas"),
        _integer("Ready", "status", "readyReplicas"),
        *_WORKLOAD,
    ),
    "daemonsets.apps": (
        _integer("Desired", "status", "desiredNumberScheduled"),
        _integer("Current", "status", "currentNumberScheduled"),
        _integer("Ready", "status", "numberReady"),
        _integer("Up-to-date", "status", "updatedNumberScheduled"),
        _integer("Available", "status", "numberAvailable"),
        Column("Node Selector", "string", cells.node_selector),
        *_WORKLOAD,
    ),
    "jobs.batch": (
        Column("Status", "string", cells.job_status),
        Column("Completions", "string", cells.job_completions),
        Column("Duration", "string", cells.job_duration),
        *_WORKLOAD,
    ),
    "poddisruptionbudgets.policy": (
        Column("Min Available", "string", cells.budget_limit("minAvailable")),
        Column("Max Unavailable", "string", cells.budget_limit("maxUnavailable")),
        _integer("Allowed Disruptions", "status", "disruptionsAllowed"),
    ),
    "leases.coordination.k8s.io": (_column("Holder", "spec", "holderIdentity"),),
    "events": (
        Column("Last Seen", "string", cells.event_age),
        _column("Type", "type"),
        _column("Reason", "reason"),
        Column("Object", "string", cells.event_object),
        _column("Subobject", "involvedObject", "fieldPath", priority=1),
        _column("Source", "source", "component", priority=1),
        Column("Message", "string", lambda item, _now: str(item.get("message", "")).strip()),
        Column("First Seen", "string", cells.event_first, 1),
        _column("Count", "count", default=0, priority=1),
        Column("Name", "string", lambda item, _now: item["metadata"].get("name", ""), 1),
    ),
}
