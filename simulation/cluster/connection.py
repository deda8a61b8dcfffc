"""One client's connection: requests in, one at a time; answers, streams and injected trouble out.

Written by hand on asyncio, since the standard library's HTTP server needs a thread for every connection and most of a
millisecond for every request, and 5,000 agents hold a connection each.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol, cast

import msgspec

from simulation.cluster import handlers
from simulation.cluster.errors import SlowConflictError, status_of
from simulation.cluster.faults import Kind, Strike
from simulation.cluster.interface import StoreError
from simulation.cluster.records import Writer
from simulation.cluster.requests import Call, Request, call_of
from simulation.cluster.selectors import selection
from simulation.cluster.store import ClusterStore
from simulation.cluster.stream import Stream
from simulation.cluster.timers import Timers
from simulation.cluster.watching import Watch, too_old, wants_initial
from simulation.cluster.wire import (
    MAX_BODY,
    MAX_HEAD,
    Answer,
    RequestReader,
    WireError,
    response,
    stream_head,
)

log = logging.getLogger(__name__)

WRITE_BUFFER = 4 << 20
"""Bytes that wait for a slow client before its watch pauses."""


class Host(Protocol):
    """What a connection needs of its server."""

    store: ClusterStore
    timers: Timers

    def strike(self, call: Call) -> Strike: ...

    def elsewhere(self, request: Request) -> Answer: ...

    def record(self, request: Request, call: Call | None, code: int, strike: Strike) -> None: ...

    def opened(self, connection: Connection) -> bool: ...

    def closed(self, connection: Connection) -> None: ...

    def watching(self, stream: Stream, *, on: bool) -> None: ...


class Connection(asyncio.Protocol):
    """Speaks HTTP/1.1 with keep-alive."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._reader = RequestReader()
        self._transport: asyncio.Transport | None = None
        self._busy = False
        self.stream: Stream | None = None
        self.touched = asyncio.get_running_loop().time()
        """When something last came, or was answered, in the loop's time."""

    @property
    def waiting(self) -> bool:
        """Whether the client has begun a request and not ended it."""
        return not self._busy and self._reader.pending > 0

    @property
    def idle(self) -> bool:
        return not self._busy

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER)
        if not self._host.opened(self):
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.stream is not None:
            self._host.watching(self.stream, on=False)
            self.stream.close()
        self._transport = None
        self._host.closed(self)

    def data_received(self, data: bytes) -> None:
        self.touched = asyncio.get_running_loop().time()
        self._reader.feed(data)
        if not self._busy:
            self._next()
        elif self._reader.pending > MAX_BODY + MAX_HEAD:
            self.abort()

    def pause_writing(self) -> None:
        if self.stream is not None:
            self.stream.pause()

    def resume_writing(self) -> None:
        if self.stream is not None:
            self.stream.resume()

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _next(self) -> None:
        """Serve the requests that are complete, until one takes its time."""
        while not self._busy and self._transport is not None:
            try:
                request = self._reader.next()
            except WireError as error:
                reason = "RequestEntityTooLarge" if error.status == 413 else "BadRequest"
                refused = StoreError(error.status, reason, str(error))
                self._write(response(_refusal(refused), date=self._host.store.now(), close=True))
                if self._transport is not None:
                    self._transport.close()
                return
            if request is None:
                return
            self._busy = True
            self._serve(request)

    def _serve(self, request: Request) -> None:
        call = call_of(request, self._host.store.catalogue)
        if call is None:
            self._answer(request, None, self._host.elsewhere(request), Strike())
            return
        strike = self._host.strike(call)
        if strike.delay_seconds:
            self._host.timers.later(strike.delay_seconds, lambda: self._carry_out(call, strike))
        else:
            self._carry_out(call, strike)

    def _carry_out(self, call: Call, strike: Strike) -> None:
        if self._transport is None:
            return
        if strike.kind is Kind.DROP:
            self._host.record(call.request, call, 0, strike)
            self.abort()
            return
        if call.verb == "watch":
            self._watch(call, strike)
            return
        answer, late = self._handle(call, strike)
        if strike.kind is Kind.LOSE_RESPONSE:
            self._host.record(call.request, call, 0, strike)
            self.abort()
        elif late:
            self._host.timers.later(late, lambda: self._answer(call.request, call, answer, strike))
        else:
            self._answer(call.request, call, answer, strike)

    def _handle(self, call: Call, strike: Strike) -> tuple[Answer, float]:
        """The answer, and in how many seconds of the clock it is to be sent."""
        late = strike.response_delay_seconds
        try:
            if (refused := strike.error(call.target)) is not None:
                raise refused
            return handlers.handle(self._host.store, call, strike), late
        except SlowConflictError as error:
            return _refusal(error), late + error.seconds
        except StoreError as error:
            return _refusal(error), late
        except (TypeError, AttributeError, KeyError, ValueError) as error:
            # An object whose parts are of other types than its kind's: the real server's decoder refuses it.
            log.warning("an object cannot be decoded", exc_info=True, extra={"uri": call.request.target})
            return _refusal(StoreError(400, "BadRequest", f"the object cannot be decoded: {error!r}")), late

    def _answer(self, request: Request, call: Call | None, answer: Answer, strike: Strike) -> None:
        self._host.record(request, call, answer.status, strike)
        close = request.headers.get("connection", "").lower() == "close"
        date = self._host.store.now(Writer(skew_seconds=strike.skew_seconds))
        self._write(response(answer, date=date, head_only=request.method == "HEAD", close=close))
        if close and self._transport is not None:
            self._transport.close()
        self._done()

    def _watch(self, call: Call, strike: Strike) -> None:
        query = call.request.query
        refused = strike.error(call.target)
        try:
            if refused is not None and not (too_old(refused) and strike.fault and not strike.fault.as_status):
                raise refused
            wanted = selection(
                call.resource,
                namespace=call.namespace,
                name=call.name,
                labels=query.get("labelSelector", ""),
                fields=query.get("fieldSelector", ""),
            )
            initial = wants_initial(query)
            version = query.get("resourceVersion", "")
            watch = Watch(self._host.store, call.resource, wanted, version=version, initial=initial)
        except StoreError as error:
            refused = refused or error
            if not too_old(error) or strike.fault is not None:
                self._answer(call.request, call, _refusal(error), strike)
                return
            watch = Watch(
                self._host.store, call.resource, selection(call.resource, name="-"), version="", initial=False
            )
        self._host.record(call.request, call, 200, strike)
        date = self._host.store.now(Writer(skew_seconds=strike.skew_seconds))
        self._write(stream_head(content_type="application/json", date=date))
        self.stream = Stream(
            watch,
            call,
            timers=self._host.timers,
            now=self._host.store.now,
            write=self._write,
            ended=self._watch_ended,
        )
        self._host.watching(self.stream, on=True)
        if refused is not None:
            self.stream.fail(refused)
        elif strike.kind is Kind.HALF_OPEN:
            self.stream.mute()
        elif strike.kind is Kind.LOSE_RESPONSE:
            self.abort()
        else:
            self.stream.pump()

    def _watch_ended(self) -> None:
        if self.stream is not None:
            self._host.watching(self.stream, on=False)
            self.stream = None
        self._done()

    def _done(self) -> None:
        self._busy = False
        self.touched = asyncio.get_running_loop().time()
        asyncio.get_running_loop().call_soon(self._next)

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


def _refusal(error: StoreError) -> Answer:
    retry = str((error.details or {}).get("retryAfterSeconds") or "")
    headers = {"Retry-After": retry} if retry else {}
    return Answer(error.code, msgspec.json.encode(status_of(error)) + b"\n", headers=headers)
