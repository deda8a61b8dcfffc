"""HTTP/1.1 as far as Kubernetes clients speak it: requests out of bytes, answers into bytes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import format_datetime

from simulation.cluster.requests import Request

MAX_HEAD = 1 << 16
MAX_BODY = 3 << 20
"""Bytes; the real server's limit for a resource's body."""

_TOO_LARGE = f"Request entity too large: limit is {MAX_BODY}"

_REASONS = {
    200: "OK",
    201: "Created",
    202: "Accepted",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    406: "Not Acceptable",
    409: "Conflict",
    410: "Gone",
    413: "Request Entity Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Entity",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


class WireError(ValueError):
    """Not a request that this server reads; `status` is the answer before the connection is closed."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete response."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


class RequestReader:
    """Collects bytes and takes requests out of them, one after another."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    @property
    def pending(self) -> int:
        """Bytes that are not yet a request."""
        return len(self._buffer)

    def next(self) -> Request | None:
        """The next whole request; None while it is incomplete. Raises WireError."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD:
                raise WireError(431, "the head of the request is too large")
            return None
        method, target, headers = _head(bytes(self._buffer[:end]))
        if "chunked" in headers.get("transfer-encoding", "").lower():
            found = self._chunks(end + 4)
            if found is None:
                return None
            body, after = found
        else:
            length = headers.get("content-length", "0")
            if not (length.isascii() and length.isdigit()):
                raise WireError(400, "Content-Length is not a number")
            after = end + 4 + int(length)
            if int(length) > MAX_BODY:
                raise WireError(413, _TOO_LARGE)
            if len(self._buffer) < after:
                return None
            body = bytes(self._buffer[end + 4 : after])
        del self._buffer[:after]
        return Request(method, target, headers, body)

    def _chunks(self, place: int) -> tuple[bytes, int] | None:
        body = bytearray()
        while True:
            end = self._buffer.find(b"\r\n", place)
            if end < 0:
                return None
            try:
                size = int(self._buffer[place:end].partition(b";")[0], 16)
            except ValueError:
                raise WireError(400, "a chunk without a size") from None
            if size < 0 or len(body) + size > MAX_BODY:
                raise WireError(413, _TOO_LARGE)
            begin, place = end + 2, end + 2 + size + 2
            if len(self._buffer) < place:
                return None
            body += self._buffer[begin : begin + size]
            if size == 0:
                return bytes(body), place


def _head(data: bytes) -> tuple[str, str, dict[str, str]]:
    lines = data.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1.") or not words[1].startswith("/"):
        raise WireError(400, "not an HTTP/1.1 request")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon:
            raise WireError(400, "a header without a colon")
        headers[name.strip().lower()] = value.strip()
    return words[0], words[1], headers


def response(answer: Answer, *, date: datetime, head_only: bool = False, close: bool = False) -> bytes:
    """The bytes of a complete response."""
    head = _lines(answer.status, answer.content_type, answer.headers, date)
    head += f"Content-Length: {len(answer.body)}\r\n"
    if close:
        head += "Connection: close\r\n"
    return f"{head}\r\n".encode("latin-1") + (b"" if head_only else answer.body)


def stream_head(*, content_type: str, date: datetime) -> bytes:
    """The head of a response that comes in chunks."""
    return f"{_lines(200, content_type, {}, date)}Transfer-Encoding: chunked\r\n\r\n".encode("latin-1")


def chunk(data: bytes) -> bytes:
    """One piece of a stream."""
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


def _lines(status: int, content_type: str, headers: Mapping[str, str], date: datetime) -> str:
    # A value of several lines is as many headers.
    more = "".join(f"{name}: {line}\r\n" for name, value in headers.items() for line in value.split("\n"))
    return (
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}\r\n"
        f"Cache-Control: no-cache, private\r\nContent-Type: {content_type}\r\n"
        f"Date: {format_datetime(date, usegmt=True)}\r\n{more}"
    )
