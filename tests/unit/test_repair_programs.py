"""Reset, reboot and restart of a service: what they do to a host, what they say, what receipt they leave."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from health.receipt import RECEIPT_MESSAGE_LIMIT, Receipt, RepairResult, read_receipt, receipt_name
from remediation.repair.host import Holder, Ran, Unit
from remediation.repair.once import once
from remediation.repair.order import Exit, Order, Outcome, Step
from remediation.repair.reboot import RebootSettings, reboot
from remediation.repair.receipts import ReceiptFolder
from remediation.repair.reset import Command, CommandError, ResetSettings, reset
from remediation.repair.restart_service import RestartSettings, restart_service
from runtime.clock import ManualClock
from tests.unit.fake_host import BOOT, GPU, OTHER_GPU, PERSISTENCE, FakeHost, Patience, order, raises

KUBELET = "kubelet.service"
JOB = Holder(4711, "python3", GPU, "0b5f3f9e-0000-4000-8000-000000000001")
DAEMON = Holder(812, "nvidia-persistenced", GPU)


class Rig:
    """One host, one receipts folder, one clock."""

    def __init__(self, folder: Path, host: FakeHost | None = None) -> None:
        self.host = host or FakeHost()
        self.receipts = ReceiptFolder(folder)
        self.clock = ManualClock()
        self.pause = Patience(self.clock)
        self._folder = folder

    def reset(self, ordered: Order | None = None, **settings) -> Outcome:
        ordered = ordered or order()
        return self._once(ordered, lambda: reset(self.host, ordered.devices, ResetSettings(**settings)))

    def reboot(self, ordered: Order | None = None) -> Outcome:
        ordered = ordered or order(Step.REBOOT)
        return self._once(
            ordered,
            lambda: reboot(self.host, ordered, RebootSettings(), clock=self.clock, pause=self.pause),
        )

    def restart(self, unit: str = KUBELET) -> Outcome:
        ordered = order(Step.RESTART_SERVICE)
        settings = RestartSettings()
        return self._once(
            ordered, lambda: restart_service(self.host, unit, settings, clock=self.clock, pause=self.pause)
        )

    def receipt(self, ordered: Order | None = None) -> Receipt:
        of = ordered or order()
        return read_receipt((self._folder / receipt_name(of.session, of.step, of.attempt)).read_bytes())

    def _once(self, ordered: Order, deed) -> Outcome:
        return once(self.host, self.receipts, ordered, deed, clock=self.clock)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "receipts")


def test_a_reset_leaves_a_receipt_that_says_which_devices_it_reset(rig: Rig) -> None:
    outcome = rig.reset(order(devices=(GPU, OTHER_GPU)))
    assert outcome == Outcome(Exit.DONE, f"Done: reset {GPU}, {OTHER_GPU}")
    assert rig.host.done == [f"reset {GPU} in {BOOT}", f"reset {OTHER_GPU} in {BOOT}"]
    assert rig.receipt() == Receipt(
        session="n1-0123456789",
        step="Reset",
        attempt=1,
        boot_id=BOOT,
        result="Done",
        time=rig.clock.wall(),
        devices=(GPU, OTHER_GPU),
        message=f"reset {GPU}, {OTHER_GPU}",
    )


def test_the_receipt_is_there_before_the_device_is_reset(rig: Rig) -> None:
    seen: list[str] = []

    def before(call: str) -> None:
        if "--gpu-reset" in call:
            seen.append(rig.receipt().result)

    rig.host.before = before
    rig.reset()
    assert seen == [RepairResult.BEGUN]


def test_nothing_is_done_in_another_boot(rig: Rig) -> None:
    outcome = rig.reset(order(boot="boot-0"))
    assert outcome.code == Exit.DONE
    assert outcome.message == "nothing to do: the host is in boot boot-1, not in boot-0"
    assert rig.host.done == []


def test_nothing_is_done_a_second_time(rig: Rig) -> None:
    rig.reset()
    again = rig.reset()
    assert again.code == Exit.DONE
    assert again.message.startswith("nothing to do: the receipt reset-1-")
    assert again.message.endswith(f".json exists (Done: reset {GPU})")
    assert len(rig.host.done) == 1


def test_another_attempt_is_another_repair(rig: Rig) -> None:
    rig.reset()
    rig.reset(order(attempt=2))
    assert len(rig.host.done) == 2


def test_a_host_that_does_not_say_its_boot_is_not_touched(rig: Rig) -> None:
    rig.host.before = raises("boot_id")
    outcome = rig.reset()
    assert outcome == Outcome(Exit.FAILED, "nothing was done: boot_id does not answer")
    assert rig.host.done == []


def test_a_held_device_is_not_reset_and_every_holder_is_named(rig: Rig) -> None:
    rig.host.held = [JOB, Holder(99, "nv-hostengine (DCGM)", GPU), DAEMON]
    rig.host.units[PERSISTENCE] = Unit(True, True, 812, 5)
    outcome = rig.reset()
    assert outcome.code == Exit.HELD
    assert rig.host.done == []
    message = rig.receipt().message
    assert f"python3 (process 4711 of pod {JOB.pod}) has {GPU} open" in message
    assert "nv-hostengine (DCGM) (process 99)" in message
    assert rig.receipt().result == RepairResult.HELD


def test_who_holds_another_device_is_no_matter(rig: Rig) -> None:
    rig.host.held = [replace(JOB, device=OTHER_GPU)]
    assert rig.reset().code == Exit.DONE


def test_of_many_holders_eight_are_named_and_the_others_counted(rig: Rig) -> None:
    rig.host.held = [replace(JOB, pid=number) for number in range(1, 13)]
    message = rig.reset().message
    assert message.count("(process ") == 8
    assert message.endswith("and 4 more")


def test_a_message_is_never_longer_than_the_schema_allows(rig: Rig) -> None:
    rig.host.held = [Holder(number, "x" * 300, GPU) for number in range(8)]
    assert rig.reset().code == Exit.HELD
    assert len(rig.receipt().message) == RECEIPT_MESSAGE_LIMIT


def test_the_persistence_daemon_stands_still_for_the_reset_alone(rig: Rig) -> None:
    rig.host.held = [DAEMON]
    rig.host.units[PERSISTENCE] = Unit(True, True, 812, 5)
    outcome = rig.reset()
    assert outcome == Outcome(
        Exit.DONE, f"Done: reset {GPU}; {PERSISTENCE} was stopped for it and runs again"
    )
    assert rig.host.done == [
        f"stop {PERSISTENCE} in {BOOT}",
        f"reset {GPU} in {BOOT}",
        f"start {PERSISTENCE} in {BOOT}",
    ]


@pytest.mark.parametrize("why", ["no unit", "not active", "switched off"])
def test_a_persistence_daemon_that_cannot_be_paused_holds_the_device(rig: Rig, why: str) -> None:
    rig.host.held = [DAEMON]
    if why != "no unit":
        rig.host.units[PERSISTENCE] = Unit(True, why == "switched off", 812, 5)
    outcome = rig.reset(persistence_unit="" if why == "switched off" else PERSISTENCE)
    assert outcome.code == Exit.HELD
    assert "nvidia-persistenced (process 812)" in outcome.message
    assert rig.host.done == []


def test_a_daemon_that_holds_on_after_its_stop_is_started_again_and_named(rig: Rig) -> None:
    rig.host.held = [DAEMON]
    rig.host.units[PERSISTENCE] = Unit(True, True, 812, 5)
    rig.host.answers[f"stop {PERSISTENCE}"] = Ran(0)
    assert rig.reset().code == Exit.HELD
    assert rig.host.done == [f"stop {PERSISTENCE} in {BOOT}", f"start {PERSISTENCE} in {BOOT}"]


def test_a_daemon_that_does_not_stop_is_a_failure_and_nothing_is_reset(rig: Rig) -> None:
    rig.host.held = [DAEMON]
    rig.host.units[PERSISTENCE] = Unit(True, True, 812, 5)
    rig.host.answers[f"stop {PERSISTENCE}"] = Ran(None, "stopped after 30 s")
    outcome = rig.reset()
    assert outcome.code == Exit.FAILED
    assert "does not stop, did not end: stopped after 30 s" in outcome.message
    assert f"reset {GPU} in {BOOT}" not in rig.host.done


def test_a_failed_reset_starts_the_daemon_again_and_says_both(rig: Rig) -> None:
    rig.host.held = [DAEMON]
    rig.host.units[PERSISTENCE] = Unit(True, True, 812, 5)
    rig.host.answers["nvidia-smi --gpu-reset"] = Ran(1, "Resetting GPU is not supported\n")
    rig.host.answers[f"start {PERSISTENCE}"] = Ran(1, "Job failed")
    outcome = rig.reset()
    assert outcome.code == Exit.FAILED
    assert "the reset failed, exit code 1: Resetting GPU is not supported" in outcome.message
    assert "does not start again, exit code 1: Job failed" in outcome.message


def test_persistence_mode_is_switched_on_again_where_it_was_on(rig: Rig) -> None:
    rig.host.modes = {GPU}
    outcome = rig.reset(order(devices=(GPU, OTHER_GPU)))
    assert outcome.message == f"Done: reset {GPU}, {OTHER_GPU}; persistence mode of {GPU} is on again"
    assert rig.host.modes == {GPU}


def test_a_mode_that_does_not_come_back_is_said_and_does_not_make_the_reset_fail(rig: Rig) -> None:
    rig.host.answers["nvidia-smi --query-gpu=mig.mode.current"] = Ran(0, "Enabled\n")
    rig.host.modes = {GPU}
    rig.host.answers[f"nvidia-smi -i {GPU} -pm"] = Ran(4, "no permission")
    outcome = rig.reset()
    assert outcome.code == Exit.DONE
    assert outcome.message.endswith(f"persistence mode of {GPU} is lost, exit code 4: no permission")


def test_a_device_that_does_not_answer_after_its_reset_is_a_failure(rig: Rig) -> None:
    rig.host.answers["nvidia-smi --query-gpu=uuid"] = Ran(0, "No devices were found\n")
    outcome = rig.reset(order(devices=(GPU, OTHER_GPU)))
    assert outcome.code == Exit.FAILED
    assert f"{GPU}: does not answer after the reset" in outcome.message
    assert rig.host.done == [f"reset {GPU} in {BOOT}"]


def test_the_devices_that_were_reset_before_a_failure_are_named(rig: Rig) -> None:
    rig.host.answers[f"nvidia-smi --gpu-reset -i {OTHER_GPU}"] = Ran(1, "in use")
    outcome = rig.reset(order(devices=(GPU, OTHER_GPU)))
    assert (
        outcome.message
        == f"Failed: {OTHER_GPU}: the reset failed, exit code 1: in use; reset before it: {GPU}"
    )


def test_of_a_tools_output_the_last_lines_are_shown_in_one_bounded_line() -> None:
    shown = str(Ran(3, "".join(f"line {number}\n\n" for number in range(100)) + "\x1b[1mred\n" + "y" * 9))
    assert shown == "exit code 3: line 97; line 98; line 99; ?[1mred; yyyyyyyyy"
    assert len(str(Ran(3, "x" * 10_000))) < 450


def test_another_vendors_command_gets_the_device_and_no_shell(rig: Rig) -> None:
    command = Command.parse("amd-smi reset --gpureset -i '{device}'")
    assert command.for_device(GPU) == ["amd-smi", "reset", "--gpureset", "-i", GPU]
    assert Command.parse("tool 'a;b' --gpu={device}").for_device(GPU) == ["tool", "a;b", f"--gpu={GPU}"]


@pytest.mark.parametrize("text", ["", "nvidia-smi --gpu-reset", "tool '{device}", "--device {device}"])
def test_a_command_without_program_or_device_is_refused(text: str) -> None:
    with pytest.raises(CommandError, match=r"expected|No closing"):
        Command.parse(text)


def test_a_reboot_that_has_happened_writes_nothing_into_the_new_boot(rig: Rig, tmp_path: Path) -> None:
    outcome = rig.reboot()
    assert outcome.code == Exit.DONE
    assert rig.host.done == [f"reboot in {BOOT}"]
    assert rig.receipt(order(Step.REBOOT)).result == RepairResult.BEGUN
    assert rig.reboot().message == f"nothing to do: the host is in boot {BOOT}+, not in {BOOT}"


def test_a_reboot_that_hangs_is_forced_after_two_minutes(rig: Rig) -> None:
    rig.host.orderly_boots = False
    assert rig.reboot().code == Exit.DONE
    assert rig.host.done == [f"reboot in {BOOT}", f"sysrq in {BOOT}"]
    assert rig.pause.waited == 120


@pytest.mark.parametrize("systemctl", [Ran(1, "Failed to connect to bus"), Ran(None, "stopped after 60 s")])
def test_a_service_manager_that_does_not_answer_is_waited_for_as_well(rig: Rig, systemctl: Ran) -> None:
    rig.host.answers["systemctl reboot"] = systemctl
    outcome = rig.reboot()
    assert str(systemctl) in outcome.message
    assert rig.host.done == [f"reboot in {BOOT}", f"sysrq in {BOOT}"]
    assert rig.pause.waited == 120


def test_a_reboot_that_nothing_brings_about_is_a_failure(rig: Rig) -> None:
    rig.host.orderly_boots = rig.host.sysrq_boots = False
    outcome = rig.reboot()
    assert outcome.code == Exit.FAILED
    assert outcome.message.endswith("and sysrq did not boot the host either")
    assert rig.receipt(order(Step.REBOOT)).result == RepairResult.FAILED
    assert rig.pause.waited == 150


def test_a_host_that_goes_down_and_does_not_say_its_boot_is_waited_for(rig: Rig) -> None:
    rig.host.orderly_boots = False
    silent = raises("boot_id")
    rig.host.before = lambda name: silent(name) if rig.host.done == [f"reboot in {BOOT}"] else None
    rig.reboot()
    assert rig.host.done == [f"reboot in {BOOT}", f"sysrq in {BOOT}"]


def test_a_service_is_restarted_and_seen_to_be_another_one(rig: Rig) -> None:
    rig.host.units[KUBELET] = Unit(True, True, 100, 5)
    assert rig.restart() == Outcome(Exit.DONE, f"Done: restarted {KUBELET}, main process 101")
    assert rig.host.done == [f"restart {KUBELET} in {BOOT}"]


@pytest.mark.parametrize(
    ("before", "answer", "why"),
    [
        (Unit(loaded=False), None, f"the host has no unit {KUBELET}"),
        (
            Unit(True, True, 100, 5),
            Ran(1, "Job failed"),
            f"{KUBELET} does not restart, exit code 1: Job failed",
        ),
        (
            Unit(True, True, 100, 5),
            Ran(0),
            f"{KUBELET} was restarted, but is still the one it was after 30 s",
        ),
        (Unit(True), Ran(0), f"{KUBELET} was restarted, but is not active after 30 s"),
    ],
)
def test_a_service_that_is_not_another_one_is_a_failure(
    rig: Rig, before: Unit, answer: Ran | None, why: str
) -> None:
    rig.host.units[KUBELET] = before
    if answer is not None:
        rig.host.answers[f"restart {KUBELET}"] = answer
    assert rig.restart() == Outcome(Exit.FAILED, f"Failed: {why}")


def test_an_exception_that_nobody_foresaw_leaves_that_it_began(rig: Rig) -> None:
    def before(call: str) -> None:
        if "--gpu-reset" in call:
            raise ZeroDivisionError

    rig.host.before = before
    with pytest.raises(ZeroDivisionError):
        rig.reset()
    assert rig.receipt().result == RepairResult.BEGUN
    rig.host.before = lambda _call: None
    assert "exists (Begun)" in rig.reset().message
    assert rig.host.done == []
