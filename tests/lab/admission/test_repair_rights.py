"""What else the repair switch grants: a last look, and a word to the agents; and nothing of it without the switch."""

from __future__ import annotations

import pytest

from tests.lab import manifests
from tests.lab.admission.world import MINE, World, refused, refused_by
from tests.lab.api import Object
from tests.lab.manifests import CONTROLLER, JOBS, NODES, REPAIR, REPORTS, SESSIONS
from tests.lab.processes import wait_until

pytestmark = pytest.mark.usefixtures("repair_switch")


@pytest.mark.parametrize(
    ("verb", "resource", "allowed"),
    [
        ("get", "nodes", True),
        ("get", "acceleratorremediations.sickbay.dev", True),
        ("get", "acceleratorcontrols.sickbay.dev", True),
        ("list", "nodes", False),
        ("watch", "nodes", False),
        ("patch", "nodes", False),
        ("list", "acceleratorremediations.sickbay.dev", False),
        ("patch", "acceleratorremediations.sickbay.dev/status", False),
        ("get", "acceleratorreports.sickbay.dev", False),
        ("get", "pods", False),
        ("create", "pods", False),
        ("get", "secrets", False),
        ("get", "podtemplates", False),
        ("create", "jobs.batch", False),
        ("create", "serviceaccounts/token", False),
    ],
)
def test_the_account_that_looks_may_read_what_it_looks_at_and_nothing_else(
    world: World, verb: str, resource: str, allowed: bool
) -> None:
    assert world.may(REPAIR, verb, resource, namespace=REPAIR[0]) is allowed


def test_the_look_reads_session_node_and_switches_with_its_own_token(world: World, session: str) -> None:
    look = world.lab.client(world.lab.service_account_token(*REPAIR))
    assert look.get(session)["spec"]["nodeName"] == MINE
    assert look.get(f"{NODES}/{MINE}")["metadata"]["uid"] == world.uids[MINE]
    assert look.get(f"{manifests.CONTROLS}/default")["metadata"]["name"] == "default"
    assert 'cannot list resource "nodes"' in refused(lambda: look.get(NODES))
    assert 'cannot list resource "acceleratorremediations"' in refused(lambda: look.get(SESSIONS))


def test_the_controller_asks_an_agent_to_let_go_by_the_spec_of_its_report(
    world: World, own_report: str
) -> None:
    wish = {"deviceRelease": {"session": "s", "until": "2026-01-01T00:00:00Z"}}
    assert world.controller.patch(own_report, {"spec": wish})["spec"] == wish
    assert "spec" not in world.controller.patch(own_report, {"spec": None})


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ({"metadata": {"labels": {"example.com/rack": "r1"}}}, "metadata.labels"),
        ({"metadata": {"annotations": {"sickbay.dev/session": "s"}}}, "metadata.annotations"),
        ({"metadata": {"finalizers": ["example.com/forever"]}}, "metadata.finalizers"),
        ({"metadata": {"ownerReferences": None}}, "metadata.ownerReferences"),
    ],
)
def test_the_controller_changes_nothing_else_of_a_report(
    world: World, own_report: str, patch: Object, said: str
) -> None:
    whole = patch | {"spec": {"pool": "training"}}
    message = refused_by("sickbay-controller-reports", lambda: world.controller.patch(own_report, whole))
    assert said in message


def test_what_agents_say_the_controller_cannot_say_for_them(world: World, own_report: str) -> None:
    world.agent.patch(f"{own_report}/status", {"status": {"nodeUID": world.uids[MINE], "sequence": 1}})
    status = {"status": {"sequence": 9}}
    assert 'cannot patch resource "acceleratorreports/status"' in refused(
        lambda: world.controller.patch(f"{own_report}/status", status)
    )
    assert world.controller.patch(own_report, status)["status"]["sequence"] == 1
    assert 'cannot create resource "acceleratorreports"' in refused(
        lambda: world.controller.create(REPORTS, world.report())
    )


def test_without_the_switch_the_controller_has_no_permission_on_jobs_and_reports(world: World) -> None:
    asked = {
        ("create", "jobs.batch"),
        ("get", "jobs.batch"),
        ("get", "podtemplates"),
        ("patch", "acceleratorreports.sickbay.dev"),
    }
    assert all(world.may(CONTROLLER, *one, namespace=REPAIR[0]) for one in asked)
    world.lab.kubectl("delete", "-f", manifests.DEPLOY / "repair" / "rbac.yaml")
    try:
        wait_until(
            lambda: not any(world.may(CONTROLLER, *one, namespace=REPAIR[0]) for one in asked),
            15,
            "the permissions to be gone",
        )
        assert 'cannot create resource "jobs"' in refused(lambda: world.controller.create(JOBS, world.job()))
    finally:
        manifests.repair(world.lab)
