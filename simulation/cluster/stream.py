"""A watch on its connection: events out as the client takes them, bookmarks, the end, and silence on demand."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime

import msgspec

from simulation.cluster.errors import status_of
from simulation.cluster.faults import Target
from simulation.cluster.interface import StoreError
from simulation.cluster.requests import Call
from simulation.cluster.tables import table, wants_table
from simulation.cluster.timers import Timer, Timers
from simulation.cluster.watching import Watch, WatchEvent, error_line, line
from simulation.cluster.wire import LAST_CHUNK, chunk

BOOKMARK_SECONDS = 60.0
_LAST_BOOKMARK_SECONDS = 2.0
"""Before a watch ends it sends one more (staging/src/k8s.io/apiserver/pkg/storage/cacher/cache_watcher.go)."""

_LEAST_SECONDS = 1800
"""kube-apiserver, --min-request-timeout: a watch without timeoutSeconds lasts this to twice this long."""

_BATCH = 256


class Stream:
    """One watch. `write` takes bytes for the client, `ended` is called once, at an orderly end."""

    def __init__(
        self,
        watch: Watch,
        call: Call,
        *,
        timers: Timers,
        now: Callable[[], datetime],
        write: Callable[[bytes], None],
        ended: Callable[[], None],
    ) -> None:
        query = call.request.query
        self.target: Target = call.target
        self.resource_id = call.resource.id
        self._watch = watch
        self._call = call
        self._timers = timers
        self._now = now
        self._write = write
        self._ended = ended
        self._paused = False
        self._muted = False
        self._over = False
        self._headed = False
        self._table = wants_table(call.request.headers.get("accept", ""))
        self._bookmarks = query.get("allowWatchBookmarks", "").lower() in ("1", "true")
        seconds = _seconds(query.get("timeoutSeconds", ""))
        self._timer_list: list[Timer] = [timers.later(seconds, self._time_out)]
        if self._bookmarks:
            self._timer_list.append(timers.later(BOOKMARK_SECONDS, self._bookmark_again))
            if seconds > _LAST_BOOKMARK_SECONDS:
                self._timer_list.append(timers.later(seconds - _LAST_BOOKMARK_SECONDS, self._bookmark))

    def mute(self) -> None:
        """Fall silent for ever, with the connection open."""
        self._muted = True

    def pause(self) -> None:
        """The client takes no more for now."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self.pump()

    def pump(self) -> None:
        """Send what there is and the client takes."""
        while not (self._paused or self._muted or self._over):
            try:
                events = self._watch.pull(_BATCH)
            except StoreError as error:
                self.fail(error)
                return
            if not events:
                return
            self._write(chunk(b"".join(self._line(event) for event in events)))

    def fail(self, error: StoreError) -> None:
        """Send an ERROR event and end."""
        if not (self._over or self._muted):
            self._write(chunk(error_line(msgspec.json.encode(status_of(error)))))
            self._finish()

    def close(self) -> None:
        """The connection is gone: nothing is sent any more."""
        self._over = True
        for timer in self._timer_list:
            timer.cancel()

    def _time_out(self) -> None:
        if not (self._over or self._muted):
            self.pump()
            self._finish()

    def _finish(self) -> None:
        self.close()
        self._write(LAST_CHUNK)
        self._ended()

    def _bookmark_again(self) -> None:
        # Before anything is sent: who reads it may move the clock on at once.
        self._timer_list[1] = self._timers.later(BOOKMARK_SECONDS, self._bookmark_again)
        self._bookmark()

    def _bookmark(self) -> None:
        """Only when nothing is waiting to be sent: a bookmark must not overtake an event."""
        self.pump()
        if not (self._paused or self._muted or self._over):
            self._write(chunk(self._line(self._watch.bookmark())))

    def _line(self, event: WatchEvent) -> bytes:
        if not self._table:
            return line(event)
        include = self._call.request.query.get("includeObject", "")
        items = [] if event.type == "BOOKMARK" else [event.data]
        version = str(msgspec.json.decode(event.data)["metadata"]["resourceVersion"])
        rows = table(
            self._call.resource,
            items,
            version=version,
            now=self._now(),
            include=include,
            headed=not self._headed,
        )
        self._headed = True
        return line(WatchEvent(event.type, rows))


def _seconds(text: str) -> float:
    if text.isascii() and text.isdigit() and int(text) > 0:
        return float(text)
    return _LEAST_SECONDS * (1 + random.random())  # noqa: S311 - spreads load, guards nothing
