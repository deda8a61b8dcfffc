"""The kubelet's local interfaces and those of device plugins as methods, and clients for them.

Every call has a deadline, and fails with a `runtime.unix_rpc.RpcError` whose class says how. One rate limit, 100 a
second with a burst of 10, holds for all clients of the pod resources socket together; who exceeds it gets
RateLimitedError and asks again later. Sockets, as of kubelet 1.37: see the constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.kubelet_messages import (
    AllocatableResourcesResponse,
    AllocateRequest,
    AllocateResponse,
    DevicePluginOptions,
    Empty,
    GetPodResourcesRequest,
    GetPodResourcesResponse,
    ListAndWatchResponse,
    ListPodResourcesResponse,
    PodResources,
    PreferredAllocationRequest,
    PreferredAllocationResponse,
    PreStartContainerRequest,
    RegisterRequest,
)
from runtime.kubelet_pods import EventType, ListPodsResponse, Pod, WatchPodsEvent
from runtime.protobuf import DecodeError
from runtime.unix_rpc import Method, NotFoundError, RpcError, Stream, UnixClient

KUBELET_ROOT = Path("/var/lib/kubelet")
DEVICE_PLUGIN_FOLDER = KUBELET_ROOT / "device-plugins"
KUBELET_SOCKET_NAME = "kubelet.sock"
"""In the folder of the device plugins: where they register."""
POD_RESOURCES_SOCKET = KUBELET_ROOT / "pod-resources" / "kubelet.sock"
PODS_SOCKET = KUBELET_ROOT / "pods-api" / "pods-api.sock"

REGISTER = Method("/v1beta1.Registration/Register", RegisterRequest, Empty)
GET_OPTIONS = Method("/v1beta1.DevicePlugin/GetDevicePluginOptions", Empty, DevicePluginOptions)
LIST_AND_WATCH = Method("/v1beta1.DevicePlugin/ListAndWatch", Empty, ListAndWatchResponse)
GET_PREFERRED = Method(
    "/v1beta1.DevicePlugin/GetPreferredAllocation", PreferredAllocationRequest, PreferredAllocationResponse
)
ALLOCATE = Method("/v1beta1.DevicePlugin/Allocate", AllocateRequest, AllocateResponse)
PRE_START = Method("/v1beta1.DevicePlugin/PreStartContainer", PreStartContainerRequest, Empty)
LIST_POD_RESOURCES = Method("/v1.PodResourcesLister/List", Empty, ListPodResourcesResponse)
GET_POD_RESOURCES = Method("/v1.PodResourcesLister/Get", GetPodResourcesRequest, GetPodResourcesResponse)
GET_ALLOCATABLE = Method(
    "/v1.PodResourcesLister/GetAllocatableResources", Empty, AllocatableResourcesResponse
)
WATCH_PODS = Method("/v1alpha1.Pods/WatchPods", Empty, WatchPodsEvent)
LIST_PODS = Method("/v1alpha1.Pods/ListPods", Empty, ListPodsResponse)

TIMEOUT = 2.0
"""Seconds for one call; a kubelet on a busy machine answers in about one millisecond."""


@dataclass(frozen=True, slots=True)
class PodEvent:
    """What the kubelet says of a pod; `pod` is None where it sends none. An unknown `type` is UNSPECIFIED."""

    type: EventType
    pod: Pod | None


class _Client:
    def __init__(self, socket: Path) -> None:
        self._client = UnixClient(socket)

    def close(self) -> None:
        """Drop the connection; calls under way end with code CANCELLED."""
        self._client.close()


class RegistrationClient(_Client):
    """A device plugin's way to the kubelet."""

    def register(self, request: RegisterRequest, *, timeout: float = 5.0) -> None:
        """Register, waiting for the kubelet's socket until then. Raises RpcError, UNKNOWN where it is refused.

        The kubelet connects to the plugin's own socket before it answers.
        """
        self._client.call(REGISTER, request, timeout=timeout, wait=True)


class DevicePluginClient(_Client):
    """A device plugin as the probe of the agent sees it: asked nothing that would change something."""

    def options(self, timeout: float = TIMEOUT) -> DevicePluginOptions:
        """The plugin's options. Raises RpcError."""
        return self._client.call(GET_OPTIONS, Empty(), timeout=timeout)

    def ask_options(self, *, timeout: float, done: Callable[[DevicePluginOptions | RpcError], None]) -> None:
        """The same without waiting; `done` is called on another thread."""
        self._client.ask(GET_OPTIONS, Empty(), timeout=timeout, done=done)


class PodResourcesClient(_Client):
    """Who holds which device."""

    def __init__(self, socket: Path = POD_RESOURCES_SOCKET) -> None:
        super().__init__(socket)

    def list(self, timeout: float = TIMEOUT) -> ListPodResourcesResponse:
        """All pods that have not ended, those without devices too. Raises RpcError."""
        return self._client.call(LIST_POD_RESOURCES, Empty(), timeout=timeout)

    def get(self, namespace: str, pod: str, timeout: float = TIMEOUT) -> PodResources:
        """One pod. Raises NotFoundError for one that is not there or has ended, else RpcError.

        The kubelet says UNKNOWN for that (pkg/kubelet/apis/podresources/server_v1.go), and for nothing else.
        """
        request = GetPodResourcesRequest(pod_name=pod, pod_namespace=namespace)
        try:
            return self._client.call(GET_POD_RESOURCES, request, timeout=timeout).pod_resources
        except RpcError as error:
            if error.code == "UNKNOWN":
                raise NotFoundError(error.code, error.message) from None
            raise

    def allocatable(self, timeout: float = TIMEOUT) -> AllocatableResourcesResponse:
        """The devices that are healthy, in use or not. Raises RpcError."""
        return self._client.call(GET_ALLOCATABLE, Empty(), timeout=timeout)


class PodWatch:
    """Events of the node's pods, for one thread; `cancel` from any thread ends the iteration."""

    def __init__(self, stream: Stream[WatchPodsEvent]) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[PodEvent]:
        """Raises RpcError."""
        for event in self._stream:
            known = event.type in EventType.__members__.values()
            kind = EventType(event.type) if known else EventType.UNSPECIFIED
            yield PodEvent(kind, _pod(event.pod) if event.pod else None)

    def cancel(self) -> None:
        """End the watch. Returns at once."""
        self._stream.cancel()


class PodsClient(_Client):
    """This node's pods. The socket is missing before Kubernetes 1.37."""

    def __init__(self, socket: Path = PODS_SOCKET) -> None:
        super().__init__(socket)

    def watch(self, timeout: float | None = None) -> PodWatch:
        """The pods as they are, then what happens to them, for at most `timeout` seconds."""
        return PodWatch(self._client.stream(WATCH_PODS, Empty(), timeout=timeout))

    def list(self, timeout: float = TIMEOUT) -> tuple[Pod, ...]:
        """The pods. Raises RpcError."""
        return tuple(map(_pod, self._client.call(LIST_PODS, Empty(), timeout=timeout).pods))


def _pod(data: bytes) -> Pod:
    try:
        return Pod.FromString(data)
    except DecodeError as error:
        raise RpcError("INTERNAL", f"not a pod: {error}") from None
