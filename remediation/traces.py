"""A session as a trace: a span for the whole, one for each phase, one for each step.

Everything is told from what the session's object keeps, with ids that are hashes of it: whoever tells a session
again, after a restart or a change of the leader, tells the same spans.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from itertools import pairwise

from health.vocabulary import Phase
from remediation.objects import (
    AcceleratorRemediation,
    JournalEntry,
    JournalEvent,
    PhaseEntry,
    RemediationStatus,
)
from remediation.policy import StepName
from remediation.steps.outcome import Result
from runtime.spans import (
    AttributeValue,
    SpanLink,
    SpanRecord,
    TraceRef,
    dispatch_trace,
    nanoseconds,
    span_id_of,
    trace_id_of,
)
from runtime.tracing import Tracer

_GOOD = frozenset({Result.DONE, Result.ALREADY_CORDONED, Result.NOT_OURS, "Observed"})


TELL_AGAIN = timedelta(minutes=10)
"""Sessions that were closed within it are told again by a controller that begins to lead."""

_REMEMBERED = 2000


class Teller:
    """Emits the spans of sessions, each once as it ends; the sessions may come from several threads."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._lock = threading.Lock()
        self._told: dict[str, set[int]] = {}

    def tell(self, session: AcceleratorRemediation) -> None:
        """Emit what has ended and was not told before."""
        if not self._tracer.enabled:
            return
        with self._lock:
            told = self._told.setdefault(session.metadata.name, set())
            for span in spans_of(session):
                if span.span_id not in told:
                    told.add(span.span_id)
                    self._tracer.emit(span)
            while len(self._told) > _REMEMBERED:
                del self._told[next(iter(self._told))]

    def tell_again(self, sessions: Iterable[AcceleratorRemediation], now: datetime) -> None:
        """What a former leader may have told or not: the open sessions, and those that were closed just now."""
        with self._lock:
            self._told.clear()
        for session in sessions:
            closed = session.current.closed_time
            if not session.current.phase.closed or (closed is not None and now - closed <= TELL_AGAIN):
                self.tell(session)


def trace_of(session_name: str) -> str:
    """The trace ID of a session, as `status.traceID` keeps it: 32 hexadecimal digits."""
    return f"{trace_id_of('remediation', session_name):032x}"


def root_of(session: AcceleratorRemediation) -> TraceRef:
    """The place of the session's root span."""
    trace = trace_of(session.metadata.name)
    return TraceRef(int(trace, 16), span_id_of(trace, "remediation"))


def spans_of(session: AcceleratorRemediation) -> Iterator[SpanRecord]:
    """The spans of all that has ended: phases, steps, and the whole where the session is closed."""
    status = session.current
    root = root_of(session)
    for entry, following in pairwise(status.phases):
        yield _phase_span(session, root, entry, following.started)
    yield from _step_spans(session, root)
    if status.closed_time is not None and status.phases:
        yield SpanRecord(
            name="remediation",
            trace_id=root.trace_id,
            span_id=root.span_id,
            parent_id=None,
            start_ns=nanoseconds(status.phases[0].started),
            end_ns=nanoseconds(status.closed_time),
            attributes={
                **_about(session),
                "sickbay.remediation.phase": status.phase.value,
                "sickbay.remediation.reason": status.reason,
            },
            links=_links(status),
            status="ok" if status.phase is Phase.RELEASED else "unset",
        )


def _phase_span(
    session: AcceleratorRemediation, root: TraceRef, entry: PhaseEntry, ended: datetime
) -> SpanRecord:
    return SpanRecord(
        name=f"phase {entry.phase.value}",
        trace_id=root.trace_id,
        span_id=_phase_id(root, entry),
        parent_id=root.span_id,
        start_ns=nanoseconds(entry.started),
        end_ns=nanoseconds(ended),
        attributes={**_about(session), "sickbay.remediation.phase": entry.phase.value},
    )


def _step_spans(session: AcceleratorRemediation, root: TraceRef) -> Iterator[SpanRecord]:
    status = session.current
    begun: dict[str, JournalEntry] = {}
    for entry in status.journal:
        if entry.event is JournalEvent.INTENT:
            begun[entry.step] = entry
            continue
        intent = begun.pop(entry.step, None)
        if intent is None:
            continue
        within = [phase for phase in status.phases if phase.started <= intent.time]
        good = entry.result in _GOOD
        yield SpanRecord(
            name=f"step {entry.step}",
            trace_id=root.trace_id,
            span_id=span_id_of(
                root.trace_hex, "step", entry.step, nanoseconds(intent.time), nanoseconds(entry.time)
            ),
            parent_id=_phase_id(root, within[-1]) if within else root.span_id,
            start_ns=nanoseconds(intent.time),
            end_ns=nanoseconds(entry.time),
            attributes={
                **_about(session),
                "sickbay.remediation.step": entry.step,
                "sickbay.remediation.attempt": entry.attempt,
                "sickbay.remediation.epoch": entry.epoch,
                "sickbay.remediation.result": entry.result,
            },
            links=_links(status) if entry.step == StepName.DRAIN else (),
            status="ok" if good else "error",
            status_message="" if good else entry.message,
        )


def _links(status: RemediationStatus) -> tuple[SpanLink, ...]:
    """The dispatches of the pods that were evicted, and of those that took their place."""
    if status.drain is None:
        return ()
    evicted = [(pod.uid, "evicted") for pod in status.drain.evicted_pods]
    replacing = [(uid, "replacement") for uid in status.drain.replacements]
    return tuple(
        SpanLink(dispatch_trace(uid), {"k8s.pod.uid": uid, "sickbay.pod.role": role})
        for uid, role in (*evicted, *replacing)
    )


def _about(session: AcceleratorRemediation) -> dict[str, AttributeValue]:
    spec, incidents = session.spec, session.current.incidents
    return {
        "sickbay.session.name": session.metadata.name,
        "sickbay.mode": spec.mode.value,
        "sickbay.policy.name": spec.policy.name,
        "k8s.node.name": spec.node_name,
        "k8s.node.uid": spec.node_uid,
        "sickbay.fault.kinds": tuple(dict.fromkeys(incident.kind for incident in incidents)),
        "hw.id": next((incident.device_uuid for incident in incidents if incident.device_uuid), ""),
        "hw.type": "gpu",
    }


def _phase_id(root: TraceRef, entry: PhaseEntry) -> int:
    return span_id_of(root.trace_hex, "phase", entry.phase.value, nanoseconds(entry.started))
