"""A gRPC server on a unix socket, thin: typed methods in, a socket file that comes and goes with the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from runtime.unix_rpc import Answer, Method, Request, RpcError, imported_grpc


class RefusedError(RpcError):
    """Raised by a server's method: the caller gets this status and message."""


class BindError(OSError):
    """A server cannot listen at its path."""


class Connection(Protocol):
    """A call as its server sees it (grpc.ServicerContext)."""

    def is_active(self) -> bool:
        """Whether the caller still waits."""

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Have this called when the call ends; False if it has ended already."""


@dataclass(frozen=True, slots=True)
class Handler:
    """A method and what answers it."""

    path: str
    build: Callable[[Any], Any]


def unary(method: Method[Request, Answer], answer: Callable[[Request, Connection], Answer]) -> Handler:
    """Serve a method that has one answer; `answer` may raise RefusedError."""

    def respond(request: Request, context: Any) -> Answer:
        try:
            return answer(request, context)
        except RefusedError as error:
            context.abort(getattr(imported_grpc().StatusCode, error.code), error.message)
            raise

    return Handler(
        method.path,
        lambda grpc: grpc.unary_unary_rpc_method_handler(
            respond, method.request.FromString, method.answer.SerializeToString
        ),
    )


def streaming(
    method: Method[Request, Answer], answers: Callable[[Request, Connection], Iterator[Answer]]
) -> Handler:
    """Serve a method with a stream of answers. The iterator keeps one of the server's threads until it ends."""
    return Handler(
        method.path,
        lambda grpc: grpc.unary_stream_rpc_method_handler(
            answers, method.request.FromString, method.answer.SerializeToString
        ),
    )


class UnixServer:
    """Serves methods at a socket. A file at its path is replaced, and whatever is there goes when it stops."""

    def __init__(self, path: Path, handlers: Sequence[Handler], *, threads: int = 8) -> None:
        grpc = imported_grpc()
        self.path = path
        services: dict[str, dict[str, Any]] = {}
        for handler in handlers:
            _, service, name = handler.path.split("/")
            services.setdefault(service, {})[name] = handler.build(grpc)
        self._server = grpc.server(
            ThreadPoolExecutor(threads, thread_name_prefix=path.name),
            handlers=[grpc.method_handlers_generic_handler(name, table) for name, table in services.items()],
        )

    def start(self) -> None:
        """Listen; returns when connections are accepted. Raises BindError."""
        try:
            self.path.unlink(missing_ok=True)
            self._server.add_insecure_port(f"unix:{quote(str(self.path.absolute()))}")
        except OSError as error:
            raise BindError(f"{self.path}: {error.strerror}") from None
        except RuntimeError as error:
            reason = "no such folder" if not self.path.parent.is_dir() else str(error).partition(";")[0]
            raise BindError(f"{self.path}: {reason}") from None
        self._server.start()

    def stop(self) -> None:
        """End all calls and connections at once, and remove the socket file."""
        self._server.stop(None).wait()
        self.path.unlink(missing_ok=True)
