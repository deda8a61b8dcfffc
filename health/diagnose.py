"""From what was seen to what is wrong: Xid events, device errors and the driver's verdicts become faults.

A `Diagnosis` is immutable; every method returns the next one. It holds the open faults by identity (kind,
device): a new code, reason or count never restarts a fault's clock. No data never makes a fault.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import msgspec.structs

from health.kernel_line import XidLine, recovery_advice
from health.plugin_faults import PLUGIN_FAULTS
from health.report import Evidence, Fault
from health.vocabulary import Advice, ClearsOn, FaultKind, Scope, Severity
from health.xids import Catalogue

DWELL = timedelta(minutes=10)
"""How long a fault that clears by quiet must have been quiet."""

EXCERPT_LIMIT = 512
_FOLLOWS_NO_VERDICT = frozenset({FaultKind.APPLICATION_FAULT, FaultKind.UNKNOWN_XID})
_NO_VERDICT = "None"
_HEALED_BY_RESET = frozenset({ClearsOn.DEVICE_RESET, ClearsOn.DRIVER_VERDICT})
_ADVICE_RANKS = {advice.value: advice.rank for advice in Advice}
_CLEARING_RANKS = {clears_on.value: clears_on.rank for clears_on in ClearsOn}


@dataclass(frozen=True, slots=True)
class XidEvent:
    """One Xid line of the kernel log: whose device (UUID, empty where nobody knows it), when, and where it stands.

    `sequence` is the record's number in the kernel log of `boot_id`; `drill` says that it came by a drill.
    """

    line: XidLine
    uuid: str
    time: datetime
    boot_id: str
    sequence: int
    excerpt: str
    drill: bool = False


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Open faults by identity, and each device's last recovery action in the driver's words, with its time.

    A verdict whose time is not known is older than all that has a time.
    """

    open: Mapping[tuple[str, str], Fault] = field(default_factory=dict)
    verdicts: Mapping[str, str] = field(default_factory=dict)
    verdict_times: Mapping[str, datetime] = field(default_factory=dict)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The open faults in a stable order, with the driver's verdict in the place of the catalogue's advice."""
        return tuple(self._judged(fault) for _, fault in sorted(self.open.items()))

    def with_xid(self, event: XidEvent, catalogue: Catalogue) -> Diagnosis:
        """Take in one Xid. Codes that the catalogue only counts change nothing."""
        if event.line.recovery_action:
            return self.with_verdict(
                event.uuid,
                event.line.recovery_action,
                event.time,
                evidence=_evidence(event),
                drill=event.drill,
            )
        entry = catalogue[event.line.code]
        if entry.kind is None:
            return self
        fault = Fault(
            kind=entry.kind.value,
            severity=entry.severity,
            advice=entry.advice,
            clears_on=entry.clears_on,
            code=f"xid:{entry.code}",
            device_uuid=event.uuid,
            first_seen=event.time,
            last_seen=event.time,
            drill=event.drill,
            evidence=_evidence(event),
        )
        return self.with_fault(fault if event.uuid else nobodys(fault))

    def with_fault(self, fault: Fault) -> Diagnosis:
        """Raise a fault, or fold it into the open one of the same identity."""
        known = self.open.get(fault.identity)
        merged = fault if known is None else _merged(known, fault)
        return replace(self, open={**self.open, fault.identity: merged})

    def without(self, kind: str, uuid: str) -> Diagnosis:
        """End a fault, if it is open. The kind may be one that a newer version remembered."""
        return replace(self, open={key: fault for key, fault in self.open.items() if key != (kind, uuid)})

    def with_verdict(
        self, uuid: str, action: str, now: datetime, *, evidence: Evidence | None = None, drill: bool = False
    ) -> Diagnosis:
        """Take in the driver's recovery action for a device.

        It outranks the catalogue for the device's hardware faults. Where nothing else is open on the device
        it is a fault of its own, `RecoveryRequired`. An action that is not known raises it too, without advice.
        """
        if not uuid:
            return self
        judged = self.with_noted(uuid, action, now)
        if action == _NO_VERDICT:
            return judged.without(FaultKind.RECOVERY_REQUIRED, uuid)._with_verdict_cleared(uuid)
        if any(fault.device_uuid == uuid and _of_device(fault) for fault in judged.open.values()):
            return judged
        advice = recovery_advice(action)
        return judged.with_fault(
            Fault(
                kind=FaultKind.RECOVERY_REQUIRED.value,
                severity=Severity.FATAL if _acts(advice) else Severity.DEGRADED,
                advice=advice or Advice.NONE,
                clears_on=ClearsOn.DRIVER_VERDICT,
                device_uuid=uuid,
                first_seen=now,
                last_seen=now,
                drill=drill,
                evidence=evidence,
            )
        )

    def at(self, now: datetime, *, boot_id: str, dwell: timedelta = DWELL) -> Diagnosis:
        """Drop what has cleared by time or by a new boot.

        A fault that clears by a reset, a new boot or the driver's word ends with the boot it was seen in:
        a boot resets every device. Faults without evidence of a boot stay until their own rule ends them.
        A fault that was last seen in the future, since the wall clock was set back, is quiet from now on.
        Faults of device plugins end by a rule of their own (`health.plugin_faults`).
        """
        staying = {
            key: _not_after(fault, now)
            for key, fault in self.open.items()
            if not _cleared(fault, now, boot_id=boot_id, dwell=dwell)
        }
        if len(staying) == len(self.open) and all(fault is self.open[key] for key, fault in staying.items()):
            return self
        gone_by_boot = {
            fault.device_uuid
            for key, fault in self.open.items()
            if key not in staying and fault.clears_on != ClearsOn.DWELL
        }
        return replace(self, open=staying)._without_verdicts(gone_by_boot)

    def after_reset(self, uuid: str, time: datetime) -> Diagnosis:
        """A device was reset, which was over at `time`: end what a reset heals and was not seen since.

        The driver's verdict from before is forgotten, and what came of it: the driver is to say anew what the
        device needs. What was seen later stays, so that nothing is lost by taking a reset in late, or twice.
        """
        staying = {
            key: fault
            for key, fault in self.open.items()
            if fault.device_uuid != uuid or fault.clears_on not in _HEALED_BY_RESET or fault.last_seen > time
        }
        told = self.verdict_times.get(uuid)
        forgotten = uuid in self.verdicts and (told is None or told <= time)
        if len(staying) == len(self.open) and not forgotten:
            return self
        healed = replace(self, open=staying)
        if forgotten:
            return healed._without_verdicts({uuid})
        # What the driver has said since was only noted if there was a fault that is ended now.
        return healed if told is None else healed.with_verdict(uuid, self.verdicts[uuid], told)

    def with_noted(self, uuid: str, action: str, time: datetime | None) -> Diagnosis:
        """Note the driver's recovery action and when it was said, None if that is not known; raise nothing."""
        times = {uuid: time} if time else {}
        others = self._without_verdicts({uuid})
        return replace(
            self,
            verdicts={**others.verdicts, uuid: action},
            verdict_times={**others.verdict_times, **times},
        )

    def _without_verdicts(self, uuids: Collection[str]) -> Diagnosis:
        return replace(
            self,
            verdicts={uuid: action for uuid, action in self.verdicts.items() if uuid not in uuids},
            verdict_times={uuid: time for uuid, time in self.verdict_times.items() if uuid not in uuids},
        )

    def _with_verdict_cleared(self, uuid: str) -> Diagnosis:
        staying = {
            key: fault
            for key, fault in self.open.items()
            if not (fault.device_uuid == uuid and fault.clears_on == ClearsOn.DRIVER_VERDICT)
        }
        return replace(self, open=staying)

    def _judged(self, fault: Fault) -> Fault:
        action = self.verdicts.get(fault.device_uuid, _NO_VERDICT)
        if action == _NO_VERDICT or not _hardware(fault):
            return fault
        verdict = recovery_advice(action)
        if verdict is None or verdict is Advice.NONE:
            # A word that is not known, or asks for nothing that we do, takes no certain advice away.
            return fault
        return msgspec.structs.replace(fault, advice=verdict)


def nobodys(fault: Fault) -> Fault:
    """The fault as it is where nobody can name its device: it alerts, never acts, and clears by quiet."""
    return msgspec.structs.replace(
        fault,
        device_uuid="",
        severity=min(fault.severity, Severity.DEGRADED, key=_rank),
        advice=Advice.NONE,
        clears_on=ClearsOn.DWELL,
    )


def device_lost(uuid: str, now: datetime, *, boot_id: str, source: str, excerpt: str) -> Fault:
    """The fault of a device that does not answer any more (NVML error 15, GPU is lost)."""
    return Fault(
        kind=FaultKind.DEVICE_LOST.value,
        severity=Severity.FATAL,
        advice=Advice.REBOOT_NODE,
        clears_on=ClearsOn.NEW_BOOT,
        scope=Scope.DEVICE,
        device_uuid=uuid,
        first_seen=now,
        last_seen=now,
        evidence=Evidence(source=source, boot_id=boot_id, excerpt=excerpt[:EXCERPT_LIMIT]),
    )


def _evidence(event: XidEvent) -> Evidence:
    return Evidence(
        source="kernel-log",
        boot_id=event.boot_id,
        sequence=event.sequence,
        excerpt=event.excerpt[:EXCERPT_LIMIT],
    )


def _rank(severity: Severity) -> int:
    return severity.rank


def _acts(advice: Advice | None) -> bool:
    return advice is not None and advice is not Advice.NONE


def _of_device(fault: Fault) -> bool:
    """Whether the device itself is at fault. What its plugin does wrong goes by itself, and would leave the driver's
    verdict without a fault."""
    return _hardware(fault) and fault.kind not in PLUGIN_FAULTS


def _hardware(fault: Fault) -> bool:
    return fault.kind not in _FOLLOWS_NO_VERDICT and fault.severity is not Severity.INFO


def _merged(known: Fault, new: Fault) -> Fault:
    worse = new if new.severity.rank > known.severity.rank else known
    return msgspec.structs.replace(
        known,
        code=worse.code or known.code or new.code,
        severity=worse.severity,
        advice=max(known.advice, new.advice, key=_advice_rank),
        clears_on=max(known.clears_on, new.clears_on, key=_clearing_rank),
        first_seen=min(known.first_seen, new.first_seen),
        last_seen=max(known.last_seen, new.last_seen),
        count=known.count + new.count,
        drill=known.drill and new.drill,
        evidence=worse.evidence or known.evidence or new.evidence,
    )


def _advice_rank(advice: str) -> int:
    return _ADVICE_RANKS.get(advice, -1)


def _clearing_rank(clears_on: str) -> int:
    return _CLEARING_RANKS.get(clears_on, -1)


def _not_after(fault: Fault, now: datetime) -> Fault:
    return fault if fault.last_seen <= now else msgspec.structs.replace(fault, last_seen=now)


def _cleared(fault: Fault, now: datetime, *, boot_id: str, dwell: timedelta) -> bool:
    if fault.kind in PLUGIN_FAULTS:
        return False
    if fault.clears_on == ClearsOn.DWELL:
        return now - fault.last_seen > dwell
    seen_in = fault.evidence.boot_id if fault.evidence else ""
    return bool(seen_in) and bool(boot_id) and seen_in != boot_id
