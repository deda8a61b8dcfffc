"""One run of the demo: set up, let the fault happen, tell what follows, stay or end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol

from health.vocabulary import Phase
from simulation.demo.hints import hints
from simulation.demo.objects import scale_inference
from simulation.demo.processes import DemoError
from simulation.demo.scenario import Scenario, kernel_line
from simulation.demo.story import ENDED, Line, Story, steps_done
from simulation.demo.watch import Budget, SessionView, View, budgets_of, look
from simulation.demo.world import TICK_SECONDS, World

HEALED_WITHIN = 90.0
"""Seconds from the fault to the node's return, after which something is wrong."""

SETTLED_WITHIN = 20.0
"""Seconds from there until it has new work, all pods run, and the budgets are free again."""

REPLICAS = 4
"""Of the inference service in the end: so many that each node gets new ones."""


class Outlet(Protocol):
    """Where the story is shown."""

    def heading(self, text: str) -> None:
        """What comes now."""

    def note(self, text: str) -> None:
        """A line without a time, for a person to copy."""

    def prose(self, text: str) -> None:
        """A sentence or two."""

    def show(self, lines: Sequence[Line], view: View) -> None:
        """News, and the state as it is now."""

    def nodes(self, view: View) -> None:
        """The cluster as it stands."""

    def close(self) -> None:
        """Give the terminal back."""


class Run:
    """A world, a scenario and where it is told."""

    def __init__(self, world: World, scenario: Scenario, outlet: Outlet) -> None:
        self._world = world
        self._scenario = scenario
        self._outlet = outlet
        self._budgets: dict[str, Budget] = {}
        self._budgets_at = 0.0
        self._story = Story(datetime.now(UTC))
        self._shown = 0
        self._placed: set[str] = set()

    def set_up(self) -> None:
        """Raises DemoError, StoppedError."""
        begun = time.monotonic()
        self._outlet.note(
            "Starting two nodes with 8 simulated H100 each; no root, no cluster, no GPU needed..."
        )
        self._world.start(lambda text: self._outlet.note(f"{time.monotonic() - begun:7.2f} s  {text}"))
        self._outlet.nodes(self._view())

    def tell(self) -> None:
        """From the fault to the node's return. Raises DemoError, StoppedError."""
        scenario, node = self._scenario, self._scenario.node
        host = self._world.hosts[node]
        self._outlet.heading(f"{scenario.title}: {node}")
        self._outlet.prose(scenario.watch)
        if line := kernel_line(scenario):
            self._outlet.note(f"The kernel log of {node} says:\n  {line}")
        before = self._view()
        self._story = Story(datetime.now(UTC), frozenset(one.name for one in before.sessions))
        self._story.follow(before, self._story.began)
        self._shown = 0
        self._placed = {pod.uid for pod in before.node(node).pods}
        host.suffer(scenario)
        boots = host.boots
        self._until(self._healed, HEALED_WITHIN, f"{node} to be healed")
        seconds = self._since()
        self._story.say(
            f"the inference service is scaled to {REPLICAS}: is {node} given work?", datetime.now(UTC)
        )
        scale_inference(self._world.store, REPLICAS)
        self._until(self._at_work, SETTLED_WITHIN, f"all pods to run, some of them on {node}")
        self._prove(seconds, boots)

    def stay(self, *, watched: Callable[[], bool], prometheus: str = "") -> None:
        """Go on telling what happens until somebody ends it, or nobody watches. Raises DemoError, StoppedError."""
        self._outlet.heading("It stays up for you until Ctrl-C:")
        for line in hints(self._world, self._scenario, prometheus=prometheus):
            self._outlet.note(line)
        while watched():
            self._step()

    def _since(self) -> float:
        return (datetime.now(UTC) - self._story.began).total_seconds()

    def _prove(self, seconds: float, boots: int) -> None:
        """Say what the end rests on. Raises DemoError where the node is not healed and schedulable."""
        view = self._view()
        session, node = self._session(view), view.node(self._scenario.node)
        if not session or not node.schedulable or node.faults or not node.ready:
            raise DemoError(f"{node.name} is not healed: {node.says}, {', '.join(node.faults) or 'no fault'}")
        healed_by = self._scenario.healed_by
        if healed_by not in steps_done(session.status):
            raise DemoError(f"{node.name} is back, but not by {healed_by}: the journal has no end of it")
        boots = self._world.hosts[node.name].boots - boots
        booted = f", after {boots} boot" if boots else ", without a boot"
        self._outlet.heading(
            f"{node.name} is healed by {healed_by} and schedulable again {seconds:.1f} s after the fault{booted}."
        )
        self._outlet.nodes(view)

    def _healed(self, view: View) -> bool:
        session, node = self._session(view), view.node(self._scenario.node)
        if session is not None and session.status.phase is Phase.HELD:
            raise DemoError(
                f"session {session.name} is held ({session.status.reason}): {session.status.message}"
            )
        return (
            session is not None
            and session.status.phase in ENDED
            and node.ready
            and node.schedulable
            and not node.faults
            and node.offered == str(node.devices)
        )

    def _at_work(self, view: View) -> bool:
        """Whether pods are placed on the node that came back, all run, and nothing counts against a budget."""
        pods = [pod for node in view.nodes for pod in node.pods if pod.phase not in ("Failed", "Succeeded")]
        here = [pod for pod in view.node(self._scenario.node).pods if pod.uid not in self._placed]
        at_work = bool(here) and not view.pending and all(pod.phase == "Running" for pod in pods)
        return at_work and not any(budget.used for budget in view.budgets.values())

    def _session(self, view: View) -> SessionView | None:
        return view.session_of(self._scenario.node, since=sorted(self._story.before))

    def _until(self, condition: Callable[[View], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition(self._step()):
            if time.monotonic() >= deadline:
                raise DemoError(f"waited {seconds:g} s for {what}\n{self._world.logs()}")

    def _step(self) -> View:
        """Let the world go on for a moment, and tell what is new."""
        for done in self._world.tick():
            self._story.say(done, datetime.now(UTC))
        view = self._view()
        self._story.follow(view, datetime.now(UTC))
        self._outlet.show(self._story.lines[self._shown :], view)
        self._shown = len(self._story.lines)
        time.sleep(TICK_SECONDS)
        return view

    def _view(self) -> View:
        if time.monotonic() - self._budgets_at >= 0.5:
            self._budgets = budgets_of(self._world.controller_port) or self._budgets
            self._budgets_at = time.monotonic()
        return look(self._world.store, budgets=self._budgets)
