"""Who has a device file open, read from /proc without anything that a process in D state could hold up.

Only the links of `/proc/PID/fd`, `comm` and `cgroup` are read: none of them needs the memory lock of the process,
as `cmdline` and `maps` do, nor asks the file system behind an open file.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from remediation.repair.host import Holder

PERSISTENCED = "nvidia-persistenced"

_DAEMONS = {
    "nvidia-persiste": PERSISTENCED,
    "nv-hostengine": "nv-hostengine (DCGM)",
    "nv-fabricmanage": "nv-fabricmanager (Fabric Manager)",
}
"""The kernel keeps 15 characters of a name (TASK_COMM_LEN)."""

_POD = re.compile(
    r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})"
)
_DEVICE_FILE = re.compile(r".*/dev/(nvidia(\d+))( \(deleted\))?")

DeviceOf = Callable[[Path, str], str]
"""Of an open file (its place in /proc, and what its link says) the device behind it; empty where it is none."""


def holders_in(proc: Path, device_of: DeviceOf) -> tuple[Holder, ...]:
    """Each process that has a device open, once for each device, by PID. A process that ends meanwhile is none.

    Raises OSError where /proc cannot be read.
    """
    found = {
        (int(folder.name), device)
        for folder in proc.iterdir()
        if folder.name.isascii() and folder.name.isdecimal()
        for device in _devices(folder, device_of)
    }
    return tuple(_holder(proc / str(pid), device) for pid, device in sorted(found))


def named_devices(minors: dict[str, int | None]) -> DeviceOf:
    """Tells NVIDIA's device files by their minor number (`/dev/nvidia3`), which a container cannot change.

    `minors` are those of the devices that matter, by UUID. Where one is not known every device file matters.
    """
    by_minor = {minor: device for device, minor in minors.items() if minor is not None}
    complete = len(by_minor) == len(minors)

    def device_of(_file: Path, link: str) -> str:
        match = _DEVICE_FILE.fullmatch(link)
        if match is None:
            return ""
        return by_minor.get(int(match[2]), "" if complete else f"/dev/{match[1]}")

    return device_of


def minor_numbers(information: str) -> dict[str, int]:
    """The minor number of each device by its UUID, from the files `/proc/driver/nvidia/gpus/*/information`.

    Their lines are `GPU UUID: GPU-...` and `Device Minor: N` (kernel-open/nvidia/nv-procfs.c).
    """
    minors: dict[str, int] = {}
    device = ""
    for line in information.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "GPU UUID":
            device = value.strip()
        elif key.strip() == "Device Minor" and device and value.strip().isdecimal():
            minors[device] = int(value)
            device = ""
    return minors


def _devices(folder: Path, device_of: DeviceOf) -> Iterator[str]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError, NotADirectoryError):
        for file in (folder / "fd").iterdir():
            with contextlib.suppress(OSError):
                if device := device_of(file, str(file.readlink())):
                    yield device


def _holder(folder: Path, device: str) -> Holder:
    name = _text(folder / "comm").strip()
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)[:32] or "unknown"
    pod = _POD.search(_text(folder / "cgroup"))
    return Holder(
        pid=int(folder.name),
        name=_DAEMONS.get(shown, shown),
        device=device,
        pod=pod[1].replace("_", "-") if pod else "",
    )


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")[:4096]
    return ""
