"""The demo as lines of text: for a log, a pipe, a small terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TextIO

from simulation.demo.story import Line, budgets_told
from simulation.demo.watch import NodeView, View

_WIDTH = 110


class PlainOutlet:
    """Writes each line as it comes."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def heading(self, text: str) -> None:
        """What comes now."""
        self._write(f"\n{text}\n")

    def note(self, text: str) -> None:
        """A line without a time, for a person to copy."""
        self._write(f"{text}\n")

    def prose(self, text: str) -> None:
        """A sentence or two."""
        self._write(f"{textwrap.fill(text, _WIDTH)}\n")

    def show(self, lines: Sequence[Line], view: View) -> None:
        """News."""
        for line in lines:
            self._write(f"{rendered(line)}\n")

    def nodes(self, view: View) -> None:
        """The cluster as it stands."""
        for node in view.nodes:
            self._write(f"  {described(node)}\n")
        if told := budgets_told(view):
            self._write(f"  budgets: {told}\n")

    def close(self) -> None:
        """Nothing is left to do."""

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def rendered(line: Line) -> str:
    """A line with its time."""
    return f"{line.seconds:7.2f} s  {line.text}"


def described(node: NodeView) -> str:
    """A node in one line."""
    pods = ", ".join(pod.name if pod.phase == "Running" else f"{pod.name} ({pod.phase})" for pod in node.pods)
    parts = [
        f"{node.healthy} of {node.devices} GPUs healthy, {node.offered} offered",
        ", ".join(node.faults) or "no fault",
        pods or "no pods",
    ]
    return f"{node.name}  {node.says:<24}  {'; '.join(parts)}"
