"""The Node dashboard: the devices of one node, what is wrong with them, and who uses them."""

from __future__ import annotations

from dashboards.node_devices import DEVICES, KERNEL, NODE
from dashboards.node_workloads import AGENT, WORKLOADS
from dashboards.page import Annotation, dashboard, variable
from dashboards.panels import Json
from dashboards.queries import OF_NODE, OF_NODES_SESSIONS

UID = "sickbay-node"
ANNOTATIONS = (
    Annotation(
        name="Remediation",
        expr=f"max by (session, phase, mode, reason) (sickbay_session_phase_timestamp_seconds{{{OF_NODES_SESSIONS}}})",
        title="{{session}}: {{phase}} ({{mode}}) {{reason}}",
        colour="orange",
    ),
    Annotation(
        name="Fatal faults",
        expr=f'max by (kind, device) (accelerator_fault_active{{{OF_NODE}, severity="Fatal"}})',
        title="{{kind}} {{device}}",
        colour="red",
    ),
    Annotation(
        name="Agent started",
        expr=f'changes(process_start_time_seconds{{{OF_NODE}, job="sickbay-agent"}}[1m]) > 0',
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
