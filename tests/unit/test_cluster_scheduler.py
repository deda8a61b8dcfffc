"""The scheduler of the embedded control plane."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.cluster_rig import Plugins, Rig, condition, pod


def scheduled(rig: Rig, name: str = "p") -> dict[str, Any]:
    found = rig.condition("pods", name, "PodScheduled")
    assert found is not None
    return found


def node_of(rig: Rig, name: str = "p") -> str:
    return str(rig.get("pods", name)["spec"].get("nodeName", ""))


def required(**term: Any) -> dict[str, Any]:
    terms = {"nodeSelectorTerms": [term]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


def test_a_pod_is_bound_and_told_so() -> None:
    rig = Rig(nodes=1)
    rig.create("pods", pod())
    assert node_of(rig) == "n1"
    assert scheduled(rig)["status"] == "True"


def test_without_nodes_there_is_nowhere_to_go() -> None:
    rig = Rig()
    rig.create("pods", pod())
    assert scheduled(rig)["reason"] == "Unschedulable"
    assert scheduled(rig)["message"] == "no nodes available to schedule pods"


def test_gpus_that_are_taken_and_gpus_that_are_gone_read_alike_but_for_preemption() -> None:
    rig = Rig(nodes=1)
    rig.add_node("g1", plugins=Plugins(8))
    rig.create("pods", pod("holder", gpus=8))
    rig.create("pods", pod(gpus=1))
    assert scheduled(rig)["message"] == (
        "0/2 nodes are available: 2 Insufficient nvidia.com/gpu. preemption: 0/2 nodes are available: "
        "1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling."
    )


def test_a_pod_that_waits_for_room_is_bound_when_another_is_gone() -> None:
    rig = Rig()
    rig.add_node("g1", plugins=Plugins(8))
    rig.create("pods", pod("holder", gpus=8))
    rig.create("pods", pod(gpus=4))
    assert node_of(rig) == ""
    rig.delete("pods", "holder", grace_seconds=0)
    rig.advance(2)
    assert node_of(rig) == "g1"
    assert rig.get("pods", "p")["status"]["phase"] == "Running"


def test_a_pod_that_has_ended_takes_no_room() -> None:
    rig = Rig()
    rig.add_node("g1", plugins=Plugins(1))
    done = {"sickbay.dev/simulate-seconds": "1"}
    rig.create("pods", pod("holder", gpus=1, annotations=done, restartPolicy="Never"))
    rig.create("pods", pod(gpus=1))
    rig.advance(3)
    assert rig.get("pods", "p")["status"]["phase"] == "Running"


def test_an_unhealthy_device_that_a_pod_holds_counts_twice() -> None:
    """Measured on kube-scheduler: 8 devices, a pod holds 2 that are unhealthy; 6 more do not fit, 4 do."""
    rig = Rig()
    plugins = Plugins(8)
    rig.add_node("g1", plugins=plugins)
    rig.create("pods", pod("holder", gpus=2))
    for device in plugins.allocated[0]:
        plugins.devices[device] = False
    rig.advance(11)
    rig.create("pods", pod("six", gpus=6))
    rig.create("pods", pod("four", gpus=4))
    assert (node_of(rig, "six"), node_of(rig, "four")) == ("", "g1")


@pytest.mark.parametrize(
    ("change", "spec", "reason"),
    [
        ({"unschedulable": True}, {}, "node(s) were unschedulable"),
        ({"taints": [{"key": "k", "effect": "NoSchedule"}]}, {}, "node(s) had untolerated taint(s)"),
        ({}, {"nodeSelector": {"a": "2"}}, "node(s) didn't match Pod's node affinity/selector"),
        (
            {},
            {"affinity": required(matchExpressions=[{"key": "a", "operator": "NotIn", "values": ["1"]}])},
            "node(s) didn't match Pod's node affinity/selector",
        ),
        ({}, {"cpu": "65"}, "Insufficient cpu"),
    ],
)
def test_what_keeps_a_pod_away_is_named(change: Any, spec: dict[str, Any], reason: str) -> None:
    rig = Rig(nodes=1, labels={"a": "1"})
    if change:
        rig.patch("nodes", "n1", {"spec": change})
    rig.create("pods", pod(**spec))
    assert scheduled(rig)["message"] == (
        f"0/1 nodes are available: 1 {reason}. preemption: 0/1 nodes are available: "
        "1 Preemption is not helpful for scheduling."
    )


@pytest.mark.parametrize(
    "toleration",
    [
        {"operator": "Exists"},
        {"key": "k", "operator": "Exists"},
        {"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"},
        {"key": "k", "value": "v"},
    ],
)
def test_a_toleration_lets_a_pod_onto_a_tainted_node(toleration: dict[str, str]) -> None:
    rig = Rig(nodes=1)
    rig.patch("nodes", "n1", {"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}})
    rig.create("pods", pod(tolerations=[toleration]))
    assert node_of(rig) == "n1"


def test_an_uncordoned_node_takes_what_waited() -> None:
    rig = Rig(nodes=1)
    rig.patch("nodes", "n1", {"spec": {"unschedulable": True}})
    rig.create("pods", pod())
    assert node_of(rig) == ""
    rig.patch("nodes", "n1", {"spec": {"unschedulable": None}})
    rig.advance(2)
    assert node_of(rig) == "n1"
    assert "taints" not in rig.get("nodes", "n1")["spec"]


def test_a_pod_for_one_named_node_goes_there_or_nowhere() -> None:
    rig = Rig(nodes=3)
    field = {"key": "metadata.name", "operator": "In", "values": ["n2"]}
    rig.create("pods", pod(affinity=required(matchFields=[field])))
    assert node_of(rig) == "n2"
    missing = {**field, "values": ["n9"]}
    rig.create("pods", pod("q", affinity=required(matchFields=[missing])))
    assert scheduled(rig, "q")["message"].startswith(
        "0/3 nodes are available: 3 node(s) didn't satisfy plugin(s) [NodeAffinity]."
    )


def test_a_node_takes_no_more_pods_than_it_says() -> None:
    rig = Rig(nodes=1, resources={"cpu": "4", "memory": "8Gi", "pods": "1"})
    rig.create("pods", pod("first"))
    rig.create("pods", pod())
    assert "1 Too many pods" in scheduled(rig)["message"]


def test_the_more_important_pod_is_bound_first() -> None:
    rig = Rig()
    rig.create("pods", pod("low", gpus=1))
    rig.create("pods", pod("high", gpus=1, priorityClassName="system-node-critical"))
    rig.advance(2)
    rig.add_node("g1", plugins=Plugins(1))
    rig.advance(12)
    assert (node_of(rig, "high"), node_of(rig, "low")) == ("g1", "")


def test_a_pod_of_another_scheduler_or_behind_a_gate_is_left_alone() -> None:
    rig = Rig(nodes=1)
    rig.create("pods", pod(schedulerName="another"))
    rig.create("pods", pod("gated", schedulingGates=[{"name": "wait"}]))
    assert (node_of(rig), node_of(rig, "gated")) == ("", "")
    assert condition(rig.get("pods", "p"), "PodScheduled") is None


def test_the_same_pods_go_to_the_same_nodes() -> None:
    def places() -> list[str]:
        rig = Rig(nodes=7)
        for index in range(20):
            rig.create("pods", pod(f"p{index:02}", cpu=str(1 + index % 3)))
        return [node_of(rig, f"p{index:02}") for index in range(20)]

    assert places() == places()
