"""Deployments as kube-controller-manager keeps them: a ReplicaSet for each template, and the roll from old to new.

Source: pkg/controller/deployment (sync.go, rolling.go, recreate.go, progress.go) and util/deployment_util.go.
"""

from __future__ import annotations

from runtime.clock import Clock
from simulation.cluster.deployment_status import deployment_status, progress_deadline
from simulation.cluster.interface import Object, Store, StoreError
from simulation.cluster.quantities import scaled
from simulation.cluster.replica_sets import replicas_of
from simulation.cluster.view import (
    DEPLOYMENTS,
    PODS,
    REPLICA_SETS,
    Change,
    Key,
    View,
    controller_of,
    finished,
    key_of,
    terminating,
    uid_of,
    version_of,
)
from simulation.cluster.workloads import owner_reference, template_hash, write_status
from simulation.cluster.workqueue import Reconciler

REVISION = "deployment.kubernetes.io/revision"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MOST = "deployment.kubernetes.io/max-replicas"
HASH_LABEL = "pod-template-hash"


class Deployments:
    """The Deployment controller: a component of the control plane."""

    def __init__(self, store: Store, view: View, *, clock: Clock) -> None:
        self._store = store
        self._view = view
        self._clock = clock
        self._reconciler: Reconciler[Key] = Reconciler(self._reconcile)
        self.work = self._reconciler.work
        self.next_due = self._reconciler.next_due

    def observe(self, change: Change) -> None:
        """A Deployment changed, or one of its ReplicaSets; or a pod is gone, for which Recreate waits."""
        if change.resource == DEPLOYMENTS:
            self._reconciler.add(change.key)
        elif change.resource == REPLICA_SETS:
            self._add_owner(change.object)
        elif change.resource == PODS and change.deleted:
            owner = controller_of(change.object)
            if owner is not None and owner.get("kind") == "ReplicaSet":
                replica_set = self._view.get(REPLICA_SETS, (change.key[0], owner["name"]))
                if replica_set is not None:
                    self._add_owner(replica_set)

    def _add_owner(self, replica_set: Object) -> None:
        owner = controller_of(replica_set)
        if owner is not None and owner.get("kind") == "Deployment":
            self._reconciler.add((key_of(replica_set)[0], owner["name"]))

    def _reconcile(self, key: Key, now: float) -> float | None:
        deployment = self._view.get(DEPLOYMENTS, key)
        if deployment is None:
            return None
        sets = self._view.controlled(REPLICA_SETS, uid_of(deployment))
        if terminating(deployment):
            self._tell(deployment, None, sets)
            return None
        new, old = _split(deployment, sets)
        if deployment["spec"].get("paused"):
            if new is not None and not old:
                self._scale(deployment, new, replicas_of(deployment))
        elif _strategy(deployment) == "Recreate":
            new = self._recreate(deployment, new, old)
        else:
            new = self._roll(deployment, new, old)
        self._clean(deployment, old)
        self._tell(deployment, new, [*old, *([new] if new is not None else [])])
        return progress_deadline(self._view.get(DEPLOYMENTS, key), now, self._clock.wall())

    def _recreate(self, deployment: Object, new: Object | None, old: list[Object]) -> Object | None:
        """First no old pod runs any more, then the new ones start."""
        scaled_down = [self._scale(deployment, one, 0) for one in old]
        if any(scaled_down):
            return new
        pods = [pod for one in old for pod in self._view.controlled(PODS, uid_of(one)) if not finished(pod)]
        if pods:
            return new
        new = new or self._create(deployment, old, 0)
        self._scale(deployment, new, replicas_of(deployment))
        return self._view.get(REPLICA_SETS, key_of(new)) or new

    def _roll(self, deployment: Object, new: Object | None, old: list[Object]) -> Object:
        wanted = replicas_of(deployment)
        surge, unavailable = roll_bounds(deployment)
        if new is None:
            room = wanted + surge - sum(replicas_of(one) for one in old)
            return self._create(deployment, old, max(0, min(wanted, room)))
        if replicas_of(new) > wanted:
            self._scale(deployment, new, wanted)
        elif replicas_of(new) < wanted:
            total = replicas_of(new) + sum(replicas_of(one) for one in old)
            step = min(max(0, wanted + surge - total), wanted - replicas_of(new))
            if self._scale(deployment, new, replicas_of(new) + step):
                return new
        self._shrink(deployment, new, old, wanted - unavailable)
        return new

    def _shrink(self, deployment: Object, new: Object, old: list[Object], least: int) -> None:
        """Take old replicas away, those that are not available first, and never below `least` available ones."""
        total = replicas_of(new) + sum(replicas_of(one) for one in old)
        unready = replicas_of(new) - _available(new)
        room = total - least - unready
        if room <= 0:
            return
        left = {uid_of(one): replicas_of(one) for one in old}
        by_age = sorted(old, key=lambda one: (str(one["metadata"].get("creationTimestamp")), version_of(one)))
        for one in by_age:
            unhealthy = min(room, left[uid_of(one)] - _available(one))
            if unhealthy > 0:
                left[uid_of(one)] -= unhealthy
                room -= unhealthy
        spare = _available(new) + sum(_available(one) for one in old) - least
        for one in by_age:
            step = max(0, min(spare, left[uid_of(one)]))
            left[uid_of(one)] -= step
            spare -= step
        for one in by_age:
            self._scale(deployment, one, left[uid_of(one)])

    def _scale(self, deployment: Object, replica_set: Object, replicas: int) -> bool:
        if replicas_of(replica_set) == replicas:
            return False
        namespace, name = key_of(replica_set)
        change = {
            "metadata": {
                "resourceVersion": replica_set["metadata"]["resourceVersion"],
                "annotations": _size_notes(deployment),
            },
            "spec": {"replicas": replicas},
        }
        self._store.patch(REPLICA_SETS, name, change, namespace=namespace)
        return True

    def _create(self, deployment: Object, old: list[Object], replicas: int) -> Object:
        name, namespace = deployment["metadata"]["name"], deployment["metadata"]["namespace"]
        template = deployment["spec"]["template"]
        digest = template_hash(template)
        revision = max((_revision(one) for one in old), default=0) + 1
        metadata = template.get("metadata") or {}
        labels = {**(metadata.get("labels") or {}), HASH_LABEL: digest}
        selector = deployment["spec"].get("selector") or {}
        match = {**(selector.get("matchLabels") or {}), HASH_LABEL: digest}
        spec: Object = {
            "replicas": replicas,
            "selector": {**selector, "matchLabels": match},
            "template": {**template, "metadata": {**metadata, "labels": labels}},
        }
        if seconds := deployment["spec"].get("minReadySeconds"):
            spec["minReadySeconds"] = seconds
        body: Object = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": f"{name}-{digest}",
                "namespace": namespace,
                "labels": labels,
                "annotations": {REVISION: str(revision), **_size_notes(deployment)},
                "ownerReferences": [owner_reference(deployment, api_version="apps/v1", kind="Deployment")],
            },
            "spec": spec,
        }
        made = self._store.create(REPLICA_SETS, body, namespace=namespace)
        self._note_revision(deployment, str(revision))
        return made

    def _note_revision(self, deployment: Object, revision: str) -> None:
        namespace, name = key_of(deployment)
        change = {"metadata": {"annotations": {REVISION: revision}}}
        self._store.patch(DEPLOYMENTS, name, change, namespace=namespace)

    def _clean(self, deployment: Object, old: list[Object]) -> None:
        """Old ReplicaSets without pods go, but for as many as the history keeps."""
        limit = deployment["spec"].get("revisionHistoryLimit")
        kept = 10 if limit is None else int(limit)
        empty = [one for one in old if not replicas_of(one) and not (one.get("status") or {}).get("replicas")]
        for one in sorted(empty, key=_revision)[: max(0, len(old) - kept)]:
            if not terminating(one):
                namespace, name = key_of(one)
                self._store.delete(REPLICA_SETS, name, namespace=namespace, uid=uid_of(one))

    def _tell(self, deployment: Object, new: Object | None, sets: list[Object]) -> None:
        current = self._store.get(
            DEPLOYMENTS, deployment["metadata"]["name"], namespace=key_of(deployment)[0]
        )
        if uid_of(current) != uid_of(deployment):
            raise StoreError(409, "Conflict", "the deployment is another one by now")
        status = deployment_status(current, deployment, new, sets, wall=self._clock.wall())
        write_status(self._store, DEPLOYMENTS, current, status)


def roll_bounds(deployment: Object) -> tuple[int, int]:
    """How many replicas there may be too many, and how many too few; both are 25 % where nothing is said."""
    rolling = (deployment["spec"].get("strategy") or {}).get("rollingUpdate") or {}
    wanted = replicas_of(deployment)
    surge = scaled(rolling.get("maxSurge", "25%"), wanted, round_up=True)
    unavailable = scaled(rolling.get("maxUnavailable", "25%"), wanted, round_up=False)
    return surge, 1 if surge == 0 and unavailable == 0 else min(unavailable, wanted)


def _size_notes(deployment: Object) -> dict[str, str]:
    wanted, most = replicas_of(deployment), replicas_of(deployment)
    if _strategy(deployment) == "RollingUpdate":
        most += roll_bounds(deployment)[0]
    return {DESIRED: str(wanted), MOST: str(most)}


def _strategy(deployment: Object) -> str:
    return str((deployment["spec"].get("strategy") or {}).get("type") or "RollingUpdate")


def _split(deployment: Object, sets: list[Object]) -> tuple[Object | None, list[Object]]:
    """The ReplicaSet of the current template, and the others."""
    digest = template_hash(deployment["spec"]["template"])
    new = next((one for one in sets if one["metadata"].get("labels", {}).get(HASH_LABEL) == digest), None)
    return new, [one for one in sets if one is not new]


def _available(replica_set: Object) -> int:
    """Available replicas; not more than are wanted, where the status still counts those that are being deleted."""
    said = int((replica_set.get("status") or {}).get("availableReplicas") or 0)
    return min(said, replicas_of(replica_set))


def _revision(replica_set: Object) -> int:
    said = (replica_set["metadata"].get("annotations") or {}).get(REVISION, "0")
    return int(said) if said.isdecimal() else 0
