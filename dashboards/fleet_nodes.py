"""Rows of the Fleet dashboard about nodes: their health, their remediation, their faults."""

from __future__ import annotations

from dashboards.page import Row
from dashboards.panels import (
    ANY_IS_A_WARNING,
    ANY_IS_BAD,
    GREEN,
    NONE_IS_BAD,
    RED,
    YELLOW,
    Bars,
    Stat,
    Table,
    TimeSeries,
)
from dashboards.queries import NODE_LINK, of_fleet

HEALTH = Row(
    "Health",
    (
        Stat(
            title="Accelerator nodes",
            description="Nodes that have a report, as the leading controller sees them.",
            unit="short",
            empty="No controller is scraped",
            queries=(of_fleet("sum(max by (cluster, pool, state) (sickbay_nodes{HERE}))"),),
        ),
        Stat(
            title="Healthy",
            description="Share of the accelerator nodes that are schedulable, reported freshly and without a fault.",
            unit="percentunit",
            empty="No healthy node",
            queries=(
                of_fleet(
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
            queries=(of_fleet('sum(max by (cluster, pool) (sickbay_nodes{HERE, state="held"}))'),),
            thresholds=ANY_IS_A_WARNING,
        ),
        Stat(
            title="Nodes with a Fatal fault",
            description="Nodes whose agent has a Fatal fault open.",
            unit="short",
            empty="None",
            queries=(
                of_fleet(
                    'count(count by (cluster, node) (accelerator_fault_active{HERE, severity="Fatal"}))'
                ),
            ),
            thresholds=ANY_IS_BAD,
        ),
        Stat(
            title="Agents that answer",
            description="Share of the agents that Prometheus could scrape.",
            unit="percentunit",
            empty="No agent is a target",
            queries=(of_fleet('avg(up{HERE, job="sickbay-agent"})'),),
            thresholds=((None, RED), (0.9, YELLOW), (1, GREEN)),
        ),
        Stat(
            title="Leader's epoch",
            description="The epoch in which the leading controller leads. It grows with every change of leaders.",
            unit="none",
            empty="No controller is scraped",
            queries=(of_fleet("max(sickbay_leader_epoch{HERE})"),),
            words=((0, "Nobody leads", RED),),
            thresholds=NONE_IS_BAD,
        ),
        TimeSeries(
            title="Nodes by state",
            description="Accelerator nodes by what takes them out of service, else by how well they are known.",
            unit="short",
            empty="No controller is scraped",
            queries=(
                of_fleet(
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
                of_fleet(
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
                of_fleet(
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
                of_fleet(
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
                of_fleet("max by (pool, kind) (sickbay_budget_used{HERE})", "used"),
                of_fleet("max by (pool, kind) (sickbay_budget_limit{HERE})", "limit"),
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
                of_fleet(
                    'sum(rate(sickbay_actions_total{HERE, action="open", result="done"}[$__rate_interval])) * 60',
                    "opened a minute",
                ),
                of_fleet("max(sickbay_start_tokens{HERE})", "may start now"),
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
                of_fleet(
                    "histogram_quantile(0.5, sum by (stage, le) "
                    "(increase(sickbay_remediation_stage_duration_seconds_bucket{HERE}[1h]))) >= 0",
                    "{{stage}}, median",
                ),
                of_fleet(
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
                of_fleet(
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
                of_fleet(
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
                of_fleet(
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
                of_fleet('count by (node) (accelerator_fault_active{HERE, severity="Fatal"})', "Fatal"),
                of_fleet('count by (node) (accelerator_fault_active{HERE, severity="Degraded"})', "Degraded"),
                of_fleet(
                    'sum by (node) (accelerator_health_state{HERE, state="Failed"}) > 0', "failed devices"
                ),
                of_fleet(
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
