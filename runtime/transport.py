"""HTTP under the session: pools and sockets, requests that are sent once, and what their failures mean."""

import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from runtime.api_errors import ApiError, ConnectionFailed, ResponseTooLarge, Unauthorized, api_error
from runtime.clock import rfc3339
from runtime.kubernetes_auth import Access, Credentials, expiry
from runtime.watch_stream import WatchStream

Query = Mapping[str, str | int | bool]
Timeout = tuple[float, float]
"""Seconds to connect, and between two reads."""

DEFAULT_TIMEOUT: Timeout = (3.0, 10.0)
MAX_BODY = 64 << 20
JSON = "application/json"

_POOL_SIZE = 32
# Every name that Kubernetes knows is made of these; a percent sign could smuggle in a `..`.
_PATH = re.compile(r"(?:/[A-Za-z0-9._:~-]+)+", re.ASCII)

_SocketOptions = list[tuple[int, int, int | bytes]]


def _keepalive(*, idle: int, interval: int, count: int) -> _SocketOptions:
    return [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count),
    ]


_REQUEST_SOCKET = _keepalive(idle=15, interval=5, count=3)
# Silence is normal on a watch, so the kernel asks for us: a peer that is alive answers every two seconds, and
# one that is gone is given up after ten.
_WATCH_SOCKET = [
    *_keepalive(idle=2, interval=2, count=4),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 10_000),
]


@dataclass(frozen=True, slots=True)
class Response:
    """A success. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """Connections to one API server as one user. Safe to use from many threads, and after a fork.

    `user_agent` may be changed at any time and goes with the next request.
    """

    def __init__(self, credentials: Credentials, *, user_agent: str, max_body: int = MAX_BODY) -> None:
        self.user_agent = user_agent
        self._credentials = credentials
        self._max_body = max_body
        self._lock = threading.Lock()
        self._access: Access | None = None
        self._pool: HTTPConnectionPool | None = None
        self._process = 0

    @property
    def server(self) -> str:
        """The API server's address, `https://HOST:PORT`."""
        return self._credentials.access().server

    @property
    def tls(self) -> ssl.SSLContext | None:
        """How the API server proves itself; None where the connection is plain."""
        return self._credentials.access().tls

    def close(self) -> None:
        """Drop the idle connections. The session stays usable."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: bytes | None = None,
        content_type: str = JSON,
        timeout: Timeout = DEFAULT_TIMEOUT,
    ) -> Response:
        """One request, once. `path` is the whole path, such as `/api/v1/nodes/NAME/status`.

        Raises ApiError: a subclass of it for whatever is not 2xx, ConnectionFailed when there is no answer.
        Raises ValueError for a path that no object of Kubernetes can have.
        """
        pool, access = self._connections()
        name = f"{method} {path}"
        try:
            answer = pool.urlopen(
                method,
                _target(access, path, query),
                body=body,
                headers=self._headers(content_type if body is not None else None),
                retries=False,
                redirect=False,
                timeout=urllib3.Timeout(connect=timeout[0], read=timeout[1]),
                preload_content=False,
                decode_content=False,
            )
            response = self._read(answer, name)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._failed(error, name) from error
        if not 200 <= response.status < 300:
            raise self._refused(response, name)
        return response

    def watch(
        self,
        path: str,
        *,
        query: Query | None = None,
        resource_version: str,
        timeout_seconds: int,
        inactivity_seconds: float = 70.0,
    ) -> WatchStream:
        """A watch with bookmarks from `resource_version` on; nothing is sent before it is iterated.

        The server ends it after `timeout_seconds`; we end it when nothing came for `inactivity_seconds`, which
        must be more than the minute that lies between two bookmarks (else a healthy, quiet watch would end).
        """
        access = self._credentials.access()
        asked = {
            **(query or {}),
            "watch": True,
            "allowWatchBookmarks": True,
            "resourceVersion": resource_version,
            "timeoutSeconds": timeout_seconds,
        }
        name = f"GET {path} (watch)"
        return WatchStream(
            _watch_connection(access),
            name=name,
            target=_target(access, path, asked),
            headers=self._headers(None),
            inactivity_seconds=inactivity_seconds,
            refuse=lambda answer: self._refused(self._read(answer, name), name),
            failed=lambda error: self._failed(error, name),
        )

    def _connections(self) -> tuple[HTTPConnectionPool, Access]:
        """The pool, made anew when the server or its certificates changed, or in the child of a fork."""
        access, pool = self._credentials.access(), self._pool
        if pool is not None and access is self._access and self._process == os.getpid():
            return pool, access
        with self._lock:
            if self._pool is None or access is not self._access or self._process != os.getpid():
                self._pool = _connection_pool(access)
                self._access = access
                self._process = os.getpid()
            return self._pool, access

    def _headers(self, content_type: str | None) -> dict[str, str]:
        headers = {"Accept": JSON, "Accept-Encoding": "identity", "User-Agent": self.user_agent}
        if content_type is not None:
            headers["Content-Type"] = content_type
        if (authorization := self._credentials.authorization()) is not None:
            headers["Authorization"] = authorization
        return headers

    def _read(self, answer: Any, name: str) -> Response:
        """The whole body, or ResponseTooLarge: then the connection goes too, for its rest is unread."""
        body = answer.read(self._max_body + 1)
        if len(body) > self._max_body:
            answer.close()
            raise ResponseTooLarge(
                f"an answer of more than {self._max_body} bytes", status=answer.status, request=name
            )
        answer.release_conn()
        return Response(answer.status, {key.lower(): value for key, value in answer.headers.items()}, body)

    def _refused(self, response: Response, name: str) -> ApiError:
        error = api_error(response.status, response.headers, response.body, request=name)
        if isinstance(error, Unauthorized):
            ends = expiry(self._credentials.authorization())
            if ends is not None and ends < time.time():
                error.message += f" (the token of {self._credentials.source} expired at {_moment(ends)})"
            self._credentials.refresh()
        return error

    def _failed(self, error: Exception, name: str) -> ConnectionFailed:
        if isinstance(error, urllib3.exceptions.SSLError):
            self._credentials.refresh()
        return ConnectionFailed(_explain(error), sent=not _not_sent(error), request=name)


def _connection_pool(access: Access) -> HTTPConnectionPool:
    # block=False: a thread more than the pool holds gets a connection of its own and never waits.
    settings: dict[str, Any] = {"maxsize": _POOL_SIZE, "block": False, "socket_options": _REQUEST_SOCKET}
    if access.tls is None:
        return HTTPConnectionPool(access.host, access.port, **settings)
    return HTTPSConnectionPool(
        access.host, access.port, ssl_context=access.tls, server_hostname=access.server_name, **settings
    )


def _watch_connection(access: Access) -> HTTPConnection:
    settings: dict[str, Any] = {"timeout": DEFAULT_TIMEOUT[0], "socket_options": _WATCH_SOCKET}
    if access.tls is None:
        return HTTPConnection(access.host, access.port, **settings)
    return HTTPSConnection(
        access.host, access.port, ssl_context=access.tls, server_hostname=access.server_name, **settings
    )


def _target(access: Access, path: str, query: Query | None) -> str:
    """Raises ValueError for a path that could mean another object than the caller thinks."""
    if not _PATH.fullmatch(path) or "/../" in f"{path}/" or "/./" in f"{path}/":
        raise ValueError(f"not a path of the Kubernetes API: {path!r}")
    if not query:
        return access.prefix + path
    words = {key: str(value).lower() if isinstance(value, bool) else value for key, value in query.items()}
    return f"{access.prefix}{path}?{urlencode(words)}"


def _not_sent(error: Exception) -> bool:
    """Whether the request certainly did not leave this machine."""
    unconnected = (
        urllib3.exceptions.NewConnectionError,
        urllib3.exceptions.ConnectTimeoutError,
        urllib3.exceptions.NameResolutionError,
    )
    return isinstance(error, unconnected) or "CERTIFICATE_VERIFY_FAILED" in str(error)


def _explain(error: Exception) -> str:
    """The error in one line, with a reason and without Python in it."""
    text = " ".join(str(error).split())
    # urllib3 puts its own object's repr before the reason.
    return re.sub(r"^<?\S*(HTTPS?Connection(Pool)?)\([^)]*\)>?: ", "", text)[:300] or type(error).__name__


def _moment(seconds: float) -> str:
    try:
        return rfc3339(datetime.fromtimestamp(seconds, UTC))
    except (OverflowError, ValueError, OSError):
        return "an impossible time"
