"""Jobs on a node whose GPU dies are taken to another node; a device plugin that fails is restarted where it helps.

Agents, controller, device plugins and jobs are real pods on two real kubelets with 8 simulated GPUs each.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from runtime.api_errors import ConnectionFailed
from runtime.kubelet_rpc import PodResourcesClient
from runtime.kubernetes import Session
from simulation.machine import load
from simulation.plugin_control import control_path, raise_xid
from tests.lab import images, manifests, plugin_pods, rbac_usage
from tests.lab.conftest import clean
from tests.lab.lab import Lab
from tests.lab.node import Node
from tests.lab.processes import wait_until
from tests.lab.sickbay_pods import GPU, PLUGIN, PLUGIN_NAMESPACE, SickbayPods
from tests.lab.workloads import budget, cordon, deployment, is_cordoned, job, placed, pods_of, running

pytestmark = pytest.mark.timeout(300)

POLICY = """
apiVersion: sickbay.dev/v1alpha1
kind: Policy
metadata: {name: real-pods}
rules:
- name: one-device
  match: {kinds: [FirmwareHung, EngineHung]}
  mode: Auto
  fence: Device
- name: all
  mode: Auto
  drain: {mode: Evict, deadline: 3m}
budgets: {maxFenced: 50%, maxDisrupted: 50%, startRate: {perMinute: 600, burst: 100}}
healthyDwell: 3s
devicePlugin:
  healthyDwell: 2s
  deadline: 60s
"""
GPU_OF_ADDRESS_3B = 1


@pytest.fixture(scope="module")
def pods(lab: Lab) -> Iterator[SickbayPods]:
    manifests.apply(lab)
    nodes = tuple(lab.add_nodes("g1", "g2", status_frequency=1.0))
    begun = len(lab.audit_events())
    ward = SickbayPods(lab, nodes, policy=POLICY)
    ward.deploy()
    try:
        yield ward
    finally:
        ward.remove()
        for node in nodes:
            lab.remove_node(node.name)
        clean(lab)
    refused = rbac_usage.refusals(lab.audit_events()[begun:])
    assert not refused, f"Sickbay asked for what it may not have: {refused[:3]}"


@pytest.fixture(autouse=True)
def untouched(pods: SickbayPods) -> Iterator[None]:
    """Before each test both nodes are healthy, empty and open; afterwards they are made so."""
    yield
    for name, node in pods.nodes.items():
        control_path(plugin_pods.machine_path(node)).unlink(missing_ok=True)
        if pods.faults(name):
            _reboot(pods, name)
    clean(pods.lab)
    wait_until(lambda: not any(map(pods.faults, pods.nodes)), 60, "no fault to be left")
    pods.wait_offered()
    wait_until(
        lambda: pods.metric("sickbay_nodes", state="healthy") == len(pods.nodes),
        60,
        "both nodes to be healthy",
        ignoring=(OSError,),
    )


def _reboot(pods: SickbayPods, name: str) -> None:
    node = pods.nodes[name]
    pods.kernel_log(name).write_text("")
    node.reboot(pods.lab.api)
    (plugin_pods.machine_path(node).parent / "boot_id").write_text(node.boot_id)
    selector = f"instance=sickbay-agent-{name}"
    pods.lab.kubectl("delete", "pods", "--namespace=sickbay-agent", "-l", selector, "--wait=false")


class ReadyWatch:
    """How many replicas of a Deployment were ready, by every change of its status."""

    def __init__(self, lab: Lab, namespace: str, name: str) -> None:
        session = Session.from_kubeconfig(lab.kubeconfig, user_agent="ready-watch")
        path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
        first = msgspec.json.decode(session.get(f"{path}/{name}").body)
        self.seen = [first["status"].get("readyReplicas", 0)]
        stream = session.watch(
            path,
            query={"fieldSelector": f"metadata.name={name}"},
            resource_version=first["metadata"]["resourceVersion"],
            timeout_seconds=600,
            inactivity_seconds=600,
        )
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def _read(self, stream: Iterator[bytes]) -> None:
        # The stream breaks when the lab ends.
        with contextlib.suppress(ConnectionFailed):
            for raw in stream:
                event: Any = msgspec.json.decode(raw)
                self.seen.append(event["object"].get("status", {}).get("readyReplicas", 0))


def test_jobs_leave_a_node_whose_gpu_died_at_the_budgets_pace_and_run_on_another(
    pods: SickbayPods, namespace: str
) -> None:
    lab = pods.lab
    cordon(lab, "g2", True)
    work = placed(
        namespace,
        deployment("train", 4),
        budget("train", 3),
        job("batch", 2),
        deployment("web", 1, gpus=0, node="g1"),
    )
    lab.apply(*work)
    wait_until(lambda: len(running(lab, namespace, "g1")) == 7, 60, "all pods to run on g1", logs=pods.logs)
    cordon(lab, "g2", False)
    (bystander,) = running(lab, namespace, "g1", app="web")
    ready = ReadyWatch(lab, namespace, "train")

    pods.lose_gpu("g1")
    wait_until(lambda: is_cordoned(lab, "g1"), 10, "the cordon")
    session = pods.wait_phase("g1", "Held", deadline=150)

    assert session["status"]["reason"] == "NoRepairStep", session["status"]
    assert session["status"]["drain"]["evicted"] == 6
    assert running(lab, namespace, "g1", app="train") == []
    moved = running(lab, namespace, "g2", app="train")
    wait_until(
        lambda: (
            len(running(lab, namespace, "g2", app="train")) == 4
            and len(running(lab, namespace, "g2", app="batch")) == 2
        ),
        60,
        f"all jobs to run on g2, now {[pod['metadata']['name'] for pod in moved]}",
    )
    assert min(ready.seen) >= 3, f"the budget was not kept: {ready.seen}"
    (still,) = running(lab, namespace, "g1", app="web")
    assert still["metadata"]["uid"] == bystander["metadata"]["uid"]
    steps = [(entry["step"], entry["event"]) for entry in session["status"]["journal"]]
    assert steps == [
        ("Cordon", "Intent"),
        ("Cordon", "Outcome"),
        ("Drain", "Intent"),
        ("Drain", "Outcome"),
        # Repairs are not switched on here.
        ("Reboot", "Intent"),
        ("Reboot", "Outcome"),
    ]
    wait_until(
        lambda: _told(pods, "g2") == _held(pods.nodes["g2"]), 10, "the agent to say what the kubelet says"
    )
    assert _told(pods, "g1") == set()
    assert len(_told(pods, "g2")) == 6


def _held(node: Node) -> set[tuple[str, str]]:
    """(pod, device) as the kubelet has it."""
    client = PodResourcesClient(node.kubelet_dir / "pod-resources" / "kubelet.sock")
    try:
        return {
            (pod.name, device)
            for pod in client.list().pod_resources
            for one in pod.containers
            for devices in one.devices
            for device in devices.device_ids
        }
    finally:
        client.close()


def _told(pods: SickbayPods, node: str) -> set[tuple[str, str]]:
    """(pod, device) as the node's agent exports it."""
    found = set()
    for line in pods.page(node).splitlines():
        if line.startswith("accelerator_allocation_info{") and line.endswith(" 1.0"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            found.add((labels["workload_pod"], labels["uuid"]))
    return found


def test_a_job_that_arrives_while_a_node_is_fenced_for_one_device_gets_another_device(
    pods: SickbayPods, namespace: str
) -> None:
    lab, node = pods.lab, pods.nodes["g1"]
    machine = plugin_pods.machine_path(node)
    bad = load(machine).devices[GPU_OF_ADDRESS_3B].uuid
    raise_xid(control_path(machine), bad, 119)
    pods.kernel_says("g1", "NVRM: Xid (PCI:0000:3b:00): 119, pid=1234, name=python, Timeout waiting for RPC")
    session = pods.wait_phase("g1", "Held")
    assert session["status"]["reason"] == "DeviceFenced", session["status"]
    assert not is_cordoned(lab, "g1")

    pod = images.busybox_pod("small", namespace=namespace, nodeSelector={"kubernetes.io/hostname": "g1"})
    pod["spec"]["containers"][0]["resources"] = {"limits": {GPU: 7}}
    lab.api.create(f"/api/v1/namespaces/{namespace}/pods", pod)
    wait_until(lambda: len(running(lab, namespace, "g1")) == 1, 30, "the pod to run", logs=pods.logs)
    assert bad not in {device for _, device in _held(node)}
    assert "FirmwareHung" in pods.faults("g1")

    # A plugin that is started anew never hears of the Xid.
    pods.lab.api.delete(
        f"/api/v1/namespaces/{PLUGIN_NAMESPACE}/pods/{pods.plugin_pod('g1')['metadata']['name']}"
    )
    wait_until(lambda: "DeviceOfferedThoughBad" in pods.faults("g1"), 30, "the fault", logs=pods.logs)
    wait_until(lambda: is_cordoned(lab, "g1"), 15, "the cordon, for the plugin offers the bad device again")


def test_a_plugin_that_hangs_is_restarted_and_no_gpu_pod_fails(pods: SickbayPods, namespace: str) -> None:
    lab = pods.lab
    lab.apply(*placed(namespace, deployment("train", 2, node="g1")))
    wait_until(lambda: len(running(lab, namespace, "g1")) == 2, 30, "the pods to run")
    before = {pod["metadata"]["uid"] for pod in running(lab, namespace, "g1")}
    old = pods.plugin_pod("g1")["metadata"]["uid"]

    pods.signal_plugin("g1", signal.SIGSTOP)
    wait_until(lambda: "PluginHung" in pods.faults("g1"), 10, "the fault although the node is Ready")
    wait_until(lambda: is_cordoned(lab, "g1"), 10, "the cordon")
    lab.apply(*placed(namespace, deployment("late", 1, node="g1")))
    session = pods.wait_phase("g1", "Released", deadline=90)

    assert pods.plugin_pod("g1")["metadata"]["uid"] != old
    steps = [entry["step"] for entry in session["status"]["journal"] if entry["event"] == "Outcome"]
    assert steps == ["Cordon", "RestartPlugin", "RemoveFailedPods", "Uncordon"], session["status"]["journal"]
    assert not is_cordoned(lab, "g1")
    wait_until(lambda: len(running(lab, namespace, "g1", app="late")) == 1, 30, "the late pod to run")
    after = pods_of(lab, namespace)
    assert {pod["status"]["phase"] for pod in after} == {"Running"}, json.dumps(after)[:2000]
    assert before <= {pod["metadata"]["uid"] for pod in after}
    assert all(one["restartCount"] == 0 for pod in after for one in pod["status"]["containerStatuses"])


def test_a_plugin_that_hangs_with_a_pod_in_admission_is_held_and_not_restarted(
    pods: SickbayPods, namespace: str
) -> None:
    lab = pods.lab
    old = pods.plugin_pod("g1")["metadata"]["uid"]
    pods.signal_plugin("g1", signal.SIGSTOP)
    pod = images.busybox_pod("stuck", namespace=namespace, nodeName="g1")
    pod["spec"]["containers"][0]["resources"] = {"limits": {GPU: 1}}
    lab.api.create(f"/api/v1/namespaces/{namespace}/pods", pod)
    try:
        wait_until(lambda: "PluginHung" in pods.faults("g1"), 10, "the fault although the node is Ready")
        session = pods.wait_phase("g1", "Held", deadline=40)
        assert session["status"]["reason"] == "AdmissionStuck"
        assert "restart the kubelet by hand" in session["status"]["message"]
        assert pods.plugin_pod("g1")["metadata"]["uid"] == old
        conditions = lab.api.get("/api/v1/nodes/g1")["status"]["conditions"]
        assert {one["type"]: one["status"] for one in conditions}["Ready"] == "True"
    finally:
        pods.signal_plugin("g1", signal.SIGCONT)


def test_a_device_that_the_plugin_withholds_for_no_reason_comes_back_by_a_restart(pods: SickbayPods) -> None:
    node = pods.nodes["g1"]
    machine = plugin_pods.machine_path(node)
    stuck = load(machine).devices[3].uuid
    raise_xid(control_path(machine), stuck, 79)
    wait_until(lambda: _allocatable(pods, "g1") == "7", 10, "allocatable to be short by one")
    wait_until(lambda: "DeviceNotOffered" in pods.faults("g1"), 40, "the fault", logs=pods.logs)
    session = pods.wait_phase("g1", "Released", deadline=90)
    assert session["status"]["incidents"][0]["kind"] == "DeviceNotOffered"
    assert _allocatable(pods, "g1") == "8"
    assert not is_cordoned(pods.lab, "g1")


def _allocatable(pods: SickbayPods, node: str) -> str:
    return str(pods.lab.api.get(f"/api/v1/nodes/{node}")["status"]["allocatable"].get(GPU))


def test_a_plugins_pod_that_somebody_deletes_starts_no_session(pods: SickbayPods) -> None:
    old = pods.plugin_pod("g1")
    pods.lab.api.delete(f"/api/v1/namespaces/{PLUGIN_NAMESPACE}/pods/{old['metadata']['name']}")
    wait_until(lambda: pods.plugin_pod("g1")["metadata"]["uid"] != old["metadata"]["uid"], 20, "another pod")
    pods.wait_offered()
    seen = pods.report("g1")["status"]["sequence"]
    wait_until(lambda: pods.report("g1")["status"]["sequence"] > seen + 8, 30, "eight renewals")
    assert pods.sessions("g1") == []


def test_a_restart_that_would_be_an_upgrade_is_held(pods: SickbayPods) -> None:
    lab = pods.lab
    path = f"/apis/apps/v1/namespaces/{PLUGIN_NAMESPACE}/daemonsets/{PLUGIN}"
    on_delete = {"spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": None}}}
    lab.api.patch(path, on_delete)
    lab.api.patch(path, {"spec": {"template": {"metadata": {"annotations": {"example.com/new": "yes"}}}}})
    old = pods.plugin_pod("g1")["metadata"]["uid"]
    try:
        pods.signal_plugin("g1", signal.SIGSTOP)
        session = pods.wait_phase("g1", "Held", deadline=60)
        assert session["status"]["reason"] == "WouldUpgrade", session["status"]
        assert pods.plugin_pod("g1")["metadata"]["uid"] == old
    finally:
        pods.signal_plugin("g1", signal.SIGCONT)
        lab.api.patch(path, {"spec": {"updateStrategy": {"type": "RollingUpdate"}}})
