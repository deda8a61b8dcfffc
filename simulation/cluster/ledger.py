"""All objects and their changes under one resourceVersion: what is written is here, told to who listens, and forgotten
in time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from runtime.clock import Clock
from simulation.cluster.errors import not_found
from simulation.cluster.history import Change, ChangeType, Table
from simulation.cluster.interface import Object, StoreError, StoreEvent
from simulation.cluster.records import SIMULATION, Writer, encoded, key_of, loads, own
from simulation.cluster.resources import BUILT_IN, Catalogue, ResourceType

WINDOW_CHANGES = 20_000
WINDOW_BYTES = 32 << 20
"""Of one resource. At 167 renewals a second of reports of 8 devices this is a minute."""

LARGEST_OBJECT = 3 << 19
"""Bytes, that is 1.5 MiB: etcd, --max-request-bytes."""

EVENT_SECONDS = 3600.0


class Ledger:
    """Thread-safe. All methods raise StoreError with the API's code and reason."""

    def __init__(
        self,
        *,
        clock: Clock,
        custom: Iterable[ResourceType] = (),
        window_changes: int = WINDOW_CHANGES,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        self.lock = threading.RLock()
        self.catalogue = Catalogue((*BUILT_IN, *custom))
        self.version = 1
        self._clock = clock
        self._tables = {
            resource.id: Table(resource, window_changes=window_changes, window_bytes=window_bytes)
            for resource in self.catalogue
        }
        self._listeners: list[Callable[[StoreEvent], None]] = []
        self._wakers: list[Callable[[str], None]] = []
        self._events: OrderedDict[str, float] = OrderedDict()

    def subscribe(self, listener: Callable[[StoreEvent], None]) -> None:
        """Hear every change from now on, in order, in the writer's thread."""
        with self.lock:
            self._listeners.append(listener)

    def on_change(self, waker: Callable[[str], None]) -> None:
        """Call this with the resource's ID after every change, in the writer's thread: it must not block."""
        with self.lock:
            self._wakers.append(waker)

    def resource(self, resource_id: str) -> ResourceType:
        """Raises StoreError 404."""
        found = self.catalogue.get(resource_id)
        if found is None:
            raise StoreError(
                404, "NotFound", f"the server could not find the requested resource: {resource_id}"
            )
        return found

    def table(self, resource: ResourceType) -> Table:
        """The objects themselves: read them under the lock."""
        return self._tables[resource.id]

    def now(self, writer: Writer = SIMULATION) -> datetime:
        """The time of day that a writer's server believes in."""
        return self._clock.wall() + timedelta(seconds=writer.skew_seconds)

    def read(self, resource: ResourceType, namespace: str, name: str, *, version: int | None = None) -> bytes:
        """One object, now or as of a resourceVersion. Raises StoreError 404, TooOldError."""
        with self.lock:
            table, key = self.table(resource), key_of(resource, namespace, name)
            data = table.objects.get(key)
            if version is not None:
                data = table.undone(version).get(key, data)
            if data is None:
                raise not_found(resource.plural, resource.group, name)
            return data

    def compact(self) -> None:
        """Forget the past: watches and pages that began before are told 410."""
        with self.lock:
            for table in self._tables.values():
                table.compact()
                table.floor = self.version

    @contextmanager
    def atomically(self) -> Iterator[None]:
        """Several calls as one."""
        with self.lock:
            yield

    def _commit(self, resource: ResourceType, kind: ChangeType, key: str, document: Object) -> bytes:
        """Write `document`, whose metadata is the caller's own and gets the new resourceVersion."""
        table = self.table(resource)
        document["metadata"]["resourceVersion"] = str(self.version + 1)
        data = encoded(resource, document)
        if len(data) > LARGEST_OBJECT:
            raise StoreError(500, "", "etcdserver: request is too large")
        self.version += 1
        table.commit(Change(self.version, kind, key, data, table.objects.get(key)))
        if resource.id == "events":
            self._events.pop(key, None)
            if kind != "DELETED":
                self._events[key] = self._clock.monotonic() + EVENT_SECONDS
        if self._listeners:
            told = StoreEvent(
                kind, resource.id, {"kind": resource.kind, "apiVersion": resource.api_version, **document}
            )
            for listener in self._listeners:
                listener(told)
        if kind == "DELETED" and resource.namespaced:
            self._namespace_emptied(key.partition("/")[0])
        for waker in self._wakers:
            waker(resource.id)
        return data

    def _expire_events(self) -> None:
        """Events live for an hour (kube-apiserver, --event-ttl)."""
        now = self._clock.monotonic()
        while self._events:
            key, ends = next(iter(self._events.items()))
            if ends > now:
                return
            resource = self.resource("events")
            document = own(resource, loads(self.table(resource).objects[key]))
            self._commit(resource, "DELETED", key, document)

    def _contents(self, namespace: str) -> Iterator[tuple[ResourceType, str]]:
        for resource in self.catalogue:
            if resource.namespaced:
                items = self.table(resource).items(namespace=namespace, start="", version=None)
                yield from ((resource, item[0]) for item in items)

    def _namespace_emptied(self, namespace: str) -> None:
        data = self._tables["namespaces"].objects.get(namespace)
        if data is None or b'"deletionTimestamp"' not in data:
            return
        if next(self._contents(namespace), None) is None:
            resource = self.resource("namespaces")
            self._commit(resource, "DELETED", namespace, own(resource, loads(data)))
