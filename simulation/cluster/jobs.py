"""Jobs as kube-controller-manager runs them: pods until enough have succeeded, or too many have failed.

Source: pkg/controller/job/job_controller.go of Kubernetes 1.37, with the default gates: a pod is held by a finalizer
until it has been counted; a pod that is being deleted counts as failed at once and is replaced after a back-off; the
last condition waits until every pod has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from runtime.clock import Clock
from simulation.cluster.interface import Object, Store, StoreError
from simulation.cluster.job_pods import FINALIZER, finish_time, free_indexes, indexed, job_pod
from simulation.cluster.job_status import (
    JobCounts,
    count,
    deadline_passed,
    ended_status,
    ending_condition,
    finished_condition,
    job_status,
)
from simulation.cluster.view import (
    JOBS,
    PODS,
    Change,
    Key,
    View,
    active,
    controller_of,
    key_of,
    terminating,
    uid_of,
)
from simulation.cluster.workloads import BURST, delete_pod, deletion_order, moment_of, write_status
from simulation.cluster.workqueue import Reconciler

FIRST_BACK_OFF_SECONDS = 10.0
LAST_BACK_OFF_SECONDS = 600.0
"""From a pod's failure to its replacement, doubled with each (DefaultJobPodFailureBackOff, MaxJobPodFailureBackOff)."""


@dataclass(slots=True)
class _BackOff:
    """Failures since the last success, and when the last of them was."""

    failures: int = 0
    last: datetime | None = None


class Jobs:
    """The Job controller and the one that deletes finished Jobs: a component of the control plane."""

    def __init__(self, store: Store, view: View, *, clock: Clock) -> None:
        self._store = store
        self._view = view
        self._clock = clock
        self._back_off: dict[str, _BackOff] = {}
        self._reconciler: Reconciler[Key] = Reconciler(self._reconcile)
        self._orphans: Reconciler[Key] = Reconciler(self._let_go)
        self.next_due = self._next_due

    def observe(self, change: Change) -> None:
        """A Job changed, or a pod of one; a pod whose Job is gone is let go."""
        if change.resource == JOBS:
            self._reconciler.add(change.key)
            if change.deleted:
                self._back_off.pop(uid_of(change.object), None)
                for pod in self._view.controlled(PODS, uid_of(change.object)):
                    self._orphans.add(key_of(pod))
        elif change.resource == PODS:
            owner = controller_of(change.object)
            if owner is not None and owner.get("kind") == "Job":
                self._reconciler.add((change.key[0], owner["name"]))
                job = self._view.get(JOBS, (change.key[0], owner["name"]))
                if job is None or uid_of(job) != owner["uid"]:
                    self._orphans.add(change.key)

    def work(self, now: float) -> bool:
        """Look at one Job, or let one pod go."""
        return self._reconciler.work(now) or self._orphans.work(now)

    def _next_due(self) -> float | None:
        due = [self._reconciler.next_due(), self._orphans.next_due()]
        return min((one for one in due if one is not None), default=None)

    def _let_go(self, key: Key, now: float) -> None:
        """A pod of a Job that is gone is not counted any more."""
        pod = self._view.get(PODS, key)
        if pod is None:
            return
        owner = controller_of(pod)
        job = self._view.get(JOBS, (key[0], owner["name"])) if owner else None
        if owner is None or job is None or uid_of(job) != owner["uid"]:
            self._release(pod)

    def _reconcile(self, key: Key, now: float) -> float | None:
        job = self._view.get(JOBS, key)
        if job is None or job["spec"].get("managedBy", "kubernetes.io/job-controller") != (
            "kubernetes.io/job-controller"
        ):
            return None
        pods = self._view.controlled(PODS, uid_of(job))
        if finished_condition(job) is not None:
            for pod in pods:
                self._release(pod)
            return self._expire(job, now)
        if terminating(job):
            for pod in pods:
                self._release(pod)
            return None
        return self._run(job, pods, now)

    def _run(self, job: Object, pods: list[Object], now: float) -> float | None:
        wall = self._clock.wall()
        counts = count(job, pods)
        status = job_status(job, counts, wall=wall)
        ending = ending_condition(status)
        live = [pod for pod in pods if active(pod)]
        if ending is not None or job["spec"].get("suspend"):
            for pod in live:
                delete_pod(self._store, pod)
            status["ready"] = 0
            status.pop("active", None)
        if ending is not None and not (live or counts.terminating or counts.uncounted):
            status = ended_status(status, ending, wall=wall)
        # The counts are written before the pods are let go: a crash in between counts nothing twice.
        write_status(self._store, JOBS, job, status)
        self._remember(job, counts, wall)
        for pod in counts.held:
            self._release(pod)
        if ending is not None:
            return None
        due = [deadline_passed(job, now, wall)]
        if not job["spec"].get("suspend"):
            due.append(self._scale(job, counts, live, now, wall))
        return min((one for one in due if one is not None), default=None)

    def _remember(self, job: Object, counts: JobCounts, wall: datetime) -> None:
        memory = self._back_off.setdefault(uid_of(job), _BackOff())
        if counts.new_successes:
            memory.failures, memory.last = 0, None
        for pod in counts.new_failures:
            moment = finish_time(pod, wall)
            memory.failures += 1
            memory.last = moment if memory.last is None else max(memory.last, moment)

    def _scale(
        self, job: Object, counts: JobCounts, live: list[Object], now: float, wall: datetime
    ) -> float | None:
        spec = job["spec"]
        parallelism = 1 if spec.get("parallelism") is None else int(spec["parallelism"])
        completions = spec.get("completions")
        if completions is None:
            wanted = len(live) if counts.succeeded else parallelism
        else:
            wanted = min(max(0, int(completions) - counts.succeeded), parallelism)
        if len(live) > wanted:
            for pod in deletion_order(live, {})[: min(len(live) - wanted, BURST)]:
                delete_pod(self._store, pod)
        if len(live) >= wanted:
            return None
        if (left := self._back_off_left(job, wall)) > 0:
            return now + left
        missing = min(wanted - len(live), BURST)
        wanted_indexes: Sequence[int | None] = [None] * missing
        if indexed(job):
            wanted_indexes = free_indexes(job, live, counts.indexes or "", missing)
        for index in wanted_indexes:
            self._store.create(PODS, job_pod(job, index), namespace=key_of(job)[0])
        return None

    def _back_off_left(self, job: Object, wall: datetime) -> float:
        memory = self._back_off[uid_of(job)]
        if not memory.failures or memory.last is None:
            return 0.0
        delay = min(FIRST_BACK_OFF_SECONDS * 2.0 ** min(memory.failures - 1, 16), LAST_BACK_OFF_SECONDS)
        return delay - (wall - memory.last).total_seconds()

    def _release(self, pod: Object) -> None:
        """Take our finalizer off a pod."""
        finalizers = pod["metadata"].get("finalizers") or []
        if FINALIZER not in finalizers:
            return
        namespace, name = key_of(pod)
        metadata = pod["metadata"]
        change = {
            "metadata": {
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
                "finalizers": [one for one in finalizers if one != FINALIZER],
            }
        }
        try:
            self._store.patch(PODS, name, change, namespace=namespace)
        except StoreError as error:
            if error.code != 404:
                raise

    def _expire(self, job: Object, now: float) -> float | None:
        """Delete a finished Job when its time to live is over."""
        seconds = job["spec"].get("ttlSecondsAfterFinished")
        condition = finished_condition(job)
        if seconds is None or condition is None or terminating(job):
            return None
        wall = self._clock.wall()
        since = moment_of(condition.get("lastTransitionTime"), wall)
        left = float(seconds) - (wall - since).total_seconds()
        if left > 0:
            return now + left
        namespace, name = key_of(job)
        self._store.delete(JOBS, name, namespace=namespace, uid=uid_of(job), propagation="Foreground")
        return None
