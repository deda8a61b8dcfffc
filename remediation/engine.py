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
from enum import Enum, auto

from health.report import AcceleratorReport
from remediation.budget import StartBucket
from remediation.decide import decide
from remediation.executor import VIEW_LIMIT, Basis, Executor, Report
from remediation.fleet import Fleet, Node
from remediation.objects import AcceleratorControl, AcceleratorRemediation, StartTokens
from remediation.policy import Policy
from remediation.reflector import Kind
from remediation.situation import RECHECK, Action, Decision, Now, Open, Run, Situation
from remediation.starts import StartLimit
from runtime.clock import Clock

log = logging.getLogger(__name__)

_RETRY = (0.2, 30.0)
_BATCH = 500


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


def _ignore(done: Done) -> None:
    """Nobody counts."""


@dataclass(slots=True)
class Engine:
    """The state of the loop. `view_age` says how old, in seconds, the oldest of the watches' views is.

    `on_done` is told of every action that was carried out, in the loop's thread.
    """

    clock: Clock
    policy: Policy
    executor: Executor
    workers: Workers
    view_age: Callable[[], float]
    remember_tokens: Callable[[StartTokens], None]
    on_done: Callable[[Done], None] = _ignore
    fleet: Fleet = field(default_factory=Fleet)
    inbox: queue.SimpleQueue[Message] = field(default_factory=queue.SimpleQueue)
    epoch: int = 0
    sentences: dict[str, str] = field(default_factory=dict)
    _in_flight: set[str] = field(default_factory=set)
    _again: list[tuple[float, str]] = field(default_factory=list)
    _due: dict[str, float] = field(default_factory=dict)
    _waiting: set[str] = field(default_factory=set)
    _failures: dict[str, int] = field(default_factory=dict)
    _paused: dict[str, float] = field(default_factory=dict)
    _resume: dict[str, float] = field(default_factory=dict)
    _starts: StartLimit = field(init=False)

    def __post_init__(self) -> None:
        self._starts = StartLimit(self.clock, self.remember_tokens)

    def run_once(self, *, patience: float) -> None:
        """Take in what there is, or wait at most `patience` seconds for it, then decide what it touches.

        What has come is taken in before anything is decided: a fault that is over by the next message is over.
        """
        dirty = self._taken_in(patience) | self._fallen_due()
        if self.epoch:
            for name in sorted(dirty - self._in_flight):
                left = self._paused.get(name, -math.inf) - self.clock.monotonic()
                if left > 0:
                    self._look_again_in(name, left)
                else:
                    self._decide(name)

    def _taken_in(self, patience: float) -> set[str]:
        due = self._again[0][0] - self.clock.monotonic() if self._again else patience
        wait = max(0.0, min(due, patience))
        dirty: set[str] = set()
        try:
            for taken in range(_BATCH):
                dirty |= self._take_in(self.inbox.get(timeout=0 if taken else wait))
        except queue.Empty:
            pass
        return dirty

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
                return self._led(epoch)
            case NewPolicy(policy):
                self.policy = policy
                return set(self.fleet.nodes)
            case Seen(kind=Kind.SYNCED):
                return set()
            case Seen(kind=Kind.DELETED, resource=resource, key=key):
                return self._vanished(resource, key)
            case Seen(found=found, key=key):
                return self._appeared(key, found)

    def _led(self, epoch: int) -> set[str]:
        """A term begins with what the last leader left behind, not with what was remembered from an earlier one."""
        self.epoch = epoch
        self._starts.restore(self.fleet, self.policy.budgets.start_rate)
        self._failures.clear()
        self._paused.clear()
        self._resume.clear()
        return set(self.fleet.nodes) | {session.spec.node_name for session in self.fleet.all_open()}

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
                return set(self.fleet.nodes) if self.fleet.put_control(found) else set()
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
                return self._gone(key)
            case Resource.CONTROL:
                return set(self.fleet.nodes) if self.fleet.put_control(AcceleratorControl()) else set()

    def _session(self, session: AcceleratorRemediation) -> set[str]:
        """Take in a session; where it has just closed, those that wait for room are looked at too."""
        freed = self._waiting if self.fleet.put_session(session) else set()
        return {session.spec.node_name} | freed

    def _gone(self, name: str) -> set[str]:
        gone = self.fleet.drop_session(name)
        return self._waiting | {gone.spec.node_name} if gone is not None else set()

    def _done(self, done: Done) -> set[str]:
        name, report = done.node_name, done.report
        self._in_flight.discard(name)
        self.fleet.end_disruption(name)
        self._rest(name, report)
        dirty = {name}
        if report.node is not None:
            self.fleet.refresh_node(report.node)
        if report.control is not None and self.fleet.put_control(report.control):
            dirty |= set(self.fleet.nodes)
        for session in report.sessions:
            dirty |= self._session(session)
        for session_name in report.gone:
            dirty |= self._gone(session_name)
        if isinstance(done.action, Open) and done.action.charged:
            self.fleet.end(name)
            self._settle(done.action, started=report.started)
        self.on_done(done)
        if report.failed:
            self._failed(name, report.failed)
        else:
            self._failures.pop(name, None)
        return dirty

    def _rest(self, name: str, report: Report) -> None:
        """A step that waits says when it wants to be taken again."""
        wait = report.outcome.again if report.outcome is not None else None
        if wait is None:
            self._resume.pop(name, None)
        else:
            self._resume[name] = self.clock.monotonic() + wait

    def _settle(self, opened: Open, *, started: bool) -> None:
        """Remember the bucket that a start was taken from, or put the token back where surely nothing started."""
        rate = self.policy.budgets.start_rate
        if not started:
            self._starts.refund(rate, virtual=opened.virtual)
        elif not opened.virtual:
            self._starts.note(rate)
            self.workers.submit(self._starts.remember)

    def _failed(self, name: str, why: str) -> None:
        """Look again after a growing, jittered pause; the first time at once, for most failures are races.

        Until then nothing else is a reason to look: what the failed attempt itself wrote comes back by the watch.
        """
        failures = self._failures[name] = self._failures.get(name, 0) + 1
        log.info("an action did not go through", extra={"node": name, "error": why, "failures": failures})
        if failures == 1:
            return
        first, most = _RETRY
        pause = min(most, first * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._paused[name] = self.clock.monotonic() + pause

    def _decide(self, name: str) -> None:
        now = Now(wall=self.clock.wall(), monotonic=self.clock.monotonic())
        self._paused.pop(name, None)
        try:
            decision = decide(
                Situation(
                    name=name,
                    fleet=self.fleet,
                    policy=self.policy,
                    bucket=self.bucket(virtual=False),
                    virtual_bucket=self.bucket(virtual=True),
                    now=now,
                    epoch=self.epoch,
                    resume_at=self._resume.get(name, 0.0),
                )
            )
        except Exception:
            # One node's objects, whatever is in them, never stop the others.
            log.exception("no decision can be made about a node", extra={"node": name})
            self._look_again_in(name, RECHECK)
            return
        if decision.again is not None:
            self._waiting.add(name)
            self._look_again_in(name, decision.again)
        else:
            self._waiting.discard(name)
        if decision.action is not None and self.view_age() > VIEW_LIMIT:
            self._look_again_in(name, 1.0)
            decision = Decision(f"{name}: the view of the cluster is too old to act on", again=1.0)
        elif decision.action is not None:
            self._start(name, decision.action)
        # Said when it is under way: to write a line takes as long as to decide.
        self._say(name, decision)

    def _start(self, name: str, action: Action) -> None:
        self._in_flight.add(name)
        if isinstance(action, Open) and action.charged:
            self.fleet.begin(name, virtual=action.virtual)
            self._starts.charge(self.policy.budgets.start_rate, virtual=action.virtual)
        if isinstance(action, Run) and action.order is not None:
            drain = action.status.drain
            self.fleet.begin_disruption(name, drain.gangs if drain is not None else ())
        basis = Basis.of(self.fleet, name, epoch=self.epoch, now=self.clock.monotonic())
        self.workers.submit(self._carry_out, name, action, basis)

    def _carry_out(self, name: str, action: Action, basis: Basis) -> None:
        try:
            report = self.executor.carry_out(action, basis)
        except Exception as error:
            log.exception("an action failed in a way nobody foresaw", extra={"node": name})
            report = Report(error=repr(error), started=True)
        self.inbox.put(Done(name, action, report))

    def _say(self, name: str, decision: Decision) -> None:
        """Log a decision that is news. What is said of nodes that are gone is not kept."""
        if self.sentences.get(name) == decision.sentence:
            return
        if name in self.fleet.nodes:
            self.sentences[name] = decision.sentence
        else:
            self.sentences.pop(name, None)
        level = logging.INFO if decision.action is not None or decision.again is not None else logging.DEBUG
        log.log(level, decision.sentence, extra={"node": name})

    def bucket(self, *, virtual: bool) -> StartBucket:
        """The start-rate bucket as of now: the real one, or the one that Observe sessions are charged to."""
        return self._starts.bucket(self.policy.budgets.start_rate, virtual=virtual)
