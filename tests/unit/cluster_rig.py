"""A control plane on the embedded API's store under a clock that a test moves, with short forms of what it is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runtime.clock import ManualClock
from simulation.cluster.control_plane import ControlPlane
from simulation.cluster.interface import Object
from simulation.cluster.kubelet_devices import AllocateError, AllocateHangsError
from simulation.cluster.kubelet_node import NodeShape, Timings
from simulation.cluster.programs import Launch, Program
from simulation.cluster.store import ClusterStore

GPU = "nvidia.com/gpu"
INSTANT = Timings(start=0.0, stop=0.0)


class Plugins:
    """Device plugins that a test switches: healthy, gone, hung or refusing."""

    def __init__(self, count: int = 8) -> None:
        self.devices = {f"GPU-{index}": True for index in range(count)}
        self.connected = True
        self.hangs = False
        self.error = ""
        self.allocated: list[tuple[str, ...]] = []

    def listed(self) -> Mapping[str, Mapping[str, bool]]:
        return {GPU: dict(self.devices)} if self.connected else {}

    def allocate(self, resource: str, devices: Sequence[str]) -> None:
        if self.error:
            raise AllocateError(self.error)
        if self.hangs:
            raise AllocateHangsError
        self.allocated.append(tuple(devices))


class Process:
    """A program that a test ends."""

    def __init__(self) -> None:
        self.code: int | None = None
        self.heard: list[str] = []

    def poll(self, now: float) -> int | None:
        return self.code

    def due(self) -> float | None:
        return None

    def terminate(self, now: float) -> None:
        self.heard.append("TERM")

    def kill(self) -> None:
        self.heard.append("KILL")


class Rig:
    """Store, control plane and clock."""

    def __init__(self, *, timings: Timings = INSTANT, nodes: int = 0, **shape: Any) -> None:
        self.clock = ManualClock()
        self.store = ClusterStore(clock=self.clock)
        boots = iter(range(1, 10_000))
        self.plane = ControlPlane(
            self.store, clock=self.clock, timings=timings, boot_ids=lambda: f"boot-{next(boots)}"
        )
        for index in range(1, nodes + 1):
            self.add_node(f"n{index}", **shape)
        self.settle()

    def add_node(self, name: str, **shape: Any) -> None:
        self.plane.kubelets.add_node(NodeShape(name=name, **shape))
        self.settle()

    def settle(self) -> None:
        self.plane.settle()

    def advance(self, seconds: float) -> None:
        """Let time pass, stopping wherever something is due."""
        end = self.clock.monotonic() + seconds
        self.settle()
        while True:
            due = self.plane.next_due()
            now = self.clock.monotonic()
            if due is None or due > end:
                break
            self.clock.advance(max(0.0, due - now))
            self.settle()
        self.clock.advance(end - self.clock.monotonic())
        self.settle()

    def create(self, resource: str, body: Object) -> Object:
        made = self.store.create(resource, body)
        self.advance(0.05)
        return made

    def get(self, resource: str, name: str) -> Object:
        namespace = "" if resource == "nodes" else "default"
        return self.store.get(resource, name, namespace=namespace)

    def patch(self, resource: str, name: str, change: Object, *, subresource: str = "") -> Object:
        namespace = "" if resource == "nodes" else "default"
        done = self.store.patch(resource, name, change, namespace=namespace, subresource=subresource)
        self.advance(0.05)
        return done

    def delete(self, resource: str, name: str, **how: Any) -> None:
        namespace = "" if resource == "nodes" else "default"
        self.store.delete(resource, name, namespace=namespace, **how)
        self.advance(0.05)

    def pods(self, phase: str = "", **labels: str) -> list[Object]:
        """The pods with these labels, and in this phase."""
        found = self.store.list("pods", labels=labels or None)
        return [pod for pod in found if not phase or pod["status"]["phase"] == phase]

    def names(self, phase: str = "", **labels: str) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.pods(phase, **labels)]

    def condition(self, resource: str, name: str, kind: str) -> Object | None:
        return condition(self.get(resource, name), kind)


class Processes:
    """Programs of all containers, for the test to end; `wake` of each launch tells the kubelet."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.running: list[Process] = []

    def __call__(self, launch: Launch) -> Program | None:
        process = Process()
        self.launches.append(launch)
        self.running.append(process)
        return process

    def end(self, index: int, code: int) -> None:
        self.running[index].code = code
        self.launches[index].wake()


def condition(item: Object, kind: str) -> Object | None:
    conditions = item["status"].get("conditions") or ()
    return next((one for one in conditions if one["type"] == kind), None)


def pod(
    name: str = "p", *, gpus: int = 0, annotations: Mapping[str, str] | None = None, **spec: Any
) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {"app": name},
            "annotations": annotations or {},
        },
        "spec": pod_spec(gpus=gpus, **spec),
    }


def pod_spec(*, gpus: int = 0, cpu: str = "", **spec: Any) -> Object:
    limits = {**({GPU: str(gpus)} if gpus else {}), **({"cpu": cpu} if cpu else {})}
    container: Object = {"name": "c", "image": "registry.example/app:1", "resources": {"limits": limits}}
    return {"containers": [container], **spec}


def template(app: str, *, annotations: Mapping[str, str] | None = None, **spec: Any) -> Object:
    return {"metadata": {"labels": {"app": app}, "annotations": annotations or {}}, "spec": pod_spec(**spec)}


def workload(kind: str, name: str, *, made_of: Object | None = None, **spec: Any) -> Object:
    """A Deployment, ReplicaSet or DaemonSet."""
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": made_of or template(name),
            **spec,
        },
    }


def job(name: str, *, made_of: Object | None = None, **spec: Any) -> Object:
    body = made_of or template(name, restartPolicy="Never")
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"template": body, **spec},
    }
