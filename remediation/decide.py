"""The next step of each node: a pure function of policy, fleet and time.

Reads top-down as guard clauses. Each decision says in one sentence what it is and why. Nothing here does
anything: an `Action` is carried out elsewhere, after a live look that nothing it rests on has changed.
"""

from __future__ import annotations

from msgspec.structs import replace

from health.report import AcceleratorReport, Fault
from health.vocabulary import Mode, Phase
from remediation import budget, journal
from remediation.advance import DEVICE_FENCED, advance
from remediation.fleet import Node
from remediation.moves import close, run
from remediation.newcomers import give_back_strays, prove_newcomer
from remediation.objects import AcceleratorRemediation, RemediationSpec, RemediationStatus, session_name
from remediation.policy import Rule, StepName, advice_rank, plan_for
from remediation.situation import MODES, RECHECK, Decision, Open, Situation, fences_device, observed, obstacle
from remediation.traces import trace_of


def decide(at: Situation) -> Decision:
    """The next step for one node."""
    sessions = sorted(at.fleet.open_sessions(at.name), key=lambda session: _seniority(at, session))
    if not sessions:
        return _consider(at)
    senior, *others = sessions
    if others:
        extra = others[-1]
        if at.node is None or extra.spec.node_uid != at.node.metadata.uid:
            return advance(at, extra)
        sentence = f"{extra.metadata.name} gives way to {senior.metadata.name}: one open session a node"
        return close(at, extra, extra.current, (Phase.CANCELLED, "Superseded"), sentence)
    if fault := _wants_more(at, senior):
        sentence = (
            f"{senior.metadata.name}: is in mode {senior.spec.mode}, and more may be done "
            f"about {fault.kind}: it gives way"
        )
        return close(at, senior, senior.current, (Phase.CANCELLED, "Superseded"), sentence)
    return advance(at, senior)


def _wants_more(at: Situation, session: AcceleratorRemediation) -> Fault | None:
    """A fault that is new to a session which has not fenced, or graver now, and about which its rule may do more.

    What the session has known all along does not count: a policy that is loosened touches new sessions only.
    """
    node, report, status = at.node, at.fresh_report, session.current
    if node is None or report is None or node.metadata.uid != session.spec.node_uid:
        return None
    if status.fenced_time is not None or node.owner_session == session.metadata.name:
        return None
    if session.spec.hold is not None or obstacle(at, node, report):
        return None
    known = {incident.identity: incident for incident in status.incidents}
    for fault, rule in at.acting_faults(report):
        incident = known.get(fault.identity)
        rises = (
            incident is None
            or fault.severity.rank > incident.severity.rank
            or advice_rank(fault.advice) > advice_rank(incident.advice)
        )
        if rises and MODES.index(rule.mode) > MODES.index(session.spec.mode):
            return fault
    return None


def _consider(at: Situation) -> Decision:
    """A node without a session: is there a reason for one, and room?"""
    node, report = at.node, at.fresh_report
    if node is None:
        return Decision(f"{at.name}: there is no such node")
    if node.owner_session and (decision := _orphan(at, node)):
        return decision
    if strays := give_back_strays(at, node):
        return strays
    if report is None:
        nothing = f"{at.name}: no fresh report of this boot, so nothing is known and nothing is done"
        return prove_newcomer(at, node, report) or Decision(nothing)
    acting = at.acting_faults(report)
    candidates = [found for found in acting if not _dealt_with(at, node, report, *found)]
    if not candidates:
        return prove_newcomer(at, node, report) or Decision(f"{at.name}: nothing to do")
    fault, rule = candidates[0]
    what = f"{at.name}: {fault.kind} of {fault.device_uuid or 'the node'}"
    if reason := obstacle(at, node, report):
        return Decision(f"{what}, but {reason}", again=RECHECK)
    virtual = rule.mode is Mode.OBSERVE
    usage = budget.without_room(budget.fenced, at.fleet, at.policy, node, virtual=virtual)
    if usage is not None:
        return Decision(f"{what}, but the budget is used up: {usage}", again=RECHECK)
    return _at_the_rate(at, what, virtual=virtual) or _open(at, node, report, acting, candidates[0])


def _at_the_rate(at: Situation, what: str, *, virtual: bool) -> Decision | None:
    """Why it is too early for another start, if it is."""
    rate = at.policy.budgets.start_rate
    bucket = at.virtual_bucket if virtual else at.bucket
    if bucket.available:
        return None
    wait = bucket.wait(per_minute=rate.per_minute)
    return Decision(f"{what}, but sessions start at most {rate.per_minute} a minute", again=wait)


def _orphan(at: Situation, node: Node) -> Decision | None:
    """A cordon of ours without an open session: the session was deleted, or a former leader's request came late.

    A closed session takes its cordon back. A deleted one is made again under its name, which is the record.
    """
    name = node.owner_session
    session = at.fleet.sessions.get(name)
    if session is not None and session.spec.node_uid != node.metadata.uid:
        return None
    if at.fleet.switch(at.name) is not None:
        return Decision(f"{at.name}: the cordon of {name} stays, for a person keeps us off the node")
    if session is not None:
        status = session.current
        then = (status.phase, status.reason or "Closed")
        sentence = f"{name}: has ended, so its cordon is taken back"
        return run(at, session, status, StepName.UNCORDON, then=then, sentence=sentence)
    sentence = f"{at.name}: the session {name} of its cordon is gone, so it is made again"
    if early := _at_the_rate(at, sentence, virtual=False):
        return early
    spec = RemediationSpec(
        node_name=at.name,
        node_uid=node.metadata.uid,
        boot_id=node.status.node_info.boot_id,
        mode=Mode.AUTO,
        policy=at.policy.reference,
    )
    status = journal.moved(
        RemediationStatus(leader_epoch=at.epoch, trace_id=trace_of(name)),
        Phase.PENDING,
        reason="MadeAgain",
        message="the session of this cordon was deleted",
        now=at.now.wall,
    )
    return Decision(sentence, Open(name, spec, status, None))


def _open(
    at: Situation,
    node: Node,
    report: AcceleratorReport,
    acting: list[tuple[Fault, Rule]],
    first: tuple[Fault, Rule],
) -> Decision:
    """A session about all faults that act, for the sake of the first."""
    fault, rule = first
    name = _name(at, node, fault)
    if name in at.fleet.sessions:
        name = _name(at, node, fault, succeeding=rule.mode)
    spec = RemediationSpec(
        node_name=at.name,
        node_uid=node.metadata.uid,
        boot_id=report.status.boot_id,
        mode=rule.mode,
        policy=at.policy.reference,
    )
    faults = [found for found, _ in acting]
    plan = plan_for(rule, fault.advice, max_attempts=at.policy.repair.max_attempts)
    status = journal.with_incidents(RemediationStatus(plan=plan), report, faults, at.now.wall)
    status = replace(
        status, rung=plan[0].rung if plan else "", leader_epoch=at.epoch, trace_id=trace_of(name)
    )
    because = f"{fault.kind} ({fault.code or 'no code'}) of {fault.device_uuid or 'the node'}"
    if all(fences_device(ruled, found) for found, ruled in acting):
        message = f"{because}: left to the device plugin, which withholds the device; the node stays open"
        status = journal.moved(status, Phase.HELD, reason=DEVICE_FENCED, message=message, now=at.now.wall)
        return Decision(f"{at.name}: {message}", Open(name, spec, status, None))
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


def _name(at: Situation, node: Node, fault: Fault, *, succeeding: Mode | None = None) -> str:
    return session_name(
        at.name, node.metadata.uid, fault.kind, fault.device_uuid, fault.first_seen, succeeding=succeeding
    )


def _dealt_with(at: Situation, node: Node, report: AcceleratorReport, fault: Fault, rule: Rule) -> bool:
    """Whether a closed session was about this very onset of the fault: what a person ended is not begun again.

    A session that gave way because more may be done has not dealt with what more may be done about.
    """
    name = _name(at, node, fault)
    return any(
        session.spec.node_uid == node.metadata.uid
        and (session.metadata.name == name or _was_about(session, report, fault))
        and not (
            session.current.reason == "Superseded" and MODES.index(rule.mode) > MODES.index(session.spec.mode)
        )
        for session in at.fleet.closed_sessions(at.name)
    )


def _was_about(session: AcceleratorRemediation, report: AcceleratorReport, fault: Fault) -> bool:
    """Times of one boot of one node are compared, never a node's time with ours."""
    return any(
        incident.identity == fault.identity
        and (
            incident.first_seen == fault.first_seen
            or (incident.boot_id == report.status.boot_id and fault.first_seen <= incident.last_seen)
        )
        for incident in session.current.incidents
    )


def _seniority(at: Situation, session: AcceleratorRemediation) -> tuple[bool, bool, bool, bool, str]:
    """Which of several sessions stays: one of this very node, that owns its cordon, that acts, that has fenced."""
    node = at.node
    return (
        node is None or session.spec.node_uid != node.metadata.uid,
        node is None or node.owner_session != session.metadata.name,
        session.spec.mode is Mode.OBSERVE,
        session.current.fenced_time is None,
        session.metadata.name,
    )
