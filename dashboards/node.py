"""The Node dashboard: the devices of one node, what is wrong with them, and who uses them."""

from __future__ import annotations

from dashboards.panels import (
    ANY_IS_A_WARNING,
    ANY_IS_BAD,
    GREEN,
    RED,
    YELLOW,
    Annotation,
    Bars,
    Json,
    Query,
    Row,
    Stat,
    Table,
    TimeSeries,
    dashboard,
    variable,
)

UID = "sickbay-node"
SELECTOR = 'cluster=~"$cluster", node="$node"'
OF_NODE = 'cluster=~"$cluster", session_node="$node"'
"""What selects the node in what the controller says of it."""


def query(expr: str, legend: str = "") -> Query:
    """A query in which HERE stands for what selects the node."""
    return Query(expr.replace("HERE", SELECTOR), legend)


NODE = Row(
    "Node",
    (
        Stat(
            title="Agent",
            description="Whether Prometheus can scrape this node's agent.",
            unit="none",
            empty="No agent is a target",
            queries=(query('max(up{HERE, job="sickbay-agent"})'),),
            words=((0, "does not answer", RED), (1, "answers", GREEN)),
        ),
        Stat(
            title="Failed devices",
            description="Devices with a Fatal fault.",
            unit="short",
            empty="No device is known",
            queries=(query('sum(accelerator_health_state{HERE, state="Failed"})'),),
            thresholds=ANY_IS_BAD,
        ),
        Stat(
            title="Healthy devices",
            description="Devices without a fault whose state is known.",
            unit="short",
            empty="No device is known",
            queries=(query('sum(accelerator_health_state{HERE, state="Healthy"})'),),
        ),
        Stat(
            title="Age of the report",
            description="Time since the AcceleratorReport was last written. At 90 s the controller calls it stale.",
            unit="s",
            empty="Never written",
            queries=(query("time() - max(sickbay_report_last_write_timestamp_seconds{HERE})"),),
            thresholds=((None, GREEN), (60, YELLOW), (90, RED)),
        ),
        Stat(
            title="Devices in hand",
            description="Whether the agent holds handles on the devices, or has let go of them for a repair.",
            unit="none",
            empty="The agent is not scraped",
            queries=(query("max(sickbay_device_access_held{HERE})"),),
            words=((0, "let go", YELLOW), (1, "held", GREEN)),
        ),
        Stat(
            title="Drill",
            description="Whether the agent believes kernel lines that userspace wrote.",
            unit="none",
            empty="The agent is not scraped",
            queries=(query("max(sickbay_drill{HERE})"),),
            words=((0, "no", GREEN), (1, "a drill", YELLOW)),
        ),
        Table(
            title="Open faults",
            description="What is wrong with this node. Without a device it is the node's own.",
            unit="short",
            empty="No fault is open",
            queries=(query("max by (device, uuid, kind, severity) (accelerator_fault_active{HERE})"),),
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
                query(
                    "max by (uuid, device, model, serial, pci_address, vbios, driver_version) (accelerator_info{HERE})"
                ),
                query("max by (uuid, device) (accelerator_recovery_action{HERE})", "recovery action"),
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
            queries=(query("accelerator_utilization_ratio{HERE}", "{{device}}{{partition}}"),),
            minimum=0,
            maximum=1,
        ),
        TimeSeries(
            title="Memory used",
            description="Device memory that is allocated, as a share of all of it.",
            unit="percentunit",
            empty="The driver does not give it",
            queries=(
                query(
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
            queries=(query("accelerator_memory_utilization_ratio{HERE}", "{{device}}{{partition}}"),),
            minimum=0,
            maximum=1,
        ),
        TimeSeries(
            title="Temperature",
            description="Of the chip and of its memory.",
            unit="celsius",
            empty="The driver does not give it",
            queries=(query("accelerator_temperature_celsius{HERE}", "{{device}}{{partition}} {{sensor}}"),),
            thresholds=((None, GREEN), (85, YELLOW), (95, RED)),
            limits=True,
        ),
        TimeSeries(
            title="Power",
            description="Power drawn, and the lowest limit in force on any device.",
            unit="watt",
            empty="The driver does not give it",
            queries=(
                query("accelerator_power_watts{HERE}", "{{device}}{{partition}}"),
                query("min(accelerator_power_limit_watts{HERE})", "limit"),
            ),
            minimum=0,
        ),
        TimeSeries(
            title="Clocks",
            description="Of the multiprocessors and of the memory. They fall when a device is hot or out of power.",
            unit="hertz",
            empty="The driver does not give it",
            queries=(query("accelerator_clock_hertz{HERE}", "{{device}}{{partition}} {{domain}}"),),
            minimum=0,
        ),
        TimeSeries(
            title="ECC errors",
            description="Since the driver was loaded or the device was reset. Uncorrected ones cost work.",
            unit="short",
            empty="No ECC error",
            queries=(
                query(
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
                query(
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
                query("sum(accelerator_row_remap_pending{HERE})", "devices whose remap waits"),
                query("sum(accelerator_row_remap_failed{HERE})", "devices whose remap failed"),
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
                query("max by (device, uuid, xid) (accelerator_xid_errors_total{HERE}) > 0", "lines"),
                query(
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
                query(
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
                query(
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
                query(
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
                query(
                    "sum by (outcome) (rate(sickbay_kernel_log_lines_total{HERE}[$__rate_interval]))",
                    "{{outcome}}",
                ),
                query("sum(rate(sickbay_kernel_log_lost_records_total{HERE}[$__rate_interval]))", "lost"),
            ),
            minimum=0,
        ),
    ),
)

WORKLOADS = Row(
    "Workloads",
    (
        Table(
            title="Who holds which device",
            description="Containers and the devices that the kubelet gave them, with what the devices do.",
            unit="short",
            empty="Nobody holds a device",
            queries=(
                query(
                    "accelerator_utilization_ratio{HERE}"
                    " * on (uuid, device, partition) group_right () accelerator_allocation_info{HERE}",
                    "utilization",
                ),
                query(
                    "accelerator_memory_used_bytes{HERE}"
                    " * on (uuid, device, partition) group_right () accelerator_allocation_info{HERE}",
                    "memory",
                ),
            ),
            columns=(
                ("workload_namespace", "namespace"),
                ("workload_pod", "pod"),
                ("workload_container", "container"),
                ("resource", "resource"),
                ("device", "device"),
                ("uuid", "UUID"),
            ),
            units={"utilization": "percentunit", "memory": "bytes"},
            links={},
        ),
        TimeSeries(
            title="Devices as the kubelet sees them",
            description="Devices held by containers, free, and held although they are not healthy any more.",
            unit="short",
            empty="The kubelet tells no devices",
            queries=(
                query(
                    'sum by (resource, state) (accelerator_devices{HERE, state!="allocatable"})',
                    "{{resource}}: {{state}}",
                ),
            ),
            width=12,
            minimum=0,
            stacked=True,
        ),
        TimeSeries(
            title="Allocation latency",
            description="Until a pod has its devices: from its binding to this node, as the agent sees it, and for the "
            "call of the plugin alone, as the kubelet measures it.",
            unit="s",
            empty="No accelerator pod was started",
            queries=(
                query(
                    "histogram_quantile(0.5, sum by (resource, le) "
                    "(rate(accelerator_allocation_duration_seconds_bucket{HERE}[$__rate_interval]))) >= 0",
                    "{{resource}}, median",
                ),
                query(
                    "histogram_quantile(0.99, sum by (resource, le) "
                    "(rate(accelerator_allocation_duration_seconds_bucket{HERE}[$__rate_interval]))) >= 0",
                    "{{resource}}, 99 %",
                ),
                query(
                    "histogram_quantile(0.99, sum by (resource, le) "
                    "(rate(accelerator_kubelet_allocation_duration_seconds_bucket{HERE}[5m]))) >= 0",
                    "{{resource}}, 99 % of the kubelet's calls",
                ),
            ),
            minimum=0,
        ),
        TimeSeries(
            title="Where dispatches spend their time",
            description="The median of each stage of an accelerator pod's way from creation to ready.",
            unit="s",
            empty="No accelerator pod was started",
            queries=(
                query(
                    "histogram_quantile(0.5, sum by (stage, le) "
                    "(rate(accelerator_dispatch_stage_duration_seconds_bucket{HERE}[$__rate_interval]))) >= 0",
                    "{{stage}}",
                ),
            ),
            minimum=0,
        ),
        TimeSeries(
            title="Device plugins",
            description="The state that each plugin was found in by asking it.",
            unit="short",
            empty="No device plugin is known",
            queries=(
                query(
                    "max by (resource, state) (accelerator_plugin_state{HERE}) > 0", "{{resource}}: {{state}}"
                ),
            ),
            minimum=0,
            maximum=1,
        ),
    ),
)

AGENT = Row(
    "Agent",
    (
        TimeSeries(
            title="Sources",
            description="The state that each of the agent's sources is in. Unsupported: this node does not have it.",
            unit="short",
            empty="The agent is not scraped",
            queries=(
                query("max by (source, state) (sickbay_source_state{HERE}) > 0", "{{source}}: {{state}}"),
            ),
            minimum=0,
            maximum=1,
        ),
        TimeSeries(
            title="Time to read the devices",
            description="How long the last look at all devices took, and how often the process that talks to NVML was "
            "started anew in this step.",
            unit="s",
            empty="The devices are not read",
            queries=(
                query("max by (source) (sickbay_source_duration_seconds{HERE})", "{{source}}"),
                query(
                    "sum(increase(sickbay_nvml_worker_restarts_total{HERE}[$__rate_interval]))",
                    "worker restarts",
                ),
            ),
            minimum=0,
        ),
        TimeSeries(
            title="Memory",
            description="Resident memory of the agent's process (without the one that talks to NVML).",
            unit="bytes",
            empty="The agent is not scraped",
            queries=(query('process_resident_memory_bytes{HERE, job="sickbay-agent"}', "resident"),),
            minimum=0,
        ),
    ),
)

ANNOTATIONS = (
    Annotation(
        name="Remediation",
        expr=f"max by (session, phase, mode, reason) (sickbay_session_phase_timestamp_seconds{{{OF_NODE}}})",
        title="{{session}}: {{phase}} ({{mode}}) {{reason}}",
        colour="orange",
    ),
    Annotation(
        name="Fatal faults",
        expr=f'max by (kind, device) (accelerator_fault_active{{{SELECTOR}, severity="Fatal"}})',
        title="{{kind}} {{device}}",
        colour="red",
    ),
    Annotation(
        name="Agent started",
        expr=f'changes(process_start_time_seconds{{{SELECTOR}, job="sickbay-agent"}}[1m]) > 0',
        title="the agent has started",
        colour="blue",
    ),
)


def node() -> Json:
    """The dashboard."""
    return dashboard(
        uid=UID,
        title="Sickbay / Node",
        description="One node: its devices, their faults, its workloads and its agent.",
        rows=(NODE, DEVICES, KERNEL, WORKLOADS, AGENT),
        variables=(
            variable("cluster", "Cluster", "label_values(sickbay_build_info, cluster)", all_value=".*"),
            variable("node", "Node", 'label_values(sickbay_build_info{cluster=~"$cluster", node!=""}, node)'),
        ),
        annotations=ANNOTATIONS,
    )
