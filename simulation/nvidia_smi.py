"""The vendor's tool on a simulated machine: what a repair asks of `nvidia-smi`, and what a reset does to a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from remediation.repair.host import Ran
from simulation.control import device_index, replace_device
from simulation.machine import Machine, MachineError, SimulatedDevice, load, update

RECOVERY_ACTION_FIELD = 230
"""NVML_FI_DEV_GET_GPU_RECOVERY_ACTION."""

_BAD_ARGUMENT = 2
_NOT_FOUND = 6
_LOST = 15
_USE = "simulated nvidia-smi: cannot do"


def nvidia_smi(machine: Path, argv: Sequence[str]) -> Ran:
    """Run `nvidia-smi ...` on the machine in this file. It knows what `sickbay repair reset` asks by default.

    Exit codes are those of nvidia-smi(1): 2 argument, 6 no such device, 15 the GPU is lost.
    """
    program, *arguments = argv
    if Path(program).name != "nvidia-smi":
        return Ran(None, f"{program}: not on this simulated machine")
    try:
        selector, others = _device_of(arguments)
        device = _device(load(machine), selector)
        if device.lost:
            return Ran(
                _LOST, f"Unable to determine the device handle for GPU {device.pci_address}: GPU is lost"
            )
        return _run(machine, device, others)
    except MachineError as error:
        return Ran(_NOT_FOUND, str(error))
    except ValueError:
        return Ran(_BAD_ARGUMENT, f"{_USE} {' '.join(argv)}")


def after_reset(device: SimulatedDevice) -> SimulatedDevice:
    """The device once it has been reset: no fault that a reset ends, volatile counters at 0, no persistence mode.

    One that fell off the bus (`lost`) stays so, and so do a failed remap and what is counted for good.
    """
    if not device.reset_helps:
        return msgspec.structs.replace(device, persistence_mode=False)
    fields = {field: value for field, value in device.field_values.items() if field != RECOVERY_ACTION_FIELD}
    return msgspec.structs.replace(
        device,
        reset_required=False,
        hang_seconds=0.0,
        errors={},
        field_values=fields,
        recovery_action=None,
        ecc_volatile_corrected=0,
        ecc_volatile_uncorrected=0,
        remap_pending=False,
        persistence_mode=False,
    )


def change_device(
    machine: Path, selector: str, change: Callable[[SimulatedDevice], SimulatedDevice]
) -> Machine:
    """Change one device in the machine's file. Raises MachineError."""

    def changed(before: Machine) -> Machine:
        index = device_index(before, selector)
        return replace_device(before, index, change(before.devices[index]))

    return update(machine, changed)


def _run(machine: Path, device: SimulatedDevice, arguments: Sequence[str]) -> Ran:
    match list(arguments):
        case ["--gpu-reset"] if device.held_by:
            return Ran(_BAD_ARGUMENT, f"GPU {device.pci_address} is currently in use by another process.")
        case ["--gpu-reset"]:
            change_device(machine, device.uuid, after_reset)
            return Ran(0, f"GPU {device.pci_address} was successfully reset.\nAll done.\n")
        case ["--query-gpu=uuid", "--format=csv,noheader"]:
            return Ran(0, f"{device.uuid}\n")
        case ["--query-gpu=persistence_mode", "--format=csv,noheader"]:
            return Ran(0, "Enabled\n" if device.persistence_mode else "Disabled\n")
        case ["--query-gpu=mig.mode.current", "--format=csv,noheader"]:
            return Ran(0, "Disabled\n")
        case ["-pm", "1"]:
            change_device(machine, device.uuid, lambda it: msgspec.structs.replace(it, persistence_mode=True))
            return Ran(0, f"Enabled persistence mode for GPU {device.pci_address}.\nAll done.\n")
    raise ValueError


def _device_of(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The device that `-i` names, and the other arguments. Raises ValueError."""
    place = list(arguments).index("-i")
    selector, *rest = arguments[place + 1 :]
    return selector, [*arguments[:place], *rest]


def _device(machine: Machine, selector: str) -> SimulatedDevice:
    return machine.devices[device_index(machine, selector)]
