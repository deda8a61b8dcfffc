"""From Xids, lost devices and the driver's verdicts to faults, and how faults end."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec.structs
import pytest

from health import xids
from health.diagnose import DWELL, EXCERPT_LIMIT, Diagnosis, XidEvent, device_lost
from health.kernel_line import parse
from health.report import Evidence, Fault
from health.vocabulary import Advice, ClearsOn, FaultKind, Severity

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
GPU = "GPU-00000000-0000-0000-0000-000000000001"
OTHER = "GPU-00000000-0000-0000-0000-000000000002"
BOOT = "boot-1"
CATALOGUE = xids.builtin()


def event(code, *, uuid=GPU, at=NOW, sequence=7, drill=False, text="text"):
    excerpt = f"NVRM: Xid (PCI:0000:3b:00): {code}, pid=1, name=python, {text}"
    line = parse(excerpt)
    return XidEvent(
        line=line, uuid=uuid, time=at, boot_id=BOOT, sequence=sequence, excerpt=excerpt, drill=drill
    )


def xid_154(words, *, at=NOW, uuid=GPU):
    excerpt = f"NVRM: Xid (PCI:0000:3b:00): 154, GPU recovery action changed from 0x0 (None) to 0x2 ({words})"
    return XidEvent(line=parse(excerpt), uuid=uuid, time=at, boot_id=BOOT, sequence=8, excerpt=excerpt)


def diagnosed(*events, start=None):
    diagnosis = start or Diagnosis()
    for one in events:
        diagnosis = diagnosis.with_xid(one, CATALOGUE)
    return diagnosis


def only(diagnosis):
    (fault,) = diagnosis.faults
    return fault


def test_xid_79_is_a_lost_device_with_its_evidence():
    fault = only(diagnosed(event(79)))
    assert fault == Fault(
        kind="DeviceLost",
        severity=Severity.FATAL,
        advice="RebootNode",
        clears_on="NewBoot",
        code="xid:79",
        device_uuid=GPU,
        first_seen=NOW,
        last_seen=NOW,
        evidence=Evidence(
            source="kernel-log",
            boot_id=BOOT,
            sequence=7,
            excerpt="NVRM: Xid (PCI:0000:3b:00): 79, pid=1, name=python, text",
        ),
    )


def test_a_fault_seen_again_keeps_its_clock_and_counts():
    later = NOW + timedelta(minutes=3)
    fault = only(diagnosed(event(79), event(79, at=later)))
    assert (fault.first_seen, fault.last_seen, fault.count) == (NOW, later, 2)


def test_another_code_of_the_same_kind_does_not_restart_the_clock():
    later = NOW + timedelta(minutes=3)
    fault = only(diagnosed(event(48), event(95, at=later)))
    assert (fault.kind, fault.first_seen, fault.code) == ("UncorrectableMemory", NOW, "xid:48")


def test_a_worse_code_of_the_same_kind_raises_the_fault_and_is_its_evidence():
    fault = only(diagnosed(event(74), event(155, sequence=9)))
    assert (fault.kind, fault.severity, fault.advice) == ("LinkFault", Severity.FATAL, "ResetDevice")
    assert (fault.code, fault.evidence.sequence, fault.count) == ("xid:155", 9, 2)


def test_a_milder_code_never_lowers_a_fault():
    raised = diagnosed(event(155))
    fault = only(diagnosed(event(74), start=raised))
    assert (fault.severity, fault.advice, fault.code) == (Severity.FATAL, "ResetDevice", "xid:155")


def test_the_burst_of_one_memory_error_is_two_faults_with_the_drivers_own_advice():
    burst = [event(48), event(171), *[event(48)] * 8, event(63), xid_154("Node Reboot Required")]
    faults = {fault.kind: fault for fault in diagnosed(*burst).faults}
    assert set(faults) == {"UncorrectableMemory", "RemapPending"}
    assert faults["UncorrectableMemory"].count == 10
    assert {fault.advice for fault in faults.values()} == {"RebootNode"}


def test_codes_that_are_only_counted_raise_nothing():
    assert diagnosed(event(14), event(43)) == Diagnosis()


def test_an_unknown_code_alerts_and_never_acts():
    fault = only(diagnosed(event(9998)))
    assert (fault.kind, fault.severity, fault.advice) == ("UnknownXid", Severity.DEGRADED, "None")


def test_an_xid_of_nobodys_device_alerts_and_never_acts():
    fault = only(diagnosed(event(79, uuid="")))
    assert (fault.severity, fault.advice, fault.clears_on) == (Severity.DEGRADED, "None", "Dwell")
    assert fault.device_uuid == ""


def test_faults_of_two_devices_are_two():
    assert len(diagnosed(event(79), event(79, uuid=OTHER)).faults) == 2


def test_a_drill_that_becomes_real_is_no_drill_any_more():
    assert only(diagnosed(event(79, drill=True))).drill
    assert not only(diagnosed(event(79, drill=True), event(79))).drill
    assert not only(diagnosed(event(79), event(79, drill=True))).drill


def test_a_long_excerpt_is_cut():
    one = replace(event(79), excerpt="x" * 1000)
    assert len(only(diagnosed(one)).evidence.excerpt) == EXCERPT_LIMIT


@pytest.mark.parametrize(
    ("words", "severity", "advice"),
    [
        ("GPU Reset Required", Severity.FATAL, "ResetDevice"),
        ("Node Reboot Required", Severity.FATAL, "RebootNode"),
        ("Drain P2P", Severity.DEGRADED, "None"),
        ("Swap The Board", Severity.DEGRADED, "None"),
    ],
)
def test_a_verdict_alone_is_a_fault_of_its_own_and_unknown_words_never_act(words, severity, advice):
    fault = only(diagnosed(xid_154(words)))
    assert (fault.kind, fault.severity, fault.advice) == ("RecoveryRequired", severity, advice)
    assert fault.clears_on == "DriverVerdict"


def test_a_verdict_beside_a_fault_of_the_devices_plugin_is_a_fault_of_its_own_and_outlasts_it():
    offered = Fault(
        kind=FaultKind.DEVICE_OFFERED_THOUGH_BAD,
        severity=Severity.FATAL,
        device_uuid=GPU,
        first_seen=NOW,
        last_seen=NOW,
    )
    both = diagnosed(xid_154("GPU Reset Required"), start=Diagnosis().with_fault(offered))
    assert {fault.kind for fault in both.faults} == {"DeviceOfferedThoughBad", "RecoveryRequired"}
    left = both.without(FaultKind.DEVICE_OFFERED_THOUGH_BAD, GPU)
    assert only(left).kind == "RecoveryRequired"


def test_a_verdict_outranks_the_catalogue_in_both_directions():
    assert only(diagnosed(event(48), xid_154("Node Reboot Required"))).advice == "RebootNode"
    assert only(diagnosed(event(79), xid_154("GPU Reset Required"))).advice == "ResetDevice"


def test_a_verdict_does_not_touch_faults_of_applications_or_of_other_devices():
    faults = diagnosed(event(13), event(48, uuid=OTHER), xid_154("Node Reboot Required")).faults
    advice = {(fault.kind, fault.device_uuid): fault.advice for fault in faults}
    assert advice[("ApplicationFault", GPU)] == "RestartWorkload"
    assert advice[("UncorrectableMemory", OTHER)] == "ResetDevice"
    assert advice[("RecoveryRequired", GPU)] == "RebootNode"


def test_the_driver_takes_its_verdict_back():
    raised = diagnosed(xid_154("GPU Reset Required"))
    assert raised.with_verdict(GPU, "None", NOW).faults == ()


def test_a_verdict_of_none_leaves_what_only_a_boot_clears_and_gives_it_back_its_advice():
    raised = diagnosed(event(79), xid_154("GPU Reset Required"))
    assert only(raised.with_verdict(GPU, "None", NOW)).advice == "RebootNode"


def test_a_verdict_for_nobody_changes_nothing():
    assert diagnosed(xid_154("GPU Reset Required", uuid="")) == Diagnosis()


def test_a_fault_that_clears_by_quiet_ends_after_the_dwell_and_not_before():
    raised = diagnosed(event(94))
    assert raised.at(NOW + DWELL, boot_id=BOOT) is raised
    assert raised.at(NOW + DWELL + timedelta(seconds=1), boot_id=BOOT).faults == ()


def test_quiet_is_counted_from_the_last_time():
    raised = diagnosed(event(94), event(94, at=NOW + DWELL))
    assert len(raised.at(NOW + DWELL + timedelta(minutes=1), boot_id=BOOT).faults) == 1


@pytest.mark.parametrize("code", [79, 48, 63])
def test_a_fault_of_the_hardware_does_not_clear_by_time_but_by_a_new_boot(code):
    raised = diagnosed(event(code))
    assert raised.at(NOW + timedelta(days=30), boot_id=BOOT) is raised
    assert raised.at(NOW, boot_id="boot-2").faults == ()


def test_a_verdict_ends_with_the_boot_of_its_fault():
    raised = diagnosed(xid_154("Node Reboot Required"))
    assert raised.at(NOW, boot_id="boot-2").verdicts == {}


def test_a_fault_that_clears_by_quiet_outlasts_a_boot():
    raised = diagnosed(event(94))
    assert len(raised.at(NOW + timedelta(minutes=1), boot_id="boot-2").faults) == 1


def test_a_fault_without_evidence_of_a_boot_stays():
    fault = msgspec.structs.replace(only(diagnosed(event(79))), evidence=None)
    assert Diagnosis().with_fault(fault).at(NOW, boot_id="boot-2").faults == (fault,)


def test_a_wall_clock_that_was_set_back_does_not_make_a_fault_last():
    raised = diagnosed(event(94, at=NOW + timedelta(days=365)))
    settled = raised.at(NOW, boot_id=BOOT)
    assert only(settled).last_seen == NOW
    assert settled.at(NOW + DWELL + timedelta(seconds=1), boot_id=BOOT).faults == ()


def test_a_lost_device_seen_by_nvml_and_by_the_kernel_is_one_fault():
    lost = device_lost(GPU, NOW + timedelta(seconds=5), boot_id=BOOT, source="nvml", excerpt="x" * 600)
    fault = only(diagnosed(event(79)).with_fault(lost))
    assert (fault.kind, fault.count, fault.code, fault.first_seen) == ("DeviceLost", 2, "xid:79", NOW)
    alone = only(Diagnosis().with_fault(lost))
    assert (alone.severity, alone.advice, alone.clears_on) == (
        Severity.FATAL,
        Advice.REBOOT_NODE,
        ClearsOn.NEW_BOOT,
    )
    assert len(alone.evidence.excerpt) == EXCERPT_LIMIT


def test_a_fault_can_be_ended_by_name():
    raised = diagnosed(event(79), event(94))
    assert only(raised.without(FaultKind.DEVICE_LOST, GPU)).kind == "ContainedMemory"
    assert raised.without(FaultKind.PLUGIN_DEAD, GPU).faults == raised.faults


def test_a_verdict_that_is_unknown_or_asks_for_nothing_takes_no_certain_advice_away():
    for words in ("Drain P2P", "Polish The Fans"):
        lost = only(diagnosed(event(79), xid_154(words)))
        assert (lost.severity, lost.advice) == ("Fatal", "RebootNode")
