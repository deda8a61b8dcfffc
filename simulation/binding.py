"""What stands in the place of the library that pynvml has loaded, and what its functions are made with.

pynvml calls them as it calls C: with ctypes values, buffers and references that are filled in, and gets an
NVML return code. The functions themselves are in `simulation.nvml`.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pynvml

from simulation.machine import Machine, MachineError, SimulatedDevice, load
from simulation.readings import Readings, readings_at

HANDLES_PER_LIFE = 0x1000
"""Device handles are opaque pointers; these are numbers that point to nothing, and die with a shutdown."""


class NvmlReturn(Exception):  # noqa: N818 - a return code, which is not always an error
    """Ends a simulated function with this code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A device as one call sees it."""

    index: int
    state: SimulatedDevice
    readings: Readings


class MachineFile:
    """The machine in a file, read again whenever the file has been replaced. Raises MachineError at first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._stamp()
        self._machine = load(path)

    def __call__(self) -> Machine:
        """The machine as it is now; a file that became unreadable leaves the last good one, with a message."""
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen = stamp
            try:
                self._machine = load(self._path)
            except MachineError as error:
                sys.stderr.write(f"{error}; the machine stays as it was\n")
        return self._machine

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size


class SimulatedLibrary:
    """What pynvml takes for the loaded library: its attributes are the C functions."""

    def __init__(
        self,
        machine: Callable[[], Machine],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._machine = machine
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._energy: dict[str, float] = {}
        self._life = 0
        self.references = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in FUNCTIONS or name in self._machine().missing_functions:
            raise AttributeError(name)
        function = FUNCTIONS[name]

        def call(*arguments: Any) -> Any:
            try:
                return function(self, *arguments) or pynvml.NVML_SUCCESS
            except NvmlReturn as result:
                return result.code

        return call

    def machine(self) -> Machine:
        """The machine, for a call of an initialised library. Raises NvmlReturn."""
        if self.references == 0:
            raise NvmlReturn(pynvml.NVML_ERROR_UNINITIALIZED)
        machine = self._machine()
        if machine.library_error:
            raise NvmlReturn(machine.library_error)
        return machine

    def start(self) -> None:
        """Initialise once more. Raises NvmlReturn."""
        if error := self._machine().library_error:
            raise NvmlReturn(error)
        if self.references == 0:
            self._life += 1
        self.references += 1

    def stop(self) -> None:
        """Shut down once. Raises NvmlReturn."""
        if self.references == 0:
            raise NvmlReturn(pynvml.NVML_ERROR_UNINITIALIZED)
        self.references -= 1

    def handle(self, index: int) -> int:
        """The address that stands for the device with this index until the next shutdown."""
        return self._life * HANDLES_PER_LIFE + index

    def index(self, handle: Any) -> int:
        """The device's index. Raises NvmlReturn for a handle that is not of this life of the library."""
        life, index = divmod(ctypes.cast(handle, ctypes.c_void_p).value or 0, HANDLES_PER_LIFE)
        if life != self._life:
            raise NvmlReturn(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return index

    def device(self, index: int, function: str) -> Device:
        """The device for a call of `function`: blocks, or raises NvmlReturn, as the machine says."""
        machine = self.machine()
        if not 0 <= index < len(machine.devices):
            raise NvmlReturn(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        state = machine.devices[index]
        if state.hang_seconds:
            self._sleep(state.hang_seconds)
            raise NvmlReturn(pynvml.NVML_ERROR_UNKNOWN)
        if state.lost:
            raise NvmlReturn(pynvml.NVML_ERROR_GPU_IS_LOST)
        if error := state.errors.get(function):
            raise NvmlReturn(error)
        if state.reset_required and function in READINGS:
            raise NvmlReturn(pynvml.NVML_ERROR_RESET_REQUIRED)
        return Device(index=index, state=state, readings=self._readings(machine, state))

    def _readings(self, machine: Machine, state: SimulatedDevice) -> Readings:
        readings = readings_at(state, seed=machine.seed, since=machine.changed_at, now=self._clock())
        with self._lock:
            # A change of power is settled before the file is replaced; a call in between has counted on.
            energy = max(readings.energy_joules, self._energy.get(state.uuid, 0.0))
            self._energy[state.uuid] = energy
        return msgspec.structs.replace(readings, energy_joules=energy)


@contextmanager
def installed(library: SimulatedLibrary) -> Iterator[SimulatedLibrary]:
    """While this lasts, pynvml calls `library`. One at a time in a process."""
    install(library)
    try:
        yield library
    finally:
        install(None)


def install(library: SimulatedLibrary | None) -> None:
    """Put `library` in the place of the one that pynvml has loaded; None puts pynvml back as imported."""
    with pynvml.libLoadLock:
        pynvml.nvmlLib = library
        pynvml._nvmlLib_refcount = 0
        pynvml._nvmlGetFunctionPointer_cache.clear()


FUNCTIONS: dict[str, Callable[..., Any]] = {}
"""C function name to Python function; its first argument is the library, it returns a code or None."""

READINGS: set[str] = set()
"""Functions that a device in need of a reset refuses."""


def library_function(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function of the library: `function(library, *arguments)`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        FUNCTIONS[name] = function
        return function

    return register


def device_function(name: str, *, reading: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function of a device: `function(device, *arguments)`, the handle being resolved."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(library: SimulatedLibrary, handle: Any, *arguments: Any) -> Any:
            library.machine()
            return function(library.device(library.index(handle), name), *arguments)

        FUNCTIONS[name] = call
        if reading:
            READINGS.add(name)
        return function

    return register


def write(reference: Any, value: Any) -> None:
    """Fill a scalar that was passed by reference."""
    reference._obj.value = value


def write_handle(reference: Any, handle: int) -> None:
    """Fill an nvmlDevice_t that was passed by reference."""
    pointer = ctypes.c_void_p(handle)
    ctypes.memmove(ctypes.addressof(reference._obj), ctypes.addressof(pointer), ctypes.sizeof(pointer))


def write_text(buffer: Any, size: Any, text: str) -> None:
    """Fill a buffer of `size` bytes with `text` and a zero. Raises NvmlReturn if it is too small."""
    content = text.encode()
    if len(content) + 1 > size.value:
        raise NvmlReturn(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
    buffer.value = content


def write_fields(reference: Any, **values: Any) -> None:
    """Fill members of a structure that was passed by reference."""
    for name, value in values.items():
        setattr(reference._obj, name, value)
