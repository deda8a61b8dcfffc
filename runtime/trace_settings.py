"""Tracing as the standard OTEL_* variables set it (https://opentelemetry.io/docs/specs/otel/configuration/).

Read here: OTEL_SDK_DISABLED, OTEL_TRACES_EXPORTER (`otlp` or `none`), OTEL_TRACES_SAMPLER and its _ARG,
OTEL_EXPORTER_OTLP_ENDPOINT, _PROTOCOL and _TIMEOUT and their _TRACES_ forms, which win, and
OTEL_BSP_SCHEDULE_DELAY, _MAX_QUEUE_SIZE and _MAX_EXPORT_BATCH_SIZE. The exporter itself reads _HEADERS,
_COMPRESSION, _CERTIFICATE, _CLIENT_CERTIFICATE, _CLIENT_KEY and _INSECURE; the resource reads
OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.

OTEL_EXPORTER_OTLP_TIMEOUT is in **seconds**, as OpenTelemetry's Python exporters have it, though the
specification says milliseconds. OTEL_BSP_SCHEDULE_DELAY is in milliseconds.

A sampler decides by the trace id alone. Ids are derived from what a trace tells of, so agent, controller and
their successors decide alike, and the `parentbased_` forms are the same as the plain ones.

As the specification asks, a value that cannot be taken is passed over with a warning: what watches over a
node's health does not stay down for a mistake about traces.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast
from urllib.parse import urlsplit

from runtime.config_error import ConfigError, nearest

Protocol = Literal["http/protobuf", "grpc"]

DEFAULT_TIMEOUT = 10.0
MAX_TIMEOUT = 60.0  # seconds; what is above was surely meant as milliseconds

_PROTOCOLS = ("http/protobuf", "grpc")
_EXPORTERS = ("otlp", "none")
_SAMPLERS = ("always_on", "always_off", "traceidratio")
_PARENT_BASED = tuple(f"parentbased_{sampler}" for sampler in _SAMPLERS)
_MAX_QUEUE = 65536
_RATIO_BITS = 64


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """Where spans go and how. `endpoint` is the whole URL for HTTP, and for gRPC what the operator wrote.

    `timeout` (one attempt to export, with the exporter's own retries) and `delay` (how long a span may wait
    for its batch to fill) are seconds, `queue` and `batch` are spans, `ratio` is the share of traces kept.
    """

    protocol: Protocol
    endpoint: str
    timeout: float = DEFAULT_TIMEOUT
    delay: float = 5.0
    queue: int = 2048
    batch: int = 512
    ratio: float = 1.0

    def keeps(self, trace_id: int) -> bool:
        """Whether the trace is exported: by the low 64 bits of its id, as OpenTelemetry's own sampler does."""
        low = trace_id & ((1 << _RATIO_BITS) - 1)
        return low < round(self.ratio * (1 << _RATIO_BITS))


def read_settings(environ: Mapping[str, str]) -> tuple[TraceSettings | None, tuple[ConfigError, ...]]:
    """What `environ` says of tracing, None for off; and what in it could not be taken."""
    given = _Variables(environ)
    return given.settings(), tuple(given.problems)


class _Variables:
    """The variables, and the problems met while they are read. A variable that is set but blank is not set."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[ConfigError] = []

    def settings(self) -> TraceSettings | None:
        exporter_name = self._one_of("OTEL_TRACES_EXPORTER", _EXPORTERS, "otlp")
        if self._text("OTEL_SDK_DISABLED").lower() == "true" or exporter_name == "none":
            return None
        protocol = self._one_of(self._otlp("PROTOCOL"), _PROTOCOLS, "http/protobuf")
        endpoint = (
            self._http_endpoint() if protocol == "http/protobuf" else self._text(self._otlp("ENDPOINT"))
        )
        if not endpoint:
            return None
        ratio = self._ratio()
        if ratio == 0:
            return None
        queue = int(self._number("OTEL_BSP_MAX_QUEUE_SIZE", 2048, _count(_MAX_QUEUE)))
        return TraceSettings(
            protocol=cast("Protocol", protocol),
            endpoint=endpoint,
            timeout=self._timeout(),
            delay=self._number("OTEL_BSP_SCHEDULE_DELAY", 5000, _span_of(0, 3_600_000, "milliseconds"))
            / 1000,
            queue=queue,
            batch=min(queue, int(self._number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512, _count(_MAX_QUEUE)))),
            ratio=ratio,
        )

    def _http_endpoint(self) -> str:
        """The URL for traces: the general variable gets the path that the OTLP specification adds."""
        name = self._otlp("ENDPOINT")
        base = self._text(name)
        if not base:
            return ""
        if not _is_http_url(base):
            self._refuse(name, base, "a URL such as http://collector:4318 (tracing stays off)")
            return ""
        return base if "_TRACES_" in name else f"{base.rstrip('/')}/v1/traces"

    def _timeout(self) -> float:
        name = self._otlp("TIMEOUT")
        seconds = self._number(name, DEFAULT_TIMEOUT, _span_of(0.001, math.inf, "seconds"))
        if seconds <= MAX_TIMEOUT:
            return seconds
        self._refuse(name, self._text(name), f"seconds, at most {MAX_TIMEOUT:g}, which is what is taken")
        return MAX_TIMEOUT

    def _ratio(self) -> float:
        sampler = self._one_of("OTEL_TRACES_SAMPLER", (*_PARENT_BASED, *_SAMPLERS), "parentbased_always_on")
        kind = sampler.removeprefix("parentbased_")
        if kind == "traceidratio":
            return self._number("OTEL_TRACES_SAMPLER_ARG", 1.0, _span_of(0, 1, "a share"))
        return 1.0 if kind == "always_on" else 0.0

    def _otlp(self, part: str) -> str:
        """The name of the variable that holds: the one for traces where it is set."""
        own = f"OTEL_EXPORTER_OTLP_TRACES_{part}"
        return own if self._text(own) else f"OTEL_EXPORTER_OTLP_{part}"

    def _text(self, name: str) -> str:
        return self._environ.get(name, "").strip()

    def _one_of(self, name: str, known: Iterable[str], default: str) -> str:
        text = self._text(name)
        if not text or text.lower() in known:
            return text.lower() or default
        self._refuse(name, text, f"{' or '.join(known)} ({default} is taken)", nearest(text, known))
        return default

    def _number(self, name: str, default: float, limits: tuple[Callable[[float], bool], str]) -> float:
        text = self._text(name)
        if not text:
            return default
        allowed, expected = limits
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if allowed(value):
            return value
        self._refuse(name, text, f"{expected} ({default:g} is taken)")
        return default

    def _refuse(self, name: str, value: str, expected: str, close: str | None = None) -> None:
        self.problems.append(
            ConfigError(
                key="", value=value, expected=expected, nearest=close, source=f"environment variable {name}"
            )
        )


def _is_http_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _count(most: int) -> tuple[Callable[[float], bool], str]:
    return lambda value: 1 <= value <= most and value == int(value), f"a whole number from 1 to {most}"


def _span_of(least: float, most: float, unit: str) -> tuple[Callable[[float], bool], str]:
    expected = f"{unit} from {least:g}" + ("" if most == math.inf else f" to {most:.15g}")
    return lambda value: least <= value <= most, expected
