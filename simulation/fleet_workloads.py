"""What runs on a simulated fleet: gangs that train, with whole nodes, and services that infer, with one GPU a pod.

A gang is a Job; every second one carries a JobSet's labels, since JobSet is no built-in. When a Job is complete, it is
deleted and the next one of its place is submitted, so that the load stays as it is.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from simulation.cluster.interface import Object, Store, StoreError, StoreEvent
from simulation.cluster.programs import SECONDS
from simulation.fleet_machine import GPU
from simulation.fleet_programs import PLUGIN_LABEL

NAMESPACE = "ml"
PLUGIN_NAMESPACE = "gpu-operator"
OPERAND = "nvidia.com/gpu.deploy.device-plugin"
"""The node label by which the plugin is placed, as NVIDIA's GPU Operator does."""

JOBS = "jobs.batch"
USE_LABEL = "simulated.sickbay.dev/use"
TRAINING, INFERENCE = "training", "inference"
_JOBSET = "jobset.sigs.k8s.io/jobset-name"
_IMAGE = "registry.example/simulated:1"


@dataclass(frozen=True, slots=True)
class Load:
    """How much of the fleet's nodes trains and infers (0 to 1), in gangs of so many nodes, for how long on average.

    Nodes are set apart by a label, or the pods of services, which the scheduler spreads, would keep every gang out.
    """

    training: float = 0.5
    inference: float = 0.25
    gang_nodes: int = 4
    job_hours: float = 6.0
    replicas: int = 8

    def use_of(self, number: int, nodes: int) -> str:
        """What a node of this number is for: the last ones infer, all others train or are spare."""
        return INFERENCE if number >= nodes - math.ceil(self.inference * nodes) else TRAINING


class Workloads:
    """Submits them, and the next ones."""

    def __init__(self, store: Store, load: Load, *, nodes: int, gpus: int, seed: int) -> None:
        self._store = store
        self._load = load
        self._gpus = gpus
        self._rng = random.Random(f"{seed}/workloads")  # noqa: S311
        self._complete: deque[str] = deque()
        self._gangs = int(load.training * nodes) // load.gang_nodes
        self._services = max(0, int(load.inference * nodes * gpus)) // load.replicas
        self._round: dict[str, int] = {}
        self.completed = 0
        """Jobs that have come to their end."""

    def begin(self) -> None:
        """Create the namespaces and the device plugin."""
        for name in (NAMESPACE, PLUGIN_NAMESPACE):
            self._store.create("namespaces", {"metadata": {"name": name}})
        self._store.create("daemonsets.apps", _plugin())
        self._store.subscribe(self._hear)

    def submit(self) -> None:
        """Create what trains and infers, once the nodes offer their GPUs."""
        for index in range(self._gangs):
            self._submit(f"train-{index}")
        for index in range(self._services):
            for resource, body in _service(f"serve-{index}", self._load.replicas):
                self._store.create(resource, body)

    def work(self) -> bool:
        """Put the next Job in the place of each that is complete; whether there was any."""
        worked = bool(self._complete)
        while self._complete:
            name = self._complete.popleft()
            try:
                self._store.delete(JOBS, name, namespace=NAMESPACE)
            except StoreError:
                continue
            self.completed += 1
            self._submit(name.rpartition("-")[0])
        return worked

    def _hear(self, event: StoreEvent) -> None:
        if event.resource != JOBS or event.type != "MODIFIED":
            return
        meta, status = event.object["metadata"], event.object.get("status") or {}
        ended = any(
            one["type"] == "Complete" and one["status"] == "True" for one in status.get("conditions") or ()
        )
        mine = meta["namespace"] == NAMESPACE and "deletionTimestamp" not in meta
        if ended and mine and meta["name"] not in self._complete:
            self._complete.append(meta["name"])

    def _submit(self, place: str) -> None:
        number = self._round[place] = self._round.get(place, 0) + 1
        seconds = max(60.0, self._rng.expovariate(1 / (3600 * self._load.job_hours)))
        name = f"{place}-{number}"
        labels = {_JOBSET: name} if int(place.rpartition("-")[2]) % 2 else {}
        self._store.create(JOBS, self._job(name, labels, seconds))

    def _job(self, name: str, labels: dict[str, str], seconds: float) -> Object:
        metadata = {"labels": labels, "annotations": {SECONDS: f"{seconds:.0f}"}}
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "parallelism": self._load.gang_nodes,
                "completions": self._load.gang_nodes,
                "backoffLimit": 10_000,
                "template": {
                    "metadata": metadata,
                    "spec": {
                        "restartPolicy": "Never",
                        "nodeSelector": {USE_LABEL: TRAINING},
                        "containers": [_container(gpus=self._gpus)],
                    },
                },
            },
        }


def _container(*, gpus: int) -> Object:
    limits = {GPU: str(gpus)} if gpus else {}
    return {"name": "main", "image": _IMAGE, "resources": {"limits": limits}}


def _service(name: str, replicas: int) -> Iterator[tuple[str, Object]]:
    """A Deployment of one-GPU pods, and the budget that protects it."""
    labels = {"app": name}
    metadata = {"name": name, "namespace": NAMESPACE}
    selector = {"matchLabels": labels}
    pods = {"nodeSelector": {USE_LABEL: INFERENCE}, "containers": [_container(gpus=1)]}
    template = {"metadata": {"labels": labels}, "spec": pods}
    spec = {"replicas": replicas, "selector": selector, "template": template}
    yield (
        "deployments.apps",
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec},
    )
    guard = {"maxUnavailable": max(1, replicas // 4), "selector": selector}
    yield (
        "poddisruptionbudgets.policy",
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": dict(metadata),
            "spec": guard,
        },
    )


def _plugin() -> Object:
    labels = {PLUGIN_LABEL[0]: PLUGIN_LABEL[1]}
    spec = {
        "nodeSelector": {OPERAND: "true"},
        "tolerations": [{"operator": "Exists"}],
        "containers": [_container(gpus=0)],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": PLUGIN_LABEL[1], "namespace": PLUGIN_NAMESPACE},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }
