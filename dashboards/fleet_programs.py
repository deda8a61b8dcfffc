"""Rows of the Fleet dashboard about programs: device plugins, agents, controllers."""

from __future__ import annotations

from dashboards.dispatches import allocation_latency, where_the_time_goes
from dashboards.page import Row
from dashboards.panels import Bars, Table, TimeSeries
from dashboards.queries import NODE_LINK, of_fleet

DEVICES = Row(
    "Devices and their plugins",
    (
        TimeSeries(
            title="Device plugins",
            description="Device plugins by what the agents found when they asked them.",
            unit="short",
            empty="No device plugin is known",
            queries=(
                of_fleet(
                    "sum by (resource, state) (accelerator_plugin_state{HERE}) > 0", "{{resource}}: {{state}}"
                ),
            ),
            minimum=0,
            stacked=True,
        ),
        Table(
            title="Plugins that do not serve",
            description="Device plugins that are dead, hung or have lost their socket. A node's name leads to its "
            "dashboard.",
            unit="short",
            empty="All device plugins serve",
            queries=(
                of_fleet(
                    "max by (node, resource, state) "
                    '(accelerator_plugin_state{HERE, state=~"Dead|Hung|SocketLost"}) == 1'
                ),
            ),
            columns=(("node", "node"), ("resource", "resource"), ("state", "state")),
            units={},
            links=NODE_LINK,
            width=8,
        ),
        TimeSeries(
            title="Devices as kubelets see them",
            description="Devices held by containers, free, and held although they are not healthy any more.",
            unit="short",
            empty="No kubelet tells its devices",
            queries=(
                of_fleet(
                    'sum by (resource, state) (accelerator_devices{HERE, state!="allocatable"})',
                    "{{resource}}: {{state}}",
                ),
            ),
            minimum=0,
            stacked=True,
        ),
        allocation_latency(
            of_fleet,
            "From a pod's binding to its node until the kubelet has given it its devices.",
        ),
        where_the_time_goes(of_fleet),
        Bars(
            title="Accelerator pods that failed to start",
            description="In this range, by resource and the kubelet's reason; a series that is new in the range counts "
            "in full.",
            unit="short",
            empty="None failed",
            queries=(
                of_fleet(
                    "sum by (resource, reason) (increase(accelerator_allocation_failures_total{HERE}[$__range]) > 0"
                    " or (accelerator_allocation_failures_total{HERE}"
                    " unless accelerator_allocation_failures_total{HERE} offset $__range))",
                    "{{resource}}: {{reason}}",
                ),
            ),
            minimum=0,
        ),
    ),
)

SICKBAY = Row(
    "Agents and controllers",
    (
        Table(
            title="Agents that do not answer",
            description="Agents that Prometheus could not scrape.",
            unit="short",
            empty="All agents answer",
            queries=(of_fleet('max by (node, instance) (up{HERE, job="sickbay-agent"}) == 0'),),
            columns=(("node", "node"), ("instance", "address")),
            units={},
            links=NODE_LINK,
            width=8,
        ),
        Table(
            title="Sources that do not work",
            description="Sources of agents that are stale, failed, or let go of for a repair. A node's name leads to "
            "its dashboard.",
            unit="short",
            empty="All sources are live",
            queries=(
                of_fleet(
                    "max by (node, source, state) "
                    '(sickbay_source_state{HERE, state=~"Stale|Failed|Released"}) == 1'
                ),
            ),
            columns=(("node", "node"), ("source", "source"), ("state", "state")),
            units={},
            links=NODE_LINK,
            width=8,
        ),
        TimeSeries(
            title="Sources by state",
            description="Sources of all agents by how they work. Unsupported: this node does not have it.",
            unit="short",
            empty="No agent is scraped",
            queries=(
                of_fleet("sum by (source, state) (sickbay_source_state{HERE}) > 0", "{{source}}: {{state}}"),
            ),
            minimum=0,
        ),
        TimeSeries(
            title="Reports written",
            description="Writes of AcceleratorReports each second by kind, and the requests that failed.",
            unit="ops",
            empty="No report is written",
            queries=(
                of_fleet(
                    "sum by (kind) (rate(sickbay_report_writes_total{HERE}[$__rate_interval]))", "{{kind}}"
                ),
                of_fleet(
                    "sum by (reason) (rate(sickbay_report_failures_total{HERE}[$__rate_interval]))",
                    "failed: {{reason}}",
                ),
            ),
            minimum=0,
        ),
        TimeSeries(
            title="Time to report",
            description="99th percentile of the time from a change in a node's state to the API server's answer.",
            unit="s",
            empty="Nothing has changed",
            queries=(
                of_fleet(
                    "histogram_quantile(0.99, sum by (le) "
                    "(rate(sickbay_report_publish_duration_seconds_bucket{HERE}[$__rate_interval]))) >= 0",
                    "99 %",
                ),
            ),
            minimum=0,
        ),
        TimeSeries(
            title="Spans",
            description="Spans each second by what became of them. All zero while tracing is off.",
            unit="ops",
            empty="Nobody is scraped",
            queries=(
                of_fleet(
                    "sum by (job, result) (rate(sickbay_spans_total{HERE}[$__rate_interval]))",
                    "{{job}}: {{result}}",
                ),
            ),
            minimum=0,
        ),
        TimeSeries(
            title="Spans that wait",
            description="Spans in the queues of all programs. It grows while the collector is slow or away.",
            unit="short",
            empty="Nobody is scraped",
            queries=(of_fleet("sum by (job) (sickbay_span_queue_length{HERE})", "{{job}}"),),
            minimum=0,
        ),
        TimeSeries(
            title="Memory of an agent",
            description="Resident memory of the agents' processes (without the one that talks to NVML).",
            unit="bytes",
            empty="No agent is scraped",
            queries=(
                of_fleet('max(process_resident_memory_bytes{HERE, job="sickbay-agent"})', "largest"),
                of_fleet('avg(process_resident_memory_bytes{HERE, job="sickbay-agent"})', "mean"),
            ),
            minimum=0,
        ),
        TimeSeries(
            title="CPU of an agent",
            description="Cores that the agents' processes use (without the one that talks to NVML).",
            unit="short",
            empty="No agent is scraped",
            queries=(
                of_fleet(
                    'max(rate(process_cpu_seconds_total{HERE, job="sickbay-agent"}[$__rate_interval]))',
                    "busiest",
                ),
                of_fleet(
                    'avg(rate(process_cpu_seconds_total{HERE, job="sickbay-agent"}[$__rate_interval]))',
                    "mean",
                ),
            ),
            minimum=0,
        ),
    ),
)
