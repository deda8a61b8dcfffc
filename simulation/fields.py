"""The fields of a simulated device: what nvmlDeviceGetFieldValues answers, by id (`NVML_FI_*` in nvml.h)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pynvml

from simulation.binding import Device, NvmlReturn
from simulation.machine import SimulatedDevice

_UINT = (pynvml.NVML_VALUE_TYPE_UNSIGNED_INT, "uiVal")
_ULL = (pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, "ullVal")
_SLL = (pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG, "sllVal")
_DOUBLE = (pynvml.NVML_VALUE_TYPE_DOUBLE, "dVal")

FIELDS: dict[int, tuple[tuple[int, str], Callable[[Device], int | float | None]]] = {
    pynvml.NVML_FI_DEV_ECC_CURRENT: (_UINT, lambda device: int(device.state.ecc_enabled)),
    pynvml.NVML_FI_DEV_ECC_SBE_VOL_TOTAL: (_ULL, lambda device: _ecc(device, "ecc_volatile_corrected")),
    pynvml.NVML_FI_DEV_ECC_DBE_VOL_TOTAL: (_ULL, lambda device: _ecc(device, "ecc_volatile_uncorrected")),
    pynvml.NVML_FI_DEV_ECC_SBE_AGG_TOTAL: (_ULL, lambda device: _ecc(device, "ecc_aggregate_corrected")),
    pynvml.NVML_FI_DEV_ECC_DBE_AGG_TOTAL: (_ULL, lambda device: _ecc(device, "ecc_aggregate_uncorrected")),
    pynvml.NVML_FI_DEV_MEMORY_TEMP: (_UINT, lambda device: round(device.readings.memory_temperature_celsius)),
    pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION: (
        _ULL,
        lambda device: int(device.readings.energy_joules * 1000),
    ),
    pynvml.NVML_FI_DEV_PCIE_REPLAY_COUNTER: (_UINT, lambda device: device.state.pcie_replays),
    pynvml.NVML_FI_DEV_REMAPPED_COR: (_UINT, lambda device: device.state.remapped_rows_corrected),
    pynvml.NVML_FI_DEV_REMAPPED_UNC: (_UINT, lambda device: device.state.remapped_rows_uncorrected),
    pynvml.NVML_FI_DEV_REMAPPED_PENDING: (_UINT, lambda device: int(device.state.remap_pending)),
    pynvml.NVML_FI_DEV_REMAPPED_FAILURE: (_UINT, lambda device: int(device.state.remap_failed)),
    pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION: (_UINT, lambda device: _recovery_action(device.state)),
}
"""Field id to its type (number and union member) and its value; None is "not supported"."""


def read_values(device: Device, count: Any, values: Any) -> None:
    """nvmlDeviceGetFieldValues: it succeeds, and each value has a return code of its own."""
    for entry in values._obj[: count.value]:
        try:
            (entry.valueType, member), value = _field_value(device, entry.fieldId)
            setattr(entry.value, member, value)
            entry.nvmlReturn = pynvml.NVML_SUCCESS
        except NvmlReturn as result:
            entry.nvmlReturn = result.code


def _field_value(device: Device, field: int) -> tuple[tuple[int, str], int | float]:
    if error := device.state.errors.get(f"field:{field}"):
        raise NvmlReturn(error)
    kind, read = FIELDS.get(field, (None, lambda _device: None))
    value = device.state.field_values.get(field, read(device))
    if value is None:
        raise NvmlReturn(pynvml.NVML_ERROR_NOT_SUPPORTED)
    if kind is None:
        kind = _DOUBLE if isinstance(value, float) else _ULL if value >= 0 else _SLL
    return kind, value


def _ecc(device: Device, name: str) -> int | None:
    return getattr(device.state, name) if device.state.ecc_enabled else None


def _recovery_action(state: SimulatedDevice) -> int:
    if state.recovery_action is not None:
        return int(state.recovery_action)
    wanted = (
        pynvml.NVML_GPU_RECOVERY_ACTION_GPU_RESET
        if state.reset_required
        else pynvml.NVML_GPU_RECOVERY_ACTION_NONE
    )
    return int(wanted)
