"""A cluster with the manifests applied, and the programs and people who act on it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab import manifests
from tests.lab.api import Api, ApiError, Object
from tests.lab.lab import Lab
from tests.lab.manifests import CONTROLLER, REPAIR, REPAIR_STEPS, TEMPLATES
from tests.lab.processes import LabError

MINE, OTHER = "admission-mine", "admission-other"
"""Two Nodes; the agent's token is bound to the first."""
SESSION = "admission-session"
TAINT = {"key": "example.com/dedicated", "value": "training", "effect": "NoSchedule"}
OPERAND = "nvidia.com/gpu.deploy.device-plugin"
"""The label by which NVIDIA's GPU operator runs a part of itself on a node."""
REPAIR_POLICY = "sickbay-repair-jobs"
REPAIR_PODS = f"/api/v1/namespaces/{REPAIR[0]}/pods"
CONTROLLER_USER = f"system:serviceaccount:{CONTROLLER[0]}:{CONTROLLER[1]}"


@dataclass(frozen=True, slots=True)
class World:
    """A cluster with the manifests and two Nodes, and the two programs as they act on it."""

    lab: Lab
    agent: Api
    controller: Api
    uids: dict[str, str]

    @property
    def admin(self) -> Api:
        return self.lab.api

    def report(self, node: str = MINE, **more: object) -> Object:
        owner = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": self.uids[node]}
        return {
            "apiVersion": "sickbay.dev/v1alpha1",
            "kind": "AcceleratorReport",
            "metadata": {"name": node, "ownerReferences": [owner]},
            **more,
        }

    def session(self, **spec: object) -> Object:
        return manifests.session(SESSION, node=MINE, node_uid=self.uids[MINE], **spec)

    def job(self, name: str = "reset", **more: Any) -> Object:
        """The right Job of a repair's template, for the first node."""
        template = self.admin.get(f"{TEMPLATES}/{name}")
        more = {"step": REPAIR_STEPS.get(name, "RunJob"), "node_uid": self.uids[MINE], **more}
        return manifests.repair_job(template, node=MINE, **more)

    def may(self, account: tuple[str, str], verb: str, resource: str, *, namespace: str = "") -> bool:
        """What the authorizer says of a ServiceAccount; `resource` is like `pods/eviction` or `jobs.batch`."""
        name, _, subresource = resource.partition("/")
        resource_name, _, group = name.partition(".")
        attributes = {
            "verb": verb,
            "group": group,
            "resource": resource_name,
            "subresource": subresource,
            "namespace": namespace,
        }
        user = f"system:serviceaccount:{account[0]}:{account[1]}"
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": user, "resourceAttributes": attributes},
        }
        answer = self.admin.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        return bool(answer["status"]["allowed"])

    def as_user(self, user: str, path: str, patch: Object) -> str:
        """`kubectl patch` as a person who may write everything."""
        resource, name = path.rsplit("/", 2)[1:]
        person = ("--as", user, "--as-group", "system:masters")
        command = ("patch", resource, name, "--type=merge", "--patch-file=/dev/stdin")
        return self.lab.kubectl(*person, *command, input=json.dumps(patch))


def refused(call: Callable[[], object], status: int = 403) -> str:
    """The message of the refusal that a call must meet."""
    with pytest.raises(ApiError) as error:
        call()
    assert error.value.status == status, str(error.value)
    return str(error.value)


def refused_by(policy: str, call: Callable[[], object], status: int = 403) -> str:
    message = refused(call, status)
    assert f"ValidatingAdmissionPolicy '{policy}'" in message
    return message


def refused_to_user(call: Callable[[], object]) -> str:
    with pytest.raises(LabError) as error:
        call()
    return str(error.value)
