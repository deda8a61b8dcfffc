"""The next step of each node: a pure function of policy, fleet and time.

Reads top-down as guard clauses. Each decision says in one sentence what it is and why. Nothing here does
anything: an `Action` is carried out elsewhere, after a live look that nothing it rests on has changed.
"""

from __future__ import annotations

from msgspec.structs import replace

from health.report import AcceleratorReport, Fault
from health.vocabulary import Mode, Phase
from remediation import budget, journal
from remediation.advance import advance, close
from remediation.fleet import Node
from remediation.objects import AcceleratorRemediation, RemediationSpec, RemediationStatus, session_name
from remediation.policy import Rule, StepName, plan_for
from remediation.situation import RECHECK, Decision, Open, Situation, observed, obstacle


def decide(at: Situation) -> Decision:
    """The next step for one node."""
    sessions = sorted(at.fleet.open_sessions(at.name), key=_seniority)
    if not sessions:
        return _consider(at)
    if len(sessions) > 1:
        extra = sessions[-1]
        sentence = f"{extra.metadata.name} gives way to {sessions[0].metadata.name}: one open session a node"
        return close(at, extra, extra.current, (Phase.CANCELLED, "Superseded"), sentence)
    session = sessions[0]
    if session.spec.mode is Mode.OBSERVE and (fault := _wants_more(at, session)):
        sentence = f"{session.metadata.name}: only observes, and {fault.kind} may be acted on: it gives way"
        return close(at, session, session.current, (Phase.CANCELLED, "Superseded"), sentence)
    return advance(at, session)


def _wants_more(at: Situation, session: AcceleratorRemediation) -> Fault | None:
    """A fault that came after an Observe session was opened and whose rule may do more than observe."""
    report = at.fresh_report
    if report is None:
        return None
    known = {incident.identity for incident in session.current.incidents}
    return next(
        (
            fault
            for fault, rule in at.acting_faults(report)
            if rule.mode is not Mode.OBSERVE and fault.identity not in known
        ),
        None,
    )


def _consider(at: Situation) -> Decision:
    """A node without a session: is there a reason for one, and room?"""
    node, report = at.node, at.fresh_report
    if node is None:
        return Decision(f"{at.name}: there is no such node")
    if report is None:
        return Decision(f"{at.name}: no fresh report, so nothing is known and nothing is done")
    candidates = [
        (fault, rule) for fault, rule in at.acting_faults(report) if not _dealt_with(at, node, fault)
    ]
    if not candidates:
        return Decision(f"{at.name}: nothing to do")
    fault, rule = candidates[0]
    what = f"{at.name}: {fault.kind} of {fault.device_uuid or 'the node'}"
    if reason := obstacle(at, node, report):
        return Decision(f"{what}, but {reason}", again=RECHECK)
    virtual = rule.mode is Mode.OBSERVE
    usage = budget.without_room(budget.fenced, at.fleet, at.policy, node, virtual=virtual)
    if usage is not None:
        return Decision(f"{what}, but the budget is used up: {usage}", again=RECHECK)
    rate = at.policy.budgets.start_rate
    bucket = at.virtual_bucket if virtual else at.bucket
    if not bucket.available:
        wait = bucket.wait(per_minute=rate.per_minute)
        return Decision(f"{what}, but sessions start at most {rate.per_minute} a minute", again=wait)
    return _open(at, node, report, fault, rule)


def _open(at: Situation, node: Node, report: AcceleratorReport, fault: Fault, rule: Rule) -> Decision:
    name = session_name(at.name, node.metadata.uid, fault.kind, fault.device_uuid, fault.first_seen)
    spec = RemediationSpec(
        node_name=at.name,
        node_uid=node.metadata.uid,
        boot_id=report.status.boot_id,
        mode=rule.mode,
        policy=at.policy.reference,
    )
    faults = [found for found, _ in at.acting_faults(report)]
    plan = plan_for(rule, fault.advice)
    status = journal.with_incidents(RemediationStatus(plan=plan), report, faults, at.now.wall)
    status = replace(status, rung=plan[0].rung if plan else "", leader_epoch=at.epoch)
    because = f"{fault.kind} ({fault.code or 'no code'}) of {fault.device_uuid or 'the node'}"
    if rule.mode is Mode.APPROVE:
        status = journal.moved(
            status, Phase.PENDING, reason="WaitingForApproval", message=because, now=at.now.wall
        )
        return Decision(f"{at.name}: {because}; asks for approval", Open(name, spec, status, None))
    if rule.mode is Mode.OBSERVE:
        status = observed(at, status, StepName.CORDON, because)
        return Decision(f"{at.name}: {because}; would cordon, only observes", Open(name, spec, status, None))
    status = journal.moved(status, Phase.PENDING, reason="Fencing", message=because, now=at.now.wall)
    status = journal.with_intent(
        status, step=StepName.CORDON, attempt=1, epoch=at.epoch, now=at.now.wall, message=because
    )
    return Decision(f"{at.name}: {because}; cordons", Open(name, spec, status, StepName.CORDON))


def _dealt_with(at: Situation, node: Node, fault: Fault) -> bool:
    """Whether a closed session was about this very onset of the fault: what a person ended is not begun again."""
    return any(
        session.spec.node_uid == node.metadata.uid
        and session.current.closed_time is not None
        and fault.first_seen <= session.current.closed_time
        and any(incident.identity == fault.identity for incident in session.current.incidents)
        for session in at.fleet.closed_sessions(at.name)
    )


def _seniority(session: AcceleratorRemediation) -> tuple[bool, int, str]:
    return (session.spec.mode is Mode.OBSERVE, 0 if session.current.fenced_time else 1, session.metadata.name)
