"""The values of one device, and the NVML calls that they come from.

A new value is one entry in `FIELDS` or one function in `READERS`, and its name in `samples.DeviceSample`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pynvml

Values = dict[str, Any]
"""Names and values of `DeviceSample`."""

CALL_ERRORS = (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError, UnicodeDecodeError)
"""What a call of pynvml raises: a code, an unversioned symbol that is gone, a string that is not UTF-8."""

_UNION_MEMBERS = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
}


def _milli(value: float) -> float:
    return value / 1000


FIELDS: tuple[tuple[int, str, Callable[[Any], Any]], ...] = (
    (pynvml.NVML_FI_DEV_ECC_CURRENT, "ecc_enabled", bool),
    (pynvml.NVML_FI_DEV_ECC_SBE_VOL_TOTAL, "ecc_volatile_corrected", int),
    (pynvml.NVML_FI_DEV_ECC_DBE_VOL_TOTAL, "ecc_volatile_uncorrected", int),
    (pynvml.NVML_FI_DEV_ECC_SBE_AGG_TOTAL, "ecc_aggregate_corrected", int),
    (pynvml.NVML_FI_DEV_ECC_DBE_AGG_TOTAL, "ecc_aggregate_uncorrected", int),
    (pynvml.NVML_FI_DEV_MEMORY_TEMP, "memory_temperature_celsius", float),
    (pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, "energy_joules", _milli),
    (pynvml.NVML_FI_DEV_PCIE_REPLAY_COUNTER, "pcie_replays", int),
    (pynvml.NVML_FI_DEV_REMAPPED_COR, "remapped_rows_corrected", int),
    (pynvml.NVML_FI_DEV_REMAPPED_UNC, "remapped_rows_uncorrected", int),
    (pynvml.NVML_FI_DEV_REMAPPED_PENDING, "remap_pending", bool),
    (pynvml.NVML_FI_DEV_REMAPPED_FAILURE, "remap_failed", bool),
    (pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, "recovery_action", int),
)
"""Field id, name in `DeviceSample`, conversion. All are read in one call, which shares the driver's work."""


def read_fields(handle: Any) -> Iterator[tuple[int, str, Any]]:
    """(field id, name, value) of each entry of `FIELDS`; the value is an Exception where it cannot be had.

    nvmlDeviceGetFieldValues returns success although values failed: each has its own return code.
    """
    answers = pynvml.nvmlDeviceGetFieldValues(handle, [field for field, _, _ in FIELDS])
    for (field, name, convert), answer in zip(FIELDS, answers, strict=True):
        if answer.nvmlReturn != pynvml.NVML_SUCCESS:
            yield field, name, pynvml.NVMLError(answer.nvmlReturn)
            continue
        try:
            yield field, name, convert(getattr(answer.value, _UNION_MEMBERS[answer.valueType]))
        except (KeyError, ValueError, OverflowError) as error:
            yield field, name, error


def _utilization(handle: Any) -> Values:
    rates = pynvml.nvmlDeviceGetUtilizationRates(handle)
    return {"utilization_ratio": rates.gpu / 100, "memory_utilization_ratio": rates.memory / 100}


def _memory(handle: Any) -> Values:
    memory = _first_available(
        lambda: pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2),
        lambda: pynvml.nvmlDeviceGetMemoryInfo(handle),
    )
    return {
        "memory_total_bytes": memory.total,
        "memory_used_bytes": memory.used,
        "memory_free_bytes": memory.free,
    }


def _temperature(handle: Any) -> Values:
    temperature = _first_available(
        lambda: pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU),
        lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
    )
    return {"temperature_celsius": float(temperature)}


def _power(handle: Any) -> Values:
    return {"power_watts": _milli(pynvml.nvmlDeviceGetPowerUsage(handle))}


def _power_limit(handle: Any) -> Values:
    return {"power_limit_watts": _milli(pynvml.nvmlDeviceGetEnforcedPowerLimit(handle))}


def _sm_clock(handle: Any) -> Values:
    return {"sm_clock_hertz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) * 1e6}


def _memory_clock(handle: Any) -> Values:
    return {"memory_clock_hertz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM) * 1e6}


def _performance_state(handle: Any) -> Values:
    state = pynvml.nvmlDeviceGetPerformanceState(handle)
    return {"performance_state": None if state == pynvml.NVML_PSTATE_UNKNOWN else state}


READERS: tuple[tuple[str, Callable[[Any], Values]], ...] = (
    ("utilization", _utilization),
    ("memory", _memory),
    ("temperature", _temperature),
    ("power", _power),
    ("power limit", _power_limit),
    ("SM clock", _sm_clock),
    ("memory clock", _memory_clock),
    ("performance state", _performance_state),
)
"""Name for the log, and a function that reads one value or a few that come together from a handle."""


def pci_address(handle: Any) -> str:
    """`0000:3b:00.0`; the function is always 0, as in the driver's own format (NVML_DEVICE_PCI_BUS_ID_FMT)."""
    info = pynvml.nvmlDeviceGetPciInfo_v3(handle)
    return f"{info.domain:04x}:{info.bus:02x}:{info.device:02x}.0"


def error_name(error: Exception) -> str:
    """`GpuIsLost` for code 15 and so on, as pynvml names its classes; `Code77` for one that it does not know."""
    if isinstance(error, pynvml.NVMLError):
        name = type(error).__name__
        return name.removeprefix("NVMLError_") if name != "NVMLError" else f"Code{error.value}"
    if isinstance(error, pynvml.NVMLLibraryMismatchError):
        return "FunctionNotFound"
    return "InvalidValue"


def _first_available(newer: Callable[[], Any], older: Callable[[], Any]) -> Any:
    try:
        return newer()
    except (pynvml.NVMLError_FunctionNotFound, pynvml.NVMLError_ArgumentVersionMismatch):
        return older()
