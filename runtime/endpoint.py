"""The HTTP endpoint of our processes: `/metrics`, `/healthz`, `/readyz`, over TLS where asked for.

Not prometheus_client's own server, because one silent client stalls its TLS accept loop, and over plain
HTTP it bounds neither time nor threads. Here the accept loop does nothing but accept; each connection has
a thread, a slot, and a deadline for its handshake and for each request's head. When every slot is taken,
the connection that has waited longest without a request under way gives up its own, so idle or hostile
clients cannot lock out a scrape.
"""

import contextlib
import errno
import gzip
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from runtime.http_request import BadRequest, Head, read_head
from runtime.listener import Certificate, ListenError, TlsFiles, listen

__all__ = ["Endpoint", "ListenError", "Stats", "TlsFiles"]

Metrics = Callable[[str], tuple[str, bytes]]
Check = Callable[[], tuple[bool, str]]

HEAD_SECONDS = 2.0
"""For a handshake, and for a request's head from its first byte on."""
IDLE_SECONDS = 75.0
"""Between two requests of a connection: longer than the minute between two scrapes of Prometheus."""
SEND_SECONDS = 10.0
_CLOSE_SECONDS = 0.9
_EVICTION_SECONDS = 0.2
_STUCK_SECONDS = 1.0

_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_TEXT = "text/plain; charset=utf-8"

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Stats:
    """Totals since the start, for metrics."""

    requests: int = 0
    errors: int = 0
    timeouts: int = 0
    evictions: int = 0
    refusals: int = 0
    handshake_failures: int = 0


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    content_type: str = _TEXT
    extra: tuple[str, ...] = ()


class _Connection:
    """One client, since when it is in its present state, and whether a request of it is being answered."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.since = time.monotonic()
        self.answering = False

    def turn(self, *, answering: bool) -> None:
        self.since, self.answering = time.monotonic(), answering

    def shut(self) -> None:
        with contextlib.suppress(OSError):
            # Not SSLSocket.shutdown, which takes the TLS object from under the thread that reads.
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)


class Endpoint:
    """Serves until closed. `metrics` is given the Accept header and returns content type and body."""

    def __init__(
        self,
        address: str,
        port: int,
        *,
        metrics: Metrics,
        healthz: Check,
        readyz: Check,
        tls: TlsFiles | None = None,
        slots: int = 32,
    ) -> None:
        """Binds. An empty address is every address, port 0 any free port. Raises ListenError."""
        self.stats = Stats()
        self._metrics = metrics
        self._checks = {"/healthz": healthz, "/readyz": readyz}
        self._certificate = Certificate(tls) if tls else None
        self._listener = listen(address, port)
        self.port: int = self._listener.getsockname()[1]
        self._slots = slots
        self._lock = threading.Condition()
        self._connections: set[_Connection] = set()
        self._threads: set[threading.Thread] = set()
        self._closing = threading.Event()
        self._acceptor = threading.Thread(target=self._accept, name="endpoint", daemon=True)
        self._zipped: tuple[bytes, bytes] = (b"", b"")

    def start(self) -> None:
        self._acceptor.start()

    def close(self) -> None:
        """Stop within a second: what is being answered may finish, what waits is cut off."""
        self._closing.set()
        deadline = time.monotonic() + _CLOSE_SECONDS
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        if self._acceptor.is_alive():
            self._acceptor.join(_CLOSE_SECONDS)
        self._listener.close()
        with self._lock:
            threads = list(self._threads)
            for connection in self._connections:
                if not connection.answering:
                    connection.shut()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            for connection in self._connections:
                connection.shut()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                if not self._closing.is_set() and error.errno not in (errno.ECONNABORTED, errno.EINTR):
                    # Out of descriptors, most likely: wait for some to come free, but not for the end of us.
                    log.warning("cannot accept a connection", extra={"why": str(error)})
                    self._closing.wait(0.1)
                continue
            connection = _Connection(sock)
            if self._take_slot(connection):
                self._spawn(connection)
            else:
                self.stats.refusals += 1
                sock.close()

    def _take_slot(self, connection: _Connection) -> bool:
        with self._lock:
            if len(self._connections) >= self._slots:
                self._evict()
                if not self._lock.wait_for(lambda: len(self._connections) < self._slots, _EVICTION_SECONDS):
                    return False
            self._connections.add(connection)
            return True

    def _evict(self) -> None:
        """Cut off who has waited longest; whoever is being answered only when the answer is not taken."""
        stuck = time.monotonic() - _STUCK_SECONDS
        idle = [other for other in self._connections if not other.answering or other.since < stuck]
        if idle:
            self.stats.evictions += 1
            min(idle, key=lambda other: (other.answering, other.since)).shut()

    def _spawn(self, connection: _Connection) -> None:
        thread = threading.Thread(target=self._serve, args=(connection,), name="endpoint client", daemon=True)
        with self._lock:
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:
            self._end(connection, thread)

    def _serve(self, connection: _Connection) -> None:
        try:
            self._converse(connection)
        except TimeoutError:
            self.stats.timeouts += 1
        except OSError:
            pass  # The client went away, or lost its slot.
        except Exception:
            self.stats.errors += 1
            log.exception("a request failed in a way that was not foreseen")
        finally:
            self._end(connection, threading.current_thread())

    def _end(self, connection: _Connection, thread: threading.Thread) -> None:
        with contextlib.suppress(OSError):
            connection.sock.close()
        with self._lock:
            self._connections.discard(connection)
            self._threads.discard(thread)
            self._lock.notify_all()

    def _converse(self, connection: _Connection) -> None:
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._certificate is not None and not self._handshake(connection, self._certificate):
            return
        buffer = bytearray()
        idle = HEAD_SECONDS
        while not self._closing.is_set():
            try:
                head = read_head(connection.sock, buffer, idle=idle, seconds=HEAD_SECONDS)
            except BadRequest as error:
                _send(
                    connection.sock, _render(_Answer(error.status, f"{error}\n".encode()), None, keep=False)
                )
                return
            if head is None:
                return
            connection.turn(answering=True)
            keep = head.keep_alive and not self._closing.is_set()
            _send(connection.sock, _render(self._answer(head), head, keep=keep))
            if not keep:
                return
            connection.turn(answering=False)
            idle = IDLE_SECONDS

    def _handshake(self, connection: _Connection, certificate: Certificate) -> bool:
        connection.sock.settimeout(HEAD_SECONDS)
        try:
            wrapped = certificate.context().wrap_socket(
                connection.sock, server_side=True, do_handshake_on_connect=False
            )
            with self._lock:
                connection.sock = wrapped
            wrapped.do_handshake()
        except ssl.SSLError as error:
            self.stats.handshake_failures += 1
            log.debug("TLS handshake failed", extra={"why": str(error)})
            return False
        return True

    def _answer(self, head: Head) -> _Answer:
        self.stats.requests += 1
        if head.path != "/metrics" and head.path not in self._checks:
            return _Answer(404, b"not found: /metrics, /healthz and /readyz are here\n")
        if head.method not in ("GET", "HEAD"):
            return _Answer(405, b"only GET and HEAD\n", extra=("Allow: GET, HEAD",))
        try:
            return self._scrape(head) if head.path == "/metrics" else self._check(head.path)
        except Exception:
            self.stats.errors += 1
            log.exception("an answer could not be made", extra={"path": head.path})
            return _Answer(503 if head.path in self._checks else 500, b"internal error, see the log\n")

    def _check(self, path: str) -> _Answer:
        good, why = self._checks[path]()
        return _Answer(200 if good else 503, f"{why or ('ok' if good else 'failed')}\n".encode())

    def _scrape(self, head: Head) -> _Answer:
        content_type, body = self._metrics(head.headers.get("accept", ""))
        vary = "Vary: Accept, Accept-Encoding"
        if not head.accepts_gzip:
            return _Answer(200, body, content_type, (vary,))
        # Rendered bytes are kept per snapshot, so the same object comes again: zip it once.
        known, zipped = self._zipped
        if known is not body:
            # Level 1: a tenth of the time of level 9, for a quarter more bytes.
            zipped = gzip.compress(body, compresslevel=1)
            self._zipped = (body, zipped)
        return _Answer(200, zipped, content_type, (vary, "Content-Encoding: gzip"))


def _render(answer: _Answer, head: Head | None, *, keep: bool) -> bytes:
    lines = [
        f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}",
        f"Content-Type: {answer.content_type}",
        f"Content-Length: {len(answer.body)}",
        f"Connection: {'keep-alive' if keep else 'close'}",
        "X-Content-Type-Options: nosniff",
        *answer.extra,
    ]
    body = b"" if head is not None and head.method == "HEAD" else answer.body
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body


def _send(sock: socket.socket, data: bytes) -> None:
    """All of `data` in SEND_SECONDS; `sendall` over TLS would grant that to every record anew."""
    deadline = time.monotonic() + SEND_SECONDS
    view = memoryview(data)
    while view:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        view = view[sock.send(view[: 1 << 18]) :]
        if view and time.monotonic() > deadline:
            raise TimeoutError
