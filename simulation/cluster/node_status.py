"""What a simulated kubelet writes of its node: registration, conditions, capacity of devices, boot ID, its Lease."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from runtime.clock import rfc3339
from simulation.cluster.interface import Object, Store, StoreError
from simulation.cluster.kubelet_node import NodeShape, Timings, stamp_of
from simulation.cluster.view import LEASES, NODES, View, ready

KUBELET_VERSION = "v1.37.2"
LEASE_NAMESPACE = "kube-node-lease"
LEASE_SECONDS = 40

_CONDITIONS = (
    ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
)


class NodeStatus:
    """The Node object and the Lease of one node, as its kubelet keeps them."""

    def __init__(self, shape: NodeShape, *, store: Store, view: View, timings: Timings) -> None:
        self._shape = shape
        self._view = view
        self._store = store
        self._timings = timings
        self._wrote_at: float | None = None
        self._wrote: Object = {}

    def register(self) -> None:
        """Create the Node where there is none; one that is there keeps its labels and taints."""
        body: Object = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self._shape.name,
                "labels": {
                    "beta.kubernetes.io/arch": "amd64",
                    "beta.kubernetes.io/os": "linux",
                    "kubernetes.io/arch": "amd64",
                    "kubernetes.io/hostname": self._shape.name,
                    "kubernetes.io/os": "linux",
                    **self._shape.labels,
                },
            },
            "spec": {"taints": list(self._shape.taints)} if self._shape.taints else {},
        }
        try:
            self._store.create(NODES, body)
        except StoreError as error:
            if error.reason != "AlreadyExists":
                raise

    def report(
        self,
        devices: Mapping[str, tuple[int, int]],
        boot_id: str,
        *,
        now: float,
        moment: datetime,
        at_once: bool = False,
    ) -> None:
        """Write the node's status if it has changed, or nothing has been written for long.

        Raises StoreError: 404 where somebody deleted the Node (no kubelet registers again while it runs), 409 for a
        write of somebody else's meanwhile.
        """
        known = {"devices": dict(devices), "boot_id": boot_id}
        fresh = self._wrote_at is not None and now - self._wrote_at < self._timings.report
        if fresh and not at_once and known == self._wrote and self._holds():
            return
        node = self._store.get(NODES, self._shape.name)
        self._store.update(NODES, self._updated(node, devices, boot_id, moment), subresource="status")
        self._wrote_at, self._wrote = now, known

    def renew(self, moment: datetime) -> None:
        """Renew the Lease, or create it, owned by the Node. Raises StoreError."""
        name, renewed = self._shape.name, rfc3339(moment)
        try:
            self._store.patch(LEASES, name, {"spec": {"renewTime": renewed}}, namespace=LEASE_NAMESPACE)
        except StoreError as error:
            if error.code != 404:
                raise
            self._create_lease(renewed)

    def _holds(self) -> bool:
        """Whether the API has the node as Ready, which the node monitor may have changed."""
        node = self._view.get(NODES, ("", self._shape.name))
        return node is not None and ready(node)

    def _updated(
        self, node: Object, devices: Mapping[str, tuple[int, int]], boot_id: str, moment: datetime
    ) -> Object:
        old = node.get("status") or {}
        plain = self._shape.resources
        capacity = {**plain, **{name: str(amount) for name, (amount, _) in devices.items()}}
        allocatable = {**plain, **{name: str(amount) for name, (_, amount) in devices.items()}}
        status = {
            **old,
            "capacity": {**(old.get("capacity") or {}), **capacity},
            "allocatable": {**(old.get("allocatable") or {}), **allocatable},
            "conditions": _conditions(old.get("conditions") or (), stamp_of(moment)),
            "nodeInfo": {
                **(old.get("nodeInfo") or {}),
                "architecture": "amd64",
                "bootID": boot_id,
                "containerRuntimeVersion": "simulated://1",
                "kernelVersion": "6.8.0",
                "kubeletVersion": KUBELET_VERSION,
                "machineID": f"machine-{self._shape.name}",
                "operatingSystem": "linux",
                "osImage": "Simulated Linux",
            },
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        }
        addresses = [{"type": "Hostname", "address": self._shape.name}]
        if self._shape.address:
            addresses.insert(0, {"type": "InternalIP", "address": self._shape.address})
        return {**node, "status": {**status, "addresses": addresses}}

    def _create_lease(self, renewed: str) -> None:
        name = self._shape.name
        owner = {"apiVersion": "v1", "kind": "Node", "name": name}
        owner["uid"] = self._store.get(NODES, name)["metadata"]["uid"]
        body: Object = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name, "namespace": LEASE_NAMESPACE, "ownerReferences": [owner]},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": renewed},
        }
        self._store.create(LEASES, body, namespace=LEASE_NAMESPACE)


def _conditions(old: Sequence[Object], stamp: str) -> list[Object]:
    """The kubelet's own conditions, with those of others as they are."""
    found = {one["type"]: one for one in old}
    for kind, status, reason, message in _CONDITIONS:
        before = found.get(kind)
        same = before is not None and before.get("status") == status
        found[kind] = {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastHeartbeatTime": stamp,
            "lastTransitionTime": before["lastTransitionTime"] if same and before else stamp,
        }
    return list(found.values())
