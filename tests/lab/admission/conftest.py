"""Fixtures of the admission tests: the world, and the objects that tests change in it."""

from collections.abc import Iterator

import pytest

from tests.lab import manifests
from tests.lab.admission.world import MINE, OTHER, SESSION, TAINT, World
from tests.lab.lab import Lab
from tests.lab.manifests import AGENT, CONTROLLER, CONTROLS, NODES, REPORTS, SESSIONS


@pytest.fixture(scope="module")
def world(lab: Lab, clean_cluster: None) -> Iterator[World]:
    manifests.apply(lab)
    uids = {}
    for name in (MINE, OTHER):
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"taints": [TAINT]}}
        uids[name] = lab.api.create(NODES, node)["metadata"]["uid"]
    yield World(
        lab,
        agent=lab.client(lab.service_account_token(*AGENT, bound_node=MINE)),
        controller=lab.client(lab.service_account_token(*CONTROLLER)),
        uids=uids,
    )
    for name in uids:
        lab.api.delete(f"{NODES}/{name}")


@pytest.fixture
def own_report(world: World) -> Iterator[str]:
    """The path of the report that the agent of the first node has created."""
    world.agent.create(REPORTS, world.report())
    yield f"{REPORTS}/{MINE}"
    world.admin.delete(f"{REPORTS}/{MINE}")


@pytest.fixture
def session(world: World) -> Iterator[str]:
    """The path of a session that the controller has opened."""
    world.controller.create(SESSIONS, world.session())
    yield f"{SESSIONS}/{SESSION}"
    world.admin.delete(f"{SESSIONS}/{SESSION}")


@pytest.fixture
def control(world: World) -> Iterator[str]:
    """The path of the control object, with no switch set before and after."""
    yield f"{CONTROLS}/default"
    world.admin.patch(f"{CONTROLS}/default", {"spec": None})


@pytest.fixture
def node(world: World) -> Iterator[str]:
    """The path of the first node: schedulable, with a foreign taint, label and annotation."""
    path = f"{NODES}/{MINE}"
    theirs = {"labels": {"example.com/rack": "r1"}, "annotations": {"example.com/note": "kept"}}
    world.admin.patch(path, {"metadata": theirs, "spec": {"taints": [TAINT]}})
    yield path
    keys = ("sickbay.dev/session", "sickbay.dev/hold", "sickbay.dev/pool", "sickbay.dev/unverified")
    gone = dict.fromkeys(keys)
    world.admin.patch(
        path, {"metadata": {"annotations": gone, "labels": gone}, "spec": {"unschedulable": None}}
    )
