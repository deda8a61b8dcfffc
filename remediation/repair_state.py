"""What the repairs of a session remember from one pass to the next, in the session's status."""

from __future__ import annotations

import hashlib
from datetime import datetime

from msgspec.structs import replace

from health.report import Time, Wire

DEVICES_LIMIT = 16
"""Devices that one Job repairs; a receipt names no more. The largest machines have 16."""

FAILURE_LIMIT = 512
"""Characters of what is said about a rung that was given up; the schema allows no more."""

FAILURES_LIMIT = 8
"""Rungs given up that a session remembers; a plan has no more."""


class Operand(Wire, frozen=True):
    """A label of the Node that was changed for a reset, and the value it had before."""

    key: str
    value: str


class Attempts(Wire, frozen=True):
    """How many Jobs of a rung were created since a person last let the session go on."""

    rung: str
    count: int


class RepairState(Wire, frozen=True):
    """A session's repairs.

    Of the step under way: `started`, the node's `boot_id` then, the `devices` it is for, and its `job`, which is
    named here before it is created, by an `attempt` that is counted over the whole session; `created` says that it
    was, `ended` when it was first found to have ended without a receipt. `done` are the repairs that were carried
    out, `done_time` when the last one was. What is lent and must be given back: `operands`, labels of the Node with
    the values they had, and `release_until`, until when the agent was asked to let go of the devices. `failure`
    says why a rung is given up, `failures` what came of the earlier ones.
    """

    started: Time
    boot_id: str = ""
    devices: tuple[str, ...] = ()
    job: str = ""
    attempt: int = 0
    created: Time | None = None
    ended: Time | None = None
    attempts: tuple[Attempts, ...] = ()
    done: tuple[str, ...] = ()
    done_time: Time | None = None
    operands: tuple[Operand, ...] = ()
    release_until: Time | None = None
    verified: bool = False
    failed: str = ""
    failure: str = ""
    failures: tuple[str, ...] = ()

    @property
    def lent(self) -> bool:
        """Whether something was changed on the node or asked of its agent that must be taken back."""
        return bool(self.operands) or self.release_until is not None

    def attempts_of(self, rung: str) -> int:
        """How many Jobs of this rung were created."""
        return next((one.count for one in self.attempts if one.rung == rung), 0)

    def counted(self, rung: str, now: datetime) -> RepairState:
        """A Job of this rung was created."""
        others = tuple(one for one in self.attempts if one.rung != rung)
        return replace(
            self, created=now, attempts=(*others, Attempts(rung=rung, count=self.attempts_of(rung) + 1))
        )

    def afresh(self) -> RepairState:
        """A person lets the session go on: every rung may be tried again, by Jobs of their own."""
        return replace(self.without_job(), attempts=(), failed="", failure="")

    def carried_out(self, step: str, now: datetime) -> RepairState:
        """The repair was carried out; whether it helped is to be seen."""
        return replace(self, done=tuple(sorted({*self.done, step})), done_time=now, verified=False)

    def refused(self, rung: str) -> RepairState:
        """The Job's last look forbade it, so it has not been tried."""
        others = tuple(one for one in self.attempts if one.rung != rung)
        left = self.attempts_of(rung) - 1
        tried = (*others, Attempts(rung=rung, count=left)) if left > 0 else others
        return replace(self.without_job(), attempts=tried)

    def without_job(self) -> RepairState:
        """The Job has become pointless: whatever comes next is another one, under a number of its own."""
        attempt = self.attempt + (self.created is not None)
        return replace(self, job="", attempt=attempt, created=None, ended=None)


def job_name(template: str, *, session: str, rung: str, step: str, attempt: int) -> str:
    """The name of a Job: creating one twice for the same attempt of the same rung is a conflict."""
    digest = hashlib.sha256("/".join((session, rung, step)).encode()).hexdigest()[:10]
    return f"{template}-{attempt}-{digest}"
