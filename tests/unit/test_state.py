"""The node's state: attribution of Xids, lost devices, verdicts, and what is bounded."""

from dataclasses import replace

import pytest

from exporter.samples import DeviceSample, UnidentifiedDevice
from exporter.state import ADDRESS_LIMIT, COUNTER_LIMIT, NVML, OTHER_CODE
from health.vocabulary import Severity, SourceState
from tests.unit.agent_samples import (
    ADDRESSES,
    NOW,
    UUIDS,
    fresh_state,
    full_sample,
    inventory,
    known_state,
    later,
    message,
    sample,
    verdict,
    xid,
)

LOST = "GpuIsLost"
OTHER_UUID = "GPU-660d987e-5b28-3bf6-2a2d-1d5ecae7f6df"


def faults(state):
    return {(fault.kind, fault.device_uuid): fault for fault in state.diagnosis.faults}


def test_an_xid_is_of_the_device_that_the_inventory_has_at_its_address():
    state = known_state().with_message(xid(79, sequence=42))
    fault = faults(state)[("DeviceLost", UUIDS[1])]
    assert (fault.severity, fault.evidence.boot_id, fault.evidence.sequence) == (
        Severity.FATAL,
        state.boot_id,
        42,
    )
    assert state.cursor == 42
    assert state.xids[(ADDRESSES[1], 79)].count == 1


def test_an_xid_that_came_before_the_inventory_becomes_its_devices_when_it_is_known():
    early = fresh_state().with_message(xid(79)).with_message(xid(94, sequence=2))
    assert set(faults(early)) == {("DeviceLost", ""), ("ContainedMemory", "")}
    assert {fault.severity for fault in early.diagnosis.faults} == {Severity.DEGRADED}
    state = early.with_inventory(inventory(0, 1), later(5))
    assert set(faults(state)) == {("DeviceLost", UUIDS[1]), ("ContainedMemory", UUIDS[1])}
    fault = faults(state)[("DeviceLost", UUIDS[1])]
    assert (fault.severity, fault.advice, fault.first_seen, fault.count) == (
        Severity.FATAL,
        "RebootNode",
        NOW,
        1,
    )
    assert state.unattributed == {}


def test_nobodys_fault_stays_while_another_unknown_address_has_it():
    early = fresh_state().with_message(xid(79)).with_message(xid(79, address="0000:aa:00.0", sequence=2))
    state = early.with_inventory(inventory(0, 1), later(5))
    assert set(faults(state)) == {("DeviceLost", UUIDS[1]), ("DeviceLost", "")}


def test_an_early_verdict_is_the_devices_too():
    early = fresh_state().with_message(xid(48)).with_message(verdict("Node Reboot Required", sequence=2))
    state = early.with_inventory(inventory(1), later(5))
    assert faults(state)[("UncorrectableMemory", UUIDS[1])].advice == "RebootNode"


def test_an_address_is_also_known_from_the_drivers_own_line():
    at = message(f"NVRM: GPU at PCI:0000:aa:00: {OTHER_UUID}")
    state = fresh_state().with_message(at).with_message(xid(79, address="0000:aa:00.0", sequence=2))
    assert set(faults(state)) == {("DeviceLost", OTHER_UUID)}


def test_the_inventory_outranks_a_line_in_the_log():
    line = message(f"NVRM: GPU at PCI:{ADDRESSES[1].removesuffix('.0')}: {OTHER_UUID}")
    assert known_state().with_message(line).addresses[ADDRESSES[1]] == UUIDS[1]
    state = fresh_state().with_message(line).with_inventory(inventory(0, 1), NOW)
    assert state.addresses[ADDRESSES[1]] == UUIDS[1]


def test_an_xid_that_nobody_can_be_named_for_is_counted_and_never_acts():
    state = known_state().with_message(xid(79, address="0000:aa:00.0"))
    assert state.xids[("0000:aa:00.0", 79)].count == 1
    (fault,) = state.diagnosis.faults
    assert (fault.device_uuid, fault.severity, fault.advice) == ("", Severity.DEGRADED, "None")


def test_every_line_counts_also_those_that_fold_into_one_fault():
    state = known_state()
    for number in range(8):
        state = state.with_message(xid(48, sequence=number, at=later(number)))
    counter = state.xids[(ADDRESSES[1], 48)]
    assert (counter.count, counter.last) == (8, later(7))
    assert len(state.diagnosis.faults) == 1


def test_counters_of_invented_codes_are_bounded():
    state = fresh_state()
    for code in range(COUNTER_LIMIT + 50):
        state = state.with_message(xid(code % 10_000, sequence=code))
    assert len(state.xids) == COUNTER_LIMIT + 1
    assert state.xids[("", OTHER_CODE)].count == 50


def test_addresses_that_a_drill_invents_are_bounded():
    state = known_state()
    for number in range(ADDRESS_LIMIT + 50):
        address = f"{number:04x}:aa:00"
        state = state.with_message(message(f"NVRM: GPU at PCI:{address}: {OTHER_UUID}", sequence=number))
        state = state.with_message(xid(79, address=f"{number:04x}:bb:00.0"))
    assert len(state.addresses) == ADDRESS_LIMIT
    assert state.addresses[ADDRESSES[1]] == UUIDS[1]
    assert len(state.unattributed) == ADDRESS_LIMIT


def test_nvswitch_errors_are_counted():
    line = "nvidia-nvswitch1: SXid (PCI:0000:00:08.0): 11004, Non-fatal, Link 36 ingress invalid ACL"
    state = known_state().with_message(message(line))
    assert state.sxids[("0000:00:08.0", 11004)].count == 1
    assert state.diagnosis.faults == ()


def test_a_device_that_nvml_calls_lost_is_lost_once_however_often_it_is_sampled():
    state = known_state()
    for seconds in range(0, 100, 5):
        lost = sample(full_sample(0), DeviceSample(uuid=UUIDS[1], error=LOST))
        state = state.with_sample(lost, later(seconds))
    (fault,) = state.diagnosis.faults
    assert (fault.kind, fault.count, fault.first_seen) == ("DeviceLost", 1, NOW)
    assert later(65) <= fault.last_seen <= later(95)


@pytest.mark.parametrize("error", ["Unresponsive", "Unknown", "NoPermission"])
def test_no_data_is_no_fault(error):
    state = known_state().with_sample(sample(DeviceSample(uuid=UUIDS[1], error=error)), NOW)
    assert state.diagnosis.faults == ()


def test_the_drivers_verdict_in_a_sample_is_a_fault_until_it_is_taken_back():
    state = known_state().with_sample(sample(full_sample(1, recovery_action=2)), later(5))
    (fault,) = state.diagnosis.faults
    assert (fault.kind, fault.advice, fault.evidence.boot_id) == (
        "RecoveryRequired",
        "RebootNode",
        state.boot_id,
    )
    again = state.with_sample(sample(full_sample(1, recovery_action=2)), later(10))
    assert again.diagnosis.faults == (fault,)
    assert again.with_sample(sample(full_sample(1)), later(15)).diagnosis.faults == ()


def test_a_device_that_requires_a_reset_says_so_by_its_error_alone():
    state = known_state().with_sample(sample(DeviceSample(uuid=UUIDS[1], error="ResetRequired")), NOW)
    (fault,) = state.diagnosis.faults
    assert (fault.kind, fault.advice) == ("RecoveryRequired", "ResetDevice")


def test_a_verdict_that_this_version_does_not_know_alerts_and_never_acts():
    state = known_state().with_sample(sample(full_sample(1, recovery_action=42)), NOW)
    (fault,) = state.diagnosis.faults
    assert (fault.kind, fault.severity, fault.advice) == ("RecoveryRequired", Severity.DEGRADED, "None")


def test_a_sample_that_was_begun_before_a_verdict_in_the_log_does_not_take_it_back():
    state = known_state().with_message(verdict("GPU Reset Required"))
    still = state.with_sample(sample(full_sample(0), full_sample(1)), later(1))
    assert [fault.kind for fault in still.diagnosis.faults] == ["RecoveryRequired"]


def test_a_lost_device_that_a_new_look_up_cannot_name_keeps_its_identity():
    again = inventory(0, unidentified=(UnidentifiedDevice(index=1, error=LOST),))
    state = known_state().with_inventory(again, later(60))
    assert [device.uuid for device in state.devices] == [UUIDS[0], UUIDS[1]]
    assert set(faults(state)) == {("DeviceLost", UUIDS[1])}


def test_a_lost_device_that_is_not_even_counted_any_more_stays_while_its_fault_is_open():
    state = known_state().with_message(xid(79)).with_inventory(inventory(0), later(60))
    assert [device.uuid for device in state.devices] == [UUIDS[0], UUIDS[1]]


def test_a_healthy_device_that_is_taken_out_is_gone():
    state = known_state().with_inventory(inventory(0), later(60))
    assert [device.uuid for device in state.devices] == [UUIDS[0]]


def test_released_devices_have_no_sample():
    assert known_state().with_source(NVML, SourceState.RELEASED, "").sample is None
    assert known_state().with_source(NVML, SourceState.STALE, "slow").sample is not None


def test_restored_faults_keep_their_clock_and_are_not_counted_twice():
    before = known_state().with_message(xid(48)).with_message(xid(48, sequence=2, at=later(9)))
    after = known_state().with_message(xid(48)).with_message(xid(48, sequence=2, at=later(9)))
    restored = after.restored(before.diagnosis.open.values(), {}, later(20))
    (fault,) = restored.diagnosis.faults
    assert (fault.count, fault.first_seen, fault.last_seen) == (2, NOW, later(9))


def test_a_fault_that_the_log_has_forgotten_is_restored_and_one_that_it_has_more_of_is_not_lowered():
    before = known_state().with_message(xid(79)).with_message(xid(48, device=0))
    after = known_state()
    for number in range(3):
        after = after.with_message(xid(48, device=0, sequence=number))
    restored = faults(after.restored(before.diagnosis.open.values(), {}, later(20)))
    assert restored[("DeviceLost", UUIDS[1])].first_seen == NOW
    assert restored[("UncorrectableMemory", UUIDS[0])].count == 3


def test_faults_of_an_earlier_boot_are_not_restored_but_quiet_ones_are():
    before = known_state().with_message(xid(79)).with_message(xid(94, device=0))
    rebooted = replace(fresh_state(), boot_id="another")
    restored = rebooted.restored(before.diagnosis.open.values(), {}, later(60))
    assert [fault.kind for fault in restored.diagnosis.faults] == ["ContainedMemory"]


def test_what_was_held_for_an_unknown_address_ends_with_time_too():
    state = fresh_state().with_message(xid(94))
    assert state.unattributed
    assert state.at(later(3600)).unattributed == {}
    assert state.at(later(1)) is state
