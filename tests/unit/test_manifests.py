"""The manifests grant what the code uses and no more, and no admission policy is left without its binding."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from health.vocabulary import API_GROUP
from remediation.fleet import HOLD_KEY, OPT_OUT_KEY, SESSION_KEY
from remediation.objects import NODE_LABEL

MANIFESTS = Path(__file__).parents[2] / "deploy" / "manifests"

Manifest = dict[str, Any]
OBJECTS: list[Manifest] = [
    document for path in sorted(MANIFESTS.glob("*.yaml")) for document in yaml.safe_load_all(path.read_text())
]

AGENT = ("sickbay-agent", "sickbay-agent")
CONTROLLER = ("sickbay-system", "sickbay-controller")

GRANTS = {
    AGENT: {
        ("", "nodes/pods", "get"),
        ("", "nodes/metrics", "get"),
        (API_GROUP, "acceleratorreports", "create get"),
        (API_GROUP, "acceleratorreports/status", "patch"),
    },
    CONTROLLER: {
        ("", "nodes", "get list patch watch"),
        ("", "pods", "delete list patch"),
        ("", "pods/eviction", "create"),
        ("", "events", "create"),
        ("apps", "daemonsets", "get"),
        ("apps", "controllerrevisions", "list"),
        (API_GROUP, "acceleratorreports", "get list watch"),
        (API_GROUP, "acceleratorremediations", "create delete get list watch"),
        (API_GROUP, "acceleratorremediations/status", "patch"),
        (API_GROUP, "acceleratorcontrols", "get list watch"),
        (API_GROUP, "acceleratorcontrols/status", "patch"),
    },
}
"""Cluster-wide: (API group, resource, verbs). A step that needs more adds its line here and in rbac.yaml."""

NAMESPACED_GRANTS = {CONTROLLER: {("sickbay-system", "coordination.k8s.io", "leases", "create get update")}}


def of_kind(*kinds: str) -> list[Manifest]:
    return [item for item in OBJECTS if item["kind"] in kinds]


def named(kind: str, name: str) -> Manifest:
    (found,) = (item for item in of_kind(kind) if item["metadata"]["name"] == name)
    return found


def triples(role: Manifest) -> set[tuple[str, str, str]]:
    return {
        (group, resource, " ".join(sorted(rule["verbs"])))
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def bound_to(account: tuple[str, str], binding: Manifest) -> bool:
    namespace, name = account
    return binding["subjects"] == [{"kind": "ServiceAccount", "name": name, "namespace": namespace}]


@pytest.mark.parametrize("account", GRANTS, ids=lambda account: account[1])
def test_a_service_account_may_do_what_its_code_does_and_nothing_else(account):
    cluster_wide = [
        triple
        for binding in of_kind("ClusterRoleBinding")
        if bound_to(account, binding)
        for triple in triples(named("ClusterRole", binding["roleRef"]["name"]))
    ]
    in_a_namespace = [
        (binding["metadata"]["namespace"], *triple)
        for binding in of_kind("RoleBinding")
        if bound_to(account, binding)
        for triple in triples(named("Role", binding["roleRef"]["name"]))
    ]
    assert sorted(cluster_wide) == sorted(GRANTS[account])
    assert sorted(in_a_namespace) == sorted(NAMESPACED_GRANTS.get(account, set()))


def test_nobody_else_is_bound_and_no_role_is_unused():
    bindings = of_kind("ClusterRoleBinding", "RoleBinding")
    assert all(any(bound_to(account, binding) for account in GRANTS) for binding in bindings)
    used = {(binding["roleRef"]["kind"], binding["roleRef"]["name"]) for binding in bindings}
    assert used == {(role["kind"], role["metadata"]["name"]) for role in of_kind("ClusterRole", "Role")}


def test_no_role_holds_a_wildcard():
    for role in of_kind("ClusterRole", "Role"):
        for rule in role["rules"]:
            words = [word for field in ("apiGroups", "resources", "verbs") for word in rule[field]]
            assert not [word for word in words if "*" in word], role["metadata"]["name"]
            assert "nonResourceURLs" not in rule


def test_the_agent_reaches_the_kubelet_and_never_a_node():
    granted = {resource for group, resource, _ in GRANTS[AGENT] if group == ""}
    assert granted == {"nodes/pods", "nodes/metrics"}


def test_the_agent_is_privileged_and_the_controller_restricted():
    levels = {
        item["metadata"]["name"]: item["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
        for item in of_kind("Namespace")
    }
    assert levels == {AGENT[0]: "privileged", CONTROLLER[0]: "restricted"}


def test_the_service_accounts_live_in_their_namespaces():
    accounts = {
        (item["metadata"]["namespace"], item["metadata"]["name"]) for item in of_kind("ServiceAccount")
    }
    assert accounts == {AGENT, CONTROLLER}


def test_there_is_one_control_object_with_no_switch_set():
    (control,) = of_kind("AcceleratorControl")
    assert control["metadata"]["name"] == "default"
    assert "spec" not in control


def test_every_admission_policy_denies_and_fails_closed():
    policies = of_kind("ValidatingAdmissionPolicy")
    bindings = of_kind("ValidatingAdmissionPolicyBinding")
    assert policies
    assert sorted(item["spec"]["policyName"] for item in bindings) == sorted(
        item["metadata"]["name"] for item in policies
    )
    assert all(
        item["spec"] == {"policyName": item["metadata"]["name"], "validationActions": ["Deny"]}
        for item in bindings
    )
    assert all(policy["spec"]["failurePolicy"] == "Fail" for policy in policies)


@pytest.mark.parametrize(
    "policy", of_kind("ValidatingAdmissionPolicy"), ids=lambda item: item["metadata"]["name"]
)
def test_a_policy_names_its_resources_and_says_what_it_refuses(policy):
    for rule in policy["spec"]["matchConstraints"]["resourceRules"]:
        words = [word for field in rule.values() for word in field]
        assert not [word for word in words if "*" in word]
    for validation in policy["spec"]["validations"]:
        assert "message" in validation or "messageExpression" in validation


def test_the_policies_know_the_service_accounts_and_keys_by_the_names_that_the_code_uses():
    text = (MANIFESTS / "admission.yaml").read_text()
    for namespace, name in (AGENT, CONTROLLER):
        assert f"'system:serviceaccount:{namespace}:{name}'" in text
    assert text.count("system:serviceaccount:") == text.count("'system:serviceaccount:")
    assert all(f"'{key}'" in text for key in (NODE_LABEL, SESSION_KEY, HOLD_KEY, OPT_OUT_KEY))


def test_everything_is_labelled_as_part_of_sickbay():
    assert all(item["metadata"]["labels"]["app.kubernetes.io/part-of"] == "sickbay" for item in OBJECTS)
