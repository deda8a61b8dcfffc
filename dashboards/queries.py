"""What the dashboards' queries select by their variables, and where cells of tables lead."""

from __future__ import annotations

from dashboards.panels import Query

OF_FLEET = 'cluster=~"$cluster"'
OF_NODE = 'cluster=~"$cluster", node="$node"'
OF_NODES_SESSIONS = 'cluster=~"$cluster", session_node="$node"'
"""The same node in what the controller says of it."""

TO_NODE = (
    "/d/sickbay-node?${datasource:queryparam}&${cluster:queryparam}&${__url_time_range}"
    "&var-node=${__data.fields.node}"
)
NODE_LINK = {"node": TO_NODE}


def of_fleet(expr: str, legend: str = "") -> Query:
    """A query in which HERE stands for what selects the fleet."""
    return Query(expr.replace("HERE", OF_FLEET), legend)


def of_node(expr: str, legend: str = "") -> Query:
    """A query in which HERE stands for what selects the node."""
    return Query(expr.replace("HERE", OF_NODE), legend)
