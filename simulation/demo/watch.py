"""What there is to see of the demo's cluster at one moment, as data: what screen and plain lines are made of."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from health.report import AcceleratorReport
from health.vocabulary import DeviceHealth
from remediation.objects import AcceleratorRemediation, RemediationStatus
from simulation.cluster.interface import Object, Store
from simulation.demo.host_files import GPU
from simulation.demo.objects import REPAIRS, REPORTS, SESSIONS, TEAM

_BUDGET = re.compile(r"^sickbay_budget_(limit|used)\{([^}]*)\} (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class PodView:
    """A pod of the workloads."""

    name: str
    uid: str
    node: str
    phase: str


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node, as Kubernetes and its agent tell of it."""

    name: str
    ready: bool
    schedulable: bool
    session: str
    offered: str
    devices: int
    healthy: int
    faults: tuple[str, ...]
    pods: tuple[PodView, ...]

    @property
    def says(self) -> str:
        """As `kubectl get nodes` puts it."""
        return ("Ready" if self.ready else "NotReady") + ("" if self.schedulable else ",SchedulingDisabled")


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session and whose it is."""

    name: str
    node: str
    born: str
    status: RemediationStatus


@dataclass(frozen=True, slots=True)
class Budget:
    """How many nodes are taken, and how many may be."""

    used: int
    limit: int


@dataclass(frozen=True, slots=True)
class View:
    """The cluster at one moment: nodes with the workloads' pods, pods without a node, pods that repair.

    `budgets` are by kind, of the whole cluster; empty while the controller says none.
    """

    nodes: tuple[NodeView, ...]
    sessions: tuple[SessionView, ...]
    pending: tuple[PodView, ...] = ()
    repairs: tuple[PodView, ...] = ()
    budgets: dict[str, Budget] = field(default_factory=dict)

    def node(self, name: str) -> NodeView:
        return next(node for node in self.nodes if node.name == name)

    def session_of(self, node: str, *, since: Sequence[str] = ()) -> SessionView | None:
        """The node's newest session that is not among those of before."""
        found = [one for one in self.sessions if one.node == node and one.name not in since]
        return max(found, key=lambda one: one.born, default=None)


def look(store: Store, *, budgets: dict[str, Budget]) -> View:
    """The cluster as the API has it now."""
    pods = [_pod(one) for one in store.list("pods", namespace=TEAM)]
    reports = {one["metadata"]["name"]: one for one in store.list(REPORTS)}
    nodes = tuple(_node(node, reports.get(node["metadata"]["name"]), pods) for node in store.list("nodes"))
    sessions = tuple(_session(one) for one in store.list(SESSIONS))
    repairs = tuple(_pod(one) for one in store.list("pods", namespace=REPAIRS))
    return View(nodes, sessions, tuple(pod for pod in pods if not pod.node), repairs, budgets)


def budgets_of(port: int) -> dict[str, Budget]:
    """The budgets of the cluster, from the controller's metrics page; empty where it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=1) as answer:
            return parsed_budgets(answer.read().decode())
    except OSError:
        return {}


def parsed_budgets(page: str) -> dict[str, Budget]:
    """The budgets that a metrics page tells, by kind."""
    told: dict[str, dict[str, int]] = {}
    for name, labels, value in _BUDGET.findall(page):
        told_of = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if told_of.get("pool"):
            continue
        kind = told_of.get("kind", "")
        told.setdefault(kind, {})[name] = int(float(value))
    return {kind: Budget(one.get("used", 0), one.get("limit", 0)) for kind, one in told.items()}


def _pod(pod: Object) -> PodView:
    phase = (
        "Terminating" if pod["metadata"].get("deletionTimestamp") else pod["status"].get("phase", "Pending")
    )
    metadata = pod["metadata"]
    return PodView(metadata["name"], metadata["uid"], pod["spec"].get("nodeName", ""), phase)


def _node(node: Object, report: Object | None, pods: Sequence[PodView]) -> NodeView:
    metadata, status = node["metadata"], node.get("status") or {}
    told = msgspec.convert(report, AcceleratorReport).status if report and "status" in report else None
    devices = told.devices if told else ()
    return NodeView(
        name=metadata["name"],
        ready=any(
            one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions") or ()
        ),
        schedulable=not (node.get("spec") or {}).get("unschedulable"),
        session=(metadata.get("annotations") or {}).get("sickbay.dev/session", ""),
        offered=(status.get("allocatable") or {}).get(GPU, "0"),
        devices=len(devices),
        healthy=sum(device.health is DeviceHealth.HEALTHY for device in devices),
        faults=tuple(f"{fault.kind} ({fault.code})" for fault in (told.faults if told else ())),
        pods=tuple(pod for pod in pods if pod.node == metadata["name"]),
    )


def _session(session: Object) -> SessionView:
    told = msgspec.convert(session, AcceleratorRemediation)
    born = str(session["metadata"]["creationTimestamp"])
    return SessionView(told.metadata.name, told.spec.node_name, born, told.current)
