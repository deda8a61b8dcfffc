"""What a step comes to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from remediation.drain_state import DrainState
from remediation.fleet import Node
from remediation.plugin_state import PluginRestart
from remediation.repair_state import RepairState


class Result(StrEnum):
    """How a step ended, as the journal says it."""

    DONE = "Done"
    ALREADY_CORDONED = "AlreadyCordoned"
    NOT_OURS = "NotOurs"
    WAITING = "Waiting"
    BLOCKED = "Blocked"
    DEADLINE = "DeadlineReached"
    CHANGED = "Changed"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result, one sentence for people, and the node as the API server answered it, where it did.

    `hold`: why the session needs a person now, as a CamelCase word. `again`: seconds until a step that waits is
    taken again. `drain`, `restart` and `repair`: what the step wants remembered in the session's status.
    """

    result: Result
    message: str
    node: Node | None = None
    hold: str = ""
    again: float | None = None
    drain: DrainState | None = None
    restart: PluginRestart | None = None
    repair: RepairState | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the plan goes on."""
        return self.result in (Result.DONE, Result.ALREADY_CORDONED, Result.NOT_OURS)

    @property
    def failed(self) -> bool:
        """Whether it did not go through, and is to be looked at again."""
        return self.result in (Result.CHANGED, Result.FAILED)
