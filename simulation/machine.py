"""A simulated machine: its devices and their state, kept in a JSON file that any process may change.

`load`, `save` and `update` read and write the file; writes are atomic (rename), and `update` holds a lock
beside it, so that writers do not lose each other's changes. `simulation.nvml` shows the machine to pynvml.
Of a device's readings `None` means that it evolves by itself (`simulation.readings`); a number pins it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Annotated

import msgspec

from simulation.readings import energy_at

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Amount = Annotated[float, msgspec.Meta(ge=0)]
Ratio = Annotated[float, msgspec.Meta(ge=0, le=1)]
Code = Annotated[int, msgspec.Meta(ge=0, le=999)]
PciAddress = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f][.]0$")]

MACHINE_VARIABLE = "SICKBAY_SIMULATED_MACHINE"
"""Environment variable with the path of the machine's file."""

H100_PCI_ADDRESSES = (
    "0000:1b:00.0",
    "0000:3b:00.0",
    "0000:43:00.0",
    "0000:52:00.0",
    "0000:9b:00.0",
    "0000:bb:00.0",
    "0000:cb:00.0",
    "0000:db:00.0",
)

COUNTERS = frozenset(
    {
        "energy_joules",
        "ecc_volatile_corrected",
        "ecc_volatile_uncorrected",
        "ecc_aggregate_corrected",
        "ecc_aggregate_uncorrected",
        "pcie_replays",
        "remapped_rows_corrected",
        "remapped_rows_uncorrected",
    }
)
"""What only grows on real hardware; `simulation.control` refuses to lower it."""


class MachineError(Exception):
    """The file cannot be used, or a change cannot be made; the message names the file and what is wrong."""


class SimulatedDevice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device. Units are in the names; `exporter.samples.DeviceSample` says where NVML shows each value."""

    uuid: str
    serial: str
    pci_address: PciAddress
    minor_number: Count
    name: str = "NVIDIA H100 80GB HBM3"
    vbios: str = "96.00.89.00.01"
    pci_device_id: Count = 0x233010DE
    """Device and vendor, as in NVML's pciDeviceId: 10de:2330 is an H100 SXM5."""

    lost: bool = False
    """Fallen off the bus: every call answers 15, also a look-up."""
    reset_required: bool = False
    """Every reading but fields answers 16, and field 230 asks for a reset if nothing else is set."""
    hang_seconds: Amount = 0.0
    """Every call blocks so long and then answers 999, as with a dead GSP."""
    errors: dict[str, Code] = {}
    """NVML code by function (`nvmlDeviceGetPowerUsage`) or by field (`field:82`)."""
    field_values: dict[int, int | float] = {}
    """Values by field id, over those that follow from the rest."""

    utilization_ratio: Ratio | None = None
    memory_utilization_ratio: Ratio | None = None
    memory_total_bytes: Count = 80 * 2**30
    memory_reserved_bytes: Count = 640 * 2**20
    memory_used_bytes: Count | None = None
    temperature_celsius: Amount | None = None
    memory_temperature_celsius: Amount | None = None
    power_watts: Amount | None = None
    power_limit_watts: Amount = 700.0
    sm_clock_hertz: Amount | None = None
    memory_clock_hertz: Amount = 2_619e6
    performance_state: Count = 0
    energy_joules: Amount = 0.0
    """At the machine's `changed_at`; it grows from there."""
    ecc_enabled: bool = True
    ecc_volatile_corrected: Count = 0
    ecc_volatile_uncorrected: Count = 0
    ecc_aggregate_corrected: Count = 0
    ecc_aggregate_uncorrected: Count = 0
    pcie_replays: Count = 0
    remapped_rows_corrected: Count = 0
    remapped_rows_uncorrected: Count = 0
    remap_pending: bool = False
    remap_failed: bool = False
    recovery_action: Count | None = None
    """Field 230; None is 1 (reset) with `reset_required` and 0 without."""
    persistence_mode: bool = False
    """Lost by a reset, as on a host without the persistence daemon."""
    reset_helps: bool = True
    """Otherwise a reset succeeds and leaves the device as it was."""
    held_by: str = ""
    """The name of a process that has the device open, which a repair finds besides those that really have."""


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine with its driver. `changed_at` is on the machine's CLOCK_MONOTONIC, in seconds."""

    node_name: str
    devices: tuple[SimulatedDevice, ...]
    seed: int = 0
    driver_version: str = "580.95.05"
    nvml_version: str = "13.580.95.05"
    library_error: Code = 0
    """NVML code of every call but nvmlShutdown: 9 driver not loaded, 18 library mismatch, 4 no permission, 999."""
    missing_functions: frozenset[str] = frozenset()
    """Functions that this library does not have, as with an older driver. pynvml asks once in a process's life."""
    changed_at: float = 0.0


def h100_machine(node_name: str, *, seed: int = 0, devices: int = 8) -> Machine:
    """A machine with up to 8 H100. UUIDs and serial numbers follow from the node's name and the seed."""
    if not 0 <= devices <= len(H100_PCI_ADDRESSES):
        raise MachineError(f"a simulated machine has 0 to {len(H100_PCI_ADDRESSES)} devices, not {devices}")
    random = Random(hashlib.sha256(f"{node_name}/{seed}".encode()).digest())  # noqa: S311
    return Machine(
        node_name=node_name,
        seed=seed,
        changed_at=time.monotonic(),
        devices=tuple(
            SimulatedDevice(
                uuid=f"GPU-{uuid.UUID(int=random.getrandbits(128), version=4)}",
                serial=f"165{random.randrange(10**10):010d}",
                pci_address=address,
                minor_number=minor,
                energy_joules=float(random.randrange(10**6, 10**9)),
            )
            for minor, address in enumerate(H100_PCI_ADDRESSES[:devices])
        ),
    )


def load(path: Path) -> Machine:
    """The machine in this file. Raises MachineError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Machine)
    except OSError as error:
        raise MachineError(f"{path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise MachineError(f"{path}: not a simulated machine: {error}") from error


def save(path: Path, machine: Machine) -> None:
    """Write the machine's file; a reader sees the old machine or the new one. Raises MachineError."""
    content = msgspec.json.format(msgspec.json.encode(machine), indent=1)
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise MachineError(f"{path}: {error.strerror}") from error


def update(path: Path, change: Callable[[Machine], Machine]) -> Machine:
    """Change the machine's file under its lock, `PATH.lock`, and return the new machine. Raises MachineError.

    What the devices have consumed so far is settled first, so that a change never alters the past.
    """
    try:
        lock = path.with_name(path.name + ".lock").open("a")
    except OSError as error:
        raise MachineError(f"{error.filename}: {error.strerror}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        machine = change(settled(load(path), now=time.monotonic()))
        save(path, machine)
    return machine


def settled(machine: Machine, *, now: float) -> Machine:
    """The same machine with its counters as they stand at `now`."""
    return msgspec.structs.replace(
        machine,
        changed_at=now,
        devices=tuple(
            msgspec.structs.replace(
                device, energy_joules=energy_at(device, seed=machine.seed, since=machine.changed_at, now=now)
            )
            for device in machine.devices
        ),
    )


if __name__ == "__main__":
    from simulation.control import main

    main()
