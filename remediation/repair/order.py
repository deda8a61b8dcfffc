"""What a repair program is told to do, and how it says that it ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum

from health.receipt import RECEIPT_MESSAGE_LIMIT, Receipt, RepairResult


class Step(StrEnum):
    """The repairs, as sessions and receipts name them."""

    RESET = "Reset"
    REBOOT = "Reboot"
    RESTART_SERVICE = "RestartService"


class Exit(IntEnum):
    """Exit codes of `sickbay repair`; 1 (unforeseen) and 2 (usage) are those of every command."""

    DONE = 0
    """Done, or nothing to do."""
    NOT_ALLOWED = 4
    UNREACHABLE = 5
    HELD = 6
    FAILED = 7
    REFUSED = 8


@dataclass(frozen=True, slots=True)
class Order:
    """One repair, once: (session, step, attempt), in the boot that it is meant for. `devices` are UUIDs."""

    session: str
    step: Step
    attempt: int
    boot_id: str
    devices: tuple[str, ...] = ()

    def receipt(self, result: RepairResult, *, time: datetime, message: str = "") -> Receipt:
        """The receipt of this order; the message is cut to what the schema allows."""
        shown = "".join(letter if letter.isprintable() else " " for letter in message)
        return Receipt(
            session=self.session,
            step=self.step,
            attempt=self.attempt,
            boot_id=self.boot_id,
            result=result,
            time=time,
            devices=self.devices,
            message=shown[:RECEIPT_MESSAGE_LIMIT],
        )


@dataclass(frozen=True, slots=True)
class Ended:
    """How the deed ended."""

    result: RepairResult
    message: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the program ends: its exit code, and one line for people."""

    code: int
    message: str
