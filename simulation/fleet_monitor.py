"""Watches a simulated fleet from outside: what the controller did, what it cost, and whether it did wrong.

It knows the truth that the controller does not: what is broken, who holds which device, and whose each cordon is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from health.vocabulary import Phase
from remediation.fleet import SESSION_KEY
from remediation.policy import Policy
from runtime.clock import Clock
from simulation.cluster.interface import Object, Store, StoreEvent
from simulation.cluster.view import ready

_SESSIONS = "acceleratorremediations.sickbay.dev"
_HOUR = 3600.0
_SAMPLE = 600.0


UNDER_WAY = 120.0
"""Seconds for which a repair may already have been under way when a person uncordoned its node: nobody calls back a
container that has looked and found that it may."""


@dataclass(slots=True)
class _Seen:
    """A node as it was last seen; `since` is when it went out of scheduling, None while it is in it."""

    ours: bool = False
    cordoned: bool = False
    ready: bool = False
    since: float | None = None
    pool: str = ""

    @property
    def out(self) -> bool:
        return self.cordoned or not self.ready


@dataclass(slots=True)
class Monitor:
    """Subscribe it before the fleet's first step. All times are monotonic seconds of `clock`."""

    store: Store
    clock: Clock
    policy: Policy
    gpus: int
    wrong: list[str] = field(default_factory=list)
    """Each thing that must never happen and did."""
    deeds: Counter[str] = field(default_factory=Counter)
    unneeded: Counter[str] = field(default_factory=Counter)
    """Deeds on nodes where nothing was broken any more: not forbidden, but for nothing."""
    most_fenced: int = 0
    most_disrupted: int = 0
    gpu_hours_out: float = 0.0
    timeline: list[tuple[float, int, int]] = field(default_factory=list)
    """(Time, nodes that we have cordoned, nodes out of scheduling), every ten minutes at most."""
    people: set[str] = field(default_factory=set)
    """Nodes of which a person has set the cordon."""
    _let_go: dict[str, float] = field(default_factory=dict)
    """When a person last uncordoned a node."""
    _nodes: dict[str, _Seen] = field(default_factory=dict)
    _sessions: dict[str, Object] = field(default_factory=dict)
    _sampled: float = float("-inf")

    def __post_init__(self) -> None:
        self.store.subscribe(self._hear)

    def cordon(self, name: str) -> None:
        """A person cordons a node."""
        self.people.add(name)
        self.store.patch("nodes", name, {"spec": {"unschedulable": True}})

    def uncordon(self, name: str) -> None:
        """A person uncordons a node."""
        self.people.discard(name)
        self._let_go[name] = self.clock.monotonic()
        self.store.patch("nodes", name, {"spec": {"unschedulable": None}})

    def deed(self, node: str, step: str, needed: bool) -> None:
        """A repair acts on a node."""
        self.deeds[step] += 1
        if not needed:
            self.unneeded[step] += 1
        seen = self._nodes.get(node, _Seen())
        late = self.clock.monotonic() - self._let_go.get(node, float("-inf")) <= UNDER_WAY
        if not seen.ours and node not in self.people and not late:
            self.wrong.append(f"{self._moment()}: {step} of {node}, which nobody has cordoned")

    def finish(self) -> None:
        """The run is over: count what is still out of scheduling up to now."""
        now = self.clock.monotonic()
        for seen in self._nodes.values():
            if seen.since is not None:
                self.gpu_hours_out += self.gpus * (now - seen.since) / _HOUR
                seen.since = now

    @property
    def cordoned_by_us(self) -> list[str]:
        """Nodes with a cordon of the controller's."""
        return sorted(name for name, seen in self._nodes.items() if seen.ours)

    def outcomes(self) -> Counter[str]:
        """Sessions by phase, with the reason of those that are held."""
        counts: Counter[str] = Counter()
        for session in self._sessions.values():
            status = session.get("status") or {}
            phase = str(status.get("phase", "Pending"))
            counts[f"{phase}: {status.get('reason', '')}" if phase == Phase.HELD else phase] += 1
        return counts

    def unsettled(self) -> list[str]:
        """Nodes of ours whose session is neither being worked on nor held: a cordon that nobody would ever lift."""
        waiting = {
            session["spec"]["nodeName"]
            for session in self._sessions.values()
            if (session.get("status") or {}).get("phase", "Pending") not in (Phase.RELEASED, Phase.CANCELLED)
        }
        return [name for name in self.cordoned_by_us if name not in waiting]

    def _hear(self, event: StoreEvent) -> None:
        if event.resource == _SESSIONS:
            self._session(event)
        elif event.resource == "nodes":
            self._node(event)

    def _session(self, event: StoreEvent) -> None:
        name = event.object["metadata"]["name"]
        if event.type == "DELETED":
            return  # its outcome still counts
        self._sessions[name] = event.object
        phases = [(one.get("status") or {}).get("phase") for one in self._sessions.values()]
        disrupted = sum(phase in (Phase.DRAINING, Phase.REPAIRING, Phase.VERIFYING) for phase in phases)
        self.most_disrupted = max(self.most_disrupted, disrupted)

    def _node(self, event: StoreEvent) -> None:
        meta, spec = event.object["metadata"], event.object.get("spec") or {}
        name, now = meta["name"], self.clock.monotonic()
        seen = self._nodes.setdefault(name, _Seen())
        if event.type == "DELETED":
            del self._nodes[name]
            return
        before = (seen.ours, seen.cordoned)
        seen.cordoned = bool(spec.get("unschedulable"))
        seen.ours = seen.cordoned and SESSION_KEY in (meta.get("annotations") or {})
        seen.ready = ready(event.object)
        seen.pool = self.policy.pool_of(meta.get("labels") or {})
        if seen.ours and not before[0]:
            self._fenced(name, seen)
        if before == (False, True) and not seen.cordoned and name in self.people:
            self.wrong.append(f"{self._moment()}: a person's cordon of {name} was lifted")
        if seen.out and seen.since is None:
            seen.since = now
        elif not seen.out and seen.since is not None:
            self.gpu_hours_out += self.gpus * (now - seen.since) / _HOUR
            seen.since = None
        self._sample(now)

    def _fenced(self, name: str, seen: _Seen) -> None:
        """A cordon of ours is new: were there too many out already, in its pool or in all?"""
        self.most_fenced = max(self.most_fenced, len(self.cordoned_by_us))
        budgets = self.policy.budgets
        for where in (seen.pool, ""):
            members = [one for one in self._nodes.values() if where in ("", one.pool)]
            limit = budgets.max_fenced.of(len(members), floor=budgets.floor)
            out = sum(one.out for one in members)
            if out > limit:
                place = f"pool {where}" if where else "the cluster"
                self.wrong.append(f"{self._moment()}: {name} was fenced as node {out} of {limit} in {place}")

    def _sample(self, now: float) -> None:
        if now - self._sampled >= _SAMPLE:
            self._sampled = now
            out = sum(seen.out for seen in self._nodes.values())
            self.timeline.append((now, len(self.cordoned_by_us), out))

    def _moment(self) -> str:
        return self.clock.wall().strftime("%H:%M:%S")
