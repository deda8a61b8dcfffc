"""What kube-controller-manager does about nodes: taints for a cordon and for silence, and the pods that do not bear it.

Source: pkg/controller/nodelifecycle, pkg/controller/tainteviction. Zones are not looked at, so a full outage of a
zone is handled as that of single nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runtime.clock import Clock
from simulation.cluster.interface import Object, Store, StoreError
from simulation.cluster.kubelet_node import stamp_of
from simulation.cluster.matching import (
    NOT_READY_TAINT,
    UNREACHABLE_TAINT,
    UNSCHEDULABLE_TAINT,
    toleration_matches,
)
from simulation.cluster.node_status import LEASE_NAMESPACE
from simulation.cluster.view import (
    LEASES,
    NODES,
    PODS,
    Change,
    Key,
    View,
    condition_of,
    finished,
    key_of,
    node_of,
    ready,
    terminating,
    uid_of,
)
from simulation.cluster.workloads import delete_pod
from simulation.cluster.workqueue import Reconciler

GRACE_SECONDS = 50.0
"""So long a node may be silent (--node-monitor-grace-period, 50 s in 1.37)."""

PERIOD_SECONDS = 5.0
"""Between looks at the nodes (--node-monitor-period)."""

_KEPT_BY_US = (UNSCHEDULABLE_TAINT, NOT_READY_TAINT, UNREACHABLE_TAINT)
_CONDITIONS = ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure")


class NodeLifecycle:
    """The node lifecycle and taint eviction controllers: a component of the control plane."""

    def __init__(self, store: Store, view: View, *, clock: Clock, grace: float = GRACE_SECONDS) -> None:
        self._store = store
        self._view = view
        self._clock = clock
        self._grace = grace
        self._heard: dict[str, float] = {}
        self._tainted_at: dict[str, float] = {}
        self._nodes: Reconciler[str] = Reconciler(self._look)
        self._pods: Reconciler[Key] = Reconciler(self._judge)

    def observe(self, change: Change) -> None:
        """A node or its Lease changed, or a pod on a tainted node did."""
        name = change.key[1]
        if change.resource == LEASES:
            if change.key[0] == LEASE_NAMESPACE and not change.deleted:
                self._heard[name] = self._clock.monotonic()
        elif change.resource == NODES:
            if change.deleted:
                self._heard.pop(name, None)
                return
            if change.old is None or _heartbeat(change.old) != _heartbeat(change.object):
                self._heard[name] = self._clock.monotonic()
            self._nodes.add(name)
            if _no_execute(change.object) or (change.old is not None and _no_execute(change.old)):
                for pod in self._view.pods_on(name):
                    self._pods.add(key_of(pod))
        elif change.resource == PODS and not change.deleted and node_of(change.object):
            node = self._view.get(NODES, ("", node_of(change.object)))
            if node is not None and _no_execute(node):
                self._pods.add(change.key)

    def work(self, now: float) -> bool:
        """Look at one node, or at one pod on a tainted one."""
        return self._nodes.work(now) or self._pods.work(now)

    def next_due(self) -> float | None:
        """When a node would have been silent for too long, or a pod's patience ends."""
        due = [self._nodes.next_due(), self._pods.next_due()]
        return min((one for one in due if one is not None), default=None)

    def _look(self, name: str, now: float) -> float | None:
        node = self._view.get(NODES, ("", name))
        if node is None:
            return None
        left = self._heard.setdefault(name, now) + self._grace - now
        if left <= 0 and not _unknown(node):
            node = self._silent(node)
        self._taint(node)
        if _unknown(node) or not ready(node):
            self._unready_pods(name)
        # Like the real one, which looks every 5 s, but only when there is something to find.
        return now + max(left, PERIOD_SECONDS) if not _unknown(node) else None

    def _silent(self, node: Object) -> Object:
        """Write that nothing is known of the node any more."""
        status = node.get("status") or {}
        found = {one["type"]: one for one in status.get("conditions") or ()}
        stamp = stamp_of(self._clock.wall())
        for kind in _CONDITIONS:
            before = found.get(kind) or {
                "type": kind,
                "lastHeartbeatTime": node["metadata"]["creationTimestamp"],
            }
            never = kind not in found
            found[kind] = {
                **before,
                "status": "Unknown",
                "reason": "NodeStatusNeverUpdated" if never else "NodeStatusUnknown",
                "message": "Kubelet never posted node status."
                if never
                else "Kubelet stopped posting node status.",
                "lastTransitionTime": stamp,
            }
        body = {**node, "status": {**status, "conditions": list(found.values())}}
        return self._store.update(NODES, body, subresource="status")

    def _taint(self, node: Object) -> None:
        """Let the node have exactly those of our taints that its cordon and its Ready condition call for."""
        wanted = set()
        if (node.get("spec") or {}).get("unschedulable"):
            wanted.add((UNSCHEDULABLE_TAINT, "NoSchedule"))
        condition = condition_of(node, "Ready")
        if condition is not None and condition["status"] != "True":
            key = UNREACHABLE_TAINT if condition["status"] == "Unknown" else NOT_READY_TAINT
            wanted |= {(key, "NoSchedule"), (key, "NoExecute")}
        taints = (node.get("spec") or {}).get("taints") or []
        present = {(one.get("key"), one.get("effect")) for one in taints if one.get("key") in _KEPT_BY_US}
        if present == wanted:
            return
        stamp = stamp_of(self._clock.wall())
        kept = [
            one
            for one in taints
            if one.get("key") not in _KEPT_BY_US or (one.get("key"), one.get("effect")) in wanted
        ]
        added = [
            {"key": key, "effect": effect, "timeAdded": stamp} for key, effect in sorted(wanted - present)
        ]
        change = {
            "metadata": {"resourceVersion": node["metadata"]["resourceVersion"]},
            "spec": {"taints": [*kept, *added] or None},
        }
        self._store.patch(NODES, node["metadata"]["name"], change)

    def _unready_pods(self, name: str) -> None:
        """The pods of a node that is not ready are not ready either."""
        for pod in self._view.pods_on(name):
            if not ready(pod) or finished(pod):
                continue
            stamp = stamp_of(self._clock.wall())
            status = pod["status"]
            conditions = [
                {**one, "status": "False", "lastTransitionTime": stamp} if one["type"] == "Ready" else one
                for one in status["conditions"]
            ]
            change = {
                "metadata": {"resourceVersion": pod["metadata"]["resourceVersion"]},
                "status": {"conditions": conditions},
            }
            namespace, pod_name = key_of(pod)
            try:
                self._store.patch(PODS, pod_name, change, namespace=namespace, subresource="status")
            except StoreError as error:
                if error.code not in (404, 409):
                    raise

    def _judge(self, key: Key, now: float) -> float | None:
        """Delete a pod that does not tolerate its node's NoExecute taints, or not for so long."""
        pod = self._view.get(PODS, key)
        if pod is None or terminating(pod):
            return None
        node = self._view.get(NODES, ("", node_of(pod)))
        taints = _no_execute(node) if node is not None else []
        if not taints:
            self._tainted_at.pop(uid_of(pod), None)
            return None
        patience = _patience(pod["spec"].get("tolerations") or (), taints)
        if patience is None:
            return None
        since = self._tainted_at.setdefault(uid_of(pod), now)
        if now < since + patience:
            return since + patience
        self._tainted_at.pop(uid_of(pod), None)
        self._say_why(pod)
        delete_pod(self._store, pod)
        return None

    def _say_why(self, pod: Object) -> None:
        conditions = [
            one
            for one in (pod.get("status") or {}).get("conditions") or ()
            if one["type"] != "DisruptionTarget"
        ]
        why = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint",
            "lastTransitionTime": stamp_of(self._clock.wall()),
        }
        namespace, name = key_of(pod)
        change = {
            "metadata": {"resourceVersion": pod["metadata"]["resourceVersion"]},
            "status": {"conditions": [*conditions, why]},
        }
        self._store.patch(PODS, name, change, namespace=namespace, subresource="status")


def _heartbeat(node: Object) -> Any:
    condition = condition_of(node, "Ready") or {}
    # The monitor's own write leaves this time as it was.
    return condition.get("lastHeartbeatTime"), condition.get("status") == "True"


def _unknown(node: Object) -> bool:
    condition = condition_of(node, "Ready")
    return condition is not None and condition.get("status") == "Unknown"


def _no_execute(node: Object) -> list[Object]:
    return [one for one in (node.get("spec") or {}).get("taints") or () if one.get("effect") == "NoExecute"]


def _patience(tolerations: Sequence[Object], taints: Sequence[Object]) -> float | None:
    """Seconds that a pod stays on a node with these taints; None for ever. 0 where one is not tolerated."""
    limits: list[float] = []
    for taint in taints:
        matching = [one for one in tolerations if toleration_matches(one, taint)]
        if not matching:
            return 0.0
        limits += [
            max(0.0, float(one["tolerationSeconds"]))
            for one in matching
            if one.get("tolerationSeconds") is not None
        ]
    return min(limits, default=None)
