"""The kubelet's own histogram: its buckets as they are, whatever else stands on its page."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.sources.kubelet_metrics import Allocations, KubeletMetrics, parse
from runtime.kubelet_page import no_page
from tests.api_server import ScriptedApi
from tests.lab.processes import wait_until

PAGE = b"""\
# HELP kubelet_device_plugin_alloc_duration_seconds [ALPHA] Duration in seconds.
# TYPE kubelet_device_plugin_alloc_duration_seconds histogram
kubelet_device_plugin_alloc_duration_seconds_bucket{resource_name="nvidia.com/gpu",le="0.005"} 4
kubelet_device_plugin_alloc_duration_seconds_bucket{resource_name="nvidia.com/gpu",le="10"} 5
kubelet_device_plugin_alloc_duration_seconds_bucket{resource_name="nvidia.com/gpu",le="+Inf"} 6
kubelet_device_plugin_alloc_duration_seconds_sum{resource_name="nvidia.com/gpu"} 12.5
kubelet_device_plugin_alloc_duration_seconds_count{resource_name="nvidia.com/gpu"} 6
kubelet_device_plugin_registration_total{resource_name="nvidia.com/gpu"} 7
"""


def test_buckets_and_sum_are_taken_as_they_are() -> None:
    assert parse(PAGE) == {"nvidia.com/gpu": Allocations((("0.005", 4), ("10", 5), ("+Inf", 6)), 12.5)}


def test_lines_that_are_not_understood_are_passed_over() -> None:
    garbage = (
        b"kubelet_device_plugin_alloc_duration_seconds_bucket{resource_name=\n"
        b'kubelet_device_plugin_alloc_duration_seconds_sum{resource_name="x"} 1.2.3\n'
        b"\xff\xfe\x00\n"
    )
    assert parse(garbage + PAGE) == parse(PAGE)


def test_a_resource_without_its_sum_is_not_shown() -> None:
    assert parse(b"\n".join(line for line in PAGE.splitlines() if b"_sum" not in line)) == {}


@given(st.binary(max_size=400))
def test_no_page_breaks_it(page: bytes) -> None:
    parse(page)
    parse(b"kubelet_device_plugin_alloc_duration_seconds_" + page)


def test_the_collector_shows_what_was_read_last(tmp_path: Path) -> None:
    source = KubeletMetrics(page=no_page, on_state=lambda _state, _message: None)
    source._found = parse(PAGE)
    (family,) = source.collect()
    shown = {(sample.name, sample.labels.get("le", "")): sample.value for sample in family.samples}
    name = "accelerator_kubelet_allocation_duration_seconds"
    assert shown[f"{name}_bucket", "10"] == 5
    assert shown[f"{name}_count", ""] == 6 and shown[f"{name}_sum", ""] == 12.5


@pytest.mark.parametrize(
    ("status", "state", "shown"), [(200, "Live", True), (403, "Unsupported", False), (500, "Failed", False)]
)
def test_a_page_that_may_not_be_read_is_unsupported_and_shows_nothing(
    status: int, state: str, shown: bool
) -> None:
    api, said = ScriptedApi(), []
    api.answer("GET", PAGE, status=status)
    session = api.session()
    source = KubeletMetrics(page=lambda: session, on_state=lambda *state: said.append(state))
    source.start()
    try:
        wait_until(lambda: said, 5, "a word", every=0.005)
    finally:
        assert source.close(5)
        api.close()
    assert said[0][0] == state
    assert bool(next(iter(source.collect())).samples) is shown
    assert [request.path for request in api.requests][:1] == ["/metrics"]


def test_without_an_address_the_reason_is_said() -> None:
    said = []
    source = KubeletMetrics(page=no_page, on_state=lambda *state: said.append(state))
    source.start()
    wait_until(lambda: said, 5, "a word", every=0.005)
    assert source.close(5)
    assert said == [("Unsupported", "no kubeletAddress is set")]
