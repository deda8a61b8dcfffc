"""Up the rungs of a plan: which step is next, what stands in its way, and when it is a person's affair."""

import dataclasses
from typing import Any

import pytest
from msgspec.structs import replace

from health.report import Device, Source
from health.vocabulary import DeviceHealth, Mode, Phase, Severity, SourceState
from remediation.decide import decide
from remediation.drain_policy import DrainMode, DrainPolicy, PodSelection
from remediation.drain_state import DrainState
from remediation.fleet import Fleet
from remediation.journal import with_intent, with_outcome
from remediation.objects import (
    AcceleratorRemediation,
    Approval,
    Hold,
    NodeAction,
    NodeSwitch,
    RemediationStatus,
    Rung,
)
from remediation.objects import Decision as Verdict
from remediation.orders import CleanOrder, DrainOrder, RestartOrder
from remediation.plugin_state import PluginRestart
from remediation.policy import Fence, Match, Rule, StepName
from remediation.situation import Decision, Run, Write
from tests.unit.builders import (
    GPU,
    NOON,
    NOW,
    control,
    fault,
    fleet,
    later,
    node,
    policy,
    report,
    session,
    situation,
)

REBOOT = fault()
RESET = fault("EngineHung", advice="ResetDevice", clears_on="DeviceReset")
REPLACE = fault("RemapFailed", advice="ReplaceHardware")
DEAD = fault("PluginDead", device="", advice="RestartPlugin", clears_on="Dwell", code="plugin:nvidia.com/gpu")
HUNG = fault("PluginHung", device="", advice="RestartPlugin", clears_on="Dwell", code="plugin:nvidia.com/gpu")
PODS_STEPS = (StepName.DRAIN, StepName.RESTART_PLUGIN)


def fenced(about: Any = REBOOT, **given: Any) -> AcceleratorRemediation:
    return session(about, **{"phase": Phase.FENCED, "reason": "Fenced", **given})


def ward(found: AcceleratorRemediation, *faults: Any, **given: Any) -> Fleet:
    """A cordoned node with this session and a report of these faults, the session's own by default."""
    own = node(cordoned=True, owner=found.metadata.name, **given)
    return fleet(own, report("n1", *faults), found)


def run_of(decision: Decision) -> Run:
    assert isinstance(decision.action, Run), decision
    return decision.action


def status_of(decision: Decision) -> RemediationStatus:
    assert isinstance(decision.action, Write), decision
    return decision.action.status


def about(made: Fleet, **given: Any) -> Decision:
    return decide(situation(made, **given))


def under_way(
    about_fault: Any = REBOOT, *, attempt: int = 1, epoch: int = 7, **given: Any
) -> AcceleratorRemediation:
    """A session whose first step that touches pods has its intent, and no outcome."""
    plugin = about_fault.advice == "RestartPlugin"
    step = StepName.RESTART_PLUGIN if plugin else StepName.DRAIN
    phase = Phase.REPAIRING if plugin else Phase.DRAINING
    made = session(about_fault, phase=phase, reason=step, step=step, **given)
    status = with_intent(made.current, step=step, attempt=attempt, epoch=epoch, now=NOON, message="begins")
    status = replace(
        status,
        message="2 accelerator pods left",
        drain=None if plugin else DrainState(started=NOON),
        restart=PluginRestart(started=NOON) if plugin else None,
    )
    return replace(made, status=status)


def with_status(found: AcceleratorRemediation, **changes: Any) -> AcceleratorRemediation:
    return replace(found, status=replace(found.current, **changes))


# The first step.


@pytest.mark.parametrize(
    ("what", "step", "phase"),
    [
        (REBOOT, StepName.DRAIN, Phase.DRAINING),
        (RESET, StepName.DRAIN, Phase.DRAINING),
        (REPLACE, StepName.DRAIN, Phase.DRAINING),
        (DEAD, StepName.RESTART_PLUGIN, Phase.REPAIRING),
    ],
)
def test_the_first_step_after_the_fence_is_written_before_it_is_taken(
    what: Any, step: StepName, phase: Phase
) -> None:
    action = run_of(about(ward(fenced(what), what)))
    assert (action.step, action.status.phase, action.status.step) == (step, phase, step)
    assert (action.then, action.status.attempt) == (Phase.REPAIRING, 1)
    assert action.status.journal[-1].step == step
    memory = action.status.drain or action.status.restart
    assert memory is not None and memory.started == NOON


def test_a_drain_is_told_whether_a_reboot_follows_and_how_the_rule_wants_it() -> None:
    rule = Rule(name="all", mode=Mode.AUTO, drain=DrainPolicy(pods=PodSelection.ALL))
    for what, reboots in ((REBOOT, True), (RESET, False)):
        order = run_of(about(ward(fenced(what), what), under=policy(Mode.AUTO, rule))).order
        told = f"{what.kind} (xid:79) of {GPU}; session {session(what).metadata.name}"
        assert order == DrainOrder(DrainPolicy(pods=PodSelection.ALL), next_is_reboot=reboots, about=told)


@pytest.mark.parametrize(
    ("begun", "now", "held_to"),
    [
        (DrainMode.WAIT, DrainMode.EVICT, DrainMode.WAIT),
        (DrainMode.EVICT, DrainMode.WAIT, DrainMode.WAIT),
        (DrainMode.EVICT, DrainMode.EVICT, DrainMode.EVICT),
    ],
)
def test_a_drain_that_runs_takes_up_a_more_careful_policy_and_no_looser_one(
    begun: DrainMode, now: DrainMode, held_to: DrainMode
) -> None:
    terms = DrainPolicy(mode=begun, force=True).terms
    found = with_status(under_way(), drain=DrainState(started=NOON, terms=terms))
    rule = Rule(name="all", mode=Mode.AUTO, drain=DrainPolicy(mode=now))
    order = run_of(about(ward(found, REBOOT), under=policy(Mode.AUTO, rule))).order
    assert isinstance(order, DrainOrder)
    assert (order.policy.mode, order.policy.force) == (held_to, False)


def test_jobs_may_end_by_themselves_before_hardware_is_replaced_and_not_before_a_reboot() -> None:
    orders = [run_of(about(ward(fenced(what), what))).order for what in (REPLACE, REBOOT)]
    modes = [order.policy.mode for order in orders if isinstance(order, DrainOrder)]
    assert modes == [DrainMode.EVICT_AFTER, DrainMode.EVICT]


def test_the_rule_of_the_gravest_fault_that_lasts_says_how_to_drain() -> None:
    gently = Rule(
        name="hung", match=Match(kinds=("EngineHung",)), mode=Mode.AUTO, drain=DrainPolicy(force=True)
    )
    rest = Rule(name="rest", mode=Mode.AUTO)
    milder = replace(RESET, severity=Severity.DEGRADED)
    found = session(milder, REBOOT, phase=Phase.FENCED)
    order = run_of(about(ward(found, milder, REBOOT), under=policy(Mode.AUTO, gently, rest))).order
    assert isinstance(order, DrainOrder) and not order.policy.force


def test_a_restart_is_told_whether_a_plugin_hangs() -> None:
    for what, hung in ((DEAD, False), (HUNG, True)):
        order = run_of(about(ward(fenced(what), what))).order
        assert isinstance(order, RestartOrder) and order.hung is hung


@pytest.mark.parametrize("what", [REBOOT, DEAD], ids=["drain", "restart"])
def test_without_room_in_the_disrupted_budget_it_waits_and_writes_that_once(what: Any) -> None:
    found = fenced(what)
    made = ward(found, what)
    for number in (2, 3):
        made.put_node(node(f"n{number}", ready=number == 3))
        made.put_report(report(f"n{number}"), 1000.0)
    waiting = status_of(about(made))
    assert (waiting.phase, waiting.reason) == (Phase.FENCED, "BudgetUsedUp")
    made.put_session(replace(found, status=waiting))
    again = about(made)
    assert again.action is None and "1 of 1 nodes disrupted" in again.sentence


def test_two_nodes_that_are_decided_about_at_once_do_not_share_the_last_room() -> None:
    made = ward(fenced(), REBOOT)
    other = session(REBOOT, node_name="n2", phase=Phase.FENCED)
    for item in (node("n2", cordoned=True, owner=other.metadata.name), other):
        made.put_node(item) if not isinstance(item, AcceleratorRemediation) else made.put_session(item)
    made.put_report(report("n2", REBOOT), 900.0)
    assert isinstance(about(made).action, Run)
    made.begin_disruption("n1", ())
    assert status_of(about(made, name="n2")).reason == "BudgetUsedUp"
    made.end_disruption("n1")
    assert isinstance(about(made, name="n2").action, Run)


@pytest.mark.parametrize("reason", ["Fenced", "FaultReturned", "Resumed"])
def test_a_drain_that_begins_anew_has_its_whole_time(reason: str) -> None:
    old = DrainState(started=later(-9999), evicted=3, gangs=("Job/team/a",))
    found = with_status(fenced(), reason=reason, drain=old, step="Drain")
    assert run_of(about(ward(found, REBOOT))).status.drain == DrainState(
        started=NOON, terms=DrainPolicy().terms
    )


# Further passes.


def test_a_pass_under_the_intent_that_stands_writes_nothing_of_its_own() -> None:
    found = under_way()
    action = run_of(about(ward(found, REBOOT)))
    assert action.status == found.current and action.order is not None


def test_until_a_waiting_step_is_due_nothing_is_done() -> None:
    made = ward(under_way(), REBOOT)
    at = situation(made)
    early = decide(dataclasses.replace(at, resume_at=NOW.monotonic + 12.5))
    assert (early.action, early.again) == (None, 12.5)
    assert isinstance(decide(dataclasses.replace(at, resume_at=NOW.monotonic)).action, Run)


@pytest.mark.parametrize("what", [REBOOT, DEAD], ids=["drain", "restart"])
def test_another_epoch_writes_an_intent_of_its_own_first(what: Any) -> None:
    action = run_of(about(ward(under_way(what), what), epoch=8))
    assert (action.status.journal[-1].epoch, action.status.attempt) == (8, 2)


def test_after_a_failure_one_intent_covers_all_passes_that_follow() -> None:
    found = under_way()
    failed = with_outcome(
        found.current, step="Drain", attempt=1, epoch=7, now=NOON, result="Failed", message="503"
    )
    retried = run_of(about(ward(replace(found, status=failed), REBOOT)))
    assert (retried.status.attempt, retried.status.journal[-2].count) == (2, 1)
    # The same sentence is folded into the first intent, which stands before the outcome of the first attempt.
    goes_on = run_of(about(ward(replace(found, status=retried.status), REBOOT)))
    assert goes_on.status == retried.status


def test_a_folded_intent_still_stands() -> None:
    found = under_way()
    status = found.current
    for attempt in (1, 2):
        status = with_intent(status, step="Drain", attempt=attempt, epoch=7, now=NOON, message="drains")
        if attempt == 1:
            status = with_outcome(
                status, step="Drain", attempt=1, epoch=7, now=NOON, result="Failed", message="503"
            )
    assert [entry.event.value for entry in status.journal[-2:]] == ["Intent", "Outcome"]
    assert run_of(about(ward(replace(found, status=status), REBOOT))).status == status


# Gangs.


def claiming(name: str, *gangs: str, phase: Phase = Phase.DRAINING) -> AcceleratorRemediation:
    found = session(REBOOT, node_name=name, phase=phase, step="Drain")
    return with_status(found, drain=DrainState(started=NOON, gangs=gangs))


def seeing(*gangs: str, claimed: tuple[str, ...] = ()) -> AcceleratorRemediation:
    return with_status(under_way(), drain=DrainState(started=NOON, seen_gangs=gangs, gangs=claimed))


def test_a_gang_is_claimed_in_writing_before_its_pods_are_evicted() -> None:
    status = run_of(about(ward(seeing("Job/team/a"), REBOOT))).status
    assert status.drain is not None and status.drain.gangs == ("Job/team/a",)


@pytest.mark.parametrize("phase", [Phase.DRAINING, Phase.REPAIRING, Phase.VERIFYING])
def test_a_gang_that_is_disrupted_elsewhere_is_not_claimed_nor_any_beside_it(phase: Phase) -> None:
    found = seeing("Job/team/a", "Job/team/b")
    made = ward(found, REBOOT)
    made.put_session(claiming("n2", "Job/team/a", phase=phase))
    assert run_of(about(made)).status == found.current


@pytest.mark.parametrize("phase", [Phase.HELD, Phase.FENCED, Phase.RELEASED])
def test_a_session_that_disrupts_nothing_any_more_gives_its_gangs_free(phase: Phase) -> None:
    made = ward(seeing("Job/team/a"), REBOOT)
    made.put_session(claiming("n2", "Job/team/a", phase=phase))
    status = run_of(about(made)).status
    assert status.drain is not None and status.drain.gangs == ("Job/team/a",)


def test_more_gangs_than_can_be_written_down_are_no_reason_to_run_in_circles() -> None:
    many = tuple(f"Job/team/{number:03}" for number in range(130))
    found = seeing(*many, claimed=many[:128])
    waits = decide(dataclasses.replace(situation(ward(found, REBOOT)), resume_at=NOW.monotonic + 5))
    assert (waits.action, waits.again) == (None, 5.0)


def test_a_claim_whose_intent_is_still_on_its_way_counts_already() -> None:
    found = seeing("Job/team/a")
    made = ward(found, REBOOT)
    made.begin_disruption("n2", ("Job/team/a",))
    assert run_of(about(made)).status == found.current


# Who and what stands in the way.


@pytest.mark.parametrize("what", [REBOOT, DEAD], ids=["drain", "restart"])
def test_a_pause_sends_a_step_back_to_the_fence_and_its_end_begins_it_anew(what: Any) -> None:
    made = ward(under_way(what), what)
    made.put_control(control(paused=True, version=5))
    status = status_of(about(made))
    assert (status.phase, status.reason) == (Phase.FENCED, "Waiting")
    assert "alice paused everything" in status.message
    made.put_session(replace(under_way(what), status=status))
    assert about(made).action is None
    made.put_control(control(version=6))
    action = run_of(about(made, wall=later(9999)))
    memory = action.status.drain or action.status.restart
    assert memory is not None and memory.started == later(9999)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"taint": "karpenter.sh/disrupted"}, "Karpenter"),
        ({"labels": {"nvidia.com/gpu-driver-upgrade-state": "drain-required"}}, "driver upgrade"),
        ({"deleting": True}, "being deleted"),
    ],
)
def test_a_node_that_somebody_else_works_on_is_left_to_them(given: Any, why: str) -> None:
    status = status_of(about(ward(under_way(), REBOOT, **given)))
    assert (status.phase, why in status.message) == (Phase.FENCED, True)


@pytest.mark.parametrize(
    ("under", "why"),
    [
        (policy(Mode.OBSERVE), "only observes"),
        (policy(Mode.APPROVE), "nobody approves"),
        (
            policy(Mode.AUTO, Rule(name="other", match=Match(kinds=("Throttled",)), mode=Mode.AUTO)),
            "observes",
        ),
    ],
)
def test_a_policy_that_is_tighter_now_stops_a_drain_that_is_under_way(under: Any, why: str) -> None:
    status = status_of(about(ward(under_way(), REBOOT), under=under))
    assert status.phase is Phase.FENCED and why in status.message


def test_an_approval_that_was_withdrawn_is_missed_though_the_policy_is_looser_now() -> None:
    found = under_way(mode=Mode.APPROVE, approval=Approval(decision=Verdict.APPROVED, user="bob"))
    assert isinstance(about(ward(found, REBOOT)).action, Run)
    withdrawn = replace(found, spec=replace(found.spec, approval=None))
    assert "nobody approves" in status_of(about(ward(withdrawn, REBOOT))).message


def test_a_session_that_only_observes_drains_nothing() -> None:
    found = fenced(mode=Mode.OBSERVE)
    assert about(fleet(node(), report("n1", REBOOT), found)).action is None


def test_without_a_fresh_report_a_fault_that_needs_a_boot_still_counts_and_another_does_not() -> None:
    stale = NOW.monotonic + 100
    assert isinstance(about(ward(under_way(), REBOOT), monotonic=stale).action, Run)
    silent = about(ward(under_way(RESET), RESET), monotonic=stale)
    assert silent.action is None and "no fresh report" in silent.sentence
    booted = about(ward(under_way(), REBOOT, boot="boot-2"))
    assert booted.action is None and "no fresh report" in booted.sentence


# Persons' holds, and holds for persons.


def test_a_hold_stops_a_drain_and_its_end_begins_it_anew() -> None:
    found = under_way()
    held = replace(found, spec=replace(found.spec, hold=Hold(user="bob", reason="let me look")))
    status = status_of(about(ward(held, REBOOT)))
    assert (status.phase, status.reason, status.message) == (Phase.HELD, "HeldByUser", "let me look")
    resumed = status_of(about(ward(replace(found, status=status), REBOOT)))
    assert (resumed.phase, resumed.reason) == (Phase.FENCED, "Resumed")
    action = run_of(about(ward(replace(found, status=resumed), REBOOT), wall=later(60)))
    assert action.status.drain == DrainState(started=later(60), terms=DrainPolicy().terms)


@pytest.mark.parametrize("reason", ["DrainBlocked", "DrainDeadline", "PluginNotFound", "AdmissionStuck"])
def test_a_hold_of_ours_stays_until_a_person_holds_it_and_lets_go(reason: str) -> None:
    found = under_way()
    found = with_status(found, phase=Phase.HELD, reason=reason)
    assert about(ward(found, REBOOT)).action is None
    held = status_of(about(ward(replace(found, spec=replace(found.spec, hold=Hold(user="bob"))), REBOOT)))
    resumed = status_of(about(ward(replace(found, status=held), REBOOT)))
    assert isinstance(about(ward(replace(found, status=resumed), REBOOT)).action, Run)


def test_an_opted_out_node_is_held_and_goes_on_when_it_is_opted_in() -> None:
    made = ward(under_way(), REBOOT)
    made.put_control(control(NodeSwitch("n1", NodeAction.OPT_OUT, "bob"), version=5))
    assert status_of(about(made)).reason == "OptedOut"


@pytest.mark.parametrize("phase", [Phase.HELD, Phase.REPAIRING])
def test_a_graver_fault_that_joins_begins_the_higher_rung_at_its_first_step(phase: Phase) -> None:
    found = with_status(under_way(DEAD), phase=phase, reason="Restarted")
    status = status_of(about(ward(found, DEAD, RESET)))
    assert (status.phase, status.reason, status.rung) == (Phase.FENCED, "PlanRaised", "ResetDevice")
    assert run_of(about(ward(replace(found, status=status), DEAD, RESET))).step is StepName.DRAIN


def test_a_drain_that_is_under_way_goes_on_as_that_of_the_higher_rung() -> None:
    action = run_of(about(ward(under_way(RESET), RESET, REBOOT)))
    assert (action.step, action.status.rung, action.status.phase) == (
        StepName.DRAIN,
        "RebootNode",
        Phase.DRAINING,
    )
    assert isinstance(action.order, DrainOrder) and action.order.next_is_reboot


def test_new_hardware_is_a_persons_affair_when_the_node_is_drained() -> None:
    drained = with_status(under_way(REPLACE), phase=Phase.REPAIRING, reason="Drained")
    held = status_of(about(ward(drained, REPLACE)))
    assert (held.phase, held.reason) == (Phase.HELD, "ReplaceHardware")


@pytest.mark.parametrize("step", ["LiftTaint", "Weld"])
def test_what_follows_a_drain_that_this_version_cannot_do_is_a_persons(step: str) -> None:
    drained = with_status(under_way(), phase=Phase.REPAIRING, reason="Drained")
    rung = replace(drained.current.plan[0], steps=("Cordon", "Drain", step, "Reboot", "Verify"))
    held = status_of(about(ward(with_status(drained, plan=(rung,)), REBOOT)))
    assert (held.phase, held.reason) == (Phase.HELD, "NoRepairStep")
    assert step in held.message


def test_a_plan_without_steps_is_held() -> None:
    found = with_status(fenced(), plan=(Rung(rung="RebootNode", steps=("Cordon",)),))
    assert status_of(about(ward(found, REBOOT))).reason == "NoPlan"


# After the restart of a plugin.


def restarted(**memory: Any) -> AcceleratorRemediation:
    done = PluginRestart(started=NOON, done_time=NOON, attempts=1)
    return with_status(
        under_way(DEAD), phase=Phase.REPAIRING, reason="Restarted", restart=replace(done, **memory)
    )


def test_a_restart_has_two_minutes_to_prove_that_it_helped() -> None:
    waits = about(ward(restarted(), DEAD), wall=later(119))
    assert (waits.action, waits.again) == (None, 1.0)
    held = status_of(about(ward(restarted(), DEAD), wall=later(120)))
    assert (held.phase, held.reason) == (Phase.HELD, "NotHealed")


def test_silence_after_a_restart_is_no_proof() -> None:
    held = status_of(about(ward(restarted(), DEAD), wall=later(120), monotonic=NOW.monotonic + 100))
    assert (held.reason, "no fresh report" in held.message) == ("NotHealed", True)


def test_a_plugin_that_fails_again_after_its_restart_is_held_and_not_restarted_for_ever() -> None:
    returned = with_status(restarted(), phase=Phase.FENCED, reason="FaultReturned")
    assert status_of(about(ward(returned, DEAD))).reason == "NotHealed"


def test_a_person_who_lets_it_go_on_gives_it_another_restart() -> None:
    held = with_status(restarted(), phase=Phase.HELD, reason="HeldByUser")
    resumed = status_of(about(ward(held, DEAD)))
    action = run_of(about(ward(replace(held, status=resumed), DEAD)))
    assert action.step is StepName.RESTART_PLUGIN and action.status.restart == PluginRestart(started=NOON)


# Proof, dwell and clean-up.


def healed(**changes: Any) -> AcceleratorRemediation:
    """The plugin's fault is gone, and the short dwell is over."""
    found = with_status(restarted(), phase=Phase.VERIFYING, reason="FaultsCleared", healthy_since=later(-15))
    incidents = tuple(replace(item, cleared_time=later(-15)) for item in found.current.incidents)
    return with_status(found, incidents=incidents, **changes)


def serving(found: AcceleratorRemediation, allocatable: str = "2", **given: Any) -> Fleet:
    own = node(cordoned=True, owner=found.metadata.name, **given)
    own = replace(own, status=replace(own.status, allocatable={"nvidia.com/gpu": allocatable}))
    live = (Source("nvml", SourceState.LIVE),)
    return fleet(own, report("n1", sources=live), found)


def test_a_plugin_that_serves_again_is_proven_in_the_short_dwell_and_cleaned_up_after() -> None:
    action = run_of(about(serving(healed())))
    assert (action.step, action.then) == (StepName.REMOVE_FAILED_PODS, Phase.VERIFYING)
    assert action.order == CleanOrder(later(-120))
    early = about(serving(healed(healthy_since=later(-4))))
    assert early.action is None and 5 < (early.again or 0) <= 6
    hardware = fault("EngineHung", advice="ResetDevice", clears_on="DeviceReset")
    mixed = healed()
    more = (
        *mixed.current.incidents,
        replace(session(hardware).current.incidents[0], cleared_time=later(-15)),
    )
    assert about(serving(with_status(mixed, incidents=more))).action is None


def test_then_the_node_is_given_back() -> None:
    found = healed(restart=PluginRestart(started=NOON, done_time=NOON, cleaned=True))
    assert run_of(about(serving(found))).step is StepName.UNCORDON


@pytest.mark.parametrize("why", ["paused", "observed", "fails"])
def test_a_clean_up_that_may_not_or_cannot_be_done_does_not_keep_the_node(why: str) -> None:
    found = healed()
    if why == "fails":
        status = found.current
        for _ in range(3):
            status = with_outcome(
                status, step="RemoveFailedPods", attempt=1, epoch=7, now=NOON, result="Failed", message="403"
            )
        found = replace(found, status=status)
    made = serving(found)
    if why == "paused":
        made.put_control(control(paused=True, version=5))
    under = policy(Mode.OBSERVE if why == "observed" else Mode.AUTO)
    assert run_of(about(made, under=under)).step is StepName.UNCORDON


@pytest.mark.parametrize(("allocatable", "proven"), [("2", True), ("3", True), ("1", False), ("0", False)])
def test_a_plugin_is_proven_when_the_node_lists_all_healthy_devices(allocatable: str, proven: bool) -> None:
    decision = about(serving(healed(), allocatable))
    assert isinstance(decision.action, Run) is proven
    if not proven:
        assert f"the node lists {allocatable} of nvidia.com/gpu, and 2 devices" in decision.sentence


def test_a_device_that_is_not_healthy_need_not_be_listed() -> None:
    made = serving(healed(), "1")
    view = made.reports["n1"]
    bad = Device(uuid=GPU, index=0, health=DeviceHealth.DEGRADED)
    status = replace(view.report.status, devices=(bad, view.report.status.devices[1]))
    made.put_report(replace(view.report, status=status), NOW.monotonic)
    assert isinstance(about(made).action, Run)


def test_a_node_that_is_not_proven_healthy_in_time_is_held_and_recovers_by_itself() -> None:
    found = with_status(healed(), phase=Phase.REPAIRING, reason="Restarted", healthy_since=None)
    assert about(serving(found, "0"), wall=later(104)).action is None
    held = status_of(about(serving(found, "0"), wall=later(105)))
    assert (held.phase, held.reason) == (Phase.HELD, "NotProvenHealthy")
    recovered = status_of(about(serving(replace(found, status=held), "2"), wall=later(200)))
    assert recovered.phase is Phase.VERIFYING


# A device alone is fenced.

BY_DEVICE = policy(Mode.AUTO, Rule(name="all", mode=Mode.AUTO, fence=Fence.DEVICE))


def test_a_session_that_fences_a_device_leaves_the_node_open_again_after_a_hold_or_a_relapse() -> None:
    for reason in ("Resumed", "FaultReturned"):
        found = session(RESET, phase=Phase.PENDING, reason=reason)
        held = status_of(about(fleet(node(), report("n1", RESET), found), under=BY_DEVICE))
        assert (held.phase, held.reason) == (Phase.HELD, "DeviceFenced")


def test_a_bad_device_that_is_offered_is_fenced_by_its_node() -> None:
    offered = fault("DeviceOfferedThoughBad", advice="None", clears_on="Dwell")
    found = session(RESET, phase=Phase.HELD, reason="DeviceFenced", fenced=False)
    made = fleet(node(), report("n1", RESET, offered), found)
    status = status_of(about(made, under=BY_DEVICE))
    assert (status.phase, status.reason) == (Phase.PENDING, "Fencing")
    made.put_session(replace(found, status=status))
    assert run_of(about(made, under=BY_DEVICE)).step is StepName.CORDON
