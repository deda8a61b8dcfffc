"""From our records to OTLP, by OpenTelemetry's exporters. Importing this module imports the SDK.

Records become the SDK's ReadableSpan directly, in the thread that sends, because a provider would take their
ids from a stateful generator and do its work in the thread of whoever emits.
"""

import logging
from collections.abc import Mapping, Sequence

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from runtime.spans import AttributeValue, SpanRecord
from runtime.trace_settings import TraceSettings
from runtime.version import VERSION

# OpenTelemetry's own limit of attributes and links to a span; the length of a value is ours.
_MAX_ITEMS = 128
_MAX_TEXT = 4096
_MAX_INT = 1 << 63
_MAX_REASON = 400

_SCOPE = InstrumentationScope("sickbay", VERSION)
_STATUS = {"unset": StatusCode.UNSET, "ok": StatusCode.OK, "error": StatusCode.ERROR}


class OtlpSender:
    """Sends batches of records by the exporter of one protocol; used by one thread, closed by any.

    The constructor raises what the exporter raises: OSError for a certificate that cannot be read, ValueError
    for a malformed variable.
    """

    def __init__(self, settings: TraceSettings, resource: Mapping[str, str]) -> None:
        self._resource = _resource(resource)
        self._exporter = _exporter(settings)
        _listen_to(type(self._exporter))

    def send(self, records: Sequence[SpanRecord]) -> bool:
        """Whether the collector took them all. Takes up to the timeout that is set."""
        _LAST_WORDS.forget()
        spans = [readable(record, self._resource) for record in records]
        return self._exporter.export(spans) is SpanExportResult.SUCCESS

    def reason(self) -> str:
        """What the exporter said of the last batch, for our own log; empty when it said nothing."""
        return _LAST_WORDS.text

    def close(self) -> None:
        """Close connections; an export that is waiting for its next attempt gives up."""
        self._exporter.shutdown()


def readable(record: SpanRecord, resource: Resource) -> ReadableSpan:
    """`record` as the SDK's exporters take it, cut to the limits, with text that can be encoded."""
    parent = None if record.parent_id is None else _context(record.trace_id, record.parent_id)
    return ReadableSpan(
        name=_text(record.name),
        context=_context(record.trace_id, record.span_id),
        parent=parent,
        resource=resource,
        attributes=_attributes(record.attributes),
        links=[
            Link(_context(*link.to, remote=True), _attributes(link.attributes))
            for link in record.links[:_MAX_ITEMS]
        ],
        status=_status(record),
        start_time=record.start_ns,
        end_time=record.end_ns,
        instrumentation_scope=_SCOPE,
    )


def _exporter(settings: TraceSettings) -> SpanExporter:
    """The exporter of the protocol; the other one, and what it needs, is not imported."""
    if settings.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(endpoint=settings.endpoint, timeout=settings.timeout)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    return HttpExporter(endpoint=settings.endpoint, timeout=settings.timeout)


def _resource(ours: Mapping[str, str]) -> Resource:
    """Ours under what the operator says by OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME."""
    theirs = OTELResourceDetector().detect().attributes
    return Resource.create({key: value for key, value in ours.items() if key not in theirs})


def _context(trace_id: int, span_id: int, *, remote: bool = False) -> SpanContext:
    return SpanContext(trace_id, span_id, is_remote=remote, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _status(record: SpanRecord) -> Status:
    # The specification lets an error alone have a description; the SDK warns of others.
    description = _text(record.status_message) if record.status == "error" and record.status_message else None
    return Status(_STATUS[record.status], description)


def _attributes(attributes: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
    first = list(attributes.items())[:_MAX_ITEMS]
    return {_text(key): _plain(value) for key, value in first if key}


def _plain(value: AttributeValue) -> AttributeValue:
    """`value` within what OTLP can carry: what the encoder refuses costs the attribute, or the whole batch."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, tuple):
        return tuple(_text(item) for item in value[:_MAX_ITEMS])
    if isinstance(value, int) and not -_MAX_INT <= value < _MAX_INT:
        return str(value)
    return value


def _text(text: str) -> str:
    """`text` cut, without lone surrogates: those come from bytes that were no UTF-8, as in kernel lines."""
    return text[:_MAX_TEXT].encode("utf-8", "replace").decode("utf-8")


def _listen_to(exporter: type[SpanExporter]) -> None:
    """Let `_LAST_WORDS` have what the exporter logs."""
    for kind in exporter.__mro__:
        if not kind.__module__.startswith("opentelemetry.exporter"):
            continue
        # A filter works on the very logger it is added to. It goes first: the exporter for gRPC has a filter
        # of its own, which holds back what repeats, and then we would not learn the reason.
        filters = logging.getLogger(kind.__module__).filters
        if _LAST_WORDS not in filters:
            filters.insert(0, _LAST_WORDS)


class _LastWords(logging.Filter):
    """Keeps what the exporter logs to itself: it speaks with every attempt, and we speak once an outage."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return "; ".join(self._lines)

    def forget(self) -> None:
        self._lines = ()

    def filter(self, record: logging.LogRecord) -> bool:
        # The last line is often just that it gave up, and the one before says why.
        self._lines = (*self._lines[-1:], record.getMessage()[:_MAX_REASON])
        return False


# One for the process, and it stays: an export that is abandoned still speaks after the end.
_LAST_WORDS = _LastWords()
