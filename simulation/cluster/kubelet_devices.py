"""A simulated kubelet's device manager: what its plugins list, who holds which device, and how admission fails.

As kubelet 1.37 does it (pkg/kubelet/cm/devicemanager/manager.go) and as was measured with NVIDIA's plugin 0.20: a
plugin that is gone leaves its devices unhealthy and its capacity for 5 minutes; allocatable is told with the next
node status; a pod keeps an unhealthy device; Allocate has no timeout, so a plugin that hangs stops the whole kubelet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from simulation.cluster.interface import Object
from simulation.cluster.quantities import container_requests
from simulation.cluster.view import uid_of

PLUGIN_GRACE_SECONDS = 300.0
"""So long a resource keeps its capacity after its plugin went (endpointStopGracePeriod)."""

REGISTRATION_SECONDS = 0.92
"""From a kubelet's start until the plugins have registered again (median of 11, measured)."""


class AllocateError(Exception):
    """The plugin refused, or its connection broke: the text of the gRPC error."""


class AllocateHangsError(Exception):
    """The plugin has not answered yet, and may never."""


class AdmissionError(Exception):
    """The kubelet refuses the pod for good: the reason and message of its status."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class DevicePlugins(Protocol):
    """The device plugins of one node, as its kubelet sees them. Calls must not block."""

    def listed(self) -> Mapping[str, Mapping[str, bool]]:
        """By resource name of each plugin that is connected: its devices by ID, and whether each is healthy."""

    def allocate(self, resource: str, devices: Sequence[str]) -> None:
        """GetPreferredAllocation and Allocate. Raises AllocateError, or AllocateHangsError to be asked again."""


class NoPlugins:
    """A node without device plugins."""

    def listed(self) -> Mapping[str, Mapping[str, bool]]:
        return {}

    def allocate(self, resource: str, devices: Sequence[str]) -> None:
        raise AllocateError(f"no device plugin for {resource}")


@dataclass(slots=True)
class _Resource:
    """Devices by ID with their health as the kubelet last had it, and since when the plugin is gone."""

    devices: dict[str, bool] = field(default_factory=dict)
    gone_since: float | None = None

    @property
    def healthy(self) -> list[str]:
        return [device for device, healthy in self.devices.items() if healthy]


@dataclass(slots=True)
class Holding:
    """The devices of one container, and what the pod's status says of each of them: stale once a plugin is gone."""

    pod: Object
    container: str
    devices: dict[str, list[str]] = field(default_factory=dict)
    health: dict[str, bool] = field(default_factory=dict)
    pending: set[str] = field(default_factory=set)
    """Resources whose Allocate has not been answered."""


class DeviceManager:
    """The devices of one node."""

    def __init__(self, plugins: DevicePlugins) -> None:
        self._plugins = plugins
        self._resources: dict[str, _Resource] = {}
        self._holdings: dict[tuple[str, str], Holding] = {}
        self._listens_from = 0.0

    def refresh(self, now: float) -> frozenset[str]:
        """Take in what the plugins list now; the UIDs of pods that hold a device whose health has changed."""
        if now < self._listens_from:
            return frozenset()
        listed = self._plugins.listed()
        for name, resource in self._resources.items():
            if name not in listed and resource.gone_since is None:
                resource.gone_since = now
                resource.devices = dict.fromkeys(resource.devices, False)
        for name, devices in listed.items():
            resource = self._resources.setdefault(name, _Resource())
            resource.devices, resource.gone_since = dict(devices), None
        return self._told(listed)

    def restart(self, now: float) -> None:
        """The kubelet starts: it knows the resources and who holds what, but no device until plugins register."""
        for resource in self._resources.values():
            resource.devices, resource.gone_since = {}, now
        self._listens_from = now + REGISTRATION_SECONDS

    @property
    def listens_from(self) -> float:
        """When the plugins have registered after the last start."""
        return self._listens_from

    def amounts(self, now: float) -> dict[str, tuple[int, int]]:
        """Capacity and allocatable by resource; a name that was ever registered stays, with 0 in the end."""
        found = {}
        for name, resource in self._resources.items():
            expired = resource.gone_since is not None and now - resource.gone_since >= PLUGIN_GRACE_SECONDS
            found[name] = (0, 0) if expired else (len(resource.devices), len(resource.healthy))
        return found

    def grace_ends(self) -> float | None:
        """When the next capacity expires."""
        ends = [one.gone_since + PLUGIN_GRACE_SECONDS for one in self._resources.values() if one.gone_since]
        return min(ends, default=None)

    def admit(self, pod: Object) -> None:
        """Allocate what the pod's containers ask for.

        Raises AdmissionError, after which the pod holds nothing, and AllocateHangsError, to be called again.
        """
        spec = pod["spec"]
        containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
        try:
            for container in containers:
                for resource, thousandths in container_requests(container).items():
                    if resource in self._resources and thousandths:
                        self._allocate(pod, container["name"], resource, thousandths // 1000)
        except AllocateError as error:
            self.release(uid_of(pod))
            text = f"Pod was rejected: Allocate failed due to {error}, which is unexpected"
            raise AdmissionError("UnexpectedAdmissionError", text) from error

    def release(self, pod_uid: str) -> None:
        """The pod has ended: its devices are free."""
        for key in [key for key in self._holdings if key[0] == pod_uid]:
            del self._holdings[key]

    def holdings(self) -> list[Holding]:
        """Who holds what, devices that are still being allocated included, as pod-resources lists them."""
        return list(self._holdings.values())

    def status_of(self, pod_uid: str, container: str) -> list[Object]:
        """The container's `allocatedResourcesStatus`."""
        holding = self._holdings.get((pod_uid, container))
        if holding is None:
            return []
        return [
            {
                "name": resource,
                "resources": [
                    {"resourceID": one, "health": "Healthy" if holding.health.get(one, True) else "Unhealthy"}
                    for one in devices
                ],
            }
            for resource, devices in sorted(holding.devices.items())
        ]

    def _allocate(self, pod: Object, container: str, resource: str, count: int) -> None:
        key = (uid_of(pod), container)
        holding = self._holdings.get(key)
        known = self._resources[resource]
        held = holding.devices.get(resource) if holding else None
        if held is None or holding is None:
            chosen = self._choose(known, resource, count, key[0])
            holding = self._holdings.setdefault(key, Holding(pod=pod, container=container))
            holding.devices[resource] = chosen
            holding.health.update(dict.fromkeys(chosen, True))
            holding.pending.add(resource)
        elif resource not in holding.pending:
            _check_again(known, resource, held)
            return
        self._plugins.allocate(resource, holding.devices[resource])
        holding.pending.discard(resource)

    def _choose(self, known: _Resource, resource: str, count: int, pod_uid: str) -> list[str]:
        healthy = known.healthy
        if not healthy:
            raise AllocateError(f"no healthy devices present; cannot allocate unhealthy devices {resource}")
        free = self._free(resource, healthy, pod_uid)
        if len(free) < count:
            raise AllocateError(
                f"requested number of devices unavailable for {resource}. "
                f"Requested: {count}, Available: {len(free)}"
            )
        return free[:count]

    def _free(self, resource: str, healthy: Sequence[str], pod_uid: str) -> list[str]:
        """Devices for a container, first those of the same pod's init containers, which have ended by then."""
        held = {
            device: uid
            for (uid, _), holding in self._holdings.items()
            for device in holding.devices.get(resource, ())
        }
        own_init = self._init_devices(resource, pod_uid)
        reusable = [device for device in healthy if device in own_init]
        return reusable + [device for device in healthy if device not in held]

    def _init_devices(self, resource: str, pod_uid: str) -> set[str]:
        mine = [holding for (uid, _), holding in self._holdings.items() if uid == pod_uid]
        names = {one["name"] for holding in mine for one in holding.pod["spec"].get("initContainers") or ()}
        by_init = {d for one in mine if one.container in names for d in one.devices.get(resource, ())}
        by_others = {d for one in mine if one.container not in names for d in one.devices.get(resource, ())}
        return by_init - by_others

    def _told(self, listed: Mapping[str, Mapping[str, bool]]) -> frozenset[str]:
        changed = set()
        for (uid, _), holding in self._holdings.items():
            for resource, devices in holding.devices.items():
                said = listed.get(resource)
                if said is None:
                    continue
                for device in devices:
                    healthy = said.get(device, False)
                    if holding.health.get(device) != healthy:
                        holding.health[device] = healthy
                        changed.add(uid)
        return frozenset(changed)


def _check_again(known: _Resource, resource: str, held: Sequence[str]) -> None:
    """A pod that had devices before a reboot keeps them, if its plugin was quicker than the kubelet."""
    if not known.healthy:
        raise AllocateError(f"no healthy devices present; cannot allocate unhealthy devices {resource}")
    if not set(held) <= set(known.healthy):
        raise AllocateError(
            "previously allocated devices are no longer healthy; "
            f"cannot allocate unhealthy devices {resource}"
        )
