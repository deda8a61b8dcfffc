"""DaemonSets as kube-controller-manager keeps them: one pod on each node that it is for, cordoned or not.

Source: pkg/controller/daemon/daemon_controller.go and update.go. A failed pod is deleted and made anew, after a
back-off of 1 s that doubles up to 15 minutes.
"""

from __future__ import annotations

from collections.abc import Sequence

from runtime.clock import Clock
from simulation.cluster.daemon_pods import (
    HASH,
    Place,
    daemon_pod,
    daemon_set_status,
    places_of,
    roll_limits,
    superfluous,
)
from simulation.cluster.interface import Object, Store
from simulation.cluster.revisions import Revisions
from simulation.cluster.view import (
    DAEMON_SETS,
    NODES,
    PODS,
    REVISIONS,
    Change,
    Key,
    View,
    controller_of,
    key_of,
    phase_of,
    ready,
    terminating,
    uid_of,
)
from simulation.cluster.workloads import BURST, available, available_in, delete_pod, write_status
from simulation.cluster.workqueue import Reconciler

FIRST_BACK_OFF_SECONDS = 1.0
LAST_BACK_OFF_SECONDS = 900.0
"""From one deletion of a failed pod on a node to the next."""

MANY_NODES = 500
PASS_SECONDS_PER_NODE = 20e-6
"""How long a pass is put off on a large cluster, so that it sees many changes: 0.1 s at 5,000 nodes."""


class DaemonSets:
    """The DaemonSet controller: a component of the control plane."""

    def __init__(self, store: Store, view: View, *, clock: Clock) -> None:
        self._store = store
        self._view = view
        self._clock = clock
        self._revisions = Revisions(store, view)
        self._failures: dict[tuple[str, str], tuple[int, float]] = {}
        self._reconciler: Reconciler[Key] = Reconciler(self._reconcile)
        self.work = self._reconciler.work
        self.next_due = self._reconciler.next_due

    def observe(self, change: Change) -> None:
        """A DaemonSet changed, a pod or revision of one, or a node in what decides whether pods go there."""
        if change.resource == DAEMON_SETS:
            self._reconciler.add(change.key)
        elif change.resource in (PODS, REVISIONS):
            owner = controller_of(change.object)
            if owner is not None and owner.get("kind") == "DaemonSet":
                self._reconciler.add((change.key[0], owner["name"]), self._soon())
        elif change.resource == NODES and _matters(change):
            for key in self._view.keys(DAEMON_SETS):
                self._reconciler.add(key)

    def _soon(self) -> float:
        """When to look at a DaemonSet whose pods move: a pass over thousands of nodes is not made for each of them."""
        nodes = self._view.count(NODES)
        return 0.0 if nodes < MANY_NODES else self._clock.monotonic() + nodes * PASS_SECONDS_PER_NODE

    def _reconcile(self, key: Key, now: float) -> float | None:
        daemon_set = self._view.get(DAEMON_SETS, key)
        if daemon_set is None or terminating(daemon_set):
            return None
        revision = self._revisions.current(daemon_set)
        digest = revision["metadata"]["labels"][HASH]
        places = places_of(daemon_set, self._view.all(NODES))
        by_node = self._by_node(daemon_set)
        again = self._manage(daemon_set, digest, places, by_node, now)
        self._roll(daemon_set, digest, places, by_node)
        self._revisions.clean(daemon_set, {_hash(pod) for pods in by_node.values() for pod in pods})
        wall = self._clock.wall()
        # The pods of the view are those from before this pass; what it did comes back as events.
        status = daemon_set_status(daemon_set, digest, places, by_node, wall=wall)
        write_status(self._store, DAEMON_SETS, daemon_set, status)
        min_ready = float(daemon_set["spec"].get("minReadySeconds") or 0)
        waits = [
            available_in(pod, min_ready=min_ready, wall=wall)
            for pods in by_node.values()
            for pod in pods
            if min_ready and ready(pod)
        ]
        due = [again, *(now + wait for wait in waits if wait > 0)]
        return min((one for one in due if one is not None), default=None)

    def _by_node(self, daemon_set: Object) -> dict[str, list[Object]]:
        found: dict[str, list[Object]] = {}
        for pod in self._view.controlled(PODS, uid_of(daemon_set)):
            found.setdefault(target_of(pod), []).append(pod)
        return found

    def _manage(
        self,
        daemon_set: Object,
        digest: str,
        places: Sequence[Place],
        by_node: dict[str, list[Object]],
        now: float,
    ) -> float | None:
        """Make what is missing, delete what is too much or has failed; when to try again where a back-off holds."""
        missing: list[str] = []
        doomed: list[Object] = []
        again: list[float] = []
        for place in places:
            name = place.name
            pods = by_node.get(name, [])
            live = [pod for pod in pods if not terminating(pod)]
            if not pods and place.wanted:
                missing.append(name)
            elif not place.stays:
                doomed += live
            else:
                failed = [pod for pod in live if phase_of(pod) in ("Failed", "Succeeded")]
                wait = self._back_off(uid_of(daemon_set), name, now) if failed else None
                if wait is None:
                    doomed += failed
                else:
                    again.append(wait)
                doomed += self._too_many(daemon_set, digest, [pod for pod in live if pod not in failed])
        known = {place.name for place in places}
        doomed += [
            pod
            for name, pods in by_node.items()
            if name not in known
            for pod in pods
            if not terminating(pod) and not pod["spec"].get("nodeName")
        ]
        for pod in doomed[:BURST]:
            delete_pod(self._store, pod)
        for name in missing[:BURST]:
            body = daemon_pod(daemon_set, name, digest)
            self._store.create(PODS, body, namespace=key_of(daemon_set)[0])
        return now if len(missing) > BURST else min(again, default=None)

    def _too_many(self, daemon_set: Object, digest: str, pods: list[Object]) -> list[Object]:
        """Of several pods on one node all but the oldest, but for the pair of a surge."""
        if len(pods) < 2:
            return []
        surge, _ = roll_limits(daemon_set, 1)
        if surge and len(pods) == 2 and len({_hash(pod) == digest for pod in pods}) == 2:
            return []
        return superfluous(pods)

    def _back_off(self, uid: str, node_name: str, now: float) -> float | None:
        """None if a failed pod may be deleted now, which counts; else when it may."""
        failures, last = self._failures.get((uid, node_name), (0, now))
        delay = (
            min(FIRST_BACK_OFF_SECONDS * 2.0 ** (failures - 1), LAST_BACK_OFF_SECONDS) if failures else 0.0
        )
        if now < last + delay:
            return last + delay
        if now - last > 2 * LAST_BACK_OFF_SECONDS:
            failures = 0
        self._failures[uid, node_name] = (min(failures + 1, 16), now)
        return None

    def _roll(
        self, daemon_set: Object, digest: str, places: Sequence[Place], by_node: dict[str, list[Object]]
    ) -> None:
        """Replace pods of an older template, as many at a time as may be unavailable, or as may be too many."""
        if (daemon_set["spec"].get("updateStrategy") or {}).get("type") == "OnDelete":
            return
        targets = [place.name for place in places if place.wanted]
        surge, unavailable = roll_limits(daemon_set, len(targets))
        if surge:
            self._surge(daemon_set, digest, targets, by_node, surge)
        else:
            self._replace(daemon_set, digest, targets, by_node, unavailable)

    def _replace(
        self,
        daemon_set: Object,
        digest: str,
        targets: Sequence[str],
        by_node: dict[str, list[Object]],
        limit: int,
    ) -> None:
        down, broken, candidates = 0, [], []
        for name in targets:
            live = [pod for pod in by_node.get(name, []) if not terminating(pod)]
            old = [pod for pod in live if _hash(pod) != digest]
            if not live or (not old and not self._available(daemon_set, live[0])):
                down += 1
            elif old and not self._available(daemon_set, old[0]):
                broken.append(old[0])
                down += 1
            elif old:
                candidates.append(old[0])
        # Those that are not available anyway are replaced at once.
        for pod in [*broken, *candidates[: max(0, limit - down)]]:
            delete_pod(self._store, pod)

    def _surge(
        self,
        daemon_set: Object,
        digest: str,
        targets: Sequence[str],
        by_node: dict[str, list[Object]],
        limit: int,
    ) -> None:
        starting, waiting, wanted = 0, [], []
        for name in targets:
            live = [pod for pod in by_node.get(name, []) if not terminating(pod)]
            old = [pod for pod in live if _hash(pod) != digest]
            new = [pod for pod in live if _hash(pod) == digest]
            if old and new and self._available(daemon_set, new[0]):
                delete_pod(self._store, old[0])
            elif old and new:
                starting += 1
            elif old and self._available(daemon_set, old[0]):
                waiting.append(name)
            elif old:
                wanted.append(name)
        for name in [*wanted, *waiting[: max(0, limit - starting)]]:
            self._store.create(PODS, daemon_pod(daemon_set, name, digest), namespace=key_of(daemon_set)[0])

    def _available(self, daemon_set: Object, pod: Object) -> bool:
        min_ready = float(daemon_set["spec"].get("minReadySeconds") or 0)
        return available(pod, min_ready=min_ready, wall=self._clock.wall())


def target_of(pod: Object) -> str:
    """The node that a pod of a DaemonSet is bound to or meant for."""
    spec = pod["spec"]
    if name := spec.get("nodeName"):
        return str(name)
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    for term in required.get("nodeSelectorTerms") or ():
        for field in term.get("matchFields") or ():
            if field.get("key") == "metadata.name" and field.get("values"):
                return str(field["values"][0])
    return ""


def _hash(pod: Object) -> str:
    return str((pod["metadata"].get("labels") or {}).get(HASH, ""))


def _matters(change: Change) -> bool:
    if change.old is None or change.deleted:
        return True
    return any(
        (change.old["metadata"] if part == "labels" else change.old.get("spec") or {}).get(part)
        != (change.object["metadata"] if part == "labels" else change.object.get("spec") or {}).get(part)
        for part in ("labels", "taints", "unschedulable")
    )
