"""The agent: the status of its own node's report, and nothing else."""

import pytest

from tests.lab import manifests
from tests.lab.admission.world import MINE, OTHER, World, refused, refused_by
from tests.lab.api import Object
from tests.lab.manifests import AGENT, REPORTS


def test_an_agent_creates_its_own_report_and_renews_its_status(world: World, own_report: str) -> None:
    status = {"nodeUID": world.uids[MINE], "bootID": "boot-1", "sequence": 1}
    answer = world.agent.patch(f"{own_report}/status", {"status": status})
    assert answer["status"]["sequence"] == 1
    renewed = world.agent.patch(f"{own_report}/status", {"status": {"sequence": 2}})
    assert renewed["status"]["bootID"] == "boot-1"
    assert world.agent.get(own_report)["status"]["sequence"] == 2


def test_an_agent_reads_the_controllers_wish_in_the_answer_to_its_renewal(
    world: World, own_report: str
) -> None:
    world.admin.patch(own_report, {"spec": {"pool": "training"}})
    answer = world.agent.patch(
        f"{own_report}/status", {"status": {"nodeUID": world.uids[MINE], "sequence": 1}}
    )
    assert answer["spec"] == {"pool": "training"}


def test_a_pods_token_counts_as_its_nodes(world: World, namespace: str) -> None:
    """A real agent's token is bound to its pod; the API server adds the node that the pod is on."""
    container = {"name": "agent", "image": "agent"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "agent", "namespace": AGENT[0]},
        "spec": {"serviceAccountName": AGENT[1], "nodeName": MINE, "containers": [container]},
    }
    world.admin.create(f"/api/v1/namespaces/{AGENT[0]}/pods", pod)
    path = f"/api/v1/namespaces/{AGENT[0]}/serviceaccounts/{AGENT[1]}/token"
    bound = {"apiVersion": "v1", "kind": "Pod", "name": "agent"}
    request = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"boundObjectRef": bound},
    }
    try:
        token = world.admin.create(path, request)["status"]["token"]
        world.lab.client(token).create(REPORTS + manifests.DRY_RUN, world.report())
        refused_by(
            "sickbay-own-report",
            lambda: world.lab.client(token).create(REPORTS + manifests.DRY_RUN, world.report(OTHER)),
        )
    finally:
        world.admin.delete(f"/api/v1/namespaces/{AGENT[0]}/pods/agent", {"gracePeriodSeconds": 0})


def test_an_agent_cannot_create_another_nodes_report(world: World) -> None:
    message = refused_by("sickbay-own-report", lambda: world.agent.create(REPORTS, world.report(OTHER)))
    assert f"metadata.name must be {MINE}" in message


def test_an_agent_puts_its_status_in_the_place_of_the_last_and_nothing_else(
    world: World, own_report: str
) -> None:
    world.admin.patch(own_report, {"spec": {"pool": "training"}})
    before = world.agent.patch(
        f"{own_report}/status", {"status": {"nodeUID": world.uids[MINE], "bootID": "b"}}
    )
    head = {key: before[key] for key in ("apiVersion", "kind")}
    version = {"name": MINE, "resourceVersion": before["metadata"]["resourceVersion"]}
    with_more = {**head, "metadata": {**version, "labels": {"example.com/rack": "r1"}}, "spec": {"pool": "x"}}
    status = {"nodeUID": world.uids[MINE], "sequence": 2}
    after = world.agent.request("PUT", f"{own_report}/status", {**with_more, "status": status})
    assert after["spec"] == {"pool": "training"}
    assert after["metadata"].get("labels") == before["metadata"].get("labels")
    assert (after["status"]["sequence"], "bootID" in after["status"]) == (2, False)
    version["resourceVersion"] = after["metadata"]["resourceVersion"]
    foreign = {**head, "metadata": version, "status": {"nodeUID": world.uids[OTHER], "sequence": 3}}
    message = refused_by(
        "sickbay-own-report", lambda: world.agent.request("PUT", f"{own_report}/status", foreign)
    )
    assert f"status.nodeUID must be {world.uids[MINE]}" in message
    assert 'cannot update resource "acceleratorreports"' in refused(
        lambda: world.agent.request("PUT", own_report, foreign)
    )


def test_an_agent_cannot_write_another_nodes_status(world: World) -> None:
    made = world.admin.create(REPORTS, world.report(OTHER))
    try:
        path = f"{REPORTS}/{OTHER}/status"
        status = {"nodeUID": world.uids[OTHER], "sequence": 9}
        for write in (
            lambda: world.agent.patch(path, {"status": status}),
            lambda: world.agent.request("PUT", path, {**made, "status": status}),
        ):
            assert f"metadata.name must be {MINE}" in refused_by("sickbay-own-report", write)
    finally:
        world.admin.delete(f"{REPORTS}/{OTHER}")


def test_an_agent_cannot_create_a_report_with_a_spec(world: World) -> None:
    message = refused_by(
        "sickbay-own-report", lambda: world.agent.create(REPORTS, world.report(spec={"pool": "training"}))
    )
    assert "spec must be absent" in message


@pytest.mark.parametrize(
    "patch",
    [{"spec": {"pool": "training"}}, {"metadata": {"labels": {"example.com/rack": "r1"}}}],
    ids=["spec", "labels"],
)
def test_an_agent_cannot_patch_anything_but_status(world: World, own_report: str, patch: Object) -> None:
    assert 'cannot patch resource "acceleratorreports"' in refused(
        lambda: world.agent.patch(own_report, patch)
    )
    before = world.agent.get(own_report)
    status = {"status": {"nodeUID": world.uids[MINE], "sequence": 3}}
    after = world.agent.patch(f"{own_report}/status", patch | status)
    assert after.get("spec") == before.get("spec")
    assert after["metadata"].get("labels") == before["metadata"].get("labels")


def test_an_agents_policy_holds_even_if_its_role_were_wider(world: World, own_report: str) -> None:
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "admission-too-wide"},
        "rules": [{"apiGroups": ["sickbay.dev"], "resources": ["acceleratorreports"], "verbs": ["patch"]}],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "admission-too-wide"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "admission-too-wide",
        },
        "subjects": [{"kind": "ServiceAccount", "namespace": AGENT[0], "name": AGENT[1]}],
    }
    world.lab.apply(role, binding)
    try:
        message = manifests.until_refused(
            "sickbay-own-report", lambda: world.agent.patch(own_report, {"spec": {"pool": "training"}})
        )
        assert "an agent writes status only" in message
    finally:
        for kind in ("clusterrolebindings", "clusterroles"):
            world.admin.delete(f"/apis/rbac.authorization.k8s.io/v1/{kind}/admission-too-wide")


def test_an_agent_token_that_is_not_bound_to_a_node_is_refused(world: World, own_report: str) -> None:
    unbound = world.lab.client(world.lab.service_account_token(*AGENT))
    message = refused_by("sickbay-own-report", lambda: unbound.create(REPORTS, world.report()))
    assert "not bound to a node" in message
    status = {"status": {"nodeUID": world.uids[MINE], "sequence": 4}}
    message = refused_by("sickbay-own-report", lambda: unbound.patch(f"{own_report}/status", status))
    assert "not bound to a node" in message


@pytest.mark.parametrize("status", [{"nodeUID": "somebody-else", "sequence": 5}, {"sequence": 5}])
def test_a_status_must_carry_the_uid_of_the_tokens_node(
    world: World, own_report: str, status: Object
) -> None:
    message = refused_by(
        "sickbay-own-report", lambda: world.agent.patch(f"{own_report}/status", {"status": status})
    )
    assert f"status.nodeUID must be {world.uids[MINE]}" in message


def owners(world: World) -> dict[str, list[Object]]:
    mine = {"apiVersion": "v1", "kind": "Node", "name": MINE, "uid": world.uids[MINE]}
    return {
        "none": [],
        "another node": [mine | {"name": OTHER, "uid": world.uids[OTHER]}],
        "another UID": [mine | {"uid": world.uids[OTHER]}],
        "another kind": [mine | {"kind": "Namespace"}],
        "one more": [mine, mine | {"kind": "Namespace", "name": "default"}],
        "blocking": [mine | {"blockOwnerDeletion": True}],
    }


@pytest.mark.parametrize(
    "case", ["none", "another node", "another UID", "another kind", "one more", "blocking"]
)
def test_a_report_is_owned_by_its_node_alone(world: World, case: str) -> None:
    report = world.report()
    report["metadata"]["ownerReferences"] = owners(world)[case]
    message = refused_by("sickbay-own-report", lambda: world.agent.create(REPORTS, report))
    assert f"metadata.ownerReferences must hold one owner, Node {MINE} with UID {world.uids[MINE]}" in message
