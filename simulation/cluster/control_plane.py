"""The control plane of the embedded API in one thread: controllers, scheduler, collector and kubelets.

In real time `start` and `stop` run a thread that sleeps until something has changed or is due. Under a virtual clock
nobody sleeps: `settle` does what is due now, `next_due` says how far the clock may be moved.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from runtime.clock import Clock
from simulation.cluster.collector import Collector, PodCollector
from simulation.cluster.daemon_sets import DaemonSets
from simulation.cluster.deployments import Deployments
from simulation.cluster.disruption import Disruption
from simulation.cluster.interface import Store, StoreEvent
from simulation.cluster.jobs import Jobs
from simulation.cluster.kubelet import Kubelets
from simulation.cluster.kubelet_node import Timings
from simulation.cluster.node_lifecycle import GRACE_SECONDS, NodeLifecycle
from simulation.cluster.replica_sets import ReplicaSets
from simulation.cluster.scheduler import Scheduler
from simulation.cluster.view import LEASES, WATCHED, View
from simulation.cluster.workqueue import Component

OWNED = ("configmaps", "secrets", "serviceaccounts", "services", "statefulsets.apps")
"""Built-in resources that nothing here acts on, but that may own or be owned."""

SHARE = 256
"""Pieces of work that a component does before it is another one's turn."""

STEPS_LIMIT = 100_000
"""Rounds after which `settle` takes it that two components undo each other's work."""

log = logging.getLogger(__name__)


class UnsettledError(Exception):
    """The control plane did not come to rest."""


class ControlPlane:
    """All that acts on a store besides its clients. `collected` are custom resources that may own or be owned."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock,
        timings: Timings | None = None,
        collected: Iterable[str] = (),
        node_grace: float = GRACE_SECONDS,
        boot_ids: Callable[[], str] | None = None,
    ) -> None:
        self.view = View()
        self._store = store
        self._clock = clock
        self._inbox: deque[StoreEvent] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._listed = False
        more = {} if boot_ids is None else {"boot_ids": boot_ids}
        self.kubelets = Kubelets(store, self.view, clock=clock, timings=timings, notify=self._notify, **more)
        nodes = NodeLifecycle(store, self.view, clock=clock, grace=node_grace)
        self._components: Sequence[Component] = (
            Deployments(store, self.view, clock=clock),
            ReplicaSets(store, self.view, clock=clock),
            DaemonSets(store, self.view, clock=clock),
            Jobs(store, self.view, clock=clock),
            Scheduler(store, self.view, clock=clock),
            self.kubelets,
            nodes,
            Disruption(store, self.view, clock=clock),
            PodCollector(store, self.view, clock=clock),
        )
        self._collector = Collector(store)
        self._listeners: dict[str, Sequence[Component]] = {
            **dict.fromkeys(WATCHED, self._components),
            LEASES: (nodes,),
        }
        self._resources = (*WATCHED, LEASES, *OWNED, *collected)

    def start(self) -> None:
        """Run in a thread until `stop`."""
        self._thread = threading.Thread(target=self._run, name="control-plane", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> bool:
        """End the thread; whether it ended within `timeout` seconds."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(timeout)
            return not self._thread.is_alive()
        return True

    def settle(self) -> int:
        """Do everything that is due now, and what follows from it at this moment; how many rounds it took.

        Raises UnsettledError if there is no end to it.
        """
        for steps in range(STEPS_LIMIT):
            if not self._step():
                return steps
        raise UnsettledError(f"after {STEPS_LIMIT} rounds there is still work due at the same moment")

    def next_due(self) -> float | None:
        """When there is work next (monotonic seconds), if nothing changes before."""
        if self._inbox or not self._listed:
            return 0.0
        due = [component.next_due() for component in (*self._components, self._collector)]
        return min((one for one in due if one is not None), default=None)

    def _step(self) -> bool:
        """A share of work of each component; whether there was any."""
        self._list()
        now, worked = self._clock.monotonic(), False
        for component in (*self._components, self._collector):
            self._pump()
            # Many pods are bound and started before their controllers count them again.
            for _ in range(SHARE):
                if not component.work(now):
                    break
                worked = True
                self._pump()
        return worked or bool(self._inbox)

    def _list(self) -> None:
        """Begin to listen, then take in what was there before."""
        if self._listed:
            return
        self._listed = True
        self._store.subscribe(self._hear)
        for resource in self._resources:
            for item in self._store.list(resource):
                self._take(StoreEvent("ADDED", resource, item))

    def _hear(self, event: StoreEvent) -> None:
        self._inbox.append(event)
        self._notify()

    def _pump(self) -> None:
        while self._inbox:
            self._take(self._inbox.popleft())

    def _take(self, event: StoreEvent) -> None:
        change = self.view.apply(event)
        if change is None:
            return
        for component in self._listeners.get(event.resource, ()):
            component.observe(change)
        self._collector.observe(change)

    def _notify(self) -> None:
        if self._thread is None or threading.current_thread() is self._thread:
            return
        with self._wake:
            self._wake.notify()

    def _run(self) -> None:
        while True:
            try:
                while not self._stopping and self._step():
                    continue
            except Exception:
                # What it was about is dropped; a thread that dies would leave the whole cluster without control.
                log.exception("a piece of the control plane's work failed")
            with self._wake:
                if self._stopping:
                    return
                due = self.next_due()
                if self._inbox:
                    continue
                self._wake.wait(None if due is None else max(0.0, due - self._clock.monotonic()))
