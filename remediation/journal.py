"""A session's status from one step to the next. Pure: every function returns the next status."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from msgspec.structs import replace

from health.report import AcceleratorReport, Fault
from health.vocabulary import ClearsOn, Phase, Severity
from remediation.objects import (
    INCIDENT_LIMIT,
    JOURNAL_LIMIT,
    MESSAGE_LIMIT,
    PHASE_LIMIT,
    Incident,
    JournalEntry,
    JournalEvent,
    PhaseEntry,
    RemediationStatus,
)


def with_entry(status: RemediationStatus, entry: JournalEntry) -> RemediationStatus:
    """The status with one more journal line.

    A line that says the same as one of the last two is folded into it, whatever its attempt: so a step that is
    tried again and again stays one intent and one outcome. A full journal loses its second line, never its first:
    how a session began is worth more than its middle.
    """
    journal = status.journal
    entry = replace(entry, message=entry.message[:MESSAGE_LIMIT])
    for place in range(len(journal) - 1, max(-1, len(journal) - 3), -1):
        if _same(journal[place], entry):
            folded = replace(entry, count=journal[place].count + entry.count)
            return replace(status, journal=(*journal[:place], folded, *journal[place + 1 :]))
    kept = journal if len(journal) < JOURNAL_LIMIT else (journal[0], *journal[2 - JOURNAL_LIMIT :])
    return replace(status, journal=(*kept, entry))


def with_intent(
    status: RemediationStatus, *, step: str, attempt: int, epoch: int, now: datetime, message: str
) -> RemediationStatus:
    """The status that says what is about to be done."""
    entry = JournalEntry(
        time=now, epoch=epoch, step=step, attempt=attempt, event=JournalEvent.INTENT, message=message
    )
    return with_entry(replace(status, step=step, attempt=attempt, leader_epoch=epoch), entry)


def with_outcome(
    status: RemediationStatus,
    *,
    step: str,
    attempt: int,
    epoch: int,
    now: datetime,
    result: str,
    message: str,
) -> RemediationStatus:
    """The status that says what came of it."""
    entry = JournalEntry(
        time=now,
        epoch=epoch,
        step=step,
        attempt=attempt,
        event=JournalEvent.OUTCOME,
        result=result,
        message=message,
    )
    return with_entry(replace(status, leader_epoch=epoch), entry)


def moved(
    status: RemediationStatus, phase: Phase, *, reason: str, message: str, now: datetime
) -> RemediationStatus:
    """The status in another phase, with why."""
    return replace(
        status,
        phase=phase,
        reason=reason,
        message=message[:MESSAGE_LIMIT],
        closed_time=now if phase.closed else None,
        phases=_entered(status.phases, phase, now),
    )


def _entered(phases: tuple[PhaseEntry, ...], phase: Phase, now: datetime) -> tuple[PhaseEntry, ...]:
    """The history with one more phase, unless it is the present one. A full one loses its second, as the journal."""
    if phases and phases[-1].phase is phase:
        return phases
    kept = phases if len(phases) < PHASE_LIMIT else (phases[0], *phases[2 - PHASE_LIMIT :])
    return (*kept, PhaseEntry(phase=phase, started=now))


def with_incidents(
    status: RemediationStatus, report: AcceleratorReport, acting: Iterable[Fault], now: datetime
) -> RemediationStatus:
    """The incidents brought up to date by a fresh report: new ones attached, gone ones marked, returned ones open.

    Only faults that act are attached. What is attached is gone when the agent no longer reports it, not when its
    advice or the policy changes; an incident that clears by a new boot is gone only in another boot.
    """
    reported = {fault.identity: fault for fault in report.status.faults}
    serials = {device.uuid: device.serial for device in report.status.devices}
    boot_id = report.status.boot_id
    known = [_updated(incident, reported, boot_id, now) for incident in status.incidents]
    identities = {incident.identity for incident in known}
    new = [
        Incident.of(fault, boot_id=boot_id, serial=serials.get(fault.device_uuid, ""))
        for fault in acting
        if fault.identity not in identities
    ]
    count = sum(device.partition is None for device in report.status.devices)
    return replace(status, incidents=_bounded((*known, *new)), device_count=max(count, status.device_count))


def _bounded(incidents: tuple[Incident, ...]) -> tuple[Incident, ...]:
    """What a session may hold: where there are more, the ones that are over go first, but never the first."""
    surplus = len(incidents) - INCIDENT_LIMIT
    if surplus <= 0:
        return incidents
    over = [place for place, incident in enumerate(incidents) if place and incident.cleared_time is not None]
    dropped = set(over[:surplus])
    kept = tuple(incident for place, incident in enumerate(incidents) if place not in dropped)
    return kept[:INCIDENT_LIMIT]


def lasting(status: RemediationStatus) -> tuple[Incident, ...]:
    """The incidents that are not over."""
    return tuple(incident for incident in status.incidents if incident.cleared_time is None)


def all_cleared(status: RemediationStatus) -> bool:
    """Whether nothing of what the session is about is left."""
    return not lasting(status)


def _updated(
    incident: Incident, reported: dict[tuple[str, str], Fault], boot_id: str, now: datetime
) -> Incident:
    fault = reported.get(incident.identity)
    if fault is not None:
        returned = incident.cleared_time is not None or fault.first_seen > incident.last_seen
        return replace(
            incident,
            code=fault.code,
            severity=max(incident.severity, fault.severity, key=_severity_rank),
            advice=fault.advice,
            clears_on=fault.clears_on,
            last_seen=max(incident.last_seen, fault.last_seen) if returned else incident.last_seen,
            boot_id=boot_id,
            cleared_time=None,
        )
    if incident.cleared_time is not None:
        return incident
    if incident.clears_on == ClearsOn.NEW_BOOT and incident.boot_id == boot_id:
        return incident
    return replace(incident, cleared_time=now)


def _severity_rank(severity: Severity) -> int:
    return severity.rank


def _same(one: JournalEntry, other: JournalEntry) -> bool:
    return (one.step, one.event, one.result, one.message, one.epoch) == (
        other.step,
        other.event,
        other.result,
        other.message,
        other.epoch,
    )
