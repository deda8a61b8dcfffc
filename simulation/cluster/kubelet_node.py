"""One simulated node: its kubelet's pods, devices and machine, and what it writes to the API.

The kubelet's loop is one: while a plugin hangs in Allocate, no pod is admitted, started or stopped on the node, and
the node stays Ready (measured on kubelet 1.37).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from simulation.cluster.interface import Object, Store, StoreError
from simulation.cluster.kubelet_admission import check_fit
from simulation.cluster.kubelet_devices import (
    AdmissionError,
    AllocateHangsError,
    DeviceManager,
    DevicePlugins,
    NoPlugins,
)
from simulation.cluster.kubelet_pod import ContainerRun, PodRun
from simulation.cluster.pod_writer import PodWriter, newer
from simulation.cluster.programs import Launch, Programs
from simulation.cluster.quantities import QuantityError
from simulation.cluster.view import NODES, PODS, View, finished, key_of, terminating, uid_of
from simulation.cluster.workqueue import WorkQueue


@dataclass(frozen=True, slots=True)
class Timings:
    """How long things take, in seconds. The defaults are the kubelet's, or medians measured on kubelet 1.37."""

    admit: float = 0.02
    """From the binding of a pod to its kubelet's decision."""
    start: float = 0.3
    """From admission to the first container's start."""
    stop: float = 0.8
    """From the last container's end to the pod's deletion in the API."""
    status: float = 10.0
    """Between looks at the node's own status (nodeStatusUpdateFrequency)."""
    report: float = 300.0
    """Between status writes where nothing has changed (nodeStatusReportFrequency)."""
    lease: float = 10.0
    """Between renewals of the node's Lease (a quarter of nodeLeaseDurationSeconds)."""
    retry: float = 0.5
    """From a write that was refused to the next try, and between questions to a plugin that hangs."""


@dataclass(frozen=True, slots=True)
class NodeShape:
    """A machine as its kubelet registers it."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    taints: tuple[Object, ...] = ()
    resources: dict[str, str] = field(
        default_factory=lambda: {"cpu": "64", "memory": "512Gi", "ephemeral-storage": "1Ti", "pods": "110"}
    )
    """Capacity and allocatable but for devices, which the plugins list."""
    address: str = ""
    plugins: DevicePlugins = field(default_factory=NoPlugins)
    programs: Programs = lambda launch: None
    """What runs in the containers."""


class NodePods:
    """The pods of one node's kubelet. Driven by `sync`, which returns when to call it next."""

    def __init__(
        self,
        shape: NodeShape,
        *,
        store: Store,
        view: View,
        timings: Timings,
        wake: Callable[[str], None],
        pod_address: Callable[[], str],
    ) -> None:
        self.shape = shape
        self.devices = DeviceManager(shape.plugins)
        self.boot_id = ""
        self._store = store
        self._view = view
        self._timings = timings
        self._wake = wake
        self._writer = PodWriter(
            store, view, node=shape.name, address=shape.address, devices=self.devices, pod_address=pod_address
        )
        self._runs: dict[str, PodRun] = {}
        self._refused: dict[str, AdmissionError] = {}
        self._waiting: dict[str, Object] = {}
        self._work: WorkQueue[str] = WorkQueue()
        self._stuck: str | None = None
        self._unheard: list[Object] = []

    def changed(self, pod: Object, now: float) -> None:
        """A pod that is bound to this node is new or has changed."""
        uid = uid_of(pod)
        run, due = self._runs.get(uid), now
        if run is not None:
            run.pod = newer(run.pod, pod)
        elif uid in self._refused or finished(pod):
            return
        else:
            due = now if uid in self._waiting else now + self._timings.admit
            self._waiting[uid] = pod
        self._work.add(uid, due)

    def gone(self, pod: Object, stamp: str) -> None:
        """A pod is not in the API any more: whatever still runs of it is killed, and its devices are free.

        A kubelet that is stuck in an admission does so later, and forcing the pod away that it is stuck in frees
        nothing.
        """
        if self._stuck is not None:
            self._unheard.append(pod)
            return
        uid = uid_of(pod)
        run = self._runs.pop(uid, None)
        if run is not None:
            run.kill(stamp)
        self._waiting.pop(uid, None)
        self._refused.pop(uid, None)
        self._writer.forget(uid)
        self._work.discard(uid)
        self.devices.release(uid)

    def poll(self, uid: str) -> None:
        """A program of the pod has something to tell."""
        self._work.add(uid)

    def devices_changed(self, now: float) -> None:
        """Take in what the plugins list, and tell of it in the status of the pods that it concerns."""
        for uid in self.devices.refresh(now):
            self._work.add(uid)

    def sync(self, now: float, moment: datetime) -> float | None:
        """Do everything that is due on the node."""
        stamp = stamp_of(moment)
        if self._stuck is not None and not self._unstick(now, stamp):
            return now + self._timings.retry
        while (uid := self._work.pop(now)) is not None:
            if uid in self._waiting and not self._admit(uid, now):
                self._stuck = uid
                return now + self._timings.retry
            try:
                due = self._advance(uid, now, stamp)
            except StoreError as error:
                # Somebody else has just written it, and the event of that is on its way.
                due = now + (0.01 if error.code == 409 else self._timings.retry)
            if due is not None:
                self._work.add(uid, due)
        return self._work.next_due()

    def kubelet_restarted(self, now: float, stamp: str) -> None:
        """The kubelet's process is a new one: pods go on, devices are unknown, nothing is stuck for now."""
        self.devices.restart(now)
        if self._stuck is not None:
            self.devices.release(self._stuck)
            self._resume(now, stamp)

    def crash(self) -> None:
        """The machine goes down, and every process with it."""
        for run in self._runs.values():
            for one in run.containers:
                if one.program is not None:
                    one.program.kill()

    def boot(self, boot_id: str, now: float, stamp: str) -> None:
        """The machine is up again: what ran is lost, and every pod is admitted anew, with no plugin there yet."""
        self.boot_id = boot_id
        self.kubelet_restarted(now, stamp)
        for uid, run in self._runs.items():
            run.machine_restarted(now, stamp)
            self._work.add(uid)
            if run.done or run.kill_at is not None:
                continue
            try:
                self.devices.admit(run.pod)
            except AdmissionError as refusal:
                run.rejection = refusal.reason, refusal.message
            except AllocateHangsError:
                continue

    def _unstick(self, now: float, stamp: str) -> bool:
        """Ask the plugin again; whether the kubelet goes on."""
        if self._stuck in self._waiting and not self._admit(self._stuck, now):
            return False
        self._resume(now, stamp)
        return True

    def _resume(self, now: float, stamp: str) -> None:
        stuck, self._stuck = self._stuck, None
        unheard, self._unheard = self._unheard, []
        if stuck is not None:
            self._work.add(stuck, now)
        for pod in unheard:
            self.gone(pod, stamp)

    def _admit(self, uid: str, now: float) -> bool:
        """Take a pod on or refuse it; False while a plugin does not answer."""
        pod = self._waiting[uid]
        if terminating(pod) and uid != self._stuck:
            del self._waiting[uid]
            self._runs[uid] = PodRun(pod, now=now, start_seconds=self._timings.start)
            return True
        node = self._view.get(NODES, ("", self.shape.name))
        try:
            self.devices.admit(pod)
            check_fit(pod, node, [run.pod for run in self._runs.values() if not run.done])
        except AllocateHangsError:
            return False
        except QuantityError as error:
            self._refuse(uid, AdmissionError("UnexpectedAdmissionError", f"Pod was rejected: {error}"))
        except AdmissionError as refusal:
            self._refuse(uid, refusal)
        else:
            self._runs[uid] = PodRun(pod, now=now, start_seconds=self._timings.start)
        del self._waiting[uid]
        return True

    def _refuse(self, uid: str, refusal: AdmissionError) -> None:
        self._refused[uid] = refusal
        self.devices.release(uid)

    def _advance(self, uid: str, now: float, stamp: str) -> float | None:
        if refusal := self._refused.get(uid):
            self._writer.refuse(uid, refusal, stamp)
            return None
        run = self._runs.get(uid)
        if run is None:
            return None
        if terminating(run.pod):
            run.terminate(now, float(run.pod["metadata"].get("deletionGracePeriodSeconds") or 0))
        run.advance(now, stamp, lambda one: self._launch(run, one, now), self.shape.programs)
        if run.done:
            self.devices.release(uid)
        self._writer.tell(run, now, stamp)
        if run.ended_at is not None and now >= run.ended_at + self._timings.stop:
            namespace, name = key_of(run.pod)
            self._store.delete(PODS, name, namespace=namespace, uid=uid, grace_seconds=0)
            return None
        return run.due(now, self._timings.stop)

    def _launch(self, run: PodRun, one: ContainerRun, now: float) -> Launch:
        uid = uid_of(run.pod)
        return Launch(
            node=self.shape.name,
            boot_id=self.boot_id,
            pod=run.pod,
            container=one.name,
            init=one.init,
            started=now,
            wake=lambda: self._wake(uid),
        )


def stamp_of(moment: datetime) -> str:
    """A moment as Kubernetes' Time, which has whole seconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
