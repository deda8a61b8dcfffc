"""How many nodes may be fenced and disrupted, and how fast sessions may start. Pure.

Two budgets, each for the node's pool and for the cluster: `fenced` bounds a storm, `disrupted` bounds what is
being drained or repaired. Nodes in flight, NotReady and cordoned by people all count: what is lost to the
workload is lost, whoever took it. Observe sessions are charged to a virtual budget of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from health.vocabulary import Mode, Phase
from remediation.fleet import Fleet, Node
from remediation.objects import AcceleratorRemediation, NodeAction
from remediation.policy import Policy

CLUSTER = ""
"""The name under which the cluster's own budget is counted; no pool can have it."""

_DISRUPTING = frozenset({Phase.DRAINING, Phase.REPAIRING, Phase.VERIFYING})


@dataclass(frozen=True, slots=True)
class Usage:
    """One budget of one pool (or of the cluster): how many nodes may be taken, and how many are."""

    pool: str
    kind: str
    limit: int
    used: int

    @property
    def room(self) -> bool:
        """Whether one more node may be taken."""
        return self.used < self.limit

    def __str__(self) -> str:
        where = f"pool {self.pool}" if self.pool else "the cluster"
        return f"{self.used} of {self.limit} nodes {self.kind} in {where}"


def fenced(fleet: Fleet, policy: Policy, pool: str, *, virtual: bool = False) -> Usage:
    """The storm bound: how many accelerator nodes are out of scheduling. Held nodes count."""
    members = _members(fleet, policy, pool)
    used = sum(1 for node in members if _is_fenced(fleet, node, virtual=virtual))
    limit = policy.budgets.max_fenced.of(len(members), floor=policy.budgets.floor)
    return Usage(pool=pool, kind="fenced", limit=limit, used=used)


def disrupted(fleet: Fleet, policy: Policy, pool: str, *, virtual: bool = False) -> Usage:
    """What is being drained or repaired. Held and opted-out nodes leave both the count and the population."""
    members = [node for node in _members(fleet, policy, pool) if not _set_aside(fleet, node)]
    used = sum(1 for node in members if _is_disrupted(fleet, node, virtual=virtual))
    limit = policy.budgets.max_disrupted.of(len(members), floor=policy.budgets.floor)
    return Usage(pool=pool, kind="disrupted", limit=limit, used=used)


def without_room(
    count: Callable[..., Usage], fleet: Fleet, policy: Policy, node: Node, *, virtual: bool
) -> Usage | None:
    """The budget that has no room for taking this node, if any. A node that counts already takes no more room."""
    taken = _is_fenced if count is fenced else _is_disrupted
    if taken(fleet, node, virtual=virtual):
        return None
    for pool in (policy.pool_of(node.metadata.labels), CLUSTER):
        usage = count(fleet, policy, pool, virtual=virtual)
        if not usage.room:
            return usage
    return None


def _members(fleet: Fleet, policy: Policy, pool: str) -> list[Node]:
    nodes = (fleet.nodes[name] for name in fleet.reports if name in fleet.nodes)
    if pool == CLUSTER:
        return list(nodes)
    return [node for node in nodes if policy.pool_of(node.metadata.labels) == pool]


def _sessions(fleet: Fleet, node: Node, *, virtual: bool) -> list[AcceleratorRemediation]:
    return [
        session
        for session in fleet.open_sessions(node.name)
        if session.spec.node_uid == node.metadata.uid and (virtual or session.spec.mode is not Mode.OBSERVE)
    ]


def _is_fenced(fleet: Fleet, node: Node, *, virtual: bool) -> bool:
    starting = node.name in fleet.starting and (virtual or not fleet.starting[node.name])
    has_session = bool(_sessions(fleet, node, virtual=virtual))
    return node.spec.unschedulable or not node.ready or starting or has_session


def _is_disrupted(fleet: Fleet, node: Node, *, virtual: bool) -> bool:
    if not node.ready:
        return True
    return any(session.current.phase in _DISRUPTING for session in _sessions(fleet, node, virtual=virtual))


def _set_aside(fleet: Fleet, node: Node) -> bool:
    held = any(session.current.phase is Phase.HELD for session in fleet.open_sessions(node.name))
    return held or fleet.switch(node.name) is NodeAction.OPT_OUT


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
