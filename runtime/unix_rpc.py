"""gRPC over unix sockets, thin: typed methods, a client whose calls have deadlines and raise typed errors.

grpc itself costs 9 MiB, which not every process needs: it is imported with the first client or server.
"""

from __future__ import annotations

import errno
import os
import socket as sockets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from runtime.protobuf import Message

REPLY_LIMIT = 16 * 2**20
"""Bytes of one message. The kubelet's own clients of pod resources take as many."""

Request = TypeVar("Request", bound=Message)
Answer = TypeVar("Answer", bound=Message)

_CHANNEL_OPTIONS = (
    # Else channels to one path share their connection and its back-off, so that a new client is not a new try.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class RpcError(Exception):
    """A call failed. `code` is the name of the gRPC status, such as `INTERNAL`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class UnsupportedError(RpcError):
    """The other side does not know this method (UNIMPLEMENTED)."""


class UnreachableError(RpcError):
    """Nobody answers at the socket (UNAVAILABLE): the connection was refused, or it was lost."""


class NoSocketError(UnreachableError):
    """The same, and there is no socket file either."""


class DeadlineError(RpcError):
    """Somebody is there, and did not answer in time (DEADLINE_EXCEEDED)."""


class RateLimitedError(RpcError):
    """Too many calls just now (RESOURCE_EXHAUSTED): the same call later may succeed."""


class NotFoundError(RpcError):
    """What was asked for is not there."""


_ERRORS: dict[str, type[RpcError]] = {
    "UNIMPLEMENTED": UnsupportedError,
    "UNAVAILABLE": UnreachableError,
    "DEADLINE_EXCEEDED": DeadlineError,
    "RESOURCE_EXHAUSTED": RateLimitedError,
    "NOT_FOUND": NotFoundError,
}


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Answer]):
    """One method of a service; `path` is `/PACKAGE.SERVICE/METHOD`."""

    path: str
    request: type[Request]
    answer: type[Answer]


class Stream(Generic[Answer]):
    """The answers of a streaming call, for one thread; any thread may cancel it, which ends the iteration."""

    def __init__(self, call: Any, path: Path) -> None:
        self._call = call
        self._path = path
        self._cancelled = False

    def __iter__(self) -> Iterator[Answer]:
        """Raises RpcError when the other side ends the stream with an error or the connection is lost."""
        grpc = imported_grpc()
        try:
            yield from self._call
        except grpc.RpcError as error:
            if not self._cancelled:
                raise _typed(error, self._path) from None

    def cancel(self) -> None:
        """End the call. Returns at once."""
        self._cancelled = True
        self._call.cancel()


class UnixClient:
    """Calls to the server at one socket. Connects when first called, and again after the connection was lost."""

    def __init__(self, path: Path, *, reply_limit: int = REPLY_LIMIT) -> None:
        """`path` is at most 107 bytes long, as for any unix socket. Raises ValueError."""
        if len(os.fsencode(path)) > 107:
            raise ValueError(f"{path}: a unix socket's path has at most 107 bytes")
        self.path = path
        options = [*_CHANNEL_OPTIONS, ("grpc.max_receive_message_length", reply_limit)]
        self._channel = imported_grpc().insecure_channel(
            f"unix:{quote(str(path.absolute()))}", options=options
        )

    def __enter__(self) -> UnixClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(
        self, method: Method[Request, Answer], request: Request, *, timeout: float, wait: bool = False
    ) -> Answer:
        """The answer, within `timeout` seconds. With `wait`, keep trying to connect until then.

        Raises RpcError; NoSocketError, UnreachableError, DeadlineError, UnsupportedError, RateLimitedError
        and NotFoundError say more. After `close` any call ends with code CANCELLED.
        """
        try:
            answer: Answer = self._unary(method)(request, timeout=timeout, wait_for_ready=wait)
        except imported_grpc().RpcError as error:
            raise _typed(error, self.path) from None
        except ValueError as error:  # grpc's word for a channel that is closed
            raise RpcError("CANCELLED", str(error)) from None
        return answer

    def ask(
        self,
        method: Method[Request, Answer],
        request: Request,
        *,
        timeout: float,
        done: Callable[[Answer | RpcError], None],
    ) -> None:
        """Like `call`, but returns at once: `done` gets the answer or the error, on a thread of grpc's."""
        try:
            pending = self._unary(method).future(request, timeout=timeout)
        except ValueError as error:
            done(RpcError("CANCELLED", str(error)))
            return

        def finish(call: Any) -> None:
            grpc = imported_grpc()
            try:
                done(call.result())
            except (grpc.RpcError, grpc.FutureCancelledError) as error:
                done(_typed(error, self.path))

        pending.add_done_callback(finish)

    def stream(
        self, method: Method[Request, Answer], request: Request, *, timeout: float | None = None
    ) -> Stream[Answer]:
        """The answers, for at most `timeout` seconds."""
        start = self._channel.unary_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.answer.FromString,
        )
        return Stream(start(request, timeout=timeout), self.path)

    def close(self) -> None:
        """Drop the connection; calls under way end with code CANCELLED."""
        self._channel.close()

    def _unary(self, method: Method[Request, Answer]) -> Any:
        return self._channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.answer.FromString,
        )


Identity = tuple[int, int, int]


def identity(path: Path) -> Identity | None:
    """What tells a file from the next one at its path; None where there is none or it cannot be seen.

    The inode's number alone does not, since file systems give a number away again at once.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def accepts(path: Path) -> bool | None:
    """Whether a connection to this socket is accepted; None if the queue of those who wait to be is full.

    A process that is stopped, or stuck in the kernel, accepts nothing, yet the kernel lets callers in until
    its queue is full; and a full one is no different from a refusal to those who ask through gRPC.
    """
    with sockets.socket(sockets.AF_UNIX) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(str(path))
    return None if code == errno.EAGAIN else code == 0


def imported_grpc() -> Any:
    """The module grpc, with its own logging off."""
    # Its core writes to standard error past every logger; what matters reaches us as status and details.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import grpc

    return grpc


def _typed(error: Any, path: Path) -> RpcError:
    """Our error for grpc's."""
    code = error.code() if hasattr(error, "code") else None
    name = code.name if code is not None else "CANCELLED"
    details = (error.details() if hasattr(error, "details") else None) or str(error)
    if name == "UNAVAILABLE" and not path.exists():
        return NoSocketError(name, f"no socket {path}")
    if name == "RESOURCE_EXHAUSTED" and "larger than max" in details:
        return RpcError(name, details)  # our own limit, which asking again later would meet again
    return _ERRORS.get(name, RpcError)(name, details)
