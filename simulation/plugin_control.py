"""What a simulated device plugin is told while it runs: a small JSON file that any process may change.

    {"allocate_latency_seconds": 0.5, "allocate_error": "", "xids": [{"device": "GPU-...", "code": 48}]}

A file that is not there says nothing. `change` writes it atomically and under a lock.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from simulation.machine import Amount, Code, MachineError


class Xid(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An Xid event of a device, by its UUID. It happens once: a plugin that starts later never hears of it."""

    device: str
    code: Code


class PluginControl(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the plugin answers, and which events its devices have had. `xids` only grows."""

    allocate_latency_seconds: Amount = 0.0
    allocate_error: str = ""
    """If not empty, Allocate fails with this message."""
    preferred_error: str = ""
    """The same for GetPreferredAllocation."""
    xids: tuple[Xid, ...] = ()


def control_path(machine: Path) -> Path:
    """The control file that belongs to a machine's file, beside it."""
    return machine.with_name(f"{machine.name}.plugin")


def load_control(path: Path) -> PluginControl:
    """What the file says. Raises MachineError, which names the file and what is wrong with it."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=PluginControl)
    except FileNotFoundError:
        return PluginControl()
    except OSError as error:
        raise MachineError(f"{path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise MachineError(f"{path}: not a device plugin's control file: {error}") from error


def change_control(path: Path, change: Callable[[PluginControl], PluginControl]) -> PluginControl:
    """Change the file under its lock, `PATH.lock`; the new content. Raises MachineError."""
    try:
        with path.with_name(f"{path.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            control = change(load_control(path))
            _replace(path, msgspec.json.format(msgspec.json.encode(control), indent=1))
    except OSError as error:
        raise MachineError(f"{error.filename}: {error.strerror}") from error
    return control


def raise_xid(path: Path, device: str, code: int) -> None:
    """Let a device, by its UUID, have an Xid event. Raises MachineError."""
    xid = Xid(device=device, code=code)
    change_control(path, lambda control: msgspec.structs.replace(control, xids=(*control.xids, xid)))


def _replace(path: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
