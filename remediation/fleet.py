"""What the controller knows of the fleet: nodes, reports and sessions, as the watches last said.

The cache belongs to the deciding thread. An object that arrives late (an older resourceVersion than the one
held) is ignored, so that an answer to our own write is never undone by the watch that lags behind it.
Resource versions of one resource are comparable numbers (KEP-5504).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from health.report import AcceleratorReport, Wire
from health.vocabulary import Phase
from remediation.objects import AcceleratorControl, AcceleratorRemediation, NodeAction
from remediation.policy import acts

FIELD_MANAGER = "sickbay-controller"
"""The name under which the API server keeps which fields of a Node are ours."""

SESSION_KEY = "sickbay.dev/session"
"""Annotation on a node: the session that cordoned it. It is the ownership record of that cordon."""
UNVERIFIED_KEY = "sickbay.dev/unverified"
"""A startup taint by which an operator keeps jobs off a node until it is proven."""
HOLD_KEY = "sickbay.dev/hold"
OPT_OUT_KEY = "sickbay.dev/opt-out"
_CONTROL_PLANE_LABELS = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")

_OTHERS_TAINTS = {
    "karpenter.sh/disrupted": "Karpenter is taking the node away",
    "ToBeDeletedByClusterAutoscaler": "the cluster autoscaler is taking the node away",
}
_UPGRADE_LABEL = "nvidia.com/gpu-driver-upgrade-state"
_UPGRADE_AT_REST = frozenset({"", "upgrade-done", "upgrade-required"})
_NVSENTINEL_LABEL = "dgxc.nvidia.com/nvsentinel-state"

DISRUPTING = frozenset({Phase.DRAINING, Phase.REPAIRING, Phase.VERIFYING})
"""The phases in which a session disrupts its node."""

FRESH_FOR = 90.0
"""Seconds since this controller saw a report's sequence advance within which its evidence counts."""


class NodeMetadata(Wire, frozen=True):
    """What is read of a node's metadata."""

    name: str
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    deletion_timestamp: datetime | None = None


class Taint(Wire, frozen=True):
    """A taint's key."""

    key: str


class NodeSpec(Wire, frozen=True):
    """What is read of a node's spec."""

    unschedulable: bool = False
    taints: tuple[Taint, ...] = ()


class NodeCondition(Wire, frozen=True):
    """What is read of a node's condition."""

    type: str
    status: str


class NodeInfo(Wire, frozen=True):
    """`bootID` as the kubelet reports it."""

    boot_id: str = ""


class NodeStatus(Wire, frozen=True):
    """What is read of a node's status. `allocatable` are quantities by resource; devices are whole numbers."""

    conditions: tuple[NodeCondition, ...] = ()
    allocatable: dict[str, str] = {}
    node_info: NodeInfo = NodeInfo()


class Node(Wire, frozen=True):
    """A Node, only the fields that decide something."""

    metadata: NodeMetadata
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()
    cordoned_by: str = ""
    """The field manager that has set `spec.unschedulable`, where a live read told it."""

    @property
    def name(self) -> str:
        """The node's name."""
        return self.metadata.name

    @property
    def ready(self) -> bool:
        """Whether its Ready condition is True."""
        return any(item.type == "Ready" and item.status == "True" for item in self.status.conditions)

    def like(self, other: Node) -> bool:
        """Whether nothing that decides something differs: the same node, labels, annotations, spec, readiness, boot."""
        mine, others = self.metadata, other.metadata
        return (
            mine.uid == others.uid
            and mine.labels == others.labels
            and mine.annotations == others.annotations
            and mine.deletion_timestamp == others.deletion_timestamp
            and self.spec == other.spec
            and self.ready == other.ready
            and self.status.node_info == other.status.node_info
        )

    @property
    def owner_session(self) -> str:
        """The session that owns the cordon, empty where none of ours does."""
        return self.metadata.annotations.get(SESSION_KEY, "")

    @property
    def held(self) -> bool:
        """Whether a person's annotation holds it."""
        return HOLD_KEY in self.metadata.annotations

    @property
    def opted_out(self) -> bool:
        """Whether a person's annotation opts it out, or it carries the control plane, which is never touched."""
        return OPT_OUT_KEY in self.metadata.annotations or any(
            label in self.metadata.labels for label in _CONTROL_PLANE_LABELS
        )

    @property
    def unverified(self) -> bool:
        """Whether its operator wants it proven before jobs may come."""
        return any(taint.key == UNVERIFIED_KEY for taint in self.spec.taints)

    @property
    def taken_by(self) -> str:
        """Who else is working on the node, as a clause for people; empty where nobody is."""
        if self.metadata.deletion_timestamp is not None:
            return "the node is being deleted"
        for taint in self.spec.taints:
            if taint.key in _OTHERS_TAINTS:
                return _OTHERS_TAINTS[taint.key]
        state = self.metadata.labels.get(_UPGRADE_LABEL, "")
        if state not in _UPGRADE_AT_REST:
            return f"a driver upgrade is under way ({state})"
        if _NVSENTINEL_LABEL in self.metadata.labels:
            return f"NVSentinel is working on the node ({self.metadata.labels[_NVSENTINEL_LABEL]})"
        return ""


@dataclass(frozen=True, slots=True)
class ReportView:
    """A report, and when (monotonic) this controller saw its sequence advance; None until it did.

    `since` is when it began to be fresh without a break, in one boot and with the same faults that act.
    """

    report: AcceleratorReport
    advanced: float | None = None
    since: float = 0.0

    def fresh(self, now: float) -> bool:
        """Whether its evidence counts."""
        return self.advanced is not None and now - self.advanced <= FRESH_FOR

    def followed_by(self, report: AcceleratorReport, now: float) -> ReportView:
        """The view once a newer version of the report is seen."""
        if report.status.node_uid != self.report.status.node_uid:
            return ReportView(report)
        advances = report.status.sequence > self.report.status.sequence
        unbroken = self.fresh(now) and _condition(report) == _condition(self.report)
        return ReportView(
            report, advanced=now if advances else self.advanced, since=self.since if unbroken else now
        )


@dataclass(slots=True)
class Fleet:
    """The cache. Keys are object names. It is changed through its methods only, which note what they touched."""

    nodes: dict[str, Node] = field(default_factory=dict)
    reports: dict[str, ReportView] = field(default_factory=dict)
    sessions: dict[str, AcceleratorRemediation] = field(default_factory=dict)
    control: AcceleratorControl = field(default_factory=AcceleratorControl)
    starting: dict[str, bool] = field(default_factory=dict)
    """Nodes whose session is being created right now, and whether it only observes: they count already."""
    disrupting: dict[str, frozenset[str]] = field(default_factory=dict)
    """Nodes on which a disruptive step is being taken right now, and the gangs that it claims: they count already."""
    touched: set[str] = field(default_factory=set)
    """Nodes of which something has changed since `remediation.budget` last counted them."""
    census: object = None
    """What `remediation.budget` has counted so far."""
    _open: dict[str, set[str]] = field(default_factory=dict)
    _closed: dict[str, set[str]] = field(default_factory=dict)

    def put_node(self, node: Node) -> None:
        """Take in a node as a watch shows it."""
        known = self.nodes.get(node.name)
        if known is None or not _older(node.metadata.resource_version, known.metadata.resource_version):
            self.nodes[node.name] = node
            self.touched.add(node.name)

    def refresh_node(self, node: Node) -> None:
        """Take in a node as an answer to a request of ours shows it.

        Such an answer may come after the watch has said that the node is gone: it does not bring it back.
        """
        known = self.nodes.get(node.name)
        if known is not None and known.metadata.uid == node.metadata.uid:
            self.put_node(node)

    def drop_node(self, name: str) -> None:
        """The node is gone."""
        self.nodes.pop(name, None)
        self.touched.add(name)

    def put_report(self, report: AcceleratorReport, now: float) -> bool:
        """Take in a report; True where more than a renewal changed.

        A report that is met for the first time has not advanced: it may be as old as its agent is dead.
        """
        name = report.metadata.name
        known = self.reports.get(name)
        if known is None:
            self.reports[name] = ReportView(report)
            self.touched.add(name)
            return True
        if _older(report.metadata.resource_version, known.report.metadata.resource_version):
            return False
        self.reports[name] = known.followed_by(report, now)
        return not known.fresh(now) or meaning(report) != meaning(known.report)

    def drop_report(self, name: str) -> None:
        """The report is gone."""
        self.reports.pop(name, None)
        self.touched.add(name)

    def put_session(self, session: AcceleratorRemediation) -> bool:
        """Take in a session as a watch or the answer to a write shows it; True where this closes it."""
        name = session.metadata.name
        known = self.sessions.get(name)
        if known is not None and _older(session.metadata.resource_version, known.metadata.resource_version):
            return False
        self.sessions[name] = session
        node_name = session.spec.node_name
        self.touched.add(node_name)
        was_open = name in self._open.get(node_name, ())
        closed = session.current.phase.closed
        here, there = (self._closed, self._open) if closed else (self._open, self._closed)
        here.setdefault(node_name, set()).add(name)
        there.get(node_name, set()).discard(name)
        return closed and was_open

    def drop_session(self, name: str) -> AcceleratorRemediation | None:
        """The session is gone; what it was."""
        session = self.sessions.pop(name, None)
        if session is None:
            return None
        node_name = session.spec.node_name
        self.touched.add(node_name)
        for names in (self._open, self._closed):
            if node_name in names:
                names[node_name].discard(name)
                if not names[node_name]:
                    del names[node_name]
        return session

    def put_control(self, control: AcceleratorControl) -> bool:
        """Take in the people's switches; True where they, and not only the status, changed."""
        if _older(control.metadata.resource_version, self.control.metadata.resource_version):
            return False
        before, self.control = self.control, control
        if before.spec == control.spec:
            return False
        self.touched.update(entry.name for entry in (*before.spec.nodes, *control.spec.nodes))
        return True

    def begin(self, node_name: str, *, virtual: bool) -> None:
        """A session is being created for this node."""
        self.starting[node_name] = virtual
        self.touched.add(node_name)

    def end(self, node_name: str) -> None:
        """It has been created, or not."""
        self.starting.pop(node_name, None)
        self.touched.add(node_name)

    def begin_disruption(self, node_name: str, gangs: Iterable[str]) -> None:
        """A step that disrupts the node is being taken, and claims these gangs."""
        self.disrupting[node_name] = frozenset(gangs)
        self.touched.add(node_name)

    def end_disruption(self, node_name: str) -> None:
        """It has been taken; what it came to is in the session."""
        if self.disrupting.pop(node_name, None) is not None:
            self.touched.add(node_name)

    def gangs_elsewhere(self, node_name: str) -> frozenset[str]:
        """The gangs that are being disrupted on other nodes."""
        claimed: set[str] = set()
        for session in self.all_open():
            if session.spec.node_name != node_name and session.current.phase in DISRUPTING:
                claimed.update(session.current.drain.gangs if session.current.drain else ())
        for name, gangs in self.disrupting.items():
            if name != node_name:
                claimed |= gangs
        return frozenset(claimed)

    def open_sessions(self, node_name: str) -> tuple[AcceleratorRemediation, ...]:
        """The open sessions of a node, by name; more than one only after a race that decide then mends."""
        return tuple(self.sessions[name] for name in sorted(self._open.get(node_name, ())))

    def closed_sessions(self, node_name: str) -> tuple[AcceleratorRemediation, ...]:
        """The closed sessions of a node that are still kept."""
        return tuple(self.sessions[name] for name in sorted(self._closed.get(node_name, ())))

    def all_open(self) -> Iterator[AcceleratorRemediation]:
        """Every open session."""
        for names in self._open.values():
            for name in names:
                yield self.sessions[name]

    def switch(self, node_name: str) -> NodeAction | None:
        """What a person asked for this node, by annotation or in AcceleratorControl; Hold before OptOut."""
        asked = {entry.action for entry in self.control.spec.nodes if entry.name == node_name}
        node = self.nodes.get(node_name)
        if NodeAction.HOLD in asked or (node is not None and node.held):
            return NodeAction.HOLD
        if NodeAction.OPT_OUT in asked or (node is not None and node.opted_out):
            return NodeAction.OPT_OUT
        return None


def meaning(report: AcceleratorReport) -> object:
    """What of a report decides something: all but its sequence, its times and its counts."""
    status = report.status
    faults = tuple(
        (fault.identity, fault.severity, fault.advice, fault.clears_on, fault.code, fault.first_seen)
        for fault in status.faults
    )
    sources = tuple((source.name, source.state) for source in status.sources)
    return (
        status.node_uid,
        status.boot_id,
        faults,
        sources,
        status.devices,
        status.device_access,
        status.receipts,
        report.spec,
    )


def _condition(report: AcceleratorReport) -> object:
    """What must not change while a node proves itself healthy."""
    return report.status.boot_id, {fault.identity for fault in report.status.faults if acts(fault)}


def _older(version: str, than: str) -> bool:
    return version.isdecimal() and than.isdecimal() and int(version) < int(than)
