"""Up the rungs: reset and reboot by real Jobs on real kubelets, and everything that may come in between."""

from __future__ import annotations

import msgspec
import pytest

from tests.cannot_run import cannot_run
from tests.lab.cgroups import only_v2
from tests.lab.repair.hosts import freeze, templates
from tests.lab.repair.ward import (
    GSP_TIMEOUT,
    REMAP_FAILED,
    UNCONTAINED,
    Ward,
    again,
    plugin_that_does_not_leave,
    steps_of,
    upgrade,
)
from tests.lab.workloads import deployment, is_cordoned, placed, pods_of, running

pytestmark = pytest.mark.timeout(400)


def test_a_fault_that_a_reset_heals_ends_in_a_node_that_takes_its_jobs_back(
    ward: Ward, namespace: str
) -> None:
    ward.lab.apply(*placed(namespace, deployment("train", 4, node="g1")))
    ward.wait(lambda: len(running(ward.lab, namespace, "g1")) == 4, 60, "the GPU pods to run")
    plugin = ward.pods.plugin_pod("g1")["metadata"]["uid"]
    ward.kernel_says(UNCONTAINED)
    ward.until(lambda status: status["phase"] == "Repairing", "the drain to be over")
    assert is_cordoned(ward.lab, "g1")
    status = ward.ends("Released", "Healthy")
    assert steps_of(status) == [
        "Cordon",
        "Drain",
        "ReleaseDevices",
        "Reset",
        "Restore",
        "RestartPlugin",
        "RemoveFailedPods",
        "Uncordon",
    ]
    assert status["repair"]["done"] == ["Reset"]
    assert (ward.resets, ward.host.boots, len(ward.ran("reset")), ward.ran("reboot")) == (1, 0, 1, [])
    ward.is_whole()
    assert ward.pods.plugin_pod("g1")["metadata"]["uid"] != plugin
    ward.wait(lambda: len(running(ward.lab, namespace, "g1")) == 4, 60, "the GPU pods to be back")
    (job,) = ward.ran("reset")
    pod = next(
        iter(pods_of(ward.lab, "sickbay-repair", **{"batch.kubernetes.io/job-name": job["metadata"]["name"]}))
    )
    assert pod["spec"]["nodeName"] == "g1"


def test_a_fault_that_only_a_boot_heals_ends_in_a_node_that_has_booted_once(ward: Ward) -> None:
    ward.pods.lose_gpu("g1")
    status = ward.ends("Released", "Healthy")
    assert steps_of(status) == ["Cordon", "Drain", "Reboot", "Uncordon"]
    assert (ward.host.boots, len(ward.ran("reboot")), ward.ran("reset")) == (1, 1, [])
    ward.is_whole()


def test_a_reset_that_does_not_help_climbs_to_a_reboot(ward: Ward) -> None:
    ward.host.change(
        ward.uuid,
        lambda one: msgspec.structs.replace(one, reset_helps=False, reset_required=True, recovery_action=1),
    )
    ward.kernel_says(UNCONTAINED)
    status = ward.ends("Released", "Healthy", 180)
    assert status["repair"]["done"] == ["Reboot", "Reset"]
    assert (len(ward.ran("reset")), len(ward.ran("reboot")), ward.host.boots) == (1, 1, 1)
    assert [told.split(":")[0] for told in status["repair"]["failures"]] == ["ResetDevice"]
    ward.is_whole()


def test_a_reboot_that_does_not_help_ends_with_a_person(ward: Ward) -> None:
    ward.host.boot_heals = False
    ward.host.change(ward.uuid, lambda one: msgspec.structs.replace(one, lost=True))
    ward.pods.lose_gpu("g1")
    status = ward.until(lambda status: status["phase"] == "Held", "the session to be held", 180)
    assert status["reason"] in ("NotProvenHealthy", "NotHealed")
    assert ward.host.boots == 1 and is_cordoned(ward.lab, "g1")
    ward.gives_everything_back()


def test_who_holds_a_device_is_named_and_the_next_rung_follows(ward: Ward) -> None:
    ward.host.change(ward.uuid, lambda one: msgspec.structs.replace(one, held_by="cuda-gdb"))
    ward.kernel_says(UNCONTAINED)
    status = ward.ends("Released", "Healthy", 180)
    assert "cuda-gdb" in status["repair"]["failures"][0]
    assert status["repair"]["done"] == ["Reboot"] and ward.host.boots == 1


def test_without_a_next_rung_a_held_device_is_a_persons_affair(ward: Ward) -> None:
    ward.host.change(ward.uuid, lambda one: msgspec.structs.replace(one, held_by="cuda-gdb"))
    ward.kernel_says(GSP_TIMEOUT)
    status = ward.ends("Held", "DeviceHeld")
    assert "cuda-gdb" in status["message"] and "xid:119" in status["message"]
    ward.gives_everything_back()
    assert ward.host.boots == 0


def test_an_image_that_is_missing_is_named(ward: Ward) -> None:
    template = next(one for one in templates(ward.lab.server) if one["metadata"]["name"] == "reset")
    for container in (
        *template["template"]["spec"]["initContainers"],
        *template["template"]["spec"]["containers"],
    ):
        container["image"] = "registry.invalid/nobody:gone"
    ward.lab.apply(template)
    ward.kernel_says(GSP_TIMEOUT)
    status = ward.ends("Held", "RepairNotSeen")
    assert "Image" in status["message"]
    assert ward.resets == 0
    ward.gives_everything_back()


def test_a_node_that_never_comes_back_is_held(ward: Ward) -> None:
    ward.host.comes_back = False
    ward.pods.lose_gpu("g1")
    status = ward.ends("Held", "RepairNotSeen", 180)
    assert "RebootNode" in status["message"] and ward.host.boots == 1
    ward.host.comes_back = True


def test_a_driver_upgrade_that_begins_in_the_middle_has_the_node_to_itself(ward: Ward) -> None:
    with plugin_that_does_not_leave(ward):
        ward.kernel_says(UNCONTAINED)
        ward.until(lambda status: status["reason"] == "ReleaseDevices", "the devices to be released")
        upgrade(ward, "upgrade-in-progress")
        ward.until(lambda status: status["phase"] == "Fenced", "the session to stand back")
        ward.gives_everything_back()
    assert ward.ran("reset") == []
    upgrade(ward, None)
    ward.ends("Released", "Healthy")
    assert (ward.resets, len(ward.ran("reset"))) == (1, 1)


def test_a_persons_hold_between_drain_and_reset_stops_it_and_their_word_lets_it_go_on(ward: Ward) -> None:
    with plugin_that_does_not_leave(ward):
        ward.kernel_says(UNCONTAINED)
        ward.until(lambda status: status["reason"] == "ReleaseDevices", "the devices to be released")
        ward.lab.kubectl("annotate", "node", "g1", "sickbay.dev/hold=alice")
        ward.ends("Held", "HeldByUser")
        ward.gives_everything_back()
    assert ward.ran("reset") == [] and is_cordoned(ward.lab, "g1")
    ward.lab.kubectl("annotate", "node", "g1", "sickbay.dev/hold-")
    ward.ends("Released", "Healthy")
    assert (ward.resets, len(ward.ran("reset"))) == (1, 1)


def test_pods_that_cannot_end_stop_a_reset_and_not_a_reboot(ward: Ward, namespace: str) -> None:
    if only_v2():
        reason = "cgroup v2 lets frozen processes be killed: nothing here cannot end"
        cannot_run(reason)
    ward.lab.apply(*placed(namespace, deployment("stuck", 1, node="g1")))
    (pod,) = ward.wait(lambda: running(ward.lab, namespace, "g1"), 60, "the GPU pod to run")
    assert freeze(pod["metadata"]["uid"], frozen=True)
    try:
        ward.kernel_says(GSP_TIMEOUT)
        ward.until(lambda status: status["phase"] == "Draining", "the drain to begin")
        ward.wait(
            lambda: "Terminating" in ward.status()["message"] or "terminating" in ward.status()["message"],
            90,
            "the pod to be found stuck",
        )
        assert ward.ran("reset") == []
        # Now the bus is lost as well: a boot is due, which ends what nothing else ends.
        ward.pods.lose_gpu("g1")
        status = ward.ends("Released", "Healthy", 240)
    finally:
        freeze(pod["metadata"]["uid"], frozen=False)
    assert (ward.host.boots, ward.ran("reset")) == (1, [])
    assert "stuck" in msgspec.json.encode(status["journal"]).decode()


def test_a_job_that_is_started_twice_acts_once(ward: Ward) -> None:
    ward.kernel_says(UNCONTAINED)
    ward.ends("Released", "Healthy")
    receipts = ward.host.receipts("reset")
    again(ward, ward.ran("reset")[0])
    assert ward.host.receipts("reset") == receipts
    ward.pods.lose_gpu("g1")
    ward.until(lambda status: status["phase"] == "Repairing", "the next session to repair")
    ward.ends("Released", "Healthy")
    again(ward, ward.ran("reboot")[0])
    assert ward.host.boots == 1


def test_a_device_that_is_replaced_ends_its_session_by_itself(ward: Ward) -> None:
    ward.kernel_says(REMAP_FAILED)
    ward.ends("Held", "ReplaceHardware")
    spare = f"{ward.uuid[:-4]}5a5a"
    ward.host.change(ward.uuid, lambda one: msgspec.structs.replace(one, uuid=spare, serial="9999"))
    ward.host.power_cycle()
    try:
        ward.ends("Released", "DeviceReplaced")
        ward.is_whole()
    finally:
        ward.uuid = spare
