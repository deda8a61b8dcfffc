"""The real remediation engine in virtual time: its session goes to the embedded store's handlers, without sockets.

Engine, executor, steps and the calls to the API are the controller's own. What is not: threads (actions are carried out
where they are decided), the watch's connection (changes are handed over in the store's order), and the Lease (a term is
begun by `take_over`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor as Workers
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml
from msgspec.structs import replace

from health.report import AcceleratorReport
from remediation.cluster import CONTROL_NAME, Cluster
from remediation.engine import Done, Engine, Led, Resource, Seen
from remediation.executor import Executor
from remediation.fleet import Node
from remediation.objects import AcceleratorControl, AcceleratorRemediation, StartTokens
from remediation.pod_api import KubernetesPods
from remediation.policy import Policy
from remediation.reflector import Kind
from remediation.repair_api import KubernetesRepairs
from remediation.retention import outlived
from runtime.api_errors import ApiError
from runtime.clock import Clock
from simulation.cluster.interface import StoreEvent
from simulation.cluster.store import ClusterStore
from simulation.store_session import StoreSession

Read = TypeVar("Read")

REPAIR_TEMPLATES = Path(__file__).resolve().parents[1] / "deploy" / "repair" / "templates.yaml"
REPAIR_NAMESPACE = "sickbay-repair"
SYSTEM_NAMESPACE = "sickbay-system"
_CONTROLS = "acceleratorcontrols.sickbay.dev"
_WATCHED: dict[str, tuple[Resource, type[Any]]] = {
    "acceleratorreports.sickbay.dev": (Resource.REPORT, AcceleratorReport),
    "nodes": (Resource.NODE, Node),
    "acceleratorremediations.sickbay.dev": (Resource.SESSION, AcceleratorRemediation),
    _CONTROLS: (Resource.CONTROL, AcceleratorControl),
}
_KINDS = {"ADDED": Kind.ADDED, "MODIFIED": Kind.MODIFIED, "DELETED": Kind.DELETED}
_ROUNDS = 10_000
_HOUSEKEEPING = 3600.0
TICK = 1.0
"""Seconds between an engine's looks at what has fallen due, as in its process."""


class UnsettledControllerError(Exception):
    """The controller did not come to rest at one moment."""


class _Inline(Workers):
    """Work is done when it is handed over."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        fn(*args, **kwargs)
        return Future()


class VirtualController:
    """One controller. `on_done` hears of every action that was carried out."""

    def __init__(
        self,
        store: ClusterStore,
        *,
        clock: Clock,
        policy: Policy,
        on_done: Callable[[Done], None] = lambda done: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._session = StoreSession(store, user_agent="sickbay-controller/simulated epoch/0")
        self._cluster = Cluster(self._session, may_write=self._may_write)
        self._events: deque[StoreEvent] = deque()
        self._leads = False
        self._stopped = False
        self._looked = -TICK
        self._cleaned = clock.monotonic()
        pods = KubernetesPods(self._session, clock=clock, may_write=self._may_write)
        repairs = KubernetesRepairs(self._session, self._cluster, pods, may_write=self._may_write)
        self.engine = Engine(
            clock=clock,
            policy=policy,
            executor=Executor(
                self._cluster,
                pods,
                clock,
                repairs=repairs,
                epoch=lambda: self.engine.epoch,
                aside=_read_at_once,
            ),
            workers=_Inline(),
            view_age=lambda: 0.0,
            remember_tokens=self._remember_tokens,
            on_done=on_done,
        )
        store.subscribe(self._hear)
        for resource in _WATCHED:
            for item in store.list(resource):
                self._events.append(StoreEvent("ADDED", resource, item))

    def take_over(self, transitions: int = 0) -> int:
        """Begin a term, as the controller's process does; the epoch."""
        found = self._cluster.all_sessions()
        epoch = found.next_epoch(transitions, tried=0)
        self._session.user_agent = f"sickbay-controller/simulated epoch/{epoch}"
        self._leads = True
        for session in found.readable:
            if not session.current.phase.closed:
                stamped = self._cluster.write_status(session, replace(session.current, leader_epoch=epoch))
                self.engine.inbox.put(Seen(Resource.SESSION, Kind.MODIFIED, stamped.metadata.name, stamped))
        self.engine.inbox.put(Led(epoch))
        return epoch

    def stop(self) -> None:
        """Its process dies: it hears and does nothing any more."""
        self._leads, self._stopped = False, True
        self._events.clear()

    def next_due(self) -> float:
        """When to call `step` next, if nothing changes before."""
        return 0.0 if self._events else self._looked + TICK

    def step(self, now: float) -> bool:
        """Take in what has changed, decide and act, until there is nothing left to do; whether anything was done."""
        if self._stopped or not (self._events or now >= self._looked + TICK):
            return False
        self._looked = now
        worked = bool(self._events)
        for _ in range(_ROUNDS):
            while self._events:
                self._see(self._events.popleft())
            self.engine.run_once(patience=0)
            if not self._events and self.engine.inbox.empty():
                self._keep_house(now)
                return worked
        raise UnsettledControllerError(f"after {_ROUNDS} rounds: {self.engine.sentences}")

    def _see(self, event: StoreEvent) -> None:
        resource, struct = _WATCHED[event.resource]
        name = event.object["metadata"]["name"]
        if event.type == "DELETED":
            self.engine.inbox.put(Seen(resource, Kind.DELETED, name, None))
            return
        try:
            found = msgspec.convert(event.object, struct)
        except msgspec.ValidationError:
            return  # as the reflector does
        self.engine.inbox.put(Seen(resource, _KINDS[event.type], name, found))

    def _hear(self, event: StoreEvent) -> None:
        if event.resource in _WATCHED and not self._stopped:
            self._events.append(event)

    def _may_write(self) -> bool:
        return self._leads

    def _remember_tokens(self, tokens: StartTokens) -> None:
        try:
            self._cluster.write_start_tokens(tokens)
        except ApiError:
            return  # as the controller's process does, which says so in its log

    def _keep_house(self, now: float) -> None:
        if now - self._cleaned < _HOUSEKEEPING or not self.engine.epoch:
            return
        self._cleaned = now
        for session in outlived(self.engine.fleet.sessions.values(), self._clock.wall()):
            self._cluster.delete_session(session)


def install(store: ClusterStore, *, templates: Path = REPAIR_TEMPLATES) -> None:
    """What a controller needs in the cluster: its switches, namespaces, and the PodTemplates of the repairs."""
    store.create(
        _CONTROLS,
        {
            "apiVersion": "sickbay.dev/v1alpha1",
            "kind": "AcceleratorControl",
            "metadata": {"name": CONTROL_NAME},
        },
    )
    for name in (SYSTEM_NAMESPACE, REPAIR_NAMESPACE):
        store.create("namespaces", {"metadata": {"name": name}})
    for document in yaml.safe_load_all(templates.read_text(encoding="utf-8")):
        store.create("podtemplates", document, namespace=REPAIR_NAMESPACE)


def _read_at_once(read: Callable[[], Read], /) -> Callable[[], Read]:
    found = read()
    return lambda: found
