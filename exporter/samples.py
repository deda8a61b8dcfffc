"""What the NVML worker and its parent say to each other, and what the agent then knows of its devices.

One request or reply is one line of JSON: the parent writes a `Request` to the worker's standard input and
reads the `Reply` with the same `id` from its standard output. At most one request is under way at a time.

Of a device's values `None` means "not supported here, or not readable just now"; it is never turned into 0.
Sources are named as NVML functions, or as ids of `nvmlDeviceGetFieldValues` (`NVML_FI_*` in nvml.h).
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

GPU_IS_LOST = "GpuIsLost"
"""`DeviceSample.error` of a device that has fallen off the bus (NVML code 15)."""

RESET_REQUIRED = "ResetRequired"
"""`DeviceSample.error` of a device that must be reset before it can be used again (NVML code 16)."""

UNRESPONSIVE = "Unresponsive"
"""`DeviceSample.error` of a device that let a call wait too long; it is spared for a while. Our word, not NVML's."""


class Operation(StrEnum):
    """What the parent may ask.

    `Acquire` initialises NVML if it is not, and answers with a fresh `Inventory`. `Inventory` looks the devices
    up again, `Sample` reads them; both answer `Released` while NVML is shut down. `Release` shuts it down
    (nvmlShutdown, which closes the device files, so that a reset is not blocked) and answers `Released`.
    Each may be answered with a `WorkerFailure`.
    """

    ACQUIRE = "Acquire"
    INVENTORY = "Inventory"
    SAMPLE = "Sample"
    RELEASE = "Release"


class WorkerError(StrEnum):
    """Why NVML as a whole does not work. A fault of the hardware follows from none of these."""

    LIBRARY_NOT_FOUND = "LibraryNotFound"
    """The loader finds no `libnvidia-ml.so.1`: no driver is installed, or not in this container (NVML 12)."""
    DRIVER_NOT_LOADED = "DriverNotLoaded"
    """The library is there, the kernel module is not (NVML 9)."""
    LIBRARY_MISMATCH = "LibraryMismatch"
    """Library and kernel module are of different versions, as in the middle of a driver upgrade (NVML 18)."""
    NO_PERMISSION = "NoPermission"
    """This process may not open the device files (NVML 4)."""
    UNKNOWN = "Unknown"
    """All else; NVML's own Unknown Error (999) is what a container gets that lost its device cgroup."""


class DeviceIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """What does not change while a device is there. Read once: a lost device cannot be looked up any more."""

    uuid: str
    """`GPU-` and a UUID in lower case (nvmlDeviceGetUUID)."""
    index: int
    """NVML's number of the device (nvmlDeviceGetHandleByIndex_v2)."""
    model: str | None = None
    """Product name, such as `NVIDIA H100 80GB HBM3` (nvmlDeviceGetName)."""
    serial: str | None = None
    """Serial number of the board (nvmlDeviceGetSerial)."""
    pci_address: str | None = None
    """`0000:3b:00.0`: domain, bus, device, function in lower case (nvmlDeviceGetPciInfo_v3)."""
    vbios: str | None = None
    """Version of the device's firmware (nvmlDeviceGetVbiosVersion)."""
    minor_number: int | None = None
    """N of `/dev/nvidiaN` (nvmlDeviceGetMinorNumber)."""


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """One question to the worker. With `Acquire` go the devices that an earlier worker knew."""

    id: int
    operation: Operation
    known: tuple[DeviceIdentity, ...] = ()


class UnidentifiedDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A device that NVML counts but cannot name: it was lost before it could be looked up."""

    index: int
    error: str
    """NVML's name of the code that the look-up returned, such as `GpuIsLost`."""


class Inventory(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The devices of this machine. A device that is lost later stays in it for the life of the worker."""

    driver_version: str | None = None
    """Version of the kernel module, such as `580.95.05` (nvmlSystemGetDriverVersion)."""
    nvml_version: str | None = None
    """Version of the library, such as `13.580.95.05` (nvmlSystemGetNVMLVersion)."""
    devices: tuple[DeviceIdentity, ...] = ()
    unidentified: tuple[UnidentifiedDevice, ...] = ()


class DeviceSample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One device at one moment, in base units; counters count from the driver's load unless said otherwise."""

    uuid: str
    error: str | None = None
    """What is wrong with the device as a whole: `GpuIsLost`, `ResetRequired`, `Unresponsive`, or NVML's name of
    the code that every single call failed with."""
    utilization_ratio: float | None = None
    """Share of the last period (1/6 s to 1 s) in which a kernel ran (nvmlDeviceGetUtilizationRates.gpu)."""
    memory_utilization_ratio: float | None = None
    """Share of that period in which device memory was read or written (nvmlDeviceGetUtilizationRates.memory)."""
    memory_total_bytes: int | None = None
    """Device memory, what the driver reserves included (nvmlDeviceGetMemoryInfo_v2, else nvmlDeviceGetMemoryInfo)."""
    memory_used_bytes: int | None = None
    """As the same function has it. Its first version counts what is reserved as used."""
    memory_free_bytes: int | None = None
    """As the same function has it."""
    temperature_celsius: float | None = None
    """Temperature of the GPU (nvmlDeviceGetTemperatureV, else nvmlDeviceGetTemperature)."""
    memory_temperature_celsius: float | None = None
    """Temperature of the device memory (field 82)."""
    power_watts: float | None = None
    """Power drawn, averaged over 1 s from Ampere on (nvmlDeviceGetPowerUsage)."""
    power_limit_watts: float | None = None
    """The lowest limit in force (nvmlDeviceGetEnforcedPowerLimit)."""
    energy_joules: float | None = None
    """Energy consumed since the driver was loaded (field 83)."""
    sm_clock_hertz: float | None = None
    """Clock of the multiprocessors (nvmlDeviceGetClockInfo, NVML_CLOCK_SM)."""
    memory_clock_hertz: float | None = None
    """Clock of the device memory (nvmlDeviceGetClockInfo, NVML_CLOCK_MEM)."""
    performance_state: int | None = None
    """0 (fastest) to 15 (nvmlDeviceGetPerformanceState)."""
    ecc_enabled: bool | None = None
    """Whether memory is protected by ECC now (field 1)."""
    ecc_volatile_corrected: int | None = None
    """Corrected errors since the driver's load or a device reset (field 3)."""
    ecc_volatile_uncorrected: int | None = None
    """Uncorrected errors since then (field 4)."""
    ecc_aggregate_corrected: int | None = None
    """Corrected errors of the device's life (field 5)."""
    ecc_aggregate_uncorrected: int | None = None
    """Uncorrected errors of the device's life (field 6)."""
    pcie_replays: int | None = None
    """Packets that the PCIe link had to repeat (field 94)."""
    remapped_rows_corrected: int | None = None
    """Memory rows remapped for corrected errors (field 142)."""
    remapped_rows_uncorrected: int | None = None
    """Memory rows remapped for uncorrected errors (field 143)."""
    remap_pending: bool | None = None
    """A remap waits for a device reset (field 144)."""
    remap_failed: bool | None = None
    """A remap has failed; it stays set for the device's life (field 145)."""
    recovery_action: int | None = None
    """The driver's verdict (field 230): 0 none, 1 reset, 2 reboot, 3 drain P2P, 4 drain and reset, 5 recover the
    IMEX domain, 6 bus reset, 7 system reboot. Later drivers may know more."""


class Sample(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """All devices of the inventory, in its order."""

    monotonic_seconds: float
    """When the sample was begun, on the machine's CLOCK_MONOTONIC, which parent and worker share."""
    duration_seconds: float
    devices: tuple[DeviceSample, ...]


class Released(msgspec.Struct, frozen=True, tag=True):
    """NVML is shut down: this worker holds no device file."""


class WorkerFailure(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """NVML as a whole does not work."""

    error: WorkerError
    message: str


Body = Inventory | Sample | Released | WorkerFailure


class Reply(msgspec.Struct, frozen=True):
    """The answer to the request with this `id`."""

    id: int
    body: Body
