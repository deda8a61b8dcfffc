"""The clients of the kubelet's pods and pod resources."""

from pathlib import Path

import pytest

from runtime.kubelet_messages import AllocatableResourcesResponse, ListPodResourcesResponse
from runtime.kubelet_pods import EventType, ListPodsResponse, ObjectMeta, Pod, WatchPodsEvent
from runtime.kubelet_rpc import (
    GET_ALLOCATABLE,
    LIST_POD_RESOURCES,
    LIST_PODS,
    WATCH_PODS,
    PodResourcesClient,
    PodsClient,
)
from runtime.unix_rpc import RpcError
from runtime.unix_server import UnixServer, streaming, unary


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.sock"


def pods_server(path: Path, *events: WatchPodsEvent) -> UnixServer:
    pod = Pod(metadata=ObjectMeta(name="p")).SerializeToString()
    server = UnixServer(
        path,
        [
            streaming(WATCH_PODS, lambda _request, _connection: iter(events)),
            unary(LIST_PODS, lambda _request, _connection: ListPodsResponse(pods=[pod, b""])),
            unary(LIST_POD_RESOURCES, lambda _request, _connection: ListPodResourcesResponse()),
            unary(GET_ALLOCATABLE, lambda _request, _connection: AllocatableResourcesResponse()),
        ],
    )
    server.start()
    return server


def test_pod_events_come_with_their_pods(path: Path) -> None:
    pod = Pod(metadata=ObjectMeta(name="p")).SerializeToString()
    server = pods_server(
        path,
        WatchPodsEvent(type=EventType.ADDED, pod=pod),
        WatchPodsEvent(type=EventType.INITIAL_SYNC_COMPLETE),
        WatchPodsEvent(type=77, pod=pod),
    )
    client = PodsClient(path)
    seen = [(event.type.name, event.pod and event.pod.metadata.name) for event in client.watch()]
    assert seen == [("ADDED", "p"), ("INITIAL_SYNC_COMPLETE", None), ("UNSPECIFIED", "p")]
    assert [pod.metadata.name for pod in client.list()] == ["p", ""]
    client.close()
    server.stop()


def test_a_pod_that_is_none_is_an_error_not_a_crash(path: Path) -> None:
    server = pods_server(path, WatchPodsEvent(type=EventType.ADDED, pod=b"\xff\xff"))
    client = PodsClient(path)
    with pytest.raises(RpcError, match="not a pod"):
        list(client.watch())
    client.close()
    server.stop()


def test_an_empty_node_lists_nothing(path: Path) -> None:
    server = pods_server(path)
    client = PodResourcesClient(path)
    assert list(client.list().pod_resources) == []
    assert list(client.allocatable().devices) == []
    client.close()
    server.stop()
