"""Whether there still is a reason to touch a node's workload. Pure."""

from __future__ import annotations

from health.report import AcceleratorReport
from health.vocabulary import ClearsOn
from remediation import journal
from remediation.fleet import Node
from remediation.objects import Incident, RemediationStatus


def lacking(status: RemediationStatus, node: Node, report: AcceleratorReport | None) -> str:
    """Why nothing may be done on what the session knows; empty where it may.

    `report`: the fresh one of the node's present boot, which the status has been brought up to date with, or None.
    A fault that only a new boot clears is still there while the node has not booted, whether or not its agent can
    still say so.
    """
    lasting = journal.lasting(status)
    if not lasting:
        return "nothing is left of the faults"
    if report is not None or any(_outlasts(incident, node) for incident in lasting):
        return ""
    return "no fresh report of this boot, so nobody knows whether the faults last"


def lacking_live(status: RemediationStatus, node: Node, report: AcceleratorReport | None) -> str:
    """The same by a live look at the node and the report; that it is fresh is what the decision knew."""
    boot_id = node.status.node_info.boot_id
    reported: set[tuple[str, str]] = set()
    if report is not None and (report.status.node_uid, report.status.boot_id) == (node.metadata.uid, boot_id):
        reported = {fault.identity for fault in report.status.faults}
    lasting = journal.lasting(status)
    if any(incident.identity in reported or _outlasts(incident, node) for incident in lasting):
        return ""
    return "a live look does not find the faults any more"


def _outlasts(incident: Incident, node: Node) -> bool:
    return incident.clears_on == ClearsOn.NEW_BOOT and incident.boot_id == node.status.node_info.boot_id
