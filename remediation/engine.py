"""The deciding loop: takes in what the watches say, decides, hands actions to workers. One thread owns it all.

Nothing in it blocks on the network but the takeover of leadership; actions run in worker threads, at most
one of a node at a time, and their results come back through the same inbox as everything else.
"""

from __future__ import annotations

import heapq
import logging
import math
import queue
import random
from collections.abc import Callable
from concurrent.futures import Executor as Workers
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum, auto

from health.report import AcceleratorReport
from remediation.budget import StartBucket
from remediation.decide import decide
from remediation.executor import Basis, Executor, Report
from remediation.fleet import Fleet, Node
from remediation.objects import AcceleratorControl, AcceleratorRemediation, StartTokens
from remediation.policy import Policy
from remediation.reflector import Kind
from remediation.situation import Action, Decision, Now, Open, Situation
from runtime.clock import Clock

log = logging.getLogger(__name__)

VIEW_LIMIT = 5.0
"""Seconds: a view of the cluster that is older starts nothing."""

_RETRY = (0.2, 30.0)


class Resource(Enum):
    """The four resources that are watched."""

    REPORT = auto()
    NODE = auto()
    SESSION = auto()
    CONTROL = auto()


@dataclass(frozen=True, slots=True)
class Done:
    """A worker has carried out an action."""

    node_name: str
    action: Action
    report: Report


@dataclass(frozen=True, slots=True)
class Led:
    """Leadership began in this epoch, with all sessions stamped; or it ended (epoch 0)."""

    epoch: int


@dataclass(frozen=True, slots=True)
class NewPolicy:
    """The policy file has changed and is good."""

    policy: Policy


@dataclass(frozen=True, slots=True)
class Seen:
    """A watch delivered something; which resource it is of tells what vanished."""

    resource: Resource
    kind: Kind
    key: str
    found: AcceleratorReport | Node | AcceleratorRemediation | AcceleratorControl | None


Message = Seen | Done | Led | NewPolicy


@dataclass(slots=True)
class Engine:
    """The state of the loop. `view_age` says how old, in seconds, the oldest of the watches' views is."""

    clock: Clock
    policy: Policy
    executor: Executor
    workers: Workers
    view_age: Callable[[], float]
    remember_tokens: Callable[[StartTokens], None]
    on_done: Callable[[Done], None]
    fleet: Fleet = field(default_factory=Fleet)
    inbox: queue.SimpleQueue[Message] = field(default_factory=queue.SimpleQueue)
    epoch: int = 0
    sentences: dict[str, str] = field(default_factory=dict)
    _in_flight: set[str] = field(default_factory=set)
    _again: list[tuple[float, str]] = field(default_factory=list)
    _due: dict[str, float] = field(default_factory=dict)
    _waiting: set[str] = field(default_factory=set)
    _failures: dict[str, int] = field(default_factory=dict)
    _real: StartBucket | None = None
    _virtual: StartBucket | None = None

    def run_once(self, *, patience: float) -> None:
        """Take in one message, or wait at most `patience` seconds for it, then decide what it touches."""
        now = self.clock.monotonic()
        due = max(0.0, self._again[0][0] - now) if self._again else patience
        try:
            dirty = self._take_in(self.inbox.get(timeout=min(due, patience)))
        except queue.Empty:
            dirty = set()
        dirty |= self._fallen_due()
        if self.epoch:
            for name in sorted(dirty - self._in_flight):
                self._decide(name)

    def _look_again_in(self, name: str, seconds: float) -> None:
        """Look at a node again by then at the latest; only the earliest of several such wishes counts."""
        due = self.clock.monotonic() + seconds
        if due < self._due.get(name, math.inf):
            self._due[name] = due
            heapq.heappush(self._again, (due, name))

    def _fallen_due(self) -> set[str]:
        now = self.clock.monotonic()
        names = set()
        while self._again and self._again[0][0] <= now:
            due, name = heapq.heappop(self._again)
            if self._due.get(name) == due:
                del self._due[name]
                names.add(name)
        return names

    def _take_in(self, message: Message) -> set[str]:
        """Bring the cache up to date; the names of the nodes to look at."""
        match message:
            case Done():
                return self._done(message)
            case Led(epoch):
                self.epoch = epoch
                return set(self.fleet.nodes) | {session.spec.node_name for session in self.fleet.all_open()}
            case NewPolicy(policy):
                self.policy = policy
                return set(self.fleet.nodes)
            case Seen(kind=Kind.SYNCED):
                return set()
            case Seen(kind=Kind.DELETED, resource=resource, key=key):
                return self._vanished(resource, key)
            case Seen(found=found, key=key):
                return self._appeared(key, found)

    def _appeared(self, key: str, found: object) -> set[str]:
        match found:
            case AcceleratorReport():
                return {key} if self.fleet.put_report(found, self.clock.monotonic()) else set()
            case Node():
                self.fleet.put_node(found)
                return {key}
            case AcceleratorRemediation():
                return self._session(found)
            case AcceleratorControl():
                self.fleet.control = found
                return set(self.fleet.nodes)
        return set()

    def _vanished(self, resource: Resource, key: str) -> set[str]:
        match resource:
            case Resource.REPORT:
                self.fleet.drop_report(key)
                return {key}
            case Resource.NODE:
                self.fleet.drop_node(key)
                return {key}
            case Resource.SESSION:
                gone = self.fleet.drop_session(key)
                return self._waiting | ({gone.spec.node_name} if gone else set())
            case Resource.CONTROL:
                self.fleet.control = AcceleratorControl()
                return set(self.fleet.nodes)

    def _session(self, session: AcceleratorRemediation) -> set[str]:
        self.fleet.put_session(session)
        freed = self._waiting if session.current.phase.closed else set()
        return {session.spec.node_name} | freed

    def _done(self, done: Done) -> set[str]:
        self._in_flight.discard(done.node_name)
        self.on_done(done)
        report = done.report
        if report.node is not None:
            self.fleet.put_node(report.node)
        if report.control is not None:
            self.fleet.control = report.control
        dirty = {done.node_name}
        for session in report.sessions:
            dirty |= self._session(session)
        if isinstance(done.action, Open):
            self.fleet.starting.pop(done.node_name, None)
            self._settle(done.action, started=report.started)
        if report.error:
            return self._failed(done.node_name, report.error)
        self._failures.pop(done.node_name, None)
        return dirty

    def _failed(self, name: str, error: str) -> set[str]:
        """Look again after a growing, jittered pause; the first time at once, for most failures are races."""
        failures = self._failures.get(name, 0)
        self._failures[name] = failures + 1
        log.info(
            "an action did not go through", extra={"node": name, "error": error, "failures": failures + 1}
        )
        if failures == 0:
            return {name}
        first, most = _RETRY
        pause = min(most, first * 2 ** min(failures, 10)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._look_again_in(name, pause)
        return set()

    def _decide(self, name: str) -> None:
        now = Now(wall=self.clock.wall(), monotonic=self.clock.monotonic())
        decision = decide(
            Situation(
                name=name,
                fleet=self.fleet,
                policy=self.policy,
                bucket=self.bucket(virtual=False),
                virtual_bucket=self.bucket(virtual=True),
                now=now,
                epoch=self.epoch,
            )
        )
        self._say(name, decision)
        if decision.again is not None:
            self._waiting.add(name)
            self._look_again_in(name, decision.again)
        else:
            self._waiting.discard(name)
        if decision.action is not None:
            self._start(name, decision.action)

    def _start(self, name: str, action: Action) -> None:
        age = self.view_age()
        if age > VIEW_LIMIT:
            log.warning(
                "the view of the cluster is too old to act on", extra={"node": name, "age_seconds": age}
            )
            self._look_again_in(name, 1.0)
            return
        self._in_flight.add(name)
        if isinstance(action, Open):
            self.fleet.starting[name] = action.virtual
            self._charge(virtual=action.virtual)
        basis = Basis.of(self.fleet, name)
        self.workers.submit(self._carry_out, name, action, basis)

    def _carry_out(self, name: str, action: Action, basis: Basis) -> None:
        try:
            report = self.executor.carry_out(action, basis)
        except Exception as error:
            log.exception("an action failed in a way nobody foresaw", extra={"node": name})
            report = Report(error=repr(error))
        self.inbox.put(Done(name, action, report))

    def _say(self, name: str, decision: Decision) -> None:
        if self.sentences.get(name) == decision.sentence:
            return
        self.sentences[name] = decision.sentence
        level = logging.INFO if decision.action is not None or decision.again is not None else logging.DEBUG
        log.log(level, decision.sentence, extra={"node": name})

    def bucket(self, *, virtual: bool) -> StartBucket:
        """The start-rate bucket as of now: the real one, or the one that Observe sessions are charged to."""
        now = self.clock.monotonic()
        rate = self.policy.budgets.start_rate
        if self._real is None:
            self._real = self._restored(now)
        if self._virtual is None:
            self._virtual = StartBucket(tokens=float(rate.burst), refreshed=now)
        bucket = self._virtual if virtual else self._real
        return bucket.at(now, per_minute=rate.per_minute, burst=rate.burst)

    def _restored(self, now: float) -> StartBucket:
        """The bucket as the last leader left it, its age told by the wall clock and never negative."""
        known = self.fleet.control.status.start_tokens
        if known is None:
            return StartBucket(tokens=float(self.policy.budgets.start_rate.burst), refreshed=now)
        age = max(timedelta(0), self.clock.wall() - known.refreshed_time)
        return StartBucket(tokens=known.tokens, refreshed=now - age.total_seconds())

    def _charge(self, *, virtual: bool) -> None:
        """Take a token before the session exists, so that two starts at once cannot share one."""
        taken = self.bucket(virtual=virtual).taken()
        if virtual:
            self._virtual = taken
            return
        self._real = taken

    def _settle(self, opened: Open, *, started: bool) -> None:
        """Remember the bucket that a start was taken from, or put the token back where surely nothing started."""
        virtual = opened.virtual
        bucket = self.bucket(virtual=virtual)
        if started:
            if not virtual:
                tokens = StartTokens(tokens=bucket.tokens, refreshed_time=self.clock.wall())
                self.workers.submit(self.remember_tokens, tokens)
            return
        returned = StartBucket(tokens=bucket.tokens + 1, refreshed=bucket.refreshed)
        if virtual:
            self._virtual = returned
        else:
            self._real = returned
