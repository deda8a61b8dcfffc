"""The sockets of a simulated node's kubelet: device plugins register at one, the agent asks the other who holds what.

As the kubelet does (pkg/kubelet/cm/devicemanager, 1.37): it connects to a plugin before it answers its registration,
refuses a resource whose plugin is connected, and takes a plugin whose stream ends for gone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

from runtime.kubelet_messages import (
    HEALTHY,
    AllocatableResourcesResponse,
    AllocateRequest,
    AllocateResponse,
    ContainerAllocateRequest,
    ContainerDevices,
    ContainerResources,
    Empty,
    ListPodResourcesResponse,
    PodResources,
    RegisterRequest,
)
from runtime.kubelet_rpc import (
    ALLOCATE,
    GET_ALLOCATABLE,
    KUBELET_SOCKET_NAME,
    LIST_AND_WATCH,
    LIST_POD_RESOURCES,
    REGISTER,
)
from runtime.unix_rpc import RpcError, UnixClient
from runtime.unix_server import Connection, RefusedError, UnixServer, unary
from simulation.cluster.kubelet_devices import AllocateError, AllocateHangsError, Holding
from simulation.demo.host_files import HostFiles

ANSWER_SECONDS = 0.05
"""So long the kubelet's loop waits for a plugin's answer, which takes a millisecond, before it asks again later."""

ALLOCATE_SECONDS = 3600.0
"""The kubelet itself sets no limit at all."""


class KubeletSockets:
    """One node's, between two boots. It is also what the simulated kubelet sees of the plugins (`DevicePlugins`).

    `holdings` is who holds what by the kubelet's own books, `changed` is called when a plugin says something.
    """

    def __init__(
        self, files: HostFiles, *, holdings: Callable[[], Sequence[Holding]], changed: Callable[[], None]
    ) -> None:
        self._files = files
        self._holdings = holdings
        self._changed = changed
        self._lock = threading.Lock()
        self._clients: dict[str, UnixClient] = {}
        self._listed: dict[str, dict[str, bool]] = {}
        self._asked: dict[tuple[str, tuple[str, ...]], _Answer] = {}
        self._servers: list[UnixServer] = []

    def start(self) -> None:
        """Serve. Raises BindError."""
        self._servers = [
            UnixServer(self._files.plugins / KUBELET_SOCKET_NAME, [unary(REGISTER, self._register)]),
            UnixServer(
                self._files.pod_resources,
                [
                    unary(LIST_POD_RESOURCES, lambda _request, _connection: self._pod_resources()),
                    unary(GET_ALLOCATABLE, lambda _request, _connection: self._allocatable()),
                ],
            ),
        ]
        for server in self._servers:
            server.start()

    def stop(self) -> None:
        """The kubelet is gone, with all its connections."""
        for server in self._servers:
            server.stop()
        self._servers = []
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
            self._listed.clear()
            self._asked.clear()
        for client in clients:
            client.close()

    def listed(self) -> Mapping[str, Mapping[str, bool]]:
        with self._lock:
            return {resource: dict(devices) for resource, devices in self._listed.items()}

    def allocate(self, resource: str, devices: Sequence[str]) -> None:
        """Only Allocate: which devices are preferred makes no difference on a simulated board."""
        key = resource, tuple(devices)
        with self._lock:
            client, answer = self._clients.get(resource), self._asked.get(key)
            if client is None:
                self._asked.pop(key, None)
                raise AllocateError(f"no device plugin for {resource}")
            asks = answer is None
            answer = self._asked.setdefault(key, _Answer())
        if asks:
            request = AllocateRequest(container_requests=[ContainerAllocateRequest(device_ids=list(devices))])
            client.ask(ALLOCATE, request, timeout=ALLOCATE_SECONDS, done=answer.take)
        if not answer.came.wait(ANSWER_SECONDS):
            raise AllocateHangsError(resource)
        with self._lock:
            self._asked.pop(key, None)
        if answer.error:
            raise AllocateError(answer.error)

    def _register(self, request: RegisterRequest, _connection: Connection) -> Empty:
        resource = request.resource_name
        with self._lock:
            if resource in self._clients:
                raise RefusedError("UNKNOWN", f"device plugin already connected: {request.endpoint}")
            client = self._clients[resource] = UnixClient(self._files.plugins / request.endpoint)
        threading.Thread(target=self._watch, args=(resource, client), daemon=True).start()
        return Empty()

    def _watch(self, resource: str, client: UnixClient) -> None:
        try:
            for answer in client.stream(LIST_AND_WATCH, Empty()):
                devices = {device.id: device.health == HEALTHY for device in answer.devices}
                with self._lock:
                    if self._clients.get(resource) is not client:
                        return
                    self._listed[resource] = devices
                self._changed()
        except RpcError:
            pass  # a plugin that dies ends its stream so
        with self._lock:
            if self._clients.get(resource) is not client:
                return
            del self._clients[resource]
            self._listed.pop(resource, None)
        client.close()
        self._changed()

    def _pod_resources(self) -> ListPodResourcesResponse:
        pods: dict[tuple[str, str], list[ContainerResources]] = {}
        for holding in self._holdings():
            metadata = holding.pod["metadata"]
            devices = [
                ContainerDevices(resource_name=resource, device_ids=list(ids))
                for resource, ids in holding.devices.items()
            ]
            containers = pods.setdefault((metadata["namespace"], metadata["name"]), [])
            containers.append(ContainerResources(name=holding.container, devices=devices))
        return ListPodResourcesResponse(
            pod_resources=[
                PodResources(name=name, namespace=namespace, containers=containers)
                for (namespace, name), containers in pods.items()
            ]
        )

    def _allocatable(self) -> AllocatableResourcesResponse:
        return AllocatableResourcesResponse(
            devices=[
                ContainerDevices(
                    resource_name=resource, device_ids=[one for one, healthy in devices.items() if healthy]
                )
                for resource, devices in self.listed().items()
            ]
        )


class _Answer:
    """What a plugin says to one Allocate."""

    def __init__(self) -> None:
        self.came = threading.Event()
        self.error = ""

    def take(self, answer: AllocateResponse | RpcError) -> None:
        """On a thread of gRPC's."""
        self.error = str(answer) if isinstance(answer, RpcError) else ""
        self.came.set()
