"""When the report is written, and how much of it. Pure: the time is passed in.

A new Fatal fault or a rise to Fatal is written at once, always; so is what a repair waits for: a new receipt, and
that the devices were let go of or taken again. Other changes of meaning share a token bucket, so that a flapping
source cannot burden the API server. Counts and last-seen times ride on renewals.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from enum import StrEnum

from health.report import ReportStatus
from health.vocabulary import DeviceAccess, Severity

BURST = 3
REFILL_SECONDS = 5.0
ATTENTIVE_SECONDS = 5.0

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 10.0
LONGEST_FATAL_PAUSE = 1.0
"""Seconds until a failed write is tried again; they double from the first to the longest."""


class Write(StrEnum):
    """The kinds of write: a new or worse Fatal fault, what a repair waits for, another change, a sign of life."""

    FATAL = "fatal"
    REPAIR = "repair"
    CHANGE = "change"
    RENEWAL = "renewal"


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tokens for changes of meaning; full at first. Times are monotonic seconds."""

    tokens: float = BURST
    at: float = float("-inf")

    def ready_at(self, now: float) -> float:
        """When there will be a token: now, or later."""
        missing = 1.0 - self._filled(now)
        return now if missing <= 0 else now + missing * REFILL_SECONDS

    def taken(self, now: float) -> Bucket:
        """The bucket with a token less."""
        return replace(self, tokens=self._filled(now) - 1.0, at=now)

    def _filled(self, now: float) -> float:
        return min(float(BURST), self.tokens + max(0.0, now - self.at) / REFILL_SECONDS)


@dataclass(frozen=True, slots=True)
class Due:
    """What to write, and from when on (monotonic seconds)."""

    write: Write
    at: float


def due(
    wanted: ReportStatus, written: ReportStatus | None, *, bucket: Bucket, renew_at: float, now: float
) -> Due:
    """The next write, from what the report should say and what it does; None where that is not known."""
    if fatal(wanted) - (fatal(written) if written else frozenset()):
        return Due(Write.FATAL, now)
    if written is None:
        return Due(Write.CHANGE, now)
    if _awaited(wanted, written):
        return Due(Write.REPAIR, now)
    change_at = bucket.ready_at(now)
    if change_at < renew_at and meaning(wanted) != meaning(written):
        return Due(Write.CHANGE, change_at)
    return Due(Write.RENEWAL, max(now, renew_at))


def attentive(status: ReportStatus) -> float:
    """Seconds within which the answer to a renewal may be needed: a node that is to be repaired, or is being repaired,
    should not learn half a minute late that it is to let go of its devices, or may take them back."""
    waits = fatal(status) or status.device_access is DeviceAccess.RELEASED
    return ATTENTIVE_SECONDS if waits else math.inf


def retry_pause(failures: int, *, urgent: bool) -> float:
    """Seconds at most until a write that has failed so often is tried again; `urgent`: it tells of a Fatal fault."""
    longest = LONGEST_FATAL_PAUSE if urgent else LONGEST_PAUSE
    return min(longest, FIRST_PAUSE * 2.0 ** min(failures - 1, 10))


def fatal(status: ReportStatus) -> frozenset[tuple[str, str, bool]]:
    """Identities of the Fatal faults, and whether each is a drill: one that becomes real is a new one."""
    return frozenset(
        (*fault.identity, fault.drill) for fault in status.faults if fault.severity is Severity.FATAL
    )


def _awaited(wanted: ReportStatus, written: ReportStatus) -> bool:
    """Whether a repair that is under way waits for what has changed."""
    return wanted.device_access is not written.device_access or not set(wanted.receipts) <= set(
        written.receipts
    )


def meaning(status: ReportStatus) -> Hashable:
    """What somebody acts on; not counts, times, evidence, or how a source words its trouble."""
    return (
        status.node_uid,
        status.boot_id,
        status.agent_version,
        status.driver,
        status.devices,
        tuple(
            (*fault.identity, fault.severity, fault.advice, fault.clears_on, fault.drill)
            for fault in status.faults
        ),
        status.plugin,
        tuple((source.name, source.state) for source in status.sources),
        status.device_access,
        status.drill,
        status.receipts,
    )
