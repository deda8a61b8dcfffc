"""Who holds which device, as the kubelet says it, and how far one answer of it is believed.

An answer without a device does not make it free: after its start a kubelet answers for about a second before it
knows what its pods hold, and a pod can be missing from a list while it ends (measured on kubelet 1.37). So what was
held stays held until answers have lacked it for a while, unless they show it with somebody else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from health.accelerators import uuid_of
from runtime.kubelet_messages import AllocatableResourcesResponse, ListPodResourcesResponse

CONFIRM_SECONDS = 0.5
"""So long two answers at least have to lack a device before it is free."""


@dataclass(frozen=True, slots=True, order=True)
class Holding:
    """One device in one container. `resource` is such as `nvidia.com/gpu`, `device_id` the plugin's name for it."""

    resource: str
    device_id: str
    namespace: str
    pod: str
    container: str

    @property
    def uuid(self) -> str:
        """The device's own name."""
        return uuid_of(self.device_id)


@dataclass(frozen=True, slots=True)
class Holdings:
    """The kubelet's view: `held`, sorted, and by resource the devices that it has as healthy, held or not.

    A device that turns unhealthy, or whose plugin has gone, leaves `healthy` at once and stays in `held`.
    """

    held: tuple[Holding, ...] = ()
    healthy: Mapping[str, frozenset[str]] = field(default_factory=dict)


def held_devices(answer: ListPodResourcesResponse) -> tuple[Holding, ...]:
    """What the kubelet's list says, sorted."""
    held = {
        Holding(devices.resource_name, device_id, pod.namespace, pod.name, container.name)
        for pod in answer.pod_resources
        for container in pod.containers
        for devices in container.devices
        for device_id in devices.device_ids
    }
    return tuple(sorted(held))


def healthy_devices(answer: AllocatableResourcesResponse) -> Mapping[str, frozenset[str]]:
    """What the kubelet's allocatable resources say, by resource; one that has no healthy device is not named."""
    found: dict[str, set[str]] = {}
    for devices in answer.devices:
        found.setdefault(devices.resource_name, set()).update(devices.device_ids)
    return {name: frozenset(ids) for name, ids in found.items()}


@dataclass(frozen=True, slots=True)
class Ledger:
    """The answers so far. `missing` says since when, on the monotonic clock, answers have lacked a holding."""

    shown: Holdings = field(default_factory=Holdings)
    missing: Mapping[Holding, float] = field(default_factory=dict)

    def with_answer(self, answer: Holdings, now: float) -> Ledger:
        """The next ledger, after an answer at `now`."""
        taken = {(held.resource, held.device_id) for held in answer.held}
        present = frozenset(answer.held)
        missing = {
            held: self.missing.get(held, now)
            for held in self.shown.held
            if held not in present and (held.resource, held.device_id) not in taken
        }
        kept = {
            held: since
            for held, since in missing.items()
            if held not in self.missing or now - since < CONFIRM_SECONDS
        }
        return Ledger(Holdings(tuple(sorted(present | kept.keys())), answer.healthy), kept)

    def undecided(self) -> Ledger:
        """The same, after answers were disregarded: what was missing before them has to be missing again."""
        return Ledger(self.shown)
