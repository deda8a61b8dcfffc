"""What a repair program leaves on the host, and the agent tells in its report: that it acted, and how it went.

A receipt is a JSON file in the host's `/run/sickbay/receipts`, which a boot empties. The repair program (in a Job's
container) writes it; the agent, which alone proves by its token which node it speaks for, carries it to the
controller. The status of a Job or Pod decides nothing.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum

import msgspec

from health.wire import Time, Wire

RECEIPT_FOLDER = "/run/sickbay/receipts"
RECEIPTS_LIMIT = 16
"""Receipts in a report; the newest count."""

RECEIPT_MESSAGE_LIMIT = 512
"""Characters of a receipt's message; the schema allows no more."""

RECEIPT_DEVICES_LIMIT = 16
"""Devices of one receipt: the GPUs of one baseboard. The largest report must stay below what etcd takes."""

RECEIPT_FILE_LIMIT = 16 * 1024
"""Bytes of a receipt's file; nothing larger is read."""


RESET = "Reset"
"""The step that resets devices."""


class RepairResult(StrEnum):
    """How a repair ended. `Begun` is written before the deed: alone, it says that the outcome is not known."""

    BEGUN = "Begun"
    DONE = "Done"
    HELD = "Held"
    """Nothing was done: somebody holds the device; the message names who."""
    FAILED = "Failed"


class Receipt(Wire, frozen=True):
    """One repair on this host. `step` is `Reset`, `Reboot` or `RestartService`; `devices` are UUIDs, for a reset."""

    session: str
    step: str
    attempt: int
    boot_id: str
    result: str
    time: Time
    devices: tuple[str, ...] = ()
    message: str = ""

    @property
    def identity(self) -> tuple[str, str, int]:
        """(session, step, attempt): what is done once at most."""
        return (self.session, self.step, self.attempt)


def receipt_name(session: str, step: str, attempt: int) -> str:
    """The receipt's file name: `reset-1-` and 16 hex digits of SHA-256 of the session."""
    digest = hashlib.sha256(session.encode()).hexdigest()[:16]
    return f"{step.lower()}-{attempt}-{digest}.json"


def read_receipt(document: bytes) -> Receipt:
    """Raises msgspec.MsgspecError for what is no receipt."""
    return msgspec.json.decode(document, type=Receipt)
