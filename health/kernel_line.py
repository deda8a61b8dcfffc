"""What the NVIDIA driver's kernel lines say: an Xid, an NVSwitch SXid, or which GPU sits at an address.

Formats as the driver prints them (open-gpu-kernel-modules, kernel_rc.c):
`NVRM: Xid (PCI:dddd:bb:dd[ GPU-I:nn[ GPU-CI:nn]]): N[, pid=P][, name=S], text`, with older forms without
`PCI:`, without a name, or without anything after the number. A line that is none of these is None; no line,
however malformed, raises.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from health.vocabulary import Advice

_ADDRESS = r"(?:[0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?"
_XID = re.compile(
    rf"NVRM: Xid \((?:PCI:)?(?P<address>{_ADDRESS})"
    r"(?: GPU-I:(?P<gpu_instance>[0-9A-Fa-f]{1,4}))?(?: GPU-CI:(?P<compute_instance>[0-9A-Fa-f]{1,4}))?\): "
    r"(?P<code>\d{1,4})(?:, ?(?P<text>.*))?$",
    re.DOTALL,
)
_SXID = re.compile(
    rf"nvidia-nvswitch(?P<switch>\d+): SXid \((?:PCI:)?(?P<address>{_ADDRESS})\): "
    r"(?P<code>\d{1,6}), (?P<severity>Fatal|Non-fatal), (?:Link (?P<link>\d+) )?(?P<text>.*)$",
    re.DOTALL,
)
_GPU_AT = re.compile(
    rf"NVRM: GPU at PCI:(?P<address>{_ADDRESS}): (?P<uuid>GPU-[0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}})"
)
_PROCESS = re.compile(r"pid='?(?P<pid>[^',]*)'?(?:, name=(?P<name>[^,]*))?(?:, |$)")
_VERDICT = re.compile(
    r"GPU recovery action changed from 0x[0-9a-fA-F]+ \([^)]*\) to (?P<code>0x[0-9a-fA-F]+) \((?P<action>[^)]*)\)"
)
_BARE_PREFIX = re.compile(r"^.*?(?=NVRM: |nvidia-nvswitch\d+: )", re.DOTALL)


@dataclass(frozen=True, slots=True)
class XidLine:
    """An Xid: the GPU's PCI address (`dddd:bb:dd.f`), the code, who caused it, and the driver's free text.

    `pid` and `process` are empty where the driver does not know them; `recovery_action` is the target action
    of an Xid 154 in the driver's own words, else empty.
    """

    address: str
    code: int
    text: str = ""
    pid: str = ""
    process: str = ""
    gpu_instance: str = ""
    compute_instance: str = ""
    recovery_action: str = ""


@dataclass(frozen=True, slots=True)
class SxidLine:
    """An NVSwitch error; `link` is None for errors of the switch itself."""

    address: str
    switch: int
    code: int
    fatal: bool
    link: int | None
    text: str


@dataclass(frozen=True, slots=True)
class GpuAtLine:
    """The driver names the GPU at an address, once, before that GPU's first Xid."""

    address: str
    uuid: str


KernelLine = XidLine | SxidLine | GpuAtLine


def normal_address(address: str) -> str:
    """A PCI address as `dddd:bb:dd.f` in lower case: the kernel, NVML and lspci each write it their way.

    NVML prints an eight-digit domain in upper case, the driver's Xid lines leave out the function.
    """
    head, _, function = address.lower().partition(".")
    parts = head.split(":")
    domain = parts[0].lstrip("0").rjust(4, "0") if len(parts) == 3 else "0000"
    return f"{domain}:{parts[-2]}:{parts[-1]}.{function or '0'}"


def parse(message: str) -> KernelLine | None:
    """Read one kernel message, which must begin with the driver's own prefix."""
    if found := _XID.match(message):
        return _xid(found)
    if found := _SXID.match(message):
        link = found["link"]
        return SxidLine(
            address=normal_address(found["address"]),
            switch=int(found["switch"]),
            code=int(found["code"]),
            fatal=found["severity"] == "Fatal",
            link=int(link) if link else None,
            text=found["text"].strip(),
        )
    if found := _GPU_AT.match(message):
        return GpuAtLine(address=normal_address(found["address"]), uuid=found["uuid"])
    return None


def parse_pasted(line: str) -> KernelLine | None:
    """Read a line as people paste it: with the prefix of dmesg, journalctl, syslog or /dev/kmsg before it."""
    return parse(_BARE_PREFIX.sub("", line.strip(), count=1))


def _xid(found: re.Match[str]) -> XidLine:
    text = (found["text"] or "").strip()
    process = _PROCESS.match(text)
    rest = text[process.end() :] if process else text
    verdict = _VERDICT.match(rest) if int(found["code"]) == 154 else None
    return XidLine(
        address=normal_address(found["address"]),
        code=int(found["code"]),
        text=rest.strip(),
        pid=_known(process["pid"]) if process else "",
        process=_known(process["name"] or "") if process else "",
        gpu_instance=found["gpu_instance"] or "",
        compute_instance=found["compute_instance"] or "",
        recovery_action=verdict["action"] if verdict else "",
    )


def _known(word: str) -> str:
    return "" if word == "<unknown>" else word


RECOVERY_ACTIONS = (
    "None",
    "GPU Reset Required",
    "Node Reboot Required",
    "Drain P2P",
    "Drain and Reset",
    "Recover IMEX Domain",
    "Bus Reset",
    "System Reboot",
)
"""The driver's recovery actions by the number of NVML field 230, in the words of Xid 154."""

_RECOVERY_ADVICE = {
    "none": Advice.NONE,
    "gpu reset required": Advice.RESET_DEVICE,
    "node reboot required": Advice.REBOOT_NODE,
    "drain p2p": Advice.NONE,
    "drain and reset": Advice.RESET_DEVICE,
    "recover imex domain": Advice.RESTART_SERVICE,
    "bus reset": Advice.RESET_DEVICE,
    "system reboot": Advice.REBOOT_NODE,
}


def recovery_advice(action: str) -> Advice | None:
    """The advice of the driver's own recovery action; None for words that are not known, which never act.

    The words are those of Xid 154 (NVIDIA's Xid catalogue) and of NVML field 230
    (NVML_FI_DEV_GET_GPU_RECOVERY_ACTION).
    """
    return _RECOVERY_ADVICE.get(action.strip().lower())
