"""The controller's metrics, rendered from a snapshot that the deciding thread leaves behind."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from health.vocabulary import Mode, Phase
from remediation import budget
from remediation.engine import Done
from remediation.fleet import Fleet
from remediation.objects import AcceleratorRemediation
from remediation.policy import DEFAULT_POOL, Policy
from remediation.situation import Write
from runtime.exposition import Registry
from runtime.tracing import Tracer

_STAGE_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300, 900, 3600, 14400, 86400)


@dataclass(frozen=True, slots=True)
class OpenSession:
    """An open session, for alerts and annotations that name its node; `since` is in seconds since the epoch."""

    session: str
    node: str
    phase: str
    mode: str
    reason: str
    since: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Counts as of one moment; keys are label values."""

    nodes: dict[tuple[str, str], int]
    sessions: dict[tuple[str, str], int]
    budgets: tuple[budget.Usage, ...]
    start_tokens: float
    epoch: int
    open_sessions: tuple[OpenSession, ...] = ()


EMPTY = Snapshot(nodes={}, sessions={}, budgets=(), start_tokens=0.0, epoch=0)


def snapshot(fleet: Fleet, policy: Policy, *, start_tokens: float, epoch: int, now: float) -> Snapshot:
    """Count the fleet: each accelerator node in one state, sessions by phase and mode, both budgets of each pool."""
    pools = [*(pool.name for pool in policy.pools), DEFAULT_POOL, budget.CLUSTER]
    nodes: Tally[tuple[str, str]] = Tally()
    for name in fleet.reports:
        node = fleet.nodes.get(name)
        if node is not None:
            nodes[policy.pool_of(node.metadata.labels), _state(fleet, name, now)] += 1
    return Snapshot(
        nodes=dict(nodes),
        sessions=dict(
            Tally((session.current.phase.value, session.spec.mode.value) for session in fleet.all_open())
        ),
        budgets=tuple(
            count(fleet, policy, pool) for pool in pools for count in (budget.fenced, budget.disrupted)
        ),
        start_tokens=start_tokens,
        epoch=epoch,
        open_sessions=tuple(_open(session) for session in fleet.all_open()),
    )


def _open(session: AcceleratorRemediation) -> OpenSession:
    status = session.current
    begun = status.phases[-1].started if status.phases else session.metadata.creation_timestamp
    return OpenSession(
        session=session.metadata.name,
        node=session.spec.node_name,
        phase=status.phase.value,
        mode=session.spec.mode.value,
        reason=status.reason,
        since=begun.timestamp() if begun is not None else 0.0,
    )


def _state(fleet: Fleet, name: str, now: float) -> str:
    """One word for a node: what takes it out of service first, else how well it is known."""
    sessions = fleet.open_sessions(name)
    if sessions and sessions[0].spec.mode is not Mode.OBSERVE:
        return sessions[0].current.phase.value.lower()
    view = fleet.reports[name]
    if fleet.nodes[name].spec.unschedulable:
        return "cordoned"
    if not view.fresh(now):
        return "unknown"
    return "faulty" if view.report.status.faults else "healthy"


class ControllerMetrics:
    """The collector for gauges, and the counters and histograms that workers and loop write to directly."""

    def __init__(self) -> None:
        self.current = EMPTY
        self.actions = Counter(
            "sickbay_actions",
            "Actions carried out, by kind (open, write, run) and result (done, failed).",
            ["action", "result"],
            registry=None,
        )
        self.stages = Histogram(
            "sickbay_remediation_stage_duration_seconds",
            "Time from the first sight of a fault to the end of a stage: fenced, released.",
            ["stage"],
            buckets=_STAGE_BUCKETS,
            registry=None,
        )
        self.policy_loads = Counter(
            "sickbay_policy_loads", "Policy files read, by result.", ["result"], registry=None
        )
        for action in ("open", "write", "run"):
            for result in ("done", "failed"):
                self.actions.labels(action, result)
        for stage in ("fenced", "released"):
            self.stages.labels(stage)

    def count(self, done: Done) -> None:
        """Count an action, and how long after the first sight of the fault a stage ended."""
        kind = type(done.action).__name__.lower()
        failed = done.report.failed
        self.actions.labels(kind, "failed" if failed else "done").inc()
        if failed or not done.report.sessions:
            return
        status = done.report.sessions[-1].current
        ended = {Phase.FENCED: status.fenced_time, Phase.RELEASED: status.closed_time}.get(status.phase)
        if ended is not None and status.incidents and not isinstance(done.action, Write):
            begun = min(incident.first_seen for incident in status.incidents)
            stage = status.phase.value.lower()
            self.stages.labels(stage).observe(max(0.0, (ended - begun).total_seconds()))

    def collect(self) -> Iterator[Metric]:
        """The gauges of the last snapshot."""
        now = self.current
        nodes = GaugeMetricFamily(
            "sickbay_nodes", "Accelerator nodes by pool and state.", labels=["pool", "state"]
        )
        for labels, value in now.nodes.items():
            nodes.add_metric(labels, value)
        yield nodes
        sessions = GaugeMetricFamily(
            "sickbay_sessions", "Open remediation sessions by phase and mode.", labels=["phase", "mode"]
        )
        for phase in Phase:
            for mode in Mode:
                if not phase.closed:
                    key = (phase.value, mode.value)
                    sessions.add_metric(key, now.sessions.get(key, 0))
        yield sessions
        since = GaugeMetricFamily(
            "sickbay_session_phase_timestamp_seconds",
            "When an open remediation session came into the phase that it is in; session_node is the node it is about.",
            labels=["session", "session_node", "phase", "mode", "reason"],
        )
        for one in now.open_sessions:
            since.add_metric([one.session, one.node, one.phase, one.mode, one.reason], one.since)
        yield since
        limit = GaugeMetricFamily(
            "sickbay_budget_limit",
            "Nodes that may be taken at once; pool empty: cluster.",
            labels=["pool", "kind"],
        )
        used = GaugeMetricFamily(
            "sickbay_budget_used",
            "Nodes that are taken, by whomever; pool empty: cluster.",
            labels=["pool", "kind"],
        )
        for usage in now.budgets:
            limit.add_metric([usage.pool, usage.kind], usage.limit)
            used.add_metric([usage.pool, usage.kind], usage.used)
        yield limit
        yield used
        yield GaugeMetricFamily(
            "sickbay_start_tokens", "Sessions that may start right now.", value=now.start_tokens
        )
        yield GaugeMetricFamily(
            "sickbay_leader_epoch",
            "The epoch this controller leads in; 0 while it does not.",
            value=now.epoch,
        )

    def describe(self) -> Iterator[Metric]:
        """The gauges, without values."""
        return self.collect()


def registry(metrics: ControllerMetrics, tracer: Tracer) -> Registry:
    """All metrics of the controller."""
    everything = Registry()
    everything.register(metrics, name="controller")
    everything.register(tracer, name="tracing")
    for metric in (metrics.actions, metrics.stages, metrics.policy_loads):
        everything.register(metric)
    return everything
