"""What each kind does with what a client sends: which part counts, what is filled in, what is refused.

From pkg/registry/*/strategy.go, and for custom resources apiextensions-apiserver's pkg/registry/customresource.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from simulation.cluster import defaults
from simulation.cluster.errors import Cause, bad_request, invalid
from simulation.cluster.interface import Object
from simulation.cluster.metadata import at_update, check_preconditions, problems
from simulation.cluster.resources import ResourceType
from simulation.cluster.rules import Rule, rules_of
from simulation.cluster.schema import BLOCKING, Admitted, Node

_POD_SPEC_MAY_CHANGE = ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds")
_POD_SPEC = (
    "Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"
    "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing "
    "tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)
_UNCHECKED = (
    "Invalid value: null: some validation rules were not checked because the object was invalid; correct the "
    "existing errors to complete validation"
)
_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)")
_NOT_NEGATIVE = "greater than or equal to 0"
_IMMUTABLE = {
    "deployments.apps": ("selector",),
    "replicasets.apps": ("selector",),
    "daemonsets.apps": ("selector",),
    "jobs.batch": ("selector", "completionMode"),
}


class Strategy:
    """The rules of one resource."""

    def __init__(self, resource: ResourceType) -> None:
        """Raises UnknownKeywordError and UnknownRuleError for a definition that asks for more than is known."""
        self.resource = resource
        self._schema: Node | None = None
        self._rules: tuple[Rule, ...] = ()
        if resource.definition is not None:
            schema = resource.definition["schema"]["openAPIV3Schema"]
            self._schema = Node(schema)
            self._rules = tuple(rules_of(schema))

    @property
    def _has_status(self) -> bool:
        return "status" in self.resource.subresources

    def create(self, body: Object) -> Object:
        """What is stored of a new object, whose metadata is complete. Raises StoreError 400."""
        resource = self.resource
        if not resource.custom:
            _check_parts(resource, body)
        if self._has_status and not resource.status_at_birth:
            body = {key: value for key, value in body.items() if key != "status"}
        if resource.id == "namespaces":
            name = body["metadata"].get("name", "")
            labels = {**(body["metadata"].get("labels") or {}), "kubernetes.io/metadata.name": name}
            body = {**body, "metadata": {**body["metadata"], "labels": labels}, "status": {"phase": "Active"}}
        body = defaults.filled(resource.id, body, uid=body["metadata"]["uid"])
        if resource.id == "events":
            return {"eventTime": None, "reportingComponent": "", "reportingInstance": "", **body}
        if resource.id == "pods":
            return {**body, "status": {"phase": "Pending", "qosClass": defaults.quality(body)}}
        if self._has_status and not resource.custom and "status" not in body:
            body = {**body, "status": {}}
        return defaults.zeroed(resource.id, body)

    def updated(
        self, new: Object, old: Object, *, name: str, subresource: str, replace: bool
    ) -> tuple[Object, list[str]]:
        """What is stored of an update, and the fields that were pruned. `replace`: a PUT.

        Raises StoreError: 409, 422, 400.
        """
        resource = self.resource
        given = new.get("metadata")
        version = given.get("resourceVersion") if isinstance(given, dict) else None
        if replace and not version and not resource.unconditional_update:
            message = "Invalid value: 0: must be specified for an update"
            cause = Cause("FieldValueInvalid", message, "metadata.resourceVersion")
            # The resource, where everybody else names the kind.
            raise invalid(resource.plural, resource.group, name, [cause])
        if resource.custom and subresource == "status" and not replace and isinstance(given, dict):
            # A patch of a custom resource's status is not asked for its uid: its metadata is that of before.
            given = {**given, "uid": old["metadata"]["uid"]}
        check_preconditions(resource, given, old["metadata"], name=name, replace=replace)
        meta = at_update(resource, given, old["metadata"], name=name)
        for key in ("generation", "managedFields", "resourceVersion"):
            meta.pop(key, None)
            if key in old["metadata"]:
                meta[key] = old["metadata"][key]
        new = self._update({**new, "metadata": meta}, old, subresource=subresource)
        new, pruned = self.validate(new, old, subresource=subresource)
        if resource.generation and not subresource and _core(new) != _core(old):
            generation = old["metadata"].get("generation", 0) + 1
            new = {**new, "metadata": {**new["metadata"], "generation": generation}}
        return new, pruned

    def _update(self, new: Object, old: Object, *, subresource: str) -> Object:
        """What is stored of an update: of a status update the status, of another everything but the status."""
        if subresource == "status":
            kept = dict(old)
            if "status" in new:
                kept["status"] = new["status"]
            else:
                kept.pop("status", None)
            # A custom resource's metadata is not written with its status; what Nodes and Pods have besides is.
            kept["metadata"] = old["metadata"] if self.resource.custom else new["metadata"]
            return defaults.zeroed(self.resource.id, kept)
        if subresource == "binding":
            return defaults.zeroed(self.resource.id, new)
        kept = dict(new)
        if self._has_status:
            kept.pop("status", None)
            if "status" in old:
                kept["status"] = old["status"]
        return defaults.zeroed(self.resource.id, kept)

    def validate(self, new: Object, old: Object | None, *, subresource: str = "") -> tuple[Object, list[str]]:
        """The object as it is stored, and the fields that were pruned. Raises StoreError 422, 400."""
        causes = list(problems(new["metadata"]))
        pruned: list[str] = []
        if self._schema is None:
            new, pruned = _shaped(self.resource, new)
        if self._schema is not None:
            new, pruned, wrong = self._admit(new, old, subresource)
            causes += wrong
        elif old is not None and not subresource:
            causes += self._changes(new, old)
        elif old is None:
            causes += _birth_problems(self.resource, new)
        if causes:
            name = new["metadata"].get("name", "")
            raise invalid(self.resource.kind, self.resource.group, name, causes)
        return new, pruned

    def _admit(
        self, new: Object, old: Object | None, subresource: str
    ) -> tuple[Object, list[str], list[Cause]]:
        assert self._schema is not None
        found = Admitted()
        own = {key: value for key, value in new.items() if key not in ("kind", "apiVersion", "metadata")}
        body = self._schema.admit(own, old or {}, "", found)
        stored = {"metadata": new["metadata"], **body}
        causes = found.causes
        if subresource == "status":
            causes = [_relative(cause) for cause in causes]
        if any(cause.reason in BLOCKING for cause in causes):
            if self._rules:
                causes = [*causes, Cause("FieldValueInvalid", _UNCHECKED, "<nil>")]
            return stored, found.pruned, causes
        asked = (rule.ask(stored, old) for rule in self._rules)
        return stored, found.pruned, [*causes, *(cause for cause in asked if cause is not None)]

    def _changes(self, new: Object, old: Object) -> Iterator[Cause]:
        before, after = old.get("spec") or {}, new.get("spec") or {}
        if self.resource.id == "pods" and before != after and _fixed(before) != _fixed(after):
            yield Cause("FieldValueForbidden", _POD_SPEC, "spec")
        if self.resource.id == "leases.coordination.k8s.io":
            yield from _lease_problems(after)
        for key in _IMMUTABLE.get(self.resource.id, ()):
            if before.get(key) != after.get(key):
                shown = "Invalid value: field is immutable"
                yield Cause("FieldValueInvalid", shown, f"spec.{key}")


def _relative(cause: Cause) -> Cause:
    """On the status subresource the validator sees the status alone, so its sentences name paths below it."""
    below = cause.field.removeprefix("status").lstrip(".")
    message = cause.message.replace(f": {cause.field} in body ", f": {below} in body ")
    return Cause(cause.reason, message, cause.field)


def _shaped(resource: ResourceType, new: Object) -> tuple[Object, list[str]]:
    """A built-in object without the top-level fields that its kind has not, and those. Raises StoreError 400.

    What lies deeper is taken as it comes, where the real server decodes it into types.
    """
    _check_parts(resource, new)
    if "status" not in resource.subresources:
        return new, []
    unknown = [key for key in new if key not in ("metadata", "spec", "status")]
    return {key: value for key, value in new.items() if key not in unknown}, unknown


def _check_parts(resource: ResourceType, new: Object) -> None:
    for key in ("spec", "status", "data"):
        if key in new and not isinstance(new[key], dict):
            raise bad_request(f"{resource.kind}: {key} is an object, not {new[key]!r}")


def _core(document: Object) -> Object:
    return {
        key: value
        for key, value in document.items()
        if key not in ("metadata", "status", "kind", "apiVersion")
    }


def _fixed(spec: Object) -> Object:
    """The part of a pod's spec that must stay."""
    kept = {key: value for key, value in spec.items() if key not in _POD_SPEC_MAY_CHANGE}
    for place in ("containers", "initContainers"):
        if place in kept:
            kept[place] = [{**item, "image": ""} for item in kept[place]]
    return kept


def _birth_problems(resource: ResourceType, new: Object) -> Iterator[Cause]:
    """The few checks of built-in kinds that a mistaken caller meets first."""
    spec: Any = new.get("spec")
    if resource.id == "pods":
        yield from _pod_problems(spec or {})
    if resource.id in ("deployments.apps", "replicasets.apps", "daemonsets.apps"):
        labels = spec["template"]["metadata"].get("labels") or {}
        wanted = ((spec.get("selector") or {}).get("matchLabels")) or {}
        if not spec.get("selector"):
            yield Cause("FieldValueRequired", "Required value", "spec.selector")
        elif any(labels.get(key) != value for key, value in wanted.items()):
            shown = msgspec.json.encode(labels).decode()
            message = f"Invalid value: {shown}: `selector` does not match template `labels`"
            yield Cause("FieldValueInvalid", message, "spec.template.metadata.labels")
    if resource.id == "jobs.batch":
        policy = spec["template"]["spec"].get("restartPolicy")
        if policy not in ("Never", "OnFailure"):
            message = 'Required value: valid values: "OnFailure", "Never"'
            yield Cause("FieldValueRequired", message, "spec.template.spec.restartPolicy")
    if resource.id == "leases.coordination.k8s.io":
        yield from _lease_problems(spec or {})
    if resource.id == "events":
        if new.get("eventTime") is not None:
            _check_micro_time("Event", new["eventTime"])
        involved = (new.get("involvedObject") or {}).get("namespace", "")
        namespace = new["metadata"].get("namespace", "")
        if involved != namespace and not (involved == "" and namespace == "default"):
            message = f'Invalid value: "{involved}": does not match event.namespace'
            yield Cause("FieldValueInvalid", message, "involvedObject.namespace")


def _lease_problems(spec: Object) -> Iterator[Cause]:
    for key in ("acquireTime", "renewTime"):
        if spec.get(key) is not None:
            _check_micro_time("Lease", spec[key])
    for key, least, words in (
        ("leaseDurationSeconds", 1, "greater than 0"),
        ("leaseTransitions", 0, _NOT_NEGATIVE),
    ):
        value = spec.get(key)
        if value is not None and value < least:
            message = f"Invalid value: {value}: must be {words}"
            yield Cause("FieldValueInvalid", message, f"spec.{key}")


def _check_micro_time(kind: str, value: Any) -> None:
    """A MicroTime has six digits after the point, no more and no fewer. Raises StoreError 400."""
    if not isinstance(value, str) or not _MICRO_TIME.fullmatch(value):
        raise bad_request(
            f'{kind} in version "v1" cannot be handled as a {kind}: parsing time "{value}" as '
            '"2006-01-02T15:04:05.000000Z07:00"'
        )


def _pod_problems(spec: Object) -> Iterator[Cause]:
    containers = spec.get("containers")
    if not containers:
        yield Cause("FieldValueRequired", "Required value", "spec.containers")
    for place, container in enumerate(containers or ()):
        if not isinstance(container, dict):
            raise bad_request(f"spec.containers[{place}]: an object is expected")
        for key in ("name", "image"):
            if not container.get(key):
                yield Cause("FieldValueRequired", "Required value", f"spec.containers[{place}].{key}")
