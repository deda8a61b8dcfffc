"""NVML as a simulated machine answers it: the functions of the C library, below pynvml.

A function of NVML is one decorated Python function here, a field of `nvmlDeviceGetFieldValues` one entry in
`simulation.fields`. What is not there is missing, as in an older library: pynvml raises FunctionNotFound.
Names, order of arguments and codes are those of nvml.h, as pynvml calls them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pynvml

from simulation import fields
from simulation.binding import (
    Device,
    MachineFile,
    NvmlReturn,
    SimulatedLibrary,
    device_function,
    install,
    installed,
    library_function,
    write,
    write_fields,
    write_handle,
    write_text,
)

__all__ = ["MachineFile", "SimulatedLibrary", "install", "installed"]

device_function("nvmlDeviceGetFieldValues", reading=False)(fields.read_values)


@library_function("nvmlInit_v2")
@library_function("nvmlInitWithFlags")
def _init(library: SimulatedLibrary, *_flags: Any) -> None:
    library.start()


@library_function("nvmlShutdown")
def _shutdown(library: SimulatedLibrary) -> None:
    library.stop()


@library_function("nvmlErrorString")
def _error_string(_library: SimulatedLibrary, code: int) -> bytes:
    return pynvml.NVMLError._errcode_to_string.get(code, f"Unknown code {code}").encode()  # type: ignore[no-any-return]


@library_function("nvmlSystemGetDriverVersion")
def _driver_version(library: SimulatedLibrary, buffer: Any, size: Any) -> None:
    write_text(buffer, size, library.machine().driver_version)


@library_function("nvmlSystemGetNVMLVersion")
def _nvml_version(library: SimulatedLibrary, buffer: Any, size: Any) -> None:
    write_text(buffer, size, library.machine().nvml_version)


@library_function("nvmlDeviceGetCount_v2")
def _count(library: SimulatedLibrary, count: Any) -> None:
    write(count, len(library.machine().devices))


def _look_up(name: str, matches: Callable[[int, Any, Any], bool], missing: int) -> None:
    """Registers a look-up: the first device for which `matches(index, device state, key)`."""

    @library_function(name)
    def look_up(library: SimulatedLibrary, key: Any, handle: Any) -> None:
        for index, state in enumerate(library.machine().devices):
            if matches(index, state, key.value):
                library.device(index, name)
                write_handle(handle, library.handle(index))
                return
        raise NvmlReturn(missing)


_look_up(
    "nvmlDeviceGetHandleByIndex_v2",
    lambda index, _state, key: index == key,
    pynvml.NVML_ERROR_INVALID_ARGUMENT,
)
_look_up(
    "nvmlDeviceGetHandleByUUID",
    lambda _index, state, key: state.uuid.encode() == key,
    pynvml.NVML_ERROR_NOT_FOUND,
)
_look_up(
    "nvmlDeviceGetHandleBySerial",
    lambda _index, state, key: state.serial.encode() == key,
    pynvml.NVML_ERROR_NOT_FOUND,
)
_look_up(
    "nvmlDeviceGetHandleByPciBusId_v2",
    lambda _index, state, key: _pci_parts(state.pci_address) == _pci_parts(key.decode()),
    pynvml.NVML_ERROR_NOT_FOUND,
)


@device_function("nvmlDeviceGetName", reading=False)
def _name(device: Device, buffer: Any, size: Any) -> None:
    write_text(buffer, size, device.state.name)


@device_function("nvmlDeviceGetUUID", reading=False)
def _uuid(device: Device, buffer: Any, size: Any) -> None:
    write_text(buffer, size, device.state.uuid)


@device_function("nvmlDeviceGetSerial", reading=False)
def _serial(device: Device, buffer: Any, size: Any) -> None:
    write_text(buffer, size, device.state.serial)


@device_function("nvmlDeviceGetVbiosVersion", reading=False)
def _vbios(device: Device, buffer: Any, size: Any) -> None:
    write_text(buffer, size, device.state.vbios)


@device_function("nvmlDeviceGetIndex", reading=False)
def _index(device: Device, index: Any) -> None:
    write(index, device.index)


@device_function("nvmlDeviceGetMinorNumber", reading=False)
def _minor_number(device: Device, minor: Any) -> None:
    write(minor, device.state.minor_number)


@device_function("nvmlDeviceGetPciInfo_v3", reading=False)
def _pci_info(device: Device, info: Any) -> None:
    domain, bus, slot = _pci_parts(device.state.pci_address)
    write_fields(
        info,
        domain=domain,
        bus=bus,
        device=slot,
        pciDeviceId=device.state.pci_device_id,
        busId=pynvml.NVML_DEVICE_PCI_BUS_ID_FMT % (domain, bus, slot),
        busIdLegacy=pynvml.NVML_DEVICE_PCI_BUS_ID_LEGACY_FMT % (domain & 0xFFFF, bus, slot),
    )


@device_function("nvmlDeviceGetUtilizationRates")
def _utilization_rates(device: Device, rates: Any) -> None:
    write_fields(
        rates,
        gpu=round(device.readings.utilization_ratio * 100),
        memory=round(device.readings.memory_utilization_ratio * 100),
    )


@device_function("nvmlDeviceGetMemoryInfo")
def _memory_info(device: Device, info: Any) -> None:
    used = device.readings.memory_used_bytes + device.state.memory_reserved_bytes
    total = device.state.memory_total_bytes
    write_fields(info, total=total, used=used, free=max(0, total - used))


@device_function("nvmlDeviceGetMemoryInfo_v2")
def _memory_info_v2(device: Device, info: Any) -> None:
    _require_version(info, pynvml.nvmlMemory_v2)
    _memory_info(device, info)
    write_fields(info, used=device.readings.memory_used_bytes, reserved=device.state.memory_reserved_bytes)


@device_function("nvmlDeviceGetTemperature")
def _temperature(device: Device, sensor: Any, temperature: Any) -> None:
    _require_sensor(sensor.value)
    write(temperature, round(device.readings.temperature_celsius))


@device_function("nvmlDeviceGetTemperatureV")
def _temperature_v(device: Device, temperature: Any) -> None:
    _require_version(temperature, pynvml.nvmlTemperature_v1)
    _require_sensor(temperature._obj.sensorType)
    write_fields(temperature, temperature=round(device.readings.temperature_celsius))


@device_function("nvmlDeviceGetPowerUsage")
def _power_usage(device: Device, milliwatts: Any) -> None:
    write(milliwatts, round(device.readings.power_watts * 1000))


@device_function("nvmlDeviceGetEnforcedPowerLimit")
def _enforced_power_limit(device: Device, milliwatts: Any) -> None:
    write(milliwatts, round(device.state.power_limit_watts * 1000))


@device_function("nvmlDeviceGetTotalEnergyConsumption")
def _total_energy(device: Device, millijoules: Any) -> None:
    write(millijoules, int(device.readings.energy_joules * 1000))


@device_function("nvmlDeviceGetClockInfo")
def _clock_info(device: Device, domain: Any, megahertz: Any) -> None:
    clocks = {
        pynvml.NVML_CLOCK_GRAPHICS: device.readings.sm_clock_hertz,
        pynvml.NVML_CLOCK_SM: device.readings.sm_clock_hertz,
        pynvml.NVML_CLOCK_MEM: device.state.memory_clock_hertz,
    }
    if domain.value not in clocks:
        raise NvmlReturn(pynvml.NVML_ERROR_NOT_SUPPORTED)
    write(megahertz, round(clocks[domain.value] / 1e6))


@device_function("nvmlDeviceGetPerformanceState")
def _performance_state(device: Device, state: Any) -> None:
    write(state, device.state.performance_state)


@device_function("nvmlDeviceGetPcieReplayCounter")
def _pcie_replay_counter(device: Device, count: Any) -> None:
    write(count, device.state.pcie_replays)


@device_function("nvmlDeviceGetEccMode")
def _ecc_mode(device: Device, current: Any, pending: Any) -> None:
    write(current, int(device.state.ecc_enabled))
    write(pending, int(device.state.ecc_enabled))


@device_function("nvmlDeviceGetTotalEccErrors")
def _total_ecc_errors(device: Device, kind: Any, counter: Any, count: Any) -> None:
    state = device.state
    counts = {
        (pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_VOLATILE_ECC): state.ecc_volatile_corrected,
        (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC): state.ecc_volatile_uncorrected,
        (pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_AGGREGATE_ECC): state.ecc_aggregate_corrected,
        (
            pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            pynvml.NVML_AGGREGATE_ECC,
        ): state.ecc_aggregate_uncorrected,
    }
    if not state.ecc_enabled:
        raise NvmlReturn(pynvml.NVML_ERROR_NOT_SUPPORTED)
    if (kind.value, counter.value) not in counts:
        raise NvmlReturn(pynvml.NVML_ERROR_INVALID_ARGUMENT)
    write(count, counts[kind.value, counter.value])


@device_function("nvmlDeviceGetRemappedRows")
def _remapped_rows(device: Device, corrected: Any, uncorrected: Any, pending: Any, failed: Any) -> None:
    write(corrected, device.state.remapped_rows_corrected)
    write(uncorrected, device.state.remapped_rows_uncorrected)
    write(pending, int(device.state.remap_pending))
    write(failed, int(device.state.remap_failed))


def _pci_parts(address: str) -> tuple[int, int, int]:
    """Domain, bus and device. Raises NvmlReturn for what is no address."""
    try:
        domain, bus, rest = address.split(":")
        return int(domain, 16), int(bus, 16), int(rest.partition(".")[0], 16)
    except ValueError:
        raise NvmlReturn(pynvml.NVML_ERROR_INVALID_ARGUMENT) from None


def _require_version(structure: Any, version: int) -> None:
    if structure._obj.version != version:
        raise NvmlReturn(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)


def _require_sensor(sensor: int) -> None:
    if sensor != pynvml.NVML_TEMPERATURE_GPU:
        raise NvmlReturn(pynvml.NVML_ERROR_NOT_SUPPORTED)
