"""What is decided about one node, and why: each case a fleet, a policy and a moment."""

from typing import Any

import pytest
from msgspec.structs import replace

from health.report import Source
from health.vocabulary import Advice, Mode, Phase, Severity, SourceState
from remediation.budget import StartBucket
from remediation.decide import decide
from remediation.fleet import Fleet
from remediation.objects import (
    AcceleratorRemediation,
    Approval,
    Hold,
    JournalEvent,
    NodeAction,
    NodeSwitch,
    RemediationStatus,
    session_name,
)
from remediation.objects import Decision as Verdict
from remediation.policy import Match, Rule, StepName
from remediation.situation import RECHECK, Decision, Open, Run, Write
from tests.unit.builders import (
    FULL,
    GPU,
    NOON,
    OTHER_GPU,
    control,
    fault,
    fleet,
    later,
    node,
    policy,
    report,
    see_advance,
    session,
    situation,
    with_sequence,
)

EMPTY = StartBucket(tokens=0.0, refreshed=1000.0)
NAME = session().metadata.name
YES, NO = (Approval(decision=decision, user="bob") for decision in (Verdict.APPROVED, Verdict.DENIED))


def about(*found: Any, **given: Any) -> Decision:
    made = decide(situation(fleet(*found), **given))
    assert made.sentence
    return made


def opened(decision: Decision) -> Open:
    assert isinstance(decision.action, Open), decision
    return decision.action


def written(decision: Decision) -> RemediationStatus:
    assert isinstance(decision.action, Write), decision
    return decision.action.status


def ran(decision: Decision) -> Run:
    assert isinstance(decision.action, Run), decision
    return decision.action


def waits(decision: Decision, *told: str) -> None:
    """Nothing is done, not even a write, and it is said why."""
    assert decision.action is None, decision
    for part in told:
        assert part in decision.sentence, decision.sentence


def only(mode: Mode, **match: Any) -> Rule:
    return Rule(name="only", match=Match(**match), mode=mode)


# A node without a session.


def test_a_fatal_fault_under_auto_opens_a_session_whose_first_intent_is_the_cordon() -> None:
    action = opened(about(node(), report("n1", fault()), epoch=7))
    assert action.step is StepName.CORDON and not action.virtual
    assert action.name == session_name("n1", "uid-n1", "DeviceLost", GPU, NOON)
    assert (action.spec.node_name, action.spec.node_uid, action.spec.boot_id) == ("n1", "uid-n1", "boot-1")
    assert (action.spec.mode, action.spec.approval, action.spec.hold) == (Mode.AUTO, None, None)
    status = action.status
    assert (status.phase, status.reason, status.leader_epoch) == (Phase.PENDING, "Fencing", 7)
    (line,) = status.journal
    assert (line.event, line.step, line.epoch, line.attempt) == (JournalEvent.INTENT, "Cordon", 7, 1)
    assert [item.kind for item in status.incidents] == ["DeviceLost"]
    assert (status.rung, status.plan[0].steps[0]) == ("RebootNode", "Cordon")


def test_under_approve_it_asks_and_fences_nothing() -> None:
    action = opened(about(node(), report("n1", fault()), under=policy(Mode.APPROVE)))
    assert action.step is None and not action.virtual
    assert (action.status.phase, action.status.reason) == (Phase.PENDING, "WaitingForApproval")
    assert action.status.journal == ()


def test_under_observe_it_writes_down_what_it_would_have_done() -> None:
    action = opened(about(node(), report("n1", fault()), under=policy(Mode.OBSERVE)))
    assert action.step is None and action.virtual
    assert (action.status.phase, action.status.reason) == (Phase.FENCED, "ObserveOnly")
    assert action.status.fenced_time is None
    (line,) = action.status.journal
    assert (line.event, line.step, line.result) == (JournalEvent.OUTCOME, "Cordon", "Observed")


def test_a_healthy_node_and_one_that_is_not_known_are_left_alone() -> None:
    waits(about(node(), report("n1")), "nothing to do")
    waits(about(), "no such node")
    waits(about(report("n1", fault())), "no such node")


@pytest.mark.parametrize("advice", ["None", "RestartWorkload", "RunDiagnostics", "ContactSupport", ""])
def test_advice_without_a_plan_never_acts(advice: str) -> None:
    waits(about(node(), report("n1", fault(advice=advice))), "nothing to do")


def test_a_fault_that_no_rule_matches_never_acts() -> None:
    under = policy(Mode.AUTO, only(Mode.AUTO, kinds=("EngineHung",)))
    waits(about(node(), report("n1", fault()), under=under), "nothing to do")


@pytest.mark.parametrize(
    "evidence",
    [
        {"uid": "another"},
        {"boot": "boot-0"},
        {"boot": ""},
    ],
)
def test_evidence_of_another_node_or_another_boot_starts_nothing(evidence: dict[str, str]) -> None:
    waits(about(node(), report("n1", fault(), **evidence)), "no fresh report")


def test_evidence_that_was_not_seen_to_advance_or_not_lately_starts_nothing() -> None:
    made = fleet(node())
    made.put_report(report("n1", fault()), 1000.0)
    waits(decide(situation(made)), "no fresh report")
    made.put_report(with_sequence(report("n1", fault()), 2), 1000.0)
    assert opened(decide(situation(made, monotonic=1090.0)))
    waits(decide(situation(made, monotonic=1090.1)), "no fresh report")


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ([node(), control(paused=True)], "alice paused everything (change freeze)"),
        ([node(hold=True)], "a person holds the node"),
        ([node(opt_out=True)], "opted out"),
        ([node(labels={"node-role.kubernetes.io/control-plane": ""})], "opted out"),
        ([node(), control(NodeSwitch("n1", NodeAction.HOLD, "alice"))], "a person holds the node"),
        ([node(), control(NodeSwitch("n1", NodeAction.OPT_OUT, "alice"))], "opted out"),
        ([node(taint="karpenter.sh/disrupted")], "Karpenter"),
        ([node(deleting=True)], "being deleted"),
        ([node(labels={"nvidia.com/gpu-driver-upgrade-state": "pod-restart-required"})], "driver upgrade"),
    ],
)
@pytest.mark.parametrize("mode", Mode)
def test_where_something_stands_against_it_nothing_is_started_and_it_is_said_what(
    found: list[Any], told: str, mode: Mode
) -> None:
    decision = about(*found, report("n1", fault()), under=policy(mode))
    waits(decision, told, "DeviceLost")
    assert decision.again == RECHECK


def test_maintenance_of_the_node_starts_nothing() -> None:
    waits(about(node(), report("n1", fault(), maintenance=True)), "in maintenance (driver upgrade)")


def test_where_the_budget_is_used_up_it_waits_and_says_by_whom() -> None:
    others = [node("n2", cordoned=True), report("n2"), node("n3"), report("n3")]
    decision = about(node(), report("n1", fault()), *others, under=policy(max_fenced="34%"))
    waits(decision, "1 of 1 nodes fenced in pool default")
    assert decision.again == RECHECK
    assert opened(about(node(), report("n1", fault()), *others, under=policy(max_fenced="67%")))


def test_where_sessions_start_too_fast_it_waits_until_the_next_may() -> None:
    bucket = StartBucket(tokens=0.5, refreshed=1000.0)
    decision = about(node(), report("n1", fault()), bucket=bucket)
    waits(decision, "at most 5 a minute")
    assert decision.again == 6.0


def test_observe_is_charged_to_buckets_of_its_own() -> None:
    found = [node(), report("n1", fault())]
    assert opened(about(*found, under=policy(Mode.OBSERVE), bucket=EMPTY, virtual_bucket=FULL))
    waits(about(*found, under=policy(Mode.OBSERVE), bucket=FULL, virtual_bucket=EMPTY), "a minute")
    assert opened(about(*found, bucket=FULL, virtual_bucket=EMPTY))


def test_a_fault_that_is_only_observed_does_not_hide_one_that_is_acted_on() -> None:
    under = policy(Mode.AUTO, only(Mode.AUTO, kinds=("DeviceLost",)), Rule(name="rest", mode=Mode.OBSERVE))
    graver = fault("RemapFailed", advice="ReplaceHardware", device=OTHER_GPU)
    action = opened(about(node(), report("n1", graver, fault()), under=under))
    assert (action.spec.mode, action.step) == (Mode.AUTO, StepName.CORDON)
    assert action.status.incidents[0].kind == "DeviceLost"
    assert len(action.status.incidents) == 2


def test_of_several_faults_the_gravest_opens_the_session_and_all_are_in_it() -> None:
    faults = (
        fault("EngineHung", advice="ResetDevice"),
        fault("DeviceLost", advice="RebootNode", device=OTHER_GPU),
        fault("ApplicationFault", advice="RestartWorkload"),
    )
    action = opened(about(node(), report("n1", *faults)))
    assert action.name == session_name("n1", "uid-n1", "DeviceLost", OTHER_GPU, NOON)
    assert [item.kind for item in action.status.incidents] == ["DeviceLost", "EngineHung"]
    assert [rung.rung for rung in action.status.plan] == ["RebootNode"]


# What a person has ended is not begun again.


def ended(*faults: Any, **given: Any) -> AcceleratorRemediation:
    return session(*faults, phase=Phase.CANCELLED, **({"reason": "UncordonedByUser", "fenced": True} | given))


@pytest.mark.parametrize("closed_at", [-3600, 0, 3600])
def test_the_same_onset_is_dealt_with_whatever_the_clocks_of_node_and_controller_say(
    closed_at: float,
) -> None:
    over = ended(fault(), closed=later(closed_at))
    waits(about(node(), report("n1", fault()), over), "nothing to do")


@pytest.mark.parametrize("closed_at", [-3600, 0, 3600])
def test_a_new_onset_is_not(closed_at: float) -> None:
    over = ended(fault(), closed=later(closed_at))
    assert opened(about(node(), report("n1", fault(seen=later(1))), over))


def test_every_incident_of_the_session_is_dealt_with_and_no_other_fault_is() -> None:
    over = ended(fault(), fault("EngineHung", device=OTHER_GPU))
    waits(about(node(), report("n1", fault("EngineHung", device=OTHER_GPU)), over), "nothing to do")
    assert opened(about(node(), report("n1", fault("EngineHung", device=GPU)), over))


def test_another_word_about_the_same_onset_is_no_new_onset() -> None:
    changed = fault(code="xid:119", advice="ReplaceHardware")
    waits(about(node(), report("n1", changed), ended(fault())), "nothing to do")


def test_a_return_within_the_session_is_dealt_with_as_its_first_onset_is() -> None:
    over = ended(fault())
    (incident,) = over.current.incidents
    status = replace(over.current, incidents=(replace(incident, last_seen=later(90)),))
    waits(about(node(), report("n1", fault(seen=later(60))), replace(over, status=status)), "nothing to do")


def test_a_fault_of_a_later_boot_is_new_even_where_the_nodes_clock_went_back() -> None:
    found = report("n1", fault(seen=later(-86400)), boot="boot-2")
    assert opened(about(node(boot="boot-2"), found, ended(fault())))


def test_a_session_of_an_earlier_node_of_the_name_deals_with_nothing_here() -> None:
    assert opened(about(node(), report("n1", fault()), ended(fault(), uid="earlier")))


def test_a_session_whose_incidents_were_lost_deals_with_the_onset_that_it_is_named_after() -> None:
    over = replace(ended(fault()), status=RemediationStatus(phase=Phase.CANCELLED, closed_time=NOON))
    waits(about(node(), report("n1", fault()), over), "nothing to do")


# Sessions that give way.


def test_an_incident_that_is_acted_on_ends_a_session_that_only_observes() -> None:
    watching = session(fault("EngineHung"), mode=Mode.OBSERVE, phase=Phase.FENCED, reason="ObserveOnly")
    faults = (fault("EngineHung"), fault())
    under = policy(Mode.AUTO, only(Mode.AUTO, kinds=("DeviceLost",)), Rule(name="rest", mode=Mode.OBSERVE))
    status = written(about(node(), report("n1", *faults), watching, under=under))
    assert (status.phase, status.reason) == (Phase.CANCELLED, "Superseded")
    over = replace(watching, status=status)
    action = opened(about(node(), report("n1", *faults), over, under=under))
    assert (action.spec.mode, action.step, len(action.status.incidents)) == (Mode.AUTO, StepName.CORDON, 2)


@pytest.mark.parametrize(
    "risen",
    [
        fault(severity=Severity.FATAL, advice="ResetDevice"),
        fault(severity=Severity.DEGRADED, advice="RebootNode"),
    ],
)
def test_a_fault_that_becomes_graver_is_acted_on_under_a_name_of_its_own(risen: Any) -> None:
    known = fault(severity=Severity.DEGRADED, advice="ResetDevice")
    watching = session(known, mode=Mode.OBSERVE, phase=Phase.FENCED)
    status = written(about(node(), report("n1", risen), watching))
    assert status.reason == "Superseded"
    action = opened(about(node(), report("n1", risen), replace(watching, status=status)))
    assert action.step is StepName.CORDON
    assert action.name not in (watching.metadata.name, "")


def test_a_policy_that_is_loosened_touches_new_sessions_only() -> None:
    watching = session(mode=Mode.OBSERVE, phase=Phase.FENCED, reason="ObserveOnly")
    waits(about(node(), report("n1", fault()), watching, under=policy(Mode.AUTO)), "ObserveOnly")
    asking = session(mode=Mode.APPROVE, reason="WaitingForApproval")
    waits(about(node(), report("n1", fault()), asking, under=policy(Mode.AUTO)), "waits for approval")


def test_a_session_that_waits_for_approval_gives_way_to_what_needs_none() -> None:
    asking = session(fault("EngineHung"), mode=Mode.APPROVE)
    under = policy(Mode.AUTO, only(Mode.AUTO, kinds=("DeviceLost",)), Rule(name="rest", mode=Mode.APPROVE))
    faults = (fault("EngineHung"), fault())
    assert written(about(node(), report("n1", *faults), asking, under=under)).reason == "Superseded"


@pytest.mark.parametrize(
    "found",
    [
        [node(), session(fault("EngineHung"), mode=Mode.OBSERVE, phase=Phase.FENCED, hold=Hold(user="bob"))],
        [node(hold=True), session(fault("EngineHung"), mode=Mode.OBSERVE, phase=Phase.FENCED)],
        [node(), session(fault("EngineHung"), mode=Mode.OBSERVE, phase=Phase.FENCED), control(paused=True)],
        [
            node(cordoned=True),
            session(fault("EngineHung"), mode=Mode.APPROVE, phase=Phase.HELD, approval=YES),
        ],
    ],
)
def test_a_session_does_not_give_way_where_nothing_could_follow_or_where_it_has_fenced(
    found: list[Any],
) -> None:
    faults = (fault("EngineHung"), fault())
    decision = about(*found, report("n1", *faults))
    assert not isinstance(decision.action, Write) or decision.action.status.reason != "Superseded"


def test_of_two_open_sessions_the_one_that_owns_the_cordon_stays() -> None:
    owner, other = (session(name=name) for name in ("s-b", "s-a"))
    fenced = session(name="s-c", phase=Phase.HELD)
    decision = about(node(cordoned=True, owner="s-b"), report("n1", fault()), owner, other, fenced)
    assert isinstance(decision.action, Write)
    assert decision.action.session.metadata.name == "s-a"
    assert (decision.action.status.phase, decision.action.status.reason) == (Phase.CANCELLED, "Superseded")


def test_of_two_open_sessions_the_one_of_an_earlier_node_ends_as_such() -> None:
    earlier = session(name="s-a", uid="earlier", phase=Phase.HELD)
    decision = about(node(cordoned=True, owner="s-b"), report("n1", fault()), earlier, session(name="s-b"))
    assert isinstance(decision.action, Write)
    assert decision.action.session.metadata.name == "s-a"
    assert decision.action.status.reason == "NodeReplaced"


# A session that has not fenced.


def test_an_interrupted_session_takes_its_first_step_again() -> None:
    run = ran(about(node(), report("n1", fault()), session(step="Cordon", status=None)))
    assert (run.step, run.then, run.reason) == (StepName.CORDON, Phase.FENCED, "Fenced")
    assert (run.status.journal[-1].event, run.status.attempt) == (JournalEvent.INTENT, 1)
    again = session(step="Cordon")
    assert ran(about(node(), report("n1", fault()), replace(again, status=run.status))).status.attempt == 2


def test_a_session_that_has_cordoned_and_could_not_say_so_says_so_whatever_has_changed_since() -> None:
    run = ran(
        about(
            node(cordoned=True, owner=NAME),
            session(),
            control(paused=True),
            under=policy(Mode.OBSERVE, max_fenced=0),
        )
    )
    assert (run.step, run.then) == (StepName.CORDON, Phase.FENCED)


@pytest.mark.parametrize(
    ("found", "under", "told"),
    [
        ([node(), report("n1", fault()), session(mode=Mode.APPROVE)], policy(Mode.APPROVE), "approval"),
        ([node(), session()], policy(), "no fresh report"),
        ([node(), report("n1", fault()), session(), control(paused=True)], policy(), "paused"),
        ([node(taint="karpenter.sh/disrupted"), report("n1", fault()), session()], policy(), "Karpenter"),
        ([node(), report("n1", fault(), maintenance=True), session()], policy(), "maintenance"),
        ([node(), report("n1", fault()), session()], policy(Mode.OBSERVE), "only observes now"),
        ([node(), report("n1", fault()), session()], policy(Mode.APPROVE), "wants an approval now"),
        ([node(), report("n1", fault()), session()], policy(max_fenced=0), "budget was lowered"),
        (
            [node(), report("n1", fault()), session()],
            policy(Mode.AUTO, only(Mode.AUTO, kinds=("EngineHung",))),
            "only observes now",
        ),
    ],
)
def test_a_running_session_waits_where_the_next_step_is_not_allowed_any_more(
    found: list[Any], under: Any, told: str
) -> None:
    waits(about(*found, under=under), told)


def test_an_approval_lets_it_fence_and_a_policy_that_was_tightened_takes_one_too() -> None:
    assert ran(
        about(
            node(),
            report("n1", fault()),
            session(mode=Mode.APPROVE, approval=YES),
            under=policy(Mode.APPROVE),
        )
    )
    assert ran(about(node(), report("n1", fault()), session(approval=YES), under=policy(Mode.APPROVE)))


def test_a_node_that_others_fill_the_budget_beside_waits() -> None:
    others = [node("n2", cordoned=True), report("n2"), node("n3"), report("n3")]
    waits(
        about(node(), report("n1", fault()), *others, session(), under=policy(max_fenced=1)), "2 of 1 nodes"
    )
    assert ran(about(node(), report("n1", fault()), *others, session(), under=policy(max_fenced=2)))


def test_a_fault_that_cleared_before_the_fence_is_dwelled_out_and_the_session_released_without_one() -> None:
    waiting = session(fault(clears_on="DeviceReset"), mode=Mode.APPROVE)
    status = written(about(node(), report("n1"), waiting, under=policy(Mode.APPROVE)))
    assert (status.phase, status.healthy_since) == (Phase.VERIFYING, NOON)
    done = written(about(node(), report("n1"), replace(waiting, status=status), wall=later(300)))
    assert (done.phase, done.reason) == (Phase.RELEASED, "Healthy")


# A session that has fenced.


def test_a_plan_that_needs_a_step_which_does_not_exist_is_held_and_says_which() -> None:
    drained = session(phase=Phase.REPAIRING, reason="Drained", step="Drain")
    rung = replace(drained.current.plan[0], steps=("Cordon", "Drain", "ReplaceFan", "Reboot"))
    drained = replace(drained, status=replace(drained.current, plan=(rung,)))
    held = written(about(node(cordoned=True, owner=NAME), report("n1", fault()), drained))
    assert (held.phase, held.reason) == (Phase.HELD, "NoRepairStep")
    assert "ReplaceFan" in held.message


def test_a_plan_without_rungs_is_held_too() -> None:
    bare = session(phase=Phase.FENCED, planned=False)
    under = policy(Mode.AUTO, Rule(name="r", mode=Mode.AUTO, plan=()))
    held = written(about(node(cordoned=True, owner=NAME), report("n1", fault()), bare, under=under))
    assert (held.phase, held.reason) == (Phase.HELD, "NoPlan")


def test_a_session_that_is_held_does_nothing_while_its_fault_lasts() -> None:
    held = session(phase=Phase.HELD, reason="NoRepairStep")
    waits(about(node(cordoned=True, owner=NAME), report("n1", fault()), held), "Held", "NoRepairStep")


def test_a_graver_incident_moves_the_plan_up_and_a_milder_one_or_a_new_policy_does_not() -> None:
    fenced = node(cordoned=True, owner=NAME)
    first = fault("EngineHung", advice="ResetDevice", clears_on="DeviceReset")
    held = session(first, name=NAME, phase=Phase.HELD, reason="NoRepairStep")
    graver = written(about(fenced, report("n1", first, fault()), held))
    assert (graver.rung, [rung.rung for rung in graver.plan]) == ("RebootNode", ["RebootNode"])
    assert [item.kind for item in graver.incidents] == ["EngineHung", "DeviceLost"]
    milder = written(
        about(fenced, report("n1", first, fault("PluginDead", device="", advice="RestartPlugin")), held)
    )
    assert (milder.plan, milder.rung) == (held.current.plan, "ResetDevice")
    longer = policy(Mode.AUTO, Rule(name="r", mode=Mode.AUTO, plan=(Advice.REPLACE_HARDWARE,)))
    waits(about(fenced, report("n1", first), held, under=longer), "NoRepairStep")


def test_a_graver_incident_whose_rule_plans_less_does_not_move_the_plan_down() -> None:
    held = session(fault(), phase=Phase.HELD, reason="NoRepairStep")
    graver = fault("RemapFailed", advice="ReplaceHardware", clears_on="DriverVerdict")
    less = policy(Mode.AUTO, Rule(name="r", mode=Mode.AUTO, plan=(Advice.RESTART_PLUGIN,)))
    status = written(about(node(cordoned=True, owner=NAME), report("n1", fault(), graver), held, under=less))
    assert status.rung == "RebootNode"


# What people say.


HOLDS = [
    ([node(cordoned=True, owner=NAME)], {"hold": Hold(user="bob", reason="mine")}, "HeldByUser"),
    ([node(cordoned=True, owner=NAME, hold=True)], {}, "HeldByUser"),
    ([node(cordoned=True, owner=NAME), control(NodeSwitch("n1", NodeAction.HOLD, "a"))], {}, "HeldByUser"),
    ([node(cordoned=True, owner=NAME, opt_out=True)], {}, "OptedOut"),
    ([node(cordoned=True, owner=NAME)], {"approval": NO}, "ApprovalDenied"),
]


@pytest.mark.parametrize(("found", "said", "reason"), HOLDS)
@pytest.mark.parametrize("phase", [Phase.FENCED, Phase.VERIFYING, Phase.HELD])
def test_a_hold_stops_a_session_where_it_is_and_when_lifted_it_goes_on_from_there(
    found: list[Any], said: dict[str, Any], reason: str, phase: Phase
) -> None:
    running = session(fault(clears_on="DeviceReset"), name=NAME, phase=phase, healthy_since=NOON, **said)
    status = written(about(*found, report("n1"), running, wall=later(1000)))
    assert (status.phase, status.reason, status.healthy_since) == (Phase.HELD, reason, None)
    stopped = replace(running, status=status)
    waits(about(*found, report("n1"), stopped, wall=later(9000)), f"held ({reason})")
    free = replace(stopped, spec=session().spec)
    resumed = written(about(node(cordoned=True, owner=NAME), report("n1"), free, wall=later(9000)))
    assert (resumed.phase, resumed.reason) == (Phase.FENCED, "Resumed")
    again = written(
        about(node(cordoned=True, owner=NAME), report("n1"), replace(free, status=resumed), wall=later(9000))
    )
    assert (again.phase, again.healthy_since) == (Phase.VERIFYING, later(9000))


def test_a_hold_before_the_fence_is_resumed_before_the_fence() -> None:
    held = session(phase=Phase.HELD, reason="HeldByUser", fenced=False)
    resumed = written(about(node(), report("n1", fault()), held))
    assert resumed.phase is Phase.PENDING
    assert ran(about(node(), report("n1", fault()), replace(held, status=resumed))).step is StepName.CORDON


def test_a_denied_session_that_has_not_fenced_ends() -> None:
    status = written(about(node(), report("n1", fault()), session(mode=Mode.APPROVE, approval=NO)))
    assert (status.phase, status.reason) == (Phase.CANCELLED, "Denied")
    assert "bob said no" in status.message


def test_a_denied_session_that_has_cordoned_without_saying_so_does_not_leave_its_cordon_behind() -> None:
    denied = session(mode=Mode.APPROVE, approval=NO)
    status = written(about(node(cordoned=True, owner=NAME), report("n1", fault()), denied))
    assert (status.phase, status.reason) == (Phase.HELD, "ApprovalDenied")


@pytest.mark.parametrize("phase", [Phase.PENDING, Phase.FENCED, Phase.VERIFYING, Phase.HELD])
@pytest.mark.parametrize("held", [True, False])
def test_a_persons_uncordon_ends_the_session_and_takes_the_record_off(phase: Phase, held: bool) -> None:
    running = session(phase=phase, reason="HeldByUser", hold=Hold(user="bob") if held else None)
    run = ran(about(node(owner=NAME), report("n1", fault()), running))
    assert (run.step, run.then, run.reason) == (StepName.UNCORDON, Phase.CANCELLED, "UncordonedByUser")


def test_a_person_who_lifts_a_cordon_of_their_own_ends_the_session_that_relied_on_it() -> None:
    relied = session(phase=Phase.HELD, reason="NoRepairStep")
    run = ran(about(node(), report("n1", fault()), relied))
    assert (run.then, run.reason) == (Phase.CANCELLED, "UncordonedByUser")


def test_a_node_that_was_given_back_before_a_crash_is_released_and_not_held_against_anybody() -> None:
    given = session(phase=Phase.VERIFYING, step="Uncordon", healthy_since=NOON)
    run = ran(about(node(), report("n1", fault()), given))
    assert (run.step, run.then, run.reason) == (StepName.UNCORDON, Phase.RELEASED, "Healthy")


def test_a_session_of_a_node_that_is_gone_or_replaced_ends_even_where_it_is_held() -> None:
    held = session(phase=Phase.HELD, reason="HeldByUser", hold=Hold(user="bob"))
    assert written(about(held)).reason == "NodeGone"
    gone = written(about(node(uid="new"), report("n1", fault(), uid="new"), held))
    assert (gone.phase, gone.reason, gone.closed_time) == (Phase.CANCELLED, "NodeReplaced", NOON)


# The way back.


def cleared(**given: Any) -> AcceleratorRemediation:
    about_what = fault(clears_on="DeviceReset")
    return session(about_what, name=NAME, **({"phase": Phase.HELD, "reason": "NoRepairStep"} | given))


OWNED = node(cordoned=True, owner=NAME)


def test_a_held_session_whose_fault_is_gone_dwells_and_then_gives_the_node_back() -> None:
    status = written(about(OWNED, report("n1"), cleared(), wall=later(60)))
    assert (status.phase, status.reason, status.healthy_since) == (
        Phase.VERIFYING,
        "FaultsCleared",
        later(60),
    )
    assert status.incidents[0].cleared_time == later(60)
    dwelling = replace(cleared(), status=status)
    decision = about(OWNED, report("n1"), dwelling, wall=later(100))
    waits(decision, "healthy, dwells")
    assert decision.again == pytest.approx(260)
    run = ran(about(OWNED, report("n1"), dwelling, wall=later(360)))
    assert (run.step, run.then, run.reason) == (StepName.UNCORDON, Phase.RELEASED, "Healthy")


def test_a_fault_that_clears_by_a_new_boot_is_gone_only_then() -> None:
    held = session(phase=Phase.HELD, reason="NoRepairStep")
    waits(about(OWNED, report("n1"), held), "NoRepairStep")
    after = about(node(cordoned=True, owner=NAME, boot="boot-2"), report("n1", boot="boot-2"), held)
    assert written(after).phase is Phase.VERIFYING


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ([OWNED], "no fresh report"),
        ([OWNED, report("n1", boot="boot-2")], "no fresh report"),
        ([node(cordoned=True, owner=NAME, ready=False), report("n1")], "not Ready"),
        ([OWNED, report("n1", sources=(Source("nvml", SourceState.FAILED),))], "source nvml is Failed"),
        ([OWNED, report("n1", sources=(Source("kernel-log", SourceState.STALE),))], "kernel-log is Stale"),
    ],
)
def test_a_node_that_is_not_proven_healthy_is_not_given_back_and_its_dwell_begins_anew(
    found: list[Any], told: str
) -> None:
    dwelling = cleared(phase=Phase.VERIFYING, healthy_since=NOON)
    (incident,) = dwelling.current.incidents
    over = replace(
        dwelling, status=replace(dwelling.current, incidents=(replace(incident, cleared_time=NOON),))
    )
    decision = about(*found, over, wall=later(9000))
    status = written(decision)
    assert (status.healthy_since, status.reason) == (None, "NotProvenHealthy")
    assert told in status.message
    waits(about(*found, replace(over, status=status), wall=later(9000)), told)


def test_sources_that_are_not_there_or_were_told_to_let_go_do_not_stand_against_a_release() -> None:
    sources = tuple(
        Source(state.value, state)
        for state in (SourceState.LIVE, SourceState.UNSUPPORTED, SourceState.RELEASED)
    )
    dwelling = cleared(phase=Phase.VERIFYING, healthy_since=NOON)
    assert ran(about(OWNED, report("n1", sources=sources), dwelling, wall=later(300)))


def test_a_gap_in_the_reports_starts_the_dwell_again_even_where_nobody_looked_in_it() -> None:
    made = fleet(OWNED)
    see_advance(made, report("n1"), began=0.0, until=500.0)
    last = made.reports["n1"].report
    made.put_report(with_sequence(last, 1000), 800.0)
    dwelling = cleared(phase=Phase.VERIFYING, healthy_since=NOON)
    made.put_session(dwelling)
    status = written(decide(situation(made, wall=later(400), monotonic=800.0)))
    assert (status.phase, status.healthy_since) == (Phase.VERIFYING, later(400))


@pytest.mark.parametrize("step", [7200, -7200])
def test_a_wall_clock_that_steps_does_not_cut_the_dwell_short_or_make_it_endless(step: float) -> None:
    made = fleet(OWNED)
    see_advance(made, report("n1"), began=900.0, until=1000.0)
    made.put_session(cleared(phase=Phase.VERIFYING, healthy_since=NOON))
    status = written(decide(situation(made, wall=later(step), monotonic=1000.0)))
    assert status.healthy_since == later(step)


def test_a_controller_that_was_restarted_waits_out_a_dwell_that_it_has_seen_itself() -> None:
    made = fleet(OWNED)
    made.put_report(report("n1"), 990.0)
    made.put_report(with_sequence(report("n1"), 2), 1000.0)
    made.put_session(cleared(phase=Phase.VERIFYING, healthy_since=NOON))
    assert written(decide(situation(made, wall=later(290)))).healthy_since == later(290)


def test_a_fault_that_returns_during_the_dwell_ends_it() -> None:
    dwelling = cleared(phase=Phase.VERIFYING, healthy_since=NOON)
    status = written(about(OWNED, report("n1", fault(clears_on="DeviceReset")), dwelling))
    assert (status.phase, status.reason, status.healthy_since) == (Phase.FENCED, "FaultReturned", None)
    again = ran(about(OWNED, report("n1", fault(clears_on="DeviceReset")), replace(dwelling, status=status)))
    assert (again.step, again.status.phase) == (StepName.DRAIN, Phase.DRAINING)


def test_a_fault_that_loses_its_advice_or_its_rule_is_not_gone() -> None:
    held = cleared()
    without = about(OWNED, report("n1", fault(clears_on="DeviceReset", advice="None")), held)
    assert written(without).phase is Phase.HELD
    ruled_out = policy(Mode.AUTO, only(Mode.AUTO, kinds=("EngineHung",)))
    waits(about(OWNED, report("n1", fault(clears_on="DeviceReset")), held, under=ruled_out), "NoRepairStep")


def test_a_release_goes_on_while_everything_is_paused_or_only_observed() -> None:
    dwelling = cleared(phase=Phase.VERIFYING, healthy_since=NOON)
    found = [OWNED, report("n1"), dwelling, control(paused=True)]
    assert ran(about(*found, wall=later(300), under=policy(Mode.OBSERVE))).then is Phase.RELEASED


def test_where_the_cordon_is_somebody_elses_only_the_session_is_closed() -> None:
    dwelling = cleared(phase=Phase.VERIFYING, healthy_since=NOON)
    status = written(about(node(cordoned=True), report("n1"), dwelling, wall=later(300)))
    assert (status.phase, status.reason) == (Phase.RELEASED, "Healthy")


def test_a_session_that_only_observes_is_released_without_a_step() -> None:
    watching = session(fault(clears_on="DeviceReset"), mode=Mode.OBSERVE, phase=Phase.FENCED)
    status = written(about(node(), report("n1"), watching))
    done = about(node(), report("n1"), replace(watching, status=status), wall=later(300))
    assert written(done).phase is Phase.RELEASED


def test_a_session_that_somebody_emptied_takes_its_incidents_up_again_or_is_released() -> None:
    emptied = replace(session(), status=RemediationStatus())
    run = ran(about(node(), report("n1", fault()), emptied))
    assert (run.step, [item.kind for item in run.status.incidents]) == (StepName.CORDON, ["DeviceLost"])
    assert written(about(node(), report("n1"), emptied)).phase is Phase.VERIFYING
    waits(about(node(), replace(emptied, status=RemediationStatus(reason="x"))), "no fresh report")


# A cordon of ours without an open session.


def test_a_cordon_whose_session_has_ended_is_taken_back() -> None:
    over = session(phase=Phase.RELEASED, reason="Healthy")
    run = ran(about(OWNED, over))
    assert (run.step, run.then, run.reason) == (StepName.UNCORDON, Phase.RELEASED, "Healthy")
    assert run.session.metadata.name == NAME


def test_a_cordon_whose_session_was_deleted_gets_its_session_back_under_its_name() -> None:
    action = opened(about(OWNED, report("n1", fault())))
    assert (action.name, action.step, action.spec.mode) == (NAME, None, Mode.AUTO)
    assert (action.status.phase, action.status.reason) == (Phase.PENDING, "MadeAgain")
    made = replace(session(), status=action.status)
    assert ran(about(OWNED, report("n1", fault()), made)).then is Phase.FENCED
    assert written(about(OWNED, report("n1"), made)).phase is Phase.VERIFYING
    waits(about(OWNED, report("n1"), bucket=EMPTY), "made again", "a minute")


@pytest.mark.parametrize("keeps", [{"hold": True}, {"opt_out": True}])
def test_a_node_that_a_person_keeps_us_off_is_not_tidied_up_either(keeps: dict[str, bool]) -> None:
    kept = node(cordoned=True, owner=NAME, **keeps)
    waits(about(kept, session(phase=Phase.RELEASED)), "a person keeps us off")
    waits(about(kept), "a person keeps us off")


def test_a_record_of_another_nodes_session_is_nothing_of_ours() -> None:
    copied = node(cordoned=True, owner="s2")
    other = session(name="s2", node_name="n1", uid="earlier", phase=Phase.RELEASED)
    waits(about(copied, report("n1"), other), "nothing to do")


# Anything at all.


def test_a_decision_about_a_node_changes_nothing_in_the_fleet_and_is_the_same_again() -> None:
    made: Fleet = fleet(OWNED, report("n1", fault()), session(phase=Phase.FENCED))
    first = decide(situation(made))
    assert decide(situation(made)) == first
