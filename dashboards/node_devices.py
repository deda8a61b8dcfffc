"""Rows of the Node dashboard about its devices."""

from __future__ import annotations

from dashboards.page import Row
from dashboards.panels import ANY_IS_A_WARNING, ANY_IS_BAD, GREEN, RED, YELLOW, Bars, Stat, Table, TimeSeries
from dashboards.queries import of_node

NODE = Row(
    "Node",
    (
        Stat(
            title="Agent",
            description="Whether Prometheus can scrape this node's agent.",
            unit="none",
            empty="No agent is a target",
            queries=(of_node('max(up{HERE, job="sickbay-agent"})'),),
            words=((0, "does not answer", RED), (1, "answers", GREEN)),
        ),
        Stat(
            title="Failed devices",
            description="Devices with a Fatal fault.",
            unit="short",
            empty="No device is known",
            queries=(of_node('sum(accelerator_health_state{HERE, state="Failed"})'),),
            thresholds=ANY_IS_BAD,
        ),
        Stat(
            title="Healthy devices",
            description="Devices without a fault whose state is known.",
            unit="short",
            empty="No device is known",
            queries=(of_node('sum(accelerator_health_state{HERE, state="Healthy"})'),),
        ),
        Stat(
            title="Age of the report",
            description="Time since the AcceleratorReport was last written. At 90 s the controller calls it stale.",
            unit="s",
            empty="Never written",
            queries=(of_node("time() - max(sickbay_report_last_write_timestamp_seconds{HERE})"),),
            thresholds=((None, GREEN), (60, YELLOW), (90, RED)),
        ),
        Stat(
            title="Devices in hand",
            description="Whether the agent holds handles on the devices, or has let go of them for a repair.",
            unit="none",
            empty="The agent is not scraped",
            queries=(of_node("max(sickbay_device_access_held{HERE})"),),
            words=((0, "let go", YELLOW), (1, "held", GREEN)),
        ),
        Stat(
            title="Drill",
            description="Whether the agent believes kernel lines that userspace wrote.",
            unit="none",
            empty="The agent is not scraped",
            queries=(of_node("max(sickbay_drill{HERE})"),),
            words=((0, "no", GREEN), (1, "a drill", YELLOW)),
        ),
        Table(
            title="Open faults",
            description="What is wrong with this node. Without a device it is the node's own.",
            unit="short",
            empty="No fault is open",
            queries=(of_node("max by (device, uuid, kind, severity) (accelerator_fault_active{HERE})"),),
            columns=(("kind", "kind"), ("severity", "severity"), ("device", "device"), ("uuid", "UUID")),
            units={},
            links={},
        ),
        Table(
            title="Devices",
            description="What the devices are, and the repair that the driver asks for: 0 none, 1 reset, 2 reboot, "
            "3 drain P2P, 4 drain and reset, 5 IMEX domain, 6 bus reset, 7 system reboot.",
            unit="short",
            empty="No device is known",
            queries=(
                of_node(
                    "max by (uuid, device, model, serial, pci_address, vbios, driver_version) (accelerator_info{HERE})"
                ),
                of_node("max by (uuid, device) (accelerator_recovery_action{HERE})", "recovery action"),
            ),
            columns=(
                ("device", "device"),
                ("model", "model"),
                ("serial", "serial"),
                ("pci_address", "PCI address"),
                ("vbios", "VBIOS"),
                ("driver_version", "driver"),
                ("uuid", "UUID"),
            ),
            units={},
            links={},
        ),
    ),
)

DEVICES = Row(
    "Devices",
    (
        TimeSeries(
            title="Utilization",
            description="Share of the last sample period in which a kernel ran.",
            unit="percentunit",
            empty="The driver does not give it",
            queries=(of_node("accelerator_utilization_ratio{HERE}", "{{device}}{{partition}}"),),
            minimum=0,
            maximum=1,
        ),
        TimeSeries(
            title="Memory used",
            description="Device memory that is allocated, as a share of all of it.",
            unit="percentunit",
            empty="The driver does not give it",
            queries=(
                of_node(
                    "accelerator_memory_used_bytes{HERE} / accelerator_memory_size_bytes{HERE}",
                    "{{device}}{{partition}}",
                ),
            ),
            minimum=0,
            maximum=1,
        ),
        TimeSeries(
            title="Memory busy",
            description="Share of the last sample period in which device memory was read or written.",
            unit="percentunit",
            empty="The driver does not give it",
            queries=(of_node("accelerator_memory_utilization_ratio{HERE}", "{{device}}{{partition}}"),),
            minimum=0,
            maximum=1,
        ),
        TimeSeries(
            title="Temperature",
            description="Of the chip and of its memory.",
            unit="celsius",
            empty="The driver does not give it",
            queries=(of_node("accelerator_temperature_celsius{HERE}", "{{device}}{{partition}} {{sensor}}"),),
            thresholds=((None, GREEN), (85, YELLOW), (95, RED)),
            limits=True,
        ),
        TimeSeries(
            title="Power",
            description="Power drawn, and the lowest limit in force on any device.",
            unit="watt",
            empty="The driver does not give it",
            queries=(
                of_node("accelerator_power_watts{HERE}", "{{device}}{{partition}}"),
                of_node("min(accelerator_power_limit_watts{HERE})", "limit"),
            ),
            minimum=0,
        ),
        TimeSeries(
            title="Clocks",
            description="Of the multiprocessors and of the memory. They fall when a device is hot or out of power.",
            unit="hertz",
            empty="The driver does not give it",
            queries=(of_node("accelerator_clock_hertz{HERE}", "{{device}}{{partition}} {{domain}}"),),
            minimum=0,
        ),
        TimeSeries(
            title="ECC errors",
            description="Since the driver was loaded or the device was reset. Uncorrected ones cost work.",
            unit="short",
            empty="No ECC error",
            queries=(
                of_node(
                    "sum by (device, partition, error) (accelerator_ecc_errors_total{HERE}) > 0",
                    "{{device}}{{partition}} {{error}}",
                ),
            ),
            minimum=0,
        ),
        TimeSeries(
            title="Remapped rows",
            description="Memory rows remapped in a device's life, by the errors that made it necessary.",
            unit="short",
            empty="No row was remapped",
            queries=(
                of_node(
                    "sum by (device, partition, error) (accelerator_remapped_rows_total{HERE}) > 0",
                    "{{device}}{{partition}} {{error}}",
                ),
            ),
            minimum=0,
        ),
        Bars(
            title="Row remaps that wait or failed",
            description="A remap that waits takes effect with the next reset; one that failed needs new hardware.",
            unit="short",
            empty="The driver does not give it",
            queries=(
                of_node("sum(accelerator_row_remap_pending{HERE})", "devices whose remap waits"),
                of_node("sum(accelerator_row_remap_failed{HERE})", "devices whose remap failed"),
            ),
            minimum=0,
            thresholds=ANY_IS_A_WARNING,
        ),
    ),
)

KERNEL = Row(
    "What the driver says",
    (
        Table(
            title="Xids of this boot",
            description="Xid lines in the kernel log by device and code, and when the last one came. "
            "`sickbay explain CODE` tells what a code means.",
            unit="short",
            empty="No Xid in this boot",
            queries=(
                of_node("max by (device, uuid, xid) (accelerator_xid_errors_total{HERE}) > 0", "lines"),
                of_node(
                    "max by (device, uuid, xid) (accelerator_xid_last_timestamp_seconds{HERE}) * 1000", "last"
                ),
            ),
            columns=(("xid", "Xid"), ("device", "device"), ("uuid", "UUID")),
            units={"last": "dateTimeAsIso"},
            links={},
            sort="last",
        ),
        TimeSeries(
            title="Xids",
            description="Xid lines in each step of the graph.",
            unit="short",
            empty="No Xid in this range",
            queries=(
                of_node(
                    "sum by (device, xid) (increase(accelerator_xid_errors_total{HERE}[$__rate_interval])) > 0",
                    "{{device}}: Xid {{xid}}",
                ),
            ),
            width=12,
            minimum=0,
        ),
        TimeSeries(
            title="NVSwitch errors",
            description="SXid lines of this boot by the switch's PCI address.",
            unit="short",
            empty="No SXid in this boot",
            queries=(
                of_node(
                    "sum by (pci_address, sxid) (accelerator_sxid_errors_total{HERE})",
                    "{{pci_address}}: SXid {{sxid}}",
                ),
            ),
            minimum=0,
        ),
        TimeSeries(
            title="PCIe replays",
            description="Packets that PCIe links had to send again, each second.",
            unit="ops",
            empty="The driver does not give it",
            queries=(
                of_node(
                    "sum by (device, partition) (rate(accelerator_pcie_replays_total{HERE}[$__rate_interval]))",
                    "{{device}}{{partition}}",
                ),
            ),
            minimum=0,
        ),
        TimeSeries(
            title="Kernel log",
            description="Lines each second by what became of them, and records that were overwritten before they were "
            "read.",
            unit="ops",
            empty="The agent is not scraped",
            queries=(
                of_node(
                    "sum by (outcome) (rate(sickbay_kernel_log_lines_total{HERE}[$__rate_interval]))",
                    "{{outcome}}",
                ),
                of_node("sum(rate(sickbay_kernel_log_lost_records_total{HERE}[$__rate_interval]))", "lost"),
            ),
            minimum=0,
        ),
    ),
)
