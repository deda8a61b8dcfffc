"""Clients and servers on unix sockets, and the clients of the kubelet: every way a call can end has its error."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.kubelet_messages import (
    Device,
    DevicePluginOptions,
    Empty,
    GetPodResourcesRequest,
    GetPodResourcesResponse,
    ListAndWatchResponse,
    ListPodResourcesResponse,
    PodResources,
)
from runtime.kubelet_rpc import (
    GET_OPTIONS,
    GET_POD_RESOURCES,
    LIST_AND_WATCH,
    LIST_POD_RESOURCES,
    DevicePluginClient,
    PodResourcesClient,
    PodsClient,
)
from runtime.unix_rpc import (
    DeadlineError,
    NoSocketError,
    NotFoundError,
    RateLimitedError,
    RpcError,
    UnixClient,
    UnreachableError,
    UnsupportedError,
    accepts,
    identity,
)
from runtime.unix_server import BindError, Connection, RefusedError, UnixServer, streaming, unary
from tests.lab.processes import wait_until


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.sock"


@pytest.fixture
def served(path: Path) -> Iterator[UnixServer]:
    """A device plugin that can be told, by the name of a pod, how to fail."""
    server = UnixServer(
        path,
        [
            unary(GET_OPTIONS, lambda _request, _connection: DevicePluginOptions(pre_start_required=True)),
            unary(GET_POD_RESOURCES, _get),
            streaming(LIST_AND_WATCH, _watch),
        ],
    )
    server.start()
    yield server
    server.stop()


def _get(request: GetPodResourcesRequest, _connection: Connection) -> GetPodResourcesResponse:
    if request.pod_name.isupper():
        raise RefusedError(request.pod_name, f"told to say {request.pod_name}")
    return GetPodResourcesResponse(
        pod_resources=PodResources(name=request.pod_name, namespace=request.pod_namespace)
    )


def _watch(_request: Empty, connection: Connection) -> Iterator[ListAndWatchResponse]:
    ended = threading.Event()
    connection.add_callback(ended.set)
    yield ListAndWatchResponse(devices=[Device(id="a")])
    ended.wait(5)


def test_a_call_is_answered(path: Path, served: UnixServer) -> None:
    client = DevicePluginClient(path)
    assert client.options().pre_start_required
    client.close()


def test_a_path_with_blanks_and_signs_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a b%20#.sock"
    server = UnixServer(path, [unary(GET_OPTIONS, lambda _r, _c: DevicePluginOptions())])
    server.start()
    assert path.is_socket()
    client = DevicePluginClient(path)
    client.options()
    client.close()
    server.stop()
    assert not path.exists()


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("RESOURCE_EXHAUSTED", RateLimitedError),
        ("UNKNOWN", NotFoundError),
        ("NOT_FOUND", NotFoundError),
        ("UNAVAILABLE", UnreachableError),
        ("UNIMPLEMENTED", UnsupportedError),
        ("INTERNAL", RpcError),
    ],
)
def test_a_status_of_the_kubelet_has_its_error(
    path: Path, served: UnixServer, status: str, error: type[RpcError]
) -> None:
    client = PodResourcesClient(path)
    with pytest.raises(error, match=f"told to say {status}") as raised:
        client.get("ns", status)
    assert raised.value.code == status
    assert (client.get("ns", "pod").namespace, client.get("ns", "pod").name) == ("ns", "pod")
    client.close()


def test_a_service_that_is_not_there_is_unsupported(path: Path, served: UnixServer) -> None:
    client = PodsClient(path)
    with pytest.raises(UnsupportedError):
        client.list()
    with pytest.raises(UnsupportedError):
        list(client.watch())
    client.close()


def test_no_socket_is_told_from_a_socket_that_nobody_serves(path: Path) -> None:
    client = PodResourcesClient(path)
    with pytest.raises(NoSocketError, match=f"no socket {path}"):
        client.list()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(UnreachableError) as refused:
        client.list()
    assert not isinstance(refused.value, NoSocketError)
    assert accepts(path) is False
    client.close()


def test_who_does_not_answer_meets_the_deadline(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen(1)
        assert accepts(path) is True
        client = DevicePluginClient(path)
        begun = time.monotonic()
        with pytest.raises(DeadlineError):
            client.options(0.2)
        assert 0.1 < time.monotonic() - begun < 1
        client.close()


def test_a_full_queue_is_told_from_a_refusal(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(str(path))
        assert accepts(path) is None
        for one in waiting:
            one.close()


def test_a_client_finds_a_server_that_comes_later_and_one_that_comes_again(path: Path) -> None:
    client = DevicePluginClient(path)
    with pytest.raises(NoSocketError):
        client.options()
    for _ in range(2):
        server = UnixServer(path, [unary(GET_OPTIONS, lambda _r, _c: DevicePluginOptions())])
        server.start()
        wait_until(client.options, 3, "the server", ignoring=(UnreachableError,))
        server.stop()
    client.close()


def test_a_server_takes_the_place_of_a_file_that_a_dead_one_left(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    before = identity(path)
    server = UnixServer(path, [unary(GET_OPTIONS, lambda _r, _c: DevicePluginOptions())])
    server.start()
    assert identity(path) not in (None, before)
    client = DevicePluginClient(path)
    client.options()
    client.close()
    server.stop()


def test_a_server_says_why_it_cannot_listen(tmp_path: Path) -> None:
    with pytest.raises(BindError, match="no such folder"):
        UnixServer(tmp_path / "none" / "x.sock", []).start()
    with pytest.raises(BindError, match=r"directory"):
        UnixServer(tmp_path, []).start()


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most 107 bytes"):
        UnixClient(tmp_path / ("x" * 108))


def test_an_answer_that_is_too_long_is_refused(path: Path) -> None:
    many = ListPodResourcesResponse(pod_resources=[PodResources(name="x" * 1000)])
    server = UnixServer(path, [unary(LIST_POD_RESOURCES, lambda _r, _c: many)])
    server.start()
    client = UnixClient(path, reply_limit=500)
    with pytest.raises(RpcError, match="larger than max") as refused:
        client.call(LIST_POD_RESOURCES, Empty(), timeout=2)
    assert not isinstance(refused.value, RateLimitedError)
    client.close()
    server.stop()


def test_asking_without_waiting_gets_the_answer_or_the_error(path: Path, served: UnixServer) -> None:
    client = DevicePluginClient(path)
    answers: list[DevicePluginOptions | RpcError] = []
    client.ask_options(timeout=2, done=answers.append)
    wait_until(lambda: answers, 2, "the answer", every=0.005)
    served.stop()
    client.ask_options(timeout=2, done=answers.append)
    wait_until(lambda: len(answers) == 2, 3, "the error", every=0.005)
    client.close()
    client.ask_options(timeout=2, done=answers.append)
    assert isinstance(answers[0], DevicePluginOptions)
    assert isinstance(answers[1], UnreachableError)
    assert isinstance(answers[2], RpcError)
    assert answers[2].code == "CANCELLED"


def test_a_client_that_is_closed_ends_the_call_under_way(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen(1)
        client = DevicePluginClient(path)
        threading.Timer(0.1, client.close).start()
        begun = time.monotonic()
        with pytest.raises(RpcError) as ended:
            client.options(5)
        assert ended.value.code == "CANCELLED"
        assert time.monotonic() - begun < 2
        with pytest.raises(RpcError, match="CANCELLED"):
            client.options()


def test_a_stream_ends_when_it_is_cancelled_and_fails_when_the_server_goes(
    path: Path, served: UnixServer
) -> None:
    client = UnixClient(path)
    stream = client.stream(LIST_AND_WATCH, Empty())
    for answer in stream:
        assert [device.id for device in answer.devices] == ["a"]
        stream.cancel()
    second = iter(client.stream(LIST_AND_WATCH, Empty()))
    next(second)
    served.stop()
    with pytest.raises(RpcError):
        next(second)
    client.close()
