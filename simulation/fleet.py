"""A simulated fleet of GPU nodes on the embedded Kubernetes API, in one process and under any clock.

Machines, kubelets and device plugins are simulated; the agents' reports are made by the agent's own code. Faults come
from a seeded schedule with published rates, or are asked for; repairs help or do not, by their probability.

    python -m simulation.fleet --nodes 500 --hours 24 --seed 1 --speed max
"""

from __future__ import annotations

import heapq
import math
import random
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from runtime.clock import Clock
from simulation.cluster.control_plane import ControlPlane
from simulation.cluster.kubelet_node import Timings
from simulation.cluster.node_lifecycle import GRACE_SECONDS
from simulation.cluster.store import ClusterStore
from simulation.fleet_agent import REPORTS
from simulation.fleet_faults import Schedule, Strike, storm
from simulation.fleet_node import FleetNode
from simulation.fleet_rates import Rates, builtin
from simulation.fleet_workloads import Load, Workloads

_ROUNDS = 10_000
_OFFERED = 1.5
"""Status periods of a kubelet until its node surely offers what its plugin lists."""


class UnsettledFleetError(Exception):
    """The fleet did not come to rest at one moment: two of its parts undo each other's work."""


@dataclass(frozen=True, slots=True)
class Profile:
    """How a fleet is made. Times are seconds; pairs are the least and the most of a uniform draw."""

    gpus: int = 8
    load: Load = field(default_factory=Load)
    renew_interval: float = 30.0
    boot_seconds: tuple[float, float] = (120.0, 600.0)
    agent_seconds: tuple[float, float] = (5.0, 20.0)
    """From the boot to the agent's start."""
    lost_seconds: tuple[float, float] = (1200.0, 14_400.0)
    """For how long a host is down that is lost and comes back."""
    recurs_seconds: tuple[float, float] = (20.0, 180.0)
    """From a repair that did not help until that shows."""
    start_spread: float = 30.0
    """Agents start within so many seconds, so that they do not all renew at once."""
    timings: Timings = field(default_factory=Timings)
    node_grace: float = GRACE_SECONDS


class Fleet:
    """`step` does all that is due by now; between the steps the caller moves the clock, or waits."""

    def __init__(
        self,
        store: ClusterStore,
        *,
        size: int,
        seed: int = 0,
        clock: Clock,
        rates: Rates | None = None,
        pools: Sequence[str] = (),
        profile: Profile | None = None,
    ) -> None:
        """`pools`: the nodes take turns at them, by their label `sickbay.dev/pool`. Raises ValueError for a size below
        1. The Nodes are there after the first `step`."""
        if size < 1:
            raise ValueError(f"a fleet has at least one node, not {size}")
        self.profile = profile or Profile()
        self.rates = rates or builtin()
        self._store = store
        self._clock = clock
        self._seed = seed
        self._rng = random.Random(f"{seed}/fleet")  # noqa: S311
        self.struck: Counter[str] = Counter()
        """Strikes by cause, of those that met a node that was up."""
        self.recurred: Counter[str] = Counter()
        """What showed again after a repair that did not help, by cause."""
        self.on_deed: Callable[[str, str, bool], None] = lambda node, step, needed: None
        """Called with (node, step, whether anything was broken) when a repair acts."""
        self.plane = ControlPlane(
            store,
            clock=clock,
            timings=self.profile.timings,
            node_grace=self.profile.node_grace,
            collected=(REPORTS,),
            boot_ids=self._new_id,
        )
        start = clock.monotonic()
        self.schedule = Schedule(self.rates, nodes=size, gpus=self.profile.gpus, seed=seed, start=start)
        self.nodes = [self._node(number, size, pools) for number in range(size)]
        self._by_name = {node.name: node for node in self.nodes}
        self.workloads = Workloads(store, self.profile.load, nodes=size, gpus=self.profile.gpus, seed=seed)
        self._due: list[tuple[float, int]] = []
        self._begun = False
        self._submits_at = math.inf

    def node(self, name: str) -> FleetNode:
        """Raises KeyError."""
        if name not in self._by_name:
            raise KeyError(
                f"no node of this fleet is named {name!r}; they are {self.nodes[0].name} and so on"
            )
        return self._by_name[name]

    def step(self, now: float) -> None:
        """Do everything that is due by `now` (monotonic seconds), and what follows from it at this moment."""
        if not self._begun:
            self._begin(now)
        for _ in range(_ROUNDS):
            self.plane.settle()
            worked = self.workloads.work()
            if now >= self._submits_at:
                self._submits_at, worked = math.inf, True
                self.workloads.submit()
            for strike in self.schedule.due(now):
                self._strike(strike)
                worked = True
            if not (self._work(now) or worked):
                return
        raise UnsettledFleetError(f"after {_ROUNDS} rounds there is still work due at the same moment")

    def next_due(self) -> float:
        """When to call `step` next, if nothing changes before."""
        due = self._due[0][0] if self._due else None
        times = [self.plane.next_due(), self.schedule.next_due(), self._submits_at, due]
        return min((time for time in times if time is not None), default=0.0) if self._begun else 0.0

    def inject(self, name: str, what: str | int, *, gpu: int = 0) -> None:
        """A fault now: a cause's name, or an Xid as `xid:79` or 79. Raises KeyError, IndexError."""
        text = str(what).removeprefix("xid:")
        cause = self.rates.for_xid(int(text)) if text.isdecimal() else self.rates[text]
        if not 0 <= gpu < self.profile.gpus:
            raise IndexError(f"the nodes have GPUs 0 to {self.profile.gpus - 1}, not {gpu}")
        self.schedule.add(cause, at=self._clock.monotonic(), node=self.node(name).number, gpu=gpu)

    def storm(self, fraction: float, within: float, *, what: str = "hbm-uncorrectable") -> int:
        """A fraction of all nodes is struck by a cause within so many seconds from now; how many. Raises ValueError."""
        cause, now = self.rates[what], self._clock.monotonic()
        struck = storm(self._rng.randrange(2**32), nodes=len(self.nodes), fraction=fraction, within=within)
        for after, number in struck:
            gpu = self._rng.randrange(self.profile.gpus)
            self.schedule.add(cause, at=now + after, node=number, gpu=gpu)
        return len(struck)

    def calm(self) -> None:
        """No more faults come by the rates."""
        self.schedule.end()

    def reports_written(self) -> Counter[str]:
        """Writes of reports by kind, of the agents that run now and those that ran."""
        total: Counter[str] = Counter()
        for node in self.nodes:
            total.update(node.writes())
        return total

    def acted(self, node: str, step: str, needed: bool) -> None:
        """A repair acts on a node; `needed`: something of it was broken."""
        self.on_deed(node, step, needed)

    def _begin(self, now: float) -> None:
        self._begun = True
        self._submits_at = now + _OFFERED * self.profile.timings.status
        self.workloads.begin()
        for node in self.nodes:
            self.plane.kubelets.add_node(node.shape, boot_id=self._new_id())
        self.plane.settle()
        for node in self.nodes:
            node.starts_at = now + self._rng.uniform(0, self.profile.start_spread)
            self.wake(node.number, node.starts_at)

    def wake(self, number: int, at: float) -> None:
        """Look at a node then."""
        heapq.heappush(self._due, (at, number))

    def _work(self, now: float) -> bool:
        worked = False
        while self._due and self._due[0][0] <= now:
            at, number = heapq.heappop(self._due)
            node = self.nodes[number]
            if node.next_due() > at and node.next_due() > now:
                continue  # it was looked at since
            worked = node.work(now) or worked
            due = node.next_due()
            if due < float("inf"):
                self.wake(number, due)
        return worked

    def _node(self, number: int, size: int, pools: Sequence[str]) -> FleetNode:
        return FleetNode(
            number,
            seed=self._seed,
            pool=pools[number % len(pools)] if pools else "",
            use=self.profile.load.use_of(number, size),
            profile=self.profile,
            store=self._store,
            clock=self._clock,
            fleet=self,
        )

    def _strike(self, strike: Strike) -> None:
        node = self.nodes[strike.node]
        if strike.again and strike.cause not in node.machine.broken.values():
            return  # it was healed meanwhile
        if node.struck(strike.cause, strike.gpu):
            (self.recurred if strike.again else self.struck)[strike.cause.name] += 1

    def _new_id(self) -> str:
        return str(uuid.UUID(int=self._rng.getrandbits(128), version=4))


if __name__ == "__main__":
    from simulation.fleet_run import main

    raise SystemExit(main())
