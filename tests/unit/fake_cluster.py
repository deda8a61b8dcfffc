"""The part of a Kubernetes API server that the controller uses, in memory, under the real `Session` and `Cluster`.

Faithful where the controller's safety rests on it: one resourceVersion counter, optimistic locking, UID
preconditions, merge patches with nulls, patches that change nothing, status as a subresource that a create
drops, schemas and defaults of the real definitions, RBAC, and the admission rules for Nodes and for what repairs
change. Every request can be made to fail before it is carried out, after it, or to be carried out later than its
sender believes.
"""

import dataclasses
import enum
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from remediation.cluster import CONTROLS, NODES, REMEDIATIONS, REPORTS, Cluster
from remediation.fleet import HOLD_KEY, OPT_OUT_KEY, SESSION_KEY
from remediation.objects import NODE_LABEL
from remediation.steps.release import PAUSED
from runtime.api_errors import (
    ApiError,
    Cause,
    Conflict,
    ConnectionFailed,
    Forbidden,
    Invalid,
    NotFound,
    Unavailable,
)
from runtime.clock import Clock
from runtime.kubernetes import Session
from runtime.transport import DEFAULT_TIMEOUT, JSON, Query, Response, Timeout
from tests.unit.fake_schema import SchemaError, admitted

Document = dict[str, Any]

COLLECTIONS = (REPORTS, NODES, REMEDIATIONS, CONTROLS)
"""What controllers watch."""

JOBS = "/apis/batch/v1/namespaces/sickbay-repair/jobs"
TEMPLATES = "/api/v1/namespaces/sickbay-repair/podtemplates"
JOB_PODS = "/api/v1/namespaces/sickbay-repair/pods"
_SERVED = (*COLLECTIONS, JOBS, TEMPLATES, JOB_PODS)

_ALLOWED = {
    ("GET", REPORTS, ""),
    ("GET", NODES, ""),
    ("PATCH", NODES, ""),
    ("GET", REMEDIATIONS, ""),
    ("POST", REMEDIATIONS, ""),
    ("DELETE", REMEDIATIONS, ""),
    ("PATCH", REMEDIATIONS, "status"),
    ("GET", CONTROLS, ""),
    ("PATCH", CONTROLS, "status"),
    ("PATCH", REPORTS, ""),
    ("GET", TEMPLATES, ""),
    ("GET", JOBS, ""),
    ("POST", JOBS, ""),
    ("GET", JOB_PODS, ""),
}
"""What `deploy/manifests/rbac.yaml` and `deploy/repair/rbac.yaml` let the controller do."""


class Trouble(enum.Enum):
    """What becomes of a request."""

    REFUSED = "a 503 that was sent before anything was done"
    UNREACHABLE = "the connection was refused"
    LOST = "carried out, and the answer is lost"
    LATE = "not answered in time, and carried out later"
    CONFLICT = "somebody else was first"
    CRASH_BEFORE = "its sender dies before it is carried out"
    CRASH_AFTER = "its sender dies when it has been carried out"


class Crash(BaseException):
    """The controller process dies here."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request as it came in. `before` and `after` are the object that a mutation changed; None: there was none."""

    number: int
    method: str
    collection: str
    name: str
    subresource: str
    user_agent: str
    body: bytes
    before: Document | None = None
    after: Document | None = None

    @property
    def mutates(self) -> bool:
        """Whether it asks for a change."""
        return self.method != "GET"

    @property
    def epoch(self) -> int:
        """The epoch in the User-Agent; 0 where there is none."""
        match = re.search(r"epoch/(\d+)$", self.user_agent)
        return int(match[1]) if match else 0

    @property
    def changed(self) -> bool:
        """Whether anything is different now."""
        return self.before != self.after


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """What a watch of a collection would deliver."""

    collection: str
    type: str
    object: Document
    time: float


@dataclass
class FakeApi:
    """The server. `trouble` is asked about each request of a controller; people's requests always work."""

    clock: Clock
    trouble: Callable[[Call], Trouble | None] = lambda call: None
    on_change: Callable[[Call], None] = lambda call: None
    version: int = 100
    objects: dict[str, dict[str, Document]] = field(default_factory=lambda: defaultdict(dict))
    events: dict[str, list[WatchEvent]] = field(default_factory=lambda: defaultdict(list))
    calls: list[Call] = field(default_factory=list)
    late: list[Call] = field(default_factory=list)
    _number: int = 0

    def cluster(
        self, *, epoch: int = 0, may_write: Callable[[], bool] = lambda: True
    ) -> tuple["FakeSession", Cluster]:
        """A controller's session and the real Cluster over it."""
        session = FakeSession(self, user_agent=f"sickbay-controller/test epoch/{epoch}")
        return session, Cluster(session, may_write=may_write)

    # What others do.

    def create(self, collection: str, document: Document) -> Document:
        """Somebody creates an object, with its status."""
        name = document["metadata"]["name"]
        assert name not in self.objects[collection], f"{name} exists"
        made = {**document, "metadata": {**document["metadata"], **self._birth()}}
        return self._store(collection, name, made, "ADDED")

    def edit(
        self, collection: str, name: str, change: Callable[[Document], None], *, manager: str = "kubectl-edit"
    ) -> Document:
        """Somebody edits an object in place, as with `kubectl edit`; nothing is checked."""
        before = self.objects[collection][name]
        edited = msgspec.json.decode(msgspec.json.encode(before))
        change(edited)
        if collection == NODES:
            edited = _managed(before, edited, manager)
        return self._stored(collection, name, edited)

    def remove(self, collection: str, name: str) -> None:
        """Somebody deletes an object."""
        gone = self.objects[collection].pop(name)
        self._event(collection, "DELETED", self._versioned(gone))

    def get(self, collection: str, name: str) -> Document:
        return self.objects[collection][name]

    # What a controller asks.

    def request(self, method: str, path: str, query: Query, body: bytes, user_agent: str) -> bytes:
        """Carry out a request, or what `trouble` makes of it. Raises ApiError, Crash."""
        collection = next(item for item in _SERVED if path == item or path.startswith(f"{item}/"))
        name, _, subresource = path[len(collection) + 1 :].partition("/")
        self._number += 1
        call = Call(self._number, method, collection, name, subresource, user_agent, body)
        if (method, collection, subresource) not in _ALLOWED:
            raise Forbidden(f"{method} {path} is not allowed", status=403, reason="Forbidden")
        match self.trouble(call):
            case Trouble.REFUSED:
                self.calls.append(call)
                raise Unavailable("the API server is overloaded", status=503, reason="ServiceUnavailable")
            case Trouble.UNREACHABLE:
                raise ConnectionFailed("connection refused", sent=False)
            case Trouble.CONFLICT if call.mutates:
                raise Conflict("the object has been modified", status=409, reason="Conflict")
            case Trouble.CRASH_BEFORE:
                raise Crash
            case Trouble.CRASH_AFTER:
                self._carried_out(call, query, tolerant=True)
                raise Crash
            case Trouble.LOST:
                self._carried_out(call, query, tolerant=True)
                raise ConnectionFailed("timed out", sent=True)
            case Trouble.LATE if call.mutates:
                self.late.append(call)
                raise ConnectionFailed("timed out", sent=True)
        return self._carried_out(call, query)

    def land(self, call: Call) -> None:
        """A late request is carried out now, whoever still waits for it."""
        self._carried_out(call, {}, tolerant=True)

    def _carried_out(self, call: Call, query: Query, *, tolerant: bool = False) -> bytes:
        before = self.objects[call.collection].get(call.name)
        try:
            if call.method == "GET" and not call.name:
                self.calls.append(call)
                return self._list(call.collection, query)
            manager = str(query.get("fieldManager", call.user_agent.partition("/")[0]))
            answer, name = self._answered(call, before, manager)
        except ApiError:
            self.calls.append(call)
            if tolerant:
                return b""
            raise
        after = self.objects[call.collection].get(name)
        done = dataclasses.replace(call, name=name, before=before, after=after)
        self.calls.append(done)
        if done.mutates and done.changed:
            self.on_change(done)
        return msgspec.json.encode(answer)

    def _answered(self, call: Call, before: Document | None, manager: str) -> tuple[Document, str]:
        if call.method == "POST":
            made = self._created(call.collection, msgspec.json.decode(call.body))
            return made, made["metadata"]["name"]
        if before is None:
            raise NotFound(f"{call.collection} {call.name} not found", status=404, reason="NotFound")
        match call.method:
            case "PATCH":
                return self._patched(call, before, manager), call.name
            case "DELETE":
                _check(msgspec.json.decode(call.body).get("preconditions", {}), before)
                self.remove(call.collection, call.name)
        return before, call.name

    def _created(self, collection: str, document: Document) -> Document:
        name = document["metadata"]["name"]
        if name in self.objects[collection]:
            raise Conflict(f"{name} already exists", status=409, reason="AlreadyExists")
        if collection == JOBS:
            made = {**document, "metadata": {**document["metadata"], **self._birth()}}
            return self._store(collection, name, made, "ADDED")
        spec = document["spec"]
        if document["metadata"].get("labels", {}).get(NODE_LABEL) != spec["nodeUID"]:
            raise Forbidden("label sickbay.dev/node-uid must equal spec.nodeUID", status=403)
        if "approval" in spec or "hold" in spec:
            raise Forbidden("approval and hold are for people", status=403)
        document.pop("status", None)
        made = {**document, "metadata": {**document["metadata"], **self._birth()}}
        return self._store(collection, name, _admitted(collection, made), "ADDED")

    def _patched(self, call: Call, before: Document, manager: str) -> Document:
        patch = msgspec.json.decode(call.body)
        _check_patch(patch.get("metadata", {}), before, status=bool(call.subresource))
        metadata = {key: value for key, value in patch.get("metadata", {}).items() if key in _OPEN_METADATA}
        if call.subresource == "status":
            merged = merge(before, {"status": patch.get("status", {})})
        else:
            merged = merge(before, {**patch, "metadata": metadata, "status": {}})
        if call.collection == NODES:
            _check_node(before, merged)
            merged = _managed(before, merged, manager)
        if call.collection == REPORTS:
            _check_report(before, merged)
        return self._stored(call.collection, call.name, _admitted(call.collection, merged))

    def _list(self, collection: str, query: Query) -> bytes:
        key, _, wanted = str(query.get("labelSelector", "")).partition("=")
        found = [
            item
            for _, item in sorted(self.objects[collection].items())
            if not key or item["metadata"].get("labels", {}).get(key) == wanted
        ]
        first = int(query.get("continue", 0))
        last = first + int(query["limit"])
        meta: Document = {"resourceVersion": str(self.version)}
        if last < len(found):
            meta["continue"] = str(last)
        return msgspec.json.encode({"kind": "List", "metadata": meta, "items": found[first:last]})

    def _birth(self) -> Document:
        self.version += 1
        born = self.clock.wall().replace(microsecond=0)
        return {"uid": f"object-{self.version}", "creationTimestamp": born.isoformat().replace("+00:00", "Z")}

    def _stored(self, collection: str, name: str, document: Document) -> Document:
        """Store a changed object; one that is not changed keeps its resourceVersion, and no watch hears of it."""
        if document == self.objects[collection][name]:
            return document
        return self._store(collection, name, document, "MODIFIED")

    def _store(self, collection: str, name: str, document: Document, event: str) -> Document:
        stored = self._versioned(document)
        self.objects[collection][name] = stored
        self._event(collection, event, stored)
        return stored

    def _versioned(self, document: Document) -> Document:
        self.version += 1
        return {**document, "metadata": {**document["metadata"], "resourceVersion": str(self.version)}}

    def _event(self, collection: str, type_: str, document: Document) -> None:
        self.events[collection].append(WatchEvent(collection, type_, document, self.clock.monotonic()))


class FakeSession(Session):
    """The verbs of the real session over the server in memory."""

    def __init__(self, api: FakeApi, *, user_agent: str) -> None:
        self._api = api
        self.user_agent = user_agent

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: bytes | None = None,
        content_type: str = JSON,
        timeout: Timeout = DEFAULT_TIMEOUT,
    ) -> Response:
        assert method != "PATCH" or content_type == "application/merge-patch+json"
        return Response(200, {}, self._api.request(method, path, query or {}, body or b"", self.user_agent))


_OPEN_METADATA = ("labels", "annotations")


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def _admitted(collection: str, document: Document) -> Document:
    if collection == NODES:
        spec = {key: value for key, value in document.get("spec", {}).items() if value is not False}
        return {**document, "spec": spec}
    try:
        return admitted(collection.rpartition("/")[2], document)
    except SchemaError as error:
        raise Invalid(str(error), status=422, reason="Invalid") from error


def _managed(before: Document, after: Document, manager: str) -> Document:
    """Keep who has set `spec.unschedulable`: the last who changed it, as long as it is set."""
    was, now = (bool(item.get("spec", {}).get("unschedulable")) for item in (before, after))
    if was == now:
        return after
    entry = {"manager": manager, "operation": "Update", "fieldsV1": {"f:spec": {"f:unschedulable": {}}}}
    return {**after, "metadata": {**after["metadata"], "managedFields": [entry] if now else []}}


def _check(preconditions: Mapping[str, Any], before: Document) -> None:
    metadata = before["metadata"]
    for key in ("uid", "resourceVersion"):
        if preconditions.get(key, metadata[key]) != metadata[key]:
            message = f"the {key} is {metadata[key]}, not {preconditions[key]}"
            raise Conflict(message, status=409, reason="Conflict")


def _check_patch(preconditions: Mapping[str, Any], before: Document, *, status: bool) -> None:
    """A UID that differs is no conflict to a patch but a change of what cannot change; in a status it is ignored."""
    _check({key: value for key, value in preconditions.items() if key == "resourceVersion"}, before)
    if not status and preconditions.get("uid", before["metadata"]["uid"]) != before["metadata"]["uid"]:
        cause = Cause(reason="FieldValueInvalid", message="field is immutable", field="metadata.uid")
        raise Invalid("field is immutable", status=422, reason="Invalid", causes=(cause,))


def _check_node(before: Document, after: Document) -> None:
    """The rules of `sickbay-controller-nodes` in deploy/manifests/admission.yaml."""
    was, now = before["metadata"].get("annotations", {}), after["metadata"].get("annotations", {})
    changed = {key for key in {*was, *now} if was.get(key) != now.get(key)}
    was_cordoned, cordoned = (bool(item["spec"].get("unschedulable")) for item in (before, after))
    was_owned, owned = SESSION_KEY in was, SESSION_KEY in now
    labels = changed_labels(before, after)
    rules = {
        "the controller may change labels of the GPU operator only": all(
            key.startswith(OPERANDS) for key in labels
        ),
        "from true to paused-for-sickbay and back only": all(
            change in (("true", PAUSED), (PAUSED, "true")) for change in labels.values()
        ),
        "an operand is paused only on a node with the record": was_owned
        or owned
        or all(change[1] == "true" for change in labels.values()),
        "the controller may change its own annotations only": all(
            key.startswith("sickbay.dev/") for key in changed
        ),
        "hold and opt-out are for people": not changed & {HOLD_KEY, OPT_OUT_KEY},
        "a cordon must set the record": was_cordoned or not cordoned or owned,
        "the record may not be set on somebody else's cordon": was_owned or not owned or not was_cordoned,
        "no uncordon without the record": cordoned or not was_cordoned or was_owned,
    }
    for rule, holds in rules.items():
        if not holds:
            raise Forbidden(rule, status=403, reason="Forbidden")


OPERANDS = "nvidia.com/gpu.deploy."


def changed_labels(before: Document, after: Document) -> dict[str, tuple[str, str]]:
    """The labels that differ, with their values before and after; empty where there is none."""
    was, now = (item["metadata"].get("labels", {}) for item in (before, after))
    pairs = {key: (was.get(key, ""), now.get(key, "")) for key in sorted({*was, *now})}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _check_report(before: Document, after: Document) -> None:
    """The rules of `sickbay-controller-reports` in deploy/repair/admission.yaml."""
    if before["metadata"] != after["metadata"]:
        raise Forbidden("the controller may not change metadata", status=403, reason="Forbidden")
