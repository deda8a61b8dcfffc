"""The drain's calls to the Kubernetes API: raw lists, evictions and notices that hold for one UID, none retried."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime

import msgspec

from remediation.cluster import FencedError
from remediation.drain import Eviction, Notice, OwnerNotice
from remediation.drain_state import EvictedPod
from remediation.pod import OwnerReference, Pod
from remediation.steps.plugin import DaemonSetView
from runtime.api_errors import Conflict, Unavailable
from runtime.clock import Clock, rfc3339
from runtime.kubernetes import Session

NOTICE_ANNOTATION = "sickbay.dev/drain-notice"
"""On a pod that is about to be evicted: the time (RFC 3339, UTC) by which it should be done. A container can read it
by the downward API as a file."""

_NOTICE_REASON = "DrainNotice"
_EVICTION_REASON = "DrainedForRepair"
_NAMESPACES = 8


class _PodList(msgspec.Struct, frozen=True):
    items: tuple[Pod, ...] = ()


class _Strategy(msgspec.Struct, frozen=True):
    type: str = "RollingUpdate"


class _DaemonSetSpec(msgspec.Struct, frozen=True, rename="camel"):
    update_strategy: _Strategy = _Strategy()


class _DaemonSetMetadata(msgspec.Struct, frozen=True):
    uid: str = ""


class _DaemonSet(msgspec.Struct, frozen=True):
    metadata: _DaemonSetMetadata = _DaemonSetMetadata()
    spec: _DaemonSetSpec = _DaemonSetSpec()


class _RevisionMetadata(msgspec.Struct, frozen=True, rename="camel"):
    labels: dict[str, str] = {}
    owner_references: tuple[OwnerReference, ...] = ()


class _Revision(msgspec.Struct, frozen=True):
    metadata: _RevisionMetadata = _RevisionMetadata()
    revision: int = 0


class _RevisionList(msgspec.Struct, frozen=True):
    items: tuple[_Revision, ...] = ()


_decode = msgspec.json.Decoder(_PodList).decode


class KubernetesPods:
    """`steps.drain.PodApi` and `steps.plugin.PluginApi` over a session.

    `may_write` is asked before every mutation is sent.
    """

    def __init__(self, session: Session, *, clock: Clock, may_write: Callable[[], bool]) -> None:
        self._session = session
        self._clock = clock
        self._may_write = may_write

    def pods_on(self, node_name: str) -> tuple[Pod, ...]:
        """The pods bound to a node, of all namespaces: a consistent read, in pages."""
        pods: list[Pod] = []
        for page in self._session.list_pages(
            "/api/v1/pods", query={"fieldSelector": f"spec.nodeName={node_name}"}
        ):
            pods.extend(_pods(page.body, request="GET /api/v1/pods"))
        return tuple(pods)

    def evict(self, eviction: Eviction) -> None:
        """POST policy/v1 Eviction with the UID as precondition and the pod's own grace.

        The API server counts the eviction against the pod's disruption budget before it looks at the UID, and
        tries for up to 10 s where the pod is not running: so evict from a list that is fresh.
        """
        self._guard()
        document = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": eviction.name, "namespace": eviction.namespace},
            "deleteOptions": {"preconditions": {"uid": eviction.uid}},
        }
        self._session.post(
            f"{_path(eviction.namespace, eviction.name)}/eviction",
            msgspec.json.encode(document),
            timeout=(3.0, 15.0),
        )

    def tell(self, notice: Notice) -> None:
        """Annotate the pod if it has this UID still, then write the Event, whose name makes it one of a kind."""
        self._guard()
        done_by = rfc3339(notice.done_by)
        patch = {"metadata": {"uid": notice.uid, "annotations": {NOTICE_ANNOTATION: done_by}}}
        self._session.merge_patch(_path(notice.namespace, notice.name), msgspec.json.encode(patch))
        involved = {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": notice.namespace,
            "name": notice.name,
            "uid": notice.uid,
        }
        message = f"{notice.message} (by {done_by})"
        self._write_event(involved, reason=_NOTICE_REASON, message=message, unlike=_NOTICE_REASON)

    def tell_owner(self, notice: OwnerNotice) -> None:
        """Write an Event on a controller; its name comes from what it says, so that it is written once."""
        involved = {
            "apiVersion": notice.owner.api_version,
            "kind": notice.owner.kind,
            "namespace": notice.namespace,
            "name": notice.owner.name,
            "uid": notice.owner.uid,
        }
        self._write_event(involved, reason=_EVICTION_REASON, message=notice.message, unlike=notice.message)

    def _write_event(self, involved: dict[str, str], *, reason: str, message: str, unlike: str) -> None:
        """`unlike`: what makes it another Event than others about the same object."""
        self._guard()
        event = _event(involved, reason=reason, message=message, unlike=unlike, now=self._clock.wall())
        try:
            self._session.post(
                f"/api/v1/namespaces/{involved['namespace']}/events", msgspec.json.encode(event)
            )
        except Conflict as conflict:
            if not conflict.already_exists:
                raise

    def replacements(self, evicted: Sequence[EvictedPod], *, since: datetime) -> tuple[str, ...]:
        """From one page of each of the first few namespaces: it is for links in traces, not worth more."""
        owners = {pod.owner_uid for pod in evicted if pod.owner_uid}
        gone = {pod.uid for pod in evicted}
        found: list[str] = []
        for namespace in sorted({pod.namespace for pod in evicted if pod.owner_uid})[:_NAMESPACES]:
            path = f"/api/v1/namespaces/{namespace}/pods"
            page = next(self._session.list_pages(path))
            for pod in _pods(page.body, request=f"GET {path}"):
                owner, born = pod.controller, pod.metadata.creation_timestamp
                late = born is not None and born >= since.replace(microsecond=0)
                if owner is not None and owner.uid in owners and pod.uid not in gone and late:
                    found.append(pod.uid)
        return tuple(found)

    def daemon_set(self, namespace: str, name: str) -> DaemonSetView:
        """How a DaemonSet is updated, and the newest of its ControllerRevisions, which is what it makes pods of."""
        apps = f"/apis/apps/v1/namespaces/{namespace}"
        found = msgspec.json.decode(self._session.get(f"{apps}/daemonsets/{name}").body, type=_DaemonSet)
        newest = _Revision()
        for page in self._session.list_pages(f"{apps}/controllerrevisions"):
            for item in msgspec.json.decode(page.body, type=_RevisionList).items:
                owners = {owner.uid for owner in item.metadata.owner_references}
                if found.metadata.uid in owners and item.revision > newest.revision:
                    newest = item
        return DaemonSetView(
            on_delete=found.spec.update_strategy.type == "OnDelete",
            current_revision=newest.metadata.labels.get("controller-revision-hash", ""),
        )

    def delete_pod(self, namespace: str, name: str, uid: str) -> None:
        """Delete a pod if it has this UID still, with its own grace."""
        self._guard()
        self._session.delete(_path(namespace, name), uid=uid)

    def _guard(self) -> None:
        if not self._may_write():
            raise FencedError("the lease is not proven, so nothing is written", reason="Fenced")


def _pods(body: bytes, *, request: str) -> tuple[Pod, ...]:
    """Raises Unavailable for what is no list of pods, as a proxy in between may send."""
    try:
        return _decode(body).items
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unavailable(f"not a list of pods: {error}", request=request) from error


def _path(namespace: str, name: str) -> str:
    return f"/api/v1/namespaces/{namespace}/pods/{name}"


def _event(
    involved: dict[str, str], *, reason: str, message: str, unlike: str, now: datetime
) -> dict[str, object]:
    digest = hashlib.sha256(f"{involved['uid']}/{unlike}".encode()).hexdigest()[:16]
    moment = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    name = f"{involved['name'][:200].rstrip('.-')}.{digest}"
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": involved["namespace"]},
        "involvedObject": involved,
        "type": "Warning",
        "reason": reason,
        "message": message[:1024],
        "source": {"component": "sickbay-controller"},
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
    }
