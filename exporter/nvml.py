"""NVML held or released, its devices looked up and sampled. Used by the worker alone, in its own process.

Every value is read and checked on its own: what a device or a library does not support is `None` and takes
nothing else with it. A lost or hung device takes no other device with it.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pynvml

from exporter.readings import CALL_ERRORS, READERS, Values, error_name, pci_address, read_fields
from exporter.samples import (
    GPU_IS_LOST,
    RESET_REQUIRED,
    UNRESPONSIVE,
    DeviceIdentity,
    DeviceSample,
    Inventory,
    Sample,
    UnidentifiedDevice,
    WorkerError,
)

SLOW_CALL_SECONDS = 2.0
"""A call that takes longer marks its device as unresponsive. One to a dead GSP takes about 6 s, and the next
one as long again, while a whole sample of healthy devices takes well under a second."""

SPARE_SECONDS = 30.0
"""How long an unresponsive device is not asked again, so that the others are sampled in time."""

_WORKER_ERRORS = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: WorkerError.LIBRARY_NOT_FOUND,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: WorkerError.DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: WorkerError.LIBRARY_MISMATCH,
    pynvml.NVML_ERROR_NO_PERMISSION: WorkerError.NO_PERMISSION,
    pynvml.NVML_ERROR_OPERATING_SYSTEM: WorkerError.NO_PERMISSION,
    pynvml.NVML_ERROR_UNINITIALIZED: WorkerError.UNKNOWN,
    pynvml.NVML_ERROR_UNKNOWN: WorkerError.UNKNOWN,
}
"""Codes that, when every device answers with one of them, speak of the library or of this process."""

_WORKER_ERROR_NAMES = {error_name(pynvml.NVMLError(code)): error for code, error in _WORKER_ERRORS.items()}

_NOT_OFFERED = ("NotSupported", "FunctionNotFound")


class NvmlUnavailableError(Exception):
    """NVML as a whole does not work; `error` says how."""

    def __init__(self, error: WorkerError, message: str) -> None:
        super().__init__(message)
        self.error = error


class _Device:
    """A device of the inventory. Without a handle it cannot be asked, and `error` says why."""

    __slots__ = ("error", "handle", "identity", "spared_until")

    def __init__(self, identity: DeviceIdentity, handle: Any, error: str | None = None) -> None:
        self.identity = identity
        self.handle = handle
        self.error = error
        self.spared_until = 0.0


class Nvml:
    """The library and its devices. Not thread-safe: one call at a time."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        slow_call: float = SLOW_CALL_SECONDS,
        spare: float = SPARE_SECONDS,
    ) -> None:
        self._clock = clock
        self._slow_call = slow_call
        self._spare = spare
        self._devices: list[_Device] = []
        self._logged: set[tuple[str, str]] = set()
        self.held = False

    def acquire(self, known: tuple[DeviceIdentity, ...] = ()) -> Inventory:
        """Initialise NVML if it is not, and look the devices up. Raises NvmlUnavailableError.

        A device of `known` that is lost by now keeps the identity that it has there, by its index.
        """
        if not self.held:
            try:
                pynvml.nvmlInit()
            except pynvml.NVMLError as error:
                raise _unavailable(error, "nvmlInit") from error
            self.held = True
        if not self._devices:
            self._devices = [_Device(identity, None) for identity in known]
        return self.inventory()

    def release(self) -> None:
        """Shut NVML down, which closes the device files; identities are kept. Raises NvmlUnavailableError."""
        if not self.held:
            return
        for device in self._devices:
            device.handle = None
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError as error:
            raise _unavailable(error, "nvmlShutdown") from error
        self.held = False

    def inventory(self) -> Inventory:
        """Look the devices up again; one that is lost by now keeps its identity. Raises NvmlUnavailableError."""
        try:
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            raise _unavailable(error, "nvmlDeviceGetCount_v2") from error
        known = {device.identity.index: device for device in self._devices}
        devices: list[_Device] = []
        unidentified: list[UnidentifiedDevice] = []
        for index in range(count):
            if index in known and self._clock() < known[index].spared_until:
                devices.append(known[index])
                continue
            try:
                devices.append(self._look_up(index, known.get(index)))
            except CALL_ERRORS as error:
                if index in known:
                    devices.append(_Device(known[index].identity, known[index].handle, error_name(error)))
                else:
                    unidentified.append(UnidentifiedDevice(index=index, error=error_name(error)))
        _raise_if_nothing_answers(
            [*(device.error for device in devices), *(one.error for one in unidentified)]
        )
        self._devices = devices
        return Inventory(
            driver_version=self._optional("driver version", pynvml.nvmlSystemGetDriverVersion),
            nvml_version=self._optional("NVML version", pynvml.nvmlSystemGetNVMLVersion),
            devices=tuple(device.identity for device in devices),
            unidentified=tuple(unidentified),
        )

    def sample(self) -> Sample:
        """Read all devices of the inventory. Raises NvmlUnavailableError where no device is to blame."""
        started = self._clock()
        devices = tuple(self._sample(device) for device in self._devices)
        _raise_if_nothing_answers([device.error for device in devices])
        return Sample(monotonic_seconds=started, duration_seconds=self._clock() - started, devices=devices)

    def _look_up(self, index: int, known: _Device | None) -> _Device:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        identity = DeviceIdentity(
            uuid=pynvml.nvmlDeviceGetUUID(handle),
            index=index,
            model=self._optional("name", pynvml.nvmlDeviceGetName, handle),
            serial=self._optional("serial", pynvml.nvmlDeviceGetSerial, handle),
            pci_address=self._optional("PCI address", pci_address, handle),
            vbios=self._optional("VBIOS version", pynvml.nvmlDeviceGetVbiosVersion, handle),
            minor_number=self._optional("minor number", pynvml.nvmlDeviceGetMinorNumber, handle),
        )
        return _Device(_completed(identity, known.identity) if known else identity, handle)

    def _sample(self, device: _Device) -> DeviceSample:
        uuid = device.identity.uuid
        if device.handle is None:
            return DeviceSample(uuid=uuid, error=device.error)
        if self._clock() < device.spared_until:
            return DeviceSample(uuid=uuid, error=UNRESPONSIVE)
        values: Values = {}
        failures: list[str] = []
        for name, read in (*READERS, ("field values", lambda handle: self._fields(handle, failures))):
            started = self._clock()
            try:
                values.update(read(device.handle))
            except CALL_ERRORS as error:
                failures.append(self._note(name, error))
            if GPU_IS_LOST in failures:
                return DeviceSample(uuid=uuid, error=GPU_IS_LOST)
            if self._clock() - started > self._slow_call:
                device.spared_until = self._clock() + self._spare
                return DeviceSample(uuid=uuid, error=UNRESPONSIVE, **values)
        return DeviceSample(uuid=uuid, error=_device_error(values, failures), **values)

    def _fields(self, handle: Any, failures: list[str]) -> Values:
        values: Values = {}
        for field, name, value in read_fields(handle):
            if isinstance(value, Exception):
                failures.append(self._note(f"field {field}", value))
            else:
                values[name] = value
        return values

    def _optional(self, name: str, read: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return read(*arguments)
        except CALL_ERRORS as error:
            if self._note(name, error) == GPU_IS_LOST:
                raise
            return None

    def _note(self, name: str, error: Exception) -> str:
        """The failure's name, logged once per value; what says nothing of the value alone is not logged."""
        code = error_name(error)
        if code not in ("NotSupported", GPU_IS_LOST, RESET_REQUIRED) and (name, code) not in self._logged:
            self._logged.add((name, code))
            sys.stderr.write(f"{name} cannot be read: {code}: {error}\n")
        return code


def _completed(identity: DeviceIdentity, known: DeviceIdentity) -> DeviceIdentity:
    """What could not be read this time is as it was; a device does not lose its serial number."""
    if identity.uuid != known.uuid:
        return identity
    missing = [name for name, value in msgspec.structs.asdict(identity).items() if value is None]
    return msgspec.structs.replace(identity, **{name: getattr(known, name) for name in missing})


def _device_error(values: Values, failures: list[str]) -> str | None:
    if RESET_REQUIRED in failures:
        return RESET_REQUIRED
    if any(value is not None for value in values.values()):
        return None
    return next((name for name in failures if name not in _NOT_OFFERED), None)


def _raise_if_nothing_answers(errors: list[str | None]) -> None:
    if not errors or not all(error in _WORKER_ERROR_NAMES for error in errors):
        return
    first = str(errors[0])
    raise NvmlUnavailableError(_WORKER_ERROR_NAMES[first], f"no device answers: {first}")


def _unavailable(error: pynvml.NVMLError, call: str) -> NvmlUnavailableError:
    kind = _WORKER_ERRORS.get(error.value, WorkerError.UNKNOWN)
    message = f"{call}: {error} (NVML code {error.value})"
    if kind is WorkerError.LIBRARY_NOT_FOUND:
        message += f": {_loader_message()}"
    return NvmlUnavailableError(kind, message)


def _loader_message() -> str:
    """Why the library cannot be loaded: the loader says it, and pynvml drops it."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError as error:
        return str(error)
    return "the loader finds it now"
