"""What runs in a simulated container: a program of the caller's, or one that ends by the pod's annotations.

| annotation of the pod | what it says |
|---|---|
| `sickbay.dev/simulate-seconds` | seconds until the process ends by itself; without it, it runs until it is told |
| `sickbay.dev/simulate-exit` | its exit code then, 0 to 255 (0) |
| `sickbay.dev/simulate-ready-seconds` | seconds from start to the Ready of a container (0) |
| `sickbay.dev/simulate-stop-seconds` | seconds from SIGTERM to its end, with 143 (0); `ignored` waits for SIGKILL |

Each counts for every container but init containers, or with `.NAME` appended for the one of that name, init or not.
An init container that no annotation names ends at once with 0. A value that cannot be read is as if it were not
there, as nothing may crash on what a person annotates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from simulation.cluster.interface import Object

PREFIX = "sickbay.dev/simulate-"
SECONDS = f"{PREFIX}seconds"
EXIT = f"{PREFIX}exit"
READY = f"{PREFIX}ready-seconds"
STOP = f"{PREFIX}stop-seconds"
IGNORED = "ignored"

SIGTERM_EXIT = 143
SIGKILL_EXIT = 137


class Program(Protocol):
    """One run of a container's process. All times are monotonic seconds; nothing blocks."""

    def poll(self, now: float) -> int | None:
        """The exit code (0 to 255) once it has ended."""

    def due(self) -> float | None:
        """When to poll next; None to be polled only after `Launch.wake`."""

    def terminate(self, now: float) -> None:
        """SIGTERM: end soon. What does not is killed when the grace is over."""

    def kill(self) -> None:
        """SIGKILL, or the node went down: it has ended, and its exit code does not matter any more."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A container that starts: what a program needs to know."""

    node: str
    boot_id: str
    pod: Object
    container: str
    init: bool
    started: float
    wake: Callable[[], None]
    """From any thread: the program has something to tell, poll it now."""


Programs = Callable[[Launch], Program | None]
"""The program of a container; None for the one that the annotations describe."""


class TimedProgram:
    """A process that ends after a time with an exit code, and after SIGTERM within another time."""

    def __init__(self, *, ends: float | None, exit_code: int, stop_seconds: float | None) -> None:
        self._ends = ends
        self._exit_code = exit_code
        self._stop_seconds = stop_seconds

    def poll(self, now: float) -> int | None:
        return self._exit_code if self._ends is not None and now >= self._ends else None

    def due(self) -> float | None:
        return self._ends

    def terminate(self, now: float) -> None:
        if self._stop_seconds is None:
            return
        ends = now + self._stop_seconds
        if self._ends is None or ends < self._ends:
            self._ends, self._exit_code = ends, SIGTERM_EXIT

    def kill(self) -> None:
        self._ends = self._stop_seconds = None


def annotated(launch: Launch) -> TimedProgram:
    """The program that the pod's annotations describe."""
    notes: Mapping[str, str] = launch.pod["metadata"].get("annotations") or {}
    seconds = _number(_said(notes, SECONDS, launch))
    if seconds is None and launch.init:
        seconds = 0.0
    said = _said(notes, STOP, launch)
    code = _number(_said(notes, EXIT, launch))
    return TimedProgram(
        ends=None if seconds is None else launch.started + seconds,
        exit_code=int(code) if code is not None and 0 <= code <= 255 else 0,
        stop_seconds=None if said == IGNORED else _number(said) or 0.0,
    )


def ready_seconds(pod: Object, container: str) -> float:
    """Seconds from a container's start to its being ready."""
    notes: Mapping[str, str] = pod["metadata"].get("annotations") or {}
    return _number(notes.get(f"{READY}.{container}", notes.get(READY))) or 0.0


def _said(notes: Mapping[str, str], key: str, launch: Launch) -> str | None:
    return notes.get(f"{key}.{launch.container}", None if launch.init else notes.get(key))


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value < 1e9 else None
