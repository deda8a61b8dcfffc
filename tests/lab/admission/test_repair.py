"""The repair switch: which Jobs the controller may make, and what a stolen token of its is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from tests.lab.admission.world import MINE, REPAIR_PODS, REPAIR_POLICY, World, refused, refused_by
from tests.lab.api import Object
from tests.lab.manifests import CONTROLLER, JOBS, REPAIR, REPAIR_STEPS, until_refused
from tests.lab.processes import wait_until

pytestmark = pytest.mark.usefixtures("repair_switch")

TOKEN = {"name": "token", "mountPath": "/token"}
RBAC = "/apis/rbac.authorization.k8s.io/v1"

Change = Callable[[Any], object]


def wider_role(world: World, rules: list[Object]) -> None:
    """What an administrator should not have granted to the controller."""
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admission-too-wide"}
    kinds = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "admission-too-wide"}}
    subject = {"kind": "ServiceAccount", "namespace": CONTROLLER[0], "name": CONTROLLER[1]}
    world.lab.apply(
        kinds | {"kind": "ClusterRole", "rules": rules},
        kinds | {"kind": "ClusterRoleBinding", "roleRef": role, "subjects": [subject]},
    )


@pytest.fixture
def too_wide(world: World) -> Iterator[None]:
    """A role that lets the controller write Jobs everywhere: what then holds is the policies."""
    wider_role(
        world, [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "update", "patch"]}]
    )
    yield
    for kind in ("clusterrolebindings", "clusterroles"):
        world.admin.delete(f"{RBAC}/{kind}/admission-too-wide")


@pytest.mark.parametrize("name", REPAIR_STEPS)
def test_the_right_job_of_each_template_is_admitted_and_its_pod_is_made(
    world: World, jobs: str, name: str
) -> None:
    made = world.controller.create(
        jobs, world.job(name, devices=("GPU-0aa1-b2", "GPU-0aa1-b3"), service="kubelet")
    )
    assert world.controller.get(f"{jobs}/{made['metadata']['name']}")["spec"]["backoffLimit"] == 0
    (pod,) = wait_until(lambda: world.admin.items(REPAIR_PODS), 15, "the pod of the Job")
    assert pod["spec"]["nodeName"] == MINE
    assert pod["metadata"]["annotations"]["sickbay.dev/devices"] == "GPU-0aa1-b2,GPU-0aa1-b3"
    assert pod["metadata"]["labels"]["sickbay.dev/template"] == name
    assert [taint for taint in pod["spec"]["tolerations"] if taint == {"operator": "Exists"}]


@pytest.mark.parametrize("name", REPAIR_STEPS)
def test_what_is_root_on_the_node_has_no_token_and_what_has_a_token_is_nobody(
    world: World, jobs: str, name: str
) -> None:
    world.controller.create(jobs, world.job(name))
    (pod,) = wait_until(lambda: world.admin.items(REPAIR_PODS), 15, "the pod of the Job")
    (look,), (repair,) = pod["spec"]["initContainers"], pod["spec"]["containers"]
    tokens = {
        volume["name"]
        for volume in pod["spec"]["volumes"]
        for source in volume.get("projected", {}).get("sources", ())
        if "serviceAccountToken" in source
    }
    assert tokens == {"token"}
    assert [mount for mount in look["volumeMounts"] if mount["name"] in tokens]
    assert not [mount for mount in repair["volumeMounts"] if mount["name"] in tokens]
    assert look["securityContext"]["runAsUser"] == 65532
    assert "privileged" not in look["securityContext"]
    assert not [mount for mount in look["volumeMounts"] if mount["name"] == "host"]
    assert repair["securityContext"]["privileged"] is True


STOLEN: dict[str, tuple[Change, str]] = {
    "another image": (lambda pod: pod["containers"][0].update(image="example.com/evil"), "containers"),
    "another image that looks": (
        lambda pod: pod["initContainers"][0].update(image="example.com/evil"),
        "initContainers",
    ),
    "another command": (lambda pod: pod["containers"][0].update(command=["sh"]), "containers"),
    "other arguments": (lambda pod: pod["containers"][0]["args"].append("--host-root=/"), "containers"),
    "more variables": (
        lambda pod: pod["containers"][0]["env"].append({"name": "LD_PRELOAD", "value": "/host/evil.so"}),
        "containers",
    ),
    "another variable": (
        lambda pod: pod["containers"][0]["env"].__setitem__(
            0, {"name": pod["containers"][0]["env"][0]["name"], "value": "x"}
        ),
        "containers",
    ),
    "a token where root is": (lambda pod: pod["containers"][0]["volumeMounts"].append(TOKEN), "containers"),
    "the pod's own token": (
        lambda pod: pod.update(automountServiceAccountToken=True),
        "automountServiceAccountToken",
    ),
    "a privileged look": (
        lambda pod: pod["initContainers"][0].update(securityContext={"privileged": True}),
        "initContainers",
    ),
    "no look": (lambda pod: pod.pop("initContainers"), "initContainers"),
    "another container": (
        lambda pod: pod["containers"].append({"name": "evil", "image": "example.com/evil"}),
        "containers",
    ),
    "another host path": (
        lambda pod: pod["volumes"][0].update(hostPath={"path": "/etc", "type": "Directory"}),
        "volumes",
    ),
    "one more host path": (
        lambda pod: pod["volumes"].append({"name": "evil", "hostPath": {"path": "/root"}}),
        "volumes",
    ),
    "the host's network": (lambda pod: pod.update(hostNetwork=True), "hostNetwork"),
    "the host's processes": (lambda pod: pod.update(hostPID=True), "hostPID"),
    "another account": (
        lambda pod: pod.update(serviceAccountName="default", serviceAccount="default"),
        "serviceAccountName",
    ),
    "another scheduler": (lambda pod: pod.update(schedulerName="evil"), "schedulerName"),
    "one more field": (lambda pod: pod.update(hostname="evil"), "hostname"),
    "no toleration": (lambda pod: pod.pop("tolerations"), "tolerations"),
}


TOKENS = ("a token where root is", "the pod's own token", "a privileged look")


@pytest.mark.parametrize("case", STOLEN)
def test_a_stolen_token_cannot_change_what_runs(world: World, case: str) -> None:
    change, said = STOLEN[case]
    job = world.job()
    change(job["spec"]["template"]["spec"])
    message = refused(lambda: world.controller.create(JOBS, job))
    # Where two policies refuse, the API server tells of either.
    pinned = f"'{REPAIR_POLICY}'" in message and "must be that of PodTemplate reset and differs in" in message
    assert (pinned and said in message) or (case in TOKENS and "'sickbay-repair-tokens'" in message)


def test_the_controller_makes_no_job_and_no_pod_anywhere_else(world: World, namespace: str) -> None:
    job = world.job()
    for elsewhere in (namespace, "kube-system", CONTROLLER[0]):
        path = JOBS.replace(REPAIR[0], elsewhere)
        assert 'cannot create resource "jobs"' in refused(partial(world.controller.create, path, job))
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "evil"},
        "spec": job["spec"]["template"]["spec"],
    }
    for anywhere in (namespace, REPAIR[0]):
        path = f"/api/v1/namespaces/{anywhere}/pods"
        assert 'cannot create resource "pods"' in refused(partial(world.controller.create, path, pod))


def test_the_controller_changes_and_deletes_no_job(world: World, jobs: str) -> None:
    made = world.controller.create(jobs, world.job())
    path = f"{jobs}/{made['metadata']['name']}"
    again: Object = {"spec": {"activeDeadlineSeconds": 86400}}
    assert 'cannot patch resource "jobs"' in refused(lambda: world.controller.patch(path, again))
    assert 'cannot update resource "jobs"' in refused(lambda: world.controller.request("PUT", path, made))
    assert 'cannot delete resource "jobs"' in refused(lambda: world.controller.delete(path))
    assert 'cannot list resource "jobs"' in refused(lambda: world.controller.get(jobs))


def test_the_policies_hold_even_if_the_controllers_role_were_wider(
    world: World, jobs: str, namespace: str, too_wide: None
) -> None:
    foreign = world.job()
    foreign["metadata"]["namespace"] = namespace
    elsewhere = JOBS.replace(REPAIR[0], namespace)
    message = until_refused(REPAIR_POLICY, partial(world.controller.create, elsewhere, foreign))
    assert "in namespace sickbay-repair only" in message
    made = world.controller.create(jobs, world.job())
    path = f"{jobs}/{made['metadata']['name']}"
    again: Object = {"spec": {"activeDeadlineSeconds": 86400}}
    assert "may not change a Job" in refused_by(REPAIR_POLICY, lambda: world.controller.patch(path, again))
