"""What a decision rests on, and what it can be."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from health.report import AcceleratorReport, Fault
from health.vocabulary import FaultKind, Mode, Phase, Scope
from remediation import journal
from remediation.budget import StartBucket
from remediation.fleet import Fleet, Node
from remediation.objects import (
    AcceleratorRemediation,
    Incident,
    NodeAction,
    RemediationSpec,
    RemediationStatus,
)
from remediation.orders import Order
from remediation.policy import Fence, Policy, Rule, StepName, acts, advice_rank

MODES = tuple(Mode)
"""The modes, the one that may do least first."""

RECHECK = 30.0
"""Seconds until something that waits for the world is looked at again, should no watch wake it."""


@dataclass(frozen=True, slots=True)
class Now:
    """The two clocks: wall time for what is written, monotonic seconds for what is measured."""

    wall: datetime
    monotonic: float


@dataclass(frozen=True, slots=True)
class Open:
    """Create a session with this spec, born with this status; its first step follows at once if one is intended.

    `charged`: whether it is one of the starts whose rate is limited.
    """

    name: str
    spec: RemediationSpec
    status: RemediationStatus
    step: StepName | None
    charged: bool = True

    @property
    def virtual(self) -> bool:
        """Whether it only observes, and is charged to the virtual budgets."""
        return self.spec.mode is Mode.OBSERVE


@dataclass(frozen=True, slots=True)
class Write:
    """Write a session's status; nothing else happens."""

    session: AcceleratorRemediation
    status: RemediationStatus


@dataclass(frozen=True, slots=True)
class Run:
    """Write the intent in `status`, take the step, and write the outcome; on success the session is in `then`.

    A step that waits is taken again and again under one intent: `status` is then what is written already. With an
    `order` the step touches pods, and the evidence is read again before it.
    """

    session: AcceleratorRemediation
    step: StepName
    status: RemediationStatus
    then: Phase
    reason: str
    message: str
    order: Order | None = None


Action = Open | Write | Run


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about a node now (None: nothing), why, and in how many seconds to look again."""

    sentence: str
    action: Action | None = None
    again: float | None = None


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a decision about one node rests on."""

    name: str
    fleet: Fleet
    policy: Policy
    bucket: StartBucket
    virtual_bucket: StartBucket
    now: Now
    epoch: int
    resume_at: float = 0.0
    """Monotonic seconds before which a step that waits is not taken again."""

    @property
    def node(self) -> Node | None:
        """The node, if there is one."""
        return self.fleet.nodes.get(self.name)

    @property
    def fresh_report(self) -> AcceleratorReport | None:
        """The node's report if it is fresh, of this very node and of its present boot; else None: no data."""
        view = self.fleet.reports.get(self.name)
        node = self.node
        if view is None or node is None or not view.fresh(self.now.monotonic):
            return None
        status = view.report.status
        same = (status.node_uid, status.boot_id) == (node.metadata.uid, node.status.node_info.boot_id)
        return view.report if same else None

    @property
    def unbroken(self) -> float:
        """Seconds for which the report has been fresh without a break, with the same faults and in one boot."""
        view = self.fleet.reports.get(self.name)
        return self.now.monotonic - view.since if view is not None else 0.0

    def rule_of(self, incident: Incident) -> Rule | None:
        """The rule that the policy has now for what a session knows of a fault."""
        assert self.node is not None
        return self.policy.rule_for(incident, self.policy.pool_of(self.node.metadata.labels))

    def acting_faults(self, report: AcceleratorReport) -> list[tuple[Fault, Rule]]:
        """The report's faults for which there is something to do, with their rules.

        First those that most may be done about, so that a fault that is only observed never hides one that is
        acted on; of these the gravest.
        """
        assert self.node is not None
        pool = self.policy.pool_of(self.node.metadata.labels)
        ruled = [(fault, self.policy.rule_for(fault, pool)) for fault in report.status.faults if acts(fault)]
        return sorted(((fault, rule) for fault, rule in ruled if rule is not None), key=_gravity)


def obstacle(at: Situation, node: Node, report: AcceleratorReport | None) -> str:
    """Why nothing may be started on this node now; empty where nothing speaks against it."""
    if pause := at.fleet.control.spec.pause:
        return f"{pause.user} paused everything ({pause.reason or 'no reason given'})"
    switch = at.fleet.switch(at.name)
    if switch is not None:
        return "a person holds the node" if switch is NodeAction.HOLD else "the node is opted out"
    if report is not None and report.spec.maintenance is not None:
        return f"the node is in maintenance ({report.spec.maintenance.reason})"
    return node.taken_by


def fences_device(rule: Rule | None, fault: Fault | Incident) -> bool:
    """Whether the rule leaves this fault to the device plugin: it is of one device, which the plugin withholds."""
    return (
        rule is not None
        and rule.fence is Fence.DEVICE
        and fault.scope is Scope.DEVICE
        and bool(fault.device_uuid)
        and fault.kind != FaultKind.DEVICE_OFFERED_THOUGH_BAD
    )


def observed(at: Situation, status: RemediationStatus, step: StepName, why: str) -> RemediationStatus:
    """The status of a session that only observes: what would have been done is its outcome."""
    status = journal.with_outcome(
        status, step=step, attempt=1, epoch=at.epoch, now=at.now.wall, result="Observed", message=why
    )
    return journal.moved(
        status, Phase.FENCED, reason="ObserveOnly", message=f"would cordon: {why}", now=at.now.wall
    )


def _gravity(found: tuple[Fault, Rule]) -> tuple[int, int, int, datetime]:
    fault, rule = found
    return (-MODES.index(rule.mode), -advice_rank(fault.advice), -fault.severity.rank, fault.first_seen)
