"""Fixtures of the admission tests: the world, and the objects that tests change in it."""

from collections.abc import Iterator

import pytest

from tests.lab import manifests
from tests.lab.admission.world import MINE, OPERAND, OTHER, REPAIR_PODS, SESSION, TAINT, World
from tests.lab.lab import Lab
from tests.lab.manifests import AGENT, CONTROLLER, CONTROLS, JOBS, NODES, REPORTS, SESSIONS
from tests.lab.processes import wait_until


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
    """The path of the first node: schedulable, with foreign keys, a foreign taint and an operand of its GPUs."""
    path = f"{NODES}/{MINE}"
    labels = {"example.com/rack": "r1", OPERAND: "true"}
    theirs = {"labels": labels, "annotations": {"example.com/note": "kept"}}
    world.admin.patch(path, {"metadata": theirs, "spec": {"taints": [TAINT]}})
    yield path
    keys = ("sickbay.dev/session", "sickbay.dev/hold", "sickbay.dev/pool", "sickbay.dev/unverified")
    gone = dict.fromkeys((*keys, OPERAND))
    world.admin.patch(
        path, {"metadata": {"annotations": gone, "labels": gone}, "spec": {"unschedulable": None}}
    )


@pytest.fixture(scope="package")
def repair_switch(lab: Lab) -> Iterator[None]:
    """Repair is switched on, and off again after the package: other tests rely on that."""
    manifests.apply(lab)
    manifests.repair(lab)
    yield
    manifests.without_repair(lab)


@pytest.fixture
def jobs(world: World) -> Iterator[str]:
    """The path of the Jobs; afterwards there is none, and none of their pods."""
    yield JOBS
    background = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
    world.admin.delete(JOBS, background)
    now = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}

    def none_left() -> bool:
        # Asked each time: the Job's controller may make a pod while the Job goes.
        world.admin.delete(REPAIR_PODS, now)
        return not world.admin.items(REPAIR_PODS) and not world.admin.items(JOBS)

    wait_until(none_left, 20, "the Jobs and their pods to be gone")
