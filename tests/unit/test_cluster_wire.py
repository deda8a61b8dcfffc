"""HTTP at the embedded API: requests in whatever pieces, and what is none."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.api_errors import ApiError
from runtime.clock import ManualClock
from runtime.kubernetes import Session
from simulation.cluster.requests import Request
from simulation.cluster.server import EmbeddedApi
from simulation.cluster.wire import RequestReader, WireError
from tests.unit.embedded_rig import report, session

NODES = "/api/v1/nodes"
REPORT_PATH = "/apis/sickbay.dev/v1alpha1/acceleratorreports"


@pytest.fixture(scope="module")
def api() -> Iterator[EmbeddedApi]:
    with EmbeddedApi(clock=ManualClock()) as running:
        yield running


@pytest.fixture
def client(api: EmbeddedApi) -> Session:
    return session(api)


def raw(api: EmbeddedApi, text: bytes) -> bytes:
    """What comes back for some bytes, until the server closes."""
    with socket.create_connection(("127.0.0.1", int(api.url.rpartition(":")[2])), timeout=5) as sock:
        sock.sendall(text)
        answer = b""
        while block := sock.recv(65536):
            answer += block
        return answer


def status_of(api: EmbeddedApi, path: str) -> int:
    return int(raw(api, f"GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n".encode()).split()[1])


def read_in_pieces(text: bytes, cuts: list[int]) -> list[Request]:
    reader, found = RequestReader(), []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        reader.feed(text[begin:end])
        while (request := reader.next()) is not None:
            found.append(request)
    return found


BODIES = st.lists(st.tuples(st.binary(max_size=40), st.booleans()), min_size=1, max_size=4)


@given(BODIES, st.data())
def test_requests_are_the_same_however_the_bytes_are_cut(
    bodies: list[tuple[bytes, bool]], data: st.DataObject
) -> None:
    text = b""
    for body, chunked in bodies:
        if chunked:
            pieces = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:]) if part)
            text += b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n"
        else:
            text += b"POST /x HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    assert [request.body for request in read_in_pieces(text, cuts)] == [body for body, _ in bodies]


@given(st.binary(max_size=200))
def test_whatever_comes_is_a_request_or_a_refusal(text: bytes) -> None:
    try:
        read_in_pieces(text + b"\r\n\r\n", [])
    except WireError as error:
        assert error.status in (400, 413, 431)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/foos", 404),
        ("/apis/none.dev/v1/x", 404),
        ("/api/v1/nodes?fieldSelector=bogus%3D1", 400),
        ("/api/v1/nodes?labelSelector=a%20b%20c", 400),
        ("/api/v1/nodes?limit=x", 400),
        ("/api/v1/nodes?continue=x", 400),
        ("/api/v1/nodes?resourceVersion=x", 400),
        ("/api/v1/nodes?resourceVersion=999999", 504),
        ("/api/v1/nodes?watch=1&resourceVersion=x", 500),
        ("/healthz", 200),
    ],
)
def test_a_request_that_asks_for_nonsense_is_refused_as_by_the_real_server(
    api: EmbeddedApi, path: str, status: int
) -> None:
    assert status_of(api, path) == status


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"POST /api/v1/nodes HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST /api/v1/nodes HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", 413),
        (b"GET /" + b"x" * 70_000, 431),
        (b"POST /api/v1/nodes HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ],
)
def test_what_is_no_http_is_refused_and_the_connection_closed(
    api: EmbeddedApi, text: bytes, status: int
) -> None:
    assert raw(api, text).split()[1] == str(status).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"metadata":5}',
        b'{"metadata":{"name":5}}',
        b'{"metadata":{"name":"x","labels":[]}}',
        b'{"metadata":{"name":"x","finalizers":5}}',
        b'{"metadata":{"name":"x"},"spec":[]}',
        b"\xff\xfe",
    ],
)
@pytest.mark.parametrize("path", [NODES, "/api/v1/namespaces/default/pods", REPORT_PATH])
def test_a_body_that_is_no_object_is_a_clear_refusal(client: Session, path: str, body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        client.post(path, body)
    assert caught.value.status in (400, 422)


def test_pipelined_and_chunked_requests_are_answered_in_their_order(api: EmbeddedApi) -> None:
    body = b'{"metadata":{"name":"n1"}}'
    chunked = b"POST /api/v1/nodes HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (
        len(body),
        body,
    )
    rest = b"GET /api/v1/nodes/n1 HTTP/1.1\r\n\r\nGET /api/v1/nodes/n2 HTTP/1.1\r\nConnection: close\r\n\r\n"
    answer = raw(api, chunked + rest)
    assert [part.split()[0] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"201", b"200", b"404"]


def test_unknown_fields_of_a_custom_resource_come_back_as_a_warning(api: EmbeddedApi) -> None:
    body = json.dumps(report("n1", spec={"bogus": 1})).encode()
    head = f"POST {REPORT_PATH} HTTP/1.1\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
    assert b'Warning: 299 - "unknown field \\"spec.bogus\\""' in raw(api, head + body)
