"""What a control plane knows of the store: every object by its key, pods by node, and objects by their controller.

It is fed with the store's events alone, after one list of each resource at the start, and never scanned on a change.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from simulation.cluster.interface import Object, StoreEvent

Key = tuple[str, str]
"""Namespace (empty for what has none) and name."""

PODS = "pods"
NODES = "nodes"
REPLICA_SETS = "replicasets.apps"
DEPLOYMENTS = "deployments.apps"
DAEMON_SETS = "daemonsets.apps"
REVISIONS = "controllerrevisions.apps"
JOBS = "jobs.batch"
BUDGETS = "poddisruptionbudgets.policy"
LEASES = "leases.coordination.k8s.io"

WATCHED = (PODS, NODES, REPLICA_SETS, DEPLOYMENTS, DAEMON_SETS, REVISIONS, JOBS, BUDGETS)
"""What a view keeps."""

FINISHED = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class Change:
    """An event and what the view had of the object before it."""

    type: Literal["ADDED", "MODIFIED", "DELETED"]
    resource: str
    object: Object
    old: Object | None

    @property
    def key(self) -> Key:
        """The object's key."""
        return key_of(self.object)

    @property
    def deleted(self) -> bool:
        """Whether the object is gone."""
        return self.type == "DELETED"


class View:
    """Not thread-safe: it belongs to the thread that drives the control plane. What it returns is not changed."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[Key, Object]] = {resource: {} for resource in WATCHED}
        self._by_controller: dict[str, dict[str, dict[Key, Object]]] = {resource: {} for resource in WATCHED}
        self._by_namespace: dict[str, dict[Key, Object]] = {}
        self._by_node: dict[str, dict[Key, Object]] = {}

    def apply(self, event: StoreEvent) -> Change | None:
        """Take an event in; None for one that is older than what is known, or of a resource that is not kept."""
        known = self._objects.get(event.resource)
        if known is None:
            return Change(event.type, event.resource, event.object, None)
        key = key_of(event.object)
        old = known.get(key)
        if old is None and event.type == "DELETED":
            return None
        if old is not None and not _newer(event, old):
            return None
        if old is not None:
            self._unlink(event.resource, key, old)
        if event.type != "DELETED":
            known[key] = event.object
            self._link(event.resource, key, event.object)
        return Change(event.type, event.resource, event.object, old)

    def get(self, resource: str, key: Key) -> Object | None:
        """The object as it is known."""
        return self._objects[resource].get(key)

    def all(self, resource: str) -> list[Object]:
        """Every object of a resource, in the order of their arrival. For starts and rare events."""
        return list(self._objects[resource].values())

    def count(self, resource: str) -> int:
        """How many objects of a resource there are."""
        return len(self._objects[resource])

    def keys(self, resource: str) -> list[Key]:
        """The key of every object of a resource."""
        return list(self._objects[resource])

    def controlled(self, resource: str, uid: str) -> list[Object]:
        """The objects of a resource whose controller has this UID."""
        return list(self._by_controller[resource].get(uid, {}).values())

    def pods_on(self, node_name: str) -> list[Object]:
        """The pods that are bound to a node; with an empty name, those that are bound to none."""
        return list(self._by_node.get(node_name, {}).values())

    def pods_in(self, namespace: str) -> list[Object]:
        """The pods of a namespace."""
        return list(self._by_namespace.get(namespace, {}).values())

    def _link(self, resource: str, key: Key, item: Object) -> None:
        if controller := controller_of(item):
            self._by_controller[resource].setdefault(controller["uid"], {})[key] = item
        if resource == PODS:
            self._by_node.setdefault(node_of(item), {})[key] = item
            self._by_namespace.setdefault(key[0], {})[key] = item

    def _unlink(self, resource: str, key: Key, item: Object) -> None:
        del self._objects[resource][key]
        if controller := controller_of(item):
            _remove(self._by_controller[resource], controller["uid"], key)
        if resource == PODS:
            _remove(self._by_node, node_of(item), key)
            _remove(self._by_namespace, key[0], key)


def _newer(event: StoreEvent, old: Object) -> bool:
    """Whether an event is about the object as known or a later state: after the first list, older ones come in."""
    known, said = version_of(old), version_of(event.object)
    return said >= known if event.type == "DELETED" else said > known


def _remove(index: dict[str, dict[Key, Object]], name: str, key: Key) -> None:
    bucket = index[name]
    del bucket[key]
    if not bucket:
        del index[name]


def key_of(item: Object) -> Key:
    """The namespace and name of an object."""
    metadata = item["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def version_of(item: Object) -> int:
    """The resourceVersion as the number that it is in our store."""
    return int(item["metadata"].get("resourceVersion") or 0)


def uid_of(item: Object) -> str:
    """The UID of an object."""
    return str(item["metadata"]["uid"])


def controller_of(item: Object) -> dict[str, Any] | None:
    """The owner that controls the object; there is at most one."""
    owners: Iterable[dict[str, Any]] = item["metadata"].get("ownerReferences") or ()
    return next((owner for owner in owners if owner.get("controller")), None)


def node_of(pod: Object) -> str:
    """The node that a pod is bound to, or nothing."""
    return str((pod.get("spec") or {}).get("nodeName") or "")


def phase_of(pod: Object) -> str:
    """A pod's phase; one that was never set is Pending."""
    return str((pod.get("status") or {}).get("phase") or "Pending")


def finished(pod: Object) -> bool:
    """Whether a pod has ended for good."""
    return phase_of(pod) in FINISHED


def terminating(item: Object) -> bool:
    """Whether somebody has asked for the object's deletion."""
    return bool(item["metadata"].get("deletionTimestamp"))


def active(pod: Object) -> bool:
    """Whether a controller counts on a pod: neither ended nor being deleted (controller_utils.go, IsPodActive)."""
    return not finished(pod) and not terminating(pod)


def condition_of(item: Object, kind: str) -> dict[str, Any] | None:
    """The object's condition of a type."""
    conditions: Iterable[dict[str, Any]] = (item.get("status") or {}).get("conditions") or ()
    return next((one for one in conditions if one.get("type") == kind), None)


def ready(pod: Object) -> bool:
    """Whether a pod's Ready condition is True."""
    condition = condition_of(pod, "Ready")
    return condition is not None and condition.get("status") == "True"
