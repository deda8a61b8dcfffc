"""A collection of the API, kept in step: list in pages, watch with bookmarks, resume, list again on 410.

One thread per collection turns what the API server says into events for the controller's queue. It holds
each object as the struct its user asked for, so only the fields that are used cost memory. Whatever goes
wrong is an event in a log and a counter, never the end of the thread: a broken connection resumes from the
last resourceVersion, a compacted one lists again, an object that does not decode is passed over.

The API server sends a bookmark about once a minute (staging/src/k8s.io/apiserver/pkg/storage/cacher), so
the limit on silence is 70 s: a watch that is quieter than that is a half-open connection.
"""

import enum
import logging
import math
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import msgspec

from runtime.api_errors import ApiError, Gone, ResponseTooLarge, watch_error
from runtime.clock import Clock, SystemClock
from runtime.kubernetes import Session, WatchStream

T = TypeVar("T")

_INACTIVITY_SECONDS = 70.0
_WATCH_SECONDS = (300, 600)
_BACKOFF_SECONDS = (0.2, 30.0)
_BRIEF_SECONDS = 1.0
_STEADY_SECONDS = 10.0

log = logging.getLogger(__name__)


class Kind(enum.Enum):
    """What happened to an object; SYNCED: everything of a list has been delivered."""

    ADDED = "Added"
    MODIFIED = "Modified"
    DELETED = "Deleted"
    SYNCED = "Synced"


@dataclass(frozen=True, slots=True)
class Event(Generic[T]):
    """One change. `object` is the last known state for DELETED and None for SYNCED, whose key is empty.

    `received` is when it arrived, on this process's monotonic clock.
    """

    kind: Kind
    key: str
    object: T | None
    received: float


@dataclass(slots=True)
class Counters:
    """Totals since the start. Written by the reflector's thread alone."""

    lists: int = 0
    watches: int = 0
    events: int = 0
    bookmarks: int = 0
    errors: int = 0
    skipped: int = 0


class _Metadata(msgspec.Struct, frozen=True):
    name: str = ""
    namespace: str = ""
    resource_version: str = msgspec.field(default="", name="resourceVersion")

    @property
    def path(self) -> str:
        return f"{self.namespace}/{self.name}"


class _Object(msgspec.Struct, frozen=True):
    metadata: _Metadata


class _Items(msgspec.Struct, frozen=True):
    items: list[msgspec.Raw] | None = None


class _Line(msgspec.Struct, frozen=True):
    type: str
    object: msgspec.Raw


_decode_object = msgspec.json.Decoder(_Object).decode
_decode_items = msgspec.json.Decoder(_Items).decode
_decode_line = msgspec.json.Decoder(_Line).decode


@dataclass(slots=True)
class _Known(Generic[T]):
    key: str
    resource_version: str
    object: T


class Reflector(Generic[T]):
    """Delivers the collection at `path` to `sink`, which must not block (a queue's `put`).

    `key` names an object for its users (its name, its UID); an object that comes back under its old name
    with another key is a DELETED and an ADDED. Events of one object come in order. After a list, objects
    that vanished meanwhile are DELETED, and then comes SYNCED.
    """

    def __init__(
        self,
        session: Session,
        path: str,
        type_: type[T],
        *,
        key: Callable[[T], str],
        sink: Callable[[Event[T]], None],
        query: dict[str, str] | None = None,
        page_size: int = 500,
        inactivity_seconds: float = _INACTIVITY_SECONDS,
        backoff_seconds: tuple[float, float] = _BACKOFF_SECONDS,
        clock: Clock | None = None,
    ) -> None:
        self.synced = threading.Event()
        self.counters = Counters()
        self.last_contact = -math.inf
        """Monotonic time of the last event, bookmark or complete list; `-inf` before the first."""
        self._session = session
        self._path = path
        self._decode = msgspec.json.Decoder(type_).decode
        self._key = key
        self._sink = sink
        self._query = query or {}
        self._page_size = page_size
        self._inactivity = inactivity_seconds
        self._clock = clock or SystemClock()
        self._backoff = _Backoff(*backoff_seconds)
        self._known: dict[str, _Known[T]] = {}
        self._resource_version: str | None = None
        self._stream: WatchStream | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"reflector {path}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """End the watch and the thread. Nothing is delivered once this has returned in time."""
        self._stopping.set()
        if (stream := self._stream) is not None:
            stream.close()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def proven_alive(self) -> float:
        """Monotonic time at which the view was last known to be whole: `last_contact`, or later when the
        watch's idle socket has answered a keepalive since. (That proves the server's machine and the way to it;
        a server process that hangs is found by the limit on silence.)
        """
        stream = self._stream
        age = stream.proven_alive_age() if stream is not None and self.synced.is_set() else None
        return self.last_contact if age is None else max(self.last_contact, self._clock.monotonic() - age)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._resource_version is None:
                    self._resource_version = self._list()
                self._watch(self._resource_version)
            except Gone as error:
                # Not a failure of anybody's: what we resume from is older than what the server keeps.
                log.info("listing again", extra={"path": self._path, "why": str(error)})
                self._resource_version = None
                self._pause()
            except ApiError as error:
                self._count_error(error)
                if isinstance(error, ResponseTooLarge):
                    self._resource_version = None
                self._pause()
            except Exception as error:
                # The view may have a hole now, so it is made anew.
                self._count_error(error, exc_info=True)
                self._resource_version = None
                self._pause()

    def _list(self) -> str:
        """Deliver a whole list; the resourceVersion to watch from."""
        self.counters.lists += 1
        present: set[str] = set()
        version = ""
        pages = self._session.list_pages(self._path, query=self._query, limit=self._page_size)
        for page in pages:
            version = page.resource_version
            for raw in _decode_items(page.body).items or ():
                if (metadata := self._metadata(raw)) is not None:
                    present.add(metadata.path)
                    self._update(raw, metadata, listed=True)
            if self._stopping.is_set():
                return version
        for path in self._known.keys() - present:
            self._forget(path)
        self.last_contact = self._clock.monotonic()
        self.synced.set()
        self._emit(Kind.SYNCED, "", None)
        return version

    def _watch(self, version: str) -> None:
        """Deliver changes until the server ends the watch; raises ApiError when something breaks it."""
        self.counters.watches += 1
        began, seen = self._clock.monotonic(), self.counters.events + self.counters.bookmarks
        stream = self._stream = self._session.watch(
            self._path,
            query=self._query,
            resource_version=version,
            timeout_seconds=random.randint(*_WATCH_SECONDS),  # noqa: S311 - spreads load, guards nothing
            inactivity_seconds=self._inactivity,
        )
        try:
            if self._stopping.is_set():
                return
            for line in stream:
                self._take(line)
        finally:
            stream.close()
            self._stream = None
            lasted = self._clock.monotonic() - began
            if lasted > _STEADY_SECONDS:
                self._backoff.reset()
        if lasted < _BRIEF_SECONDS and self.counters.events + self.counters.bookmarks == seen:
            # A server that ends every watch at once must not be asked as fast as it answers.
            self._pause()

    def _take(self, line: bytes) -> None:
        event = _decode_line(line)
        if event.type == "ERROR":
            raise watch_error(bytes(event.object), request=f"GET {self._path} (watch)")
        metadata = self._metadata(event.object)
        if metadata is not None:
            if event.type == "BOOKMARK":
                self.counters.bookmarks += 1
            elif event.type == "DELETED":
                self._delete(event.object, metadata)
            else:
                self._update(event.object, metadata, listed=False)
            self._resource_version = metadata.resource_version or self._resource_version
        self._backoff.reset()
        self.last_contact = self._clock.monotonic()

    def _metadata(self, raw: msgspec.Raw) -> _Metadata | None:
        try:
            return _decode_object(raw).metadata
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._skip("?", str(error))
            return None

    def _update(self, raw: msgspec.Raw, metadata: _Metadata, *, listed: bool) -> None:
        """Deliver an object that exists, unless a list shows it as it was known."""
        path, old = metadata.path, self._known.get(metadata.path)
        if listed and old is not None and old.resource_version == metadata.resource_version:
            return
        try:
            value = self._decode(raw)
            key = self._key(value)
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, AttributeError) as error:
            self._skip(path, str(error))
            return
        if old is not None and old.key != key:
            self._forget(path)
            old = None
        self._known[path] = _Known(key, metadata.resource_version, value)
        self._emit(Kind.ADDED if old is None else Kind.MODIFIED, key, value)

    def _delete(self, raw: msgspec.Raw, metadata: _Metadata) -> None:
        old = self._known.pop(metadata.path, None)
        if old is None:
            return
        try:
            last = self._decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            last = old.object
        self._emit(Kind.DELETED, old.key, last)

    def _forget(self, path: str) -> None:
        old = self._known.pop(path)
        self._emit(Kind.DELETED, old.key, old.object)

    def _emit(self, kind: Kind, key: str, value: T | None) -> None:
        if self._stopping.is_set():
            return
        self.counters.events += kind is not Kind.SYNCED
        self._sink(Event(kind, key, value, self._clock.monotonic()))

    def _skip(self, path: str, why: str) -> None:
        self.counters.skipped += 1
        log.warning("object passed over", extra={"collection": self._path, "object": path, "why": why})

    def _count_error(self, error: Exception, *, exc_info: bool = False) -> None:
        if self._stopping.is_set():
            return
        self.counters.errors += 1
        log.warning("watch broken", extra={"path": self._path, "why": str(error)}, exc_info=exc_info)

    def _pause(self) -> None:
        self._stopping.wait(self._backoff.next())


@dataclass(slots=True)
class _Backoff:
    """Exponential, with full jitter above a half, so that many clients do not come back together."""

    first: float
    limit: float
    _failures: int = field(default=0, init=False)

    def next(self) -> float:
        ceiling = min(self.limit, self.first * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - as above

    def reset(self) -> None:
        self._failures = 0
