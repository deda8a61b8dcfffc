"""A controller without threads: real engine, executor and cluster, watches that deliver when they are told to."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor as Workers
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from health.report import AcceleratorReport
from remediation.cluster import CONTROLS, NODES, REMEDIATIONS, REPORTS, Cluster, FencedError
from remediation.drain import Eviction, Notice, OwnerNotice
from remediation.drain_state import EvictedPod
from remediation.engine import Engine, Led, Resource, Seen
from remediation.executor import Basis, Executor, RepairApi
from remediation.fleet import Node
from remediation.objects import AcceleratorControl, AcceleratorRemediation, StartTokens
from remediation.pod import Pod
from remediation.policy import Policy
from remediation.reflector import Kind
from remediation.situation import Action
from remediation.steps.plugin import DaemonSetView
from runtime.api_errors import ApiError
from runtime.clock import ManualClock
from tests.fake_pods import FakePods
from tests.fake_repairs import FakeRepairs
from tests.unit.fake_cluster import COLLECTIONS, FakeApi, FakeSession

Read = TypeVar("Read")

_WATCHED: dict[str, tuple[Resource, type[Any]]] = {
    REPORTS: (Resource.REPORT, AcceleratorReport),
    NODES: (Resource.NODE, Node),
    REMEDIATIONS: (Resource.SESSION, AcceleratorRemediation),
    CONTROLS: (Resource.CONTROL, AcceleratorControl),
}
_KINDS = {"ADDED": Kind.ADDED, "MODIFIED": Kind.MODIFIED, "DELETED": Kind.DELETED}


def read_at_once(read: Callable[[], Read], /) -> Callable[[], Read]:
    """No threads: it is read before the caller goes on."""
    found = read()
    return lambda: found


@dataclass
class GuardedPods:
    """A controller's way to the pods: every mutation asks first whether it may."""

    pods: FakePods
    may_write: Callable[[], bool]

    def pods_on(self, node_name: str) -> tuple[Pod, ...]:
        return self.pods.pods_on(node_name)

    def replacements(self, evicted: Sequence[EvictedPod], *, since: datetime) -> tuple[str, ...]:
        return self.pods.replacements(evicted, since=since)

    def daemon_set(self, namespace: str, name: str) -> DaemonSetView:
        return self.pods.daemon_set(namespace, name)

    def evict(self, eviction: Eviction) -> None:
        self._guard()
        self.pods.evict(eviction)

    def tell(self, notice: Notice) -> None:
        self._guard()
        self.pods.tell(notice)

    def tell_owner(self, notice: OwnerNotice) -> None:
        self._guard()
        self.pods.tell_owner(notice)

    def delete_pod(self, namespace: str, name: str, uid: str) -> None:
        self._guard()
        self.pods.delete_pod(namespace, name, uid)

    def _guard(self) -> None:
        if not self.may_write():
            raise FencedError("the lease is not proven, so nothing is written", reason="Fenced")


class InlineWorkers(Workers):
    """Work that is done when the test says so; `at_once` does it on submission."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.at_once = at_once
        self.pending: deque[Callable[[], object]] = deque()
        self.on_action: Callable[[str, Action, Basis], None] = lambda name, action, basis: None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if len(args) == 3:
            self.on_action(*args)
        if self.at_once:
            fn(*args, **kwargs)
        else:
            self.pending.append(lambda: fn(*args, **kwargs))
        return Future()

    def run_next(self) -> None:
        self.pending.popleft()()


class ScriptedWatches:
    """What the watches of one controller have delivered so far."""

    def __init__(self, api: FakeApi, sink: Callable[[Seen], None]) -> None:
        self._api = api
        self._sink = sink
        self._known: dict[str, set[str]] = {collection: set() for collection in COLLECTIONS}
        self._next = dict.fromkeys(COLLECTIONS, 0)

    def list_all(self) -> None:
        """What reflectors do first, and after a gap: everything there is, and what vanished meanwhile."""
        for collection in COLLECTIONS:
            there = self._api.objects[collection]
            for name in self._known[collection] - there.keys():
                self._deliver(collection, "DELETED", {"metadata": {"name": name}})
            for document in there.values():
                self._deliver(collection, "ADDED", document)
            self._next[collection] = len(self._api.events[collection])

    def behind(self, collection: str) -> int:
        """How many events it has not delivered."""
        return len(self._api.events[collection]) - self._next[collection]

    def deliver(self, collection: str, count: int = 1) -> None:
        """The next events of a collection, in their order."""
        for _ in range(min(count, self.behind(collection))):
            event = self._api.events[collection][self._next[collection]]
            self._next[collection] += 1
            self._deliver(collection, event.type, event.object)

    def deliver_all(self) -> bool:
        """Everything; whether there was anything."""
        behind = {collection: self.behind(collection) for collection in COLLECTIONS}
        for collection, count in behind.items():
            self.deliver(collection, count)
        return any(behind.values())

    def repeat(self, collection: str) -> None:
        """The last event once more."""
        if self._next[collection]:
            event = self._api.events[collection][self._next[collection] - 1]
            self._deliver(collection, event.type, event.object)

    def age(self, now: float) -> float:
        """How old the view is: since when an event has been waiting."""
        waiting = [
            self._api.events[collection][self._next[collection]].time
            for collection in COLLECTIONS
            if self.behind(collection)
        ]
        return now - min(waiting, default=now)

    def _deliver(self, collection: str, type_: str, document: dict[str, Any]) -> None:
        resource, struct = _WATCHED[collection]
        name = document["metadata"]["name"]
        if type_ == "DELETED":
            self._known[collection].discard(name)
            self._sink(Seen(resource, Kind.DELETED, name, None))
            return
        self._known[collection].add(name)
        try:
            found = msgspec.json.decode(msgspec.json.encode(document), type=struct)
        except msgspec.MsgspecError:
            return  # as the reflector does
        self._sink(Seen(resource, _KINDS[type_], name, found))


@dataclass
class FakeController:
    """One controller process. `transitions` is what the Lease counts."""

    api: FakeApi
    clock: ManualClock
    policy: Policy
    workers: InlineWorkers = field(default_factory=InlineWorkers)
    allowance: int = 0
    """Mutations that pass the check of the lease although this controller does not lead."""
    leads: bool = False
    on_seen: Callable[[Seen], None] = lambda seen: None
    pods: FakePods | None = None
    repairs_of: Callable[[Cluster, GuardedPods], RepairApi] = FakeRepairs
    session: FakeSession = field(init=False)
    cluster: Cluster = field(init=False)
    engine: Engine = field(init=False)
    watches: ScriptedWatches = field(init=False)

    def __post_init__(self) -> None:
        self.session, self.cluster = self.api.cluster(may_write=self._may_write)
        pods = GuardedPods(self.pods or FakePods(self.clock), self._may_write)
        self.engine = Engine(
            clock=self.clock,
            policy=self.policy,
            executor=Executor(
                self.cluster,
                pods,
                self.clock,
                repairs=self.repairs_of(self.cluster, pods),
                epoch=lambda: self.engine.epoch,
                aside=read_at_once,
            ),
            workers=self.workers,
            view_age=lambda: self.watches.age(self.clock.monotonic()),
            remember_tokens=self._remember_tokens,
        )
        self.watches = ScriptedWatches(self.api, self._see)
        self.watches.list_all()

    def _see(self, seen: Seen) -> None:
        self.on_seen(seen)
        self.engine.inbox.put(seen)

    def _may_write(self) -> bool:
        if self.leads:
            return True
        self.allowance -= 1
        return self.allowance >= 0

    def _remember_tokens(self, tokens: StartTokens) -> None:
        try:
            self.cluster.write_start_tokens(tokens)
        except ApiError:
            return

    def take_over(self, transitions: int, *, tries: int = 50) -> int:
        """Begin a term, as `Controller` does; the epoch, or 0 where it could not."""
        epoch = 0
        for _ in range(tries):
            try:
                found = self.cluster.all_sessions()
                sessions, epoch = found.readable, found.next_epoch(transitions, tried=epoch)
                self.session.user_agent = f"sickbay-controller/test epoch/{epoch}"
                self.leads = True
                for item in sessions:
                    if not item.current.phase.closed:
                        stamped = self.cluster.write_status(item, replace(item.current, leader_epoch=epoch))
                        self.engine.inbox.put(
                            Seen(Resource.SESSION, Kind.MODIFIED, stamped.metadata.name, stamped)
                        )
                self.engine.inbox.put(Led(epoch))
                return epoch
            except ApiError:
                self.leads = False
        return 0

    def pump(self, *, limit: int = 500) -> None:
        """Take in what is in the inbox, and decide about what it and the clock touch."""
        for _ in range(limit):
            self.engine.run_once(patience=0)
            if self.engine.inbox.empty():
                return
        raise AssertionError(f"does not come to rest: {self.engine.sentences}")

    def settle(self, *, limit: int = 400) -> None:
        """Deliver, decide and carry out until nothing is left to do. Without new input that is soon."""
        for _ in range(limit):
            self.pump()
            if self.workers.pending:
                self.workers.run_next()
            elif not self.watches.deliver_all() and self.engine.inbox.empty():
                return
        raise AssertionError(f"does not come to rest: {self.engine.sentences}")

    def let_pass(self, seconds: float, *, step: float = 10.0) -> None:
        """Let time pass in small steps, with everything delivered and carried out."""
        left = seconds
        while left > 0:
            self.clock.advance(min(step, left))
            left -= step
            self.settle()
