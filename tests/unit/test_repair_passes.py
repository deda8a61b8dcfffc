"""Whole repairs by the whole controller: every Job once, everything lent given back, whoever interferes or dies."""

from typing import Any

import pytest
from msgspec.structs import replace

from health.vocabulary import Mode, Phase
from remediation.cluster import NODES, REPORTS
from remediation.engine import NewPolicy
from remediation.objects import JournalEvent, RemediationStatus
from remediation.repair_policy import Baseline, RepairPolicy, VerificationPolicy
from remediation.steps.release import PAUSED
from runtime.quantities import Duration
from tests.property.remediation_world import World
from tests.unit.builders import policy
from tests.unit.fake_cluster import JOBS, Document

LOST = ("DeviceLost", "GPU-0", "RebootNode", "NewBoot", "Fatal")
HUNG = ("EngineHung", "GPU-0", "ResetDevice", "DeviceReset", "Fatal")
DEAD_DRIVER = ("DriverHung", "", "RebootNode", "NewBoot", "Fatal")


class Ward(World):
    """The small cluster with everything that repairs need; node n1 has GPU operands."""

    def __init__(self, **rules: Any) -> None:
        super().__init__(repairs=True)
        self.running = self.operand_labels()
        assert "true" in self.running.values()
        self.change(**rules)
        self.let_pass(45)

    def change(self, mode: Mode = Mode.AUTO, **rules: Any) -> None:
        """Another policy: its mode, its `verification`, and what it says about repairs."""
        verification = rules.pop("verification", VerificationPolicy())
        made = policy(mode, pools=("a", "b"), dwell="60s")
        self.policy = replace(made, repair=RepairPolicy(**rules), verification=verification)
        self.controller.engine.inbox.put(NewPolicy(self.policy))
        self.run()

    @property
    def host(self) -> Any:
        return self.agents["n1"].host

    def sick(self, what: tuple[str, str, str, str, str]) -> None:
        self.raise_fault("n1", *what)
        self.rest()

    def tick(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.let_pass(1)
            self.rest()

    def until(self, reason: str, *, most: int = 2400) -> None:
        """Let time pass until the session says this."""
        for _ in range(most):
            if self.status().reason == reason:
                return
            self.tick(1)
        raise AssertionError(f"never {reason}: {self.status().reason}, {self.status().message}")

    def status(self) -> RemediationStatus:
        (found,) = [item for item in self.sessions(opened=False) if item.spec.node_name == "n1"]
        return found.current

    def session_name(self) -> str:
        (found,) = [item for item in self.sessions() if item.spec.node_name == "n1"]
        return found.metadata.name

    def operand_labels(self) -> dict[str, str]:
        labels = self.api.get(NODES, "n1")["metadata"]["labels"]
        return {key: value for key, value in labels.items() if key.startswith("nvidia.com/gpu.deploy.")}

    def lends_nothing(self) -> bool:
        release = (self.api.get(REPORTS, "n1").get("spec") or {}).get("deviceRelease")
        repair = self.status().repair
        return (
            self.operand_labels() == self.running and release is None and (repair is None or not repair.lent)
        )

    def cordoned(self) -> bool:
        return bool(self.api.get(NODES, "n1")["spec"].get("unschedulable"))

    def made(self, template: str = "") -> dict[str, Document]:
        """The Jobs there are, by name."""
        return {
            name: job
            for name, job in self.api.objects[JOBS].items()
            if template in ("", job["metadata"]["labels"]["sickbay.dev/template"])
        }

    @property
    def deeds(self) -> list[str]:
        """What repair programs have really done."""
        return [deed.step for deed in self.jobs.deeds]

    def outcomes(self) -> list[str]:
        """The steps that had an outcome, in their order."""
        return [line.step for line in self.status().journal if line.event is JournalEvent.OUTCOME]

    def mutations(self) -> int:
        return len([call for call in self.api.calls if call.mutates])


@pytest.fixture
def ward() -> Ward:
    return Ward()


# From the fault to the return.


def test_a_reset_and_return(ward: Ward) -> None:
    ward.sick(HUNG)
    ward.tick(240)
    assert (ward.status().phase, ward.status().reason) == (Phase.RELEASED, "Healthy"), ward.status()
    assert ward.deeds == ["Reset"] and ward.lends_nothing() and not ward.cordoned()
    assert [step for step in ward.outcomes() if step != "RemoveFailedPods"] == [
        "Cordon",
        "Drain",
        "ReleaseDevices",
        "Reset",
        "Restore",
        "RestartPlugin",
        "Uncordon",
    ]


def test_a_reboot_and_return(ward: Ward) -> None:
    ward.sick(LOST)
    ward.tick(240)
    assert (ward.status().phase, ward.status().reason) == (Phase.RELEASED, "Healthy"), ward.status()
    assert ward.deeds == ["Reboot"] and not ward.cordoned()
    assert ward.outcomes() == ["Cordon", "Drain", "Reboot", "Uncordon"]


@pytest.mark.parametrize(
    ("how", "told"),
    [("helps not", "did not end the faults"), ("is held", "python (process 7)"), ("fails", "exit code 15")],
)
def test_a_reset_that_comes_to_nothing_climbs_to_the_reboot(ward: Ward, how: str, told: str) -> None:
    ward.host.reset = how
    ward.sick(HUNG)
    ward.until("Healthy")
    assert ward.deeds == (["Reset", "Reboot"] if how == "helps not" else ["Reboot"])
    assert told in str(ward.status().repair) and ward.lends_nothing() and not ward.cordoned()


def test_an_agent_that_does_not_let_go_leads_to_the_reboot_and_its_operands_come_back(ward: Ward) -> None:
    ward.host.release = "never"
    ward.sick(HUNG)
    ward.tick(60)
    assert PAUSED in ward.operand_labels().values()
    ward.until("Healthy")
    assert ward.deeds == ["Reboot"] and ward.lends_nothing()


def test_an_image_that_is_missing_ends_with_a_person_who_is_told_and_then_it_rests(ward: Ward) -> None:
    ward.host.image = False
    ward.sick(HUNG)
    ward.until("RepairNotSeen", most=3000)
    ward.let_pass(2400)
    status = ward.status()
    assert (status.phase, status.reason) == (Phase.HELD, "RepairNotSeen")
    assert "ResetDevice: " in status.message and "RebootNode: " in status.message
    assert "EngineHung" in status.message
    assert len(ward.made()) == 2 and ward.lends_nothing() and ward.cordoned() and ward.deeds == []
    before = ward.mutations()
    ward.let_pass(3600)
    assert ward.mutations() == before


def test_a_reboot_that_helps_nothing_is_held_and_not_repeated(ward: Ward) -> None:
    ward.host.reboot = "helps not"
    ward.sick(LOST)
    ward.let_pass(1500)
    assert (ward.status().phase, ward.status().reason) == (Phase.HELD, "NotHealed")
    assert ward.deeds == ["Reboot"]


def test_a_node_that_never_comes_back_is_held(ward: Ward) -> None:
    ward.host.reboot = "never back"
    ward.sick(LOST)
    ward.let_pass(2400)
    assert ward.status().phase is Phase.HELD and ward.deeds == ["Reboot"]


@pytest.mark.parametrize("what", [LOST, DEAD_DRIVER], ids=["of a device", "of the node"])
def test_a_fault_that_comes_back_after_every_release_is_held_in_the_end(
    ward: Ward, what: tuple[str, str, str, str, str]
) -> None:
    for _ in range(5):
        if not ward.sessions():
            ward.sick(what)
        ward.let_pass(600)
    assert ward.deeds == ["Reboot", "Reboot"], "as often as the policy says, within a day"
    (open_one,) = ward.sessions()
    assert (open_one.current.phase, open_one.current.reason) == (Phase.HELD, "NotHealed")


def test_a_reset_that_may_be_tried_twice_is_two_jobs() -> None:
    ward = Ward(max_attempts=2)
    ward.host.reset = "fails"
    ward.sick(HUNG)
    ward.until("Healthy")
    resets = ward.made("reset")
    attempts = sorted(job["metadata"]["annotations"]["sickbay.dev/attempt"] for job in resets.values())
    assert attempts == ["1", "2"] and ward.deeds == ["Reboot"]


# Whoever interferes.


def at_the_reset(ward: Ward, *, job: bool = False) -> None:
    """The devices are being released; or the reset's Job exists, and its pod has not started."""
    if job:
        ward.host.image = False
    else:
        ward.host.release = "never"
    ward.sick(HUNG)
    ward.tick(30)
    assert bool(ward.made()) is job, ward.status()
    assert PAUSED in ward.operand_labels().values()


def let_go_on(ward: Ward) -> None:
    ward.host.heal()


def interfere(ward: Ward, how: str, *, on: bool = True) -> None:
    match how:
        case "hold":
            ward.say(ward.session_name(), "hold", {"user": "alice"} if on else None)
        case "annotation":
            ward.annotate("n1", "sickbay.dev/hold", on=on)
        case "opt-out":
            ward.annotate("n1", "sickbay.dev/opt-out", on=on)
        case "pause":
            ward.switch(pause={"user": "alice"} if on else None)
        case "policy":
            ward.change(Mode.OBSERVE if on else Mode.AUTO)
        case "upgrade":
            ward.label(
                "n1", "nvidia.com/gpu-driver-upgrade-state", "drain-required" if on else "upgrade-done"
            )
        case "uncordon":
            ward.uncordon("n1")
        case "graver":
            ward.raise_fault("n1", *LOST)
        case "fault gone":
            ward.clear_faults("n1")


STOPS = ("hold", "annotation", "opt-out", "pause", "policy", "upgrade")


@pytest.mark.parametrize("how", [*STOPS, "uncordon", "graver", "fault gone"])
def test_whoever_stops_a_release_gets_everything_back_soon(ward: Ward, how: str) -> None:
    at_the_reset(ward)
    interfere(ward, how)
    ward.tick(40)
    assert ward.lends_nothing()
    if how == "uncordon":
        assert ward.status().reason == "UncordonedByUser"


@pytest.mark.parametrize("how", ["hold", "annotation", "opt-out", "uncordon", "graver"])
def test_whoever_stops_a_reset_whose_job_exists_gets_everything_back_soon(ward: Ward, how: str) -> None:
    at_the_reset(ward, job=True)
    interfere(ward, how)
    ward.tick(40)
    assert ward.lends_nothing()


@pytest.mark.parametrize("how", STOPS)
def test_who_lets_it_go_on_has_it_begun_anew_and_done_once(ward: Ward, how: str) -> None:
    at_the_reset(ward)
    interfere(ward, how)
    ward.tick(60)
    assert not ward.made() and ward.status().phase in (Phase.FENCED, Phase.HELD)
    let_go_on(ward)
    interfere(ward, how, on=False)
    ward.tick(300)
    assert ward.status().phase is Phase.RELEASED, ward.status()
    assert ward.deeds == ["Reset"] and ward.lends_nothing()


def test_after_a_hold_the_next_reset_is_never_the_job_of_before(ward: Ward) -> None:
    at_the_reset(ward, job=True)
    (first,) = ward.made()
    interfere(ward, "hold")
    ward.tick(10)
    let_go_on(ward)
    interfere(ward, "hold", on=False)
    ward.tick(300)
    assert ward.status().phase is Phase.RELEASED and ward.lends_nothing()
    assert len(ward.made("reset")) == 2 and first in ward.made()


def test_the_job_of_before_the_hold_does_nothing_beside_the_one_of_after_it(ward: Ward) -> None:
    """Its image was late, and its pod starts when the session is at the same step again."""
    at_the_reset(ward, job=True)
    interfere(ward, "hold")
    ward.tick(10)
    interfere(ward, "hold", on=False)
    ward.tick(30)
    assert len(ward.made("reset")) == 2, ward.status()
    let_go_on(ward)
    ward.tick(300)
    assert ward.deeds == ["Reset"]


@pytest.mark.parametrize("how", ["pause", "upgrade"])
def test_what_forbids_a_reset_while_its_pod_starts_makes_no_reboot_of_it(ward: Ward, how: str) -> None:
    at_the_reset(ward, job=True)
    interfere(ward, how)
    ward.tick(2)
    let_go_on(ward)
    ward.tick(150)
    assert ward.deeds == [] and ward.lends_nothing()
    assert (ward.status().phase, ward.status().rung) == (Phase.FENCED, "ResetDevice"), ward.status()
    interfere(ward, how, on=False)
    ward.tick(300)
    assert ward.status().phase is Phase.RELEASED and ward.deeds == ["Reset"], ward.status()


def test_an_agent_that_falls_silent_while_it_is_to_let_go_leaves_nothing_paused(ward: Ward) -> None:
    at_the_reset(ward)
    ward.agents["n1"].silent = True
    ward.tick(340)
    assert ward.lends_nothing()
    assert (ward.status().phase, ward.status().reason) == (Phase.FENCED, "Waiting")
    ward.agents["n1"].silent = False
    let_go_on(ward)
    ward.tick(300)
    assert ward.status().phase is Phase.RELEASED and ward.deeds == ["Reset"], ward.status()


def test_a_pause_that_comes_after_the_reset_lets_no_further_step_begin(ward: Ward) -> None:
    at_the_reset(ward, job=True)
    let_go_on(ward)
    ward.let_pass(1)
    assert ward.deeds == ["Reset"]
    interfere(ward, "pause")
    deleted = len(ward.pods.deletions)
    ward.tick(60)
    assert len(ward.pods.deletions) == deleted, "a plugin's restart is a step too"
    assert ward.lends_nothing()
    interfere(ward, "pause", on=False)
    ward.tick(300)
    assert ward.status().phase is Phase.RELEASED, ward.status()


def test_a_session_that_is_deleted_in_the_middle_leaves_nothing_paused(ward: Ward) -> None:
    at_the_reset(ward)
    name = ward.session_name()
    ward.forget(name)
    ward.clear_faults("n1")
    ward.tick(10)
    assert ward.session_name() == name, "made again, for the cordon is its record"
    assert ward.lends_nothing()


def test_a_node_that_is_replaced_in_the_middle_ends_the_session(ward: Ward) -> None:
    at_the_reset(ward)
    ward.remove_node("n1")
    ward.tick(2)
    ward.add_node("n1")
    ward.tick(60)
    assert ward.status().phase is Phase.CANCELLED and ward.deeds == []


# A controller that dies in the middle; what dies at any single write is in tests/property.


@pytest.mark.parametrize("job", [False, True], ids=["in the release", "in the reset"])
def test_another_controller_knows_what_was_lent_and_gives_it_back(ward: Ward, job: bool) -> None:
    at_the_reset(ward, job=job)
    ward.new_controller()
    ward.tick(5)
    assert PAUSED in ward.operand_labels().values(), "it goes on with the step"
    interfere(ward, "hold")
    ward.tick(10)
    assert ward.lends_nothing()


def test_another_controller_goes_on_with_the_job_and_makes_no_second_one(ward: Ward) -> None:
    at_the_reset(ward, job=True)
    ward.new_controller()
    ward.tick(10)
    let_go_on(ward)
    ward.tick(300)
    assert ward.status().phase is Phase.RELEASED
    assert ward.deeds == ["Reset"] and len(ward.made()) == 1


# A Job that proves the node.

BUS = VerificationPolicy(template="verify", baselines=(Baseline(model="", minimum={"busbw": 300.0}),))


def verifying(figures: str = "good", *, missing: bool = False) -> Ward:
    ward = Ward(verification=BUS)
    ward.host.figures = figures
    if missing:
        ward.jobs.withdraw("verify")
    ward.sick(HUNG)
    return ward


def test_a_node_whose_figures_are_good_is_given_back() -> None:
    ward = verifying()
    ward.tick(240)
    assert ward.status().phase is Phase.RELEASED and len(ward.made("verify")) == 1
    assert ward.status().repair is not None and ward.status().repair.verified  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("bad", "it ended with 1: busbw is low"),
        ("none", "not a JSON object of figures"),
        ("missing", "sickbay-repair/verify"),
        ("deleted", "nobody knows how the Job stands"),
        ("no image", "without a word of its container"),
    ],
)
def test_a_node_that_cannot_be_verified_stays_held_until_a_person_holds_it_and_lets_go(
    how: str, told: str
) -> None:
    ward = verifying(how if how in ("bad", "none") else "good", missing=how == "missing")
    if how in ("deleted", "no image"):
        ward.until("FaultsCleared")
        ward.host.image = False
        ward.tick(90)
        assert len(ward.made("verify")) == 1
        if how == "deleted":
            (name,) = ward.made("verify")
            ward.jobs.delete(sorted(ward.made()).index(name))
        ward.let_pass(2400)
    else:
        ward.tick(240)
    jobs = len(ward.made("verify"))
    for _ in range(2):
        status = ward.status()
        assert (status.phase, status.reason) == (Phase.HELD, "VerificationFailed"), status
        assert told in status.message
        before = ward.mutations()
        ward.let_pass(400)
        assert ward.mutations() == before
    interfere(ward, "hold")
    ward.tick(5)
    let_go_on(ward)
    ward.jobs.publish()
    interfere(ward, "hold", on=False)
    ward.tick(180)
    assert ward.status().phase is Phase.RELEASED, ward.status()
    assert len(ward.made("verify")) == jobs + 1


def test_a_boot_during_the_verification_has_it_made_anew_once() -> None:
    ward = verifying()
    ward.until("FaultsCleared")
    ward.host.image = False
    ward.tick(90)
    assert len(ward.made("verify")) == 1 and ward.status().step == "Verify"
    ward.reboot("n1")
    before = ward.mutations()
    ward.tick(60)
    assert ward.mutations() - before < 30, "no running in circles"
    let_go_on(ward)
    ward.tick(120)
    assert ward.status().phase is Phase.RELEASED, ward.status()
    assert len(ward.made("verify")) == 2


def test_while_everything_waits_for_a_job_nothing_is_written(ward: Ward) -> None:
    at_the_reset(ward, job=True)
    ward.tick(5)
    before = ward.mutations()
    ward.tick(120)
    assert ward.mutations() == before


def test_how_long_the_steps_may_take_is_the_policys() -> None:
    ward = Ward(reset_deadline=Duration.parse("1m"), release_deadline=Duration.parse("1m"))
    at_the_reset(ward, job=True)
    (job,) = ward.made().values()
    assert job["spec"]["activeDeadlineSeconds"] == 60
    ward.tick(70)
    assert ward.status().rung == "RebootNode"
