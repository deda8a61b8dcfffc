"""One watch: its own connection, read line by line, ended by silence, by the server or by another thread."""

import contextlib
import math
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.response import HTTPResponse

from runtime.api_errors import ApiError, ConnectionFailed, ResponseTooLarge

MAX_LINE = 16 << 20
"""Bytes. etcd takes objects of 1.5 MiB; JSON may be a few times that."""

_BLOCK = 1 << 16
_HEAD_SECONDS = 30.0
_SETTLE_SECONDS = 1.0

# struct tcp_info, include/uapi/linux/tcp.h: the state is the first byte; twelve 32-bit words from byte 8 on
# end with last_data_recv and last_ack_recv, in milliseconds before now.
_TCP_INFO = struct.Struct("=B7x11I2I")
_ESTABLISHED = 1


class WatchStream:
    """Iterate once: the lines of a watch, without their newline. The connection is opened by the first one.

    Iteration ends when the server ends the watch or `close` is called. It raises ApiError when the server
    refuses the watch (Gone for a resourceVersion that is too old), ConnectionFailed when the connection
    breaks or stays silent for longer than the inactivity limit, ResponseTooLarge for a line over MAX_LINE.
    """

    def __init__(
        self,
        connection: HTTPConnection,
        *,
        name: str,
        target: str,
        headers: dict[str, str],
        inactivity_seconds: float,
        refuse: Callable[[HTTPResponse], ApiError],
        failed: Callable[[Exception], ConnectionFailed],
    ) -> None:
        """`refuse` makes the error of an answer that is not a success, `failed` that of no answer."""
        self._connection = connection
        self._target = target
        self._headers = headers
        self._inactivity = inactivity_seconds
        self._name = name
        self._refuse = refuse
        self._failed = failed
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._closed = False
        self._waiting = False
        self._settled = math.inf

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._lines(self._open())
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            # ValueError: what the standard library makes of a socket that was shut under it.
            if not self._closed:
                raise self._silence(error) or self._failed(error) from error
        finally:
            self._waiting = False
            with self._lock:
                self._socket = None
            self._connection.close()

    def close(self) -> None:
        """End the iteration, from whatever thread, at once."""
        with self._lock:
            self._closed = True
            if self._socket is not None:
                _shut(self._socket)

    def proven_alive_age(self) -> float | None:
        """Seconds since the peer last proved to be there, by data or by the acknowledgement of a keepalive.

        None while that cannot be said: not connected, open for less than a second (what happened while we were
        away may still be on its way), something received and not yet read, not Linux.
        """
        with self._lock:
            sock = self._socket
            if sock is None or not self._waiting or time.monotonic() < self._settled:
                return None
            with contextlib.suppress(OSError, AttributeError, struct.error):
                info = _TCP_INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
                if info[0] == _ESTABLISHED:
                    return float(min(info[-2:])) / 1000
        return None

    def _open(self) -> HTTPResponse:
        self._connection.connect()
        sock = self._connection.sock
        assert sock is not None
        with self._lock:
            if self._closed:
                raise OSError("closed")
            self._socket = sock
        self._connection.timeout = _HEAD_SECONDS
        self._connection.request(
            "GET", self._target, headers=self._headers, preload_content=False, decode_content=False
        )
        response = self._connection.getresponse()
        if response.status != 200:
            raise self._refuse(response)
        sock.settimeout(self._inactivity)
        self._settled = time.monotonic() + _SETTLE_SECONDS
        return response

    def _lines(self, response: HTTPResponse) -> Iterator[bytes]:
        buffer = bytearray()
        while not self._closed:
            self._waiting = True
            block = response.read1(_BLOCK)
            self._waiting = False
            if not block:
                return
            searched = len(buffer)
            buffer += block
            while (end := buffer.find(b"\n", searched)) >= 0:
                line = bytes(buffer[:end])
                del buffer[: end + 1]
                searched = 0
                if line.strip():
                    yield line
                if self._closed:
                    return
            if len(buffer) > MAX_LINE:
                raise ResponseTooLarge(f"a line of more than {MAX_LINE >> 20} MiB", request=self._name)

    def _silence(self, error: Exception) -> ConnectionFailed | None:
        if not isinstance(error, TimeoutError | urllib3.exceptions.ReadTimeoutError):
            return None
        return ConnectionFailed(f"nothing came for {self._inactivity:g} s", sent=True, request=self._name)


def _shut(sock: socket.socket) -> None:
    """Wake whoever reads. Not `SSLSocket.shutdown`, which takes the TLS object from under the reader."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
