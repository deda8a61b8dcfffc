"""Rows of the Node dashboard about who uses the devices, and about the agent."""

from __future__ import annotations

from dashboards.dispatches import allocation_latency, where_the_time_goes
from dashboards.page import Row
from dashboards.panels import Table, TimeSeries
from dashboards.queries import of_node

WORKLOADS = Row(
    "Workloads",
    (
        Table(
            title="Who holds which device",
            description="Containers and the devices that the kubelet gave them, with what the devices do.",
            unit="short",
            empty="Nobody holds a device",
            queries=(
                of_node(
                    "accelerator_utilization_ratio{HERE}"
                    " * on (uuid, device, partition) group_right () accelerator_allocation_info{HERE}",
                    "utilization",
                ),
                of_node(
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
                of_node(
                    'sum by (resource, state) (accelerator_devices{HERE, state!="allocatable"})',
                    "{{resource}}: {{state}}",
                ),
            ),
            width=12,
            minimum=0,
            stacked=True,
        ),
        allocation_latency(
            of_node,
            "Until a pod has its devices: from its binding to this node, as the agent sees it, and for the "
            "call of the plugin alone, as the kubelet measures it.",
            of_node(
                "histogram_quantile(0.99, sum by (resource, le) "
                "(rate(accelerator_kubelet_allocation_duration_seconds_bucket{HERE}[5m]))) >= 0",
                "{{resource}}, 99 % of the kubelet's calls",
            ),
        ),
        where_the_time_goes(of_node),
        TimeSeries(
            title="Device plugins",
            description="The state that each plugin was found in by asking it.",
            unit="short",
            empty="No device plugin is known",
            queries=(
                of_node(
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
                of_node("max by (source, state) (sickbay_source_state{HERE}) > 0", "{{source}}: {{state}}"),
            ),
            width=6,
            minimum=0,
            maximum=1,
        ),
        TimeSeries(
            title="Time to read the devices",
            description="How long the last look at all devices took.",
            unit="s",
            empty="The devices are not read",
            queries=(of_node("max by (source) (sickbay_source_duration_seconds{HERE})", "{{source}}"),),
            width=6,
            minimum=0,
        ),
        TimeSeries(
            title="Restarts of the NVML process",
            description="How often the process that talks to NVML was started anew in each step of the graph.",
            unit="short",
            empty="The agent is not scraped",
            queries=(
                of_node(
                    "sum(increase(sickbay_nvml_worker_restarts_total{HERE}[$__rate_interval]))", "restarts"
                ),
            ),
            width=6,
            minimum=0,
        ),
        TimeSeries(
            title="Memory",
            description="Resident memory of the agent's process (without the one that talks to NVML).",
            unit="bytes",
            empty="The agent is not scraped",
            queries=(of_node('process_resident_memory_bytes{HERE, job="sickbay-agent"}', "resident"),),
            width=6,
            minimum=0,
        ),
    ),
)
