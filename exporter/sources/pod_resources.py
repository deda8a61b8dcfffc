"""The pod resources source: which pod holds which device, asked of the kubelet on a thread of its own.

One rate limit of the kubelet holds for all who ask at that socket, so it is asked once a second, and when somebody
wants to know (`refresh`), at most 20 times a second. After a start of the kubelet, which is seen by its socket
being another file, its answers are ignored for 2 s; what was held stays shown meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from exporter.holdings import CONFIRM_SECONDS, Holdings, Ledger, healthy_devices, held_devices
from health.vocabulary import SourceState
from runtime.kubelet_rpc import POD_RESOURCES_SOCKET, PodResourcesClient
from runtime.unix_rpc import Identity, RateLimitedError, RpcError, UnsupportedError, identity

log = logging.getLogger(__name__)


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """The source's times, in seconds."""

    interval: float = 1.0
    """From one question to the next, if nobody asks."""
    spacing: float = 0.05
    """At least so long between two questions, whoever asks."""
    deadline: float = 2.0
    """For one answer."""
    settling: float = 2.0
    """So long after a kubelet's start its answers are ignored; it takes up to 1.8 s to know its pods' devices."""
    patience: float = 5.0
    """Refused by the rate limit for so long, the source is Stale."""


class PodResourcesSource:
    """Asks who holds which device. Callbacks run on its thread and get immutable values.

    `on_holdings` gets the holdings when they have changed, the first ones always; `on_state` each change of the
    state or of its reason: Unsupported where there is no such socket or service, Failed where there was one, Stale
    where the kubelet does not answer in time or has just started.
    """

    def __init__(
        self,
        *,
        on_holdings: Callable[[Holdings], None],
        on_state: Callable[[SourceState, str], None],
        socket: Path = POD_RESOURCES_SOCKET,
        timing: Timing = Timing(),  # noqa: B008 - immutable
    ) -> None:
        self._on_holdings = on_holdings
        self._on_state = on_state
        self._socket = socket
        self._timing = timing
        self._wake = threading.Condition()
        self._closing = False
        self._wanted = False
        self._said: tuple[SourceState, str] | None = None
        self._shown: Holdings | None = None
        self._ledger = Ledger()
        self._client: PodResourcesClient | None = None
        self._kubelet: Identity | None = None
        self._ignore_until = 0.0
        self._answered_at: float | None = None
        self._healthy: Mapping[str, frozenset[str]] = {}
        self._healthy_until = 0.0
        self._thread = threading.Thread(target=self._run, name="pod-resources", daemon=True)

    def start(self) -> None:
        """Begin. Returns at once."""
        self._thread.start()

    def refresh(self) -> None:
        """Ask now, because something has happened to a pod. Returns at once."""
        with self._wake:
            self._wanted = True
            self._wake.notify()

    def close(self, timeout: float = 1.0) -> bool:
        """End the thread. False if a callback holds it longer than `timeout` seconds."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        client = self._client
        if client:
            client.close()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._closing:
            begun = time.monotonic()
            pause = self._look(begun)
            self._rest(begun, pause)
        self._drop()

    def _rest(self, begun: float, pause: float) -> None:
        """Until `pause` is over, or sooner if somebody wants to know."""
        with self._wake:
            self._wake.wait_for(lambda: self._closing, begun + self._timing.spacing - time.monotonic())
            self._wake.wait_for(lambda: self._closing or self._wanted, begun + pause - time.monotonic())
            self._wanted = False

    def _look(self, now: float) -> float:
        """Ask once if that makes sense; seconds until the next time."""
        found = identity(self._socket)
        if found is None:
            self._drop()
            self._say_gone(f"no socket {self._socket}")
            return self._timing.interval
        if found != self._kubelet:
            self._take_kubelet(found, now)
        if (left := self._ignore_until - now) > 0:
            self._say(
                SourceState.STALE, "the kubelet has just started and may not know its pods' devices yet"
            )
            return min(left, self._timing.interval)
        try:
            return self._ask()
        except RateLimitedError as error:
            if self._answered_at is None or now - self._answered_at > self._timing.patience:
                self._say(SourceState.STALE, str(error))
        except UnsupportedError as error:
            self._say(SourceState.UNSUPPORTED, str(error))
        except RpcError as error:
            if not self._closing:
                late = error.code == "DEADLINE_EXCEEDED"
                text = f"no answer in {self._timing.deadline:g} s" if late else str(error)
                self._say(SourceState.STALE if late else SourceState.FAILED, text)
        return self._timing.interval

    def _ask(self) -> float:
        """Raises RpcError."""
        client = self._client
        if client is None or self._closing:
            return 0.0
        held = held_devices(client.list(self._timing.deadline))
        # Pods come and go without changing what is healthy: not asked each time that somebody wants to know.
        if time.monotonic() >= self._healthy_until:
            self._healthy = healthy_devices(client.allocatable(self._timing.deadline))
            self._healthy_until = time.monotonic() + 0.9 * self._timing.interval
        if identity(self._socket) != self._kubelet:
            return self._timing.spacing  # of a kubelet that has gone meanwhile
        now = self._answered_at = time.monotonic()
        self._ledger = self._ledger.with_answer(Holdings(held, self._healthy), now)
        self._say(SourceState.LIVE, "")
        if self._ledger.shown != self._shown:
            self._shown = self._ledger.shown
            self._call(self._on_holdings, self._shown)
        return min(CONFIRM_SECONDS, self._timing.interval) if self._ledger.missing else self._timing.interval

    def _take_kubelet(self, found: Identity, now: float) -> None:
        """The socket is another file than before: connect to it, and wait if that kubelet is young."""
        self._drop()
        # A first look finds most kubelets old. The socket's age is on the wall clock, which may step: then a wait
        # is too long or too short once, in a moment when nothing is known that could be wrong.
        age = time.time() - found[2] / 1e9
        young = self._kubelet is not None or 0 <= age < self._timing.settling
        self._ignore_until = now + (self._timing.settling if young else 0.0)
        self._kubelet = found
        self._ledger = self._ledger.undecided()
        self._healthy_until = now
        self._client = PodResourcesClient(self._socket)

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client:
            client.close()

    def _say_gone(self, message: str) -> None:
        known = self._answered_at is not None
        self._say(SourceState.FAILED if known else SourceState.UNSUPPORTED, message)

    def _say(self, state: SourceState, message: str) -> None:
        if (state, message) != self._said:
            self._said = (state, message)
            self._call(self._on_state, state, message)

    def _call(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            callback(*arguments)
        except Exception:
            log.exception("a callback of the pod resources source failed")
