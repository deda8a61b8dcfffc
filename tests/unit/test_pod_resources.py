"""The source that asks the kubelet who holds which device."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.holdings import CONFIRM_SECONDS, Holding, Holdings
from exporter.sources.pod_resources import PodResourcesSource, Timing
from health.vocabulary import SourceState
from runtime.kubelet_messages import (
    AllocatableResourcesResponse,
    ContainerDevices,
    ContainerResources,
    ListPodResourcesResponse,
    PodResources,
)
from runtime.kubelet_rpc import GET_ALLOCATABLE, LIST_POD_RESOURCES
from runtime.unix_server import RefusedError, UnixServer, unary
from tests.lab.processes import wait_until

GPU = "nvidia.com/gpu"
LIVE, STALE, FAILED, _, UNSUPPORTED = SourceState
FAST = Timing(interval=0.05, spacing=0.01, deadline=0.2, settling=0.3, patience=0.1)


def held(device: str) -> Holding:
    return Holding(GPU, device, "ns", "p", "main")


class Kubelet:
    """Serves pod resources; what it answers can be set, and it can be restarted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pods: dict[str, list[str]] = {}
        self.healthy = ["GPU-1", "GPU-2"]
        self.error = ""
        self.asked = 0
        self.start()

    def start(self) -> None:
        handlers = [unary(LIST_POD_RESOURCES, self._list), unary(GET_ALLOCATABLE, self._allocatable)]
        self.server = UnixServer(self.path, handlers)
        self.server.start()

    def _list(self, _request, _connection) -> ListPodResourcesResponse:
        self.asked += 1
        if self.error:
            raise RefusedError(self.error, "told to")
        return ListPodResourcesResponse(
            pod_resources=[
                PodResources(
                    namespace="ns",
                    name=pod,
                    containers=[
                        ContainerResources(
                            name="main", devices=[ContainerDevices(resource_name=GPU, device_ids=ids)]
                        )
                    ],
                )
                for pod, ids in self.pods.items()
            ]
        )

    def _allocatable(self, _request, _connection) -> AllocatableResourcesResponse:
        return AllocatableResourcesResponse(
            devices=[ContainerDevices(resource_name=GPU, device_ids=self.healthy)]
        )


class Watched:
    """A source, and all that it has said."""

    def __init__(self, path: Path, timing: Timing = FAST) -> None:
        self.holdings: list[Holdings] = []
        self.states: list[tuple[SourceState, str]] = []
        self.source = PodResourcesSource(
            on_holdings=self.holdings.append,
            on_state=lambda state, message: self.states.append((state, message)),
            socket=path,
            timing=timing,
        )
        self.source.start()

    def await_state(self, state: SourceState, text: str = "") -> None:
        wait_until(
            lambda: self.states and self.states[-1][0] is state and text in self.states[-1][1],
            5,
            f"{state} {text!r} in {self.states}",
            every=0.005,
        )

    def await_pods(self, *pods: str) -> Holdings:
        def shown() -> Holdings | None:
            last = self.holdings[-1] if self.holdings else None
            return last if last and sorted({one.pod for one in last.held}) == sorted(pods) else None

        return wait_until(shown, 5, f"{pods} in {self.holdings[-1:]}", every=0.005)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kubelet.sock"


@pytest.fixture
def kubelet(path: Path) -> Iterator[Kubelet]:
    kubelet = Kubelet(path)
    yield kubelet
    kubelet.server.stop()


@pytest.fixture
def watched(kubelet: Kubelet) -> Iterator[Watched]:
    kubelet.pods = {"p": ["GPU-1"]}
    watched = Watched(kubelet.path)
    yield watched
    assert watched.source.close(5)


def test_the_source_shows_who_holds_what_and_what_is_healthy(kubelet: Kubelet, watched: Watched) -> None:
    assert watched.await_pods("p") == Holdings((held("GPU-1"),), {GPU: frozenset({"GPU-1", "GPU-2"})})
    watched.await_state(LIVE)
    assert watched.states[-1] == (LIVE, "")
    kubelet.pods["q"] = ["GPU-2"]
    watched.await_pods("p", "q")
    kubelet.healthy = ["GPU-1"]
    wait_until(lambda: watched.holdings[-1].healthy == {GPU: {"GPU-1"}}, 5, "one healthy device")
    count = len(watched.holdings)
    asked = kubelet.asked
    wait_until(lambda: kubelet.asked > asked + 3, 5, "more answers")
    assert len(watched.holdings) == count, "said again without a change"


def test_a_pod_that_is_gone_is_shown_until_a_second_answer_says_so(
    kubelet: Kubelet, watched: Watched
) -> None:
    watched.await_pods("p")
    gone = time.monotonic()
    kubelet.pods = {}
    watched.await_pods()
    assert time.monotonic() - gone >= CONFIRM_SECONDS


def test_somebody_who_wants_to_know_does_not_wait(kubelet: Kubelet) -> None:
    watched = Watched(kubelet.path, Timing(interval=60, settling=0))
    watched.await_state(LIVE)
    kubelet.pods = {"p": ["GPU-1"]}
    begun = time.monotonic()
    watched.source.refresh()
    watched.await_pods("p")
    assert time.monotonic() - begun < 1
    asked = kubelet.asked
    begun = time.monotonic()
    while time.monotonic() - begun < 0.3:
        watched.source.refresh()
        threading.Event().wait(0.001)
    assert kubelet.asked - asked <= 8, "asked more often than every 50 ms"
    assert watched.source.close(5)


def test_answers_of_a_kubelet_that_has_just_started_are_ignored(kubelet: Kubelet, watched: Watched) -> None:
    watched.await_pods("p")
    kubelet.server.stop()
    kubelet.pods = {}
    kubelet.start()
    watched.await_state(STALE, "just started")
    kubelet.pods = {"p": ["GPU-1"]}
    watched.await_state(LIVE)
    assert [one.held for one in watched.holdings] == [(held("GPU-1"),)] * len(watched.holdings)


def test_a_kubelet_that_goes_is_failed_and_its_pods_stay(kubelet: Kubelet, watched: Watched) -> None:
    watched.await_pods("p")
    kubelet.server.stop()
    watched.await_state(FAILED, str(kubelet.path))
    assert watched.holdings[-1].held
    kubelet.start()
    watched.await_state(LIVE)


def test_a_node_without_the_socket_is_unsupported_until_there_is_one(path: Path) -> None:
    watched = Watched(path)
    watched.await_state(UNSUPPORTED, f"no socket {path}")
    kubelet = Kubelet(path)
    watched.await_state(LIVE)
    assert watched.source.close(5)
    kubelet.server.stop()


def test_a_socket_without_the_service_is_unsupported(path: Path) -> None:
    server = UnixServer(path, [])
    server.start()
    watched = Watched(path)
    watched.await_state(UNSUPPORTED, "UNIMPLEMENTED")
    assert watched.source.close(5)
    server.stop()


def test_a_kubelet_that_does_not_answer_is_stale_and_ends_with_the_source(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen(8)
        watched = Watched(path)
        watched.await_state(STALE, "no answer in 0.2 s")
        assert watched.source.close(5)


def test_the_rate_limit_is_waited_out_and_said_when_it_lasts(kubelet: Kubelet, watched: Watched) -> None:
    watched.await_pods("p")
    kubelet.error = "RESOURCE_EXHAUSTED"
    watched.await_state(STALE, "RESOURCE_EXHAUSTED")
    kubelet.error = ""
    watched.await_state(LIVE)


def test_an_error_of_the_kubelet_is_said(kubelet: Kubelet, watched: Watched) -> None:
    watched.await_pods("p")
    kubelet.error = "INTERNAL"
    watched.await_state(FAILED, "INTERNAL: told to")


def test_a_callback_that_fails_does_not_end_the_source(kubelet: Kubelet, caplog) -> None:
    states: list[SourceState] = []

    def broken(_holdings: Holdings) -> None:
        raise ValueError("broken")

    source = PodResourcesSource(
        on_holdings=broken, on_state=lambda state, _: states.append(state), socket=kubelet.path, timing=FAST
    )
    source.start()
    wait_until(lambda: kubelet.asked > 3, 5, "answers after the failure")
    assert source.close(5)
    assert states[-1] is LIVE
    assert "a callback of the pod resources source failed" in caplog.text


def test_a_source_that_never_started_can_be_closed(path: Path) -> None:
    source = PodResourcesSource(on_holdings=print, on_state=print, socket=path)
    assert source.close()
