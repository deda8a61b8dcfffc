"""What the real API server has and the embedded one has not, and why nothing in Sickbay misses it.

`traces` are what the product's source would have to say to rely on it. `ask` is a request that needs it: the embedded
API refuses it, so that nobody takes silence for success.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Ask:
    """One request; `NAMESPACE` in the path stands for the tests' own."""

    method: str
    path: str
    body: Any = None
    content_type: str = "application/json"
    query: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lacking:
    """One behaviour that is not there. `traces` are regular expressions."""

    behaviour: str
    reason: str
    traces: tuple[str, ...]
    ask: Ask | None = None


_CONFIG_MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "lacking"}}
_CONFIG_MAPS = "/api/v1/namespaces/NAMESPACE/configmaps"

LACKING = (
    Lacking(
        "server-side apply",
        "Sickbay's writes are merge patches with preconditions, of which one loses; apply would merge the two.",
        (r"apply-patch", r"[\"']force[\"']\s*:"),
        Ask(
            "PATCH",
            f"{_CONFIG_MAPS}/lacking",
            _CONFIG_MAP,
            "application/apply-patch+yaml",
            {"fieldManager": "x"},
        ),
    ),
    Lacking(
        "OpenAPI",
        "kubectl needs it to explain and to validate before it sends (`--validate=false`); Sickbay does neither.",
        (r"/openapi/", r"openapi/v[23]"),
        Ask("GET", "/openapi/v3"),
    ),
    Lacking(
        "aggregated discovery",
        "kubectl falls back to the legacy form, and Sickbay knows the paths of what it calls.",
        (r"apidiscovery\.k8s\.io", r"APIGroupDiscovery"),
    ),
    Lacking(
        "users, roles and reviews of access",
        "Whoever reaches the loopback port may do everything. What Sickbay may not do is proved on the lab.",
        (r"authorization\.k8s\.io", r"authentication\.k8s\.io", r"SubjectAccessReview", r"TokenReview"),
        Ask("GET", "/apis/authorization.k8s.io/v1"),
    ),
    Lacking(
        "admission policies and webhooks",
        "They keep Sickbay from what it never asks for; tests/lab/admission tries each on the real server.",
        (r"admissionregistration\.k8s\.io",),
        Ask("GET", "/apis/admissionregistration.k8s.io/v1"),
    ),
    Lacking(
        "definitions of custom resources that are made or changed while it runs",
        "Sickbay's own are loaded from deploy/crds at the start; an administrator installs them, never Sickbay.",
        (r"apiextensions\.k8s\.io", r"customresourcedefinitions"),
        Ask("GET", "/apis/apiextensions.k8s.io/v1"),
    ),
    Lacking(
        "protobuf and CBOR",
        "Custom resources have no protobuf, and msgspec reads JSON faster than this saves.",
        (r"vnd\.kubernetes\.protobuf", r"application/cbor"),
        Ask("POST", _CONFIG_MAPS, b"k8s\x00", "application/vnd.kubernetes.protobuf"),
    ),
    Lacking(
        "dry run of a creation",
        "Only the lab's own tests ask for dry runs; the controller's Observe mode sends nothing at all.",
        (r"dryRun",),
        Ask("POST", _CONFIG_MAPS, _CONFIG_MAP, query={"dryRun": "All"}),
    ),
    Lacking(
        "exec, attach, port-forward, proxy and logs",
        "There is no container behind a pod. Repairs run as Jobs and tell their outcome in the pod's status.",
        (r"/exec\b", r"/attach\b", r"/portforward\b", r"/proxy\b", r"[\"'/]log[\"'?]"),
        Ask("GET", "/api/v1/namespaces/NAMESPACE/pods/lacking/log"),
    ),
    Lacking(
        "scale",
        "Sickbay changes no workload's size: what is evicted is replaced by its own controller.",
        (r"/scale\b",),
        Ask("GET", "/apis/apps/v1/namespaces/NAMESPACE/deployments/lacking/scale"),
    ),
    Lacking(
        "tokens of ServiceAccounts",
        "Plain HTTP needs none; the bound token of the agent is proved on the lab.",
        (r"serviceaccounts/", r"TokenRequest"),
        Ask("POST", "/api/v1/namespaces/NAMESPACE/serviceaccounts/default/token", {"spec": {}}),
    ),
    Lacking(
        "managedFields of anything but Nodes",
        "The one thing that is read of them is who has set a Node's spec.unschedulable.",
        (),
    ),
)

MANAGED_FIELDS_ARE_READ_IN = {"remediation/cluster.py"}
