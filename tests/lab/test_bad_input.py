"""What should not be there is said clearly, changes nothing, and leaves everything else working."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.lab import manifests
from tests.lab.api import Object
from tests.lab.conftest import clean
from tests.lab.images import PROJECT
from tests.lab.lab import Lab
from tests.lab.node import Node
from tests.lab.processes import wait_until
from tests.lab.rig import AUTO_POLICY, Rig

FATAL = {
    "kind": "DeviceLost",
    "severity": "Fatal",
    "advice": "RebootNode",
    "clearsOn": "NewBoot",
    "scope": "Device",
    "deviceUUID": "GPU-0",
    "firstSeen": "2026-01-01T00:00:00Z",
    "lastSeen": "2026-01-01T00:00:00Z",
}


@pytest.fixture(scope="module")
def rig(lab: Lab, two_nodes: tuple[Node, Node]) -> Iterator[Rig]:
    """A controller and the agent of n2; what n1's agent would say is written by hand."""
    manifests.apply(lab)
    rig = Rig(lab, policy=AUTO_POLICY.replace("50%", "100%"))
    rig.start_agent(two_nodes[1])
    rig.start_controller()
    try:
        rig.wait_watching()
        yield rig
    finally:
        rig.stop()
        for file in rig.folder.iterdir():
            file.unlink()
        clean(lab)


def report_by_hand(rig: Rig, name: str, *, sequences: tuple[int, ...] = (1, 2), **status: object) -> None:
    """Write a report as an agent would, renewal by renewal."""
    if not rig.lab.api.exists(f"{manifests.REPORTS}/{name}"):
        document = {
            "apiVersion": "sickbay.dev/v1alpha1",
            "kind": "AcceleratorReport",
            "metadata": {"name": name},
        }
        rig.lab.api.create(manifests.REPORTS, document)
    for sequence in sequences:
        written = {"sequence": sequence, "renewTime": "2026-11-24T00:00:00Z", **status}
        rig.lab.api.patch(f"{manifests.REPORTS}/{name}/status", {"status": written})


def acted_on(rig: Rig, name: str) -> Object | None:
    found = rig.sessions(name)
    return found[0] if found else None


def wait_for_the_controller(rig: Rig) -> None:
    """Wait until what was written before must have been taken in: n2 has renewed three times in the same stream."""
    sequence = rig.report("n2")["status"]["sequence"]
    wait_until(
        lambda: rig.report("n2")["status"]["sequence"] >= sequence + 3, 20, "three renewals", logs=rig.logs
    )
    assert rig.controller is not None
    assert rig.controller.alive()


def test_a_report_of_a_node_that_does_not_exist_fences_nobody(rig: Rig) -> None:
    report_by_hand(rig, "ghost", nodeUID="no-such-uid", bootID="boot", faults=[FATAL])
    wait_for_the_controller(rig)
    assert acted_on(rig, "ghost") is None


def test_a_report_of_an_older_boot_fences_nobody(rig: Rig) -> None:
    uid = rig.node("n1")["metadata"]["uid"]
    report_by_hand(rig, "n1", nodeUID=uid, bootID="a-boot-that-is-over", faults=[FATAL])
    wait_for_the_controller(rig)
    assert acted_on(rig, "n1") is None
    assert not rig.node("n1")["spec"].get("unschedulable")


def test_a_report_of_another_node_of_that_name_fences_nobody(rig: Rig) -> None:
    boot = rig.node("n1")["status"]["nodeInfo"]["bootID"]
    report_by_hand(rig, "n1", sequences=(3, 4), nodeUID="the-node-before", bootID=boot, faults=[FATAL])
    wait_for_the_controller(rig)
    assert acted_on(rig, "n1") is None


def test_times_from_the_future_neither_crash_nor_hide_a_fault(rig: Rig) -> None:
    node = rig.node("n1")
    future = {**FATAL, "firstSeen": "2199-01-01T00:00:00Z", "lastSeen": "2199-01-01T00:00:00Z"}
    status = {"nodeUID": node["metadata"]["uid"], "bootID": node["status"]["nodeInfo"]["bootID"]}
    report_by_hand(rig, "n1", sequences=(5, 6), **status, faults=[future])
    session = wait_until(lambda: acted_on(rig, "n1"), 20, "a session of n1", logs=rig.logs)
    wait_until(lambda: rig.node("n1")["spec"].get("unschedulable"), 20, "the fence of n1", logs=rig.logs)
    assert session["spec"]["nodeName"] == "n1"


def test_a_session_that_was_edited_by_hand_does_not_stop_the_controller(rig: Rig) -> None:
    session = wait_until(lambda: acted_on(rig, "n1"), 20, "the session of n1")
    path = f"{manifests.SESSIONS}/{session['metadata']['name']}"
    rig.lab.api.patch(path, {"metadata": {"annotations": {"sickbay.dev/opening": "not JSON"}}})
    rig.lab.api.patch(f"{path}/status", {"status": {"step": "Nonsense", "journal": [], "incidents": []}})
    wait_for_the_controller(rig)
    refused = rig.lab.kubectl("patch", "acrem", session["metadata"]["name"], "--subresource=status", "--type=merge",
                              "-p", json.dumps({"status": {"phase": "Cured"}}), check=False)  # fmt: skip
    assert "phase" in refused
    assert "supported values" in refused


def test_after_all_that_a_real_fault_still_fences(rig: Rig) -> None:
    rig.lose_gpu("n2")
    wait_until(lambda: rig.node("n2")["spec"].get("unschedulable"), 20, "the fence of n2", logs=rig.logs)


def sickbay(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sickbay", *words]
    return subprocess.run(
        command,
        cwd=PROJECT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_expired_token_is_said_in_one_line(lab: Lab) -> None:
    config = lab.service_account_kubeconfig(*manifests.CONTROLLER, expiration_seconds=600)
    text = config.read_text()
    token = next(line.split()[-1] for line in text.splitlines() if line.strip().startswith("token:"))
    spoiled = lab.folder / "spoiled.kubeconfig"
    spoiled.write_text(text.replace(token, token[:-8] + "AAAAAAAA"))
    ended = sickbay("controller", "--kubeconfig", str(spoiled))
    assert ended.returncode == 2
    said = ended.stderr.strip().splitlines()[-1]
    assert "refuses the credentials" in said
    assert token not in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_agent_without_nvml_library_still_reads_the_kernel_log(
    rig: Rig, two_nodes: tuple[Node, Node]
) -> None:
    worker = f"{sys.executable} -m exporter.worker"
    agent = rig.start_agent(two_nodes[0], "--worker-command", worker)
    wait_until(
        lambda: {"name": "nvml", "state": "Unsupported"}.items()
        <= next(source for source in rig.report("n1")["status"]["sources"] if source["name"] == "nvml").items(),
        20, "the source to be Unsupported", logs=rig.logs, ignoring=(KeyError, StopIteration),
    )  # fmt: skip
    rig.lose_gpu("n1")
    wait_until(
        lambda: rig.metric("accelerator_xid_errors_total", port=agent.port, uuid="", xid="79") == 1,
        10,
        "the Xid of an address that nobody knows to be counted",
        logs=rig.logs,
    )
    faults = rig.report("n1")["status"].get("faults", [])
    assert [fault["severity"] for fault in faults if fault.get("deviceUUID", "") == ""] in ([], ["Degraded"])
