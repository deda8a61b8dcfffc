"""One device plugin as the probe sees it: its connection, the question under way, and what came of the last one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from runtime.kubelet_messages import DevicePluginOptions
from runtime.kubelet_rpc import DevicePluginClient
from runtime.unix_rpc import (
    DeadlineError,
    Identity,
    RpcError,
    UnreachableError,
    UnsupportedError,
    accepts,
    identity,
)


class PluginState(StrEnum):
    """What a probe found. What the kubelet believes, allocatable, is not in it.

    `Serving`: answers at its socket. `SocketLost`: answers on the connection from before, but its socket file has
    gone; nothing else is wrong until the plugin or the kubelet starts again. `Hung`: somebody is there and does
    not answer in time. `Dead`: nobody is there any more. `Unknown`: never seen since this probe began, or it
    cannot be told.
    """

    SERVING = "Serving"
    SOCKET_LOST = "SocketLost"
    HUNG = "Hung"
    DEAD = "Dead"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True)
class Plugin:
    """A device plugin. `resource` is empty where its socket's name does not tell it.

    `present` says whether the socket file is there. One that is neither there nor known from before (`Unknown`),
    or whose plugin is `Dead`, while the kubelet still counts devices of the resource as healthy, means that the
    kubelet believes in a plugin that it cannot reach.
    """

    resource: str
    socket: str
    state: PluginState
    present: bool
    message: str = ""


class PluginTarget:
    """A socket that is probed again and again. All methods are for the probe's thread.

    Answers arrive on other threads: `post` has to run what it is given on the probe's.
    """

    def __init__(self, path: Path, resource: str, *, post: Callable[[Callable[[], None]], None]) -> None:
        self.path = path
        self.resource = resource
        self.plugin: Plugin | None = None
        """What came of the last question; None before the first answer."""
        self.foreign = False
        """Whether what listens there is no device plugin."""
        self._post = post
        self._client: DevicePluginClient | None = None
        self._connected: Identity | None = None
        self._seen = False
        self._asking = False
        self._doubted = False
        self._changed_at = time.monotonic()

    def ask(self, deadline: float) -> None:
        """Ask, unless a question is under way or there is nobody to ask; wait `deadline` seconds for the answer."""
        if self._asking:
            return
        found = identity(self.path)
        if found is not None and found != self._connected:
            self._connect(found)
        if self._client is None:
            self._absent()
        elif not self.foreign:
            self._send(self._client, deadline)

    def outlived(self, seconds: float) -> bool:
        """Whether it has gone, with its socket file, and nothing has changed for so long."""
        if self.plugin is None or self.plugin.present or self._asking:
            return False
        gone = self.foreign or self.plugin.state in (PluginState.DEAD, PluginState.UNKNOWN)
        return gone and time.monotonic() - self._changed_at >= seconds

    def disconnect(self) -> None:
        """Drop the connection; the next question begins with a new one."""
        client, self._client, self._connected = self._client, None, None
        if client:
            client.close()

    def _connect(self, found: Identity) -> None:
        self.disconnect()
        self.foreign = False
        self._seen = True
        self._connected = found
        self._client = DevicePluginClient(self.path)

    def _send(self, client: DevicePluginClient, deadline: float) -> None:
        def answered(answer: DevicePluginOptions | RpcError) -> None:
            self._post(lambda: self._take(client, answer, deadline))

        self._asking = True
        client.ask_options(timeout=deadline, done=answered)

    def _take(
        self, client: DevicePluginClient, answer: DevicePluginOptions | RpcError, deadline: float
    ) -> None:
        self._asking = False
        doubted, self._doubted = self._doubted, False
        if client is not self._client:
            return
        if not isinstance(answer, RpcError):
            self._say(PluginState.SERVING if self._present() else PluginState.SOCKET_LOST)
        elif isinstance(answer, DeadlineError):
            self._say(PluginState.HUNG, f"no answer to GetDevicePluginOptions in {deadline:g} s")
        elif isinstance(answer, UnsupportedError):
            self.foreign = True
            self._say(PluginState.UNKNOWN, f"not a device plugin: {answer}")
        elif isinstance(answer, UnreachableError):
            self._take_unreachable(answer, deadline, doubted=doubted)
        else:
            self._say(PluginState.UNKNOWN, f"GetDevicePluginOptions failed: {answer}")

    def _take_unreachable(self, error: RpcError, deadline: float, *, doubted: bool) -> None:
        self.disconnect()
        if not self._present():
            self._absent()
            return
        accepted = accepts(self.path)
        if accepted is None:
            self._say(PluginState.HUNG, "too many wait already to be let in at its socket")
        elif not accepted:
            self._say(PluginState.DEAD, "nobody listens at its socket")
        elif doubted:
            self._say(PluginState.DEAD, f"whoever listens at its socket does not serve: {error}")
        else:
            # It has started just now, or the connection was one of its last life.
            self.ask(deadline)
            self._doubted = True

    def _absent(self) -> None:
        if self._seen:
            self._say(PluginState.DEAD, "gone, and its socket file with it")
        else:
            self._say(PluginState.UNKNOWN, "no socket file, and none seen before")

    def _present(self) -> bool:
        return identity(self.path) is not None

    def _say(self, state: PluginState, message: str = "") -> None:
        plugin = Plugin(self.resource, self.path.name, state, self._present(), message)
        if plugin != self.plugin:
            self.plugin = plugin
            self._changed_at = time.monotonic()
