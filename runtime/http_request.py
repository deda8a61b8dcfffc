"""The head of an HTTP/1.x request, read within a bound of bytes and of time."""

import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

MAX_HEAD = 16384
"""Bytes of request line and headers."""

_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) (\S{1,8192}) HTTP/1\.([01])")
# RFC 9110, section 5.6.2: token.
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*")


class BadRequest(Exception):  # noqa: N818 - the protocol's own name
    """What came is not a request that we read; the connection ends with `status`."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Head:
    """A request without its body. Header names are in lower case; `path` is without the query."""

    method: str
    path: str
    headers: Mapping[str, str]
    keep_alive: bool

    @property
    def accepts_gzip(self) -> bool:
        for coding in self.headers.get("accept-encoding", "").lower().split(","):
            name, _, weight = coding.partition(";")
            if name.strip() == "gzip":
                return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
        return False


def read_head(sock: socket.socket, buffer: bytearray, *, idle: float, seconds: float) -> Head | None:
    """The next request's head; what follows it stays in `buffer`. None when the client has gone.

    Waits `idle` seconds for the first byte, then `seconds` for the rest, however it trickles in.
    Raises TimeoutError, BadRequest.
    """
    deadline = time.monotonic() + (seconds if buffer else idle)
    started = bool(buffer)
    while (end := buffer.find(b"\r\n\r\n")) < 0:
        if len(buffer) > MAX_HEAD:
            raise BadRequest(431, "the request's head is too large")
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        sock.settimeout(remaining)
        block = sock.recv(4096)
        if not block:
            return None
        if not started:
            started, deadline = True, time.monotonic() + seconds
        buffer += block
    head = bytes(buffer[:end])
    del buffer[: end + 4]
    if len(head) > MAX_HEAD:
        raise BadRequest(431, "the request's head is too large")
    return _parse(head)


def _parse(head: bytes) -> Head:
    first, *rest = head.lstrip(b"\r\n").split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        raise BadRequest(400, "not an HTTP/1.1 request")
    headers: dict[str, str] = {}
    for raw in rest:
        header = _HEADER.fullmatch(raw)
        if header is None:
            raise BadRequest(400, "a malformed header")
        name, value = header[1].decode("ascii").lower(), header[2].decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    words = headers.get("connection", "").lower()
    keep_alive = "close" not in words and (line[3] == b"1" or "keep-alive" in words)
    # A body is never read here, so what follows it on this connection could not be told from it.
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        keep_alive = False
    return Head(line[1].decode("ascii"), _path(line[2]), headers, keep_alive)


def _path(target: bytes) -> str:
    text = target.decode("latin-1")
    if "://" in text:
        text = "/" + text.partition("://")[2].partition("/")[2]
    return text.partition("?")[0].partition("#")[0]
