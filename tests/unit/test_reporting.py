"""What the report says of a state, and the patch that says it to the API server."""

from dataclasses import replace

import msgspec
import msgspec.structs
import pytest

from exporter.report_wire import new_report, read_core, read_report, status_patch, status_update
from exporter.reporting import (
    action_of_wire,
    device_health,
    fresh_samples,
    report_status,
    wire_action,
)
from exporter.samples import DeviceSample
from exporter.state import NVML
from health.kernel_line import RECOVERY_ACTIONS
from health.report import DeviceRelease, Driver, Maintenance, ReportSpec
from health.vocabulary import DeviceAccess, DeviceHealth, SourceState
from tests.unit.agent_samples import (
    BOOT,
    NOW,
    UUIDS,
    fresh_state,
    full_sample,
    identity,
    inventory,
    known_state,
    later,
    sample,
    verdict,
    xid,
)


def report(state, samples=None):
    known = {device.uuid: device for device in (full_sample(0), full_sample(1))}
    return report_status(
        state, now=NOW, samples=known if samples is None else samples, node_uid="uid", agent_version="1.2"
    )


def patch(status):
    return msgspec.json.decode(status_patch(status))["status"]


def update(status, version="7"):
    return msgspec.json.decode(status_update("n1", status, resource_version=version))


def test_the_report_tells_node_driver_and_devices():
    status = report(known_state())
    assert (status.node_uid, status.boot_id, status.agent_version) == ("uid", BOOT, "1.2")
    assert status.driver == Driver("nvidia", "580.95.05", "13.580.95.05")
    device = status.devices[1]
    assert (device.uuid, device.index, device.vendor, device.serial) == (UUIDS[1], 1, "nvidia", "1651")
    assert (device.pci_address, device.recovery_action, device.health) == ("0000:3b:00.0", "None", "Healthy")
    assert [source.name for source in status.sources] == ["kernel-log", "nvml"]


@pytest.mark.parametrize(
    ("messages", "health"),
    [
        ((), DeviceHealth.HEALTHY),
        ((xid(13),), DeviceHealth.HEALTHY),
        ((xid(94),), DeviceHealth.DEGRADED),
        ((xid(94), xid(79, sequence=2)), DeviceHealth.FAILED),
    ],
)
def test_a_device_is_as_its_worst_fault(messages, health):
    state = known_state()
    for message in messages:
        state = state.with_message(message)
    assert report(state).devices[1].health is health
    assert report(state).devices[0].health is DeviceHealth.HEALTHY


@pytest.mark.parametrize("samples", [{}, {UUIDS[1]: DeviceSample(uuid=UUIDS[1], error="Unresponsive")}])
def test_no_data_is_unknown(samples):
    assert device_health(known_state(), UUIDS[1], samples) is DeviceHealth.UNKNOWN


def test_a_fault_is_said_also_without_data():
    assert device_health(known_state().with_message(xid(79)), UUIDS[1], {}) is DeviceHealth.FAILED


def test_a_sample_counts_for_three_intervals():
    state = known_state()
    assert set(fresh_samples(state, monotonic=1015.0, interval=5)) == {UUIDS[0], UUIDS[1]}
    assert fresh_samples(state, monotonic=1015.1, interval=5) == {}
    assert fresh_samples(fresh_state(), monotonic=0, interval=5) == {}


def test_the_worst_fault_stands_first():
    state = known_state().with_message(xid(94)).with_message(xid(13, sequence=2))
    state = state.with_message(xid(79, sequence=3, at=later(10)))
    assert [fault.severity for fault in report(state).faults] == ["Fatal", "Degraded", "Info"]


def test_a_released_device_is_said_with_the_reason():
    released = known_state().with_source(NVML, SourceState.RELEASED, "")
    for_session = replace(released, orders=ReportSpec(device_release=DeviceRelease("n1-abc", later(60))))
    for_upgrade = replace(released, orders=ReportSpec(maintenance=Maintenance("driver upgrade", NOW)))
    assert report(for_session).device_access is DeviceAccess.RELEASED
    assert report(for_session).sources[1].message == "session n1-abc"
    assert report(for_upgrade).sources[1].message == "maintenance: driver upgrade"
    assert report(known_state()).device_access is DeviceAccess.HELD


def test_a_verdict_of_the_log_stands_before_the_one_that_was_sampled():
    state = known_state().with_message(verdict("Node Reboot Required"))
    assert report(state).devices[1].recovery_action == "NodeRebootRequired"


def test_every_recovery_action_is_one_word_and_comes_back():
    for action in RECOVERY_ACTIONS:
        word = wire_action(action)
        assert word.isalnum()
        assert word[0].isupper()
        assert action_of_wire(word) == action


@pytest.mark.parametrize(
    ("words", "word"), [("", ""), ("unknown action 9", "UnknownAction9"), ("2 x", ""), ("-;", "")]
)
def test_any_words_of_a_driver_make_a_word_that_the_api_server_takes(words, word):
    assert wire_action(words) == word


def test_what_hardware_says_is_cut_to_what_the_api_server_takes():
    strange = identity(0, model="m" * 500, serial="s" * 500, vbios="v" * 500)
    state = fresh_state().with_inventory(
        msgspec.structs.replace(inventory(), devices=(strange,), driver_version="d" * 500), NOW
    )
    state = state.with_source(NVML, SourceState.FAILED, "x" * 5000)
    status = report(state)
    (device,) = status.devices
    assert (len(device.model), len(device.serial), len(device.vbios)) == (128, 128, 64)
    assert len(status.driver.version) == 64
    assert len(status.sources[1].message) == 512


def test_a_full_patch_names_every_field_so_that_nothing_old_stays():
    first = patch(report(fresh_state()))
    assert first["devices"] == []
    assert first["faults"] == []
    assert first["driver"] is None
    assert first["plugin"] is None
    assert (first["deviceAccess"], first["drill"], first["sequence"]) == ("Held", False, 0)
    assert set(first) == {
        "nodeUID",
        "bootID",
        "agentVersion",
        "observedTime",
        "sequence",
        "renewTime",
        "driver",
        "devices",
        "faults",
        "plugin",
        "sources",
        "deviceAccess",
        "drill",
        "receipts",
    }


def test_an_object_in_the_patch_names_every_field_too():
    state = replace(known_state(), library_version="")
    assert patch(report(state))["driver"] == {
        "name": "nvidia",
        "version": "580.95.05",
        "libraryVersion": "",
    }


def test_an_update_is_the_whole_report_of_one_version_without_what_is_not_known():
    first = update(report(fresh_state()))
    assert first.pop("status") == {
        name: value for name, value in patch(report(fresh_state())).items() if value is not None
    }
    assert first == {
        "apiVersion": "sickbay.dev/v1alpha1",
        "kind": "AcceleratorReport",
        "metadata": {"name": "n1", "resourceVersion": "7"},
    }
    known = report(known_state().with_message(xid(79)))
    unknown = {name for name, value in patch(known).items() if value is None}
    assert unknown == {"plugin", "renewTime"}
    assert set(patch(known)) - set(update(known)["status"]) == unknown


def test_a_new_report_is_owned_by_its_node_and_says_nothing_else():
    assert msgspec.json.decode(new_report("n1", "uid")) == {
        "apiVersion": "sickbay.dev/v1alpha1",
        "kind": "AcceleratorReport",
        "metadata": {
            "name": "n1",
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "uid"}],
        },
    }
    assert "ownerReferences" not in msgspec.json.decode(new_report("n1", ""))["metadata"]


def test_what_was_written_is_read_back():
    status = report(known_state().with_message(xid(79)).with_sample(sample(full_sample(0)), NOW))
    body = msgspec.json.encode({"status": patch(status)})
    assert read_report(body).status == status
    assert read_core(body) == ("uid", 0)


def test_a_report_of_a_newer_agent_gives_its_sequence_at_least(caplog):
    body = b'{"status": {"nodeUID": "uid", "sequence": 41, "deviceAccess": "Lent"}}'
    assert read_report(body) is None
    assert "cannot be read" in caplog.text
    assert read_core(body) == ("uid", 41)


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff", b'{"status": {"sequence": "x"}}', b"[]"])
def test_an_answer_that_is_no_report_is_none(body):
    assert read_report(body) is None
    assert read_core(body) == ("", 0)
