"""A watch: a position in one resource's changes, and what a selector makes of each.

A watch holds no events of its own: it reads on from its position when its client can take more, so that a slow client
costs nothing, and is told 410 when the window has moved past it. From staging/src/k8s.io/apiserver/pkg/storage/cacher
(cache_watcher.go: an object that comes to match is ADDED, one that no longer does is DELETED as it was before).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec

from simulation.cluster.errors import expired
from simulation.cluster.history import Change, TooOldError
from simulation.cluster.interface import StoreError
from simulation.cluster.listing import invalid_match, invalid_version, parse_version
from simulation.cluster.resources import ResourceType
from simulation.cluster.selectors import Selection
from simulation.cluster.store import ClusterStore

_INITIAL_END = "k8s.io/initial-events-end"


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One line of a watch: its type and the object, encoded."""

    type: str
    data: bytes


class Watch:
    """Iterate with `pull`. Not thread-safe: its connection's."""

    def __init__(
        self, store: ClusterStore, resource: ResourceType, wanted: Selection, *, version: str, initial: bool
    ) -> None:
        """Start after `version`; with none, or `initial`, with what is there. Raises StoreError 400, 410."""
        self._store = store
        self._resource = resource
        self._wanted = wanted
        self._first: Iterator[WatchEvent] = iter(())
        with store.lock:
            table = store.table(resource)
            try:
                since = parse_version(version or "0")
            except StoreError as error:
                # Not a 400: the real server's watch does not say what kind of error it is.
                raise StoreError(500, "", invalid_version(version)) from error
            self._after = since
            if since == 0 or initial:
                existing = table.items(namespace=wanted.namespace, start="", version=None)
                events = [WatchEvent("ADDED", data) for key, data in existing if wanted.matches(key, data)]
                if initial:
                    events.append(self._bookmark(store.version, {_INITIAL_END: "true"}))
                self._first = iter(events)
                self._position = table.end
                self._after = 0
                return
            try:
                self._position = table.position(since)
            except TooOldError:
                raise expired(since, table.floor) from None

    def pull(self, most: int) -> list[WatchEvent]:
        """The next events, up to about `most`; empty when there are none yet. Raises StoreError 410."""
        found = [event for event, _ in zip(self._first, range(most), strict=False)]
        if found:
            return found
        with self._store.lock:
            table = self._store.table(self._resource)
            while len(found) < most and self._position < table.end:
                try:
                    changes = table.changes(self._position, most)
                except TooOldError:
                    raise expired(self._after, table.floor) from None
                self._position += len(changes)
                found += [event for change in changes if (event := self._event(change)) is not None]
            return found

    def bookmark(self) -> WatchEvent:
        """How far this watch has got: to call when `pull` had nothing more."""
        with self._store.lock:
            return self._bookmark(max(self._store.version, self._after), None)

    def _bookmark(self, version: int, annotations: dict[str, str] | None) -> WatchEvent:
        meta: dict[str, object] = {"resourceVersion": str(version)}
        if annotations:
            meta["annotations"] = annotations
        bare: dict[str, object] = (
            {"spec": {}, "status": {}} if not self._resource.custom and self._resource.subresources else {}
        )
        return WatchEvent(
            "BOOKMARK", self._resource.prefix + msgspec.json.encode({"metadata": meta, **bare})[1:]
        )

    def _event(self, change: Change) -> WatchEvent | None:
        wanted = self._wanted
        if change.version <= self._after or not wanted.covers(change.key):
            return None
        if not wanted.selective:
            return WatchEvent(change.type, change.data)
        now = change.type != "DELETED" and wanted.passes(change.data)
        before = change.before is not None and wanted.passes(change.before)
        if now:
            return WatchEvent("MODIFIED" if before else "ADDED", change.data)
        if not before or change.before is None:
            return None
        return WatchEvent("DELETED", self._as_of(change.before, change.version))

    def _as_of(self, data: bytes, version: int) -> bytes:
        document = msgspec.json.decode(data)
        document["metadata"]["resourceVersion"] = str(version)
        return msgspec.json.encode(document)


def wants_initial(query: Mapping[str, str]) -> bool:
    """Whether a watch begins with what is there and a bookmark after it. Raises StoreError 422."""
    match = query.get("resourceVersionMatch", "")
    if "sendInitialEvents" in query and match != "NotOlderThan":
        raise invalid_match("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")
    if match and "sendInitialEvents" not in query:
        raise invalid_match(
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
        )
    return query.get("sendInitialEvents", "").lower() in ("1", "true")


def line(event: WatchEvent) -> bytes:
    """An event as it is sent."""
    return b'{"type":"%s","object":%s}\n' % (event.type.encode(), event.data)


def error_line(status: bytes) -> bytes:
    """The ERROR event that ends a watch."""
    return b'{"type":"ERROR","object":%s}\n' % status


def too_old(error: StoreError) -> bool:
    """Whether a refusal comes as an ERROR event of a watch that was accepted, as the watch cache sends it."""
    return error.code == 410
