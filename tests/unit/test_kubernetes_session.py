"""The session: what it sends, what it makes of answers, and that it never sends anything twice."""

import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtime import watch_stream
from runtime.api_errors import (
    ApiError,
    Cause,
    Conflict,
    ConnectionFailed,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    ResponseTooLarge,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from runtime.kubernetes import Session
from runtime.kubernetes_auth import Access
from tests.api_server import Recorded, Reply, ScriptedApi, Stream, status_object
from tests.certificates import Authority
from tests.lab.processes import wait_until

NODES = "/api/v1/nodes"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def test_a_request_carries_who_and_what(api: ScriptedApi) -> None:
    api.answer("GET", {"kind": "Node"}, headers={"X-Kind": "node"})
    response = api.session().get(f"{NODES}/n1", query={"pretty": False, "limit": 5, "labelSelector": "a=b,c"})
    assert (response.status, response.headers["x-kind"]) == (200, "node")
    assert msgspec.json.decode(response.body) == {"kind": "Node"}
    request = api.requests[0]
    assert (request.method, request.path) == ("GET", f"{NODES}/n1")
    assert request.query == {"pretty": "false", "limit": "5", "labelSelector": "a=b,c"}
    assert request.headers["authorization"] == "Bearer test-token"
    assert request.headers["user-agent"] == "sickbay-test/1"
    assert "content-type" not in request.headers


def test_the_user_agent_changes_with_the_next_request(api: ScriptedApi) -> None:
    api.answer("GET", {})
    session = api.session()
    session.get(NODES)
    session.user_agent = "sickbay-controller/0.1 epoch/7"
    session.get(NODES)
    assert [request.headers["user-agent"] for request in api.requests] == [
        "sickbay-test/1",
        "sickbay-controller/0.1 epoch/7",
    ]


@pytest.mark.parametrize(
    ("verb", "method", "content_type"),
    [
        ("post", "POST", "application/json"),
        ("put", "PUT", "application/json"),
        ("merge_patch", "PATCH", "application/merge-patch+json"),
        ("strategic_merge_patch", "PATCH", "application/strategic-merge-patch+json"),
        ("json_patch", "PATCH", "application/json-patch+json"),
    ],
)
def test_each_mutation_has_its_method_and_content_type(
    api: ScriptedApi, verb: str, method: str, content_type: str
) -> None:
    api.answer(method, {})
    getattr(api.session(), verb)(f"{NODES}/n1", b"{}", query={"fieldManager": "sickbay"})
    request = api.requests[0]
    assert (request.method, request.headers["content-type"], request.body) == (method, content_type, b"{}")
    assert request.query == {"fieldManager": "sickbay"}


def test_a_delete_carries_preconditions_and_grace(api: ScriptedApi) -> None:
    api.answer("DELETE", {})
    session = api.session()
    session.delete("/api/v1/namespaces/s/pods/p", uid="u1", resource_version="5", grace_seconds=0)
    session.delete("/api/v1/namespaces/s/pods/p", propagation="Background")
    first, second = (msgspec.json.decode(request.body) for request in api.requests)
    assert first == {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "gracePeriodSeconds": 0,
        "preconditions": {"uid": "u1", "resourceVersion": "5"},
    }
    assert second == {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}


@pytest.mark.parametrize(
    ("status", "reason", "kind", "maybe_applied"),
    [
        (400, "BadRequest", Invalid, False),
        (401, "Unauthorized", Unauthorized, False),
        (403, "Forbidden", Forbidden, False),
        (404, "NotFound", NotFound, False),
        (409, "Conflict", Conflict, False),
        (410, "Expired", Gone, False),
        (415, "UnsupportedMediaType", ApiError, False),
        (422, "Invalid", Invalid, False),
        (429, "TooManyRequests", TooManyRequests, False),
        (500, "InternalError", Unavailable, True),
        (503, "ServiceUnavailable", Unavailable, True),
        (504, "Timeout", Unavailable, True),
    ],
)
def test_each_refusal_has_its_class(
    api: ScriptedApi, status: int, reason: str, kind: type[ApiError], maybe_applied: bool
) -> None:
    api.refuse("PATCH", status, reason, "because")
    with pytest.raises(ApiError) as refused:
        api.session().merge_patch(f"{NODES}/n1", b"{}")
    error = refused.value
    assert type(error) is kind
    assert (error.status, error.reason, error.message) == (status, reason, "because")
    assert error.maybe_applied is maybe_applied
    assert str(error) == f"PATCH {NODES}/n1 {status} {reason}: because"


def test_an_existing_name_is_told_from_a_failed_precondition(api: ScriptedApi) -> None:
    api.refuse("POST", 409, "AlreadyExists")
    api.refuse("PUT", 409, "Conflict")
    for verb, exists in (("post", True), ("put", False)):
        with pytest.raises(Conflict) as refused:
            getattr(api.session(), verb)(NODES, b"{}")
        assert refused.value.already_exists is exists


def test_a_disruption_budget_is_told_from_an_overloaded_server(api: ScriptedApi) -> None:
    cause = {"reason": "DisruptionBudget", "message": "needs 1 healthy pods"}
    api.refuse("POST", 429, "TooManyRequests", causes=[cause], retryAfterSeconds=10)
    api.answer("POST", status_object(429, "TooManyRequests"), status=429, headers={"Retry-After": "3"})
    session = api.session()
    with pytest.raises(TooManyRequests) as budget:
        session.post("/api/v1/namespaces/s/pods/p/eviction", b"{}")
    assert budget.value.is_disruption_budget
    assert budget.value.causes == (Cause("DisruptionBudget", "needs 1 healthy pods"),)
    assert budget.value.retry_after == 10
    with pytest.raises(TooManyRequests) as load:
        session.post("/api/v1/namespaces/s/pods/p/eviction", b"{}")
    assert not load.value.is_disruption_budget
    assert load.value.retry_after == 3


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "an empty answer"),
        (b"upstream\n connect \x00 error\xff", "upstream connect ? error�"),
        (b'{"message": 5}', '{"message": 5}'),
        (b"[]", "[]"),
        (b"x" * 5000, "x" * 200),
    ],
)
def test_a_refusal_in_any_shape_is_an_error_with_an_excerpt(
    api: ScriptedApi, body: bytes, message: str
) -> None:
    api.answer("GET", body, status=502)
    with pytest.raises(Unavailable) as refused:
        api.session().get(NODES)
    assert refused.value.message == message


@pytest.mark.parametrize("header", ["soon", "-1", "99999999999", "Wed, 21 Oct 2015 07:28:00 GMT", ""])
def test_a_retry_after_that_is_no_count_of_seconds_is_none(api: ScriptedApi, header: str) -> None:
    api.answer("GET", b"{}", status=429, headers={"Retry-After": header})
    with pytest.raises(TooManyRequests) as refused:
        api.session().get(NODES)
    assert refused.value.retry_after is None


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_nothing_is_sent_twice_when_the_answer_is_lost(api: ScriptedApi, method: str) -> None:
    api.answer(method, None)
    with pytest.raises(ConnectionFailed) as lost:
        api.session().request(method, NODES, body=None if method == "GET" else b"{}")
    assert lost.value.sent and lost.value.maybe_applied
    assert len(api.requests) == 1


def test_a_redirect_is_not_followed(api: ScriptedApi) -> None:
    api.answer("PUT", b"", status=307, headers={"Location": "/elsewhere"})
    with pytest.raises(ApiError) as refused:
        api.session().put(NODES, b"{}")
    assert refused.value.status == 307
    assert len(api.requests) == 1


def test_a_server_that_is_not_there_was_sent_nothing() -> None:
    access = Access("127.0.0.1", free_port(), "", None)
    with pytest.raises(ConnectionFailed) as lost:
        ScriptedApi().session(access).put(NODES, b"{}")
    assert not lost.value.sent and not lost.value.maybe_applied
    assert "refused" in lost.value.message
    assert "object at 0x" not in str(lost.value) and "HTTPConnection" not in str(lost.value)


def test_a_server_that_does_not_answer_in_time_may_have_been_sent_something(api: ScriptedApi) -> None:
    release = threading.Event()

    def wait(request: Recorded) -> Reply:
        release.wait(10)
        return Reply(None)

    api.route = wait
    began = time.monotonic()
    with pytest.raises(ConnectionFailed) as lost:
        api.session().put(NODES, b"{}", timeout=(1.0, 0.1))
    release.set()
    assert time.monotonic() - began < 2
    assert lost.value.maybe_applied
    assert "timed out" in lost.value.message.lower()


def test_connections_are_kept_and_clones_have_their_own(api: ScriptedApi) -> None:
    api.answer("GET", {})
    session = api.session()
    for _ in range(5):
        session.get(NODES)
    assert api.connections == 1
    session.clone().get(NODES)
    assert api.connections == 2


def test_many_threads_share_a_session(api: ScriptedApi) -> None:
    api.route = lambda request: Reply(msgspec.json.encode(request.query))
    session, wrong = api.session(), []

    def work(number: int) -> None:
        for turn in range(20):
            body = session.get(NODES, query={"n": number, "t": turn}).body
            if msgspec.json.decode(body) != {"n": str(number), "t": str(turn)}:
                wrong.append(body)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert wrong == []
    assert len(api.requests) == 160


def test_the_child_of_a_fork_does_not_use_its_parents_connections(
    api: ScriptedApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.answer("GET", {})
    session = api.session()
    session.get(NODES)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    session.get(NODES)
    assert api.connections == 2


@pytest.mark.parametrize(
    "path",
    ["", "api", "/api/../secrets", "/api/v1/nodes/..", "/api/%2e%2e", "/api/a b", "/api/a?x=1", "/api/\n"],
)
def test_a_path_that_could_mean_something_else_is_refused(api: ScriptedApi, path: str) -> None:
    with pytest.raises(ValueError, match="not a path"):
        api.session().get(path)
    assert api.requests == []


def test_an_answer_larger_than_the_bound_is_an_error_and_costs_only_its_connection(api: ScriptedApi) -> None:
    api.answer("GET", b"x" * 1001)
    api.answer("GET", b"x" * 1000)
    session = Session(api.session()._credentials, user_agent="t", max_body=1000)
    with pytest.raises(ResponseTooLarge, match="more than 1000 bytes"):
        session.get(NODES)
    assert len(session.get(NODES).body) == 1000


def page(token: str, *names: str) -> dict[str, Any]:
    return {
        "metadata": {"resourceVersion": "9", "continue": token},
        "items": [{"name": name} for name in names],
    }


def test_a_list_is_read_page_by_page(api: ScriptedApi) -> None:
    api.answer("GET", page("more", "a", "b"))
    api.answer("GET", page("", "c"))
    pages = list(api.session().list_pages(NODES, query={"labelSelector": "x"}, limit=2))
    assert [page.resource_version for page in pages] == ["9", "9"]
    assert b'"c"' in pages[1].body
    assert [dict(request.query) for request in api.requests] == [
        {"labelSelector": "x", "limit": "2"},
        {"labelSelector": "x", "limit": "2", "continue": "more"},
    ]


def test_a_list_whose_token_expires_on_the_way_is_gone(api: ScriptedApi) -> None:
    api.answer("GET", page("more", "a"))
    api.refuse("GET", 410, "Expired")
    pages = api.session().list_pages(NODES)
    next(pages)
    with pytest.raises(Gone):
        next(pages)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"\xff", b"{}"])
def test_a_page_that_is_no_list_is_an_api_error(api: ScriptedApi, body: bytes) -> None:
    api.answer("GET", body)
    with pytest.raises(Unavailable, match="not a list"):
        next(api.session().list_pages(NODES))


def test_a_401_reads_the_credentials_again_and_is_not_sent_again(api: ScriptedApi) -> None:
    api.tokens = ["old", "new"]
    api.refuse("PUT", 401, "Unauthorized")
    api.answer("PUT", {})
    session = api.session()
    with pytest.raises(Unauthorized):
        session.put(NODES, b"{}")
    assert api.refreshed == 1
    session.put(NODES, b"{}")
    assert [request.headers["authorization"] for request in api.requests] == ["Bearer old", "Bearer new"]


# Watches


def watch(api: ScriptedApi, **given: Any) -> Any:
    settings: dict[str, Any] = {
        "resource_version": "5",
        "timeout_seconds": 300,
        "inactivity_seconds": 5,
    } | given
    return api.session().watch(NODES, **settings)


def test_a_watch_gives_lines_however_they_are_cut(api: ScriptedApi) -> None:
    stream = Stream()
    api.answer("GET", stream)
    for part in (b'{"a', b'":1}\n{"b":2}\n\n  \n{"c"', b":3}", b"\n", b'{"unfinished'):
        stream.raw(part)
    stream.end()
    assert list(watch(api)) == [b'{"a":1}', b'{"b":2}', b'{"c":3}']
    assert api.requests[0].query == {
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": "5",
        "timeoutSeconds": "300",
    }


def test_a_refused_watch_is_a_typed_error(api: ScriptedApi) -> None:
    api.refuse("GET", 410, "Expired", "too old resource version")
    with pytest.raises(Gone, match="too old resource version"):
        list(watch(api))


def test_a_watch_that_breaks_is_a_failed_connection(api: ScriptedApi) -> None:
    stream = Stream()
    api.answer("GET", stream)
    stream.line({"a": 1})
    stream.drop()
    lines = iter(watch(api))
    assert next(lines) == b'{"a": 1}'
    with pytest.raises(ConnectionFailed):
        next(lines)


def test_a_silent_watch_ends_at_the_inactivity_limit(api: ScriptedApi) -> None:
    api.answer("GET", Stream())
    began = time.monotonic()
    with pytest.raises(ConnectionFailed, match=r"nothing came for 0\.1 s"):
        list(watch(api, inactivity_seconds=0.1))
    assert time.monotonic() - began < 2


def test_a_line_longer_than_the_bound_ends_the_watch(
    api: ScriptedApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_stream, "MAX_LINE", 1000)
    stream = Stream()
    api.answer("GET", stream)
    stream.raw(b"x" * 2000)
    with pytest.raises(ResponseTooLarge):
        list(watch(api))


def test_a_watch_can_be_closed_before_it_is_opened(api: ScriptedApi) -> None:
    api.answer("GET", Stream())
    stream = watch(api)
    stream.close()
    assert list(stream) == []


@pytest.fixture
def tls_api(tmp_path: Path) -> Iterator[tuple[ScriptedApi, Authority]]:
    authority = Authority(tmp_path / "pki")
    pair = authority.issue("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    server = ScriptedApi(context)
    yield server, authority
    server.close()


@pytest.mark.parametrize("tls", [False, True])
def test_a_watch_is_closed_at_once_from_another_thread(
    api: ScriptedApi, tls_api: tuple[ScriptedApi, Authority], tls: bool
) -> None:
    server, authority = (tls_api[0], tls_api[1]) if tls else (api, None)
    context = ssl.create_default_context(cafile=authority.file) if authority else None
    body = Stream()
    server.answer("GET", body)
    session = server.session(Access("127.0.0.1", server.port, "", context))
    stream = session.watch(NODES, resource_version="1", timeout_seconds=300)
    lines: list[bytes] = []
    thread = threading.Thread(target=lambda: lines.extend(stream))
    thread.start()
    body.line({"a": 1})
    wait_until(lambda: lines or body.opened.is_set(), 5, "the watch")
    began = time.monotonic()
    stream.close()
    thread.join(5)
    assert not thread.is_alive()
    assert time.monotonic() - began < 1


def test_a_server_of_another_ca_is_not_spoken_to(
    tls_api: tuple[ScriptedApi, Authority], tmp_path: Path
) -> None:
    server, authority = tls_api
    server.answer("PUT", {})
    strange = Authority(tmp_path / "strange", "strange")
    wrong = Access("127.0.0.1", server.port, "", ssl.create_default_context(cafile=strange.file))
    with pytest.raises(ConnectionFailed, match="certificate") as lost:
        server.session(wrong).put(NODES, b"{}")
    assert not lost.value.maybe_applied
    assert server.refreshed == 1
    assert server.requests == []
    right = Access("127.0.0.1", server.port, "", ssl.create_default_context(cafile=authority.file))
    assert server.session(right).put(NODES, b"{}").status == 200


def test_the_server_name_of_a_kubeconfig_is_what_the_certificate_is_checked_for(
    tls_api: tuple[ScriptedApi, Authority],
) -> None:
    server, authority = tls_api
    server.answer("GET", {})
    context = ssl.create_default_context(cafile=authority.file)
    server.session(Access("127.0.0.1", server.port, "", context, "localhost")).get(NODES)
    with pytest.raises(ConnectionFailed, match="certificate"):
        server.session(Access("127.0.0.1", server.port, "", context, "elsewhere.example")).get(NODES)


def test_changed_access_means_new_connections(api: ScriptedApi) -> None:
    api.answer("GET", {})
    other = ScriptedApi()
    other.answer("GET", {})
    session = api.session()
    session.get(NODES)
    session._credentials._access = other.access()  # type: ignore[attr-defined]
    session.get(NODES)
    assert (len(api.requests), len(other.requests)) == (1, 1)
    other.close()
