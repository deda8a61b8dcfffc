"""Whether people and the policy still allow a session to touch pods. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from health.report import AcceleratorReport
from health.vocabulary import Mode
from remediation.fleet import Node
from remediation.objects import AcceleratorRemediation, Incident
from remediation.policy import Rule
from remediation.situation import MODES, Situation, obstacle


def forbidden(
    at: Situation,
    session: AcceleratorRemediation,
    node: Node,
    report: AcceleratorReport | None,
    incidents: Iterable[Incident],
) -> str:
    """Why no step may be taken about these incidents now; empty where nothing speaks against it.

    The policy counts as it is now where it is tighter than the session, never where it is looser.
    """
    if other := obstacle(at, node, report):
        return other
    allowed = max((rule.mode for rule in rules_of(at, incidents)), key=MODES.index, default=Mode.OBSERVE)
    if allowed is Mode.OBSERVE:
        return "the policy only observes now"
    if Mode.APPROVE in (allowed, session.spec.mode) and session.spec.approval is None:
        return "nobody approves of it now"
    return ""


def rules_of(at: Situation, incidents: Iterable[Incident]) -> list[Rule]:
    """The rules that the policy has now for these incidents, that of the gravest first."""
    graver_first = sorted(incidents, key=lambda incident: -incident.severity.rank)
    return [rule for incident in graver_first if (rule := at.rule_of(incident)) is not None]
