"""The embedded API's store: every object as encoded JSON, one resourceVersion for all, every call atomic.

`ClusterStore` is `interface.Store` for those in the process, and the same with bytes for the HTTP side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Literal

from runtime.clock import Clock
from simulation.cluster import managers, metadata
from simulation.cluster.deletion import DeleteOptions, ends_with_update, fate
from simulation.cluster.errors import Cause, already_exists, bad_request, conflict, forbidden, not_found
from simulation.cluster.interface import Object, StoreError
from simulation.cluster.ledger import WINDOW_BYTES, WINDOW_CHANGES, Ledger
from simulation.cluster.patches import merge
from simulation.cluster.records import (
    SIMULATION,
    Removed,
    Writer,
    Written,
    encoded,
    key_of,
    loads,
    own,
    refuse_unknown,
)
from simulation.cluster.resources import ResourceType
from simulation.cluster.selectors import everything
from simulation.cluster.strategy import Strategy

_NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")


class ClusterStore(Ledger):
    """Thread-safe. All methods raise StoreError with the API's code and reason."""

    def __init__(
        self,
        *,
        clock: Clock,
        custom: Iterable[ResourceType] = (),
        window_changes: int = WINDOW_CHANGES,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        super().__init__(clock=clock, custom=custom, window_changes=window_changes, window_bytes=window_bytes)
        self._strategies = {resource.id: Strategy(resource) for resource in self.catalogue}
        for name in _NAMESPACES:
            self.create("namespaces", {"metadata": {"name": name}})

    # What interface.Store says.

    def get(self, resource: str, name: str, *, namespace: str = "") -> Object:
        return loads(self.read(self.resource(resource), namespace, name))

    def list(
        self, resource: str, *, namespace: str = "", labels: Mapping[str, str] | None = None
    ) -> list[Object]:
        found = self.resource(resource)
        wanted = everything(found, labels=labels)
        with self.lock:
            items = self.table(found).items(namespace=namespace, start="", version=None)
            return [loads(data) for _key, data in items if wanted.passes(data)]

    def create(self, resource: str, body: Object, *, namespace: str = "") -> Object:
        found = self.resource(resource)
        given = (body.get("metadata") or {}).get("namespace") or ("default" if found.namespaced else "")
        return loads(self.insert(found, namespace or given, body).data)

    def update(self, resource: str, body: Object, *, subresource: str = "") -> Object:
        found, meta = self.resource(resource), body["metadata"]
        namespace, name = meta.get("namespace", ""), meta["name"]
        return loads(self.modify(found, namespace, name, lambda _old: body, subresource=subresource).data)

    def patch(
        self, resource: str, name: str, patch: Object, *, namespace: str = "", subresource: str = ""
    ) -> Object:
        found = self.resource(resource)
        written = self.modify(found, namespace, name, lambda old: merge(old, patch), subresource=subresource)
        return loads(written.data)

    def delete(
        self,
        resource: str,
        name: str,
        *,
        namespace: str = "",
        uid: str = "",
        grace_seconds: int | None = None,
        propagation: Literal["Background", "Foreground", "Orphan"] = "Background",
    ) -> None:
        options = DeleteOptions(uid=uid, grace_seconds=grace_seconds, propagation=propagation)
        self.remove(self.resource(resource), namespace, name, options)

    # The same in bytes.

    def insert(
        self, resource: ResourceType, namespace: str, body: Object, *, writer: Writer = SIMULATION
    ) -> Written:
        """Create. Raises StoreError 409, 422, 400, 403 (a namespace that is going), 404 (none)."""
        document = own(resource, body)
        given = document.get("metadata") or {}
        if isinstance(given, dict) and given.get("resourceVersion"):
            raise StoreError(500, "", "resourceVersion should not be set on objects to be created")
        with self.lock:
            self._expire_events()
            if resource.namespaced:
                self.check_namespace(resource, namespace, str(given.get("name", "")))
            now = self.now(writer)
            meta = metadata.at_birth(resource, given, namespace=namespace, now=now)
            self._name(resource, namespace, meta)
            document = self._strategies[resource.id].create({**document, "metadata": meta})
            document, pruned = self._strategies[resource.id].validate(document, None)
            refuse_unknown(resource, pruned, writer)
            key = key_of(resource, namespace, document["metadata"]["name"])
            if key in self.table(resource).objects:
                raise already_exists(resource.plural, resource.group, document["metadata"]["name"])
            # What admission adds is nobody's.
            told = {"metadata": document["metadata"], "spec": body.get("spec")}
            entries = _managers(resource, told, None, writer=writer, subresource="", now=now)
            if entries:
                document["metadata"]["managedFields"] = entries
            data = self._commit(resource, "ADDED", key, document)
            return Written(data, created=True, pruned=tuple(pruned))

    def modify(
        self,
        resource: ResourceType,
        namespace: str,
        name: str,
        change: Callable[[Object], Object],
        *,
        subresource: str = "",
        writer: Writer = SIMULATION,
        replace: bool = False,
        dry_run: bool = False,
    ) -> Written:
        """Update with what `change` makes of the present object, which it does not change in place.

        `replace`: a PUT, which may create what is not there, or must bring a resourceVersion, as the resource has it.
        """
        with self.lock:
            self._expire_events()
            before = self.table(resource).objects.get(key_of(resource, namespace, name))
            if before is None:
                if not (replace and resource.create_on_update):
                    raise not_found(resource.plural, resource.group, name)
                return self._put_new(resource, namespace, name, change({}), writer)
            shown = loads(before)
            old = own(resource, shown)
            new = own(resource, change(shown))
            new, pruned = self._strategies[resource.id].updated(
                new, old, name=name, subresource=subresource, replace=replace
            )
            refuse_unknown(resource, pruned, writer, patched=not replace)
            if new == old or dry_run:
                return Written(before if new == old else encoded(resource, new), pruned=tuple(pruned))
            key = key_of(resource, namespace, name)
            if ends_with_update(new, old):
                # The watch sees the object as it was before its last finalizer went.
                self._commit(resource, "DELETED", key, {**old, "metadata": dict(old["metadata"])})
                meta = {**new["metadata"], "resourceVersion": str(self.version)}
                return Written(encoded(resource, {**new, "metadata": meta}), pruned=tuple(pruned))
            new["metadata"] = dict(new["metadata"])
            entries = _managers(
                resource, new, old, writer=writer, subresource=subresource, now=self.now(writer)
            )
            if entries:
                new["metadata"]["managedFields"] = entries
            return Written(self._commit(resource, "MODIFIED", key, new), pruned=tuple(pruned))

    def remove(
        self,
        resource: ResourceType,
        namespace: str,
        name: str,
        options: DeleteOptions,
        *,
        writer: Writer = SIMULATION,
    ) -> Removed:
        """Delete, as far as grace and finalizers let it. Raises StoreError 404, 409."""
        with self.lock:
            key = key_of(resource, namespace, name)
            data = self.table(resource).objects.get(key)
            if data is None:
                raise not_found(resource.plural, resource.group, name)
            document = own(resource, loads(data))
            decided = fate(resource, document, options, self.now(writer))
            if resource.id == "namespaces":
                return self._end_namespace(resource, name, document, writer)
            if decided.marked is not None:
                document = decided.marked
                data = self._commit(resource, "MODIFIED", key, document)
            if decided.remove:
                gone = {**document, "metadata": dict(document["metadata"])}
                data = self._commit(resource, "DELETED", key, gone)
            return Removed(data, gone=decided.remove)

    def _put_new(
        self, resource: ResourceType, namespace: str, name: str, body: Object, writer: Writer
    ) -> Written:
        given = body.get("metadata") or {}
        if given.get("uid"):
            why = metadata.wrong_uid(resource, key_of(resource, namespace, name), given["uid"], "")
            raise conflict(resource.plural, resource.group, name, why)
        if given.get("name") not in (None, "", name):
            raise bad_request(
                f"the name of the object ({given['name']}) does not match the name on the URL ({name})"
            )
        meta = {key: value for key, value in given.items() if key != "resourceVersion"}
        return self.insert(resource, namespace, {**body, "metadata": {**meta, "name": name}}, writer=writer)

    def _name(self, resource: ResourceType, namespace: str, meta: Object) -> None:
        """Fill in a name from `generateName`: up to eight tries, as the real server has."""
        prefix = meta.get("generateName")
        if meta.get("name") or not prefix:
            return
        objects = self.table(resource).objects
        for _ in range(8):
            meta["name"] = metadata.generated(prefix)
            if key_of(resource, namespace, meta["name"]) not in objects:
                return

    def check_namespace(self, resource: ResourceType, namespace: str, name: str) -> None:
        """Whether something may be created in a namespace. Raises StoreError 404, 403 while it is being deleted."""
        with self.lock:
            found = self._tables["namespaces"].objects.get(namespace)
        if found is None:
            raise not_found("namespaces", "", namespace)
        if "deletionTimestamp" in loads(found)["metadata"]:
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            cause = Cause(
                "NamespaceTerminating", f"namespace {namespace} is being terminated", "metadata.namespace"
            )
            raise forbidden(resource.plural, resource.group, name, why, causes=[cause])

    def _end_namespace(self, resource: ResourceType, name: str, document: Object, writer: Writer) -> Removed:
        """Mark it, delete what is in it, and remove it when nothing is left, as the namespace controller does."""
        if "deletionTimestamp" not in document["metadata"]:
            document["metadata"]["deletionTimestamp"] = metadata.timestamp(self.now(writer))
            document["status"] = {**document.get("status", {}), "phase": "Terminating"}
            self._commit(resource, "MODIFIED", name, document)
        data = self._tables["namespaces"].objects[name]
        for content, key in list(self._contents(name)):
            if key in self.table(content).objects:
                self.remove(content, name, key.partition("/")[2], DeleteOptions(propagation="Background"))
        self._namespace_emptied(name)
        return Removed(data, gone=False)


def _managers(
    resource: ResourceType,
    new: Object,
    old: Object | None,
    *,
    writer: Writer,
    subresource: str,
    now: datetime,
) -> list[Object]:
    if resource.id != "nodes":
        return []
    moment = metadata.timestamp(now)
    return managers.tracked(new, old, manager=writer.manager, subresource=subresource, now=moment)
