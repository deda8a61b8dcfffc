"""What the restart of a device plugin remembers from one pass to the next, in the session's status."""

from __future__ import annotations

from health.report import Time, Wire


class PluginRestart(Wire, frozen=True):
    """A restart's memory. The pod is named here before it is deleted, so a pass that was cut off is gone on with.

    `pod` is `NAMESPACE/NAME`; `daemon_set_uid` is who makes its replacement; `done_time` is when that was Ready;
    `cleaned` says whether the pods that failed meanwhile have been removed; `attempts` counts the restarts that this
    session has carried out since a person last let it go on.
    """

    started: Time
    pod: str = ""
    pod_uid: str = ""
    daemon_set_uid: str = ""
    done_time: Time | None = None
    cleaned: bool = False
    attempts: int = 0
