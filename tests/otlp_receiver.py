"""An OTLP trace receiver on loopback, for both encodings, that can be well, slow, busy, hostile or away.

    with OtlpReceiver("grpc") as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        ...
        receiver.spans()[(trace_hex, span_hex)].attributes

It keeps its port while its mode changes, so that a collector can go away and come back.
"""

import gzip
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Protocol, Self

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

PATH = "/v1/traces"
_LONGEST_WAIT = 60.0  # seconds that a slow answer waits to be released


class Mode(Enum):
    OK = "takes everything"
    SLOW = "takes everything, and answers when `release` is called"
    BUSY = "answers 503 or UNAVAILABLE: try again"
    REFUSE = "answers 400 or INVALID_ARGUMENT: do not try again"
    DROP = "accepts connections and resets them"
    DOWN = "nothing listens"


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """A span as it was on the wire; ids are hex digits, `parent_id` is empty for a root."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    links: tuple[tuple[str, str, dict[str, Any]], ...]
    status: Literal["unset", "ok", "error"]
    status_message: str
    resource: dict[str, Any]


class OtlpReceiver:
    """Listens from the start, in `mode`. `requests` and `headers` are what was taken, in order of arrival."""

    def __init__(
        self,
        protocol: Literal["http/protobuf", "grpc"] = "http/protobuf",
        *,
        mode: Mode = Mode.OK,
        host: str = "127.0.0.1",
    ) -> None:
        self.protocol = protocol
        self.requests: list[ExportTraceServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.attempts = 0
        self._lock = threading.Lock()
        self._host = host
        self._released = threading.Event()
        self._mode = Mode.DOWN
        self._listener: _Listener = _Held(host, 0)
        self.port = self._listener.port
        self.mode = mode

    @property
    def endpoint(self) -> str:
        return f"http://{self._host}:{self.port}"

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._released.set()
        self._listener.close()
        self._released = threading.Event()
        self._mode = mode
        self._listener = self._listen(mode)

    def release(self) -> None:
        """Let the slow answers go out, those that wait and those to come."""
        self._released.set()

    def spans(self) -> dict[tuple[str, str], ReceivedSpan]:
        """What arrived, folded by trace and span id as a backend does; what arrives twice must be the same.

        But for `service.instance.id`: who tells it may be another process.
        """
        folded: dict[tuple[str, str], ReceivedSpan] = {}
        for span in self.arrivals():
            before = folded.setdefault((span.trace_id, span.span_id), span)
            assert _without_teller(before) == _without_teller(span), (
                f"two different spans under one id: {before} and {span}"
            )
        return folded

    def arrivals(self) -> list[ReceivedSpan]:
        """Every span in order of arrival, repeats included."""
        with self._lock:
            requests = list(self.requests)
        return [span for request in requests for span in _spans_of(request)]

    def close(self) -> None:
        self.mode = Mode.DOWN
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self, body: bytes, headers: dict[str, str]) -> Mode:
        """One request: kept unless the mode says no, and answered by the mode that is returned."""
        mode, released = self._mode, self._released
        request = ExportTraceServiceRequest.FromString(body)
        with self._lock:
            self.attempts += 1
            if mode in (Mode.OK, Mode.SLOW):
                self.requests.append(request)
                self.headers.append(headers)
        if mode is Mode.SLOW:
            released.wait(_LONGEST_WAIT)
        return mode

    def _listen(self, mode: Mode) -> "_Listener":
        if mode is Mode.DOWN:
            return _Held(self._host, self.port)
        if mode is Mode.DROP:
            return _Dropping(self._host, self.port)
        return (_Grpc if self.protocol == "grpc" else _Http)(self._host, self.port, self.take)


_Take = Callable[[bytes, dict[str, str]], Mode]


class _Listener(Protocol):
    port: int

    def close(self) -> None: ...


class _Held:
    """The port is bound but not listened on: connections are refused, and nobody else gets the port."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = _bound(host, port)
        self.port = self._socket.getsockname()[1]

    def close(self) -> None:
        self._socket.close()


class _Dropping:
    """Accepts, and resets the connection at once."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = _bound(host, port)
        self._socket.listen()
        self.port = port
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()


class _Http(ThreadingHTTPServer):
    """OTLP over HTTP/protobuf, with connections that are kept, and cut when the server closes."""

    daemon_threads = True

    def __init__(self, host: str, port: int, take: _Take) -> None:
        super().__init__((host, port), _HttpHandler)
        self.take = take
        self.port = port
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or a connection that we cut, is no error of the test."""

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


class _HttpHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != PATH:
            self._answer(404)
            return
        if self.headers["Content-Type"] != "application/x-protobuf":
            self._answer(415)
            return
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self._answer({Mode.BUSY: 503, Mode.REFUSE: 400}.get(self.server.take(body, headers), 200))

    def _answer(self, status: int) -> None:
        body = ExportTraceServiceResponse().SerializeToString() if status == 200 else b"no"
        self.send_response(status)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Grpc(TraceServiceServicer):
    """OTLP over gRPC."""

    def __init__(self, host: str, port: int, take: _Take) -> None:
        self._take = take
        self.port = port
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        add_TraceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self._server.add_insecure_port(f"{host}:{port}")
        self._server.start()

    def Export(self, request: Any, context: Any) -> ExportTraceServiceResponse:  # noqa: N802 - gRPC's name
        headers = {item.key: item.value for item in context.invocation_metadata()}
        mode = self._take(request.SerializeToString(), headers)
        if mode is Mode.BUSY:
            context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
        if mode is Mode.REFUSE:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")
        return ExportTraceServiceResponse()

    def close(self) -> None:
        self._server.stop(grace=0).wait()


def _without_teller(span: ReceivedSpan) -> ReceivedSpan:
    resource = {key: value for key, value in span.resource.items() if key != "service.instance.id"}
    return replace(span, resource=resource)


def _bound(host: str, port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    return sock


def _spans_of(request: ExportTraceServiceRequest) -> list[ReceivedSpan]:
    return [
        _received(span, _attributes(of_resource.resource.attributes))
        for of_resource in request.resource_spans
        for of_scope in of_resource.scope_spans
        for span in of_scope.spans
    ]


def _received(span: Any, resource: dict[str, Any]) -> ReceivedSpan:
    return ReceivedSpan(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        name=span.name,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        links=tuple(
            (link.trace_id.hex(), link.span_id.hex(), _attributes(link.attributes)) for link in span.links
        ),
        status=("unset", "ok", "error")[span.status.code],
        status_message=span.status.message,
        resource=resource,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return tuple(_value(item) for item in value.array_value.values)
    return getattr(value, kind) if kind else None
