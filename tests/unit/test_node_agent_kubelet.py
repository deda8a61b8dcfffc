"""The agent beside a kubelet and a device plugin that hang, are not there, or come later."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack, closing
from datetime import UTC, datetime

import pytest

from exporter.memory import load
from simulation.plugin import SimulatedPlugin
from tests.kubelet import FakeKubelet, FakePodsApi, gpu_pod
from tests.lab.processes import wait_until
from tests.unit.report_server import ReportServer
from tests.unit.test_node_agent import BOOT, LOST, Rig

GPU = "nvidia.com/gpu"


@pytest.fixture
def server(api):
    return ReportServer(api)


@pytest.fixture
def rig(tmp_path, server):
    node = Rig(tmp_path, server)
    yield node
    node.stop()


@pytest.fixture
def paths(tmp_path):
    """Where a kubelet would have its sockets; there is none yet."""
    plugins = tmp_path / "p"
    plugins.mkdir()
    return {"device_plugin_folder": plugins, "pod_resources_socket": tmp_path / "r.sock"}


def source(server, name):
    return next((one for one in server.status.get("sources", []) if one["name"] == name), {})


def plugin_state(server):
    resources = (server.status.get("plugin") or {}).get("resources", [])
    return {one["name"]: one["state"] for one in resources}


def test_what_hangs_is_told_and_holds_nothing_else_up(rig, server, paths):
    with ExitStack() as listening:
        for path in (paths["device_plugin_folder"] / "nvidia-gpu.sock", paths["pod_resources_socket"]):
            silent = listening.enter_context(closing(socket.socket(socket.AF_UNIX)))
            silent.bind(str(path))
            silent.listen(8)
        rig.start(**paths)
        rig.settle()
        begun = time.monotonic()
        rig.say(LOST)
        server.await_fault("DeviceLost")
        assert server.times[-1] - begun < 0.5
        wait_until(lambda: plugin_state(server) == {GPU: "Hung"}, 8, "the plugin to hang", every=0.02)
        wait_until(
            lambda: source(server, "pod-resources").get("state") == "Stale", 8, "the kubelet's silence"
        )
        assert rig.agent.healthy() == (True, "ok")
        assert rig.agent.ready() == (True, "ok")
        rig.stop()


def test_a_node_without_a_kubelet_is_ready_and_says_why_nothing_is_known(rig, server, paths, tmp_path):
    rig.start(**{**paths, "device_plugin_folder": tmp_path / "absent", "pods_socket": tmp_path / "pods.sock"})
    rig.settle()
    wait_until(lambda: rig.agent.ready() == (True, "ok"), 5, "readiness", every=0.02)
    for name in ("plugin", "pod-resources", "pods", "kubelet-metrics"):
        wait_until(lambda name=name: source(server, name).get("state") == "Unsupported", 5, name, every=0.02)
    assert "absent" in source(server, "plugin")["message"]
    assert (
        source(server, "pods")["message"] == f"no socket {tmp_path}/pods.sock, and no kubeletAddress is set"
    )
    assert "plugin" not in server.status
    assert server.status["faults"] == []


def test_a_plugin_that_comes_later_is_found_and_one_that_ends_is_dead(rig, server, paths):
    rig.start(**paths)
    rig.settle()
    kubelet = FakeKubelet(paths["device_plugin_folder"])
    plugin = SimulatedPlugin(machine=rig.machine, folder=paths["device_plugin_folder"], resource=GPU)
    plugin.start()
    try:
        wait_until(lambda: plugin_state(server) == {GPU: "Serving"}, 10, "the plugin to serve", every=0.02)
    finally:
        plugin.stop()
        kubelet.close()
    wait_until(lambda: plugin_state(server) == {GPU: "Dead"}, 10, "the plugin to be dead", every=0.02)


def test_pods_are_measured_and_what_became_of_them_is_kept(rig, server, paths, tmp_path):
    kubelet = FakePodsApi(tmp_path / "pods.sock")
    rig.start(**paths, pods_socket=kubelet.path)
    rig.settle()
    wait_until(lambda: source(server, "pods").get("state") == "Live", 5, "the watch", every=0.02)
    now = datetime.now(UTC).replace(microsecond=0)
    refused = gpu_pod("refused", created=now)
    refused.status.phase, refused.status.reason = "Failed", "UnexpectedAdmissionError"
    del refused.status.container_statuses[:]
    try:
        kubelet.put(gpu_pod("came", created=now))
        wait_until(lambda: dispatched(rig, "_count", stage="admitted") == 1, 5, "a measure", every=0.002)
        assert dispatched(rig, "_count", stage="ready") == 0
        kubelet.put(gpu_pod("came", created=now, running=True))
        kubelet.put(refused)
        wait_until(lambda: len(rig.agent.dispatch.remembered) == 2, 5, "both to have ended", every=0.002)
        assert dispatched(rig, "_count", stage="ready") == dispatched(rig, "_count", stage="total") == 1
        kept = rig.state_file
        wait_until(lambda: {"uid-came", "uid-refused"} <= uids_in(kept), 5, "both to be kept", every=0.02)
    finally:
        kubelet.stop()


def uids_in(state_file):
    return {one.uid for one in load(state_file, boot_id=BOOT, node_uid="uid-1").dispatches}


def dispatched(rig, suffix, **labels):
    samples = [one for family in rig.agent.dispatch.stages.collect() for one in family.samples]
    return sum(
        one.value for one in samples if one.name.endswith(suffix) and labels.items() <= one.labels.items()
    )
