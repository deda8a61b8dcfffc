"""The rungs that repair: which step follows which, what gives way to the next rung, and what is given back when."""

import dataclasses
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from health.receipt import Receipt
from health.report import Device, Plugin, PluginResource, Source
from health.vocabulary import Advice, DeviceHealth, Mode, Phase, Scope, SourceState
from remediation.decide import decide
from remediation.fleet import Fleet
from remediation.journal import with_incidents, with_intent
from remediation.objects import (
    AcceleratorRemediation,
    Approval,
    Hold,
    NodeAction,
    NodeSwitch,
    RemediationStatus,
)
from remediation.objects import Decision as Verdict
from remediation.orders import JobOrder, Proof, ReleaseOrder, RestartOrder, RestoreOrder
from remediation.plugin_state import PluginRestart
from remediation.policy import Policy, Rule, StepName, plan_for
from remediation.repair_policy import Baseline, RepairPolicy, Repeats, VerificationPolicy
from remediation.repair_state import FAILURES_LIMIT, Attempts, Operand, RepairState, job_name
from remediation.repairs import DONE
from remediation.situation import Decision, Run, Write
from remediation.steps.release import PAUSED
from runtime.quantities import Duration
from tests.unit.builders import (
    GPU,
    NOON,
    NOW,
    OTHER_GPU,
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
RESET = fault("EngineHung", advice="ResetDevice", clears_on="DeviceReset", code="xid:62")
SERVICE = fault(
    "PluginWedged", device="", advice="RestartService", clears_on="Dwell", code="plugin:nvidia.com/gpu"
)
FABRIC = replace(SERVICE, kind="FabricFault", scope=Scope.FABRIC)
PLUGIN_LABEL = "nvidia.com/gpu.deploy.device-plugin"
LENT = {"operands": (Operand(PLUGIN_LABEL, "true"),), "release_until": later(600)}


def with_status(found: AcceleratorRemediation, **changes: Any) -> AcceleratorRemediation:
    return replace(found, status=replace(found.current, **changes))


def at_step(
    about: Any,
    reason: str,
    *,
    step: str = "",
    phase: Phase = Phase.REPAIRING,
    rung: str = "",
    most: int = 1,
    given: dict[str, Any] | None = None,
    **repair: Any,
) -> AcceleratorRemediation:
    """A session about this fault in a phase, with the memory of its repairs, and an intent for `step`."""
    made = session(about, phase=phase, reason=reason, **(given or {}))
    plan = tuple(replace(one, max_attempts=most) for one in made.current.plan)
    status = replace(made.current, plan=plan, rung=rung or made.current.rung)
    if step:
        status = with_intent(status, step=step, attempt=1, epoch=7, now=NOON, message="begins")
    memory = RepairState(**{"started": NOON, "boot_id": "boot-1", "devices": (GPU,), **repair})
    return replace(made, status=replace(status, repair=memory))


def in_job(about: Any, step: StepName, **repair: Any) -> AcceleratorRemediation:
    """Its Job was created at noon."""
    fields = {"job": "reset-1-0123456789", "attempt": 1, "created": NOON, **repair}
    return at_step(about, step.value, step=step.value, **fields)


def ward(
    found: AcceleratorRemediation, *faults: Any, labels: dict[str, str] | None = None, **given: Any
) -> Fleet:
    own = node(cordoned=True, owner=found.metadata.name, labels=labels, **given)
    boot = given.get("boot", "boot-1")
    return fleet(own, report("n1", *faults, boot=boot, sources=(Source("nvml", SourceState.LIVE),)), found)


def about(made: Fleet, **given: Any) -> Decision:
    return decide(situation(made, **given))


def run_of(decision: Decision) -> Run:
    assert isinstance(decision.action, Run), decision
    return decision.action


def status_of(decision: Decision) -> RemediationStatus:
    assert isinstance(decision.action, Write), decision
    return decision.action.status


def memory_of(status: RemediationStatus) -> RepairState:
    assert status.repair is not None
    return status.repair


def job_order_of(decision: Decision) -> JobOrder:
    order = run_of(decision).order
    assert isinstance(order, JobOrder), order
    return order


def repairing(**repair: Any) -> Policy:
    """A policy that says something about repairs."""
    made = policy(Mode.AUTO)
    verification = repair.pop("verification", VerificationPolicy())
    return replace(made, repair=RepairPolicy(**repair), verification=verification)


# Each rung, step by step.


@pytest.mark.parametrize(
    ("what", "steps"),
    [
        (RESET, ["Drain", "ReleaseDevices", "Reset", "RestartPlugin"]),
        (REBOOT, ["Drain", "Reboot"]),
        (SERVICE, ["RestartService"]),
    ],
    ids=["reset", "reboot", "service"],
)
def test_the_steps_of_a_rung_follow_each_other_and_then_the_proof_is_waited_for(
    what: Any, steps: list[str]
) -> None:
    found = session(what, phase=Phase.FENCED, reason="Fenced")
    seen = []
    for _ in steps:
        action = run_of(about(ward(found, what)))
        assert (action.status.phase, action.status.reason) == (
            Phase.DRAINING if action.step is StepName.DRAIN else Phase.REPAIRING,
            action.step,
        )
        assert action.status.journal[-1].step == action.step, "written before it is taken"
        assert action.then is Phase.REPAIRING
        seen.append(action.step.value)
        done = replace(
            action.status,
            phase=action.then,
            reason=action.reason,
            repair=memory_of(action.status).carried_out(action.step, NOON) if action.status.repair else None,
        )
        found = replace(found, status=done)
    assert seen == steps
    waits = about(ward(found, what))
    assert waits.action is None and "proof" in waits.sentence


def test_a_policy_may_plan_a_diagnosis_as_a_rung() -> None:
    rule = Rule(name="r", mode=Mode.AUTO, plan=(Advice.RUN_DIAGNOSTICS,))
    found = at_step(RESET, "Drained")
    found = with_status(found, plan=plan_for(rule, "ResetDevice"), rung="RunDiagnostics")
    order = job_order_of(about(ward(found, RESET), under=repairing(diagnostics="dcgmi-diag")))
    assert (order.template, order.proof, order.deadline) == ("dcgmi-diag", Proof.RESULT, timedelta(hours=1))


@pytest.mark.parametrize(
    ("what", "before", "template", "proof", "minutes", "service"),
    [
        (RESET, "DevicesReleased", "reset", Proof.RECEIPT, 10, ""),
        (REBOOT, "Drained", "reboot", Proof.BOOT, 30, ""),
    ],
)
def test_a_job_is_named_before_it_is_created_for_this_boot_and_these_devices(
    what: Any, before: str, template: str, proof: Proof, minutes: int, service: str
) -> None:
    found = at_step(what, before, boot_id="an earlier one", devices=())
    action = run_of(about(ward(found, what), wall=later(5)))
    memory = memory_of(action.status)
    rung = found.current.rung
    assert memory.job == job_name(
        template, session=found.metadata.name, rung=rung, step=action.step, attempt=1
    )
    assert (memory.attempt, memory.created, memory.boot_id, memory.devices, memory.started) == (
        1,
        None,
        "boot-1",
        (GPU,),
        later(5),
    )
    order = action.order
    assert isinstance(order, JobOrder)
    assert (order.template, order.proof, order.deadline, order.rung, order.service) == (
        template,
        proof,
        timedelta(minutes=minutes),
        rung,
        service,
    )
    assert order.evident


def test_a_wedged_plugin_wants_a_new_kubelet_and_a_fabric_its_manager() -> None:
    for what, service in ((SERVICE, "kubelet"), (FABRIC, "fabric-manager")):
        found = session(what, phase=Phase.FENCED, reason="Fenced")
        assert job_order_of(about(ward(found, what))).service == service
    both = session(FABRIC, SERVICE, phase=Phase.FENCED, reason="Fenced")
    assert job_order_of(about(ward(both, FABRIC, SERVICE))).service == "kubelet"


def test_a_release_is_asked_for_as_long_as_it_and_the_reset_may_take() -> None:
    order = run_of(about(ward(at_step(RESET, "Drained"), RESET))).order
    assert isinstance(order, ReleaseOrder)
    assert (order.deadline, order.until) == (timedelta(minutes=5), later(16 * 60))
    assert PLUGIN_LABEL in order.operands


def test_a_second_pass_of_a_job_writes_nothing_of_its_own_and_keeps_its_name() -> None:
    found = in_job(RESET, StepName.RESET)
    action = run_of(about(ward(found, RESET)))
    assert action.status == found.current and memory_of(action.status).job == "reset-1-0123456789"


def test_another_controller_goes_on_with_the_job_that_is_under_way() -> None:
    action = run_of(about(ward(in_job(RESET, StepName.RESET), RESET), epoch=8))
    assert action.status.attempt == 2, "the journal's, for another epoch"
    assert (memory_of(action.status).job, memory_of(action.status).attempt) == ("reset-1-0123456789", 1)


# After a reset, and while a Job is under way.


def test_after_a_reset_the_plugin_is_restarted_although_the_fault_is_gone() -> None:
    found = at_step(RESET, "DevicesReset", done=("Reset",), done_time=NOON)
    action = run_of(about(ward(found)))
    assert action.step is StepName.RESTART_PLUGIN
    assert isinstance(action.order, RestartOrder) and action.order.after == NOON
    begun = replace(found, status=action.status)
    again = run_of(about(ward(begun)))
    assert again.step is StepName.RESTART_PLUGIN and again.status.restart == action.status.restart


@pytest.mark.parametrize("step", [StepName.RESET, StepName.REBOOT])
def test_a_job_that_exists_is_seen_to_its_end_although_the_faults_are_gone(step: StepName) -> None:
    what = RESET if step is StepName.RESET else REBOOT
    found = in_job(what, step)
    # The controller learns of the boot from the report before it has looked at the node for the Job.
    made = ward(found, boot="boot-1" if step is StepName.RESET else "boot-2")
    assert run_of(about(made)).step is step


def test_a_job_that_was_only_named_is_not_created_when_the_faults_are_gone() -> None:
    status = status_of(about(ward(in_job(RESET, StepName.RESET, created=None))))
    assert status.phase is Phase.VERIFYING


def test_a_silent_agent_does_not_end_the_wait_for_a_job() -> None:
    found = in_job(RESET, StepName.RESET)
    assert run_of(about(ward(found, RESET), monotonic=NOW.monotonic + 100)).step is StepName.RESET


def test_without_evidence_no_job_is_begun() -> None:
    decision = about(ward(at_step(REBOOT, "Drained"), boot="boot-2"), monotonic=NOW.monotonic + 100)
    assert decision.action is None and "no fresh report" in decision.sentence


@pytest.mark.parametrize("reason", ["ReleaseDevices", "DevicesReleased", "Reset"])
def test_without_evidence_nothing_stays_lent_for_longer_than_a_release_may_take(reason: str) -> None:
    silent = NOW.monotonic + 100
    found = at_step(RESET, reason, **LENT)
    early = about(ward(found, RESET), monotonic=silent, wall=later(299))
    assert early.action is None and "no fresh report" in early.sentence
    status = status_of(about(ward(found, RESET), monotonic=silent, wall=later(300)))
    assert (status.phase, status.reason) == (Phase.FENCED, "Waiting")
    assert "no fresh report" in status.message
    assert (
        run_of(about(ward(replace(found, status=status), RESET), monotonic=silent)).step is StepName.RESTORE
    )


# Up the ladder.


def failed(reason: str = "RepairFailed", **given: Any) -> AcceleratorRemediation:
    """Its reset was given up."""
    fields: dict[str, Any] = {
        "job": "reset-1-0123456789",
        "attempt": 1,
        "created": NOON,
        "attempts": (Attempts("ResetDevice", 1),),
        "failed": reason,
        "failure": "GPU-aaaaaaaa: it broke",
        **given,
    }
    return at_step(RESET, reason, phase=Phase.FENCED, step="Reset", **fields)


@pytest.mark.parametrize(
    "reason", ["RepairFailed", "DeviceHeld", "RepairNotSeen", "NoRepairStep", "DevicesNotReleased"]
)
def test_a_reset_that_fails_in_any_way_gives_way_to_the_reboot(reason: str) -> None:
    status = status_of(about(ward(failed(reason), RESET)))
    assert (status.phase, status.reason, status.rung) == (Phase.FENCED, "Escalated", "RebootNode")
    assert "ResetDevice: GPU-aaaaaaaa: it broke; next comes RebootNode" in status.message
    memory = memory_of(status)
    assert (memory.failed, memory.failure) == ("", "")
    assert memory.failures == ("ResetDevice: GPU-aaaaaaaa: it broke",)
    found = replace(failed(), status=status)
    assert run_of(about(ward(found, RESET))).step is StepName.DRAIN


def test_the_next_rung_is_not_taken_where_people_or_the_policy_forbid_it() -> None:
    found = replace(failed(), status=status_of(about(ward(failed(), RESET))))
    made = ward(found, RESET)
    made.put_control(control(paused=True, version=5))
    decision = about(made)
    assert not isinstance(decision.action, Run) and "paused" in decision.sentence


def test_what_did_not_help_is_held_in_the_end_with_all_that_was_tried() -> None:
    found = at_step(
        RESET,
        "RepairNotSeen",
        phase=Phase.FENCED,
        rung="RebootNode",
        failed="RepairNotSeen",
        failure="nothing shows that it was carried out (ErrImagePull)",
        failures=("ResetDevice: held by 4711",),
    )
    status = status_of(about(ward(found, RESET)))
    assert (status.phase, status.reason) == (Phase.HELD, "RepairNotSeen")
    for part in (
        "ResetDevice: held by 4711",
        "RebootNode: nothing shows",
        "ErrImagePull",
        "EngineHung (xid:62)",
    ):
        assert part in status.message
    held = replace(found, status=status)
    for _ in range(3):
        assert about(ward(held, RESET)).action is None


def test_however_much_was_tried_the_message_ends_with_what_lasts() -> None:
    found = at_step(
        RESET,
        "RepairFailed",
        phase=Phase.FENCED,
        rung="RebootNode",
        failed="RepairFailed",
        failure="y" * 1024,
        failures=tuple(f"ResetDevice: {'x' * 1000}" for _ in range(FAILURES_LIMIT)),
    )
    status = status_of(about(ward(found, RESET)))
    assert len(status.message) <= 1024 and len(memory_of(status).failures) == FAILURES_LIMIT
    assert all(len(line) <= 1024 for line in memory_of(status).failures)
    assert "RebootNode: y" in status.message and "EngineHung (xid:62)" in status.message


def test_a_reset_that_is_done_and_did_not_help_gives_way_when_its_proof_is_overdue() -> None:
    found = at_step(RESET, "Restarted", done=("Reset",), done_time=NOON)
    found = with_status(found, restart=PluginRestart(started=NOON, done_time=later(5)))
    waits = about(ward(found, RESET), wall=later(604))
    assert (waits.action, waits.again) == (None, 1.0)
    status = status_of(about(ward(found, RESET), wall=later(605)))
    assert (status.rung, status.reason) == ("RebootNode", "Escalated")
    assert "did not end the faults" in status.message


def test_a_reboot_that_did_not_help_is_held() -> None:
    found = at_step(REBOOT, "Rebooted", done=("Reboot",), done_time=NOON)
    again = fault(seen=later(30))
    made = ward(found, again, boot="boot-2")
    assert not isinstance(about(made, wall=later(599)).action, Run)
    status = status_of(about(made, wall=later(600)))
    assert (status.phase, status.reason) == (Phase.HELD, "NotHealed")


def test_how_long_the_proof_may_take_is_the_policys() -> None:
    found = at_step(REBOOT, "Rebooted", done=("Reboot",), done_time=NOON)
    under = repairing(proof=Duration.parse("1m"))
    assert status_of(about(ward(found, REBOOT), wall=later(60), under=under)).reason == "NotHealed"


def test_a_plugin_that_does_not_take_the_device_back_leads_to_the_reboot() -> None:
    found = at_step(
        RESET,
        "PluginNotRestarted",
        phase=Phase.FENCED,
        failed="PluginNotRestarted",
        failure="no",
        done=("Reset",),
    )
    assert status_of(about(ward(found, RESET))).rung == "RebootNode"


# Several attempts of one rung.


def test_a_rung_that_may_be_tried_again_is_after_a_pause_that_doubles() -> None:
    for tried, pause in ((1, 120), (2, 240), (3, 480)):
        found = failed(attempts=(Attempts("ResetDevice", tried),))
        plan = tuple(replace(one, max_attempts=4) for one in found.current.plan)
        status = status_of(about(ward(with_status(found, plan=plan), RESET)))
        assert (status.rung, status.reason) == ("ResetDevice", "Escalated")
        found = replace(found, status=status)
        early = about(ward(found, RESET), wall=later(pause - 1))
        assert (early.action, early.again) == (None, 1.0)
        assert run_of(about(ward(found, RESET), wall=later(pause))).step is StepName.DRAIN


def test_the_pause_begins_when_an_attempt_is_given_up_however_long_that_took() -> None:
    found = failed(attempts=(Attempts("ResetDevice", 1),))
    plan = tuple(replace(one, max_attempts=2) for one in found.current.plan)
    status = status_of(about(ward(with_status(found, plan=plan), RESET), wall=later(600)))
    found = replace(found, status=status)
    early = about(ward(found, RESET), wall=later(719))
    assert (early.action, early.again) == (None, 1.0)
    assert run_of(about(ward(found, RESET), wall=later(720))).step is StepName.DRAIN


def test_another_attempt_is_another_job() -> None:
    found = failed(failed="", failure="")
    found = with_status(found, phase=Phase.REPAIRING, reason="DevicesReleased")
    plan = tuple(replace(one, max_attempts=2) for one in found.current.plan)
    action = run_of(about(ward(with_status(found, plan=plan), RESET)))
    memory = memory_of(action.status)
    assert memory.attempt == 2 and memory.created is None
    assert memory.job == job_name(
        "reset", session=found.metadata.name, rung="ResetDevice", step="Reset", attempt=2
    )


def test_a_job_that_may_have_been_created_without_our_knowing_is_asked_for_by_the_same_name() -> None:
    found = failed(created=None, attempts=(), failed="", failure="")
    found = with_status(found, phase=Phase.REPAIRING, reason="DevicesReleased")
    assert memory_of(run_of(about(ward(found, RESET))).status).attempt == 1


def test_a_rung_is_not_tried_oftener_than_the_plan_says() -> None:
    found = failed(failed="", failure="")
    found = with_status(found, phase=Phase.REPAIRING, reason="DevicesReleased")
    status = status_of(about(ward(found, RESET)))
    assert (status.rung, status.reason) == ("RebootNode", "Escalated")
    assert "1 of 1 times" in status.message


def test_the_policys_attempts_are_in_the_plan_of_a_new_session() -> None:
    decision = about(fleet(node(), report("n1", RESET)), under=repairing(max_attempts=3))
    assert {rung.max_attempts for rung in decision.action.status.plan} == {3}  # type: ignore[union-attr]


def test_a_template_that_is_missing_is_not_tried_again_but_the_next_rung_is() -> None:
    found = failed("NoRepairStep", created=None, attempts=(Attempts("ResetDevice", 1),))
    plan = tuple(replace(one, max_attempts=5) for one in found.current.plan)
    assert status_of(about(ward(with_status(found, plan=plan), RESET))).rung == "RebootNode"


# Repeat offenders.


def earlier(
    number: int,
    *,
    step: str = "Reset",
    serial: str = "S1",
    ago: float = 3600,
    node_name: str = "n9",
    what: Any = RESET,
) -> AcceleratorRemediation:
    """A closed session elsewhere that carried this repair out."""
    made = session(what, name=f"earlier-{number}", node_name=node_name, phase=Phase.RELEASED)
    incidents = tuple(replace(one, device_serial=serial) for one in made.current.incidents)
    memory = RepairState(started=NOON, done=(step,), done_time=later(-ago))
    return with_status(made, incidents=incidents, repair=memory)


def repeated(*others: AcceleratorRemediation, what: Any = RESET, **given: Any) -> Decision:
    before = "DevicesReleased" if what is RESET else "Drained"
    made = ward(at_step(what, before), what)
    for other in others:
        made.put_session(other)
    return about(made, **given)


def test_a_device_that_has_had_the_repair_too_often_goes_on_to_the_next_rung_wherever_it_was() -> None:
    assert run_of(repeated(earlier(1))).step is StepName.RESET
    status = status_of(repeated(earlier(1), earlier(2, node_name="n8")))
    assert (status.rung, status.reason) == ("RebootNode", "Escalated")
    assert "S1 has had it 2 times within 1d" in status.message


@pytest.mark.parametrize(
    "other",
    [{"serial": "S7"}, {"step": "Reboot"}, {"ago": 25 * 3600}, {"serial": ""}],
    ids=["another device", "another repair", "long ago", "nobody knows which"],
)
def test_what_was_done_to_others_or_long_ago_does_not_count(other: dict[str, Any]) -> None:
    assert run_of(repeated(*(earlier(number, **other) for number in range(9)))).step is StepName.RESET


def test_a_reboot_that_was_tried_too_often_is_held() -> None:
    status = status_of(
        repeated(*(earlier(number, step="Reboot", what=REBOOT) for number in (1, 2)), what=REBOOT)
    )
    assert (status.phase, status.reason) == (Phase.HELD, "NotHealed")
    assert "S1 has had it 2 times" in status.message


def test_a_node_whose_fault_is_of_no_device_is_not_rebooted_for_ever_either() -> None:
    driver = fault("DriverHung", device="", advice="RebootNode", code="driver")
    found = at_step(driver, "Drained", devices=())
    made = ward(found, driver)
    for number in (1, 2):
        made.put_session(earlier(number, step="Reboot", serial="", node_name="n1", what=driver))
    status = status_of(about(made))
    assert (status.phase, status.reason) == (Phase.HELD, "NotHealed")
    elsewhere = ward(found, driver)
    for number in (1, 2):
        elsewhere.put_session(earlier(number, step="Reboot", serial="", node_name="n9", what=driver))
    assert run_of(about(elsewhere)).step is StepName.REBOOT


def test_the_limit_and_the_time_are_the_policys() -> None:
    under = repairing(repeats=Repeats(limit=1, within=Duration.parse("30m")))
    assert isinstance(repeated(earlier(1), under=under).action, Run)
    assert status_of(repeated(earlier(1, ago=60), under=under)).rung == "RebootNode"


# People.


def held(found: AcceleratorRemediation) -> AcceleratorRemediation:
    return replace(found, spec=replace(found.spec, hold=Hold(user="bob", reason="let me look")))


def test_a_hold_between_drain_and_reset_gives_everything_back_and_its_end_begins_anew() -> None:
    found = in_job(RESET, StepName.RESET, attempts=(Attempts("ResetDevice", 1),), **LENT)
    labels = {PLUGIN_LABEL: PAUSED}
    status = status_of(about(ward(held(found), RESET, labels=labels)))
    assert (status.phase, status.reason) == (Phase.HELD, "HeldByUser")
    stopped = replace(held(found), status=status)
    restore = run_of(about(ward(stopped, RESET, labels=labels)))
    assert (restore.step, restore.then, restore.reason) == (StepName.RESTORE, Phase.HELD, "HeldByUser")
    returned = replace(memory_of(restore.status), operands=(), release_until=None)
    status = replace(restore.status, repair=returned)
    resumed = status_of(about(ward(replace(found, status=status), RESET)))
    assert (resumed.phase, resumed.reason) == (Phase.FENCED, "Resumed")
    memory = memory_of(resumed)
    assert (memory.attempts, memory.job, memory.created, memory.attempt) == ((), "", None, 2)
    assert run_of(about(ward(replace(found, status=resumed), RESET))).step is StepName.DRAIN
    released = replace(resumed, phase=Phase.REPAIRING, reason="DevicesReleased")
    begun = run_of(about(ward(replace(found, status=released), RESET)))
    assert memory_of(begun.status).attempt == 2
    assert memory_of(begun.status).job not in ("", found.current.repair.job)  # type: ignore[union-attr]


def test_an_outcome_that_comes_while_a_person_holds_starts_nothing() -> None:
    made = ward(held(at_step(RESET, "DevicesReset", done=("Reset",), done_time=NOON)))
    assert status_of(about(made)).reason == "HeldByUser"


@pytest.mark.parametrize("how", ["opt-out", "denied"])
def test_whoever_says_no_stops_even_a_job_that_exists(how: str) -> None:
    no = Approval(decision=Verdict.DENIED, user="bob")
    found = in_job(RESET, StepName.RESET)
    if how == "denied":
        found = replace(found, spec=replace(found.spec, approval=no))
    made = ward(found, RESET)
    if how == "opt-out":
        made.put_control(control(NodeSwitch("n1", NodeAction.OPT_OUT, "bob"), version=5))
    assert status_of(about(made)).phase is Phase.HELD


# What was lent is given back.


@pytest.mark.parametrize("reason", ["ReleaseDevices", "DevicesReleased", "Reset"])
def test_nothing_is_given_back_while_the_reset_is_under_way(reason: str) -> None:
    step = reason if reason in ("ReleaseDevices", "Reset") else "ReleaseDevices"
    found = at_step(RESET, reason, step=step, **LENT)
    assert run_of(about(ward(found, RESET, labels={PLUGIN_LABEL: PAUSED}))).step is not StepName.RESTORE


@pytest.mark.parametrize(
    ("phase", "reason"),
    [
        (Phase.REPAIRING, "DevicesReset"),
        (Phase.REPAIRING, "RestartPlugin"),
        (Phase.FENCED, "RepairFailed"),
        (Phase.FENCED, "Waiting"),
        (Phase.FENCED, "PlanRaised"),
        (Phase.HELD, "HeldByUser"),
        (Phase.HELD, "NotHealed"),
        (Phase.VERIFYING, "FaultsCleared"),
        (Phase.DRAINING, "Drain"),
    ],
)
@pytest.mark.parametrize("remembered", [True, False], ids=["by the session", "by the labels alone"])
def test_in_every_other_phase_what_was_lent_is_given_back_first(
    phase: Phase, reason: str, remembered: bool
) -> None:
    found = at_step(RESET, reason, phase=phase, **(LENT if remembered else {}))
    action = run_of(about(ward(found, RESET, labels={PLUGIN_LABEL: PAUSED})))
    assert (action.step, action.then, action.reason) == (StepName.RESTORE, phase, reason)
    assert isinstance(action.order, RestoreOrder)
    assert memory_of(action.status).operands == (Operand(PLUGIN_LABEL, "true"),)


def test_a_release_without_operands_is_taken_back_too() -> None:
    found = at_step(RESET, "NotHealed", phase=Phase.HELD, release_until=later(600))
    assert run_of(about(ward(found, RESET))).step is StepName.RESTORE


def test_a_pause_and_a_hold_do_not_keep_us_from_giving_back() -> None:
    found = held(at_step(RESET, "HeldByUser", phase=Phase.HELD, **LENT))
    made = ward(found, RESET, labels={PLUGIN_LABEL: PAUSED})
    made.put_control(control(paused=True, version=5))
    assert run_of(about(made, under=policy(Mode.OBSERVE))).step is StepName.RESTORE


@pytest.mark.parametrize("how", ["pause", "upgrade", "policy"])
def test_what_forbids_the_reset_sends_it_back_and_then_gives_back(how: str) -> None:
    found = at_step(RESET, "ReleaseDevices", step="ReleaseDevices", **LENT)
    labels = {PLUGIN_LABEL: PAUSED}
    if how == "upgrade":
        labels["nvidia.com/gpu-driver-upgrade-state"] = "drain-required"
    made = ward(found, RESET, labels=labels)
    if how == "pause":
        made.put_control(control(paused=True, version=5))
    under = policy(Mode.OBSERVE if how == "policy" else Mode.AUTO)
    status = status_of(about(made, under=under))
    assert (status.phase, status.reason) == (Phase.FENCED, "Waiting")
    made.put_session(replace(found, status=status))
    assert run_of(about(made, under=under)).step is StepName.RESTORE


def test_a_graver_fault_sends_a_release_back_and_gives_back() -> None:
    found = at_step(RESET, "ReleaseDevices", step="ReleaseDevices", **LENT)
    status = status_of(about(ward(found, RESET, REBOOT, labels={PLUGIN_LABEL: PAUSED})))
    assert (status.phase, status.reason, status.rung) == (Phase.FENCED, "PlanRaised", "RebootNode")
    made = ward(replace(found, status=status), RESET, REBOOT, labels={PLUGIN_LABEL: PAUSED})
    assert run_of(about(made)).step is StepName.RESTORE


@pytest.mark.parametrize("reason", ["ReleaseDevices", "DevicesReleased"])
def test_when_the_fault_goes_by_itself_what_was_lent_is_given_back_though_nothing_is_proven_yet(
    reason: str,
) -> None:
    found = at_step(RESET, reason, step="ReleaseDevices", **LENT)
    gone = tuple(replace(one, cleared_time=NOON) for one in found.current.incidents)
    made = ward(with_status(found, incidents=gone), labels={PLUGIN_LABEL: PAUSED})
    view = made.reports["n1"]
    released = (Source("nvml", SourceState.RELEASED),)
    made.put_report(replace(view.report, status=replace(view.report.status, sources=released)), NOW.monotonic)
    action = run_of(about(made))
    assert (action.step, action.then) == (StepName.RESTORE, Phase.FENCED)


def test_an_uncordon_by_a_person_gives_back_before_the_session_ends() -> None:
    found = at_step(RESET, "Reset", step="Reset", **LENT)
    own = node(owner=found.metadata.name, labels={PLUGIN_LABEL: PAUSED})
    action = run_of(about(fleet(own, report("n1", RESET), found)))
    assert (action.step, action.then, action.reason) == (StepName.RESTORE, Phase.FENCED, "Interrupted")
    returned = replace(memory_of(action.status), operands=(), release_until=None)
    after = replace(action.status, phase=action.then, reason=action.reason, repair=returned)
    ended = run_of(
        about(fleet(node(owner=found.metadata.name), report("n1", RESET), replace(found, status=after)))
    )
    assert (ended.step, ended.then, ended.reason) == (StepName.UNCORDON, Phase.CANCELLED, "UncordonedByUser")


def test_giving_back_waits_until_it_is_due_and_does_not_spin() -> None:
    found = at_step(RESET, "NotHealed", phase=Phase.HELD, **LENT)
    at = dataclasses.replace(situation(ward(found, RESET)), resume_at=NOW.monotonic + 3)
    assert (decide(at).action, decide(at).again) == (None, 3.0)


def test_a_session_that_is_made_again_for_a_cordon_gives_back_what_the_labels_show() -> None:
    found = session(phase=Phase.PENDING, reason="MadeAgain", fenced=False, status=RemediationStatus())
    made = fleet(
        node(cordoned=True, owner=found.metadata.name, labels={PLUGIN_LABEL: PAUSED}), report("n1"), found
    )
    assert run_of(about(made)).step is StepName.RESTORE


# Proof.


def healed(what: Any = RESET, **given: Any) -> AcceleratorRemediation:
    """Its faults are gone, and the whole dwell is over."""
    repair = {"done": ("Reset",), "done_time": later(-400), **given.pop("repair", {})}
    found = at_step(what, "FaultsCleared", phase=Phase.VERIFYING, **repair)
    gone = tuple(replace(one, cleared_time=later(-390)) for one in found.current.incidents)
    return with_status(found, **{"incidents": gone, "healthy_since": later(-310), "device_count": 2, **given})


def proven_by(
    found: AcceleratorRemediation, *, allocatable: str = "2", boot: str = "boot-1", **status: Any
) -> Fleet:
    made = ward(found, boot=boot)
    own = made.nodes["n1"]
    made.put_node(
        replace(
            own,
            metadata=replace(own.metadata, resource_version="2"),
            status=replace(own.status, allocatable={"nvidia.com/gpu": allocatable}),
        )
    )
    view = made.reports["n1"]
    plugin = Plugin((PluginResource("nvidia.com/gpu", "Serving"),))
    changed = replace(view.report.status, **{"plugin": plugin, **status})
    made.reports["n1"] = dataclasses.replace(view, report=replace(view.report, status=changed))
    return made


def devices(*changes: dict[str, Any]) -> tuple[Device, ...]:
    """The two devices of the builders, changed."""
    whole = (
        {"uuid": GPU, "index": 0, "serial": "S1", "model": "NVIDIA H100 80GB HBM3"},
        {"uuid": OTHER_GPU, "index": 1, "serial": "S2", "model": "NVIDIA H100 80GB HBM3"},
    )
    changed = [
        {"health": DeviceHealth.HEALTHY, **one, **change} for one, change in zip(whole, changes, strict=True)
    ]
    return tuple(Device(**one) for one in changed)


def test_a_repaired_node_is_given_back_when_everything_is_there_again() -> None:
    action = run_of(about(proven_by(healed(), devices=devices({}, {}))))
    assert (action.step, action.then, action.reason) == (StepName.UNCORDON, Phase.RELEASED, "Healthy")


@pytest.mark.parametrize(
    ("why", "status"),
    [
        (
            "GPUResetRequired of device GPU-a",
            {"devices": devices({"recovery_action": "GPUResetRequired"}, {})},
        ),
        ("the node has 1 devices, and had 2", {"devices": devices({}, {})[:1]}),
        ("is Degraded", {"devices": devices({"health": DeviceHealth.DEGRADED}, {})}),
        ("source nvml is Released", {"sources": (Source("nvml", SourceState.RELEASED),)}),
        ("lists 1 of nvidia.com/gpu, and 2", {"allocatable": "1", "devices": devices({}, {})}),
        ("lists 0 of nvidia.com/gpu, and 2", {"allocatable": "0", "devices": devices({}, {})}),
    ],
)
def test_a_repaired_node_is_not_given_back_on_less(why: str, status: dict[str, Any]) -> None:
    decision = about(proven_by(healed(), **status))
    assert not isinstance(decision.action, Run), decision
    assert why in decision.sentence


def test_the_verdict_of_another_device_is_not_ours_to_wait_for() -> None:
    seen = devices({"recovery_action": "None"}, {"recovery_action": "GPUResetRequired"})
    assert run_of(about(proven_by(healed(), devices=seen))).step is StepName.UNCORDON


def test_without_a_repair_of_ours_the_node_need_not_list_every_device() -> None:
    found = healed(repair={"done": (), "done_time": None})
    assert run_of(about(proven_by(found, allocatable="0", devices=devices({}, {})))).step is StepName.UNCORDON


def test_the_most_devices_that_were_seen_are_remembered_and_partitions_are_none() -> None:
    found = session(RESET, phase=Phase.FENCED)
    assert found.current.device_count == 2
    fewer = report("n1", RESET)
    fewer = replace(fewer, status=replace(fewer.status, devices=fewer.status.devices[:1]))
    assert with_incidents(found.current, fewer, (), NOON).device_count == 2
    more = replace(
        fewer,
        status=replace(
            fewer.status, devices=(*report().status.devices, *devices({"uuid": "x"}, {"uuid": "y"}))
        ),
    )
    assert with_incidents(found.current, more, (), NOON).device_count == 4


REPLACE = fault("RemapFailed", advice="ReplaceHardware", clears_on="DriverVerdict", code="xid:64")


def test_new_hardware_in_the_place_of_the_old_closes_a_held_session_by_itself() -> None:
    waiting = at_step(REPLACE, "ReplaceHardware", phase=Phase.HELD)
    waiting = with_status(waiting, device_count=2, repair=None)
    new = devices({"uuid": "GPU-new", "serial": "S9"}, {})
    begins = status_of(about(proven_by(waiting, boot="boot-2", devices=new)))
    assert begins.phase is Phase.VERIFYING
    dwelt = replace(begins, healthy_since=later(-310))
    action = run_of(about(proven_by(replace(waiting, status=dwelt), boot="boot-2", devices=new)))
    assert (action.step, action.then, action.reason) == (StepName.UNCORDON, Phase.RELEASED, "DeviceReplaced")


@pytest.mark.parametrize(
    "seen",
    [devices({}, {})[1:], devices({"uuid": "GPU-new", "serial": "S1", "health": DeviceHealth.HEALTHY}, {})],
    ids=["taken out", "the same serial under another name"],
)
def test_a_device_that_is_only_gone_is_not_replaced(seen: tuple[Device, ...]) -> None:
    waiting = with_status(at_step(REPLACE, "ReplaceHardware", phase=Phase.HELD), device_count=2, repair=None)
    decision = about(proven_by(waiting, boot="boot-2", devices=seen))
    status = status_of(decision)
    assert status.phase is Phase.HELD and "not proven healthy" in decision.sentence


def test_another_node_under_the_name_closes_the_session() -> None:
    found = at_step(REPLACE, "ReplaceHardware", phase=Phase.HELD)
    status = status_of(about(fleet(node(uid="uid-new"), report("n1", uid="uid-new"), found)))
    assert (status.phase, status.reason) == (Phase.CANCELLED, "NodeReplaced")


# A Job that proves.

H100 = Baseline(model="h100", minimum={"busbw": 400.0})
A100 = Baseline(model="a100", minimum={"busbw": 200.0})
VERIFIED = repairing(verification=VerificationPolicy(template="nccl", baselines=(A100, H100)))


def test_a_verification_runs_once_after_the_dwell_against_the_baseline_of_the_model() -> None:
    made = proven_by(healed(), devices=devices({}, {}))
    action = run_of(about(made, under=VERIFIED))
    order = action.order
    assert isinstance(order, JobOrder)
    assert (action.step, action.then, action.reason) == (StepName.VERIFY, Phase.VERIFYING, "FaultsCleared")
    assert (order.template, order.baseline, order.proof, order.evident) == ("nccl", H100, Proof.RESULT, False)
    assert memory_of(action.status).job.startswith("nccl-1-")
    under_way = replace(memory_of(action.status), created=NOON)
    found = replace(healed(), status=replace(action.status, repair=under_way))
    again = run_of(about(proven_by(found, devices=devices({}, {})), under=VERIFIED))
    assert (again.step, again.status) == (StepName.VERIFY, found.current)
    proven = with_status(found, repair=replace(under_way, verified=True))
    assert run_of(about(proven_by(proven, devices=devices({}, {})), under=VERIFIED)).step is StepName.UNCORDON


def test_a_verification_is_not_begun_before_the_dwell_is_over() -> None:
    found = healed(healthy_since=later(-200))
    assert about(proven_by(found, devices=devices({}, {})), under=VERIFIED).action is None


def test_a_verification_waits_for_the_end_of_a_pause() -> None:
    made = proven_by(healed(), devices=devices({}, {}))
    made.put_control(control(paused=True, version=5))
    decision = about(made, under=VERIFIED)
    assert decision.action is None and "to be verified, but alice paused everything" in decision.sentence


@pytest.mark.parametrize("why", ["no template", "no repair", "only observed"])
def test_a_verification_that_nobody_wants_or_may_have_does_not_keep_the_node(why: str) -> None:
    found = healed(repair={"done": (), "done_time": None}) if why == "no repair" else healed()
    made = proven_by(found, devices=devices({}, {}))
    under = repairing() if why == "no template" else VERIFIED
    if why == "only observed":
        under = replace(under, rules=(Rule(name="all", mode=Mode.OBSERVE),))
    assert run_of(about(made, under=under)).step is StepName.UNCORDON


def test_a_model_without_a_baseline_needs_no_figures() -> None:
    seen = devices({"model": "L40S"}, {"model": "L40S"})
    assert job_order_of(about(proven_by(healed(), devices=seen), under=VERIFIED)).baseline is None


def test_a_node_that_failed_its_verification_stays_held_until_a_person_holds_it_and_lets_go() -> None:
    found = healed(repair={"job": "nccl-1-0123456789", "attempt": 1, "created": NOON})
    found = with_status(
        found, phase=Phase.HELD, reason="VerificationFailed", step="Verify", healthy_since=None
    )
    made = proven_by(found, devices=devices({}, {}))
    for seconds in (0, 400, 9999):
        assert about(made, under=VERIFIED, wall=later(seconds)).action is None
    stopped = replace(held(found), status=status_of(about(proven_by(held(found)), under=VERIFIED)))
    resumed = status_of(about(proven_by(replace(stopped, spec=found.spec)), under=VERIFIED))
    assert resumed.phase is Phase.FENCED
    dwelt = replace(resumed, phase=Phase.VERIFYING, reason="FaultsCleared", healthy_since=later(-310))
    again = replace(found, status=dwelt)
    action = run_of(about(proven_by(again, devices=devices({}, {})), under=VERIFIED))
    assert (action.step, memory_of(action.status).attempt) == (StepName.VERIFY, 2)


def test_a_fault_that_returns_during_the_verification_ends_it() -> None:
    found = with_status(
        healed(repair={"job": "nccl-1-0123456789", "attempt": 1, "created": NOON}), step="Verify"
    )
    returned = fault(
        "EngineHung", advice="ResetDevice", clears_on="DeviceReset", code="xid:62", seen=later(1)
    )
    status = status_of(about(ward(found, returned), under=VERIFIED))
    assert (status.phase, status.reason) == (Phase.FENCED, "FaultReturned")


def test_every_step_that_repairs_has_a_word_for_being_done() -> None:
    assert {step.value for step in DONE} >= {
        "Drain",
        "ReleaseDevices",
        "Reset",
        "Reboot",
        "RestartService",
        "RunJob",
    }
    assert len(set(DONE.values())) == len(DONE) and not {*DONE.values()} & {step.value for step in DONE}


def unrecorded(step: StepName, *, boot: str = "boot-1", receipts: tuple[Receipt, ...] = ()) -> Fleet:
    """A controller died when it had created the Job and not yet said so; the Job has ended the faults."""
    found = in_job(RESET if step is StepName.RESET else REBOOT, step, created=None)
    told = report("n1", boot=boot, sources=(Source("nvml", SourceState.LIVE),))
    told = replace(
        told,
        status=replace(
            told.status,
            receipts=tuple(replace(one, session=found.metadata.name) for one in receipts),
        ),
    )
    return fleet(node(cordoned=True, owner=found.metadata.name, boot=boot), told, found)


@pytest.mark.parametrize("result", ["Begun", "Done", "Failed"])
def test_a_receipt_proves_a_job_that_nobody_could_write_down(result: str) -> None:
    receipt = Receipt("", "Reset", 1, "boot-1", result, NOON)
    action = run_of(about(unrecorded(StepName.RESET, receipts=(receipt,))))
    memory = memory_of(action.status)
    assert (action.step, memory.created) == (StepName.RESET, NOON)
    assert memory.attempts == (Attempts("ResetDevice", 1),)


def test_a_new_boot_ends_a_reboot_whose_job_nobody_could_write_down() -> None:
    action = run_of(about(unrecorded(StepName.REBOOT, boot="boot-2")))
    assert (action.step, memory_of(action.status).created) == (StepName.REBOOT, NOON)


@pytest.mark.parametrize("other", [{"attempt": 2}, {"step": "Reboot"}])
def test_a_job_that_left_no_trace_is_not_waited_for_when_the_faults_are_gone(other: dict[str, Any]) -> None:
    receipt = replace(Receipt("", "Reset", 1, "boot-1", "Done", NOON), **other)
    status = status_of(about(unrecorded(StepName.RESET, receipts=(receipt,))))
    assert status.phase is Phase.VERIFYING
