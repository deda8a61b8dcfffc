"""Faults of device plugins: what is seen for long enough is a fault, what is not known is none."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import pytest

from health.accelerators import uuid_of
from health.plugin_faults import CLEAR_SECONDS, PLUGIN_FAULTS, resource_of
from health.vocabulary import FaultKind, Scope, Severity
from tests.unit.plugin_ward import (
    DEAD,
    DOUBTFUL,
    GONE,
    GPU,
    HUNG,
    LOST,
    NEVER,
    NOON,
    SERVING,
    UUIDS,
    Seen,
    Ward,
)

ONE = "GPU-3"
REST = UUIDS - {ONE}
MIG = "nvidia.com/mig-1g.10gb"


def test_a_plugin_that_serves_all_devices_has_no_fault() -> None:
    assert Ward().see_for(60, SERVING).kinds == []


@pytest.mark.parametrize(
    ("plugin", "healthy", "kind", "severity", "advice"),
    [
        (DEAD, (), FaultKind.PLUGIN_DEAD, "Degraded", "RestartPlugin"),
        (GONE, (), FaultKind.PLUGIN_DEAD, "Degraded", "RestartPlugin"),
        (DEAD, UUIDS, FaultKind.PLUGIN_WEDGED, "Fatal", "RestartService"),
        (NEVER, UUIDS, FaultKind.PLUGIN_WEDGED, "Fatal", "RestartService"),
        (HUNG, UUIDS, FaultKind.PLUGIN_HUNG, "Degraded", "RestartPlugin"),
        (LOST, UUIDS, FaultKind.PLUGIN_SOCKET_LOST, "Degraded", "None"),
    ],
)
def test_what_a_plugin_does_is_a_fault_once_it_has_lasted_and_over_once_it_serves(
    plugin: Seen, healthy: Iterable[str], kind: FaultKind, severity: str, advice: str
) -> None:
    dwell = PLUGIN_FAULTS[kind][2]
    ward = Ward().see_for(dwell, plugin, healthy=healthy)
    assert ward.kinds == []
    fault = ward.see_for(1, plugin, healthy=healthy).only
    assert (fault.kind, fault.severity, fault.advice, fault.scope) == (kind, severity, advice, Scope.NODE)
    assert (fault.code, resource_of(fault.code)) == ("plugin:nvidia.com/gpu", GPU)
    assert fault.first_seen == NOON + timedelta(seconds=0.5), "when it began, not when it was believed"
    assert ward.see_for(CLEAR_SECONDS, SERVING).kinds == [kind]
    assert ward.see_for(1, SERVING).kinds == []


def test_a_hung_plugin_is_found_within_ten_seconds_of_a_probe_every_two_that_waits_two() -> None:
    assert 2 + 2 + PLUGIN_FAULTS[FaultKind.PLUGIN_HUNG][2] + 0.5 < 10


def test_a_node_that_never_had_a_plugin_has_no_fault() -> None:
    assert Ward().see_for(60, NEVER, healthy=()).kinds == []
    assert Ward().see_for(60, NEVER, healthy=None).kinds == []


def test_a_plugin_that_was_gone_before_the_probe_began_is_known_by_the_pods_that_hold_its_devices() -> None:
    assert Ward().see_for(10, NEVER, healthy=(), held={GPU}).kinds == ["PluginDead"]


def test_the_death_of_a_plugin_of_something_else_is_no_fault() -> None:
    network = Seen("Dead", resource="intel.com/sriov", socket="intel.com_sriov")
    unnamed = Seen("Dead", resource="", socket="other.sock")
    assert Ward().see_for(60, SERVING, network, unnamed).kinds == []
    assert (
        Ward().see_for(60, SERVING, network, healthy={GPU: UUIDS, "intel.com/sriov": {"nic-0"}}).kinds == []
    )


def test_a_resource_with_a_name_of_its_own_is_ours_by_its_devices() -> None:
    named = Seen("Hung", resource="example.com/big-gpu", socket="example.com_big-gpu")
    ward = Ward().see_for(10, named, healthy={"example.com/big-gpu": UUIDS})
    assert (ward.kinds, ward.only.code) == (["PluginHung"], "plugin:example.com/big-gpu")


def test_a_plugin_of_which_nothing_can_be_told_neither_begins_a_fault_nor_ends_one() -> None:
    assert Ward().see_for(60, DOUBTFUL, healthy=()).kinds == []
    assert Ward().see_for(8, DEAD, healthy=()).see_for(60, DOUBTFUL, healthy=()).kinds == ["PluginDead"]


def test_a_lost_socket_becomes_a_wedge_when_an_allocation_fails() -> None:
    ward = Ward().see_for(8, LOST)
    assert ward.kinds == ["PluginSocketLost"]
    failed = {GPU: ward.now}
    ward.see_for(6, LOST, failed=failed)
    assert ward.kinds == ["PluginWedged"]
    assert ward.see_for(600, LOST, failed=failed).kinds == ["PluginWedged"], "it does not heal by itself"


def test_an_allocation_that_failed_before_the_socket_was_lost_says_nothing() -> None:
    ward = Ward().see_for(100, SERVING)
    failed = {GPU: ward.now - 10}
    assert ward.see_for(20, LOST, failed=failed).kinds == ["PluginSocketLost"]


def test_a_lost_socket_is_no_wedge_only_because_the_agent_was_restarted() -> None:
    ward = Ward().see_for(8, LOST).restart()
    assert ward.see_for(60, NEVER).kinds == ["PluginSocketLost"]
    assert ward.see_for(8, NEVER, failed={GPU: ward.now}).kinds == ["PluginWedged"]


def test_a_lost_socket_is_a_dead_plugin_once_the_kubelet_was_restarted_without_it() -> None:
    assert Ward().see_for(8, LOST).see_for(12, GONE, healthy=()).kinds == ["PluginDead"]
    assert Ward().see_for(8, LOST).restart().see_for(12, NEVER, healthy=()).kinds == ["PluginDead"]


def test_a_wedge_ends_with_the_kubelet_and_leaves_a_dead_plugin_where_none_comes_back() -> None:
    ward = Ward().see_for(8, GONE)
    assert ward.kinds == ["PluginWedged"]
    ward.see_for(2, GONE, healthy=None)
    assert ward.see_for(6, GONE, healthy=()).kinds == ["PluginDead"]


def test_a_dead_plugin_is_told_also_where_the_kubelet_does_not_tell_its_devices() -> None:
    assert Ward().see_for(8, DEAD, healthy=None).kinds == ["PluginDead"]


def test_a_probe_that_begins_anew_does_not_end_the_fault_of_a_plugin_that_is_gone_with_its_socket() -> None:
    ward = Ward().see_for(8, DEAD, healthy=()).restart()
    assert ward.see_for(60, NEVER, healthy=()).kinds == ["PluginDead"]
    assert ward.see_for(6, SERVING).kinds == []


def test_a_fault_that_another_process_raised_is_over_when_it_is_seen_to_be() -> None:
    ward = Ward().see_for(8, HUNG)
    first_seen = ward.only.first_seen
    ward.restart().see_for(8, HUNG)
    assert (ward.kinds, ward.only.first_seen, ward.only.count) == (["PluginHung"], first_seen, 1)
    assert ward.restart().see_for(6, SERVING).kinds == []


def test_one_device_that_is_not_offered_is_a_fault_of_that_device() -> None:
    fault = Ward().see_for(20, SERVING, healthy=REST).only
    assert (fault.kind, fault.device_uuid, fault.scope) == ("DeviceNotOffered", ONE, Scope.DEVICE)
    assert (fault.severity, fault.advice) == (Severity.DEGRADED, "RestartPlugin")
    assert fault.code == "plugin:nvidia.com/gpu"


def test_a_device_with_a_fault_of_its_own_need_not_be_offered() -> None:
    assert Ward().see_for(60, SERVING, healthy=REST, sound=REST, bad={ONE}).kinds == []
    assert Ward().see_for(60, SERVING, healthy=REST, sound=REST).kinds == []


def test_a_device_that_turns_out_to_be_bad_is_rightly_not_offered() -> None:
    ward = Ward().see_for(20, SERVING, healthy=REST)
    assert ward.see_for(6, SERVING, healthy=REST, sound=REST, bad={ONE}).kinds == []


def test_a_device_whose_health_is_not_known_any_more_stays_not_offered() -> None:
    ward = Ward().see_for(20, SERVING, healthy=REST)
    assert ward.see_for(60, SERVING, healthy=REST, sound=()).kinds == ["DeviceNotOffered"]
    assert ward.see_for(6, SERVING).kinds == []


def test_a_device_that_was_replaced_is_missed_no_longer() -> None:
    ward = Ward().see_for(20, SERVING, healthy=REST).restart()
    assert ward.see_for(6, SERVING, healthy=REST, sound=REST, devices=REST).kinds == []


def test_a_plugin_that_serves_and_offers_nothing_is_one_fault_of_the_node() -> None:
    fault = Ward().see_for(20, SERVING, healthy=()).only
    assert (fault.kind, fault.device_uuid, fault.scope) == ("DeviceNotOffered", "", Scope.NODE)
    assert Ward().see_for(60, SERVING, healthy=(), sound=()).kinds == [], (
        "none of them is known to be healthy"
    )


@pytest.mark.parametrize("plugin", [HUNG, DEAD, LOST, NEVER])
def test_devices_are_missed_only_while_the_plugin_serves(plugin: Seen) -> None:
    assert "DeviceNotOffered" not in Ward().see_for(60, plugin, healthy=REST).kinds


def test_a_bad_device_that_is_offered_is_a_fault_that_does_not_act_by_itself() -> None:
    ward = Ward().see_for(8, SERVING, sound=REST, bad={ONE})
    assert (ward.kinds, ward.only.device_uuid) == (["DeviceOfferedThoughBad"], ONE)
    assert (ward.only.advice, ward.only.severity, ward.only.drill) == ("None", "Degraded", False)
    assert ward.see_for(6, SERVING, healthy=REST, sound=REST, bad={ONE}).kinds == []


def test_a_device_that_is_bad_by_a_drill_is_offered_by_a_drill() -> None:
    assert Ward().see_for(8, SERVING, sound=REST, bad={ONE}, drills={ONE}).only.drill


def test_a_bad_device_is_seen_to_be_offered_without_the_probe() -> None:
    ward = Ward().see_for(8, probed=False, sound=REST, bad={ONE})
    assert ward.kinds == ["DeviceOfferedThoughBad"]


def test_ids_that_are_none_of_our_devices_say_nothing_about_them() -> None:
    assert Ward().see_for(60, SERVING, healthy={"MIG-1", "MIG-2"}).kinds == []


@pytest.mark.parametrize("profile", [{MIG: {"MIG-1"}}, {MIG: ()}])
def test_a_device_that_is_divided_is_not_missed_whole(profile: dict[str, Any]) -> None:
    parts = Seen("Serving", resource=MIG, socket="nvidia-mig-1g.10gb.sock")
    assert Ward().see_for(60, SERVING, parts, healthy={GPU: REST, **profile}).kinds == []


def test_a_device_that_is_shared_is_offered_by_each_of_its_parts() -> None:
    shared = {f"{uuid}::{part}" for uuid in UUIDS for part in range(4)}
    assert {uuid_of(one) for one in shared} == UUIDS
    assert Ward().see_for(60, SERVING, healthy=shared).kinds == []


def test_two_resources_share_our_devices_between_them() -> None:
    other = Seen("Serving", resource="nvidia.com/gpu.shared", socket="nvidia-gpu.shared.sock")
    halves = {GPU: REST, "nvidia.com/gpu.shared": {f"{ONE}::0", f"{ONE}::1"}}
    assert Ward().see_for(60, SERVING, other, healthy=halves).kinds == []


def test_two_plugins_with_the_same_fault_are_one_fault_that_names_both() -> None:
    other = Seen("Hung", resource=MIG, socket="nvidia-mig.sock")
    ward = Ward().see_for(8, HUNG)
    before = ward.only
    ward.see_for(8, HUNG, other)
    assert (ward.only.first_seen, ward.only.code) == (before.first_seen, before.code)
    assert "nvidia-gpu.sock" in ward.excerpt and "nvidia-mig.sock" in ward.excerpt
    ward.see_for(8, SERVING, other)
    assert ward.only.code == f"plugin:{MIG}"
    assert "nvidia-gpu.sock" not in ward.excerpt


def test_a_resource_that_the_vendor_does_not_serve_any_more_has_no_dead_plugin() -> None:
    parts = Seen("Serving", resource=MIG, socket="nvidia-mig-1g.10gb.sock")
    gone = Seen("Dead", present=False, resource=MIG, socket="nvidia-mig-1g.10gb.sock")
    ward = Ward().see_for(8, SERVING, parts, healthy={GPU: REST, MIG: {"MIG-1"}})
    assert ward.see_for(60, SERVING, gone).kinds == []
    assert ward.see_for(20, SERVING, gone, healthy=REST).kinds == ["DeviceNotOffered"]
    assert ward.see_for(10, SERVING, gone).kinds == []
    assert ward.see_for(10, GONE, gone, healthy=()).kinds == ["PluginDead"]


def test_one_plugin_that_serves_does_not_end_the_fault_of_another() -> None:
    dead = Seen("Dead", resource=MIG, socket="nvidia-mig-1g.10gb.sock")
    ward = Ward().see_for(8, SERVING, dead)
    assert ward.see_for(60, SERVING, dead).only.code == f"plugin:{MIG}"


@pytest.mark.parametrize("blind", [{"probed": False}, {"probed": False, "healthy": None}])
def test_while_the_probe_does_not_work_no_fault_begins_and_none_ends(blind: dict[str, object]) -> None:
    for plugin, healthy in ((DEAD, ()), (DEAD, UUIDS), (HUNG, UUIDS), (LOST, UUIDS)):
        ward = Ward().see_for(8, plugin, healthy=healthy)
        kinds = ward.kinds
        assert kinds
        assert ward.see_for(1200, SERVING, **blind).kinds == kinds
        assert Ward().see_for(60, plugin, **{"healthy": healthy, **blind}).kinds == []


def test_while_the_kubelet_does_not_answer_nothing_is_said_of_its_devices() -> None:
    assert Ward().see_for(60, SERVING, healthy=None, sound=REST, bad={ONE}).kinds == []
    assert Ward().see_for(60, NEVER, healthy=None).kinds == []
    ward = Ward().see_for(20, SERVING, healthy=REST - {"GPU-0"}, sound=REST, bad=())
    assert ward.see_for(60, SERVING, healthy=None).kinds == ["DeviceNotOffered"]
    ward = Ward().see_for(8, SERVING, sound=REST, bad={ONE})
    assert ward.see_for(60, SERVING, healthy=None).kinds == ["DeviceOfferedThoughBad"]
    ward = Ward().see_for(8, DEAD)
    assert ward.see_for(60, DEAD, healthy=None).kinds == ["PluginWedged"]


def test_a_fault_that_lasts_is_said_again_every_thirty_seconds_and_not_counted_again() -> None:
    ward = Ward().see_for(6, DEAD, healthy=())
    first = ward.only
    assert ward.see_for(29, DEAD, healthy=()).only is first
    later = ward.see_for(2, DEAD, healthy=()).only
    assert later.last_seen - first.last_seen == timedelta(seconds=30)
    assert (later.count, later.first_seen) == (1, first.first_seen)


@pytest.mark.parametrize("seconds", [0.5, 1.0, 2.0])
def test_a_plugin_or_kubelet_that_is_restarted_is_no_fault(seconds: float) -> None:
    ward = Ward().see_for(10, SERVING)
    ward.see_for(seconds, DEAD, healthy=()).see_for(20, SERVING)
    ward.see_for(seconds, GONE, healthy=None).see_for(seconds, SERVING, healthy=())
    assert ward.see_for(20, SERVING).kinds == []
