"""The Fleet dashboard: how the nodes are, what is being done about it, and whether Sickbay itself is well."""

from __future__ import annotations

from dashboards.panels import (
    ANY_IS_A_WARNING,
    ANY_IS_BAD,
    GREEN,
    NONE_IS_BAD,
    RED,
    YELLOW,
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

UID = "sickbay-fleet"
TO_NODE = (
    "/d/sickbay-node?${datasource:queryparam}&${cluster:queryparam}&${__url_time_range}"
    "&var-node=${__data.fields.node}"
)
NODE_LINK = {"node": TO_NODE}


def query(expr: str, legend: str = "") -> Query:
    """A query in which HERE stands for what selects the fleet."""
    return Query(expr.replace("HERE", 'cluster=~"$cluster"'), legend)


HEALTH = Row(
    "Health",
    (
        Stat(
            title="Accelerator nodes",
            description="Nodes that have a report, as the leading controller sees them.",
            unit="short",
            empty="No controller is scraped",
            queries=(query("sum(max by (cluster, pool, state) (sickbay_nodes{HERE}))"),),
        ),
        Stat(
            title="Healthy",
            description="Share of the accelerator nodes that are schedulable, reported freshly and without a fault.",
            unit="percentunit",
            empty="No healthy node",
            queries=(
                query(
                    'sum(max by (cluster, pool, state) (sickbay_nodes{HERE, state="healthy"}))'
                    " / sum(max by (cluster, pool, state) (sickbay_nodes{HERE}))"
                ),
            ),
            thresholds=((None, RED), (0.9, YELLOW), (0.98, GREEN)),
        ),
        Stat(
            title="Held for a person",
            description="Fenced nodes on which Sickbay has done what it may and waits for a person.",
            unit="short",
            empty="None",
            queries=(query('sum(max by (cluster, pool) (sickbay_nodes{HERE, state="held"}))'),),
            thresholds=ANY_IS_A_WARNING,
        ),
        Stat(
            title="Nodes with a Fatal fault",
            description="Nodes whose agent has a Fatal fault open.",
            unit="short",
            empty="None",
            queries=(
                query('count(count by (cluster, node) (accelerator_fault_active{HERE, severity="Fatal"}))'),
            ),
            thresholds=ANY_IS_BAD,
        ),
        Stat(
            title="Agents that answer",
            description="Share of the agents that Prometheus could scrape.",
            unit="percentunit",
            empty="No agent is a target",
            queries=(query('avg(up{HERE, job="sickbay-agent"})'),),
            thresholds=((None, RED), (0.9, YELLOW), (1, GREEN)),
        ),
        Stat(
            title="Leader's epoch",
            description="The epoch in which the leading controller leads. It grows with every change of leaders.",
            unit="none",
            empty="No controller is scraped",
            queries=(query("max(sickbay_leader_epoch{HERE})"),),
            words=((0, "Nobody leads", RED),),
            thresholds=NONE_IS_BAD,
        ),
        TimeSeries(
            title="Nodes by state",
            description="Accelerator nodes by what takes them out of service, else by how well they are known.",
            unit="short",
            empty="No controller is scraped",
            queries=(
                query(
                    "sum by (state) (max by (cluster, pool, state) (sickbay_nodes{HERE}))",
                    "{{state}}",
                ),
            ),
            width=12,
            minimum=0,
            stacked=True,
        ),
        Bars(
            title="Nodes by pool and state",
            description="The same now, for each pool of the policy.",
            unit="short",
            empty="No controller is scraped",
            queries=(
                query(
                    "sum by (pool, state) (max by (cluster, pool, state) (sickbay_nodes{HERE}))",
                    "{{pool}}: {{state}}",
                ),
            ),
            width=12,
            minimum=0,
        ),
    ),
)

REMEDIATION = Row(
    "Remediation",
    (
        TimeSeries(
            title="Open sessions",
            description="Open remediation sessions by phase and mode. Those of mode Observe change nothing.",
            unit="short",
            empty="No session is open",
            queries=(
                query(
                    "sum by (phase, mode) (max by (cluster, phase, mode) (sickbay_sessions{HERE})) > 0",
                    "{{phase}} ({{mode}})",
                ),
            ),
            minimum=0,
            stacked=True,
        ),
        TimeSeries(
            title="Budgets",
            description="Nodes that are taken, by whomever, as a share of those that may be: fenced bounds a storm, "
            "disrupted what is drained or repaired. At 100 % no further node is taken.",
            unit="percentunit",
            empty="No controller is scraped",
            queries=(
                query(
                    "label_replace("
                    "max by (pool, kind) (sickbay_budget_used{HERE}) / max by (pool, kind) (sickbay_budget_limit{HERE})"
                    ', "pool", "whole cluster", "pool", "")',
                    "{{pool}}: {{kind}}",
                ),
            ),
            minimum=0,
            thresholds=((None, GREEN), (0.8, YELLOW), (1, RED)),
            limits=True,
        ),
        Table(
            title="Budgets now",
            description="Nodes taken and nodes that may be, by pool and kind.",
            unit="short",
            empty="No controller is scraped",
            queries=(
                query("max by (pool, kind) (sickbay_budget_used{HERE})", "used"),
                query("max by (pool, kind) (sickbay_budget_limit{HERE})", "limit"),
            ),
            columns=(("pool", "pool (empty: cluster)"), ("kind", "kind")),
            units={},
            links={},
            width=8,
        ),
        TimeSeries(
            title="Start rate",
            description="Sessions opened a minute, and how many may start right now under the rate limit.",
            unit="short",
            empty="No controller is scraped",
            queries=(
                query(
                    'sum(rate(sickbay_actions_total{HERE, action="open", result="done"}[$__rate_interval])) * 60',
                    "opened a minute",
                ),
                query("max(sickbay_start_tokens{HERE})", "may start now"),
            ),
            minimum=0,
        ),
        TimeSeries(
            title="Time to fence and to release",
            description="From the first sight of a fault until its node was cordoned, and until it was given back: "
            "median and 99th percentile of the hour before.",
            unit="s",
            empty="No node was fenced",
            queries=(
                query(
                    "histogram_quantile(0.5, sum by (stage, le) "
                    "(increase(sickbay_remediation_stage_duration_seconds_bucket{HERE}[1h]))) >= 0",
                    "{{stage}}, median",
                ),
                query(
                    "histogram_quantile(0.99, sum by (stage, le) "
                    "(increase(sickbay_remediation_stage_duration_seconds_bucket{HERE}[1h]))) >= 0",
                    "{{stage}}, 99 %",
                ),
            ),
            minimum=0,
        ),
        TimeSeries(
            title="Actions",
            description="What the controller carries out each second: sessions opened, statuses written, steps run, "
            "and how many of these failed.",
            unit="ops",
            empty="No controller is scraped",
            queries=(
                query(
                    "sum by (action, result) (rate(sickbay_actions_total{HERE}[$__rate_interval]))",
                    "{{action}} {{result}}",
                ),
            ),
            minimum=0,
        ),
    ),
)

FAULTS = Row(
    "Faults",
    (
        TimeSeries(
            title="Open faults by kind",
            description="Faults that agents have open. Fatal fences, Degraded alerts, Info is only counted.",
            unit="short",
            empty="No fault is open",
            queries=(
                query(
                    "count by (kind, severity) "
                    "(max by (cluster, node, uuid, kind, severity) (accelerator_fault_active{HERE}))",
                    "{{kind}} ({{severity}})",
                ),
            ),
            width=8,
            minimum=0,
            stacked=True,
        ),
        TimeSeries(
            title="Xids",
            description="Xid lines in kernel logs, by code, in each step of the graph.",
            unit="short",
            empty="No Xid in this range",
            queries=(
                query(
                    "sum by (xid) (increase(accelerator_xid_errors_total{HERE}[$__rate_interval])) > 0",
                    "Xid {{xid}}",
                ),
            ),
            width=8,
            minimum=0,
        ),
        Table(
            title="Worst nodes",
            description="Nodes with faults, or with kernel lines about errors in this range; the gravest first. "
            "A node's name leads to its dashboard.",
            unit="short",
            empty="No node has a fault",
            queries=(
                query('count by (node) (accelerator_fault_active{HERE, severity="Fatal"})', "Fatal"),
                query('count by (node) (accelerator_fault_active{HERE, severity="Degraded"})', "Degraded"),
                query('sum by (node) (accelerator_health_state{HERE, state="Failed"}) > 0', "failed devices"),
                query(
                    "topk(20, sum by (node) (increase(accelerator_xid_errors_total{HERE}[$__range]))) > 0",
                    "Xid lines",
                ),
            ),
            columns=(("node", "node"),),
            units={"Xid lines": "short"},
            links=NODE_LINK,
            sort="Fatal",
            width=8,
        ),
    ),
)

DEVICES = Row(
    "Devices and their plugins",
    (
        TimeSeries(
            title="Device plugins",
            description="Device plugins by what the agents found when they asked them.",
            unit="short",
            empty="No device plugin is known",
            queries=(
                query(
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
                query(
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
                query(
                    'sum by (resource, state) (accelerator_devices{HERE, state!="allocatable"})',
                    "{{resource}}: {{state}}",
                ),
            ),
            minimum=0,
            stacked=True,
        ),
        TimeSeries(
            title="Allocation latency",
            description="From a pod's binding to its node until the kubelet has given it its devices.",
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
        Bars(
            title="Accelerator pods that failed to start",
            description="In this range, by resource and the kubelet's reason; a series that is new in the range counts "
            "in full.",
            unit="short",
            empty="None failed",
            queries=(
                query(
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
            queries=(query('max by (node, instance) (up{HERE, job="sickbay-agent"}) == 0'),),
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
                query(
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
                query("sum by (source, state) (sickbay_source_state{HERE}) > 0", "{{source}}: {{state}}"),
            ),
            minimum=0,
        ),
        TimeSeries(
            title="Reports written",
            description="Writes of AcceleratorReports each second by kind, and the requests that failed.",
            unit="ops",
            empty="No report is written",
            queries=(
                query(
                    "sum by (kind) (rate(sickbay_report_writes_total{HERE}[$__rate_interval]))", "{{kind}}"
                ),
                query(
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
                query(
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
                query(
                    "sum by (job, result) (rate(sickbay_spans_total{HERE}[$__rate_interval]))",
                    "{{job}}: {{result}}",
                ),
                query("sum by (job) (sickbay_span_queue_length{HERE})", "{{job}}: waiting"),
            ),
            minimum=0,
        ),
        TimeSeries(
            title="Memory of an agent",
            description="Resident memory of the agents' processes (without the one that talks to NVML).",
            unit="bytes",
            empty="No agent is scraped",
            queries=(
                query('max(process_resident_memory_bytes{HERE, job="sickbay-agent"})', "largest"),
                query('avg(process_resident_memory_bytes{HERE, job="sickbay-agent"})', "mean"),
            ),
            width=12,
            minimum=0,
        ),
        TimeSeries(
            title="CPU of an agent",
            description="Cores that the agents' processes use (without the one that talks to NVML).",
            unit="short",
            empty="No agent is scraped",
            queries=(
                query(
                    'max(rate(process_cpu_seconds_total{HERE, job="sickbay-agent"}[$__rate_interval]))',
                    "busiest",
                ),
                query(
                    'avg(rate(process_cpu_seconds_total{HERE, job="sickbay-agent"}[$__rate_interval]))',
                    "mean",
                ),
            ),
            width=12,
            minimum=0,
        ),
    ),
)


def fleet() -> Json:
    """The dashboard."""
    return dashboard(
        uid=UID,
        title="Sickbay / Fleet",
        description="Accelerator nodes, their remediation, and Sickbay itself.",
        rows=(HEALTH, REMEDIATION, FAULTS, DEVICES, SICKBAY),
        variables=(
            variable("cluster", "Cluster", "label_values(sickbay_build_info, cluster)", all_value=".*"),
        ),
    )
