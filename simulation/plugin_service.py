"""What a simulated device plugin answers the kubelet, as NVIDIA's does (k8s-device-plugin 0.20, internal/plugin).

One `PluginService` is one life of the plugin, from a start to the next: a device that turns unhealthy in it stays
so, because the real one has no way back either.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

from runtime.kubelet_messages import (
    HEALTHY,
    UNHEALTHY,
    AllocateRequest,
    AllocateResponse,
    ContainerAllocateRequest,
    ContainerAllocateResponse,
    ContainerPreferredAllocationRequest,
    ContainerPreferredAllocationResponse,
    Device,
    DevicePluginOptions,
    Empty,
    ListAndWatchResponse,
    PreferredAllocationRequest,
    PreferredAllocationResponse,
    PreStartContainerRequest,
)
from runtime.kubelet_rpc import ALLOCATE, GET_OPTIONS, GET_PREFERRED, LIST_AND_WATCH, PRE_START
from runtime.unix_server import Connection, Handler, RefusedError, streaming, unary
from simulation.plugin_control import PluginControl

DEVICES_VARIABLE = "NVIDIA_VISIBLE_DEVICES"
"""How a container learns of its devices (NVIDIA's device list strategy `envvar`, the default)."""

log = logging.getLogger(__name__)


class PluginService:
    """Offers devices, by their ids, under a resource's name. Methods run on the threads of the server."""

    def __init__(
        self, resource: str, devices: Sequence[str], *, control: Callable[[], PluginControl]
    ) -> None:
        self._resource = resource
        self._devices = tuple(devices)
        self._control = control
        self._unhealthy: frozenset[str] = frozenset()
        self._changed = threading.Condition()
        self._stopped = threading.Event()

    def handlers(self) -> list[Handler]:
        """The methods for a server."""
        return [
            unary(GET_OPTIONS, self._options),
            streaming(LIST_AND_WATCH, self._list_and_watch),
            unary(GET_PREFERRED, self._preferred),
            unary(ALLOCATE, self._allocate),
            unary(PRE_START, self._pre_start),
        ]

    @property
    def devices(self) -> tuple[str, ...]:
        """What is offered."""
        return self._devices

    @property
    def unhealthy(self) -> frozenset[str]:
        """The devices that are marked."""
        return self._unhealthy

    def mark_unhealthy(self, devices: Iterable[str]) -> None:
        """Mark devices and tell the kubelet."""
        fresh = frozenset(devices) - self._unhealthy
        if not fresh:
            return
        log.info("%s: devices marked unhealthy: %s", self._resource, ", ".join(sorted(fresh)))
        with self._changed:
            self._unhealthy |= fresh
            self._changed.notify_all()

    def stop(self) -> None:
        """End what waits."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()

    def _options(self, _request: Empty, _connection: Connection) -> DevicePluginOptions:
        return options()

    def _list_and_watch(self, _request: Empty, connection: Connection) -> Iterator[ListAndWatchResponse]:
        connection.add_callback(self._wake)
        said: frozenset[str] | None = None
        while True:
            with self._changed:
                while self._unhealthy == said and not self._ended(connection):
                    self._changed.wait()
                said = self._unhealthy
            if self._ended(connection):
                return
            yield ListAndWatchResponse(
                devices=[
                    Device(id=name, health=UNHEALTHY if name in said else HEALTHY) for name in self._devices
                ]
            )

    def _ended(self, connection: Connection) -> bool:
        return self._stopped.is_set() or not connection.is_active()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _preferred(
        self, request: PreferredAllocationRequest, _connection: Connection
    ) -> PreferredAllocationResponse:
        if message := self._control().preferred_error:
            # What a Go server makes of an error that is none of gRPC's.
            raise RefusedError("UNKNOWN", message)
        return PreferredAllocationResponse(
            container_responses=[self._prefer(container) for container in request.container_requests]
        )

    def _prefer(self, container: ContainerPreferredAllocationRequest) -> ContainerPreferredAllocationResponse:
        """Any will do; the kubelet lists what is free in no particular order, and so does the real choice vary."""
        must = list(container.must_include_device_ids)
        rest = [name for name in container.available_device_ids if name not in must]
        return ContainerPreferredAllocationResponse(device_ids=[*must, *rest][: container.allocation_size])

    def _allocate(self, request: AllocateRequest, _connection: Connection) -> AllocateResponse:
        control = self._control()
        self._stopped.wait(control.allocate_latency_seconds)
        if control.allocate_error:
            raise RefusedError("UNKNOWN", control.allocate_error)
        return AllocateResponse(
            container_responses=[self._give(container) for container in request.container_requests]
        )

    def _give(self, container: ContainerAllocateRequest) -> ContainerAllocateResponse:
        """An unhealthy device is given too: whether it may be had is the kubelet's business."""
        for name in container.device_ids:
            if name not in self._devices:
                raise RefusedError(
                    "UNKNOWN", f'invalid allocation request for "{self._resource}": unknown device: {name}'
                )
        return ContainerAllocateResponse(envs={DEVICES_VARIABLE: ",".join(container.device_ids)})

    def _pre_start(self, _request: PreStartContainerRequest, _connection: Connection) -> Empty:
        return Empty()


def options() -> DevicePluginOptions:
    """What the plugin can do, as it says in its registration too."""
    return DevicePluginOptions(get_preferred_allocation_available=True)
