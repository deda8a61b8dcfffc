"""The demo on a terminal: nodes, plan and budgets stay in sight below the lines of the story."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from health.vocabulary import Phase
from remediation.objects import RemediationStatus
from simulation.demo.plain import rendered
from simulation.demo.story import Line, budgets_told, steps_done
from simulation.demo.watch import NodeView, SessionView, View

_STYLES = {"bad": "bold red", "good": "bold green", "step": "cyan", "": ""}
_REFRESHES_A_SECOND = 8


class ScreenOutlet:
    """Prints lines as they come and keeps the cluster's state below them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(
            console=console, refresh_per_second=_REFRESHES_A_SECOND, transient=True, redirect_stderr=False
        )
        self._started = False

    def heading(self, text: str) -> None:
        """What comes now."""
        self._console.print(Text(f"\n{text}", style="bold"))

    def note(self, text: str) -> None:
        """A line without a time, for a person to copy."""
        self._console.print(Text(text), soft_wrap=True)

    def prose(self, text: str) -> None:
        """A sentence or two."""
        self._console.print(Text(text))

    def show(self, lines: Sequence[Line], view: View) -> None:
        """News, and the state as it is now."""
        if not self._started:
            self._started = True
            self._live.start()
        for line in lines:
            self._console.print(Text(rendered(line), style=_STYLES[line.mood]))
        self._live.update(state(view))

    def nodes(self, view: View) -> None:
        """The cluster as it stands."""
        self._console.print(nodes_table(view))

    def close(self) -> None:
        """Give the terminal back."""
        if self._started:
            self._live.stop()
            self._started = False


def state(view: View) -> RenderableType:
    """What stays in sight."""
    parts: list[RenderableType] = [nodes_table(view)]
    newest = max(view.sessions, key=lambda one: one.born, default=None)
    if newest is not None:
        parts.append(plan_line(newest))
    if told := budgets_told(view):
        parts.append(Text(f"budgets: {told}", style="dim"))
    return Panel(Group(*parts), title="what Kubernetes sees", title_align="left", border_style="dim")


def nodes_table(view: View) -> Table:
    """One row a node."""
    table = Table(
        "node", "Kubernetes says", "GPUs healthy", "offered", "faults", "pods", box=None, pad_edge=False
    )
    for node in view.nodes:
        style = "green" if node.says == "Ready" else "red"
        table.add_row(
            node.name,
            Text(node.says, style=style),
            f"{node.healthy} of {node.devices}",
            node.offered,
            Text(", ".join(node.faults) or "none", style="red" if node.faults else ""),
            pods(node),
        )
    return table


def pods(node: NodeView) -> str:
    """How many pods of each workload, and what is not running."""
    names = [
        pod.name.partition("-")[0] + ("" if pod.phase == "Running" else f" ({pod.phase})")
        for pod in node.pods
    ]
    return ", ".join(names) or "none"


def plan_line(session: SessionView) -> Text:
    """The plan with what is done, and what is being done."""
    status = session.status
    line = Text(f"session {session.name}: ", style="dim")
    done = steps_done(status)
    for number, rung in enumerate(status.plan):
        line.append("; else " if number else "", style="dim")
        line.append(f"{rung.rung} ", style="bold" if rung.rung == status.rung else "dim")
        for step in rung.steps:
            line.append(f"{step} ", style=step_style(step, rung.rung, status, done))
    line.append(f" {status.phase}", style="green" if status.phase is Phase.RELEASED else "yellow")
    return line


def step_style(step: str, rung: str, status: RemediationStatus, done: set[str]) -> str:
    """Green what is done, yellow what is under way, dim what is to come."""
    if step == status.step and not status.phase.closed:
        return "bold yellow"
    return "green" if step in done and rung == (status.rung or rung) else "dim"
