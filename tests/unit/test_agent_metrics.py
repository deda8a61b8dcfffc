"""The agent's metrics: what a scrape shows, what it leaves out, and how many series that are."""

from collections import Counter
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from exporter import families
from exporter.metrics import Figures, Snapshot, publish_histogram, registry, watched_xids
from exporter.samples import DeviceSample
from exporter.state import NVML
from health import xids
from health.vocabulary import SourceState
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
    xid,
)

SERIES_LIMIT = 70
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def everything(state, *, monotonic=1001.0, figures=None):
    snapshot = Snapshot(
        state=state, monotonic=monotonic, interval=5.0, version="1.2", figures=figures or Figures()
    )
    return registry(lambda: snapshot, publish_histogram())


class Page:
    """A rendered page, parsed."""

    def __init__(self, state, **options):
        _, body = everything(state, **options).render("text/plain")
        self.samples = [
            found for family in text_string_to_metric_families(body.decode()) for found in family.samples
        ]

    def value(self, name, **labels):
        (found,) = self.find(name, **labels)
        return found.value

    def find(self, name, **labels):
        return [
            found for found in self.samples if found.name == name and labels.items() <= found.labels.items()
        ]

    def names(self, **labels):
        return {found.name for found in self.samples if labels.items() <= found.labels.items()}


def eight_devices():
    return (
        fresh_state()
        .with_inventory(inventory(*range(8)), NOW)
        .with_sample(sample(*map(full_sample, range(8))), NOW)
    )


def test_a_device_has_at_most_seventy_series_in_trouble_too():
    state = eight_devices()
    for number, code in enumerate((48, 171, 63, 154, 79, 119, 94, 31, 13)):
        state = state.with_message(xid(code, sequence=number))
    page = Page(state)
    per_device = Counter(found.labels["uuid"] for found in page.samples if found.labels.get("uuid"))
    assert set(per_device) == set(UUIDS)
    assert max(per_device.values()) <= SERIES_LIMIT
    assert per_device[UUIDS[0]] == 49


def test_every_value_of_a_sample_is_shown_in_base_units():
    page = Page(known_state())
    device = {"uuid": UUIDS[1], "device": "1"}
    assert page.value("accelerator_utilization_ratio", **device) == 0.5
    assert page.value("accelerator_memory_size_bytes", **device) == 80 * 2**30
    assert page.value("accelerator_temperature_celsius", sensor="memory", **device) == 70
    assert page.value("accelerator_energy_joules_total", **device) == 1e6
    assert page.value("accelerator_clock_hertz", domain="sm", **device) == 1.8e9
    assert page.value("accelerator_ecc_errors_total", error="corrected", **device) == 1
    assert page.value("accelerator_ecc_lifetime_errors_total", error="uncorrected", **device) == 2
    assert page.value("accelerator_ecc_enabled", **device) == 1
    assert page.value("accelerator_recovery_action", **device) == 0
    info = page.find("accelerator_info", **device)[0].labels
    assert (info["model"], info["serial"], info["pci_address"], info["driver_version"]) == (
        "NVIDIA H100 80GB HBM3",
        "1651",
        ADDRESSES[1],
        "580.95.05",
    )


def test_every_attribute_of_a_reading_is_one_of_a_sample():
    for reading in families.READINGS:
        for attribute in reading.attributes.values():
            assert attribute in DeviceSample.__struct_fields__


def test_what_a_device_does_not_support_is_no_series():
    sparse = sample(DeviceSample(uuid=UUIDS[0], power_watts=100.0))
    page = Page(known_state().with_sample(sparse, NOW))
    assert page.value("accelerator_power_watts", uuid=UUIDS[0]) == 100
    assert page.find("accelerator_utilization_ratio", uuid=UUIDS[0]) == []


def test_the_series_of_a_lost_device_disappear_but_for_its_xids_and_faults():
    state = known_state().with_message(xid(79))
    lost = sample(full_sample(0), DeviceSample(uuid=UUIDS[1], error="GpuIsLost"))
    page = Page(state.with_sample(lost, later(5)))
    assert page.names(uuid=UUIDS[1]) == {
        "accelerator_xid_errors_total",
        "accelerator_xid_last_timestamp_seconds",
        "accelerator_fault_active",
    }
    assert "accelerator_utilization_ratio" in page.names(uuid=UUIDS[0])


def test_a_sample_that_is_older_than_three_intervals_is_not_shown_and_the_device_is_unknown():
    assert Page(known_state(), monotonic=1015.0).find("accelerator_power_watts")
    stale = Page(known_state(), monotonic=1015.5)
    assert stale.find("accelerator_power_watts") == []
    assert stale.value("accelerator_health_state", uuid=UUIDS[0], state="Unknown") == 1
    assert stale.value("accelerator_info", uuid=UUIDS[0]) == 1


def test_released_devices_show_no_readings():
    page = Page(known_state().with_source(NVML, SourceState.RELEASED, ""))
    assert page.find("accelerator_power_watts") == []
    assert page.value("sickbay_device_access_held") == 0
    assert page.value("sickbay_source_state", source="nvml", state="Released") == 1


def test_health_is_one_state_of_four():
    page = Page(known_state().with_message(xid(79)))
    states = {
        found.labels["state"]: found.value for found in page.find("accelerator_health_state", device="1")
    }
    assert states == {"Healthy": 0, "Degraded": 0, "Failed": 1, "Unknown": 0}


def test_counters_of_the_xids_that_alerts_watch_are_there_from_the_start():
    page = Page(known_state())
    zeros = {found.labels["xid"] for found in page.find("accelerator_xid_errors_total", device="0")}
    assert {"79", "48", "63", "74", "94", "95", "119", "154"} <= zeros
    assert all(found.value == 0 for found in page.find("accelerator_xid_errors_total"))
    assert page.find("accelerator_xid_last_timestamp_seconds") == []


def test_a_code_that_the_operator_calls_fatal_is_watched_too():
    row = "\t".join(["31", "N", "m", "-", "-", "EngineHung", "Fatal", "ResetDevice", "DeviceReset"])
    own = xids.parse("\t".join(xids.COLUMNS) + "\n" + row, file="own.tsv")
    assert 31 not in watched_xids(xids.builtin())
    assert 31 in watched_xids(xids.builtin().overridden(own))


def test_xids_are_counted_by_device_and_code_with_the_time_of_the_last():
    state = known_state().with_message(xid(31)).with_message(xid(31, sequence=2, at=later(9)))
    page = Page(state)
    labels = {"uuid": UUIDS[1], "device": "1", "xid": "31"}
    assert page.value("accelerator_xid_errors_total", **labels) == 2
    assert page.value("accelerator_xid_last_timestamp_seconds", **labels) == later(9).timestamp()


def test_an_xid_of_an_address_that_nobody_knows_shows_the_address():
    page = Page(fresh_state().with_message(xid(79, address="0000:aa:00.0")))
    assert page.value("accelerator_xid_errors_total", uuid="", device="0000:aa:00.0", xid="79") == 1
    assert page.value("accelerator_fault_active", uuid="", device="", kind="DeviceLost") == 1


def test_an_nvswitch_error_is_counted():
    line = "nvidia-nvswitch1: SXid (PCI:0000:00:08.0): 11004, Non-fatal, Link 36 ingress invalid ACL"
    page = Page(known_state().with_message(message(line)))
    assert page.value("accelerator_sxid_errors_total", pci_address="0000:00:08.0", sxid="11004") == 1


def test_open_faults_are_shown_with_their_severity():
    page = Page(known_state().with_message(xid(79)))
    assert (
        page.value("accelerator_fault_active", uuid=UUIDS[1], device="1", kind="DeviceLost", severity="Fatal")
        == 1
    )
    assert Page(known_state()).find("accelerator_fault_active") == []


def test_the_agent_shows_itself():
    figures = Figures(
        kernel_lines={"xid": 3, "spoofed": 1},
        kernel_lost=7,
        worker_restarts=2,
        report_writes={"fatal": 1},
        report_failures={"Forbidden": 4},
        report_written=NOW,
        state_file_failures=5,
    )
    page = Page(replace(known_state(), drill=True), figures=figures)
    assert page.value("sickbay_build_info", version="1.2") == 1
    assert page.value("sickbay_kernel_log_lines_total", outcome="spoofed") == 1
    assert page.value("sickbay_kernel_log_lost_records_total") == 7
    assert page.value("sickbay_nvml_worker_restarts_total") == 2
    assert page.value("sickbay_report_writes_total", kind="fatal") == 1
    assert page.value("sickbay_report_failures_total", reason="Forbidden") == 4
    assert page.value("sickbay_report_last_write_timestamp_seconds") == NOW.timestamp()
    assert page.value("sickbay_state_file_failures_total") == 5
    assert page.value("sickbay_drill") == 1
    assert page.value("sickbay_source_last_success_timestamp_seconds", source="nvml") == NOW.timestamp()
    assert page.value("sickbay_source_duration_seconds", source="nvml") == 0.05
    assert page.value("sickbay_report_publish_duration_seconds_count") == 0
    assert page.find("process_resident_memory_bytes")


def test_what_has_never_happened_has_no_time():
    page = Page(fresh_state())
    assert page.find("sickbay_source_last_success_timestamp_seconds") == []
    assert page.find("sickbay_report_last_write_timestamp_seconds") == []


@pytest.mark.parametrize("state", [fresh_state(), known_state(), eight_devices().with_message(xid(79))])
def test_both_formats_are_rendered_and_no_collector_fails(state):
    everything_there = everything(state)
    for accept in ("text/plain", OPENMETRICS):
        _, body = everything_there.render(accept)
        assert b"sickbay_build_info" in body
        assert b'sickbay_collector_errors_total{collector="devices"} 0' in body
        assert b'sickbay_collector_errors_total{collector="agent"} 0' in body


def test_every_family_that_is_shown_is_described_with_a_help_text_and_the_other_way_round():
    described = {family.name: family for family in everything(known_state()).describe()}
    for family in families.ALL:
        name = family.name.removesuffix("_total") if family.kind == "counter" else family.name
        assert described[name].type == family.kind
        assert described[name].documentation == family.help
        assert family.help.endswith(".")
        assert (family.kind == "counter") == family.name.endswith("_total")
    page = Page(known_state())
    shown = {name for name in page.names() if name.startswith(("accelerator_", "sickbay_"))}
    listed = {family.name for family in families.ALL}
    own = {name for name in shown if name not in listed}
    assert own <= {
        "sickbay_collector_errors_total",
        "sickbay_report_publish_duration_seconds_bucket",
        "sickbay_report_publish_duration_seconds_count",
        "sickbay_report_publish_duration_seconds_sum",
    }


def test_the_labels_of_a_series_are_those_of_its_family():
    labels = {family.name: set(family.labels) for family in families.ALL}
    for found in Page(known_state().with_message(xid(79))).samples:
        if found.name in labels:
            assert set(found.labels) == labels[found.name]
