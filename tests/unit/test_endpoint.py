"""The endpoint among scrapers, probes, and clients that are silent, slow, many or malicious."""

import gzip
import http.client
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_text

from runtime import endpoint as endpoint_module
from runtime.clock import ManualClock
from runtime.endpoint import Endpoint, ListenError, TlsFiles
from runtime.exposition import Exposition, Registry
from tests.certificates import Authority
from tests.lab.processes import wait_until

parse_openmetrics: Any = openmetrics_parser.text_string_to_metric_families
OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"


class Parts:
    """What an endpoint serves, for a test to change."""

    def __init__(self) -> None:
        self.body = b"a 1\n"
        self.health = (True, "")
        self.accepted: list[str] = []
        self.trouble: Exception | None = None

    def metrics(self, accept: str) -> tuple[str, bytes]:
        self.accepted.append(accept)
        if self.trouble is not None:
            raise self.trouble
        return "text/plain; version=0.0.4", self.body

    def check(self) -> tuple[bool, str]:
        if self.trouble is not None:
            raise self.trouble
        return self.health


Start = Callable[..., Endpoint]


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.fixture
def start(parts: Parts) -> Iterator[Start]:
    started: list[Endpoint] = []

    def build(**given: Any) -> Endpoint:
        arguments: dict[str, Any] = {"metrics": parts.metrics, "healthz": parts.check, "readyz": parts.check}
        endpoint = Endpoint("127.0.0.1", 0, **(arguments | given))
        endpoint.start()
        started.append(endpoint)
        return endpoint

    yield build
    for endpoint in started:
        endpoint.close()


@pytest.fixture
def sockets() -> Iterator[Callable[[Endpoint], socket.socket]]:
    with ExitStack() as stack:
        yield lambda endpoint: stack.enter_context(socket.create_connection(("127.0.0.1", endpoint.port), 5))


Connect = Callable[[Endpoint], socket.socket]


def ask(endpoint: Endpoint, path: str, method: str = "GET", **headers: str) -> tuple[int, Any, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=5)
    try:
        connection.request(
            method, path, headers={name.replace("_", "-"): text for name, text in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def test_metrics_are_served_as_they_are_rendered(start: Start, parts: Parts) -> None:
    status, headers, body = ask(start(), "/metrics?name[]=a", Accept=OPENMETRICS)
    assert (status, body, headers["Content-Type"]) == (200, b"a 1\n", "text/plain; version=0.0.4")
    assert headers["Vary"] == "Accept, Accept-Encoding"
    assert parts.accepted == [OPENMETRICS]


@pytest.mark.parametrize(
    ("accepted", "zipped"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("br", False),
        ("", False),
    ],
)
def test_metrics_are_zipped_when_that_is_accepted(
    start: Start, parts: Parts, accepted: str, zipped: bool
) -> None:
    parts.body = b"a 1\n" * 1000
    _, headers, body = ask(start(), "/metrics", Accept_Encoding=accepted)
    assert (headers["Content-Encoding"] == "gzip") is zipped
    assert (gzip.decompress(body) if zipped else body) == parts.body


def test_the_same_bytes_are_zipped_once_and_new_ones_again(
    start: Start, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    zipped: list[bytes] = []
    compress = gzip.compress

    def count(data: bytes, compresslevel: int = 9) -> bytes:
        zipped.append(data)
        return compress(data, compresslevel)

    monkeypatch.setattr(gzip, "compress", count)
    endpoint = start()
    for _ in range(3):
        assert gzip.decompress(ask(endpoint, "/metrics", Accept_Encoding="gzip")[2]) == b"a 1\n"
    parts.body = b"a 2\n"
    assert gzip.decompress(ask(endpoint, "/metrics", Accept_Encoding="gzip")[2]) == b"a 2\n"
    assert zipped == [b"a 1\n", b"a 2\n"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_a_check_says_yes_or_why_not(start: Start, parts: Parts, path: str) -> None:
    endpoint = start()
    assert ask(endpoint, path)[::2] == (200, b"ok\n")
    parts.health = (False, "no sample for 30 s")
    assert ask(endpoint, path)[::2] == (503, b"no sample for 30 s\n")


@pytest.mark.parametrize("path", ["/", "/metricsx", "/metrics/", "/favicon.ico", "/../metrics", "*"])
def test_everything_else_is_not_found(start: Start, path: str) -> None:
    assert ask(start(), path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_only_get_and_head_are_allowed(start: Start, method: str) -> None:
    status, headers, _ = ask(start(), "/metrics", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_head_has_the_headers_of_get_and_no_body(start: Start, sockets: Connect) -> None:
    client = sockets(start())
    client.sendall(
        b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\nHEAD /healthz HTTP/1.1\r\nConnection: close\r\n\r\n"
    )
    text = read_all(client)
    assert text.count(b"HTTP/1.1 200 OK") == 2 and text.endswith(b"\r\n\r\n")
    assert b"Content-Length: 4" in text


def read_all(client: socket.socket) -> bytes:
    client.settimeout(5)
    parts = []
    while block := client.recv(65536):
        parts.append(block)
    return b"".join(parts)


def test_a_connection_serves_one_request_after_another(start: Start) -> None:
    endpoint = start()
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=5)
    for _ in range(3):
        connection.request("GET", "/metrics")
        assert connection.getresponse().read() == b"a 1\n"
    connection.close()
    assert endpoint.stats.requests == 3


@pytest.mark.parametrize(
    "head",
    [
        b"GET /metrics HTTP/1.0\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
        b"GET /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET http://host:9400/metrics HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"\r\nGET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n",
    ],
)
def test_a_connection_ends_where_it_must(start: Start, sockets: Connect, head: bytes) -> None:
    client = sockets(start())
    client.sendall(head)
    text = read_all(client)
    assert text.startswith(b"HTTP/1.1 200 OK") and text.count(b"HTTP/1.1") == 1
    assert b"Connection: close" in text


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET /metrics\r\n\r\n", 400),
        (b"get /metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics HTTP/2.0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n folded: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nbad name: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 20000 + b"\r\n\r\n", 431),
        (b"G" * 20000, 431),
    ],
)
def test_what_is_no_request_is_refused_and_cut_off(
    start: Start, sockets: Connect, head: bytes, status: int
) -> None:
    client = sockets(start())
    client.sendall(head)
    assert read_all(client).startswith(b"HTTP/1.1 %d " % status)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_no_bytes_do_more_than_be_refused(shared: Endpoint, noise: bytes) -> None:
    with socket.create_connection(("127.0.0.1", shared.port), 5) as client:
        client.sendall(noise + b"\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        text = read_all(client)
        assert text == b"" or text.startswith(b"HTTP/1.1 ")
    assert shared.stats.errors == 0


@pytest.fixture(scope="module")
def shared() -> Iterator[Endpoint]:
    parts = Parts()
    endpoint = Endpoint("127.0.0.1", 0, metrics=parts.metrics, healthz=parts.check, readyz=parts.check)
    endpoint.start()
    yield endpoint
    endpoint.close()


def test_a_failure_inside_is_an_answer_a_log_line_and_a_count(
    start: Start, parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = start()
    parts.trouble = RuntimeError("secret detail")
    with caplog.at_level(logging.ERROR):
        assert ask(endpoint, "/metrics")[0] == 500
        status, _, body = ask(endpoint, "/healthz")
    assert status == 503 and b"secret" not in body
    assert endpoint.stats.errors == 2
    assert "secret detail" in caplog.text
    parts.trouble = None
    assert ask(endpoint, "/metrics")[0] == 200


def test_a_head_that_trickles_in_is_cut_off_in_time(
    start: Start, sockets: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_module, "HEAD_SECONDS", 0.3)
    endpoint = start()
    client = sockets(endpoint)
    client.settimeout(0.05)
    began = time.monotonic()
    closed = False
    while not closed and time.monotonic() - began < 5:
        try:
            client.sendall(b"x")
            closed = client.recv(10) == b""
        except TimeoutError:
            continue
        except OSError:
            closed = True
    assert closed and time.monotonic() - began < 2
    wait_until(lambda: endpoint.stats.timeouts == 1, 2, "the time-out to be counted")


def test_silent_clients_do_not_delay_a_scrape(start: Start, sockets: Connect) -> None:
    endpoint = start(slots=4)
    for _ in range(20):
        sockets(endpoint)
    began = time.monotonic()
    assert ask(endpoint, "/metrics")[0] == 200
    assert time.monotonic() - began < 1.5
    assert endpoint.stats.evictions > 0


def test_idle_keep_alive_clients_give_way_before_busy_ones(start: Start, parts: Parts) -> None:
    entered, release = threading.Event(), threading.Event()

    def slow(accept: str) -> tuple[str, bytes]:
        entered.set()
        release.wait(5)
        return "text/plain", b"slow\n"

    endpoint = start(slots=2, metrics=slow)
    results: list[bytes] = []
    busy = threading.Thread(target=lambda: results.append(ask(endpoint, "/metrics")[2]))
    busy.start()
    assert entered.wait(5)
    for _ in range(5):
        idle = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=5)
        idle.request("GET", "/healthz")
        assert idle.getresponse().read() == b"ok\n"
    release.set()
    busy.join(5)
    assert results == [b"slow\n"]


def test_threads_are_bounded_and_given_back(
    start: Start, sockets: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_module, "HEAD_SECONDS", 0.2)
    before = threading.active_count()
    endpoint = start(slots=5)
    for _ in range(40):
        sockets(endpoint)
    assert threading.active_count() <= before + 1 + 5
    wait_until(lambda: threading.active_count() <= before + 1, 5, "the threads to end")


def test_close_takes_less_than_a_second_with_clients_in_every_state(
    start: Start, sockets: Connect, parts: Parts
) -> None:
    stuck = threading.Event()

    def hang(accept: str) -> tuple[str, bytes]:
        stuck.wait(10)
        return "text/plain", b""

    endpoint = start(metrics=hang)
    sockets(endpoint)
    sockets(endpoint).sendall(b"GET /me")
    sockets(endpoint).sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
    sockets(endpoint).sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    wait_until(lambda: endpoint.stats.requests == 2, 5, "the requests")
    began = time.monotonic()
    endpoint.close()
    assert time.monotonic() - began < 1.2
    stuck.set()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", endpoint.port), 1)


def test_an_endpoint_that_was_never_started_can_be_closed(parts: Parts) -> None:
    Endpoint("127.0.0.1", 0, metrics=parts.metrics, healthz=parts.check, readyz=parts.check).close()


def test_a_port_in_use_is_said_in_one_line(start: Start) -> None:
    port = start().port
    with pytest.raises(ListenError) as refused:
        build("127.0.0.1", port)
    assert str(refused.value) == f"cannot listen on 127.0.0.1:{port}: the address is in use"


def build(address: str, port: int, **given: Any) -> Endpoint:
    parts = Parts()
    return Endpoint(address, port, metrics=parts.metrics, healthz=parts.check, readyz=parts.check, **given)


@pytest.mark.parametrize("address", ["192.0.2.1", "no.such.host.invalid", "::2"])
def test_an_address_that_is_not_ours_is_said_in_one_line(address: str) -> None:
    with pytest.raises(ListenError, match="cannot listen on"):
        build(address, 0)


def test_an_empty_address_is_every_address() -> None:
    endpoint = build("", 0)
    endpoint.start()
    assert ask(endpoint, "/healthz")[0] == 200
    endpoint.close()


# TLS


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


def files(authority: Authority, name: str = "server") -> TlsFiles:
    pair = authority.issue(name)
    return TlsFiles(pair.certificate, pair.key)


def ask_tls(endpoint: Endpoint, authority: Authority) -> tuple[int, str]:
    context = ssl.create_default_context(cafile=authority.file)
    connection = http.client.HTTPSConnection("127.0.0.1", endpoint.port, timeout=5, context=context)
    try:
        connection.request("GET", "/healthz")
        certificate: Any = connection.sock.getpeercert()
        return connection.getresponse().status, certificate["subject"][0][0][1]
    finally:
        connection.close()


def test_tls_is_spoken_and_a_silent_client_delays_nobody(
    start: Start, sockets: Connect, authority: Authority
) -> None:
    endpoint = start(tls=files(authority))
    for _ in range(5):
        sockets(endpoint)
    began = time.monotonic()
    assert ask_tls(endpoint, authority) == (200, "server")
    assert time.monotonic() - began < 1


def test_a_handshake_that_fails_or_never_ends_is_counted_and_over(
    start: Start, sockets: Connect, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_module, "HEAD_SECONDS", 0.2)
    endpoint = start(tls=files(authority))
    silent, plain = sockets(endpoint), sockets(endpoint)
    plain.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    wait_until(lambda: endpoint.stats.handshake_failures >= 1, 5, "the refusal")
    wait_until(lambda: endpoint.stats.timeouts >= 1, 5, "the time-out")
    assert read_all(silent) == b""


def test_a_replaced_certificate_is_used_and_half_a_replacement_is_waited_out(
    start: Start, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    tls, new = files(authority), files(authority, "renewed")
    endpoint = start(tls=tls)
    assert ask_tls(endpoint, authority) == (200, "server")
    tls.certificate.write_bytes(new.certificate.read_bytes())
    assert ask_tls(endpoint, authority) == (200, "server")
    assert "cannot be used yet" in caplog.text
    tls.key.write_bytes(new.key.read_bytes())
    assert ask_tls(endpoint, authority) == (200, "renewed")


@pytest.mark.parametrize("content", [None, b"", b"junk"])
def test_a_certificate_that_cannot_be_used_is_named(authority: Authority, content: bytes | None) -> None:
    tls = files(authority)
    tls.certificate.unlink() if content is None else tls.certificate.write_bytes(content)
    with pytest.raises(ListenError) as refused:
        build("127.0.0.1", 0, tls=tls)
    assert str(tls.certificate) in str(refused.value)


# Exposition


class Collector:
    def __init__(self, name: str, value: float = 1.0) -> None:
        self.name, self.value = name, value
        self.collected = 0
        self.trouble: Exception | None = None

    def describe(self) -> list[GaugeMetricFamily]:
        return [GaugeMetricFamily(self.name, "A test.", labels=["uuid"])]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        self.collected += 1
        family = self.describe()[0]
        family.add_metric(["u"], self.value)
        yield family
        if self.trouble is not None:
            raise self.trouble


def test_every_format_is_rendered_whole() -> None:
    registry = Registry()
    registry.register(Collector("accelerator_power_watts"))
    counter = Counter("sickbay_things_total", "Things.", registry=None)
    counter.inc(2)
    histogram = Histogram("sickbay_wait_seconds", "Waits.", buckets=[0.1, 1], registry=None)
    histogram.observe(0.5)
    registry.register(counter)
    registry.register(histogram)
    content_type, body = registry.render("")
    assert content_type.startswith("text/plain; version=0.0.4")
    text = {family.name for family in parse_text(body.decode())}
    content_type, body = registry.render(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert body.count(b"# EOF") == 1
    openmetrics = {family.name for family in parse_openmetrics(body.decode())}
    assert text == openmetrics >= {"accelerator_power_watts", "sickbay_things", "sickbay_wait_seconds"}
    assert b"_created" not in body


def test_a_collector_that_raises_costs_only_its_own_metrics_and_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = Registry()
    good, bad = Collector("good"), Collector("bad")
    registry.register(bad, name="nvml")
    registry.register(good)
    bad.trouble = RuntimeError("gone")
    for count in (1, 2):
        _, body = registry.render("")
        assert b"\ngood{" in body and b"bad{" not in body
        assert f'sickbay_collector_errors_total{{collector="nvml"}} {count}.0'.encode() in body
    assert caplog.text.count("a collector failed") == 1
    bad.trouble = None
    assert b"\nbad{" in registry.render("")[1]


def test_a_sample_that_cannot_be_written_costs_only_its_collector() -> None:
    registry = Registry()
    registry.register(Collector("good"))
    registry.register(Collector("bad", value="not a number"))  # type: ignore[arg-type]
    _, body = registry.render(OPENMETRICS)
    assert b"\ngood{" in body and b"bad{" not in body
    assert [family.name for family in parse_openmetrics(body.decode())] == [
        "good",
        "sickbay_collector_errors",
    ]


def test_a_family_is_exported_once() -> None:
    registry = Registry()
    registry.register(Collector("a"), name="first")
    with pytest.raises(ValueError, match="second and first both export a"):
        registry.register(Collector("a"), name="second")
    with pytest.raises(ValueError, match="a collector named first already"):
        registry.register(Collector("b"), name="first")
    undeclared = Collector("b")
    undeclared.describe, undeclared.name = list, "a"  # type: ignore[method-assign]
    registry.register(undeclared, name="third")
    undeclared.describe = lambda: [GaugeMetricFamily("a", "A test.", labels=["uuid"])]  # type: ignore[method-assign]
    _, body = registry.render(OPENMETRICS)
    assert body.count(b"# TYPE a ") == 1
    assert b'sickbay_collector_errors_total{collector="third"} 1.0' in body


def test_registering_and_describing_measure_nothing() -> None:
    registry, collector = Registry(), Collector("a")
    registry.register(collector)
    assert [family.name for family in registry.describe()] == ["a", "sickbay_collector_errors"]
    assert collector.collected == 0


def test_a_rendering_is_kept_for_its_generation_and_never_for_long() -> None:
    registry, collector, clock, generation = Registry(), Collector("a"), ManualClock(), [1]
    registry.register(collector)
    exposition = Exposition(registry, generation=lambda: generation[0], clock=clock, max_age=2.0)
    first = exposition("")
    assert exposition("")[1] is first[1]
    assert exposition(OPENMETRICS)[0].startswith("application/openmetrics-text")
    assert collector.collected == 2
    generation[0] = 2
    collector.value = 5.0
    assert b'a{uuid="u"} 5.0' in exposition("")[1]
    collector.value = 6.0
    clock.advance(1.9)
    assert b'a{uuid="u"} 5.0' in exposition("")[1]
    clock.advance(0.2)
    assert b'a{uuid="u"} 6.0' in exposition("")[1]


def test_the_whole_of_it_is_scraped_over_http(start: Start) -> None:
    registry = Registry()
    gauge = Gauge("sickbay_up", "Up.", registry=None)
    gauge.set(1)
    registry.register(gauge)
    endpoint = start(metrics=Exposition(registry, generation=lambda: 0))
    _, headers, body = ask(endpoint, "/metrics", Accept=OPENMETRICS, Accept_Encoding="gzip")
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert "sickbay_up" in {family.name for family in parse_openmetrics(gzip.decompress(body).decode())}
