"""The embedded Kubernetes API as a server on loopback, in a thread of its own.

with EmbeddedApi(clock=SystemClock()) as api:
    api.store.create("nodes", {"metadata": {"name": "n1"}})
    session(api.url)
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from types import TracebackType
from typing import Self

import msgspec

from runtime.clock import Clock, SystemClock
from simulation.cluster import admin, discovery
from simulation.cluster import crds as definitions
from simulation.cluster.audit import Audit, AuditEntry
from simulation.cluster.connection import Connection
from simulation.cluster.errors import status_of
from simulation.cluster.faults import Fault, Faults, Kind, Strike, fits
from simulation.cluster.interface import StoreError
from simulation.cluster.ledger import WINDOW_BYTES, WINDOW_CHANGES
from simulation.cluster.requests import Call, Request
from simulation.cluster.store import ClusterStore
from simulation.cluster.stream import Stream
from simulation.cluster.timers import Timers
from simulation.cluster.wire import Answer

MOST_CONNECTIONS = 10_000
_SWEEP_SECONDS = 5.0
_IDLE_SECONDS = 300.0
_REQUEST_SECONDS = 30.0
_START_SECONDS = 10.0
_BODY_KEPT = 4096
_HEALTH = ("/healthz", "/readyz", "/livez")


class EmbeddedApi:
    """A Kubernetes API server in this process. `url` is known once it has been entered or started."""

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        port: int = 0,
        host: str = "127.0.0.1",
        crds: bool = True,
        seed: int = 0,
        window_changes: int = WINDOW_CHANGES,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        """`crds`: whether Sickbay's definitions are installed. `seed` is that of faults with a probability.

        `window_changes` and `window_bytes` bound what each resource remembers of its past.
        """
        self.clock = clock or SystemClock()
        self.store = ClusterStore(
            clock=self.clock,
            custom=definitions.load() if crds else (),
            window_changes=window_changes,
            window_bytes=window_bytes,
        )
        self.faults = Faults(seed=seed, on_established=self._strike_established)
        self.audit = Audit()
        self.timers: Timers
        self._host, self._port = host, port
        self._connections: set[Connection] = set()
        self._streams: defaultdict[str, set[Stream]] = defaultdict(set)
        self._dirty: set[str] = set()
        self._dirty_lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="embedded-api", daemon=True)
        self.store.on_change(self._changed)

    @property
    def url(self) -> str:
        """Such as http://127.0.0.1:8001."""
        return f"http://{self._host}:{self._port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to serve. Raises OSError where the port cannot be had."""
        self._thread.start()
        if not self._started.wait(_START_SECONDS):
            raise TimeoutError("the embedded API did not start")
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Cut all connections and end. The store stays as it is."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_START_SECONDS)

    def watches(self) -> int:
        """How many watches are open."""
        return sum(map(len, list(self._streams.values())))

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except OSError as error:
            self._failure = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.timers = Timers(self.clock, self._loop)
        server = await self._loop.create_server(
            lambda: Connection(self), self._host, self._port, backlog=1024
        )
        self._port = server.sockets[0].getsockname()[1]
        self._started.set()
        sweep = self._loop.call_later(_SWEEP_SECONDS, self._sweep)
        try:
            await self._stop.wait()
        finally:
            sweep.cancel()
            self.timers.close()
            server.close()
            for connection in list(self._connections):
                connection.abort()
            self._loop = None

    # What a connection asks of its server.

    def strike(self, call: Call) -> Strike:
        """What is to happen to a call."""
        return self.faults.strike(call.target)

    def elsewhere(self, request: Request) -> Answer:
        """Paths that name no resource: health, discovery, administration."""
        if request.path in _HEALTH:
            return Answer(200, b"ok", "text/plain; charset=utf-8")
        if request.path == admin.PATH or request.path.startswith(f"{admin.PATH}/"):
            return admin.answer(self.faults, request)
        found = discovery.answer(self.store.catalogue, request.path, address=f"{self._host}:{self._port}")
        if found is not None:
            return Answer(200, msgspec.json.encode(found) + b"\n")
        if self._is_built_in(request.path):
            message = "the server could not find the requested resource"
            error = StoreError(404, "NotFound", message, details={})
            return Answer(404, msgspec.json.encode(status_of(error)) + b"\n")
        return Answer(404, b"404 page not found\n", "text/plain; charset=utf-8")

    def _is_built_in(self, path: str) -> bool:
        """Whether a path is of a group whose unknown paths are answered with a Status; others get a line of text."""
        parts = path.strip("/").split("/")
        if parts[0] == "api":
            return True
        groups = {resource.group for resource in self.store.catalogue if not resource.custom}
        return parts[0] == "apis" and len(parts) > 1 and parts[1] in groups

    def record(self, request: Request, call: Call | None, code: int, strike: Strike) -> None:
        """Take note of a request and its answer."""
        self.audit.add(
            AuditEntry(
                time=self.store.now(),
                user=request.user,
                user_agent=request.user_agent,
                verb=call.verb if call else request.method.lower(),
                resource=call.resource.id if call else "",
                subresource=call.subresource if call else "",
                namespace=call.namespace if call else "",
                name=call.name if call else "",
                uri=request.target,
                content_type=request.headers.get("content-type", ""),
                body=request.body[:_BODY_KEPT],
                code=code,
                fault=",".join(strike.names),
            )
        )

    def opened(self, connection: Connection) -> bool:
        """Whether there is room for one more."""
        if len(self._connections) >= MOST_CONNECTIONS:
            return False
        self._connections.add(connection)
        return True

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)

    def watching(self, stream: Stream, *, on: bool) -> None:
        """A watch begins or ends."""
        streams = self._streams[stream.resource_id]
        if on:
            streams.add(stream)
        else:
            streams.discard(stream)

    # Changes, and what time does.

    def _changed(self, resource_id: str) -> None:
        """Wake the watches of a resource, once for all changes that come before they are served."""
        loop = self._loop
        if loop is None or not self._streams.get(resource_id):
            return
        with self._dirty_lock:
            waking = not self._dirty
            self._dirty.add(resource_id)
        if waking:
            loop.call_soon_threadsafe(self._pump)

    def _pump(self) -> None:
        with self._dirty_lock:
            dirty, self._dirty = self._dirty, set()
        for resource_id in dirty:
            for stream in list(self._streams[resource_id]):
                stream.pump()

    def _sweep(self) -> None:
        """Cut clients that are idle or do not come to the end of a request."""
        if self._loop is None:
            return
        now = self._loop.time()
        for connection in list(self._connections):
            limit = _REQUEST_SECONDS if connection.waiting else _IDLE_SECONDS
            if connection.idle and now - connection.touched > limit:
                connection.abort()
        self._loop.call_later(_SWEEP_SECONDS, self._sweep)

    def _strike_established(self, fault: Fault) -> int:
        """Strike watches that are open: as many as the fault's count, of those that fit."""
        if self._loop is None:
            return 0
        if threading.current_thread() is self._thread:
            return self._strike_streams(fault)
        done = asyncio.run_coroutine_threadsafe(self._struck(fault), self._loop)
        return done.result(_START_SECONDS)

    async def _struck(self, fault: Fault) -> int:
        return self._strike_streams(fault)

    def _strike_streams(self, fault: Fault) -> int:
        by_stream = {connection.stream: connection for connection in self._connections if connection.stream}
        fitting = [stream for stream in by_stream if fits(fault, stream.target)][: fault.count]
        for stream in fitting:
            if fault.kind is Kind.HALF_OPEN:
                stream.mute()
            else:
                by_stream[stream].abort()
        return len(fitting)
