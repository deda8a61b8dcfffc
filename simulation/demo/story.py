"""What has happened since a fault, told in lines: each change of what there is to see, once, with its time."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from health.vocabulary import Phase
from remediation.objects import JournalEntry, JournalEvent, RemediationStatus
from simulation.demo.watch import NodeView, SessionView, View

ENDED = frozenset({Phase.RELEASED, Phase.CANCELLED})


@dataclass(frozen=True, slots=True)
class Line:
    """One line: seconds since the fault, and how it is meant: `bad`, `good`, `step` or empty."""

    seconds: float
    text: str
    mood: str = ""


@dataclass(slots=True)
class Story:
    """Follows the sessions and nodes from a fault at `began` on; `before` are sessions that were there already."""

    began: datetime
    before: frozenset[str] = frozenset()
    lines: list[Line] = field(default_factory=list)
    _told: set[tuple[str, int]] = field(default_factory=set)
    _phases: dict[str, str] = field(default_factory=dict)
    _nodes: dict[str, NodeView] = field(default_factory=dict)
    _repairs: dict[str, str] = field(default_factory=dict)
    _plans: set[str] = field(default_factory=set)
    _budgets: str = ""

    def say(self, text: str, now: datetime, mood: str = "") -> Line:
        """A line of the demo's own."""
        line = Line(self._since(now), text, mood)
        self.lines.append(line)
        return line

    def follow(self, view: View, now: datetime) -> list[Line]:
        """Take in what is seen now; what is new."""
        first = len(self.lines)
        for node in view.nodes:
            self._follow_node(node, now)
        self._follow_repairs(view, now)
        for session in view.sessions:
            if session.name not in self.before:
                self._follow_session(session, now)
        self._follow_budgets(view, now)
        # The journal has the times of the deeds, the rest those at which it was seen.
        self.lines[first:] = sorted(self.lines[first:], key=lambda line: line.seconds)
        return self.lines[first:]

    def _follow_node(self, node: NodeView, now: datetime) -> None:
        seen, self._nodes[node.name] = self._nodes.get(node.name), node
        if seen is None:
            return
        for fault in node.faults:
            if fault not in seen.faults:
                self.say(f"{node.name}'s agent reports {fault}", now, "bad")
        if seen.faults and not node.faults:
            self.say(f"{node.name}'s agent reports no fault any more", now, "good")
        if seen.says != node.says:
            mood = "good" if node.says == "Ready" else "bad"
            self.say(f"Kubernetes: {node.name} is {node.says}", now, mood)
        if seen.offered != node.offered:
            self.say(f"Kubernetes: {node.name} offers {node.offered} GPUs", now)
        self._follow_pods(seen, node, now)

    def _follow_pods(self, seen: NodeView, node: NodeView, now: datetime) -> None:
        known = {pod.uid: pod.phase for pod in seen.pods}
        for pod in node.pods:
            if known.get(pod.uid) != pod.phase and pod.phase in ("Running", "Terminating", "Failed"):
                self.say(f"pod {pod.name} on {node.name}: {pod.phase}", now)

    def _follow_repairs(self, view: View, now: datetime) -> None:
        phases = {pod.uid: pod.phase for pod in view.repairs}
        for pod in view.repairs:
            if self._repairs.get(pod.uid) != pod.phase and pod.phase != "Pending":
                self.say(f"repair pod {pod.name} on {pod.node}: {pod.phase}", now)
        self._repairs = phases

    def _follow_session(self, session: SessionView, now: datetime) -> None:
        status = session.status
        if status.plan and session.name not in self._plans:
            self._plans.add(session.name)
            self.say(f"session {session.name}, plan: {plan_of(status)}", now)
        for entry in status.journal:
            self._follow_entry(entry)
        if self._phases.get(session.name) != status.phase:
            self._phases[session.name] = status.phase
            if status.phase in (Phase.HELD, *ENDED):
                mood = "bad" if status.phase is Phase.HELD else "good"
                why = f": {status.message}" if status.phase is Phase.HELD else ""
                self.say(f"session {session.name} is {status.phase} ({status.reason}){why}", now, mood)
            elif status.phase is Phase.VERIFYING:
                self.say("nothing is left of the faults: the healthy dwell begins", now)

    def _follow_entry(self, entry: JournalEntry) -> None:
        key = (f"{entry.time.isoformat()}/{entry.step}/{entry.event}/{entry.result}", entry.attempt)
        if key in self._told:
            return
        self._told.add(key)
        if entry.event is JournalEvent.INTENT:
            text = f"{entry.step} begins"
        else:
            text = f"{entry.step}: {entry.result}{f', {entry.message}' if entry.message else ''}"
        self.lines.append(Line(self._since(entry.time), text, "step"))

    def _follow_budgets(self, view: View, now: datetime) -> None:
        told = budgets_told(view)
        if told and told != self._budgets:
            if self._budgets:
                self.say(f"budgets: {told}", now)
            self._budgets = told

    def _since(self, moment: datetime) -> float:
        return max(0.0, (moment - self.began).total_seconds())


def plan_of(status: RemediationStatus) -> str:
    """The ladder in one line."""
    return "; else ".join(f"{rung.rung} ({', '.join(rung.steps)})" for rung in status.plan)


def budgets_told(view: View) -> str:
    """The budgets in one line."""
    return ", ".join(f"{kind} {one.used} of {one.limit}" for kind, one in sorted(view.budgets.items()))


def steps_done(status: RemediationStatus) -> set[str]:
    """The steps of which the journal has a good end."""
    return {
        entry.step
        for entry in status.journal
        if entry.event is JournalEvent.OUTCOME and entry.result == "Done"
    }
