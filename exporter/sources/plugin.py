"""The device plugin probe: is each device plugin of the node alive, whatever the kubelet believes of it.

A plugin is asked for its options (`GetDevicePluginOptions`, which changes nothing) over a connection that is kept:
so a plugin that serves on although its socket file has gone is told from one that has gone with its file. Plugins
are asked at the same time and none waits for another. One that hangs keeps the one connection, because each new
one would take a place in a queue that nobody serves.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from exporter.sources.plugin_target import Plugin, PluginState, PluginTarget
from health.vocabulary import SourceState
from runtime.kubelet_rpc import DEVICE_PLUGIN_FOLDER, KUBELET_SOCKET_NAME

__all__ = ["NVIDIA_SOCKETS", "Plugin", "PluginProbe", "PluginState", "Timing", "resource_of"]

NVIDIA_SOCKETS: Mapping[str, str] = {"nvidia.com/gpu": "nvidia-gpu.sock"}
"""Socket files by resource that are looked for even where there is none."""

log = logging.getLogger(__name__)


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """The probe's times, in seconds."""

    interval: float = 2.0
    deadline: float = 2.0
    """A plugin that takes longer hangs. It answers in about a millisecond."""
    forget: float = 600.0
    """A plugin that was found, not configured, and has gone with its socket file is not shown for longer."""


def resource_of(socket: str) -> str:
    """The resource that a socket file's name tells, else "".

    `nvidia-gpu.sock` is nvidia.com/gpu (NVIDIA's plugin), `amd.com_gpu` is amd.com/gpu (AMD's, and all that are
    built with kubevirt's device-plugin-manager).
    """
    if socket.startswith("nvidia-") and socket.endswith(".sock"):
        return f"nvidia.com/{socket.removeprefix('nvidia-').removesuffix('.sock')}"
    domain, _, name = socket.partition("_")
    return f"{domain}/{name}" if "." in domain and name else ""


class PluginProbe:
    """Probes the plugins in a folder. Callbacks run on its thread and get immutable values.

    `on_plugins` gets all plugins, sorted by socket, when something about one of them has changed; `on_state` each
    change of the probe's own state: Unsupported without a folder, Failed where it cannot be read.
    """

    def __init__(
        self,
        *,
        on_plugins: Callable[[tuple[Plugin, ...]], None],
        on_state: Callable[[SourceState, str], None],
        folder: Path = DEVICE_PLUGIN_FOLDER,
        sockets: Mapping[str, str] = NVIDIA_SOCKETS,
        timing: Timing = Timing(),  # noqa: B008 - immutable
    ) -> None:
        self._on_plugins = on_plugins
        self._on_state = on_state
        self._folder = folder
        self._configured = {name: resource for resource, name in sockets.items()}
        self._timing = timing
        self._targets: dict[str, PluginTarget] = {}
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._closing = False
        self._next_round = 0.0
        self._said: tuple[SourceState, str] | None = None
        self._shown: tuple[Plugin, ...] | None = None
        self._thread = threading.Thread(target=self._run, name="plugin-probe", daemon=True)

    def start(self) -> None:
        """Begin. Returns at once."""
        self._thread.start()

    def probe_now(self) -> None:
        """Ask all plugins that are not being asked. Returns at once."""
        self._events.put(self._round)

    def close(self, timeout: float = 1.0) -> bool:
        """End the thread. False if a callback holds it longer than `timeout` seconds."""
        self._closing = True
        self._events.put(lambda: None)
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        event = self._round
        while not self._closing:
            event()
            self._publish()
            try:
                event = self._events.get(timeout=max(0.0, self._next_round - time.monotonic()))
            except queue.Empty:
                event = self._round
        for target in self._targets.values():
            target.disconnect()

    def _round(self) -> None:
        self._next_round = time.monotonic() + self._timing.interval
        for name in self._configured.keys() | self._sockets():
            if name not in self._targets:
                resource = self._configured.get(name) or resource_of(name)
                self._targets[name] = PluginTarget(self._folder / name, resource, post=self._events.put)
        for name, target in list(self._targets.items()):
            target.ask(self._timing.deadline)
            if name not in self._configured and target.outlived(self._timing.forget):
                target.disconnect()
                del self._targets[name]

    def _sockets(self) -> set[str]:
        """The sockets in the folder, but for the kubelet's own."""
        try:
            found = {path.name for path in self._folder.iterdir() if path.is_socket()}
        except FileNotFoundError:
            self._say(SourceState.UNSUPPORTED, f"no folder {self._folder}")
            return set()
        except OSError as error:
            self._say(SourceState.FAILED, f"{self._folder}: {error.strerror}")
            return set()
        self._say(SourceState.LIVE, "")
        return found - {KUBELET_SOCKET_NAME}

    def _publish(self) -> None:
        """Show what is known, without what turned out to be no device plugin, unless it was looked for.

        Nothing is shown before each plugin has had the time for its first answer.
        """
        if self._shown is None and any(target.plugin is None for target in self._targets.values()):
            return
        shown = tuple(
            target.plugin
            for name, target in sorted(self._targets.items())
            if target.plugin and (name in self._configured or not target.foreign)
        )
        if shown != self._shown:
            self._shown = shown
            self._call(self._on_plugins, shown)

    def _say(self, state: SourceState, message: str) -> None:
        if (state, message) != self._said:
            self._said = (state, message)
            self._call(self._on_state, state, message)

    def _call(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            callback(*arguments)
        except Exception:
            log.exception("a callback of the device plugin probe failed")
