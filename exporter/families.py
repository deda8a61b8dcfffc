"""Every metric of the agent: its name, type, labels, meaning and source, in one place.

`accelerator_*` is what is measured on devices, `sickbay_*` is the agent itself. `ALL` is what documentation is
made of; a reading of the devices is one entry of `READINGS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

DEVICE = ("uuid", "device", "partition")

MetricFamily = CounterMetricFamily | GaugeMetricFamily


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. `help` names the source of its values."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()

    def new(self) -> MetricFamily:
        """An empty family of prometheus_client, to be filled for one scrape."""
        if self.kind == "counter":
            return CounterMetricFamily(self.name, self.help, labels=self.labels)
        return GaugeMetricFamily(self.name, self.help, labels=self.labels)


@dataclass(frozen=True, slots=True)
class Reading:
    """Values of `samples.DeviceSample` that make up one metric: attribute names by the value of `label`."""

    family: Family
    attributes: Mapping[str, str] = field(default_factory=dict)


def _reading(name: str, kind: Literal["counter", "gauge"], attribute: str, text: str) -> Reading:
    return Reading(Family(name, kind, text, DEVICE), {"": attribute})


def _readings(
    name: str, kind: Literal["counter", "gauge"], label: str, attributes: Mapping[str, str], text: str
) -> Reading:
    return Reading(Family(name, kind, text, (*DEVICE, label)), attributes)


READINGS = (
    _reading(
        "accelerator_utilization_ratio",
        "gauge",
        "utilization_ratio",
        "Share of the device's last sample period (1/6 s to 1 s) in which a kernel ran "
        "(nvmlDeviceGetUtilizationRates).",
    ),
    _reading(
        "accelerator_memory_utilization_ratio",
        "gauge",
        "memory_utilization_ratio",
        "Share of that period in which device memory was read or written (nvmlDeviceGetUtilizationRates).",
    ),
    _reading(
        "accelerator_memory_size_bytes",
        "gauge",
        "memory_total_bytes",
        "Device memory, what the driver reserves included (nvmlDeviceGetMemoryInfo_v2).",
    ),
    _reading(
        "accelerator_memory_used_bytes",
        "gauge",
        "memory_used_bytes",
        "Device memory that is allocated (nvmlDeviceGetMemoryInfo_v2).",
    ),
    _reading(
        "accelerator_memory_free_bytes",
        "gauge",
        "memory_free_bytes",
        "Device memory that can be allocated (nvmlDeviceGetMemoryInfo_v2).",
    ),
    _readings(
        "accelerator_temperature_celsius",
        "gauge",
        "sensor",
        {"core": "temperature_celsius", "memory": "memory_temperature_celsius"},
        "Temperature of the chip (nvmlDeviceGetTemperatureV) and of the memory (NVML field 82).",
    ),
    _reading("accelerator_power_watts", "gauge", "power_watts", "Power drawn (nvmlDeviceGetPowerUsage)."),
    _reading(
        "accelerator_power_limit_watts",
        "gauge",
        "power_limit_watts",
        "The lowest power limit in force (nvmlDeviceGetEnforcedPowerLimit).",
    ),
    _reading(
        "accelerator_energy_joules_total",
        "counter",
        "energy_joules",
        "Energy consumed since the driver was loaded (NVML field 83).",
    ),
    _readings(
        "accelerator_clock_hertz",
        "gauge",
        "domain",
        {"sm": "sm_clock_hertz", "memory": "memory_clock_hertz"},
        "Clock of the multiprocessors and of the memory (nvmlDeviceGetClockInfo).",
    ),
    _reading(
        "accelerator_performance_state",
        "gauge",
        "performance_state",
        "Performance state, 0 (fastest) to 15 (nvmlDeviceGetPerformanceState).",
    ),
    _reading(
        "accelerator_ecc_enabled",
        "gauge",
        "ecc_enabled",
        "1 if memory is protected by ECC (NVML field 1).",
    ),
    _readings(
        "accelerator_ecc_errors_total",
        "counter",
        "error",
        {"corrected": "ecc_volatile_corrected", "uncorrected": "ecc_volatile_uncorrected"},
        "ECC errors since the driver was loaded or the device was reset (NVML fields 3 and 4).",
    ),
    _readings(
        "accelerator_ecc_lifetime_errors_total",
        "counter",
        "error",
        {"corrected": "ecc_aggregate_corrected", "uncorrected": "ecc_aggregate_uncorrected"},
        "ECC errors in the device's life (NVML fields 5 and 6).",
    ),
    _reading(
        "accelerator_pcie_replays_total",
        "counter",
        "pcie_replays",
        "Packets that the PCIe link had to send again (NVML field 94).",
    ),
    _readings(
        "accelerator_remapped_rows_total",
        "counter",
        "error",
        {"corrected": "remapped_rows_corrected", "uncorrected": "remapped_rows_uncorrected"},
        "Memory rows remapped in the device's life, by the errors that made it necessary "
        "(NVML fields 142 and 143).",
    ),
    _reading(
        "accelerator_row_remap_pending",
        "gauge",
        "remap_pending",
        "1 if a row remap waits for a device reset (NVML field 144).",
    ),
    _reading(
        "accelerator_row_remap_failed",
        "gauge",
        "remap_failed",
        "1 if a row remap has ever failed (NVML field 145).",
    ),
    _reading(
        "accelerator_recovery_action",
        "gauge",
        "recovery_action",
        "The driver's verdict (NVML field 230): 0 none, 1 reset, 2 reboot the node, 3 drain P2P, 4 drain and "
        "reset, 5 recover the IMEX domain, 6 bus reset, 7 reboot the system.",
    ),
)
"""What a sample of a device becomes. A value that is not known is no series."""

INFO = Family(
    "accelerator_info",
    "gauge",
    "Always 1: what the device is (NVML), for joins.",
    (*DEVICE, "vendor", "model", "serial", "pci_address", "vbios", "driver_version"),
)
HEALTH_STATE = Family(
    "accelerator_health_state",
    "gauge",
    "1 for the state that the device is in, 0 for the others: Failed with a Fatal fault, Degraded with a lesser "
    "one, Unknown without data.",
    (*DEVICE, "state"),
)
FAULT_ACTIVE = Family(
    "accelerator_fault_active",
    "gauge",
    "1 for each open fault; uuid and device are empty for one that no device can be named for.",
    ("uuid", "device", "kind", "severity"),
)
XID_ERRORS = Family(
    "accelerator_xid_errors_total",
    "counter",
    "Xid lines of this boot in the kernel log. Where nobody knows whose the PCI address is, uuid is empty and "
    "device is the address.",
    ("uuid", "device", "xid"),
)
XID_LAST = Family(
    "accelerator_xid_last_timestamp_seconds",
    "gauge",
    "When the last such line was written (kernel log).",
    ("uuid", "device", "xid"),
)
SXID_ERRORS = Family(
    "accelerator_sxid_errors_total",
    "counter",
    "SXid (NVSwitch error) lines of this boot in the kernel log, by the switch's PCI address.",
    ("pci_address", "sxid"),
)
ALLOCATION_INFO = Family(
    "accelerator_allocation_info",
    "gauge",
    "Always 1: the container that holds a device, as the kubelet says it. Join by uuid, device and partition.",
    (
        "uuid",
        "device",
        "partition",
        "workload_namespace",
        "workload_pod",
        "workload_container",
        "resource",
    ),
)
DEVICES = Family(
    "accelerator_devices",
    "gauge",
    "Devices of a resource as the kubelet says it (pod resources API): allocatable are healthy, held or not; "
    "allocated are held by containers; free are healthy and not held; unhealthy are held and not healthy any more. "
    "The kubelet does not name devices that are unhealthy and free.",
    ("resource", "state"),
)
PLUGIN_STATE = Family(
    "accelerator_plugin_state",
    "gauge",
    "1 for the state that a device plugin was found in by asking it, 0 for the others.",
    ("resource", "socket", "state"),
)

BUILD_INFO = Family("sickbay_build_info", "gauge", "Always 1: the agent's version.", ("version",))
SOURCE_STATE = Family(
    "sickbay_source_state",
    "gauge",
    "1 for the state that a source of the agent is in, 0 for the others.",
    ("source", "state"),
)
SOURCE_LAST_SUCCESS = Family(
    "sickbay_source_last_success_timestamp_seconds",
    "gauge",
    "When a source was last read from end to end.",
    ("source",),
)
SOURCE_DURATION = Family(
    "sickbay_source_duration_seconds", "gauge", "How long that reading took.", ("source",)
)
WORKER_RESTARTS = Family(
    "sickbay_nvml_worker_restarts_total", "counter", "Restarts of the process that talks to NVML."
)
KERNEL_LOG_LINES = Family(
    "sickbay_kernel_log_lines_total",
    "counter",
    "Lines read from the kernel log, by what became of them: spoofed were written by userspace, malformed "
    "cannot be read, known were taken before.",
    ("outcome",),
)
KERNEL_LOG_LOST = Family(
    "sickbay_kernel_log_lost_records_total",
    "counter",
    "Kernel records that were overwritten before the agent read them (gaps in their numbers).",
)
REPORT_WRITES = Family(
    "sickbay_report_writes_total",
    "counter",
    "Successful writes of the AcceleratorReport: for a Fatal fault, for what a repair waits for, for another change, "
    "as a sign of life.",
    ("kind",),
)
REPORT_FAILURES = Family(
    "sickbay_report_failures_total",
    "counter",
    "Failed requests for the AcceleratorReport, by the kind of error.",
    ("reason",),
)
REPORT_LAST_WRITE = Family(
    "sickbay_report_last_write_timestamp_seconds",
    "gauge",
    "When the AcceleratorReport was last written. The controller calls it stale after 90 s.",
)
STATE_FILE_FAILURES = Family(
    "sickbay_state_file_failures_total", "counter", "Failed writes of the agent's state file."
)
DEVICE_ACCESS = Family(
    "sickbay_device_access_held",
    "gauge",
    "1 if the agent may hold handles on the devices, 0 if it has let go of them for a repair.",
)
DRILL = Family("sickbay_drill", "gauge", "1 if the agent believes kernel lines that userspace wrote.")

OF_DEVICES = (
    *(reading.family for reading in READINGS),
    INFO,
    HEALTH_STATE,
    FAULT_ACTIVE,
    XID_ERRORS,
    XID_LAST,
    SXID_ERRORS,
    ALLOCATION_INFO,
    DEVICES,
    PLUGIN_STATE,
)
OF_AGENT = (
    BUILD_INFO,
    SOURCE_STATE,
    SOURCE_LAST_SUCCESS,
    SOURCE_DURATION,
    WORKER_RESTARTS,
    KERNEL_LOG_LINES,
    KERNEL_LOG_LOST,
    REPORT_WRITES,
    REPORT_FAILURES,
    REPORT_LAST_WRITE,
    STATE_FILE_FAILURES,
    DEVICE_ACCESS,
    DRILL,
)
ALL = (*OF_DEVICES, *OF_AGENT)
