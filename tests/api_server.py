"""A loopback HTTP server that answers as a test tells it to: refusals, streams, silence, broken connections."""

import contextlib
import json
import queue
import socket
import ssl
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from runtime.kubernetes import Session
from runtime.kubernetes_auth import Access


@dataclass(frozen=True)
class Recorded:
    """A request as the server got it; header names in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


class Stream:
    """A chunked body that the test writes while it is being read."""

    _END = b"end"
    _DROP = b"drop"

    def __init__(self) -> None:
        self._parts: queue.Queue[tuple[bytes, bytes]] = queue.Queue()
        self.opened = threading.Event()
        self.closed = threading.Event()

    def line(self, *objects: Any) -> None:
        """Each as a line; bytes as they are."""
        for item in objects:
            text = item if isinstance(item, bytes) else json.dumps(item).encode()
            self._parts.put((b"", text + b"\n"))

    def raw(self, data: bytes) -> None:
        self._parts.put((b"", data))

    def end(self) -> None:
        """The orderly end of the body."""
        self._parts.put((self._END, b""))

    def drop(self) -> None:
        """The connection breaks."""
        self._parts.put((self._DROP, b""))

    def parts(self) -> Iterator[bytes | None]:
        """None for a break."""
        while True:
            what, data = self._parts.get()
            if what == self._END:
                return
            yield None if what == self._DROP else data
            if what == self._DROP:
                return


@dataclass
class Reply:
    """`body` of bytes, a Stream, or None for a connection that is cut instead of an answer."""

    body: bytes | Stream | None = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


def status_object(code: int, reason: str, message: str = "", **details: Any) -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message or reason,
        "details": details,
    }


class ScriptedApi:
    """Answers of a method are given in their order, the last one again and again; `route` overrides them all."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[Recorded] = []
        self.route: Callable[[Recorded], Reply] | None = None
        self.tokens = ["test-token"]
        self.refreshed = 0
        self._answers: defaultdict[str, list[Reply]] = defaultdict(list)
        self._server = _Server(self, tls)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def answer(
        self, method: str, body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        encoded = body if body is None or isinstance(body, bytes | Stream) else json.dumps(body).encode()
        self._answers[method].append(Reply(encoded, status, headers or {}))

    def refuse(self, method: str, code: int, reason: str, message: str = "", **details: Any) -> None:
        self.answer(method, status_object(code, reason, message, **details), status=code)

    def reply(self, request: Recorded) -> Reply:
        self.requests.append(request)
        if self.route is not None:
            return self.route(request)
        answers = self._answers[request.method]
        if not answers:
            return Reply(b"no answer was scripted", 500)
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def session(self, access: Access | None = None) -> Session:
        return Session(_Credentials(self, access), user_agent="sickbay-test/1")

    def access(self) -> Access:
        return Access("127.0.0.1", self.port, "", None)

    @property
    def connections(self) -> int:
        """How many connections there have been."""
        return self._server.accepted

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._server.cut_all()


class _Credentials:
    source = "a test"

    def __init__(self, api: ScriptedApi, access: Access | None) -> None:
        self._api = api
        self._access = access or api.access()

    def access(self) -> Access:
        return self._access

    def authorization(self) -> str | None:
        return f"Bearer {self._api.tokens[0]}"

    def refresh(self) -> None:
        self._api.refreshed += 1
        if len(self._api.tokens) > 1:
            self._api.tokens.pop(0)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, api: ScriptedApi, tls: ssl.SSLContext | None) -> None:
        self.api = api
        self.tls = tls
        self.open: set[socket.socket] = set()
        self.accepted = 0
        super().__init__(("127.0.0.1", 0), _Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        sock: socket.socket = request
        self.accepted += 1
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls is not None:
            try:
                sock = self.tls.wrap_socket(sock, server_side=True)
            except (ssl.SSLError, OSError):
                return
        self.open.add(sock)
        with contextlib.suppress(OSError, ValueError):
            super().finish_request(sock, client_address)
        self.open.discard(sock)

    def cut_all(self) -> None:
        for sock in list(self.open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        setattr(self, f"do_{self.command}", self._handle)
        return True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _handle(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {key.lower(): value for key, value in self.headers.items()}
        request = Recorded(self.command, url.path, dict(parse_qsl(url.query)), headers, body)
        reply = self.server.api.reply(request)
        if reply.body is None:
            self._cut()
        elif isinstance(reply.body, Stream):
            self._stream(reply, reply.body)
        else:
            self._head(reply, {"Content-Length": str(len(reply.body))})
            self.wfile.write(reply.body)

    def _head(self, reply: Reply, extra: Mapping[str, str]) -> None:
        self.send_response(reply.status)
        for name, value in {**reply.headers, **extra}.items():
            self.send_header(name, value)
        self.end_headers()

    def _stream(self, reply: Reply, stream: Stream) -> None:
        self._head(reply, {"Transfer-Encoding": "chunked"})
        self.wfile.flush()
        stream.opened.set()
        try:
            for part in stream.parts():
                if part is None:
                    self._cut()
                    return
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True
        finally:
            stream.closed.set()

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
