"""How many nodes may be fenced and disrupted, and how fast sessions may start.

Two budgets, each for the node's pool and for the cluster: `fenced` bounds a storm, `disrupted` bounds what is
being drained or repaired. Nodes in flight, NotReady and cordoned by people all count: what is lost to the
workload is lost, whoever took it. Observe sessions are charged to a virtual budget of their own.

A storm asks for the counts at every start, so they are kept and not made anew: only nodes that the fleet says
were touched are looked at again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from health.vocabulary import Mode, Phase
from remediation.fleet import DISRUPTING, Fleet, Node
from remediation.objects import AcceleratorRemediation, NodeAction
from remediation.policy import Policy

CLUSTER = ""
"""The name under which the cluster's own budget is counted; no pool can have it."""


@dataclass(frozen=True, slots=True)
class Usage:
    """One budget of one pool (or of the cluster): how many nodes may be taken, and how many are."""

    pool: str
    kind: str
    limit: int
    used: int

    @property
    def exceeded(self) -> bool:
        """Whether more nodes are taken than may be."""
        return self.used > self.limit

    def __str__(self) -> str:
        where = f"pool {self.pool}" if self.pool else "the cluster"
        return f"{self.used} of {self.limit} nodes {self.kind} in {where}"


def fenced(fleet: Fleet, policy: Policy, pool: str, *, virtual: bool = False) -> Usage:
    """The storm bound: how many accelerator nodes are out of scheduling. Held nodes count."""
    counts = _counts(fleet, policy, pool)
    used = counts[_Fact.VIRTUALLY_FENCED if virtual else _Fact.FENCED]
    limit = policy.budgets.max_fenced.of(counts[_Fact.MEMBER], floor=policy.budgets.floor)
    return Usage(pool=pool, kind="fenced", limit=limit, used=used)


def disrupted(fleet: Fleet, policy: Policy, pool: str, *, virtual: bool = False) -> Usage:
    """What is being drained or repaired. Held and opted-out nodes leave both the count and the population."""
    counts = _counts(fleet, policy, pool)
    used = counts[_Fact.VIRTUALLY_DISRUPTED if virtual else _Fact.DISRUPTED]
    limit = policy.budgets.max_disrupted.of(counts[_Fact.DISRUPTABLE], floor=policy.budgets.floor)
    return Usage(pool=pool, kind="disrupted", limit=limit, used=used)


def without_room(
    count: Callable[..., Usage], fleet: Fleet, policy: Policy, node: Node, *, virtual: bool
) -> Usage | None:
    """The budget that taking this node would exceed, if any. A node that counts already is not counted twice."""
    fact = _FENCED if count is fenced else _DISRUPTED
    more = 0 if fact[virtual] in _facts(fleet, node) else 1
    for pool in (policy.pool_of(node.metadata.labels), CLUSTER):
        usage = count(fleet, policy, pool, virtual=virtual)
        if usage.used + more > usage.limit:
            return usage
    return None


class _Fact(Enum):
    """What a node may count for."""

    MEMBER = auto()
    FENCED = auto()
    VIRTUALLY_FENCED = auto()
    DISRUPTABLE = auto()
    DISRUPTED = auto()
    VIRTUALLY_DISRUPTED = auto()


_FENCED = (_Fact.FENCED, _Fact.VIRTUALLY_FENCED)
_DISRUPTED = (_Fact.DISRUPTED, _Fact.VIRTUALLY_DISRUPTED)


@dataclass(slots=True)
class _Census:
    """The counts of each pool, and what each node was last counted for."""

    policy: Policy
    totals: dict[str, Counter[_Fact]] = field(default_factory=dict)
    counted: dict[str, tuple[str, frozenset[_Fact]]] = field(default_factory=dict)

    def count(self, fleet: Fleet, name: str) -> None:
        """Count a node anew."""
        pool, facts = self.counted.pop(name, ("", frozenset()))
        for where in (pool, CLUSTER) if facts else ():
            self.totals[where].subtract(facts)
        node = fleet.nodes.get(name)
        facts = _facts(fleet, node) if node is not None else frozenset()
        if node is None or not facts:
            return
        pool = self.policy.pool_of(node.metadata.labels)
        self.counted[name] = (pool, facts)
        for where in (pool, CLUSTER):
            self.totals.setdefault(where, Counter()).update(facts)


def _counts(fleet: Fleet, policy: Policy, pool: str) -> Counter[_Fact]:
    census = fleet.census
    if not isinstance(census, _Census) or census.policy is not policy:
        census = fleet.census = _Census(policy)
        fleet.touched.update(fleet.nodes)
    for name in fleet.touched:
        census.count(fleet, name)
    fleet.touched.clear()
    return census.totals.get(pool, Counter())


def _facts(fleet: Fleet, node: Node) -> frozenset[_Fact]:
    """What a node counts for. An accelerator node is one that has a report, or a session of ours."""
    sessions = [
        session
        for session in fleet.open_sessions(node.name)
        if session.spec.node_uid == node.metadata.uid and not _only_proves(session, node)
    ]
    if node.name not in fleet.reports and not sessions:
        return frozenset()
    real = [session for session in sessions if session.spec.mode is not Mode.OBSERVE]
    starting = fleet.starting.get(node.name)
    disrupted_now = node.name in fleet.disrupting
    lost = node.spec.unschedulable or not node.ready
    facts = {
        _Fact.MEMBER: True,
        _Fact.FENCED: lost or bool(real) or starting is False,
        _Fact.VIRTUALLY_FENCED: lost or bool(sessions) or starting is not None,
    }
    if not _set_aside(fleet, node, sessions):
        facts |= {
            _Fact.DISRUPTABLE: True,
            _Fact.DISRUPTED: not node.ready or disrupted_now or _disrupting(real),
            _Fact.VIRTUALLY_DISRUPTED: not node.ready or disrupted_now or _disrupting(sessions),
        }
    return frozenset(fact for fact, holds in facts.items() if holds)


def _set_aside(fleet: Fleet, node: Node, sessions: list[AcceleratorRemediation]) -> bool:
    if node.name in fleet.disrupting or _disrupting(sessions):
        return False  # an opt-out ends a step that is under way, but has not yet
    held = any(session.current.phase is Phase.HELD for session in sessions)
    return held or fleet.switch(node.name) is NodeAction.OPT_OUT


def _only_proves(session: AcceleratorRemediation, node: Node) -> bool:
    """Whether a session neither fences nor repairs: its node is kept from jobs by its operator's taint.

    One that was made again to give back its cordon knows no incidents either, but its node was fenced.
    """
    status = session.current
    fences = node.owner_session == session.metadata.name or status.fenced_time is not None
    return status.phase is Phase.VERIFYING and not status.incidents and not fences


def _disrupting(sessions: list[AcceleratorRemediation]) -> bool:
    return any(session.current.phase in DISRUPTING for session in sessions)


@dataclass(frozen=True, slots=True)
class StartBucket:
    """The start-rate limit: a token bucket. Times are seconds of any one clock that the caller keeps to."""

    tokens: float
    refreshed: float

    def at(self, now: float, *, per_minute: int, burst: int) -> StartBucket:
        """The bucket refilled up to now. A clock that went back refills nothing."""
        gained = max(0.0, now - self.refreshed) * per_minute / 60
        return StartBucket(tokens=min(float(burst), self.tokens + gained), refreshed=max(now, self.refreshed))

    @property
    def available(self) -> bool:
        """Whether a start may be made."""
        return self.tokens >= 1

    def taken(self) -> StartBucket:
        """The bucket after one start."""
        return StartBucket(tokens=self.tokens - 1, refreshed=self.refreshed)

    def wait(self, *, per_minute: int) -> float:
        """Seconds until a start may be made."""
        return max(0.0, (1 - self.tokens) * 60 / per_minute) if per_minute else 60.0
