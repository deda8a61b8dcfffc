"""One resource's objects and the window of its latest changes, as encoded JSON.

An object's bytes are shared between the table, the change that wrote them and the one that replaced them, so a
change costs only what it replaced. What is needed of the past is undone from the window: pages of a list that began
at an older resourceVersion, stale reads, and what a selector said of an object before.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from simulation.cluster.resources import ResourceType

_SLOT_BYTES = 200

ChangeType = Literal["ADDED", "MODIFIED", "DELETED"]


@dataclass(slots=True)
class Change:
    """One write. `data` is the object after it (for DELETED: as it was deleted), `before` what it replaced."""

    version: int
    type: ChangeType
    key: str
    data: bytes
    before: bytes | None


class TooOldError(Exception):
    """The window does not reach back that far."""


class Table:
    """The objects of one resource. Not thread-safe: the store's lock guards it."""

    def __init__(self, resource: ResourceType, *, window_changes: int, window_bytes: int) -> None:
        self.resource = resource
        self.prefix = resource.prefix
        self.objects: dict[str, bytes] = {}
        self.floor = 0
        """The window holds every change after this resourceVersion."""
        self._keys: list[str] = []
        self._changes: deque[Change] = deque()
        self._first = 0
        self._bytes = 0
        self._most_changes = window_changes
        self._most_bytes = window_bytes

    def commit(self, change: Change) -> None:
        """Carry out a change. Its version is above that of every change before."""
        if change.type == "DELETED":
            del self.objects[change.key]
            del self._keys[bisect_left(self._keys, change.key)]
        else:
            if change.before is None:
                insort(self._keys, change.key)
            self.objects[change.key] = change.data
        self._changes.append(change)
        self._bytes += len(change.data) + _SLOT_BYTES
        while len(self._changes) > self._most_changes or self._bytes > self._most_bytes:
            self._forget()

    def compact(self) -> None:
        """Forget all changes, as a compaction of etcd does."""
        while self._changes:
            self._forget()

    def _forget(self) -> None:
        change = self._changes.popleft()
        self.floor = change.version
        self._bytes -= len(change.data) + _SLOT_BYTES
        self._first += 1

    @property
    def end(self) -> int:
        """The position after the last change; positions never come back."""
        return self._first + len(self._changes)

    def position(self, version: int) -> int:
        """The position of the first change after a resourceVersion. Raises TooOldError."""
        if version < self.floor:
            raise TooOldError
        return self._first + bisect_right(self._changes, version, key=lambda change: change.version)

    def changes(self, position: int, most: int) -> list[Change]:
        """Up to `most` changes from a position on. Raises TooOldError."""
        if position < self._first:
            raise TooOldError
        place = position - self._first
        return [self._changes[at] for at in range(place, min(len(self._changes), place + most))]

    def undone(self, version: int) -> dict[str, bytes | None]:
        """What differed at a resourceVersion: the objects then, None for what was not there. Raises TooOldError."""
        if version < self.floor:
            raise TooOldError
        differing: dict[str, bytes | None] = {}
        for change in reversed(self._changes):
            if change.version <= version:
                break
            differing[change.key] = change.before
        return differing

    def items(self, *, namespace: str, start: str, version: int | None) -> Iterator[tuple[str, bytes]]:
        """Keys and objects in order, of a namespace or all, from `start` on, now or as of a version.

        Raises TooOldError.
        """
        undone = self.undone(version) if version is not None else {}
        keys = self._keys
        if any(key not in self.objects for key in undone):
            keys = sorted({*self._keys, *undone})
        low = f"{namespace}/" if namespace else ""
        for place in range(bisect_left(keys, max(low, start)), len(keys)):
            key = keys[place]
            if low and not key.startswith(low):
                return
            data = undone[key] if key in undone else self.objects[key]
            if data is not None:
                yield key, data
