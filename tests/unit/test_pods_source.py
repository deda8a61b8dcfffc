"""The source of this node's pods: the kubelet's Pods API, else its page, else the reason why there is nothing."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from exporter.pods import PodSeen, PodsListed
from exporter.sources.pods import PodsSource
from health.vocabulary import SourceState
from runtime.kubelet_messages import AllocateResponse
from runtime.kubelet_page import kubelet_session
from runtime.kubelet_pods import Pod, WatchPodsEvent
from runtime.kubelet_rpc import ALLOCATE
from runtime.kubernetes_auth import Access
from runtime.quantities import ListenAddress
from runtime.unix_server import UnixServer, unary
from tests.api_server import ScriptedApi
from tests.certificates import Authority
from tests.kubelet import SEEN, FakePodsApi, gpu_pod
from tests.lab.processes import wait_until

GPU = "nvidia.com/gpu"
LIVE, STALE, FAILED, _, UNSUPPORTED = SourceState
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def on_page(name: str, *, running: bool = False, **metadata: Any) -> dict[str, Any]:
    """The same pod in the kubelet's `/pods`."""
    state = {"running": {"startedAt": "2026-01-01T12:00:02Z"}} if running else {"waiting": {}}
    return {
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": f"uid-{name}",
            "creationTimestamp": "2026-01-01T12:00:00Z",
            "annotations": {SEEN: "2026-01-01T13:00:00.123456789+01:00"},
            **metadata,
        },
        "spec": {"containers": [{"name": "main", "resources": {"limits": {GPU: "1"}, "claims": []}}]},
        "status": {
            "phase": "Running" if running else "Pending",
            "startTime": "2026-01-01T12:00:00Z",
            "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T12:00:00Z"},
                {"type": "Ready", "status": str(running), "lastTransitionTime": "2026-01-01T12:00:00Z"},
            ],
            "containerStatuses": [
                {
                    "name": "main",
                    "state": state,
                    "allocatedResourcesStatus": [{"name": GPU, "resources": [{"resourceID": "GPU-1::2"}]}],
                }
            ],
        },
    }


class Watched:
    """A source, and all that it has said."""

    def __init__(self, socket: Path, **options: Any) -> None:
        self.pods: list[PodSeen | PodsListed] = []
        self.states: list[tuple[SourceState, str]] = []
        self.source = PodsSource(
            on_pod=self.pods.append,
            on_state=lambda state, message: self.states.append((state, message)),
            socket=socket,
            pause=(0.01, 0.05),
            poll=0.02,
            **options,
        )
        self.source.start()

    def await_state(self, state: SourceState, text: str = "") -> str:
        def said() -> bool:
            return bool(self.states) and self.states[-1][0] is state and text in self.states[-1][1]

        wait_until(said, 5, f"{state} {text!r} in {self.states}", every=0.005)
        return self.states[-1][1]

    def await_looks(self, count: int) -> list[PodSeen | PodsListed]:
        wait_until(lambda: len(self.pods) >= count, 5, f"{count} looks in {self.pods}", every=0.005)
        return self.pods


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "pods.sock"


@pytest.fixture
def kubelet(socket: Path) -> Iterator[FakePodsApi]:
    kubelet = FakePodsApi(socket)
    yield kubelet
    kubelet.stop()


@pytest.fixture
def watch(socket: Path) -> Iterator[Any]:
    begun: list[Watched] = []

    def begin(**options: Any) -> Watched:
        begun.append(Watched(socket, **options))
        return begun[-1]

    yield begin
    for one in begun:
        assert one.source.close(5)


def test_pods_that_are_there_are_listed_and_later_ones_are_live(kubelet: FakePodsApi, watch: Any) -> None:
    kubelet.put(gpu_pod("old", running=True))
    watched = watch()
    watched.await_state(LIVE)
    kubelet.put(gpu_pod("none", quantity="0"))
    kubelet.put(gpu_pod("other", resource="example.com/nic"))
    kubelet.put(gpu_pod("new"))
    kubelet.put(gpu_pod("new", running=True))
    kubelet.remove(gpu_pod("new"))
    old, everything, new, running, gone = watched.await_looks(5)
    assert (old.name, old.live, old.ready) == ("old", False, NOON)
    assert (everything.uids, everything.gap) == ({"uid-old"}, True)
    assert (new.name, new.live, new.resource, new.devices) == ("new", True, GPU, ("GPU-1",))
    assert (new.created, new.scheduled, new.admitted) == (NOON, NOON, NOON)
    assert new.arrived == NOON + timedelta(microseconds=123456)
    assert (new.running, new.ready, new.phase) == (None, None, "Pending")
    assert running.running == NOON + timedelta(seconds=2) and running.ready == NOON
    assert (gone.uid, gone.deleted) == ("uid-new", True)


def test_a_kubelet_that_restarts_is_watched_again_and_its_pods_are_listed(
    kubelet: FakePodsApi, watch: Any
) -> None:
    watched = watch()
    watched.await_state(LIVE)
    kubelet.put(gpu_pod("a"))
    watched.await_looks(2)
    kubelet.stop()
    watched.await_state(FAILED, "no socket")
    kubelet.start()
    watched.await_state(LIVE)
    _, _, again, everything = watched.await_looks(4)
    assert (again.name, again.listed, everything.gap) == ("a", True, True)
    assert kubelet.watches == 2


def test_events_that_nobody_knows_are_passed_over(kubelet: FakePodsApi, watch: Any) -> None:
    watched = watch()
    watched.await_state(LIVE)
    kubelet.say(WatchPodsEvent(type=99, pod=Pod().SerializeToString()))
    kubelet.say(WatchPodsEvent(type=2))
    kubelet.put(gpu_pod("a"))
    assert watched.await_looks(2)[1].name == "a"


def test_bytes_that_are_no_pod_end_the_watch_which_begins_again(kubelet: FakePodsApi, watch: Any) -> None:
    watched = watch()
    watched.await_state(LIVE)
    kubelet.say(WatchPodsEvent(type=2, pod=b"\xff\xff\xff"))
    wait_until(lambda: kubelet.watches == 2, 5, "another watch", every=0.005)
    watched.await_state(LIVE)
    assert any(state is STALE and "not a pod" in why for state, why in watched.states)


def test_a_machine_without_a_kubelet_has_no_pods_and_says_why(watch: Any, socket: Path) -> None:
    message = watch().await_state(UNSUPPORTED)
    assert message == f"no socket {socket}, and no kubeletAddress is set"


def unproven(
    folder: Path, authority: Path | None = None, *, ca: Path | None = None
) -> tuple[ScriptedApi, Any]:
    """A kubelet whose certificate another CA has signed, and what makes sessions with it."""
    pair = Authority(folder / "theirs", "theirs").issue("n1")
    return serve(
        pair.certificate, pair.key, authority=authority, ca=ca or Authority(folder / "ours", "ours").file
    )


def serve(
    certificate: Path, key: Path, *, ca: Path, authority: Path | None = None, node: str = "localhost"
) -> Any:
    """The kubelet's page, and what the source calls for a session with it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    api = ScriptedApi(context)
    session = api.session(Access("127.0.0.1", 1, "", ssl.create_default_context(cafile=str(ca))))
    address = ListenAddress(f"127.0.0.1:{api.port}")
    return api, lambda: kubelet_session(session, address, node=node, authority=authority)


def test_where_there_is_no_pods_api_the_page_is_polled_with_the_token(tmp_path: Path, watch: Any) -> None:
    authority = Authority(tmp_path / "ca")
    pair = authority.issue("kubelet")
    api, page = serve(pair.certificate, pair.key, ca=authority.file)
    bare = on_page("bare")
    bare["spec"]["containers"][0]["resources"] = {}
    api.answer("GET", {"items": [on_page("a"), bare]})
    api.answer("GET", {"items": [on_page("a", running=True), on_page("b")]})
    watched = watch(page=page)
    watched.await_state(LIVE, "polls")
    a, first, later, b, second = watched.await_looks(5)[:5]
    assert (a.name, a.listed, a.live, first.gap, first.uids) == ("a", True, False, True, {"uid-a"})
    assert (later.listed, later.live, second.gap) == (False, False, False)
    assert (later.running, later.ready) == (NOON + timedelta(seconds=2), NOON)
    assert (b.arrived, b.devices) == (NOON + timedelta(microseconds=123456), ("GPU-1",))
    assert {request.headers["authorization"] for request in api.requests} == {"Bearer test-token"}
    assert {request.path for request in api.requests} == {"/pods"}
    api.close()


def test_a_service_at_the_socket_that_has_no_pods_leaves_the_page(
    tmp_path: Path, watch: Any, socket: Path
) -> None:
    server = UnixServer(socket, [unary(ALLOCATE, lambda _request, _connection: AllocateResponse())])
    server.start()
    try:
        watched = watch()
        watched.await_state(UNSUPPORTED, f"no Pods API at {socket}, and no kubeletAddress")
    finally:
        server.stop()


def test_a_socket_that_comes_later_takes_the_place_of_the_page(
    tmp_path: Path, watch: Any, socket: Path
) -> None:
    authority = Authority(tmp_path / "ca")
    pair = authority.issue("kubelet")
    api, page = serve(pair.certificate, pair.key, ca=authority.file)
    api.answer("GET", {"items": []})
    watched = watch(page=page)
    watched.await_state(LIVE, "polls")
    kubelet = FakePodsApi(socket)
    try:
        wait_until(lambda: watched.states[-1] == (LIVE, ""), 5, f"a watch in {watched.states}", every=0.005)
    finally:
        kubelet.stop()
        api.close()


def test_the_token_is_not_sent_to_a_kubelet_that_another_ca_has_signed(tmp_path: Path, watch: Any) -> None:
    api, page = unproven(tmp_path)
    watched = watch(page=page)
    message = watched.await_state(UNSUPPORTED, "CERTIFICATE_VERIFY_FAILED")
    assert "no socket" in message
    wait_until(lambda: api.connections >= 2, 5, "another attempt", every=0.005)
    assert api.requests == []
    api.close()


def test_the_certificate_that_lies_on_the_host_is_proof_and_another_is_not(
    tmp_path: Path, watch: Any
) -> None:
    authority = Authority(tmp_path / "theirs", "theirs")
    pair = authority.issue("n1")
    ours = Authority(tmp_path / "ours", "ours").file
    api, page = serve(pair.certificate, pair.key, ca=ours, authority=pair.certificate)
    api.answer("GET", {"items": []})
    watched = watch(page=page)
    watched.await_state(LIVE)
    other = authority.issue("other").certificate
    refused, page = serve(pair.certificate, pair.key, ca=ours, authority=other)
    watch(page=page).await_state(UNSUPPORTED, "CERTIFICATE_VERIFY_FAILED")
    assert refused.requests == [] and api.requests
    api.close()
    refused.close()


def test_a_certificate_of_another_node_is_no_proof(tmp_path: Path, watch: Any) -> None:
    authority = Authority(tmp_path / "ca")
    pair = authority.issue("kubelet")
    api, page = serve(pair.certificate, pair.key, ca=authority.file, authority=authority.file, node="n2")
    watch(page=page).await_state(UNSUPPORTED, "CERTIFICATE_VERIFY_FAILED")
    assert api.requests == []
    api.close()


@pytest.mark.parametrize("text", [None, "not PEM"], ids=["missing", "nonsense"])
def test_an_authority_that_cannot_be_used_is_named(tmp_path: Path, watch: Any, text: str | None) -> None:
    file = tmp_path / "kubelet.crt"
    if text:
        file.write_text(text)
    api, page = unproven(tmp_path, authority=file)
    watch(page=page).await_state(UNSUPPORTED, f"kubeletAuthority {file}: {'expected' if text else 'No such'}")
    assert api.connections == 0
    api.close()


@pytest.mark.parametrize(
    ("status", "state"), [(401, UNSUPPORTED), (403, UNSUPPORTED), (500, FAILED), (503, FAILED)]
)
def test_a_kubelet_that_refuses_is_unsupported_and_one_in_trouble_has_failed(
    tmp_path: Path, watch: Any, status: int, state: SourceState
) -> None:
    authority = Authority(tmp_path / "ca")
    pair = authority.issue("kubelet")
    api, page = serve(pair.certificate, pair.key, ca=authority.file)
    api.answer("GET", b"no", status=status)
    watch(page=page).await_state(state, "/pods")
    api.close()


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        json.dumps({"items": [{}]}).encode(),
        json.dumps({"items": [{"metadata": 1, "spec": 2, "status": 3}]}).encode(),
    ],
)
def test_a_page_that_is_no_list_of_pods_is_a_failure_and_no_crash(
    tmp_path: Path, watch: Any, body: bytes
) -> None:
    authority = Authority(tmp_path / "ca")
    pair = authority.issue("kubelet")
    api, page = serve(pair.certificate, pair.key, ca=authority.file)
    api.answer("GET", body)
    watched = watch(page=page)
    watched.await_state(FAILED, "not a list of pods")
    assert watched.pods == []
    api.close()


@pytest.mark.parametrize("seen", ["", "yesterday", "2026-01-01T12:00:00"])
def test_a_pod_whose_arrival_cannot_be_read_has_none(tmp_path: Path, watch: Any, seen: str) -> None:
    authority = Authority(tmp_path / "ca")
    pair = authority.issue("kubelet")
    api, page = serve(pair.certificate, pair.key, ca=authority.file)
    api.answer("GET", {"items": [on_page("a", annotations={SEEN: seen})]})
    assert watch(page=page).await_looks(1)[0].arrived is None
    api.close()
