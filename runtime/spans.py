"""A span as it is handed to tracing: a finished record, whose ids its maker derives.

Every span of ours is told afterwards, from times that the API server, the kernel or our own journal kept.
Its ids are hashes of what it tells of (a pod's UID and an attempt, say), so whoever tells it again after a
restart tells the same span, and a receiver that knows ids sees nothing twice.

Ids have the sizes of W3C Trace Context (https://www.w3.org/TR/trace-context/): 128 bits for a trace, 64 for a
span, never zero.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

AttributeValue = str | bool | int | float | tuple[str, ...]
SpanStatus = Literal["unset", "ok", "error"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TRACE_BYTES = 16
_SPAN_BYTES = 8
_LAST_NS = (1 << 63) - 1


def trace_id_of(*parts: object) -> int:
    """The id of the trace that `parts` name, the same in every process and version.

    Parts are taken as text (1 and "1" are the same part) and kept apart ("ab", "c" is not "a", "bc").
    Raises ValueError when there are none.
    """
    return _hashed("trace", parts, _TRACE_BYTES)


def span_id_of(*parts: object) -> int:
    """The id of the span that `parts` name; parts as in `trace_id_of`.

    A span's id has to be unique in its trace only, but give what names the trace as well: links and logs
    show span ids by themselves.
    """
    return _hashed("span", parts, _SPAN_BYTES)


class TraceRef(NamedTuple):
    """A place in a trace: what a log line names and a link points at."""

    trace_id: int
    span_id: int

    @property
    def trace_hex(self) -> str:
        """32 digits, as backends and `status.traceID` show it."""
        return f"{self.trace_id:032x}"

    @property
    def span_hex(self) -> str:
        """16 digits."""
        return f"{self.span_id:016x}"


def nanoseconds(time: datetime) -> int:
    """A time as spans have it: nanoseconds since the epoch, exactly (a float would lose the last microseconds)."""
    return (time - _EPOCH) // timedelta(microseconds=1) * 1000


def dispatch_trace(pod_uid: str, attempt: int = 1) -> TraceRef:
    """The root span of a pod's dispatch: who disrupts a pod links to it without having seen it."""
    return TraceRef(trace_id_of("dispatch", pod_uid, attempt), span_id_of("dispatch", pod_uid, attempt))


@dataclass(frozen=True, slots=True)
class SpanLink:
    """A pointer from a span to one of another trace, with attributes that say why."""

    to: TraceRef
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check("the linked trace's id", self.to.trace_id, _TRACE_BYTES)
        _check("the linked span's id", self.to.span_id, _SPAN_BYTES)
        object.__setattr__(self, "attributes", dict(self.attributes))


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanRecord:
    """One finished span; `parent_id` is None for the root of its trace.

    Times are nanoseconds since the epoch. The times of the Kubernetes API have a resolution of one second,
    so two of them may come in the wrong order: an end before its start is taken as the start, and both are
    held within what the wire can carry. Attributes are copied. Raises ValueError for an id that is zero or
    too large.
    """

    name: str
    trace_id: int
    span_id: int
    parent_id: int | None
    start_ns: int
    end_ns: int
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    links: tuple[SpanLink, ...] = ()
    status: SpanStatus = "unset"
    status_message: str = ""

    def __post_init__(self) -> None:
        _check(f"the trace id of {self.name!r}", self.trace_id, _TRACE_BYTES)
        _check(f"the span id of {self.name!r}", self.span_id, _SPAN_BYTES)
        if self.parent_id is not None:
            _check(f"the parent's id of {self.name!r}", self.parent_id, _SPAN_BYTES)
        start = min(max(self.start_ns, 0), _LAST_NS)
        object.__setattr__(self, "start_ns", start)
        object.__setattr__(self, "end_ns", min(max(self.end_ns, start), _LAST_NS))
        object.__setattr__(self, "attributes", dict(self.attributes))

    @property
    def ref(self) -> TraceRef:
        return TraceRef(self.trace_id, self.span_id)


def _hashed(kind: str, parts: tuple[object, ...], size: int) -> int:
    if not parts:
        raise ValueError(f"a {kind} id needs at least one part that names the {kind}")
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        text = str(part).encode("utf-8", "surrogatepass")
        digest.update(len(text).to_bytes(8, "big") + text)
    return int.from_bytes(digest.digest()[:size], "big") or 1


def _check(what: str, value: int, size: int) -> None:
    if not 0 < value < 1 << (8 * size):
        raise ValueError(f"{what} must be above zero and fit {8 * size} bits, got {value:#x}")
