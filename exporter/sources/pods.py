"""The pods source: this node's accelerator pods, from the kubelet's own Pods API, or polled from its `/pods` page.

Neither asks the API server anything. The Pods API (on by default since Kubernetes 1.37) tells a change within
milliseconds; the page is asked once a second, and only over a connection that the kubelet's certificate proves,
since the agent's token goes with it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from exporter.pods import PodSeen, PodsListed, from_page, seen
from health.vocabulary import SourceState
from runtime.api_errors import ApiError
from runtime.clock import Clock, SystemClock
from runtime.kubelet_page import PageUnavailableError, is_refused, no_page
from runtime.kubelet_pods import EventType
from runtime.kubelet_rpc import PODS_SOCKET, PodEvent, PodsClient, PodWatch
from runtime.kubernetes import Session
from runtime.unix_rpc import Identity, RpcError, UnsupportedError, identity

PAUSE_SECONDS = (0.5, 10.0)
"""Between two attempts to watch: the first, and the most."""

POLL_SECONDS = 1.0

log = logging.getLogger(__name__)


class PodsSource:
    """Watches, or polls, on a thread of its own; callbacks run there and get immutable values.

    `on_state`: Unsupported where there is neither the socket nor a page that may be read (no address, no credential,
    a certificate that proves nothing, a refusal), Failed where there was one or it does not answer.
    """

    def __init__(
        self,
        *,
        on_pod: Callable[[PodSeen | PodsListed], None],
        on_state: Callable[[SourceState, str], None],
        socket: Path = PODS_SOCKET,
        page: Callable[[], Session] = no_page,
        clock: Clock | None = None,
        pause: tuple[float, float] = PAUSE_SECONDS,
        poll: float = POLL_SECONDS,
    ) -> None:
        self._on_pod = on_pod
        self._on_state = on_state
        self._socket = socket
        self._page = page
        self._clock = clock or SystemClock()
        self._pause = pause
        self._poll = poll
        self._unsupported: Identity | None = None
        self._closing = threading.Event()
        self._said: tuple[SourceState, str] | None = None
        self._worked = False
        self._client: PodsClient | None = None
        self._watch: PodWatch | None = None
        self._thread = threading.Thread(target=self._run, name="pods", daemon=True)

    def start(self) -> None:
        """Begin. Returns at once."""
        self._thread.start()

    def close(self, timeout: float = 1.0) -> bool:
        """End the thread. False if a callback holds it longer than `timeout` seconds."""
        self._closing.set()
        if self._watch is not None:
            self._watch.cancel()
        if self._client is not None:
            self._client.close()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        pause = self._pause[0]
        while not self._closing.is_set():
            try:
                worked = self._look()
            except Exception:
                log.exception("the pods source failed in a way nobody foresaw")
                worked = False
            pause = self._pause[0] if worked else min(2 * pause, self._pause[1])
            self._closing.wait(pause)

    def _look(self) -> bool:
        """Watch until the watch ends, or poll once; whether it told anything."""
        found = identity(self._socket)
        if found is not None and found != self._unsupported:
            return self._watched(found)
        try:
            return self._polled(self._page(), found)
        except PageUnavailableError as error:
            gone = SourceState.FAILED if self._worked else SourceState.UNSUPPORTED
            self._say(gone, f"{self._no_socket(found)}, and {error}")
            return False

    def _no_socket(self, found: Identity | None) -> str:
        return f"no {'Pods API at' if found else 'socket'} {self._socket}"

    def _watched(self, found: Identity) -> bool:
        """Watch until the watch ends; whether all pods were told."""
        client = self._client = PodsClient(self._socket)
        listed: set[str] | None = set()
        try:
            self._watch = client.watch()
            for event in self._watch:
                listed = self._told(event, listed)
            self._say(SourceState.STALE, "the kubelet ended the watch")
        except UnsupportedError:
            self._unsupported = found
            return True
        except RpcError as error:
            self._say(SourceState.FAILED if listed is not None else SourceState.STALE, str(error))
        finally:
            client.close()
        return listed is None

    def _told(self, event: PodEvent, listed: set[str] | None) -> set[str] | None:
        """Pass an event on; the UIDs that were listed so far, None once these are all."""
        now = self._clock.wall()
        if event.type is EventType.INITIAL_SYNC_COMPLETE:
            self._on_pod(PodsListed(frozenset(listed or ()), now))
            self._worked = True
            self._say(SourceState.LIVE, "")
            return None
        if event.pod is not None and event.pod.metadata.uid:
            gone = event.type is EventType.DELETED
            pod = seen(event.pod, at=now, deleted=gone, listed=listed is not None)
            if pod is not None:
                self._on_pod(pod)
                if listed is not None:
                    listed.add(pod.uid)
        return listed

    def _polled(self, page: Session, found: Identity | None) -> bool:
        """Poll until it fails, or the socket is another one than was found; whether it told anything."""
        first = True
        while not self._closing.is_set() and identity(self._socket) == found:
            try:
                body = page.get("/pods", timeout=(2.0, 5.0)).body
                items = msgspec.json.decode(body, type=dict[str, Any]).get("items") or []
                now = self._clock.wall()
                pods = [pod for item in items if (pod := from_page(item, at=now, listed=first))]
            except ApiError as error:
                state = SourceState.UNSUPPORTED if is_refused(error) else SourceState.FAILED
                self._say(state, f"{self._no_socket(found)}, and the kubelet's /pods: {error}")
                return not first
            except (msgspec.MsgspecError, KeyError, TypeError, ValueError, AttributeError) as error:
                self._say(SourceState.FAILED, f"the kubelet's /pods is not a list of pods: {error!r}")
                return not first
            for pod in pods:
                self._on_pod(pod)
            self._on_pod(PodsListed(frozenset(pod.uid for pod in pods), now, gap=first))
            self._worked, first = True, False
            self._say(SourceState.LIVE, "polls the kubelet's page")
            self._closing.wait(self._poll)
        return True

    def _say(self, state: SourceState, message: str) -> None:
        if (state, message) != self._said and not self._closing.is_set():
            self._said = (state, message)
            self._on_state(state, message)
