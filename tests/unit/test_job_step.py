"""A repair as a Job: made once, judged by boot ID, receipt or the container's own word, and given up in time."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from health.receipt import Receipt
from health.report import AcceleratorReport
from remediation.cluster import FencedError
from remediation.fleet import Node
from remediation.orders import JobOrder, Proof
from remediation.policy import StepName
from remediation.repair_policy import Baseline
from remediation.repair_state import Attempts, RepairState, job_name
from remediation.steps.job import (
    RECEIPT_LAG,
    JobView,
    RepairJob,
    Subject,
    job_document,
    job_pass,
)
from remediation.steps.outcome import Outcome, Result
from runtime.api_errors import ApiError, Conflict, Forbidden, Invalid, NotFound, Unavailable
from runtime.clock import ManualClock
from tests.fake_pods import FakePods
from tests.fake_repairs import FakeRepairs
from tests.unit.builders import GPU, NOON, later, node, report

SESSION = "n1-0123456789"
DEADLINE = timedelta(minutes=10)
PROOFS = {StepName.REBOOT: Proof.BOOT, StepName.RUN_JOB: Proof.RESULT, StepName.VERIFY: Proof.RESULT}
TEMPLATES = {
    StepName.RESET: "reset",
    StepName.REBOOT: "reboot",
    StepName.RESTART_SERVICE: "restart-service",
    StepName.RUN_JOB: "diagnostics",
    StepName.VERIFY: "diagnostics",
}


@dataclass
class Objects:
    """The node and its report as a test has them."""

    node: Node | ApiError = field(default_factory=lambda: node(cordoned=True, owner=SESSION))
    found: AcceleratorReport | None = field(default_factory=lambda: report("n1"))

    def get_node(self, name: str) -> Node:
        assert name == "n1"
        if isinstance(self.node, ApiError):
            raise self.node
        return self.node

    def patch_node(self, name: str, patch: bytes) -> Node:
        raise AssertionError("a Job changes no node")

    def report(self, node_name: str) -> AcceleratorReport | None:
        return self.found


@dataclass
class Failing(FakeRepairs):
    """`refusal` is what a creation is met with, `lost` whether it is carried out all the same."""

    refusal: ApiError | None = None
    lost: bool = False
    blind: ApiError | None = None

    def create_job(self, job: RepairJob) -> None:
        if self.lost or self.refusal is None:
            super().create_job(job)
        if self.refusal is not None:
            raise self.refusal

    def job(self, namespace: str, name: str) -> JobView:
        if self.blind is not None:
            raise self.blind
        return super().job(namespace, name)


class Ward:
    """A step that is a Job, pass by pass, as the controller takes it."""

    def __init__(self, step: StepName = StepName.RESET, **order: Any) -> None:
        self.clock = ManualClock(wall=NOON)
        self.objects = Objects()
        self.api = Failing(self.objects, FakePods(self.clock))
        self.subject = Subject(SESSION, step, "n1", "uid-n1")
        self.order = JobOrder(
            template=TEMPLATES[step],
            namespace="sickbay-repair",
            rung="ResetDevice",
            deadline=DEADLINE,
            proof=PROOFS.get(step, Proof.RECEIPT),
            **order,
        )
        name = job_name(self.order.template, session=SESSION, rung="ResetDevice", step=step, attempt=1)
        self.memory = RepairState(started=NOON, boot_id="boot-1", devices=(GPU,), job=name, attempt=1)

    def take(self, seconds: float = 0) -> Outcome:
        """The next pass, so much later; what it wants remembered is."""
        self.clock.advance(seconds)
        now: datetime = self.clock.wall()
        outcome = job_pass(self.api, self.subject, self.order, self.memory, now=now)
        self.memory = outcome.repair or self.memory
        return outcome

    def leave(self, result: str, message: str = "", **other: Any) -> None:
        """The program leaves this receipt, and the agent reports it."""
        fields: dict[str, Any] = {
            "session": SESSION,
            "step": self.subject.step.value,
            "attempt": self.memory.attempt,
            "boot_id": "boot-1",
            "result": result,
            "time": self.clock.wall(),
            "message": message,
        }
        uid = other.pop("node_uid", "uid-n1")
        found = report("n1", uid=uid)
        receipts = (Receipt(**{**fields, **other}),)
        self.objects.found = replace(found, status=replace(found.status, receipts=receipts))

    def see(self, **view: Any) -> None:
        """The Job and its pod look like this now."""
        self.api.views[self.memory.job] = JobView(**view)

    def boot(self) -> None:
        self.objects.node = node(cordoned=True, owner=SESSION, boot="boot-2")


@pytest.fixture
def ward() -> Ward:
    return Ward()


def waits(outcome: Outcome, *told: str) -> None:
    assert outcome.result is Result.WAITING and outcome.again is not None, outcome
    assert all(part in outcome.message for part in told), outcome.message


def given_up(outcome: Outcome, hold: str, *told: str) -> None:
    assert not outcome.succeeded and outcome.hold == hold, outcome
    assert all(part in outcome.message for part in told), outcome.message


# The creation.


def test_the_first_pass_creates_the_job_that_the_session_has_named_and_counts_it(ward: Ward) -> None:
    waits(ward.take(), ward.memory.job)
    (job,) = ward.api.jobs.values()
    assert (job.name, job.template, job.namespace, job.node_name, job.deadline_seconds) == (
        ward.memory.job,
        "reset",
        "sickbay-repair",
        "n1",
        600,
    )
    assert job.facts == {
        "session": SESSION,
        "step": "Reset",
        "attempt": "1",
        "node": "n1",
        "node-uid": "uid-n1",
        "boot-id": "boot-1",
        "devices": GPU,
        "service": "",
    }
    assert (ward.memory.created, ward.memory.attempts) == (NOON, (Attempts("ResetDevice", 1),))


def test_a_name_tells_session_rung_step_and_attempt_apart_and_nothing_else() -> None:
    def name(**change: Any) -> str:
        return job_name(
            "reset", **{"session": "s", "rung": "ResetDevice", "step": "Reset", "attempt": 1, **change}
        )

    others = [name(session="t"), name(rung="RebootNode"), name(step="Reboot"), name(attempt=2)]
    assert name() == name() and len({name(), *others}) == 5
    longest = job_name("a" * 40, session="s" * 253, rung="RestartService", step="RestartService", attempt=99)
    assert len(longest) <= 63


def test_no_second_job_is_made_while_one_is_under_way(ward: Ward) -> None:
    for _ in range(20):
        waits(ward.take(1))
    assert len(ward.api.jobs) == 1 and ward.memory.attempts_of("ResetDevice") == 1


def test_a_job_that_exists_already_under_its_name_is_ours(ward: Ward) -> None:
    before = ward.memory
    ward.take()
    ward.memory = before  # the controller died before it could say so
    waits(ward.take(5))
    assert len(ward.api.jobs) == 1
    assert (ward.memory.created, ward.memory.attempts_of("ResetDevice")) == (later(5), 1)


def test_a_creation_whose_answer_is_lost_is_tried_again_and_finds_the_job(ward: Ward) -> None:
    ward.api.refusal, ward.api.lost = Unavailable("timed out", status=504), True
    with pytest.raises(Unavailable):
        ward.take()
    ward.api.refusal = None
    waits(ward.take(1))
    assert len(ward.api.jobs) == 1 and ward.memory.created == later(1)


def test_another_conflict_than_the_name_is_no_job_of_ours(ward: Ward) -> None:
    ward.api.refusal = Conflict("the namespace is being terminated", status=409, reason="Conflict")
    with pytest.raises(Conflict):
        ward.take()
    assert ward.memory.created is None


@pytest.mark.parametrize(
    "refusal",
    [
        NotFound('podtemplates "reset" not found', status=404, reason="NotFound"),
        Forbidden("jobs.batch is forbidden", status=403, reason="Forbidden"),
        Invalid("spec.template.spec.containers: Required value", status=422, reason="Invalid"),
    ],
)
def test_a_template_of_which_no_job_can_be_made_is_no_step(ward: Ward, refusal: ApiError) -> None:
    ward.api.refusal = refusal
    given_up(ward.take(), "NoRepairStep", "sickbay-repair/reset", refusal.message)
    assert ward.memory.created is None and ward.memory.attempts == ()


def test_a_service_restart_names_the_service() -> None:
    ward = Ward(StepName.RESTART_SERVICE, service="fabric-manager")
    ward.take()
    (job,) = ward.api.jobs.values()
    assert (job.template, job.facts["service"], job.facts["step"]) == (
        "restart-service",
        "fabric-manager",
        "RestartService",
    )


@pytest.mark.parametrize(("deadline", "seconds"), [(1, 60), (90, 90), (200_000, 86400)])
def test_a_job_has_at_least_a_minute_and_at_most_a_day(deadline: int, seconds: int) -> None:
    ward = Ward()
    ward.order = JobOrder(
        template="reset",
        namespace="x",
        rung="ResetDevice",
        deadline=timedelta(seconds=deadline),
        proof=Proof.RECEIPT,
    )
    ward.take()
    (job,) = ward.api.jobs.values()
    assert job_document(job, {})["spec"]["activeDeadlineSeconds"] == seconds


def test_the_document_changes_nothing_of_the_template_but_the_node(ward: Ward) -> None:
    ward.take()
    (job,) = ward.api.jobs.values()
    pod = {"restartPolicy": "Never", "hostPID": True, "containers": [{"name": "reset", "image": "x"}]}
    document = job_document(job, pod)
    assert pod == {"restartPolicy": "Never", "hostPID": True, "containers": [{"name": "reset", "image": "x"}]}
    spec = document["spec"]
    assert spec["template"]["spec"] == {**pod, "nodeName": "n1"}
    assert (spec["backoffLimit"], spec["completions"], spec["parallelism"], spec["podReplacementPolicy"]) == (
        0,
        1,
        1,
        "Failed",
    )
    assert spec["ttlSecondsAfterFinished"] == 7 * 24 * 3600
    assert not {"suspend", "manualSelector"} & spec.keys()
    told = spec["template"]["metadata"]
    assert told == {key: document["metadata"][key] for key in ("labels", "annotations")}
    assert told["labels"] == {"sickbay.dev/template": "reset"}
    assert told["annotations"]["sickbay.dev/boot-id"] == "boot-1"
    assert all(isinstance(value, str) for value in told["annotations"].values())


# Receipts.


def test_a_receipt_that_says_done_ends_the_step_and_the_repair_is_remembered(ward: Ward) -> None:
    ward.take()
    ward.leave("Done", "reset GPU-aaaaaaaa")
    outcome = ward.take(7)
    assert (outcome.result, outcome.message) == (Result.DONE, "reset GPU-aaaaaaaa")
    assert (ward.memory.done, ward.memory.done_time) == (("Reset",), later(7))


@pytest.mark.parametrize(
    ("result", "hold"), [("Held", "DeviceHeld"), ("Failed", "RepairFailed")], ids=["held", "failed"]
)
def test_a_receipt_that_says_no_ends_the_step_with_its_words(ward: Ward, result: str, hold: str) -> None:
    ward.take()
    ward.leave(result, "GPU-aaaaaaaa is held by 4711 (dcgm-exporter)")
    given_up(ward.take(1), hold, "4711 (dcgm-exporter)")
    assert ward.memory.done == ()


def test_a_receipt_that_only_begins_or_says_what_nobody_knows_is_waited_for(ward: Ward) -> None:
    ward.take()
    for result in ("Begun", "Polished"):
        ward.leave(result)
        waits(ward.take(1))


@pytest.mark.parametrize(
    "other",
    [{"attempt": 2}, {"session": "n1-another"}, {"step": "Reboot"}, {"node_uid": "uid-of-its-predecessor"}],
    ids=lambda other: next(iter(other)),
)
def test_a_receipt_of_something_else_does_not_count(ward: Ward, other: dict[str, Any]) -> None:
    ward.take()
    ward.leave("Done", **other)
    waits(ward.take(1))
    assert ward.memory.done == ()


def test_a_receipt_counts_whatever_the_job_says(ward: Ward) -> None:
    ward.take()
    ward.leave("Done")
    ward.see(ended=True, exit_code=137, message="OOMKilled")
    assert ward.take(1).result is Result.DONE


def test_a_job_that_says_it_ended_well_proves_nothing(ward: Ward) -> None:
    ward.take()
    ward.see(ended=True, exit_code=0, message="all is well")
    waits(ward.take(1))
    assert ward.memory.done == () and ward.memory.ended == later(1)


def test_a_receipt_may_come_some_time_after_the_end_of_its_job(ward: Ward) -> None:
    ward.take()
    ward.see(ended=True, exit_code=0)
    waits(ward.take(1))
    waits(ward.take(RECEIPT_LAG.total_seconds() - 1))
    ward.leave("Done")
    assert ward.take(0.5).result is Result.DONE


def test_a_job_that_has_ended_without_a_receipt_is_given_up_after_a_while(ward: Ward) -> None:
    ward.take()
    ward.see(ended=True, exit_code=137, message="killed\nby somebody")
    waits(ward.take(1))
    given_up(
        ward.take(RECEIPT_LAG.total_seconds()),
        "RepairNotSeen",
        "ended without a receipt",
        "ended with 137: killed by somebody",
    )


@pytest.mark.parametrize("code", [4, 5])
@pytest.mark.parametrize("step", [StepName.RESET, StepName.REBOOT, StepName.RESTART_SERVICE])
def test_a_job_whose_last_look_forbids_it_has_tried_nothing_and_makes_room_for_another(
    step: StepName, code: int
) -> None:
    ward = Ward(step)
    ward.take()
    ward.see(ended=True, exit_code=code, message="not allowed any more: alice paused everything")
    outcome = ward.take(1)
    assert (outcome.result, outcome.hold) == (Result.CHANGED, "")
    assert "alice paused everything" in outcome.message
    assert (ward.memory.job, ward.memory.created, ward.memory.attempt) == ("", None, 2)
    assert ward.memory.attempts == () and ward.memory.done == ()


def test_what_is_forbidden_again_and_again_is_given_up_in_the_end(ward: Ward) -> None:
    ward.memory = replace(ward.memory, attempt=20)
    ward.take()
    ward.see(ended=True, exit_code=4, message="not allowed any more")
    waits(ward.take(1))
    given_up(ward.take(RECEIPT_LAG.total_seconds()), "RepairNotSeen", "not allowed any more")


def test_the_end_of_the_job_is_remembered_from_when_it_was_first_seen(ward: Ward) -> None:
    ward.take()
    ward.see(ended=True)
    ward.take(1)
    for _ in range(8):
        waits(ward.take(11))
    assert ward.memory.ended == later(1)
    assert ward.take(2).hold == "RepairNotSeen"


def test_a_job_that_somebody_deleted_is_given_up_and_not_made_again(ward: Ward) -> None:
    ward.take()
    del ward.api.views[ward.memory.job]
    waits(ward.take(1), "somebody deleted the Job")
    given_up(ward.take(RECEIPT_LAG.total_seconds()), "RepairNotSeen", "somebody deleted the Job")
    assert len(ward.api.jobs) == 1


def test_the_deadline_tells_what_kept_the_pod_from_running(ward: Ward) -> None:
    ward.take()
    ward.see(trouble="ErrImagePull: sickbay:typo: not found")
    waits(ward.take(599), "ErrImagePull")
    given_up(ward.take(1), "RepairNotSeen", "ErrImagePull: sickbay:typo: not found")


def test_a_report_that_is_gone_has_no_receipt(ward: Ward) -> None:
    ward.take()
    ward.objects.found = None
    waits(ward.take(1))
    given_up(ward.take(600), "RepairNotSeen")


# Boots.


def test_a_new_boot_id_proves_a_reboot_whatever_became_of_its_job() -> None:
    ward = Ward(StepName.REBOOT)
    ward.take()
    ward.see(ended=True, exit_code=137, trouble="NodeLost")
    waits(ward.take(30))
    ward.boot()
    outcome = ward.take(60)
    assert (outcome.result, outcome.message) == (Result.DONE, "the node has booted")
    assert (ward.memory.done, ward.memory.done_time) == (("Reboot",), later(90))


def test_a_receipt_is_no_proof_of_a_boot() -> None:
    ward = Ward(StepName.REBOOT)
    ward.take()
    ward.leave("Done", "asked systemd to reboot")
    waits(ward.take(1))
    assert ward.memory.done == ()


def test_a_reboot_that_failed_by_its_own_word_is_not_waited_for() -> None:
    ward = Ward(StepName.REBOOT)
    ward.take()
    ward.leave("Failed", "systemctl is missing")
    given_up(ward.take(1), "RepairFailed", "systemctl is missing")


def test_a_reboot_has_its_whole_deadline_although_its_job_has_ended() -> None:
    ward = Ward(StepName.REBOOT)
    ward.take()
    ward.see(ended=True, exit_code=0)
    waits(ward.take(599))
    given_up(ward.take(1), "RepairNotSeen")


def test_a_node_that_has_lost_its_boot_id_has_not_booted() -> None:
    ward = Ward(StepName.REBOOT)
    ward.take()
    ward.objects.node = node(cordoned=True, owner=SESSION, boot="")
    waits(ward.take(1))


@pytest.mark.parametrize("step", [StepName.RESET, StepName.RESTART_SERVICE, StepName.RUN_JOB])
def test_a_boot_in_the_middle_ends_any_other_step_and_counts_as_a_reboot(step: StepName) -> None:
    ward = Ward(step)
    ward.take()
    ward.boot()
    outcome = ward.take(1)
    assert (outcome.result, outcome.message) == (Result.DONE, "the node has booted meanwhile")
    assert ward.memory.done == ("Reboot",)


@pytest.mark.parametrize("step", [StepName.RESET, StepName.REBOOT])
def test_where_the_node_has_booted_before_the_job_was_made_none_is(step: StepName) -> None:
    ward = Ward(step)
    ward.boot()
    assert ward.take().result is Result.DONE
    assert ward.api.jobs == {} and ward.memory.done == ("Reboot",)


def test_another_node_of_the_same_name_gets_no_job_and_has_done_nothing() -> None:
    ward = Ward(StepName.REBOOT)
    ward.objects.node = node(uid="uid-another", boot="boot-2")
    assert ward.take().result is Result.CHANGED
    assert ward.api.jobs == {} and ward.memory.done == ()


# Errors.


def test_an_api_that_fails_is_asked_again_until_the_deadline(ward: Ward) -> None:
    ward.take()
    ward.api.blind = Unavailable("etcd is slow", status=503)
    with pytest.raises(Unavailable):
        ward.take(599)
    given_up(ward.take(1), "RepairNotSeen", "nobody knows how the Job stands", "etcd is slow")


def test_a_creation_that_fails_for_the_whole_deadline_is_given_up(ward: Ward) -> None:
    ward.api.refusal = Unavailable("etcd is slow", status=503)
    with pytest.raises(Unavailable):
        ward.take(599)
    given_up(ward.take(1), "RepairNotSeen", "etcd is slow")


def test_a_controller_that_no_longer_leads_gives_nothing_up(ward: Ward) -> None:
    ward.api.refusal = FencedError("the lease is not proven", reason="Fenced")
    with pytest.raises(FencedError):
        ward.take(9999)


# Diagnoses and verifications.

BUS = Baseline(model="H100", minimum={"busbw": 400.0})


def test_a_verification_is_judged_by_its_containers_word() -> None:
    ward = Ward(StepName.VERIFY, baseline=BUS, evident=False)
    ward.take()
    waits(ward.take(1))
    ward.see(ended=True, exit_code=0, message='{"busbw": 412.5}')
    outcome = ward.take(30)
    assert outcome.result is Result.DONE and '{"busbw": 412.5}' in outcome.message
    assert ward.memory.verified


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ('{"busbw": 100}', "busbw is 100, and must be at least 400"),
        ("{}", "busbw is missing"),
        ('{"busbw": NaN}', "not a JSON object"),
        ("segmentation fault", "not a JSON object of figures: 'segmentation fault'"),
    ],
)
def test_a_verification_whose_figures_are_bad_missing_or_unreadable_has_failed(
    message: str, told: str
) -> None:
    ward = Ward(StepName.VERIFY, baseline=BUS, evident=False)
    ward.take()
    ward.see(ended=True, exit_code=0, message=message)
    given_up(ward.take(1), "VerificationFailed", told)
    assert not ward.memory.verified


def test_a_verification_that_ends_without_a_word_has_failed() -> None:
    ward = Ward(StepName.VERIFY, evident=False)
    ward.take()
    ward.see(ended=True, trouble="DeadlineExceeded")
    outcome = ward.take(1)
    assert not outcome.succeeded and outcome.hold and "DeadlineExceeded" in outcome.message


def test_a_verification_keeps_the_time_of_the_repair_that_it_proves() -> None:
    ward = Ward(StepName.VERIFY, evident=False)
    ward.memory = ward.memory.carried_out("Reset", later(-600))
    ward.take()
    ward.see(ended=True, exit_code=0)
    assert ward.take(1).result is Result.DONE
    assert ward.memory.done_time == later(-600)


def test_a_diagnosis_that_ends_well_is_no_verification_of_a_repair() -> None:
    ward = Ward(StepName.RUN_JOB)
    ward.take()
    ward.see(ended=True, exit_code=0)
    assert ward.take(1).result is Result.DONE
    assert ward.memory.done == ("RunJob",) and not ward.memory.verified


def test_a_verification_of_an_earlier_repair_proves_no_later_one() -> None:
    verified = replace(RepairState(started=NOON), verified=True)
    assert not verified.carried_out("Reset", later(5)).verified


def test_a_verification_whose_job_is_gone_has_failed_by_its_deadline() -> None:
    ward = Ward(StepName.VERIFY, evident=False)
    ward.take()
    del ward.api.views[ward.memory.job]
    with pytest.raises(NotFound):
        ward.take(1)
    assert not ward.take(600).succeeded
