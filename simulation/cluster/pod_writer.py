"""How a simulated kubelet writes the status of its node's pods: only what has changed, over what others wrote."""

from __future__ import annotations

from collections.abc import Callable

from simulation.cluster.interface import Object, Store
from simulation.cluster.kubelet_devices import AdmissionError, DeviceManager
from simulation.cluster.kubelet_pod import PodRun
from simulation.cluster.pod_status import rejected_status, running_status
from simulation.cluster.view import PODS, View, finished, key_of, uid_of, version_of


class PodWriter:
    """The pods' status on one node; `address` is the node's, `pod_address` makes one for a pod of its own network."""

    def __init__(
        self,
        store: Store,
        view: View,
        *,
        node: str,
        address: str,
        devices: DeviceManager,
        pod_address: Callable[[], str],
    ) -> None:
        self._store = store
        self._view = view
        self._node = node
        self._address = address
        self._devices = devices
        self._pod_address = pod_address
        self._addresses: dict[str, str] = {}

    def tell(self, run: PodRun, now: float, stamp: str) -> None:
        """Write the pod's status if it is another than the API has. Raises StoreError, 409 for a stale pod."""
        uid = uid_of(run.pod)
        known = self._view.get(PODS, key_of(run.pod))
        pod = newer(run.pod, known) if known is not None and uid_of(known) == uid else run.pod
        old = pod.get("status") or {}
        status = running_status(
            run, old, now=now, stamp=stamp, health=lambda name: self._devices.status_of(uid, name)
        )
        if self._address:
            status |= {"hostIP": self._address, "hostIPs": [{"ip": self._address}]}
        if any(one.identity for one in run.containers):
            address = self._address_of(uid, run.pod)
            status |= {"podIP": address, "podIPs": [{"ip": address}]}
        if any(old.get(name) != value for name, value in status.items()):
            run.pod = self._write(pod, status)

    def refuse(self, uid: str, refusal: AdmissionError, stamp: str) -> None:
        """Write that the kubelet does not take the pod on. Raises StoreError."""
        for pod in self._view.pods_on(self._node):
            if uid_of(pod) == uid and not finished(pod):
                message = refusal.message
                self._write(pod, rejected_status(pod, reason=refusal.reason, message=message, stamp=stamp))

    def forget(self, uid: str) -> None:
        """The pod is gone."""
        self._addresses.pop(uid, None)

    def _write(self, pod: Object, status: Object) -> Object:
        metadata = pod["metadata"]
        condition = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
        return self._store.patch(
            PODS,
            metadata["name"],
            {"metadata": condition, "status": status},
            namespace=metadata["namespace"],
            subresource="status",
        )

    def _address_of(self, uid: str, pod: Object) -> str:
        if pod["spec"].get("hostNetwork") and self._address:
            return self._address
        if uid not in self._addresses:
            self._addresses[uid] = self._pod_address()
        return self._addresses[uid]


def newer(one: Object, other: Object) -> Object:
    """Of two states of an object the later one."""
    return other if version_of(other) > version_of(one) else one
