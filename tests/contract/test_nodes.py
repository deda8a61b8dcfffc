"""Nodes: conditions, the cordon with its record, who has set it, and taints."""

from __future__ import annotations

import json

import pytest

from runtime.api_errors import Conflict, Invalid
from tests.contract.objects import node, pod
from tests.contract.world import NODES, Told, World, refused

CHANGED = Told(Conflict, 409, "Conflict")


def test_a_taint_is_taken_off_by_its_place_and_at_one_version(world: World) -> None:
    name = world.fresh("node")
    path = f"{NODES}/{name}"
    made = world.create(NODES, node(name))
    taints = [
        {"key": key, "value": "x", "effect": "NoSchedule"}
        for key in ("example.com/theirs", "sickbay.dev/ours")
    ]
    tainted = world.merge(path, {"spec": {"taints": taints}})

    def removal(version: str) -> list[dict[str, str]]:
        return [
            {"op": "test", "path": "/metadata/resourceVersion", "value": version},
            {"op": "test", "path": "/spec/taints/1/key", "value": "sickbay.dev/ours"},
            {"op": "remove", "path": "/spec/taints/1"},
        ]

    for wrong in (removal(made["metadata"]["resourceVersion"]), [removal("")[1] | {"value": "another"}]):
        with pytest.raises(Invalid) as caught:
            world.json_patch(path, wrong)
        assert (caught.value.status, caught.value.reason) == (422, "Invalid")
    after = world.json_patch(path, removal(tainted["metadata"]["resourceVersion"]))
    assert [taint["key"] for taint in after["spec"]["taints"]] == ["example.com/theirs"]


def test_node_conditions_are_merged_by_type(world: World) -> None:
    name = world.fresh("node")
    world.create(NODES, node(name))
    condition = {"type": "AcceleratorsHealthy", "status": "False", "reason": "XidFatal"}
    after = world.strategic(f"{NODES}/{name}/status", {"status": {"conditions": [condition]}})
    found = {item["type"]: item["status"] for item in after["status"]["conditions"]}
    assert found == {"Ready": "True", "MemoryPressure": "False", "AcceleratorsHealthy": "False"}
    gone = {"$patch": "delete", "type": "AcceleratorsHealthy"}
    after = world.strategic(f"{NODES}/{name}/status", {"status": {"conditions": [gone]}})
    assert {item["type"] for item in after["status"]["conditions"]} == {"Ready", "MemoryPressure"}


def test_a_cordon_is_one_atomic_patch_with_its_record(world: World) -> None:
    name = world.fresh("node")
    path = f"{NODES}/{name}"
    made = world.create(NODES, node(name))
    assert "unschedulable" not in made["spec"]
    own = {"uid": made["metadata"]["uid"], "resourceVersion": made["metadata"]["resourceVersion"]}
    patch = {
        "metadata": {**own, "annotations": {"sickbay.dev/session": "s"}},
        "spec": {"unschedulable": True},
    }
    query = {"fieldManager": "sickbay-controller"}
    after = world.merge(path, patch, query)
    assert after["spec"]["unschedulable"] is True
    assert after["metadata"]["annotations"]["sickbay.dev/session"] == "s"
    with refused(CHANGED):
        world.merge(path, patch, query)
    off = {"metadata": {"annotations": {"sickbay.dev/session": None}}, "spec": {"unschedulable": None}}
    after = world.merge(path, off, query)
    assert "unschedulable" not in after["spec"]
    assert "sickbay.dev/session" not in after["metadata"].get("annotations", {})


def test_the_api_keeps_who_has_cordoned_a_node(world: World) -> None:
    name = world.fresh("node")
    path = f"{NODES}/{name}"
    world.create(NODES, node(name))
    cordon, uncordon = {"spec": {"unschedulable": True}}, {"spec": {"unschedulable": None}}
    world.merge(path, cordon, {"fieldManager": "sickbay-controller"})
    assert _managers(world, path) == ["sickbay-controller"]
    world.merge(path, uncordon, {"fieldManager": "kubectl-edit"})
    assert _managers(world, path) == []
    world.merge(path, cordon)
    assert _managers(world, path) == ["sickbay-contract"]
    # Whoever asks for what is so already does not take the field over.
    world.merge(path, cordon, {"fieldManager": "sickbay-controller"})
    assert "sickbay-contract" in _managers(world, path)


def test_who_changes_a_node_that_was_born_with_nothing_but_a_name_is_not_kept(world: World) -> None:
    name = world.fresh("node")
    bare = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
    world.create(NODES, bare)
    after = world.merge(
        f"{NODES}/{name}", {"spec": {"unschedulable": True}}, {"fieldManager": "sickbay-controller"}
    )
    assert not after["metadata"].get("managedFields")


def test_a_node_keeps_the_status_that_it_was_created_with_and_a_pod_does_not(world: World) -> None:
    name = world.fresh("node")
    assert world.create(NODES, node(name))["status"]["nodeInfo"]["bootID"] == "boot-1"
    asked = {**pod(world.fresh("pod")), "status": {"phase": "Running", "message": "mine"}}
    made = world.create(world.pods, asked)
    assert made["status"]["phase"] == "Pending" and "message" not in made["status"]


def _managers(world: World, path: str) -> list[str]:
    """Who has set `spec.unschedulable`, as the controller finds out."""
    entries = world.get(path)["metadata"]["managedFields"]
    return [
        entry["manager"]
        for entry in entries
        if "f:unschedulable" in json.dumps(entry.get("fieldsV1", {}).get("f:spec", {}))
    ]
