"""Nodes that are new or were replaced, and whose operator wants them proven first: the taint `sickbay.dev/unverified`.

Such a node is not fenced by us and not repaired: its session only proves it, by the same rules as after a repair, and
then takes the taint away. It uses no budget and no start, so that a fleet that scales up does not wait. Pure.
"""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec.structs import replace

from health.report import AcceleratorReport
from health.vocabulary import Mode, Phase
from remediation import journal
from remediation.fleet import Node
from remediation.objects import RemediationSpec, RemediationStatus, session_name
from remediation.situation import RECHECK, Decision, Open, Situation, obstacle
from remediation.traces import trace_of

_ANY_TIME = datetime.fromtimestamp(0, UTC)


def prove_newcomer(at: Situation, node: Node, report: AcceleratorReport | None) -> Decision | None:
    """A session that proves the node, where it is asked for; None where it is not."""
    if not at.policy.verification.unverified or not node.unverified:
        return None
    name = session_name(
        at.name, node.metadata.uid, f"Unverified/{node.status.node_info.boot_id}", "", _ANY_TIME
    )
    if name in at.fleet.sessions:
        return Decision(f"{at.name}: its taint is back, but it was proven in this boot already: {name}")
    if report is None:
        return Decision(f"{at.name}: is to be proven, and nobody reports yet", again=RECHECK)
    if why := obstacle(at, node, report):
        return Decision(f"{at.name}: is to be proven, but {why}", again=RECHECK)
    spec = RemediationSpec(
        node_name=at.name,
        node_uid=node.metadata.uid,
        boot_id=report.status.boot_id,
        mode=Mode.AUTO,
        policy=at.policy.reference,
    )
    message = "is new, and is to be proven before jobs may come"
    status = journal.with_incidents(RemediationStatus(), report, (), at.now.wall)
    status = journal.moved(status, Phase.VERIFYING, reason="Unverified", message=message, now=at.now.wall)
    status = replace(status, leader_epoch=at.epoch, trace_id=trace_of(name))
    return Decision(f"{at.name}: {message}", Open(name, spec, status, None, charged=False))
