"""The controller on Nodes: the cordon and its own keys, and never a person's cordon."""

from functools import partial

import pytest

from tests.lab.admission.world import MINE, OPERAND, TAINT, World, refused_by
from tests.lab.api import Object

OURS = {"key": "sickbay.dev/fenced", "effect": "NoSchedule"}
PAUSED = "paused-for-sickbay"
RECORD = {"sickbay.dev/session": "admission-mine-0123456789"}


def test_the_controller_cordons_with_its_record_and_uncordons(world: World, node: str) -> None:
    cordon = {"metadata": {"annotations": RECORD}, "spec": {"unschedulable": True}}
    fenced = world.controller.patch(node, cordon)
    assert fenced["spec"]["unschedulable"] is True
    assert TAINT in fenced["spec"]["taints"]
    uncordon: Object = {"metadata": {"annotations": dict.fromkeys(RECORD)}, "spec": {"unschedulable": False}}
    free = world.controller.patch(node, uncordon)
    assert "unschedulable" not in free["spec"]
    assert free["metadata"]["annotations"]["example.com/note"] == "kept"
    assert not RECORD.keys() & free["metadata"]["annotations"].keys()


def test_the_controller_sets_and_removes_its_own_keys_and_taints(world: World, node: str) -> None:
    before = world.admin.get(node)["spec"]["taints"]
    keys = {"sickbay.dev/unverified": "yes"}
    added = world.controller.patch(
        node, {"metadata": {"labels": keys, "annotations": keys}, "spec": {"taints": [OURS, *before]}}
    )
    assert OURS in added["spec"]["taints"]
    gone = dict.fromkeys(keys)
    world.controller.patch(
        node, {"metadata": {"labels": gone, "annotations": gone}, "spec": {"taints": before}}
    )
    assert OURS not in world.admin.get(node)["spec"]["taints"]


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ({"metadata": {"labels": {"example.com/rack": "r2"}}}, "not example.com/rack"),
        ({"metadata": {"labels": {"example.com/rack": None}}}, "not example.com/rack"),
        ({"metadata": {"labels": {"example.com/new": "yes"}}}, "not example.com/new"),
        ({"metadata": {"labels": {"evil.sickbay.dev/x": "yes"}}}, "not evil.sickbay.dev/x"),
        ({"metadata": {"annotations": {"example.com/note": "changed"}}}, "not example.com/note"),
        ({"metadata": {"annotations": {"example.com/note": None}}}, "not example.com/note"),
        ({"metadata": {"annotations": {"example.com/new": "yes"}}}, "not example.com/new"),
        ({"metadata": {"finalizers": ["example.com/forever"]}}, "metadata.finalizers"),
        ({"spec": {"taints": []}}, f"not {TAINT['key']}"),
        ({"spec": {"taints": [TAINT | {"effect": "NoExecute"}]}}, f"not {TAINT['key']}"),
        ({"spec": {"taints": [TAINT, {"key": "example.com/x", "effect": "NoExecute"}]}}, "example.com/x"),
        ({"spec": {"podCIDR": "10.9.0.0/24", "podCIDRs": ["10.9.0.0/24"]}}, "spec.podCIDR"),
        ({"spec": {"providerID": "example://i-1"}}, "spec.providerID"),
    ],
)
def test_the_controller_cannot_change_anything_else_of_a_node(
    world: World, node: str, patch: Object, said: str
) -> None:
    message = refused_by("sickbay-controller-nodes", lambda: world.controller.patch(node, patch))
    assert said in message


def test_a_foreign_change_is_refused_in_the_middle_of_a_good_one(world: World, node: str) -> None:
    patch = {
        "metadata": {"annotations": RECORD | {"example.com/note": "changed"}},
        "spec": {"unschedulable": True},
    }
    refused_by("sickbay-controller-nodes", lambda: world.controller.patch(node, patch))
    assert "unschedulable" not in world.admin.get(node)["spec"]


def test_the_controller_sends_an_operand_away_and_takes_it_back_within_a_session(
    world: World, node: str
) -> None:
    cordon = {"metadata": {"annotations": RECORD}, "spec": {"unschedulable": True}}
    world.controller.patch(node, cordon)
    away = world.controller.patch(node, {"metadata": {"labels": {OPERAND: PAUSED}}})
    assert away["metadata"]["labels"][OPERAND] == PAUSED
    # At the end with the last write of the session, which takes its record away.
    back = {"labels": {OPERAND: "true"}, "annotations": dict.fromkeys(RECORD)}
    free = world.controller.patch(node, {"metadata": back, "spec": {"unschedulable": False}})
    assert free["metadata"]["labels"][OPERAND] == "true"


def test_an_operand_goes_with_the_very_write_that_cordons(world: World, node: str) -> None:
    metadata = {"annotations": RECORD, "labels": {OPERAND: PAUSED}}
    world.controller.patch(node, {"metadata": metadata, "spec": {"unschedulable": True}})


def test_without_a_session_an_operand_is_not_sent_away_but_taken_back(world: World, node: str) -> None:
    patch = {"metadata": {"labels": {OPERAND: PAUSED}}}
    message = refused_by("sickbay-controller-nodes", lambda: world.controller.patch(node, patch))
    assert "only on a node with the annotation sickbay.dev/session" in message
    world.admin.patch(node, patch)
    free = world.controller.patch(node, {"metadata": {"labels": {OPERAND: "true"}}})
    assert free["metadata"]["labels"][OPERAND] == "true"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("true", "false"),
        ("true", "paused-for-driver-upgrade"),
        ("true", None),
        ("false", PAUSED),
        ("false", "true"),
        ("paused-for-driver-upgrade", "true"),
        ("paused-for-driver-upgrade", PAUSED),
        (None, PAUSED),
        (None, "true"),
        (PAUSED, "false"),
        (PAUSED, None),
    ],
)
def test_an_operand_is_paused_and_taken_back_and_nothing_else(
    world: World, node: str, before: str | None, after: str | None
) -> None:
    world.controller.patch(node, {"metadata": {"annotations": RECORD}, "spec": {"unschedulable": True}})
    world.admin.patch(node, {"metadata": {"labels": {OPERAND: before}}})
    patch = {"metadata": {"labels": {OPERAND: after}}}
    message = refused_by("sickbay-controller-nodes", lambda: world.controller.patch(node, patch))
    assert f"not {OPERAND}" in message


def test_what_looks_like_an_operand_is_none(world: World, node: str) -> None:
    world.controller.patch(node, {"metadata": {"annotations": RECORD}, "spec": {"unschedulable": True}})
    for metadata in (
        {"labels": {"nvidia.com/gpu.deploy": PAUSED}},
        {"labels": {"evil.nvidia.com/gpu.deploy.x": PAUSED}},
        {"annotations": {OPERAND: PAUSED}},
    ):
        patch = {"metadata": metadata}
        refused_by("sickbay-controller-nodes", partial(world.controller.patch, node, patch))


def test_the_controller_takes_the_startup_taint_off_a_node_that_it_has_verified(
    world: World, node: str
) -> None:
    unverified = {"key": "sickbay.dev/unverified", "effect": "NoSchedule"}
    before = world.admin.get(node)["spec"]["taints"]
    world.admin.patch(node, {"spec": {"taints": [*before, unverified]}})
    after = world.controller.patch(node, {"spec": {"taints": before}})
    assert after["spec"]["taints"] == before


@pytest.mark.parametrize("key", ["sickbay.dev/hold", "sickbay.dev/opt-out"])
@pytest.mark.parametrize("field", ["labels", "annotations"])
def test_the_controller_cannot_touch_what_people_ask_for_on_a_node(
    world: World, node: str, field: str, key: str
) -> None:
    patch = {"metadata": {field: {key: "yes"}}}
    assert "are for people" in refused_by(
        "sickbay-controller-nodes", lambda: world.controller.patch(node, patch)
    )


def test_a_cordon_without_the_ownership_record_is_refused(world: World, node: str) -> None:
    message = refused_by(
        "sickbay-controller-nodes", lambda: world.controller.patch(node, {"spec": {"unschedulable": True}})
    )
    assert "sickbay.dev/session in the same request" in message


def test_a_persons_cordon_can_neither_be_claimed_nor_undone(world: World, node: str) -> None:
    world.lab.kubectl("cordon", MINE)
    claim = {"metadata": {"annotations": RECORD}}
    message = refused_by("sickbay-controller-nodes", lambda: world.controller.patch(node, claim))
    assert "somebody else has cordoned" in message
    uncordon: Object = {"spec": {"unschedulable": False}}
    for patch in (uncordon, claim | uncordon):
        refused_by("sickbay-controller-nodes", partial(world.controller.patch, node, patch))
    assert world.admin.get(node)["spec"]["unschedulable"] is True


def test_the_guard_of_nodes_binds_the_controller_alone(world: World, node: str) -> None:
    world.as_user("alice", node, {"metadata": {"labels": {"example.com/rack": "r3"}}})
    assert world.admin.get(node)["metadata"]["labels"]["example.com/rack"] == "r3"
