"""What a kubelet serves on its machine, for tests without one: registration of device plugins, and the Pods API."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

from runtime.kubelet_messages import AllocateRequest, AllocateResponse, Empty, RegisterRequest
from runtime.kubelet_messages import PreferredAllocationRequest as PreferredRequest
from runtime.kubelet_messages import PreferredAllocationResponse as PreferredResponse
from runtime.kubelet_pods import (
    Container,
    ContainerState,
    ContainerStateRunning,
    ContainerStatus,
    EventType,
    ObjectMeta,
    Pod,
    PodCondition,
    PodSpec,
    PodStatus,
    Quantity,
    ResourceHealth,
    ResourceRequirements,
    ResourceStatus,
    Time,
    WatchPodsEvent,
)
from runtime.kubelet_rpc import (
    ALLOCATE,
    GET_PREFERRED,
    KUBELET_SOCKET_NAME,
    LIST_AND_WATCH,
    REGISTER,
    WATCH_PODS,
)
from runtime.unix_rpc import RpcError, UnixClient
from runtime.unix_server import Connection, RefusedError, UnixServer, streaming, unary


class FakeKubelet:
    """Takes registrations in a folder and watches what registered, until it is closed.

    Like the kubelet it deletes the sockets that it finds when it starts, connects to a plugin before it answers
    its registration, and refuses a resource whose plugin is connected (pkg/kubelet/cm/devicemanager, 1.37).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._plugins: dict[str, UnixClient] = {}
        self.registrations: list[RegisterRequest] = []
        self.devices: dict[str, dict[str, str]] = {}
        """By resource what its plugin last said, health by device; empty when the connection was lost."""
        for path in folder.iterdir():
            if path.is_socket():
                path.unlink()
        self._server = UnixServer(folder / KUBELET_SOCKET_NAME, [unary(REGISTER, self._register)])
        self._server.start()

    def close(self) -> None:
        """End, as a kubelet that is killed: its socket goes by hand, for a killed one would leave it."""
        self._server.stop()
        for client in list(self._plugins.values()):
            client.close()

    def count(self, resource: str, health: str = "Healthy") -> int:
        """How many devices of a resource are in this state."""
        return list(self.devices.get(resource, {}).values()).count(health)

    def allocate(self, resource: str, request: AllocateRequest, timeout: float = 5.0) -> AllocateResponse:
        """Ask the connected plugin. Raises RpcError."""
        return self._plugins[resource].call(ALLOCATE, request, timeout=timeout)

    def prefer(self, resource: str, request: PreferredRequest) -> PreferredResponse:
        """Ask the connected plugin. Raises RpcError."""
        return self._plugins[resource].call(GET_PREFERRED, request, timeout=5.0)

    def _register(self, request: RegisterRequest, _connection: Connection) -> Empty:
        self.registrations.append(request)
        with self._lock:
            if request.resource_name in self._plugins:
                raise RefusedError("UNKNOWN", f"device plugin already connected: {request.endpoint}")
            client = self._plugins[request.resource_name] = UnixClient(self._folder / request.endpoint)
        threading.Thread(target=self._watch, args=(request.resource_name, client), daemon=True).start()
        return Empty()

    def _watch(self, resource: str, client: UnixClient) -> None:
        try:
            for answer in client.stream(LIST_AND_WATCH, Empty()):
                self.devices[resource] = {device.id: device.health for device in answer.devices}
        except RpcError:
            pass
        self.devices[resource] = {}
        with self._lock:
            del self._plugins[resource]
        client.close()


GPU = "nvidia.com/gpu"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SEEN = "kubernetes.io/config.seen"


def gpu_pod(
    name: str, *, running: bool = False, quantity: str = "1", resource: str = GPU, created: datetime = NOON
) -> Pod:
    """A pod as kubelet 1.37 tells it: admitted with device GPU-1 in the second of its creation, and `running` two
    seconds later."""
    state = ContainerState(running=ContainerStateRunning(started_at=_time(created + timedelta(seconds=2))))
    health = ResourceHealth(resource_id="GPU-1::2", health="Healthy")
    status = ContainerStatus(
        name="main",
        state=state if running else ContainerState(),
        allocated_resources_status=[ResourceStatus(name=resource, resources=[health])],
    )
    told = {"Ready": running, "PodScheduled": True}
    got = (created + timedelta(microseconds=123456)).astimezone(timezone(timedelta(hours=1)))
    requirements = ResourceRequirements(limits={resource: Quantity(text=quantity)})
    return Pod(
        metadata=ObjectMeta(
            name=name,
            namespace="team",
            uid=f"uid-{name}",
            creation_timestamp=_time(created),
            annotations={SEEN: got.isoformat().replace("456+", "456789+")},
        ),
        spec=PodSpec(containers=[Container(name="main", resources=requirements)]),
        status=PodStatus(
            phase="Running" if running else "Pending",
            start_time=_time(created),
            conditions=[
                PodCondition(type=kind, status=str(holds), last_transition_time=_time(created))
                for kind, holds in told.items()
            ],
            container_statuses=[status],
        ),
    )


def _time(moment: datetime) -> Time:
    return Time(seconds=int(moment.timestamp()))


class FakePodsApi:
    """The kubelet's pods: every watch gets those that are there, a word that these were all, and what happens then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pods: dict[str, Pod] = {}
        self.watches = 0
        self._lock = threading.Lock()
        self._told: list[queue.SimpleQueue[WatchPodsEvent | None]] = []
        self.start()

    def start(self) -> None:
        """Serve, as a kubelet that has started again; its pods are those of before."""
        self._server = UnixServer(self.path, [streaming(WATCH_PODS, self._watch)])
        self._server.start()

    def stop(self) -> None:
        """End, with all watches."""
        with self._lock:
            for told in self._told:
                told.put(None)
            self._told.clear()
        self._server.stop()

    def put(self, pod: Pod) -> None:
        """A pod has come or changed."""
        with self._lock:
            kind = EventType.MODIFIED if pod.metadata.uid in self.pods else EventType.ADDED
            self.pods[pod.metadata.uid] = pod
            self._tell(WatchPodsEvent(type=kind, pod=pod.SerializeToString()))

    def remove(self, pod: Pod) -> None:
        """A pod has gone; the kubelet tells its name and UID."""
        with self._lock:
            del self.pods[pod.metadata.uid]
            self._tell(
                WatchPodsEvent(type=EventType.DELETED, pod=Pod(metadata=pod.metadata).SerializeToString())
            )

    def say(self, event: WatchPodsEvent) -> None:
        """Anything."""
        with self._lock:
            self._tell(event)

    def _tell(self, event: WatchPodsEvent) -> None:
        for told in self._told:
            told.put(event)

    def _watch(self, _request: object, _connection: Connection) -> Iterator[WatchPodsEvent]:
        told: queue.SimpleQueue[WatchPodsEvent | None] = queue.SimpleQueue()
        with self._lock:
            for pod in self.pods.values():
                told.put(WatchPodsEvent(type=EventType.ADDED, pod=pod.SerializeToString()))
            told.put(WatchPodsEvent(type=EventType.INITIAL_SYNC_COMPLETE))
            self._told.append(told)
            self.watches += 1
        while (event := told.get()) is not None:
            yield event
