"""The Fleet dashboard: how the nodes are, what is being done about it, and whether Sickbay itself is well."""

from __future__ import annotations

from dashboards.fleet_nodes import FAULTS, HEALTH, REMEDIATION
from dashboards.fleet_programs import DEVICES, SICKBAY
from dashboards.page import dashboard, variable
from dashboards.panels import Json

UID = "sickbay-fleet"


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
