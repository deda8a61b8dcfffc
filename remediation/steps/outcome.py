"""What a step comes to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from remediation.fleet import Node


class Result(StrEnum):
    """How a step ended, as the journal says it."""

    DONE = "Done"
    ALREADY_CORDONED = "AlreadyCordoned"
    NOT_OURS = "NotOurs"
    CHANGED = "Changed"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result, one sentence for people, and the node as the API server answered it, where it did."""

    result: Result
    message: str
    node: Node | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the plan goes on. `Changed` and `Failed` are looked at again."""
        return self.result not in (Result.CHANGED, Result.FAILED)
