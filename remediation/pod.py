"""A pod as the drain sees it: only the fields that decide something, read straight from the API's JSON.

Shapes: `core/v1` Pod, staging/src/k8s.io/api/core/v1/types.go.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from health.accelerators import is_accelerator
from health.report import Time, Wire

MIRROR_ANNOTATION = "kubernetes.io/config.mirror"
"""On the API's image of a static pod. The kubelet runs it from a file; deleting the image stops nothing."""

CORDON_TAINT = "node.kubernetes.io/unschedulable"
"""What a pod tolerates that is put on a cordoned node all the same (taint of the node lifecycle controller)."""


class OwnerReference(Wire, frozen=True):
    """Who made the pod; at most one owner is its controller."""

    kind: str = ""
    name: str = ""
    uid: str = ""
    api_version: str = ""
    controller: bool = False


class PodMetadata(Wire, frozen=True):
    """What is read of a pod's metadata. `deletion_timestamp` is when its grace ends, not when it was asked for."""

    name: str
    namespace: str
    uid: str
    creation_timestamp: Time | None = None
    deletion_timestamp: Time | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: tuple[OwnerReference, ...] = ()


class Resources(Wire, frozen=True):
    """Quantities by resource name. Extended resources are whole numbers, requests equal limits."""

    requests: dict[str, str] = {}
    limits: dict[str, str] = {}


class Container(Wire, frozen=True):
    """What is read of a container."""

    resources: Resources = Resources()


class Volume(Wire, frozen=True):
    """What is read of a volume: whether it is an emptyDir."""

    empty_dir: dict[str, Any] | None = None


class Toleration(Wire, frozen=True):
    """A taint that the pod puts up with."""

    key: str = ""
    operator: str = "Equal"
    effect: str = ""


class ResourceClaim(Wire, frozen=True):
    """A claim on devices (dynamic resource allocation)."""

    name: str = ""


class PodSpec(Wire, frozen=True):
    """What is read of a pod's spec."""

    node_name: str = ""
    containers: tuple[Container, ...] = ()
    init_containers: tuple[Container, ...] = ()
    volumes: tuple[Volume, ...] = ()
    tolerations: tuple[Toleration, ...] = ()
    resource_claims: tuple[ResourceClaim, ...] = ()
    node_selector: dict[str, str] = {}
    termination_grace_period_seconds: int | None = None


class PodCondition(Wire, frozen=True):
    """What is read of a pod's condition."""

    type: str = ""
    status: str = ""


class PodStatus(Wire, frozen=True):
    """What is read of a pod's status. `start_time` is set by the kubelet that has admitted it."""

    phase: str = ""
    reason: str = ""
    start_time: Time | None = None
    conditions: tuple[PodCondition, ...] = ()


class Pod(Wire, frozen=True):
    """A pod."""

    metadata: PodMetadata
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def name(self) -> str:
        """`NAMESPACE/NAME`, for people."""
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def uid(self) -> str:
        """The pod's UID."""
        return self.metadata.uid

    @property
    def finished(self) -> bool:
        """Whether all its containers have ended for good: the kubelet has taken its devices back."""
        return self.status.phase in ("Succeeded", "Failed")

    @property
    def controller(self) -> OwnerReference | None:
        """The owner that replaces it."""
        return next((owner for owner in self.metadata.owner_references if owner.controller), None)

    @property
    def unadmitted(self) -> bool:
        """Whether its kubelet has not taken it on yet; behind a plugin that hangs it never does."""
        return self.status.phase in ("", "Pending") and self.status.start_time is None and not self.is_mirror

    @property
    def ready(self) -> bool:
        """Whether its Ready condition is True."""
        return any(item.type == "Ready" and item.status == "True" for item in self.status.conditions)

    @property
    def failed_admission(self) -> bool:
        """Whether the kubelet refused it although the scheduler had found room (kubelet's lifecycle/predicate.go)."""
        return self.status.phase == "Failed" and self.status.reason == "UnexpectedAdmissionError"

    @property
    def of_daemon_set(self) -> bool:
        """Whether a DaemonSet controls it, which would put another one on the node at once."""
        owner = self.controller
        return owner is not None and (owner.kind, owner.api_version) == ("DaemonSet", "apps/v1")

    @property
    def is_mirror(self) -> bool:
        """Whether it is the image of a static pod."""
        return MIRROR_ANNOTATION in self.metadata.annotations

    @property
    def has_empty_dir(self) -> bool:
        """Whether data on the node would go with it."""
        return any(volume.empty_dir is not None for volume in self.spec.volumes)

    @property
    def tolerates_cordon(self) -> bool:
        """Whether the scheduler puts it on a cordoned node."""
        return any(
            toleration.effect in ("", "NoSchedule")
            and (toleration.key == CORDON_TAINT or (not toleration.key and toleration.operator == "Exists"))
            for toleration in self.spec.tolerations
        )

    def asks_for(self, resources: Iterable[str]) -> bool:
        """Whether a container wants an extended resource that fits one of the patterns, or claims devices."""
        if self.spec.resource_claims:
            return True
        wanted = {
            name
            for container in (*self.spec.containers, *self.spec.init_containers)
            for quantities in (container.resources.requests, container.resources.limits)
            for name, quantity in quantities.items()
            if quantity.strip("0")
        }
        patterns = tuple(resources)
        return any(is_accelerator(name, patterns) for name in wanted)
