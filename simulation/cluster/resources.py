"""The resources that the embedded API serves: their names, and what sets them apart from each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from simulation.cluster.errors import qualified

Getter = Callable[[Any], str]


def path_getter(path: str, default: str = "") -> Getter:
    """The text at a path such as `spec.nodeName`; `default` where there is nothing."""
    parts = path.split(".")

    def get(document: Any) -> str:
        for part in parts:
            document = document.get(part) if isinstance(document, dict) else None
        if document is None:
            return default
        if isinstance(document, bool):
            return "true" if document else "false"
        return str(document)

    return get


def _fields(*paths: str, namespaced: bool = True, **defaults: str) -> dict[str, Getter]:
    names = ("metadata.name", "metadata.namespace") if namespaced else ("metadata.name",)
    renamed = {key.replace("__", "."): value for key, value in defaults.items()}
    return {path: path_getter(path, renamed.get(path, "")) for path in (*names, *paths, *renamed)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResourceType:
    """One resource. `fields` are those that a field selector may name."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()
    fields: Mapping[str, Getter] = field(default_factory=dict)
    definition: Mapping[str, Any] | None = None
    """The CustomResourceDefinition's version, for a custom resource."""
    generation: bool = False
    """Whether `metadata.generation` counts changes of what is not status."""
    status_at_birth: bool = False
    """Whether a create may bring a status."""
    unconditional_update: bool = True
    """Whether a replace may come without a resourceVersion."""
    create_on_update: bool = False
    """Whether a replace of what is not there creates it."""
    orphans: bool = False
    """Whether a delete that names no policy leaves what the object owns."""
    returns_deleted: bool = False
    """Whether a delete is answered with the object."""

    @property
    def id(self) -> str:
        """As RBAC names it: `pods`, `deployments.apps`."""
        return qualified(self.plural, self.group)

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def list_kind(self) -> str:
        return f"{self.kind}List"

    @property
    def singular(self) -> str:
        return self.kind.lower()

    @property
    def custom(self) -> bool:
        return self.definition is not None

    @property
    def prefix(self) -> bytes:
        """What every encoded object begins with."""
        return f'{{"kind":"{self.kind}","apiVersion":"{self.api_version}",'.encode()


class Catalogue:
    """The resources by ID and by path."""

    def __init__(self, resources: Iterable[ResourceType]) -> None:
        self._by_id = {resource.id: resource for resource in resources}

    def __iter__(self) -> Iterator[ResourceType]:
        return iter(self._by_id.values())

    def get(self, resource_id: str) -> ResourceType | None:
        return self._by_id.get(resource_id)

    def find(self, group: str, version: str, plural: str) -> ResourceType | None:
        found = self._by_id.get(qualified(plural, group))
        return found if found is not None and found.version == version else None


_EVENT_FIELDS = (
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "type",
)
_POD_FIELDS = (
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "status.phase",
    "status.podIP",
    "status.nominatedNodeName",
)


def _core(plural: str, kind: str, **more: Any) -> ResourceType:
    given = {"namespaced": True, "fields": _fields(), **more}
    return ResourceType(group="", version="v1", plural=plural, kind=kind, **given)


def _grouped(group: str, plural: str, kind: str, **more: Any) -> ResourceType:
    given = {"namespaced": True, "fields": _fields(), **more}
    return ResourceType(group=group, version="v1", plural=plural, kind=kind, **given)


_WORKLOAD: dict[str, Any] = {"generation": True, "subresources": ("status",), "categories": ("all",)}

BUILT_IN: tuple[ResourceType, ...] = (
    _core(
        "namespaces",
        "Namespace",
        namespaced=False,
        short_names=("ns",),
        subresources=("status", "finalize"),
        fields=_fields("status.phase", "name", namespaced=False),
        unconditional_update=False,
        status_at_birth=False,
    ),
    _core(
        "nodes",
        "Node",
        namespaced=False,
        short_names=("no",),
        subresources=("status",),
        fields=_fields(namespaced=False, spec__unschedulable="false"),
        status_at_birth=True,
    ),
    _core(
        "pods",
        "Pod",
        short_names=("po",),
        categories=("all",),
        subresources=("status", "binding", "eviction"),
        fields=_fields(*_POD_FIELDS, spec__hostNetwork="false"),
        generation=True,
        returns_deleted=True,
    ),
    _core("events", "Event", short_names=("ev",), fields=_fields(*_EVENT_FIELDS), create_on_update=True),
    _core("configmaps", "ConfigMap", short_names=("cm",)),
    _core("podtemplates", "PodTemplate", generation=True, returns_deleted=True),
    _core("secrets", "Secret", fields=_fields("type")),
    _core("serviceaccounts", "ServiceAccount", short_names=("sa",), returns_deleted=True),
    _core(
        "services",
        "Service",
        short_names=("svc",),
        categories=("all",),
        fields=_fields("spec.type", "spec.clusterIP"),
    ),
    _grouped("apps", "deployments", "Deployment", short_names=("deploy",), **_WORKLOAD),
    _grouped(
        "apps",
        "replicasets",
        "ReplicaSet",
        short_names=("rs",),
        **{**_WORKLOAD, "fields": _fields(status__replicas="0")},
    ),
    _grouped("apps", "daemonsets", "DaemonSet", short_names=("ds",), **_WORKLOAD),
    _grouped("apps", "statefulsets", "StatefulSet", short_names=("sts",), **_WORKLOAD),
    _grouped("apps", "controllerrevisions", "ControllerRevision"),
    _grouped(
        "batch", "jobs", "Job", orphans=True, **{**_WORKLOAD, "fields": _fields(status__successful="0")}
    ),
    _grouped(
        "policy",
        "poddisruptionbudgets",
        "PodDisruptionBudget",
        short_names=("pdb",),
        subresources=("status",),
        generation=True,
        unconditional_update=False,
    ),
    _grouped("coordination.k8s.io", "leases", "Lease", unconditional_update=False, create_on_update=True),
    _grouped(
        "scheduling.k8s.io",
        "priorityclasses",
        "PriorityClass",
        namespaced=False,
        short_names=("pc",),
        fields=_fields(namespaced=False),
    ),
)
"""From pkg/registry/*/strategy.go of 1.37."""


def custom_fields(version: Mapping[str, Any], *, namespaced: bool) -> dict[str, Getter]:
    """The fields of a custom resource that a selector may name: its `selectableFields` besides the usual ones."""
    paths = [item["jsonPath"].lstrip(".") for item in version.get("selectableFields", ())]
    return _fields(*paths, namespaced=namespaced)
