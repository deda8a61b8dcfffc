"""A dispatch that is over, as it is remembered and as a trace. Pure.

Its ids come from the pod's UID and the attempt, its times from what is remembered: an agent that is started again tells
the same spans again, so nothing is lost that a killed process had still in its queue. The root and `pod.scheduled`
begin with the creation, which is cut to the second: they are drawn up to a second too long.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import msgspec

from exporter.dispatch import Outcome, Progress
from runtime.spans import AttributeValue, SpanRecord, dispatch_trace, nanoseconds, span_id_of

_ATTEMPT = 1
"""A pod's containers may start many times; the pod itself is dispatched once."""
_FAILURES = (Outcome.REJECTED, Outcome.FAILED, Outcome.DELETED)


class Ended(msgspec.Struct, frozen=True):
    """A stage and when it ended."""

    stage: str
    at: datetime


class Dispatched(msgspec.Struct, frozen=True, kw_only=True):
    """All that a dispatch's trace says. `times` is `watched`, or `api` where nobody saw the pod come."""

    uid: str
    namespace: str
    name: str
    resource: str
    created: datetime
    ended: datetime
    stages: tuple[Ended, ...] = ()
    devices: tuple[str, ...] = ()
    failure: str = ""
    times: str = "watched"

    @classmethod
    def of(cls, progress: Progress, outcome: Outcome, devices: tuple[str, ...]) -> Dispatched:
        """What is worth keeping of a pod that is ready, or will never be."""
        pod, stages = progress.pod, progress.stages
        failure = (pod.reason or outcome) if outcome in _FAILURES else ""
        return cls(
            uid=pod.uid,
            namespace=pod.namespace,
            name=pod.name,
            resource=pod.resource,
            created=pod.created,
            ended=stages[-1].ended if outcome is Outcome.READY else pod.at,
            stages=tuple(Ended(stage.name, stage.ended) for stage in stages),
            devices=devices,
            failure=failure,
            times=progress.times,
        )


def spans_of(over: Dispatched, *, node: str) -> Iterator[SpanRecord]:
    """The root from creation to the end, and a span for each stage."""
    root = dispatch_trace(over.uid, _ATTEMPT)
    about: dict[str, AttributeValue] = {
        "k8s.namespace.name": over.namespace,
        "k8s.pod.name": over.name,
        "k8s.pod.uid": over.uid,
        "k8s.node.name": node,
        "hw.type": "gpu",
        "hw.id": over.devices,
        "sickbay.resource": over.resource,
        "sickbay.dispatch.attempt": _ATTEMPT,
        "sickbay.dispatch.times": over.times,
    }
    began = over.created
    for stage in over.stages:
        yield SpanRecord(
            name=f"pod.{stage.stage}",
            trace_id=root.trace_id,
            span_id=span_id_of("dispatch", over.uid, _ATTEMPT, stage.stage),
            parent_id=root.span_id,
            start_ns=nanoseconds(began),
            end_ns=nanoseconds(stage.at),
            attributes={**about, "sickbay.dispatch.stage": stage.stage},
        )
        began = stage.at
    yield SpanRecord(
        name="pod.dispatch",
        trace_id=root.trace_id,
        span_id=root.span_id,
        parent_id=None,
        start_ns=nanoseconds(over.created),
        end_ns=nanoseconds(over.ended),
        attributes=about,
        status="error" if over.failure else "ok",
        status_message=over.failure,
    )
