"""The manifests grant what the code uses and no more, and no admission policy is left without its binding."""

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from health.receipt import RECEIPT_FOLDER
from health.vocabulary import API_GROUP
from remediation.fleet import HOLD_KEY, OPT_OUT_KEY, SESSION_KEY
from remediation.objects import NODE_LABEL
from remediation.repair import command
from remediation.repair.container import JOB_VARIABLE, MARKER

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFESTS = DEPLOY / "manifests"
REPAIR_SWITCH = DEPLOY / "repair"

Manifest = dict[str, Any]


def objects_in(folder: Path) -> list[Manifest]:
    return [
        document
        for path in sorted(folder.glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    ]


ALWAYS = objects_in(MANIFESTS)
SWITCHED = objects_in(REPAIR_SWITCH)
"""What is there only where an administrator has switched repair on."""
OBJECTS = ALWAYS + SWITCHED

AGENT = ("sickbay-agent", "sickbay-agent")
CONTROLLER = ("sickbay-system", "sickbay-controller")
REPAIR = ("sickbay-repair", "sickbay-repair")

GRANTS = {
    AGENT: {
        ("", "nodes/pods", "get"),
        ("", "nodes/metrics", "get"),
        (API_GROUP, "acceleratorreports", "create get"),
        (API_GROUP, "acceleratorreports/status", "patch update"),
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

SWITCHED_GRANTS = {
    CONTROLLER: {(API_GROUP, "acceleratorreports", "patch")},
    REPAIR: {
        ("", "nodes", "get"),
        (API_GROUP, "acceleratorremediations", "get"),
        (API_GROUP, "acceleratorcontrols", "get"),
    },
}
NAMESPACED_SWITCHED_GRANTS = {
    CONTROLLER: {
        ("sickbay-repair", "batch", "jobs", "create get"),
        ("sickbay-repair", "", "podtemplates", "get"),
    }
}
TEMPLATES = [item for item in SWITCHED if item["kind"] == "PodTemplate"]


def of_kind(*kinds: str, objects: list[Manifest] = OBJECTS) -> list[Manifest]:
    return [item for item in objects if item["kind"] in kinds]


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


@pytest.mark.parametrize(
    ("objects", "granted", "granted_in_a_namespace"),
    [(ALWAYS, GRANTS, NAMESPACED_GRANTS), (SWITCHED, SWITCHED_GRANTS, NAMESPACED_SWITCHED_GRANTS)],
    ids=["always", "with the repair switch"],
)
@pytest.mark.parametrize("account", [AGENT, CONTROLLER, REPAIR], ids=lambda account: account[1])
def test_a_service_account_may_do_what_its_code_does_and_nothing_else(
    objects, granted, granted_in_a_namespace, account
):
    cluster_wide = [
        triple
        for binding in of_kind("ClusterRoleBinding", objects=objects)
        if bound_to(account, binding)
        for triple in triples(named("ClusterRole", binding["roleRef"]["name"]))
    ]
    in_a_namespace = [
        (binding["metadata"]["namespace"], *triple)
        for binding in of_kind("RoleBinding", objects=objects)
        if bound_to(account, binding)
        for triple in triples(named("Role", binding["roleRef"]["name"]))
    ]
    assert sorted(cluster_wide) == sorted(granted.get(account, set()))
    assert sorted(in_a_namespace) == sorted(granted_in_a_namespace.get(account, set()))


def test_nobody_else_is_bound_and_no_role_is_unused():
    bindings = of_kind("ClusterRoleBinding", "RoleBinding")
    accounts = (AGENT, CONTROLLER, REPAIR)
    assert all(any(bound_to(account, binding) for account in accounts) for binding in bindings)
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


def test_the_agent_reads_the_receipts_of_the_host_and_cannot_write_any():
    pod = named("DaemonSet", AGENT[1])["spec"]["template"]["spec"]
    folder = str(Path(RECEIPT_FOLDER).parent)
    (volume,) = [one for one in pod["volumes"] if one.get("hostPath", {}).get("path") == folder]
    (mount,) = [one for one in pod["containers"][0]["volumeMounts"] if one["name"] == volume["name"]]
    assert volume["hostPath"]["type"] == "DirectoryOrCreate"
    assert (mount["mountPath"], mount["readOnly"]) == (folder, True)


def test_the_agent_is_privileged_and_the_controller_restricted():
    levels = {
        item["metadata"]["name"]: item["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
        for item in of_kind("Namespace")
    }
    assert levels == {AGENT[0]: "privileged", CONTROLLER[0]: "restricted", REPAIR[0]: "privileged"}


def test_the_service_accounts_live_in_their_namespaces():
    accounts = {
        (item["metadata"]["namespace"], item["metadata"]["name"]) for item in of_kind("ServiceAccount")
    }
    assert accounts == {AGENT, CONTROLLER, REPAIR}


def test_there_is_one_control_object_with_no_switch_set():
    (control,) = of_kind("AcceleratorControl")
    assert control["metadata"]["name"] == "default"
    assert "spec" not in control


def test_every_admission_policy_denies_and_fails_closed():
    policies = of_kind("ValidatingAdmissionPolicy")
    bindings = of_kind("ValidatingAdmissionPolicyBinding")
    assert policies
    assert {item["spec"]["policyName"] for item in bindings} == {
        item["metadata"]["name"] for item in policies
    }
    assert all(item["spec"]["validationActions"] == ["Deny"] for item in bindings)
    assert all(policy["spec"]["failurePolicy"] == "Fail" for policy in policies)


def test_no_policy_but_those_of_repair_is_bound_to_less_than_everything():
    narrowed = {
        item["metadata"]["name"]
        for item in of_kind("ValidatingAdmissionPolicyBinding")
        if item["spec"] != {"policyName": item["metadata"]["name"], "validationActions": ["Deny"]}
    }
    templates = {f"sickbay-repair-{template['metadata']['name']}" for template in TEMPLATES}
    assert narrowed == {*templates, "sickbay-repair-other-jobs", "sickbay-repair-tokens"}


def test_every_job_of_the_controller_meets_the_policy_of_its_template_or_is_refused():
    names = [template["metadata"]["name"] for template in TEMPLATES]
    bindings = [
        item["spec"]
        for item in of_kind("ValidatingAdmissionPolicyBinding")
        if item["spec"]["policyName"] == "sickbay-repair-jobs"
    ]
    assert bindings == [
        {
            "policyName": "sickbay-repair-jobs",
            "validationActions": ["Deny"],
            "paramRef": {"name": name, "namespace": REPAIR[0], "parameterNotFoundAction": "Deny"},
            "matchResources": {"objectSelector": {"matchLabels": {"sickbay.dev/template": name}}},
        }
        for name in names
    ]
    rest = named("ValidatingAdmissionPolicyBinding", "sickbay-repair-other-jobs")["spec"]["matchResources"]
    unknown = {"key": "sickbay.dev/template", "operator": "NotIn", "values": names}
    assert rest == {"objectSelector": {"matchExpressions": [unknown]}}


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda item: item["metadata"]["name"])
def test_a_repair_looks_without_rights_and_acts_without_a_token(template):
    spec = template["template"]["spec"]
    (look,), (repair,) = spec["initContainers"], spec["containers"]
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC", "nodeName", "nodeSelector"} & spec.keys()
    assert look["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert [mount["name"] for mount in look["volumeMounts"]] == ["token", "tmp"]
    assert [mount["name"] for mount in repair["volumeMounts"]] == ["host", "marker", "tmp"]
    assert repair["securityContext"]["privileged"] is True
    assert repair["args"][:2] == ["repair", template["metadata"]["name"]]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda item: item["metadata"]["name"])
def test_a_repairs_containers_are_given_every_variable_that_their_arguments_name(template):
    spec = template["template"]["spec"]
    for container in (*spec["initContainers"], *spec["containers"]):
        known = {one["name"] for one in container["env"]}
        used = {name for word in container["args"] for name in re.findall(r"\$\((\w+)\)", word)}
        assert used
        assert used == known - {JOB_VARIABLE}
        assert all(word.startswith("--") and "=$(" in word for word in container["args"][2:])


VALUES = {
    "SICKBAY_SESSION": "node-1-0123456789",
    "SICKBAY_STEP": "Reset",
    "SICKBAY_NODE": "node-1",
    "SICKBAY_NODE_UID": "5a3e7b1c-0000-4000-8000-0123456789ab",
    "SICKBAY_BOOT_ID": "1b7d3c52-0000-4000-8000-0123456789ab",
    "SICKBAY_ATTEMPT": "1",
    "SICKBAY_DEVICES": "GPU-1,GPU-2",
    "SICKBAY_SERVICE": "kubelet",
}


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda item: item["metadata"]["name"])
def test_the_programs_understand_what_the_templates_call_them_with(template):
    spec = template["template"]["spec"]
    parser = argparse.ArgumentParser()
    command.add_commands(parser)
    for container in (*spec["initContainers"], *spec["containers"]):
        program, *words = container["args"]
        assert program == "repair"
        flags = parser.parse_args(
            [re.sub(r"\$\((\w+)\)", lambda name: VALUES[name[1]], word) for word in words]
        )
        assert flags.session == VALUES["SICKBAY_SESSION"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        if container["name"] == "repair":
            assert str(flags.host_root) == mounts["host"]
            assert str(MARKER.parent) == mounts["marker"]
            assert JOB_VARIABLE in {one["name"] for one in container["env"]}
    (marker,) = (volume["downwardAPI"]["items"] for volume in spec["volumes"] if volume["name"] == "marker")
    assert marker == [{"path": MARKER.name, "fieldRef": {"fieldPath": "metadata.labels"}}]


def test_the_policy_knows_every_annotation_that_a_template_reads():
    text = (REPAIR_SWITCH / "admission.yaml").read_text(encoding="utf-8")
    read = set(re.findall(r"annotations\['([^']+)'\]", (REPAIR_SWITCH / "templates.yaml").read_text()))
    assert len(read) == 7
    assert all(f"'{key}'" in text for key in read)


def test_the_switch_is_applied_whole_with_and_without_kustomize():
    kustomization = yaml.safe_load((REPAIR_SWITCH / "Kustomization").read_text(encoding="utf-8"))
    assert kustomization["resources"] == sorted(path.name for path in REPAIR_SWITCH.glob("*.yaml"))
    assert not [path for path in REPAIR_SWITCH.iterdir() if path.name.startswith("kustomization")]


def test_the_example_of_a_template_of_ones_own_is_bound_to_itself():
    template, binding = objects_in(REPAIR_SWITCH / "examples")
    name = template["metadata"]["name"]
    assert binding["spec"]["paramRef"]["name"] == name
    assert binding["spec"]["matchResources"]["objectSelector"]["matchLabels"] == {
        "sickbay.dev/template": name
    }
    ours = TEMPLATES[0]["template"]["spec"]
    assert template["template"]["spec"]["initContainers"] == ours["initContainers"]


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
    for known in (text, (REPAIR_SWITCH / "admission.yaml").read_text()):
        assert known.count("system:serviceaccount:") == known.count("'system:serviceaccount:")
    assert all(f"'{key}'" in text for key in (NODE_LABEL, SESSION_KEY, HOLD_KEY, OPT_OUT_KEY))


def test_everything_is_labelled_as_part_of_sickbay():
    assert all(item["metadata"]["labels"]["app.kubernetes.io/part-of"] == "sickbay" for item in OBJECTS)
