"""The kubelets of the embedded control plane, and what is done about nodes that fall silent."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from runtime.clock import SystemClock
from simulation.cluster.control_plane import ControlPlane
from simulation.cluster.interface import StoreError
from simulation.cluster.kubelet import UnknownNodeError
from simulation.cluster.kubelet_node import NodeShape, Timings
from simulation.cluster.store import ClusterStore
from tests.unit.cluster_rig import GPU, Object, Plugins, Processes, Rig, condition, pod, template, workload

REAL = Timings()


def gpu_rig(plugins: Plugins | None = None, **more: Any) -> tuple[Rig, Plugins]:
    plugins = plugins or Plugins(8)
    rig = Rig(**more)
    rig.add_node("g1", plugins=plugins)
    return rig, plugins


def amounts(rig: Rig, name: str = "g1") -> tuple[str, str]:
    status = rig.get("nodes", name)["status"]
    return status["capacity"].get(GPU, ""), status["allocatable"].get(GPU, "")


def phase(rig: Rig, name: str = "p") -> str:
    return str(rig.get("pods", name)["status"]["phase"])


def container(rig: Rig, name: str = "p", *, init: bool = False, index: int = 0) -> Object:
    kind = "initContainerStatuses" if init else "containerStatuses"
    found: Object = rig.get("pods", name)["status"][kind][index]
    return found


def noted(**notes: str) -> dict[str, str]:
    return {f"sickbay.dev/simulate-{key.replace('_', '-')}": value for key, value in notes.items()}


def test_a_node_registers_ready_with_its_boot_and_its_devices() -> None:
    rig, _ = gpu_rig()
    node = rig.get("nodes", "g1")
    assert (condition(node, "Ready") or {})["reason"] == "KubeletReady"
    assert node["status"]["nodeInfo"]["bootID"] == "boot-1" == rig.plane.kubelets.boot_id("g1")
    assert amounts(rig) == ("8", "8")
    lease = rig.store.get("leases.coordination.k8s.io", "g1", namespace="kube-node-lease")
    assert lease["metadata"]["ownerReferences"][0]["uid"] == node["metadata"]["uid"]


def test_a_node_that_is_there_already_keeps_its_labels() -> None:
    rig = Rig()
    rig.create("nodes", {"metadata": {"name": "n1", "labels": {"a": "1"}}})
    rig.add_node("n1", labels={"a": "2"})
    assert rig.get("nodes", "n1")["metadata"]["labels"] == {"a": "1"}
    assert (condition(rig.get("nodes", "n1"), "Ready") or {})["status"] == "True"


def test_a_second_machine_of_one_name_is_refused_and_an_unknown_one_named() -> None:
    rig = Rig(nodes=1)
    with pytest.raises(ValueError, match="'n1'"):
        rig.plane.kubelets.add_node(NodeShape(name="n1"))
    with pytest.raises(UnknownNodeError, match="n9"):
        rig.plane.kubelets.reboot("n9", seconds=1)


def test_a_pod_starts_after_its_time_and_becomes_ready_after_its_own() -> None:
    rig = Rig(nodes=1, timings=REAL)
    rig.create("pods", pod(annotations=noted(ready_seconds="5")))
    assert container(rig)["state"] == {"waiting": {"reason": "ContainerCreating"}}
    assert phase(rig) == "Pending"
    rig.advance(0.4)
    assert phase(rig) == "Running"
    assert (rig.condition("pods", "p", "Ready") or {})["status"] == "False"
    rig.advance(5)
    assert (rig.condition("pods", "p", "Ready") or {})["status"] == "True"


def test_init_containers_run_one_after_the_other_before_the_rest() -> None:
    processes = Processes()
    rig = Rig()
    rig.add_node("n1", programs=processes)
    inits = [{"name": name, "image": "i:1"} for name in ("one", "two")]
    rig.create("pods", pod(initContainers=inits))
    assert [launch.container for launch in processes.launches] == ["one"]
    assert container(rig)["state"] == {"waiting": {"reason": "PodInitializing"}}
    processes.end(0, 0)
    rig.settle()
    assert [launch.container for launch in processes.launches] == ["one", "two"]
    assert phase(rig) == "Pending"
    processes.end(1, 0)
    rig.settle()
    assert phase(rig) == "Running"
    assert container(rig, init=True, index=1)["state"]["terminated"]["exitCode"] == 0


def test_an_init_container_that_fails_for_good_fails_the_pod() -> None:
    rig = Rig(nodes=1)
    notes = {"sickbay.dev/simulate-seconds.check": "1", "sickbay.dev/simulate-exit.check": "3"}
    inits = [{"name": "check", "image": "i:1"}]
    rig.create("pods", pod(annotations=notes, initContainers=inits, restartPolicy="Never"))
    rig.advance(2)
    assert phase(rig) == "Failed"
    assert container(rig, init=True)["state"]["terminated"]["exitCode"] == 3
    assert "waiting" in container(rig)["state"]


@pytest.mark.parametrize(
    ("policy", "code", "expected"),
    [
        ("Never", "0", "Succeeded"),
        ("Never", "1", "Failed"),
        ("OnFailure", "0", "Succeeded"),
        ("OnFailure", "1", "Running"),
        ("Always", "0", "Running"),
    ],
)
def test_what_becomes_of_an_ended_container_depends_on_the_policy(
    policy: str, code: str, expected: str
) -> None:
    rig = Rig(nodes=1)
    rig.create("pods", pod(annotations=noted(seconds="5", exit=code), restartPolicy=policy))
    rig.advance(6)
    assert phase(rig) == expected
    assert container(rig)["restartCount"] == (1 if expected == "Running" else 0)


def test_a_container_that_goes_on_ending_is_started_less_and_less_often() -> None:
    rig = Rig(nodes=1)
    rig.create("pods", pod(annotations=noted(seconds="0", exit="1")))
    starts = []
    for second in range(100):
        if container(rig)["restartCount"] > len(starts):
            starts.append(second)
        rig.advance(1)
    assert starts == [0, 10, 30, 70] or starts == [0, 10, 31, 71] or starts == [0, 11, 31, 71]
    waiting = container(rig)["state"]["waiting"]
    uid = rig.get("pods", "p")["metadata"]["uid"]
    assert waiting["reason"] == "CrashLoopBackOff"
    assert waiting["message"] == f"back-off 1m20s restarting failed container=c pod=p_default({uid})"
    assert container(rig)["lastState"]["terminated"]["exitCode"] == 1


def test_a_deleted_pod_is_told_then_killed_when_its_grace_is_over() -> None:
    processes = Processes()
    rig = Rig(timings=REAL)
    rig.add_node("n1", programs=processes)
    rig.create("pods", pod(terminationGracePeriodSeconds=5))
    rig.advance(1)
    rig.delete("pods", "p")
    assert processes.running[0].heard == ["TERM"]
    assert (rig.condition("pods", "p", "Ready") or {})["status"] == "True"
    rig.advance(5)
    assert processes.running[0].heard == ["TERM", "KILL"]
    assert container(rig)["state"]["terminated"]["exitCode"] == 137
    rig.advance(1)
    assert rig.names() == []


def test_a_process_that_ends_on_sigterm_ends_with_143_and_its_pod_goes_early() -> None:
    rig = Rig(nodes=1, timings=REAL)
    rig.create("pods", pod(annotations=noted(stop_seconds="2")))
    rig.advance(1)
    rig.delete("pods", "p")
    rig.advance(2)
    assert container(rig)["state"]["terminated"]["exitCode"] == 143
    assert phase(rig) == "Failed"
    rig.advance(1)
    assert rig.names() == []


def test_a_forced_deletion_kills_what_runs_and_frees_its_devices() -> None:
    processes = Processes()
    rig = Rig()
    rig.add_node("g1", plugins=Plugins(1), programs=processes)
    rig.create("pods", pod(gpus=1))
    rig.delete("pods", "p", grace_seconds=0)
    assert processes.running[0].heard == ["KILL"]
    assert rig.plane.kubelets.holdings("g1") == []


def test_a_pod_gets_devices_and_says_how_they_are() -> None:
    rig, plugins = gpu_rig()
    rig.create("pods", pod(gpus=2))
    (allocated,) = plugins.allocated
    assert len(allocated) == 2
    plugins.devices[allocated[0]] = False
    rig.plane.kubelets.devices_changed("g1")
    rig.settle()
    said = container(rig)["allocatedResourcesStatus"][0]
    assert {one["resourceID"]: one["health"] for one in said["resources"]} == {
        allocated[0]: "Unhealthy",
        allocated[1]: "Healthy",
    }
    assert phase(rig) == "Running"
    assert amounts(rig) == ("8", "8")
    rig.advance(11)
    assert amounts(rig) == ("8", "7")


def test_a_plugin_that_dies_leaves_capacity_for_five_minutes_and_running_pods_alone() -> None:
    rig, plugins = gpu_rig()
    rig.create("pods", pod(gpus=1))
    plugins.connected = False
    rig.plane.kubelets.devices_changed("g1")
    rig.advance(11)
    assert amounts(rig) == ("8", "0")
    assert phase(rig) == "Running"
    assert container(rig)["allocatedResourcesStatus"][0]["resources"][0]["health"] == "Healthy"
    rig.advance(280)
    assert amounts(rig) == ("8", "0")
    rig.advance(20)
    assert amounts(rig) == ("0", "0")


def test_a_gpu_pod_that_arrives_before_the_status_tells_fails_for_good() -> None:
    rig, plugins = gpu_rig()
    plugins.connected = False
    rig.create("pods", pod(gpus=1))
    found = rig.get("pods", "p")["status"]
    assert (found["phase"], found["reason"]) == ("Failed", "UnexpectedAdmissionError")
    assert found["message"] == (
        "Pod was rejected: Allocate failed due to no healthy devices present; cannot allocate unhealthy devices "
        "nvidia.com/gpu, which is unexpected"
    )
    assert "containerStatuses" not in found
    plugins.connected = True
    rig.advance(60)
    assert phase(rig) == "Failed"


def test_a_pod_that_is_bound_past_the_scheduler_finds_no_device() -> None:
    rig, _ = gpu_rig(Plugins(1))
    rig.create("pods", pod("holder", gpus=1))
    rig.create("pods", pod(gpus=1, nodeName="g1"))
    message = rig.get("pods", "p")["status"]["message"]
    assert "requested number of devices unavailable for nvidia.com/gpu. Requested: 1, Available: 0" in message


def test_what_does_not_fit_beside_devices_is_refused_too() -> None:
    rig = Rig(nodes=1, resources={"cpu": "2", "memory": "8Gi", "pods": "110"})
    rig.create("pods", pod("holder", cpu="1500m", nodeName="n1"))
    rig.create("pods", pod(cpu="1", nodeName="n1"))
    found = rig.get("pods", "p")["status"]
    assert found["reason"] == "OutOfcpu"
    assert found["message"].endswith("requested: 1000, used: 1500, capacity: 2000")
    rig.create("pods", pod("q", nodeName="n1", nodeSelector={"a": "b"}))
    assert rig.get("pods", "q")["status"]["reason"] == "NodeAffinity"


def test_a_cordoned_node_runs_what_is_bound_to_it_directly() -> None:
    rig = Rig(nodes=1)
    rig.patch("nodes", "n1", {"spec": {"unschedulable": True}})
    rig.create("pods", pod(nodeName="n1"))
    assert phase(rig) == "Running"


def test_a_plugin_that_hangs_stops_the_whole_kubelet_while_the_node_stays_ready() -> None:
    rig, plugins = gpu_rig()
    rig.create("pods", pod("before"))
    plugins.hangs = True
    rig.create("pods", pod(gpus=1))
    rig.create("pods", pod("after"))
    rig.delete("pods", "before", grace_seconds=1)
    rig.advance(120)
    stuck = rig.get("pods", "p")["status"]
    assert "startTime" not in stuck
    assert [one["type"] for one in stuck["conditions"]] == ["PodScheduled"]
    assert "startTime" not in rig.get("pods", "after")["status"]
    assert "before" in rig.names()
    assert (condition(rig.get("nodes", "g1"), "Ready") or {})["status"] == "True"
    assert amounts(rig) == ("8", "8")
    assert len(rig.plane.kubelets.holdings("g1")) == 1
    plugins.hangs = False
    rig.advance(2)
    assert (phase(rig), phase(rig, "after")) == ("Running", "Running")
    assert "before" not in rig.names()


def test_forcing_the_stuck_pod_away_frees_nothing_but_a_kubelet_restart_does() -> None:
    rig, plugins = gpu_rig()
    plugins.hangs = True
    rig.create("pods", pod(gpus=1))
    rig.create("pods", pod("after"))
    rig.delete("pods", "p", grace_seconds=0)
    rig.advance(60)
    assert phase(rig, "after") == "Pending"
    rig.plane.kubelets.restart_kubelet("g1")
    rig.advance(1)
    assert phase(rig, "after") == "Running"
    assert rig.plane.kubelets.holdings("g1") == []


def test_a_hung_plugin_that_is_killed_fails_the_pod_at_once() -> None:
    rig, plugins = gpu_rig()
    plugins.hangs = True
    rig.create("pods", pod(gpus=1))
    rig.create("pods", pod("after"))
    plugins.error = "rpc error: code = Unavailable desc = error reading from server: EOF"
    rig.advance(1)
    assert rig.get("pods", "p")["status"]["reason"] == "UnexpectedAdmissionError"
    assert phase(rig, "after") == "Running"
    assert rig.plane.kubelets.holdings("g1") == []


def test_init_containers_lend_their_devices_to_the_containers_after_them() -> None:
    rig, plugins = gpu_rig(Plugins(2))
    limits = {"limits": {GPU: "2"}}
    inits = [{"name": "warm", "image": "i:1", "resources": limits}]
    rig.create("pods", pod(gpus=2, initContainers=inits))
    assert phase(rig) == "Running"
    assert [sorted(one) for one in plugins.allocated] == [["GPU-0", "GPU-1"], ["GPU-0", "GPU-1"]]


def test_a_reboot_changes_the_boot_and_fails_pods_that_hold_devices() -> None:
    rig, _ = gpu_rig()
    rig.create("pods", pod("gpu", gpus=1))
    rig.create("pods", pod("plain"))
    rig.create("pods", pod("once", restartPolicy="Never"))
    rig.plane.kubelets.reboot("g1", seconds=30)
    rig.advance(20)
    assert rig.get("nodes", "g1")["status"]["nodeInfo"]["bootID"] == "boot-1"
    assert phase(rig, "plain") == "Running"
    rig.advance(12)
    assert rig.get("nodes", "g1")["status"]["nodeInfo"]["bootID"] == "boot-2"
    assert amounts(rig) in (("0", "0"), ("8", "8"))
    assert container(rig, "plain")["restartCount"] == 1
    assert container(rig, "plain")["lastState"]["terminated"]["exitCode"] == 255
    assert (phase(rig, "once"), phase(rig, "gpu")) == ("Failed", "Failed")
    assert rig.get("pods", "gpu")["status"]["reason"] == "UnexpectedAdmissionError"
    assert container(rig, "gpu")["state"]["terminated"]["exitCode"] == 255
    assert (rig.condition("pods", "gpu", "Ready") or {})["reason"] == "PodFailed"
    rig.advance(20)
    assert amounts(rig) == ("8", "8")
    rig.create("pods", pod("next", gpus=8))
    assert phase(rig, "next") == "Running"


def test_after_a_reboot_containers_start_when_their_pods_may_and_the_node_is_told_of_at_once() -> None:
    rig = Rig(timings=Timings(start=0.3, stop=0.0))
    rig.add_node("g1", plugins=Plugins(8))
    rig.create("pods", pod("plain"))
    rig.advance(1)
    rig.plane.kubelets.reboot("g1", seconds=5)
    rig.advance(5.1)
    assert rig.get("nodes", "g1")["status"]["nodeInfo"]["bootID"] == "boot-2"
    assert "terminated" in container(rig, "plain")["state"]
    rig.advance(0.5)
    assert "running" in container(rig, "plain")["state"]


def test_a_node_that_is_long_in_coming_back_is_unreachable_meanwhile() -> None:
    rig = Rig(nodes=1)
    rig.create("pods", pod())
    rig.plane.kubelets.reboot("n1", seconds=100)
    rig.advance(45)
    assert (condition(rig.get("nodes", "n1"), "Ready") or {})["status"] == "True"
    rig.advance(10)
    node = rig.get("nodes", "n1")
    assert (condition(node, "Ready") or {})["reason"] == "NodeStatusUnknown"
    assert {(one["key"], one["effect"]) for one in node["spec"]["taints"]} == {
        ("node.kubernetes.io/unreachable", "NoSchedule"),
        ("node.kubernetes.io/unreachable", "NoExecute"),
    }
    assert (rig.condition("pods", "p", "Ready") or {})["status"] == "False"
    rig.advance(50)
    node = rig.get("nodes", "n1")
    assert (condition(node, "Ready") or {})["status"] == "True"
    assert "taints" not in node["spec"]
    assert (rig.condition("pods", "p", "Ready") or {})["status"] == "True"


def test_a_pod_bears_an_unreachable_node_for_five_minutes() -> None:
    rig = Rig(nodes=1)
    rig.create("daemonsets.apps", workload("DaemonSet", "ds"))
    rig.create("deployments.apps", workload("Deployment", "web", replicas=1))
    rig.plane.kubelets.disconnect("n1")
    rig.advance(340)
    assert all("deletionTimestamp" not in one["metadata"] for one in rig.pods())
    rig.advance(20)
    doomed = [one for one in rig.pods() if "deletionTimestamp" in one["metadata"]]
    assert [one["metadata"]["labels"]["app"] for one in doomed] == ["web"]
    assert (condition(doomed[0], "DisruptionTarget") or {})["reason"] == "DeletionByTaintManager"
    rig.plane.kubelets.reconnect("n1")
    rig.advance(40)
    assert len(rig.pods("Running", app="web")) == 1
    assert len(rig.pods()) == 2


def test_a_kubelet_restart_forgets_bad_devices_until_plugins_register_again() -> None:
    rig, plugins = gpu_rig()
    rig.create("pods", pod(gpus=1))
    rig.plane.kubelets.restart_kubelet("g1")
    rig.settle()
    assert amounts(rig) == ("0", "0")
    assert phase(rig) == "Running"
    assert len(rig.plane.kubelets.holdings("g1")) == 1
    rig.advance(11)
    assert amounts(rig) == ("8", "8")
    assert plugins.allocated and len(plugins.allocated) == 1


def test_conditions_of_others_outlive_the_kubelets_writes() -> None:
    rig = Rig(nodes=1)
    node = rig.get("nodes", "n1")
    ours = {"type": "sickbay.dev/Healthy", "status": "True"}
    conditions = [*node["status"]["conditions"], ours]
    rig.patch("nodes", "n1", {"status": {"conditions": conditions}}, subresource="status")
    rig.plane.kubelets.reboot("n1", seconds=100)
    rig.advance(200)
    found = condition(rig.get("nodes", "n1"), "sickbay.dev/Healthy") or {}
    assert found["status"] == "True"


def test_a_node_that_was_deleted_is_not_registered_again_by_a_running_kubelet() -> None:
    rig = Rig(nodes=1)
    rig.delete("nodes", "n1")
    rig.advance(600)
    with pytest.raises(StoreError, match="not found"):
        rig.get("nodes", "n1")


@pytest.mark.parametrize("value", ["", "soon", "-1", "nan", "1e99"])
def test_an_annotation_that_says_nothing_sensible_is_as_if_it_were_not_there(value: str) -> None:
    rig = Rig(nodes=1)
    rig.create("pods", pod(annotations=noted(seconds=value, exit=value, stop_seconds=value)))
    rig.advance(60)
    assert phase(rig) == "Running"


def test_in_real_time_a_thread_carries_a_workload_to_running_and_ends_when_it_is_told() -> None:
    clock = SystemClock()
    store = ClusterStore(clock=clock)
    ready, running = threading.Event(), threading.Event()

    def hear(event: Any) -> None:
        if event.resource == "nodes":
            ready.set()
        if event.resource == "pods" and event.object["status"].get("phase") == "Running":
            running.set()

    store.subscribe(hear)
    plane = ControlPlane(store, clock=clock, timings=Timings(start=0.0, stop=0.0))
    plane.start()
    try:
        plane.kubelets.add_node(NodeShape(name="n1"))
        assert ready.wait(5)
        store.create("deployments.apps", workload("Deployment", "web", replicas=1, made_of=template("web")))
        assert running.wait(5)
    finally:
        assert plane.stop()
