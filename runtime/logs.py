"""Logs: one JSON object a line for machines, one line of text for people, nothing that leaks or breaks.

Whatever is logged (kernel lines, names from the API, exceptions of libraries) was written by others.
So a record is always one line, always valid, bounded in size, and free of credentials; and a value
that cannot be shown never takes the program down.

Fields are given by `extra`: `log.info("node fenced", extra={"node": name, "session": session})`. The
names of a LogRecord's own attributes (`name`, `msg`, `args`, `module`, `process`, `thread`, ...) cannot
be used: the standard library raises KeyError for them.
"""

import json
import logging
import math
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import IO, Any, Literal

from runtime.clock import rfc3339
from runtime.trace_context import TraceIdFilter

Format = Literal["json", "text"]

_MAX_TEXT = 8192  # characters; containerd splits a log line at 16 KiB
_MAX_TRACE = 6000
_MAX_ITEMS = 32
_MAX_DEPTH = 3
_MAX_LINE = 65536

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_RESERVED = frozenset({"ts", "level", "msg", "logger", "exception"})

# RFC 6750 names the characters of a bearer token; a JWT is three base64url parts, the first of which
# starts with the encoding of `{"`.
_SECRETS = re.compile(
    r"(?P<scheme>\bbearer[\s:=]+)[A-Za-z0-9._~+/=-]+|\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?",
    re.IGNORECASE,
)
_SECRET_KEYS = frozenset({"authorization", "password", "secret", "token"})
_REDACTED = "[redacted]"

# C0, DEL, C1, line and paragraph separators, bidirectional overrides and lone surrogates: what can
# forge a line, move a terminal's cursor, or cannot be encoded.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_QUIET = ("urllib3", "kubernetes", "opentelemetry", "asyncio")


def configure(
    *,
    format: Format,
    level: str | int = "INFO",
    stream: IO[str] | None = None,
    fields: Mapping[str, object] | None = None,
) -> None:
    """Send every record of this process to `stream` (standard error), replacing what was set up before.

    `fields` are added to every record, such as the node's name. Libraries below us stay at warnings.
    """
    handler = _Handler(stream if stream is not None else sys.stderr)
    fixed = dict(fields or {})
    handler.setFormatter(JsonFormatter(fixed) if format == "json" else TextFormatter(fixed))
    handler.addFilter(TraceIdFilter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
    logging.captureWarnings(True)


def redact(text: str) -> str:
    """`text` without bearer tokens and JWTs."""
    return _SECRETS.sub(lambda match: (match["scheme"] or "") + _REDACTED, text)


class _Handler(logging.StreamHandler[IO[str]]):
    """A record that cannot be written is lost: a full disk or a closed pipe is no reason to stop."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the standard library's name
        pass


class _Formatter(logging.Formatter):
    """Everything the two formats share: the message, the fields, the exception, each made safe."""

    def __init__(self, fixed: Mapping[str, object]) -> None:
        super().__init__()
        self._fixed = fixed

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        given = {key: value for key, value in record.__dict__.items() if key not in _OWN}
        return {
            (f"{key}_" if key in _RESERVED else _text(key)): _plain_item(key, value)
            for key, value in {**self._fixed, **given}.items()
        }


class JsonFormatter(_Formatter):
    """`{"ts": ..., "level": ..., "msg": ..., fields..., "exception": the traceback if there is one}`."""

    def format(self, record: logging.LogRecord) -> str:
        head: dict[str, Any] = {
            "ts": rfc3339(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "msg": _text(_message(record)),
            "logger": record.name,
        }
        if trace := _exception(record):
            head["exception"] = _text(trace)
        line = json.dumps(head | self.fields(record), ensure_ascii=True, allow_nan=False)
        if len(line) <= _MAX_LINE:
            return line
        return json.dumps(head | {"fields_dropped": len(line)}, ensure_ascii=True, allow_nan=False)


class TextFormatter(_Formatter):
    """`2026-01-01T00:00:00.000Z INFO  message key=value`, with a traceback indented below it."""

    def format(self, record: logging.LogRecord) -> str:
        moment = rfc3339(datetime.fromtimestamp(record.created, UTC))
        pairs = "".join(f" {_visible(key)}={_shown(value)}" for key, value in self.fields(record).items())
        line = f"{moment[:23]}Z {record.levelname:<7} {_visible(_text(_message(record)))}{pairs}"
        trace = _exception(record)
        return line + "".join(f"\n    {_visible(part)}" for part in _text(trace).split("\n") if part)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:
        return f"{_safe_str(record.msg)} {_safe_str(record.args)}"


def _exception(record: logging.LogRecord) -> str:
    """The traceback, cut in the middle: the origin of the call and the error itself both matter."""
    if not record.exc_info or record.exc_info[1] is None:
        return ""
    try:
        trace = "".join(traceback.format_exception(record.exc_info[1])).rstrip("\n")
    except Exception:
        trace = type(record.exc_info[1]).__name__
    if len(trace) <= _MAX_TRACE:
        return trace
    return f"{trace[: _MAX_TRACE // 3]}\n...\n{trace[-2 * _MAX_TRACE // 3 :]}"


def _plain_item(key: str, value: object) -> Any:
    if key.lower() in _SECRET_KEYS and value:
        return _REDACTED
    return _plain(value, 0)


def _plain(value: object, depth: int) -> Any:
    """`value` as what JSON can carry: bounded in depth, items and length, without NaN."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < 1 << 63 else str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, datetime) and value.tzinfo is not None:
        return rfc3339(value)
    if isinstance(value, bytes):
        return _text(value[:_MAX_TEXT].decode("utf-8", "backslashreplace"))
    if depth < _MAX_DEPTH and isinstance(value, Mapping | list | tuple | set | frozenset):
        return _container(value, depth)
    return _text(_safe_str(value))


def _container(value: Mapping[Any, Any] | Iterable[Any], depth: int) -> Any:
    try:
        if isinstance(value, Mapping):
            items = list(value.items())[:_MAX_ITEMS]
            pairs = ((_text(_safe_str(key)), item) for key, item in items)
            return {
                key: _REDACTED if key.lower() in _SECRET_KEYS and item else _plain(item, depth + 1)
                for key, item in pairs
            }
        return [_plain(item, depth + 1) for item in list(value)[:_MAX_ITEMS]]
    except Exception:
        return _text(_safe_str(value))


def _safe_str(value: object) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__} that cannot be shown>"


def _text(text: str) -> str:
    """`text` without credentials, encodable, and bounded."""
    # Redacted before it is cut: half a token would no longer look like one. Bounded first all the same,
    # since a pattern over megabytes is a way to stop the program.
    text = redact(text[: 4 * _MAX_TEXT]) if len(text) > 4 * _MAX_TEXT else redact(text)
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}... ({len(text)} characters)"


def _visible(text: str) -> str:
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def _shown(value: Any) -> str:
    """A field's value in text: bare where that is unambiguous, else quoted as JSON."""
    if isinstance(value, str):
        return _visible(value) if value and not re.search(r'[\s"=]', value) else _visible(json.dumps(value))
    return _visible(json.dumps(value, ensure_ascii=False))
