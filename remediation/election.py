"""The protocol of leader election on a Lease, such that no two controllers ever believe that they lead.

`Election` says what to ask next and what an answer means, with time passed in, so that tests can drive any
number of candidates through any interleaving. `remediation.lease` is the thread that carries it out.

Why it is safe. A candidate takes the Lease only after it has itself seen the record unchanged for a whole
lease duration, on its own monotonic clock; times that are written in the record are for people. A leader
believes in itself only until the renew deadline after the moment *before* it sent its last successful
renewal. Every write is conditional on the resourceVersion, so of two writers one fails. The record was
written after that moment, and was seen after it was written: so the deadline (10 s) ends before the wait
(15 s) does, as long as the two clocks run at rates that differ by less than a half.

Each term has its own number: whoever takes the Lease, be it from itself, adds one to `leaseTransitions`, so
that the number can serve as an epoch.
"""

import enum
import math
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from runtime.clock import rfc3339

RELEASED_SECONDS = 1
"""The lease duration that a leader leaves behind when it gives up by itself, as client-go does."""


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """What a Lease says. `holder` is empty when nobody holds it; `document` is the whole object as it was read."""

    holder: str
    transitions: int
    duration_seconds: int
    acquired: str = ""
    renewed: str = ""
    resource_version: str = ""
    document: dict[str, Any] | None = None

    @property
    def released(self) -> bool:
        """Given up by its holder. A holder that somebody else struck out may still believe in itself."""
        return not self.holder and self.duration_seconds == RELEASED_SECONDS


class Action(enum.Enum):
    READ = "read"
    CREATE = "create"
    REPLACE = "replace"


@dataclass(frozen=True, slots=True)
class Request:
    """One thing to ask of the API. `sent` is the time just before it is sent; `term` what it wins or renews."""

    action: Action
    sent: float
    record: LeaseRecord | None = None
    term: int | None = None


@dataclass(frozen=True, slots=True)
class _Tenure:
    term: int
    fence: float


class Election:
    """One candidate. All times are seconds on its own monotonic clock.

    One request at a time: `request`, then exactly one of `answered` and `failed` for it. `leads` and `term` may
    be asked from any thread at any time.
    """

    def __init__(self, identity: str, *, lease_duration: float, renew_deadline: float) -> None:
        """`identity` must be new with every process. Raises ValueError when the deadline is not below the duration."""
        if not identity:
            raise ValueError("a candidate needs an identity")
        if not 0 < renew_deadline < lease_duration:
            raise ValueError(
                f"the renew deadline ({renew_deadline:g} s) must lie below the lease duration "
                f"({lease_duration:g} s)"
            )
        self.identity = identity
        self.ended = ""
        """Why the last term ended, as a clause for people."""
        self._lease_duration = lease_duration
        self._renew_deadline = renew_deadline
        self._record: LeaseRecord | None = None
        self._seen_at = -math.inf
        self._last_term = -1
        self._last_error = ""
        self._must_read = True
        self._tenure: _Tenure | None = None

    @property
    def holder(self) -> str:
        """Who held the Lease when it was last seen; empty for nobody."""
        return self._record.holder if self._record else ""

    def leads(self, now: float) -> bool:
        return self.term(now) is not None

    def term(self, now: float) -> int | None:
        """The number of the term in which this candidate leads at `now`."""
        tenure = self._tenure
        return tenure.term if tenure is not None and now < tenure.fence else None

    def fence(self, now: float) -> float | None:
        """When the present term will end by itself."""
        tenure = self._tenure
        return tenure.fence if tenure is not None and now < tenure.fence else None

    def may_claim(self, now: float) -> bool:
        """Whether nobody else can be leading on the record as it was last seen."""
        record, waited = self._record, now >= self._seen_at + self._lease_duration
        if record is None:
            return waited
        # Our own name without a term is an answer that was lost, or a term that ended; either way nobody else
        # has taken it since, or the write will fail.
        return waited or record.released or record.holder == self.identity

    def expire(self, now: float) -> bool:
        """End a term whose deadline has passed, and say so."""
        if self._tenure is None or now < self._tenure.fence:
            return False
        self._end("the renew deadline passed" + (f" ({self._last_error})" if self._last_error else ""))
        return True

    def request(self, now: float, wall: datetime) -> Request:
        """What to ask at `now`: look, renew, or take what nobody can be leading on."""
        self.expire(now)
        record, tenure = self._record, self._tenure
        if self._must_read or (tenure is None and not self.may_claim(now)):
            return Request(Action.READ, now)
        moment = rfc3339(wall)
        if tenure is not None and record is not None:
            return Request(Action.REPLACE, now, replace(record, renewed=moment), term=tenure.term)
        claim = self._claim(record, moment)
        action = Action.CREATE if record is None else Action.REPLACE
        return Request(action, now, claim, term=claim.transitions)

    def answered(self, request: Request, record: LeaseRecord | None, now: float) -> None:
        """The record as the API now has it; None when there is no Lease."""
        expired = self.expire(now)
        self._must_read, self._last_error = False, ""
        self._see(record, now)
        if request.term is None:
            self._check_tenure(record)
        elif not expired and now < request.sent + self._renew_deadline:
            # After its deadline a renewal renews nothing: others have seen us not leading.
            self._tenure = _Tenure(request.term, request.sent + self._renew_deadline)

    def failed(self, error: Exception, now: float) -> None:
        """The API refused or did not answer: the term runs on to its deadline, and the next thing is to look."""
        self._must_read, self._last_error = True, str(error)
        self.expire(now)

    def release(self, now: float, wall: datetime) -> Request | None:
        """End the term now. The request that tells the others, if they may think that we lead."""
        self.expire(now)
        self._end("shut down")
        record = self._record
        if record is None or record.holder != self.identity:
            return None
        freed = replace(record, holder="", duration_seconds=RELEASED_SECONDS, renewed=rfc3339(wall))
        return Request(Action.REPLACE, now, freed)

    def _check_tenure(self, record: LeaseRecord | None) -> None:
        tenure = self._tenure
        if tenure is None:
            return
        if record is None or record.holder != self.identity or record.transitions != tenure.term:
            self._end(f"the Lease is held by {self.holder}" if self.holder else "the Lease was taken away")

    def _claim(self, record: LeaseRecord | None, moment: str) -> LeaseRecord:
        return replace(
            record or LeaseRecord("", -1, 0),
            holder=self.identity,
            transitions=self._last_term + 1,
            duration_seconds=max(RELEASED_SECONDS + 1, round(self._lease_duration)),
            acquired=moment,
            renewed=moment,
        )

    def _see(self, record: LeaseRecord | None, now: float) -> None:
        """Any other resourceVersion than before is news, and the wait begins anew; so is a Lease that is gone."""
        before, self._record = self._record, record
        if record is None:
            self._seen_at = self._seen_at if before is None else now
        elif before is None or before.resource_version != record.resource_version:
            self._seen_at = now
            self._last_term = max(self._last_term, record.transitions)

    def _end(self, why: str) -> None:
        if self._tenure is not None:
            self._tenure = None
            self.ended = why
