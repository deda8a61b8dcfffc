"""A kernel line ends in a fenced node, on a real Kubernetes, and the node comes back."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest
from msgspec.structs import replace

from simulation.machine import load, save
from tests.lab import kernel_log, manifests, rbac_usage
from tests.lab.api import Object
from tests.lab.conftest import clean
from tests.lab.lab import Lab
from tests.lab.node import Node
from tests.lab.processes import wait_until
from tests.lab.rig import AUTO_POLICY, XID_79, Rig

GPU_OF_ADDRESS_3B = 1
FENCED_WITHIN = 20.0


@pytest.fixture(scope="module")
def sickbay(lab: Lab) -> Lab:
    manifests.apply(lab)
    return lab


@pytest.fixture
def rig(sickbay: Lab, two_nodes: tuple[Node, Node]) -> Iterator[Rig]:
    """Agents on both nodes and a controller, all healthy; afterwards nobody of them was ever refused anything."""
    begun = len(sickbay.audit_events())
    rig = Rig(sickbay)
    for node in two_nodes:
        rig.start_agent(node)
    rig.start_controller()
    try:
        rig.wait_watching()
        yield rig
    finally:
        rig.stop()
        for file in rig.folder.iterdir():
            file.unlink()
        clean(sickbay)
    refused = rbac_usage.refusals(sickbay.audit_events()[begun:])
    assert not refused, f"Sickbay asked for what it may not have: {refused[:3]}"


def owner(rig: Rig, node: str) -> str:
    return str(rig.node(node)["metadata"].get("annotations", {}).get("sickbay.dev/session", ""))


def policy_taken(rig: Rig) -> bool:
    """Whether this controller has read the changed policy file."""
    return rig.metric("sickbay_policy_loads_total", result="done") == 1


def wait_phase(rig: Rig, node: str, *phases: str, deadline: float = FENCED_WITHIN) -> Object:
    def reached() -> Object | None:
        sessions = rig.sessions(node)
        found = [one for one in sessions if one.get("status", {}).get("phase") in phases]
        return found[0] if found else None

    return wait_until(reached, deadline, f"a session of {node} in {phases}", logs=rig.logs)


def assert_fenced_by_its_session(rig: Rig, node: str, session: Object) -> None:
    seen = rig.node(node)
    assert seen["spec"].get("unschedulable") is True
    assert owner(rig, node) == session["metadata"]["name"]


def test_an_xid_79_line_fences_its_node_and_a_reboot_brings_it_back(
    rig: Rig, two_nodes: tuple[Node, Node]
) -> None:
    rig.lose_gpu("n1")
    session = wait_phase(rig, "n1", "Held")
    assert_fenced_by_its_session(rig, "n1", session)
    assert session["status"]["reason"] == "NoRepairStep"
    assert not rig.node("n2")["spec"].get("unschedulable")
    assert rig.sessions("n2") == []

    uuid = rig.report("n1")["status"]["devices"][GPU_OF_ADDRESS_3B]["uuid"]
    (incident,) = session["status"]["incidents"]
    assert (incident["kind"], incident["code"], incident["deviceUUID"]) == ("DeviceLost", "xid:79", uuid)
    journal = [
        (entry["step"], entry["event"], entry.get("result", "")) for entry in session["status"]["journal"]
    ]
    assert journal[:2] == [("Cordon", "Intent", ""), ("Cordon", "Outcome", "Done")]

    ward_list = rig.lab.kubectl("get", "acrem")
    assert re.search(rf"{session['metadata']['name']}\s+n1\s+Held\s+Auto", ward_list), ward_list
    agent = rig.agents["n1"]
    assert rig.metric("accelerator_xid_errors_total", port=agent.port, uuid=uuid, xid="79") == 1
    assert rig.metric("accelerator_fault_active", port=agent.port, uuid=uuid, kind="DeviceLost") == 1
    assert rig.metric("accelerator_xid_errors_total", port=rig.agents["n2"].port, xid="79") == 0
    wait_until(
        lambda: rig.metric("sickbay_nodes", state="held") == 1, 10, "the controller's count of held nodes"
    )
    assert rig.metric("sickbay_budget_used", pool="", kind="fenced") == 1

    rig.agents["n1"].child.stop()
    agent.kernel_log.write_text("")
    two_nodes[0].reboot(rig.lab.api)
    rig.start_agent(two_nodes[0])
    released = wait_phase(rig, "n1", "Released", deadline=40)
    assert released["metadata"]["name"] == session["metadata"]["name"]
    assert released["status"]["incidents"][0]["clearedTime"]
    back = rig.node("n1")
    assert not back["spec"].get("unschedulable")
    assert owner(rig, "n1") == ""
    assert rig.report("n1")["status"].get("faults", []) == []


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_controller_killed_at_a_random_moment_ends_the_same(rig: Rig, seed: int) -> None:
    """The chain takes some 25 ms from the line to the cordon and 10 more to the journal: the kill falls into it."""
    moment = Random(seed).uniform(0.005, 0.04)
    assert rig.controller is not None
    rig.lose_gpu("n1")
    threading.Event().wait(moment)
    rig.controller.kill()
    hit = f"killed after {moment * 1000:.0f} ms: {len(rig.sessions('n1'))} sessions, {rig.node('n1')['spec']}"
    print(hit)
    rig.start_controller()
    session = wait_phase(rig, "n1", "Held", deadline=60)
    assert_fenced_by_its_session(rig, "n1", session)
    assert len(rig.sessions("n1")) == 1
    intents = [entry for entry in session["status"]["journal"] if entry["event"] == "Intent"]
    assert intents, session
    assert not rig.node("n2")["spec"].get("unschedulable")


def test_a_person_who_uncordons_is_not_overruled(rig: Rig) -> None:
    rig.lose_gpu("n1")
    wait_phase(rig, "n1", "Held")
    rig.lab.kubectl("uncordon", "n1")
    cancelled = wait_phase(rig, "n1", "Cancelled")
    assert cancelled["status"]["reason"] == "UncordonedByUser"
    wait_until(lambda: owner(rig, "n1") == "", 10, "the ownership record to go")
    rig.kernel_says("n1", XID_79.format(address="0000:3b:00"))
    wait_until(
        lambda: rig.metric("accelerator_xid_errors_total", port=rig.agents["n1"].port, xid="79") == 2,
        10,
        "the second line",
    )
    sequence = rig.report("n1")["status"]["sequence"]
    wait_until(lambda: rig.report("n1")["status"]["sequence"] > sequence, 10, "a renewal after it")
    assert not rig.node("n1")["spec"].get("unschedulable")


def test_a_node_that_a_person_cordoned_first_stays_theirs(rig: Rig, two_nodes: tuple[Node, Node]) -> None:
    rig.lab.kubectl("cordon", "n1")
    rig.lose_gpu("n1")
    session = wait_phase(rig, "n1", "Held")
    results = [entry.get("result") for entry in session["status"]["journal"]]
    assert "AlreadyCordoned" in results
    assert owner(rig, "n1") == ""
    rig.agents["n1"].child.stop()
    rig.agents["n1"].kernel_log.write_text("")
    two_nodes[0].reboot(rig.lab.api)
    rig.start_agent(two_nodes[0])
    wait_phase(rig, "n1", "Released", deadline=40)
    assert rig.node("n1")["spec"]["unschedulable"] is True


def test_a_node_that_was_uncordoned_and_cordoned_again_while_nobody_looked_stays_theirs(
    rig: Rig, two_nodes: tuple[Node, Node]
) -> None:
    rig.lose_gpu("n1")
    wait_phase(rig, "n1", "Held")
    assert rig.controller is not None
    rig.controller.kill()
    rig.lab.kubectl("uncordon", "n1")
    rig.lab.kubectl("cordon", "n1")
    assert owner(rig, "n1")
    rig.start_controller()
    rig.agents["n1"].child.stop()
    rig.agents["n1"].kernel_log.write_text("")
    two_nodes[0].reboot(rig.lab.api)
    rig.start_agent(two_nodes[0])
    wait_phase(rig, "n1", "Released", deadline=60)
    assert rig.node("n1")["spec"]["unschedulable"] is True
    assert owner(rig, "n1") == ""


def test_a_node_whose_gpu_did_not_come_back_is_not_given_back(rig: Rig, two_nodes: tuple[Node, Node]) -> None:
    rig.lose_gpu("n1")
    wait_phase(rig, "n1", "Held")
    agent = rig.agents["n1"]
    agent.child.stop()
    agent.kernel_log.write_text("")
    machine = load(agent.machine)
    lost = machine.devices[GPU_OF_ADDRESS_3B]
    save(agent.machine, replace(machine, devices=tuple(one for one in machine.devices if one is not lost)))
    two_nodes[0].reboot(rig.lab.api)
    rig.start_agent(two_nodes[0])

    wait_until(lambda: not rig.report("n1")["status"].get("faults"), 20, "the fault to clear", logs=rig.logs)
    sequence = rig.report("n1")["status"]["sequence"]
    wait_until(lambda: rig.report("n1")["status"]["sequence"] >= sequence + 4, 20, "renewals past the dwell")
    assert rig.node("n1")["spec"]["unschedulable"] is True
    save(agent.machine, machine)
    rig.agents["n1"].child.stop()
    rig.start_agent(two_nodes[0])
    wait_phase(rig, "n1", "Released", deadline=40)
    assert not rig.node("n1")["spec"].get("unschedulable")


def test_observe_tells_the_story_and_changes_nothing(rig: Rig) -> None:
    rig.policy.write_text(AUTO_POLICY.replace("mode: Auto", "mode: Observe"))
    wait_until(lambda: policy_taken(rig), 15, "the policy to be read again")
    rig.lose_gpu("n1")
    session = wait_phase(rig, "n1", "Fenced")
    assert session["status"]["reason"] == "ObserveOnly"
    assert session["spec"]["mode"] == "Observe"
    node = rig.node("n1")
    assert not node["spec"].get("unschedulable")
    assert owner(rig, "n1") == ""


def test_approve_waits_for_a_person_and_then_acts(rig: Rig) -> None:
    rig.policy.write_text(AUTO_POLICY.replace("mode: Auto", "mode: Approve"))
    wait_until(lambda: policy_taken(rig), 15, "the policy to be read again")
    rig.lose_gpu("n1")
    session = wait_phase(rig, "n1", "Pending")
    assert not rig.node("n1")["spec"].get("unschedulable")
    approval = {"spec": {"approval": {"decision": "Approved", "user": "alice"}}}
    name = session["metadata"]["name"]
    rig.lab.kubectl(
        "patch", "acrem", name, "--type=merge", "-p", json.dumps(approval),
        "--as", "alice", "--as-group", "system:masters",
    )  # fmt: skip
    assert_fenced_by_its_session(rig, "n1", wait_phase(rig, "n1", "Held"))


def test_a_hold_stops_the_return_of_a_node_until_it_is_lifted(rig: Rig, two_nodes: tuple[Node, Node]) -> None:
    rig.lose_gpu("n1")
    wait_phase(rig, "n1", "Held")
    rig.lab.kubectl("annotate", "node", "n1", "sickbay.dev/hold=looking at it")
    wait_until(
        lambda: [s for s in rig.sessions("n1") if s["status"].get("reason") == "HeldByUser"],
        10,
        "the hold to be seen",
    )
    rig.agents["n1"].child.stop()
    rig.agents["n1"].kernel_log.write_text("")
    two_nodes[0].reboot(rig.lab.api)
    rig.start_agent(two_nodes[0])
    wait_until(
        lambda: rig.report("n1")["status"].get("faults", []) == [], 20, "the fault to clear", logs=rig.logs
    )
    sequence = rig.report("n1")["status"]["sequence"]
    wait_until(
        lambda: rig.report("n1")["status"]["sequence"] >= sequence + 2, 20, "two renewals, past the dwell"
    )
    assert rig.node("n1")["spec"]["unschedulable"] is True
    rig.lab.kubectl("annotate", "node", "n1", "sickbay.dev/hold-")
    wait_phase(rig, "n1", "Released", deadline=40)
    assert not rig.node("n1")["spec"].get("unschedulable")


def test_a_second_controller_waits_and_takes_over_when_the_first_dies(rig: Rig) -> None:
    first = rig.controller
    assert first is not None
    port = rig.controller_port
    rig.start_controller(name="standby")
    wait_until(lambda: rig.metrics_page(rig.controller_port), 15, "the second to serve", ignoring=(OSError,))
    assert rig.metric("sickbay_leader_epoch") == 0
    old_epoch = rig.metric("sickbay_leader_epoch", port=port)
    first.stop()
    wait_until(
        lambda: rig.metric("sickbay_leader_epoch") > old_epoch, 30, "the second to lead", logs=rig.logs
    )
    rig.wait_watching()
    rig.lose_gpu("n1")
    session = wait_phase(rig, "n1", "Held")
    assert session["status"]["leaderEpoch"] > old_epoch
    epochs = {
        event["userAgent"].rpartition("epoch/")[2]
        for event in rig.lab.audit_events()
        if event.get("verb") == "patch"
        and event.get("objectRef", {}).get("resource") == "nodes"
        and "epoch/" in event.get("userAgent", "")
    }
    assert str(session["status"]["leaderEpoch"]) in epochs


def test_a_line_through_the_machines_own_kernel_log_fences_in_a_drill(
    sickbay: Lab, two_nodes: tuple[Node, Node]
) -> None:
    """Userspace cannot write facility 0: so the agent is told that this is a drill, and says so."""
    device = Path("/dev/kmsg")
    since = _drill_begins(device)
    rig = Rig(sickbay)
    try:
        flags = ("--drill", "--kernel-log-since", str(since))
        for node in two_nodes:
            rig.start_agent(node, *(flags if node.name == "n1" else ()), kernel_log=device)
        rig.start_controller()
        rig.wait_watching()
        assert rig.report("n1")["status"]["drill"] is True
        device.write_text(XID_79.format(address="0000:3b:00") + "\n")
        session = wait_phase(rig, "n1", "Held")
        assert session["status"]["incidents"][0]["drill"] is True
        assert_fenced_by_its_session(rig, "n1", session)
        # The other agent reads the same log without the drill: to it the line is forged, and it says so.
        assert not rig.node("n2")["spec"].get("unschedulable")
        assert rig.report("n2")["status"].get("faults", []) == []
    finally:
        rig.stop()
        clean(sickbay)


def _drill_begins(device: Path) -> int:
    """The number that the next record of the kernel log will have; there is one before it."""
    kernel_log.write(f"sickbay lab: drill begins at {datetime.now(UTC):%H:%M:%S}\n".encode(), device)
    return kernel_log.next_sequence(device)
