"""When what breaks: a schedule that is drawn from a seed, and faults that somebody asks for besides. Pure.

Each cause is a Poisson process over all GPUs with a random source of its own, so that a cause which is added, or whose
rate changes, moves no other one. What strikes a node that is down is dropped by whoever carries it out: a GPU that is
switched off has no hours.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from simulation.fleet_rates import Cause, Rates

_HOUR = 3600.0


@dataclass(frozen=True, slots=True, order=True)
class Strike:
    """A cause strikes a GPU (both by number) at a time in monotonic seconds.

    `drawn`: by the rates, not by a person. `again`: what was broken before shows once more.
    """

    at: float
    number: int
    node: int = field(compare=False)
    gpu: int = field(compare=False)
    cause: Cause = field(compare=False)
    drawn: bool = field(default=True, compare=False)
    again: bool = field(default=False, compare=False)


class Schedule:
    """All strikes of a fleet of `nodes` nodes with `gpus` GPUs each, from `start` (monotonic seconds) on."""

    def __init__(self, rates: Rates, *, nodes: int, gpus: int, seed: int, start: float) -> None:
        self._nodes, self._gpus = nodes, gpus
        self._numbers = itertools.count()
        self._heap: list[Strike] = []
        self._sources = {cause.name: self._arrivals(rates, cause, seed, start) for cause in rates}
        for arrivals in self._sources.values():
            self._draw(arrivals)

    def next_due(self) -> float | None:
        """When the next one strikes."""
        return self._heap[0].at if self._heap else None

    def due(self, now: float) -> Iterator[Strike]:
        """What has struck by now, in its order."""
        while self._heap and self._heap[0].at <= now:
            strike = heapq.heappop(self._heap)
            if strike.drawn:
                self._draw(self._sources[strike.cause.name])
            yield strike

    def add(self, cause: Cause, *, at: float, node: int, gpu: int, again: bool = False) -> None:
        """One that somebody asks for, or (`again`) that follows from an earlier one."""
        number = next(self._numbers)
        heapq.heappush(self._heap, Strike(at, number, node, gpu, cause, drawn=False, again=again))

    def end(self) -> None:
        """Nothing more is drawn; what was asked for and what follows still comes."""
        self._heap = [strike for strike in self._heap if not strike.drawn]
        heapq.heapify(self._heap)

    def _arrivals(self, rates: Rates, cause: Cause, seed: int, start: float) -> Iterator[Strike]:
        drawn = random.Random(f"{seed}/{cause.name}")  # noqa: S311
        per_second = rates.per_gpu_hour(cause) * self._nodes * self._gpus / _HOUR
        at = start
        while per_second > 0:
            at += drawn.expovariate(per_second)
            node, gpu = drawn.randrange(self._nodes), drawn.randrange(self._gpus)
            yield Strike(at, next(self._numbers), node, gpu, cause)

    def _draw(self, arrivals: Iterator[Strike]) -> None:
        if (strike := next(arrivals, None)) is not None:
            heapq.heappush(self._heap, strike)


def storm(seed: int, *, nodes: int, fraction: float, within: float) -> list[tuple[float, int]]:
    """(Seconds from its begin, node's number) of each node that a storm strikes, in time's order.

    Raises ValueError for a fraction outside of 0 to 1 or a negative time.
    """
    if not 0 <= fraction <= 1 or within < 0:
        raise ValueError(
            f"a storm strikes a fraction from 0 to 1 within 0 s or more, not {fraction} in {within} s"
        )
    drawn = random.Random(f"{seed}/storm")  # noqa: S311
    struck = drawn.sample(range(nodes), round(fraction * nodes))
    return sorted((drawn.uniform(0, within), node) for node in struck)
