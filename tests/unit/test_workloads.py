"""The agent's DaemonSet and the controller's Deployment agree with the code, the accounts and each other."""

from __future__ import annotations

import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import sickbay
from exporter.configuration import ENVIRONMENT_PREFIX, AgentConfiguration
from health.vocabulary import Mode
from remediation.configuration import ControllerConfiguration
from remediation.policy import load_policy
from runtime.config import load
from tests.unit.test_manifests import AGENT, CONTROLLER, MANIFESTS, OBJECTS, Manifest, named, of_kind

PROJECT = MANIFESTS.parents[1]
RUNS = {AGENT: "DaemonSet", CONTROLLER: "Deployment"}
UNPRIVILEGED = 65532
KUBELET = Path("/var/lib/kubelet")


def workload(account: tuple[str, str]) -> Manifest:
    (found,) = (
        item
        for item in of_kind(RUNS[account])
        if item["spec"]["template"]["spec"]["serviceAccountName"] == account[1]
    )
    return found


def pod_spec(account: tuple[str, str]) -> Manifest:
    spec: Manifest = workload(account)["spec"]["template"]["spec"]
    return spec


def container(account: tuple[str, str]) -> Manifest:
    (only,) = pod_spec(account)["containers"]
    return dict(only)


def file_in_pod(account: tuple[str, str], path: str, folder: Path) -> Path:
    """The ConfigMap's file that the container sees at `path`, written into `folder`."""
    mount = next(
        one for one in container(account)["volumeMounts"] if one["mountPath"] == str(Path(path).parent)
    )
    volume = next(one for one in pod_spec(account)["volumes"] if one["name"] == mount["name"])
    source = named("ConfigMap", volume["configMap"]["name"])
    assert source["metadata"]["namespace"] == account[0]
    target = folder / Path(path).name
    target.write_text(source["data"][target.name])
    return target


def configuration(account: tuple[str, str], kind: type[Any], folder: Path) -> Any:
    """What the program would be configured to, with the arguments, variables and files of its pod."""
    flags = vars(sickbay._parser().parse_args(container(account)["args"]))
    for name in ("config", "policy"):
        if flags.get(name):
            flags[name] = file_in_pod(account, str(flags[name]), folder)
    node = {"SICKBAY_AGENT_NODE": "n1", "SICKBAY_AGENT_KUBELET_ADDRESS": "192.0.2.7:10250"}
    given = [one["name"] for one in container(account).get("env", []) if one["name"].startswith("SICKBAY_")]
    return load(
        kind,
        file=flags.get("config"),
        environ={name: node[name] for name in given},
        flags={name: value for name, value in flags.items() if name in kind.__struct_fields__},
        prefix=ENVIRONMENT_PREFIX,
    ).value


@pytest.mark.parametrize("account", RUNS, ids=lambda account: account[1])
def test_a_program_runs_in_the_namespace_of_its_account_and_selects_its_own_pods(
    account: tuple[str, str],
) -> None:
    item = workload(account)
    assert (item["metadata"]["namespace"], item["metadata"]["name"]) == account
    labels = item["spec"]["template"]["metadata"]["labels"]
    assert item["spec"]["selector"]["matchLabels"].items() <= labels.items()
    names = {volume["name"] for volume in pod_spec(account)["volumes"]}
    assert names == {mount["name"] for mount in container(account)["volumeMounts"]}


@pytest.mark.parametrize("account", RUNS, ids=lambda account: account[1])
def test_the_probes_and_the_annotations_name_the_port_that_the_program_listens_on(
    account: tuple[str, str], tmp_path: Path
) -> None:
    kind = AgentConfiguration if account == AGENT else ControllerConfiguration
    port = configuration(account, kind, tmp_path).listen.port
    assert container(account)["ports"] == [{"name": "metrics", "containerPort": port}]
    annotations = workload(account)["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port)
    paths = {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    for probe, path in paths.items():
        assert container(account)[probe]["httpGet"] == {"path": path, "port": "metrics"}


@pytest.mark.parametrize("account", RUNS, ids=lambda account: account[1])
def test_both_programs_are_the_one_image_with_a_bound_on_memory_and_a_root_that_is_read_only(
    account: tuple[str, str],
) -> None:
    assert container(account)["image"] == container(AGENT)["image"]
    assert "command" not in container(account)
    assert "memory" in container(account)["resources"]["limits"]
    assert container(account)["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_controller_is_what_the_pod_security_standard_restricted_asks_for() -> None:
    spec = pod_spec(CONTROLLER)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == UNPRIVILEGED
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    context = container(CONTROLLER)["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["allowPrivilegeEscalation"] is False
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert all(volume.keys() - {"name"} <= {"configMap", "emptyDir"} for volume in spec["volumes"])


def test_an_eviction_leaves_one_of_the_controllers() -> None:
    (budget,) = of_kind("PodDisruptionBudget")
    assert budget["metadata"]["namespace"] == CONTROLLER[0]
    assert budget["spec"]["selector"] == workload(CONTROLLER)["spec"]["selector"]
    assert workload(CONTROLLER)["spec"]["replicas"] - budget["spec"]["minAvailable"] == 1


def test_the_agent_stays_on_a_node_that_is_cordoned_tainted_or_short_of_memory() -> None:
    spec = pod_spec(AGENT)
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["priorityClassName"] == "system-node-critical"


@pytest.mark.parametrize("account", RUNS, ids=lambda account: account[1])
def test_the_namespace_has_a_quota_for_pods_of_its_priority(account: tuple[str, str]) -> None:
    (quota,) = (item for item in of_kind("ResourceQuota") if item["metadata"]["namespace"] == account[0])
    (scope,) = quota["spec"]["scopeSelector"]["matchExpressions"]
    assert scope["values"] == [pod_spec(account)["priorityClassName"]]
    assert quota["spec"]["hard"].keys() == {"pods"}


def test_the_agent_sees_on_the_host_what_its_configuration_names(tmp_path: Path) -> None:
    configured = configuration(AGENT, AgentConfiguration, tmp_path)
    hosts = {one["name"]: one["hostPath"]["path"] for one in pod_spec(AGENT)["volumes"] if "hostPath" in one}
    writable = set()
    for mount in container(AGENT)["volumeMounts"]:
        if mount["name"] not in hosts:
            continue
        assert mount["mountPath"] == hosts[mount["name"]]
        if not mount.get("readOnly"):
            writable.add(Path(mount["mountPath"]))
    assert writable == {configured.state_file.parent}
    assert set(map(Path, hosts.values())) == {
        configured.state_file.parent,
        configured.kernel_log,
        configured.device_plugin_folder,
        configured.pod_resources_socket.parent,
        configured.pods_socket.parent,
        configured.receipts.parent,
    }
    # Folders, since the kubelet makes its sockets anew; and never the whole, where the pods' secrets are.
    assert str(KUBELET) not in hosts.values()
    assert configured.kubelet_address is not None
    assert not configured.drill
    defaults = AgentConfiguration()
    for name in ("worker_command", "boot_id", "renew_interval"):
        assert getattr(configured, name) == getattr(defaults, name)


def test_the_policy_that_is_installed_is_read_by_the_controller_and_changes_nothing(tmp_path: Path) -> None:
    policy = load_policy(configuration(CONTROLLER, ControllerConfiguration, tmp_path).policy)
    assert [rule.mode for rule in policy.rules] == [Mode.OBSERVE]


def test_manifests_name_no_registry_and_only_documents_that_exist() -> None:
    for path in sorted(MANIFESTS.glob("*.yaml")):
        text = path.read_text()
        for word in shlex.split(text.replace("'", "").replace('"', "").replace("#", " "), posix=False):
            document = word.strip(".,:;()")
            if document.startswith("docs/"):
                assert (PROJECT / document).is_file(), f"{path.name} names {document}"
    for account in RUNS:
        name, _, _ = container(account)["image"].partition(":")
        assert name == "sickbay"


def test_every_manifest_is_in_the_kustomization() -> None:
    listed = yaml.safe_load((MANIFESTS.parent / "kustomization.yaml").read_text())
    files = {f"manifests/{path.name}" for path in MANIFESTS.glob("*.yaml")}
    assert set(listed["resources"]) == files
    assert [image["name"] for image in listed["images"]] == ["sickbay"]


def test_the_image_holds_the_packages_that_are_installed_and_nothing_that_is_not_pinned() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    copied = {
        word
        for line in (PROJECT / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }
    assert packages <= copied
    let_in = {
        line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert {name.split("/")[0] for name in copied} == let_in
    assert (
        f'org.opencontainers.image.version="{project["project"]["version"]}"'
        in (PROJECT / "Dockerfile").read_text()
    )
    for file in ("build.txt", "runtime.txt"):
        lines = (PROJECT / "requirements" / file).read_text().splitlines()
        pins = [line for line in lines if line and not line.startswith(("#", " "))]
        assert pins and all("==" in line and line.endswith("\\") for line in pins)


def test_what_runs_pins_the_same_versions_as_what_is_tested() -> None:
    def pins(file: str) -> dict[str, str]:
        lines = (PROJECT / "requirements" / file).read_text().splitlines()
        return dict(
            line.split(" ")[0].split("==", 1) for line in lines if "==" in line and line[0] not in "# "
        )

    tested = pins("dev.txt")
    assert {
        name: version for name, version in pins("runtime.txt").items() if tested.get(name) != version
    } == {}


def test_objects_with_a_namespace_lie_in_one_of_ours_that_is_applied_before_them() -> None:
    there: set[str] = set()
    used: set[str] = set()
    for item in OBJECTS:
        if item["kind"] == "Namespace":
            there.add(item["metadata"]["name"])
        elif "namespace" in item["metadata"]:
            used.add(item["metadata"]["namespace"])
            assert item["metadata"]["namespace"] in there, f"{item['kind']} {item['metadata']['name']}"
    assert used == there
