"""The state file: what a restart finds again, and files that are of no use."""

import threading
from dataclasses import replace

import pytest

from exporter.memory import Keeper, Memory, load, recalled, remembered, save, with_own_report
from exporter.reporting import report_status
from exporter.state import NodeState
from health import xids
from health.report import DeviceRelease, ReportSpec, ReportStatus
from tests.lab.processes import wait_until
from tests.unit.agent_samples import (
    ADDRESSES,
    BOOT,
    NOW,
    UUIDS,
    fresh_state,
    full_sample,
    inventory,
    known_state,
    later,
    sample,
    verdict,
    xid,
)

UID = "node-uid"


def eventful_state():
    return replace(
        known_state()
        .with_message(xid(79, sequence=10))
        .with_message(xid(48, device=0, sequence=11))
        .with_message(verdict("GPU Reset Required", device=0, sequence=12))
        .with_message(xid(94, address="0000:aa:00.0", sequence=13)),
        orders=ReportSpec(device_release=DeviceRelease("session", later(600))),
    )


def kept(state, **changes):
    return remembered(state, **{"node_uid": UID, "sequence": 9, "met": True, **changes})


def blank(boot_id=BOOT):
    return NodeState(boot_id=boot_id, catalogue=xids.builtin())


def report_of(state):
    return report_status(state, now=NOW, samples={}, node_uid=UID, agent_version="1")


def test_a_state_comes_back_from_the_file_as_it_was(tmp_path):
    path = tmp_path / "below" / "agent.json"
    before = eventful_state()
    save(path, kept(before))
    memory = load(path, boot_id=BOOT, node_uid=UID)
    assert memory == kept(before)
    after = recalled(memory, blank(), later(30))
    assert after.diagnosis == before.diagnosis
    assert after.xids == before.xids
    assert after.addresses == before.addresses
    assert after.devices == before.devices
    assert after.unattributed == before.unattributed
    assert (after.cursor, after.orders) == (13, before.orders)
    assert kept(after) == memory


def test_a_restart_neither_raises_nor_clears_though_the_log_is_replayed():
    before = eventful_state()
    after = recalled(kept(before), blank(), later(30))
    assert after.diagnosis.faults == before.diagnosis.faults
    assert after.with_inventory(inventory(0, 1), later(31)).diagnosis.faults == before.diagnosis.faults


def test_a_verdict_that_was_sampled_before_the_restart_can_be_taken_back_after_it():
    before = known_state().with_sample(sample(full_sample(1, recovery_action=1)), NOW)
    after = recalled(kept(before), blank(), later(30)).with_sample(sample(full_sample(1)), later(31))
    assert after.diagnosis.faults == ()


def test_only_the_old_file_or_the_new_one_is_ever_there(tmp_path):
    path = tmp_path / "agent.json"
    save(path, kept(known_state()))
    save(path, kept(eventful_state()))
    assert list(tmp_path.iterdir()) == [path]
    assert load(path, boot_id=BOOT, node_uid=UID) == kept(eventful_state())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no state file"),
        (b"", "cannot be used"),
        (b"{", "cannot be used"),
        (b"[]", "cannot be used"),
        (b"\xff\xfe", "cannot be used"),
        (b'{"bootId": 7}', "cannot be used"),
        (b'{"bootId": "other-boot"}', "of another boot or node"),
        (b'{"bootId": "' + BOOT.encode() + b'", "nodeUid": "other"}', "of another boot or node"),
    ],
)
def test_a_file_that_is_of_no_use_is_said_in_the_log_and_left_aside(tmp_path, caplog, content, words):
    path = tmp_path / "agent.json"
    if content is not None:
        path.write_bytes(content)
    caplog.set_level("INFO")
    assert load(path, boot_id=BOOT, node_uid=UID) is None
    (record,) = caplog.records
    assert words in record.getMessage()
    assert record.file == str(path)


def test_a_directory_in_the_files_place_is_said_too(tmp_path, caplog):
    assert load(tmp_path, boot_id=BOOT, node_uid=UID) is None
    assert "cannot be used" in caplog.text


def test_a_file_of_a_newer_version_is_read_as_far_as_it_is_known(tmp_path):
    path = tmp_path / "agent.json"
    path.write_bytes(b'{"bootId": "' + BOOT.encode() + b'", "cursor": 5, "novelty": [1]}')
    assert load(path, boot_id=BOOT, node_uid=UID) == Memory(boot_id=BOOT, cursor=5)


def test_the_own_report_stands_in_for_a_lost_file():
    before = eventful_state()
    after = with_own_report(report_of(before), blank(), later(30))
    assert [device.uuid for device in after.devices] == list(UUIDS[:2])
    assert after.addresses[ADDRESSES[1]] == UUIDS[1]
    assert {fault.identity for fault in after.diagnosis.faults} == {
        fault.identity for fault in before.diagnosis.faults
    }
    assert after.diagnosis.verdicts == {UUIDS[0]: "GPU Reset Required"}


def test_a_verdict_of_the_own_report_can_be_taken_back_by_the_first_sample():
    before = known_state().with_sample(sample(full_sample(1, recovery_action=1)), NOW)
    after = with_own_report(report_of(before), blank(), later(30))
    assert [fault.kind for fault in after.diagnosis.faults] == ["RecoveryRequired"]
    assert after.with_sample(sample(full_sample(1)), later(31)).diagnosis.faults == ()
    assert with_own_report(report_of(before), known_state(), later(30)).diagnosis.faults == ()


def test_the_own_report_and_a_replayed_log_do_not_count_twice():
    before = known_state().with_message(xid(48)).with_message(xid(48, sequence=2))
    replayed = fresh_state().with_message(xid(48)).with_message(xid(48, sequence=2))
    after = with_own_report(report_of(before), replayed, later(30))
    (fault,) = after.diagnosis.faults
    assert (fault.count, fault.device_uuid) == (2, UUIDS[1])


def test_the_report_of_an_earlier_boot_gives_no_devices_and_no_fault_that_the_boot_has_cleared():
    after = with_own_report(report_of(eventful_state()), blank("another-boot"), later(30))
    assert after.devices == ()
    assert [fault.kind for fault in after.diagnosis.faults] == ["ContainedMemory"]


def test_an_empty_report_gives_nothing():
    assert with_own_report(ReportStatus(), blank(), NOW).diagnosis.faults == ()


class Disk:
    """Writes that the test lets happen."""

    def __init__(self):
        self.written = []
        self.gate = threading.Event()
        self.error = None
        self.entered = threading.Event()

    def __call__(self, path, memory):
        self.entered.set()
        assert self.gate.wait(10)
        if self.error:
            raise self.error
        self.written.append(memory.sequence)


@pytest.fixture
def disk():
    return Disk()


def test_a_slow_disk_gets_the_newest_memory_only(tmp_path, disk):
    keeper = Keeper(tmp_path / "agent.json", write=disk)
    keeper.start()
    keeper.offer(Memory(boot_id=BOOT, sequence=1))
    assert disk.entered.wait(5)
    for sequence in range(2, 50):
        keeper.offer(Memory(boot_id=BOOT, sequence=sequence))
    disk.gate.set()
    assert keeper.stop(5)
    assert disk.written == [1, 49]


def test_a_disk_that_fails_is_said_once_and_tried_with_the_next_change(tmp_path, disk, caplog):
    disk.gate.set()
    disk.error = OSError(28, "No space left on device")
    keeper = Keeper(tmp_path / "agent.json", write=disk)
    keeper.start()
    for sequence in (1, 2):
        keeper.offer(Memory(boot_id=BOOT, sequence=sequence))
        wait_until(lambda count=sequence: keeper.failures == count, 5, "the failed write", every=0.002)
    disk.error = None
    keeper.offer(Memory(boot_id=BOOT, sequence=3))
    assert keeper.stop(5)
    assert disk.written == [3]
    assert ["No space left on device" in record.why for record in caplog.records] == [True]


def test_a_directory_that_cannot_be_made_is_a_failed_write(tmp_path, caplog):
    (tmp_path / "file").touch()
    keeper = Keeper(tmp_path / "file" / "agent.json")
    keeper.start()
    keeper.offer(Memory(boot_id=BOOT))
    assert keeper.stop(5)
    assert keeper.failures == 1
    assert "cannot be written" in caplog.text
