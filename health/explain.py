"""What an Xid or a kernel line means, for people and for scripts."""

from __future__ import annotations

import msgspec

from health.kernel_line import SxidLine, XidLine, parse_pasted, recovery_advice
from health.vocabulary import Advice, FaultKind, Severity
from health.xids import Catalogue, Xid


class Explanation(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is said of an Xid. `device` and what follows come from the line, where a line was given."""

    code: int
    name: str
    meaning: str
    kind: str
    severity: str
    advice: str
    clears_on: str = msgspec.field(name="clearsOn")
    vendor_action: str = msgspec.field(name="vendorAction")
    families: tuple[str, ...] = ()
    device: str = ""
    pid: str = ""
    process: str = ""
    recovery_action: str = msgspec.field(name="recoveryAction", default="")
    switch: str = ""


def explain(subject: str, catalogue: Catalogue) -> Explanation | None:
    """What an Xid's number, or a whole kernel line, means; None where it is neither."""
    bare = subject.strip().lower().removeprefix("xid").strip(" :")
    if bare.isdecimal() and len(bare) <= 4:
        return _explained(catalogue[int(bare)], XidLine(address="", code=int(bare)))
    line = parse_pasted(subject)
    if isinstance(line, XidLine):
        return _explained(catalogue[line.code], line)
    if isinstance(line, SxidLine):
        return Explanation(
            code=line.code,
            name="SXID",
            meaning=f"{'fatal' if line.fatal else 'non-fatal'} NVSwitch error: {line.text}",
            kind=FaultKind.FABRIC_FAULT.value,
            severity=Severity.DEGRADED.value,
            advice=Advice.NONE.value,
            clears_on="Dwell",
            vendor_action="",
            device=line.address,
            switch=f"nvswitch{line.switch}",
        )
    return None


def _explained(entry: Xid, line: XidLine) -> Explanation:
    verdict = recovery_advice(line.recovery_action) if line.recovery_action else None
    asks = verdict is not None and verdict is not Advice.NONE
    return Explanation(
        code=entry.code,
        name=entry.name,
        meaning=entry.meaning,
        kind=FaultKind.RECOVERY_REQUIRED.value if asks else entry.kind.value if entry.kind else "",
        severity=Severity.FATAL.value if asks else entry.severity.value,
        advice=(verdict or entry.advice).value,
        clears_on=entry.clears_on.value,
        vendor_action=entry.vendor_action,
        families=entry.families,
        device=line.address,
        pid=line.pid,
        process=line.process,
        recovery_action=line.recovery_action,
    )


def prose(found: Explanation) -> str:
    """The explanation as a few lines of text."""
    what = "SXid" if found.switch else "Xid"
    lines = [f"{what} {found.code} {found.name}", f"  meaning   {found.meaning or '-'}"]
    if found.device:
        process = f", {found.process or 'process'} ({found.pid})" if found.pid else ""
        lines.append(f"  device    {found.device}{process}")
    lines.append(f"  fault     {found.kind or 'none: counted only'}, {found.severity}")
    lines.append(f"  advice    {found.advice}")
    if found.recovery_action:
        lines.append(f"  driver    {found.recovery_action}")
    lines.append(f"  clears    {_CLEARS[found.clears_on]}")
    if found.vendor_action:
        lines.append(
            f"  vendor    {found.vendor_action} ({', '.join(found.families) or 'older generations'})"
        )
    return "\n".join(lines)


_CLEARS = {
    "NewBoot": "by a reboot of the node",
    "DeviceReset": "by a reset of the device",
    "Dwell": "by itself, after ten quiet minutes",
    "DriverVerdict": "when the driver says so",
}
