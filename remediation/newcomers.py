"""Sessions that neither fence nor repair: they prove a node, or give back what is left over. Pure.

A node that is new or was replaced, and whose operator wants it proven first, carries the taint
`sickbay.dev/unverified`: its session proves it by the same rules as after a repair, and then takes the taint away. It
uses no budget and no start, so that a fleet that scales up does not wait.
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
from remediation.steps.release import paused_operands
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
    status = journal.with_incidents(RemediationStatus(), report, (), at.now.wall)
    message = "is new, and is to be proven before jobs may come"
    return _open(at, node, name, status, reason="Unverified", message=message)


def give_back_strays(at: Situation, node: Node) -> Decision | None:
    """A session that gives back operands that we have paused, and whose session and cordon somebody has taken away.

    None where there are none. Nothing else is done to the node, and nobody's hold forbids giving back.
    """
    if not paused_operands(node.metadata.labels):
        return None
    kind = f"PausedOperands/{node.metadata.resource_version}"
    name = session_name(at.name, node.metadata.uid, kind, "", _ANY_TIME)
    if name in at.fleet.sessions:
        return None
    message = "operands are paused by us and nobody remembers why, so they are given back"
    return _open(at, node, name, RemediationStatus(), reason="PausedOperands", message=message)


def _open(
    at: Situation, node: Node, name: str, status: RemediationStatus, *, reason: str, message: str
) -> Decision:
    """A session that begins where others end: with the proof."""
    spec = RemediationSpec(
        node_name=at.name,
        node_uid=node.metadata.uid,
        boot_id=node.status.node_info.boot_id,
        mode=Mode.AUTO,
        policy=at.policy.reference,
    )
    status = journal.moved(status, Phase.VERIFYING, reason=reason, message=message, now=at.now.wall)
    status = replace(status, leader_epoch=at.epoch, trace_id=trace_of(name))
    return Decision(f"{at.name}: {message}", Open(name, spec, status, None, charged=False))
