"""The controller's calls to the Kubernetes API, each one typed and none retried."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from health.report import AcceleratorReport, Wire
from health.vocabulary import GROUP_VERSION
from remediation.fleet import FIELD_MANAGER, Node
from remediation.objects import (
    NODE_LABEL,
    OPENING_ANNOTATION,
    AcceleratorControl,
    AcceleratorRemediation,
    RemediationSpec,
    RemediationStatus,
    StartTokens,
)
from runtime.api_errors import ApiError, Conflict, Invalid, NotFound
from runtime.kubernetes import Session

log = logging.getLogger(__name__)

NODES = "/api/v1/nodes"
REPORTS = f"/apis/{GROUP_VERSION}/acceleratorreports"
REMEDIATIONS = f"/apis/{GROUP_VERSION}/acceleratorremediations"
CONTROLS = f"/apis/{GROUP_VERSION}/acceleratorcontrols"
CONTROL_NAME = "default"


class FencedError(ApiError):
    """This controller may not write any more: its lease is not proven. Nothing was sent."""


class UnreadableError(ApiError):
    """A session that this version cannot read (edited by hand, or of a newer version): nothing is known of it."""


@dataclass(frozen=True, slots=True)
class AllSessions:
    """The sessions that can be read, and the highest `leaderEpoch` of any session, readable or not."""

    readable: tuple[AcceleratorRemediation, ...]
    highest_epoch: int

    def next_epoch(self, transitions: int, *, tried: int) -> int:
        """The epoch of a term that the Lease counts as `transitions`: above every epoch of another term.

        An attempt of the same term that failed (`tried` is its epoch, 0 for none) has stamped some sessions
        already and is gone on with. Were it outbid, epochs would run ahead of the Lease, and the deletion of
        the one session that had the highest would bring the next term back below it.
        """
        if 0 < tried >= self.highest_epoch:
            return tried
        return 1 + max(transitions, self.highest_epoch)


class Cluster:
    """Reads and writes of the controller. `may_write` is asked before every mutation is sent."""

    def __init__(self, session: Session, *, may_write: Callable[[], bool]) -> None:
        self._session = session
        self._may_write = may_write
        self._unclear: frozenset[str] = frozenset()

    def get_node(self, name: str) -> Node:
        """A live read of a node, with who has set its cordon."""
        body = self._session.get(f"{NODES}/{name}").body
        node = msgspec.json.decode(body, type=Node)
        return msgspec.structs.replace(node, cordoned_by=_cordoned_by(body))

    def patch_node(self, name: str, patch: bytes) -> Node:
        """Merge-patch a node; the patch carries the preconditions."""
        self._guard()
        query = {"fieldManager": FIELD_MANAGER}
        body = self._session.merge_patch(f"{NODES}/{name}", patch, query=query).body
        return msgspec.json.decode(body, type=Node)

    def remove_taint(self, node: Node, key: str) -> Node:
        """Remove the taints of this key from the node as it was read: by their place, since a merge patch would have to
        write all others anew, with fields that we do not know. Raises Conflict where the node has changed."""
        self._guard()
        places = [place for place, taint in enumerate(node.spec.taints) if taint.key == key]
        version = {"path": "/metadata/resourceVersion", "value": node.metadata.resource_version}
        patch: list[dict[str, str]] = [{"op": "test", **version}]
        for place in reversed(places):
            path = f"/spec/taints/{place}"
            patch += [{"op": "test", "path": f"{path}/key", "value": key}, {"op": "remove", "path": path}]
        try:
            body = self._session.json_patch(
                f"{NODES}/{node.name}", msgspec.json.encode(patch), query={"fieldManager": FIELD_MANAGER}
            ).body
        except Invalid as error:
            raise Conflict(error.message, request=error.request, status=409, reason="Conflict") from error
        return msgspec.json.decode(body, type=Node)

    def sessions_of(self, node_uid: str) -> tuple[AcceleratorRemediation, ...]:
        """A live list of the sessions of a node. Raises UnreadableError where one of them cannot be read."""
        found, unreadable = self._list({"labelSelector": f"{NODE_LABEL}={node_uid}"})
        if unreadable:
            raise UnreadableError(unreadable[0].why, reason="Unreadable")
        return found

    def all_sessions(self) -> AllSessions:
        """A live list of all sessions but those that cannot be read, which are said so and left alone."""
        found, unreadable = self._list({})
        for session in unreadable:
            log.warning("a session is left alone", extra={"why": session.why})
        self._unclear = frozenset(session.node_uid for session in unreadable)
        epochs = [session.current.leader_epoch for session in found]
        return AllSessions(found, max([0, *epochs, *(session.leader_epoch for session in unreadable)]))

    def unclear(self, node_uid: str) -> bool:
        """Whether the last list of all sessions had one of this node that could not be read."""
        return node_uid in self._unclear

    def _list(self, query: dict[str, str]) -> tuple[tuple[AcceleratorRemediation, ...], list[_Unreadable]]:
        """The sessions, and those that cannot be read."""
        found: list[AcceleratorRemediation] = []
        unreadable: list[_Unreadable] = []
        for page in self._session.list_pages(REMEDIATIONS, query=query):
            for item in msgspec.json.decode(page.body, type=_Items).items:
                session = _read(item)
                if isinstance(session, _Unreadable):
                    unreadable.append(session)
                else:
                    found.append(session)
        return tuple(found), unreadable

    def session(self, name: str) -> AcceleratorRemediation | None:
        """A live read of a session; None where there is none. Raises UnreadableError."""
        try:
            session = _read(self._session.get(f"{REMEDIATIONS}/{name}").body)
        except NotFound:
            return None
        if isinstance(session, _Unreadable):
            raise UnreadableError(session.why, reason="Unreadable")
        return session

    def report(self, node_name: str) -> AcceleratorReport | None:
        """A live read of a node's report; None where there is none, or none that can be read."""
        try:
            body = self._session.get(f"{REPORTS}/{node_name}").body
            return msgspec.json.decode(body, type=AcceleratorReport)
        except (NotFound, msgspec.MsgspecError):
            return None

    def control(self) -> AcceleratorControl:
        """A live read of the people's switches; the empty ones where nobody made the object."""
        try:
            body = self._session.get(f"{CONTROLS}/{CONTROL_NAME}").body
        except NotFound:
            return AcceleratorControl()
        return msgspec.json.decode(body, type=AcceleratorControl)

    def create_session(
        self, name: str, spec: RemediationSpec, opening: RemediationStatus
    ) -> AcceleratorRemediation:
        """Create a session; it carries its first status, and so its first intent, from its birth.

        Raises Conflict (`already_exists`) where this onset of the fault has had its session.
        """
        self._guard()
        document = {
            "apiVersion": GROUP_VERSION,
            "kind": "AcceleratorRemediation",
            "metadata": {
                "name": name,
                "labels": {NODE_LABEL: spec.node_uid},
                "annotations": {OPENING_ANNOTATION: msgspec.json.encode(opening).decode()},
            },
            "spec": spec,
        }
        body = self._session.post(REMEDIATIONS, msgspec.json.encode(document)).body
        return msgspec.json.decode(body, type=AcceleratorRemediation)

    def write_status(
        self, session: AcceleratorRemediation, status: RemediationStatus
    ) -> AcceleratorRemediation:
        """Write a session's whole status, if nobody wrote the session since it was read. Raises Conflict."""
        self._guard()
        document = {
            "metadata": {
                "uid": session.metadata.uid,
                "resourceVersion": session.metadata.resource_version,
            },
            "status": _whole(status),
        }
        path = f"{REMEDIATIONS}/{session.metadata.name}/status"
        body = self._session.merge_patch(path, msgspec.json.encode(document)).body
        return msgspec.json.decode(body, type=AcceleratorRemediation)

    def delete_session(self, session: AcceleratorRemediation) -> None:
        """Delete a session that has been kept long enough."""
        self._guard()
        self._session.delete(f"{REMEDIATIONS}/{session.metadata.name}", uid=session.metadata.uid)

    def write_start_tokens(self, tokens: StartTokens) -> None:
        """Remember the start-rate bucket. Raises NotFound where the control object does not exist."""
        self._guard()
        document = {"status": {"startTokens": tokens}}
        self._session.merge_patch(f"{CONTROLS}/{CONTROL_NAME}/status", msgspec.json.encode(document))

    def _guard(self) -> None:
        if not self._may_write():
            raise FencedError("the lease is not proven, so nothing is written", reason="Fenced")


class _Items(msgspec.Struct, frozen=True):
    items: tuple[msgspec.Raw, ...] = ()


class _Metadata(msgspec.Struct, frozen=True):
    name: str = ""
    labels: dict[str, str] = {}


class _Named(msgspec.Struct, frozen=True):
    metadata: _Metadata


class _Stamp(Wire, frozen=True):
    leader_epoch: int = 0


class _Annotated(Wire, frozen=True):
    annotations: dict[str, str] = {}


class _Stamped(Wire, frozen=True):
    metadata: _Annotated
    status: _Stamp | None = None


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """A session of which no more than this is known."""

    node_uid: str
    why: str
    leader_epoch: int


def _read(document: bytes | msgspec.Raw) -> AcceleratorRemediation | _Unreadable:
    try:
        return msgspec.json.decode(document, type=AcceleratorRemediation)
    except msgspec.MsgspecError as error:
        metadata = msgspec.json.decode(document, type=_Named).metadata
        why = f"{metadata.name} cannot be read: {error}"
        return _Unreadable(metadata.labels.get(NODE_LABEL, ""), why, _epoch_of(document))


def _epoch_of(document: bytes | msgspec.Raw) -> int:
    """The epoch of a session that cannot be read as a whole; 0 where not even that can be told."""
    try:
        stamped = msgspec.json.decode(document, type=_Stamped)
        opening = stamped.metadata.annotations.get(OPENING_ANNOTATION, "{}")
        return (stamped.status or msgspec.json.decode(opening, type=_Stamp)).leader_epoch
    except msgspec.MsgspecError:
        return 0


class _Manager(msgspec.Struct, frozen=True):
    manager: str = ""
    fields: dict[str, msgspec.Raw] = msgspec.field(default_factory=dict, name="fieldsV1")


class _ManagedMetadata(msgspec.Struct, frozen=True):
    managed: tuple[_Manager, ...] = msgspec.field(default=(), name="managedFields")


class _Managed(msgspec.Struct, frozen=True):
    metadata: _ManagedMetadata


def _cordoned_by(node: bytes) -> str:
    """The field manager of `spec.unschedulable` as the API server keeps it; empty where nobody has set it."""
    for entry in msgspec.json.decode(node, type=_Managed).metadata.managed:
        if b'"f:unschedulable"' in bytes(entry.fields.get("f:spec", b"")):
            return entry.manager
    return ""


def _whole(struct: Wire) -> dict[str, object]:
    """Every field, the absent ones as null, and so in the structs that it holds: a merge patch keeps what it does
    not name."""
    written: dict[str, object] = {}
    for field in msgspec.structs.fields(struct):
        value = getattr(struct, field.name)
        found = _whole(value) if isinstance(value, Wire) else msgspec.to_builtins(value)
        written[field.encode_name] = None if found == "" else found
    return written
