"""Garbage collection: what is owned goes with its last owner, and pods go with their node.

Source: pkg/controller/garbagecollector (attemptToDeleteItem, orphanDependents) and pkg/controller/podgc. Only the
metadata of an object is kept, whatever its resource, indexed by the UIDs of its owners.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from runtime.clock import Clock
from simulation.cluster.interface import Object, Store, StoreError
from simulation.cluster.kubelet_node import stamp_of
from simulation.cluster.view import (
    NODES,
    PODS,
    Change,
    Key,
    View,
    finished,
    key_of,
    node_of,
    terminating,
    uid_of,
    version_of,
)
from simulation.cluster.workqueue import Reconciler

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"

NODE_QUARANTINE_SECONDS = 40.0
"""So long a node must have been missing before its pods are deleted (podgc's quarantineTime)."""

POD_PERIOD_SECONDS = 20.0
"""Between looks at pods (gcCheckPeriod)."""

Owners = tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class _Item:
    """What the collector keeps of an object."""

    resource: str
    key: Key
    uid: str
    version: int
    owners: Owners
    finalizers: tuple[str, ...]
    deleting: bool

    def waits_for(self, finalizer: str) -> bool:
        return self.deleting and finalizer in self.finalizers


class Collector:
    """The garbage collector: a component of the control plane. It has to be told of objects of every resource."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._items: dict[str, _Item] = {}
        self._owned: dict[str, set[str]] = {}
        self._kinds: dict[tuple[str, str], str] = {}
        self._scopes: dict[str, bool] = {}
        self._reconciler: Reconciler[str] = Reconciler(self._reconcile)
        self.work = self._reconciler.work
        self.next_due = self._reconciler.next_due

    def observe(self, change: Change) -> None:
        """An object of any resource changed."""
        item = _item(change)
        self._learn(change)
        before = self._items.get(item.uid)
        if change.deleted:
            self._items.pop(item.uid, None)
            self._link(item.uid, before.owners if before else (), ())
            for uid in self._owned.get(item.uid, ()):
                self._reconciler.add(uid)
            # A waiting owner may go when its last dependent is gone.
            self._wake_owners(before or item)
            return
        if before is not None and before.version >= item.version:
            return
        self._items[item.uid] = item
        self._link(item.uid, before.owners if before else (), item.owners)
        if item.deleting and (before is None or not before.deleting):
            self._wake_owners(item)
        if before is None or before.owners != item.owners or item.finalizers or item.deleting:
            self._reconciler.add(item.uid)
            if before is not None and before.owners != item.owners:
                self._wake_owners(before)

    def _learn(self, change: Change) -> None:
        group = str(change.object.get("apiVersion", "")).rpartition("/")[0]
        self._kinds[group, str(change.object.get("kind", ""))] = change.resource
        self._scopes[change.resource] = bool(change.key[0])

    def _link(self, uid: str, before: Owners, after: Owners) -> None:
        if before == after:
            return
        for owner in before:
            owned = self._owned.get(owner["uid"], set())
            owned.discard(uid)
            if not owned:
                self._owned.pop(owner["uid"], None)
        for owner in after:
            self._owned.setdefault(owner["uid"], set()).add(uid)

    def _wake_owners(self, item: _Item) -> None:
        for owner in item.owners:
            if owner["uid"] in self._items:
                self._reconciler.add(owner["uid"])

    def _reconcile(self, uid: str, now: float) -> float | None:
        item = self._items.get(uid)
        if item is None:
            return None
        if item.waits_for(ORPHAN):
            self._orphan(item)
        elif item.waits_for(FOREGROUND):
            self._delete_dependents(item)
        elif not item.deleting and item.owners:
            self._decide(item)
        return None

    def _decide(self, item: _Item) -> None:
        """Delete an object none of whose owners is left, or that all of its waiting owners wait for."""
        solid, dangling, waiting = [], [], []
        for owner in item.owners:
            known = self._owner(item, owner)
            if known is None:
                dangling.append(owner)
            elif known.waits_for(FOREGROUND):
                waiting.append(owner)
            else:
                solid.append(owner)
        if solid:
            if dangling or waiting:
                self._drop_owners(item, {owner["uid"] for owner in (*dangling, *waiting)})
            return
        foreground = FOREGROUND in item.finalizers or (bool(waiting) and bool(self._dependents(item)))
        policy: Literal["Background", "Foreground", "Orphan"] = "Foreground" if foreground else "Background"
        namespace, name = item.key
        try:
            self._store.delete(
                item.resource,
                name,
                namespace=namespace,
                uid=item.uid,
                propagation="Orphan" if ORPHAN in item.finalizers else policy,
            )
        except StoreError as error:
            if error.code not in (404, 409):
                raise

    def _owner(self, item: _Item, owner: dict[str, Any]) -> _Item | None:
        """The owner as it is known, else asked of the store; None where it is absent for certain.

        Raises StoreError for a kind that nobody has heard of: then nothing is deleted.
        """
        known = self._items.get(owner["uid"])
        if known is not None:
            same_place = not known.key[0] or known.key[0] == item.key[0]
            return known if same_place and known.key[1] == owner.get("name") else None
        group = str(owner.get("apiVersion", "")).rpartition("/")[0]
        resource = self._kinds.get((group, str(owner.get("kind", ""))))
        if resource is None:
            raise StoreError(
                404, "NotFound", f"no kind {owner.get('kind')} of {owner.get('apiVersion')} is known"
            )
        namespace = item.key[0] if self._scopes[resource] else ""
        try:
            found = self._store.get(resource, str(owner.get("name", "")), namespace=namespace)
        except StoreError as error:
            if error.code == 404:
                return None
            raise
        if uid_of(found) != owner["uid"]:
            return None
        return _item(Change("ADDED", resource, found, None))

    def _dependents(self, item: _Item) -> list[str]:
        return [uid for uid in self._owned.get(item.uid, ()) if uid in self._items]

    def _delete_dependents(self, item: _Item) -> None:
        """An owner that is deleted in the foreground goes when no dependent that blocks it is left."""
        blocking = False
        for uid in self._dependents(item):
            dependent = self._items[uid]
            self._reconciler.add(uid)
            blocking = blocking or any(
                owner["uid"] == item.uid and owner.get("blockOwnerDeletion") for owner in dependent.owners
            )
        if not blocking:
            self._finish(item, FOREGROUND)

    def _orphan(self, item: _Item) -> None:
        """Dependents forget an owner that leaves them behind."""
        for uid in self._dependents(item):
            self._drop_owners(self._items[uid], {item.uid})
        self._finish(item, ORPHAN)

    def _drop_owners(self, item: _Item, uids: set[str]) -> None:
        kept = [owner for owner in item.owners if owner["uid"] not in uids]
        self._patch(item, {"ownerReferences": kept or None})

    def _finish(self, item: _Item, finalizer: str) -> None:
        kept = [one for one in item.finalizers if one != finalizer]
        self._patch(item, {"finalizers": kept or None})

    def _patch(self, item: _Item, metadata: Object) -> None:
        namespace, name = item.key
        change = {"metadata": {"uid": item.uid, "resourceVersion": str(item.version), **metadata}}
        try:
            self._store.patch(item.resource, name, change, namespace=namespace)
        except StoreError as error:
            if error.code != 404:
                raise


class PodCollector:
    """Deletes the pods of nodes that are gone: a component of the control plane."""

    def __init__(self, store: Store, view: View, *, clock: Clock) -> None:
        self._store = store
        self._view = view
        self._clock = clock
        self._reconciler: Reconciler[str] = Reconciler(self._reconcile)
        self.work = self._reconciler.work
        self.next_due = self._reconciler.next_due

    def observe(self, change: Change) -> None:
        """A node went, or a pod is bound to one that is not there."""
        due = self._clock.monotonic() + NODE_QUARANTINE_SECONDS
        if change.resource == NODES and change.deleted:
            self._reconciler.add(change.key[1], due)
        elif change.resource == PODS and not change.deleted:
            name = node_of(change.object)
            if name and self._view.get(NODES, ("", name)) is None:
                self._reconciler.add(name, due)

    def _reconcile(self, name: str, now: float) -> float | None:
        if self._view.get(NODES, ("", name)) is not None:
            return None
        pods = self._view.pods_on(name)
        for pod in pods:
            self._remove(pod)
        return now + POD_PERIOD_SECONDS if pods else None

    def _remove(self, pod: Object) -> None:
        namespace, name = key_of(pod)
        status = pod.get("status") or {}
        if not finished(pod):
            others = [one for one in status.get("conditions") or () if one["type"] != "DisruptionTarget"]
            why = {
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "DeletionByPodGC",
                "message": "PodGC: node no longer exists",
                "lastTransitionTime": stamp_of(self._clock.wall()),
            }
            change = {"status": {"phase": "Failed", "conditions": [*others, why]}}
            self._store.patch(PODS, name, change, namespace=namespace, subresource="status")
        if not terminating(pod) or not pod["metadata"].get("finalizers"):
            self._store.delete(PODS, name, namespace=namespace, uid=uid_of(pod), grace_seconds=0)


def _item(change: Change) -> _Item:
    metadata = change.object["metadata"]
    owners: Iterable[dict[str, Any]] = metadata.get("ownerReferences") or ()
    return _Item(
        resource=change.resource,
        key=change.key,
        uid=uid_of(change.object),
        version=version_of(change.object),
        owners=tuple(owners),
        finalizers=tuple(metadata.get("finalizers") or ()),
        deleting=terminating(change.object),
    )
