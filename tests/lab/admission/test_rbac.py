"""What RBAC lets each ServiceAccount do, asked of the real authorizer."""

import pytest

from tests.lab.admission.world import World, refused
from tests.lab.api import Object
from tests.lab.manifests import AGENT, CONTROLLER


@pytest.mark.parametrize(
    ("account", "verb", "resource", "allowed"),
    [
        (AGENT, "get", "nodes/pods", True),
        (AGENT, "get", "nodes/metrics", True),
        (AGENT, "get", "nodes/proxy", False),
        (AGENT, "create", "nodes/proxy", False),
        (AGENT, "get", "nodes", False),
        (AGENT, "patch", "nodes", False),
        (AGENT, "list", "acceleratorreports.sickbay.dev", False),
        (AGENT, "delete", "acceleratorreports.sickbay.dev", False),
        (AGENT, "list", "pods", False),
        (AGENT, "get", "secrets", False),
        (CONTROLLER, "patch", "nodes", True),
        (CONTROLLER, "update", "nodes", False),
        (CONTROLLER, "delete", "nodes", False),
        (CONTROLLER, "patch", "nodes/status", False),
        (CONTROLLER, "get", "nodes/proxy", False),
        (CONTROLLER, "patch", "acceleratorreports.sickbay.dev/status", False),
        (CONTROLLER, "create", "acceleratorreports.sickbay.dev", False),
        (CONTROLLER, "delete", "acceleratorremediations.sickbay.dev", True),
        (CONTROLLER, "patch", "acceleratorremediations.sickbay.dev", False),
        (CONTROLLER, "update", "acceleratorremediations.sickbay.dev", False),
        (CONTROLLER, "patch", "acceleratorcontrols.sickbay.dev", False),
        (CONTROLLER, "create", "pods", False),
        (CONTROLLER, "list", "pods", True),
        (CONTROLLER, "watch", "pods", False),
        (CONTROLLER, "patch", "pods", True),
        (CONTROLLER, "update", "pods", False),
        (CONTROLLER, "delete", "pods", True),
        (CONTROLLER, "deletecollection", "pods", False),
        (CONTROLLER, "create", "pods/eviction", True),
        (CONTROLLER, "create", "pods/exec", False),
        (CONTROLLER, "patch", "pods/status", False),
        (CONTROLLER, "create", "events", True),
        (CONTROLLER, "patch", "events", False),
        (CONTROLLER, "get", "daemonsets.apps", True),
        (CONTROLLER, "patch", "daemonsets.apps", False),
        (CONTROLLER, "list", "controllerrevisions.apps", True),
        (CONTROLLER, "get", "secrets", False),
        (CONTROLLER, "create", "jobs.batch", False),
        (CONTROLLER, "get", "podtemplates", False),
        (CONTROLLER, "update", "acceleratorreports.sickbay.dev", False),
    ],
)
def test_what_a_service_account_may_do(
    world: World, account: tuple[str, str], verb: str, resource: str, allowed: bool
) -> None:
    assert world.may(account, verb, resource) is allowed


def test_the_controllers_lease_is_in_its_own_namespace_only(world: World) -> None:
    def leases(namespace: str) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"

    lease: Object = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "admission"},
    }
    created = world.controller.create(leases(CONTROLLER[0]), lease)
    created["spec"] = {"holderIdentity": "me"}
    world.controller.request("PUT", f"{leases(CONTROLLER[0])}/admission", created)
    assert world.controller.get(f"{leases(CONTROLLER[0])}/admission")["spec"]["holderIdentity"] == "me"
    refused(lambda: world.controller.create(leases("kube-system"), lease))
    world.admin.delete(f"{leases(CONTROLLER[0])}/admission")
