"""Spans on their way to an OTLP receiver, by both encodings, and through everything that can go wrong there."""

import os
import subprocess
import sys
from functools import partial
from time import monotonic, perf_counter

import pytest

from runtime.exposition import Registry
from runtime.span_queue import SpanCounts, SpanQueue
from runtime.tracing import (
    SHUTDOWN_SECONDS,
    SpanLink,
    SpanRecord,
    TraceRef,
    TracingOff,
    span_id_of,
    start_tracing,
    trace_id_of,
)
from tests.lab.processes import wait_until
from tests.otlp_receiver import Mode, OtlpReceiver

TRACE = trace_id_of("dispatch", "uid", 1)
ROOT = span_id_of("dispatch", "uid", 1)
HEX = f"{TRACE:032x}"
BOTH = pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
TROUBLE = pytest.mark.parametrize("mode", [mode for mode in Mode if mode is not Mode.OK])

OFF = """
import sys
from runtime.tracing import SpanRecord, start_tracing
tracer = start_tracing(service="sickbay-agent")
tracer.emit(SpanRecord(name="a", trace_id=1, span_id=1, parent_id=None, start_ns=0, end_ns=1))
tracer.shutdown()
heavy = [name for name in sys.modules if name.partition(".")[0] in ("opentelemetry", "google", "grpc", "requests")]
assert not tracer.enabled and not heavy, heavy
"""

ONE_EXPORTER = """
import sys
from runtime.tracing import start_tracing
tracer = start_tracing(service="sickbay-agent")
assert tracer.enabled
assert "opentelemetry.exporter.otlp.proto.http.trace_exporter" in sys.modules
assert not [name for name in sys.modules if name == "grpc" or name.startswith("opentelemetry.exporter.otlp.proto.grpc")]
tracer.shutdown()
"""

DYING = """
import sys, time
from runtime.tracing import SpanRecord, start_tracing
tracer = start_tracing(service="sickbay-agent")
for number in range(1, 3001):
    tracer.emit(SpanRecord(name="a", trace_id=1, span_id=number, parent_id=None, start_ns=0, end_ns=1))
time.sleep(0.3)
began = time.monotonic()
tracer.shutdown()
print(time.monotonic() - began, began)
"""


def record(number=0, **given):
    values = {
        "name": "pod.schedule",
        "trace_id": TRACE,
        "span_id": span_id_of("dispatch", "uid", 1, number),
        "parent_id": ROOT,
        "start_ns": 1_700_000_000_000_000_000 + number,
        "end_ns": 1_700_000_001_000_000_000 + number,
    }
    return SpanRecord(**values | given)


@pytest.fixture
def setting(monkeypatch):
    """A clean OTEL environment, and how to add to it; a span waits 20 ms for its batch."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")

    def add(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(f"OTEL_{name}", value)

    return add


@pytest.fixture
def receivers():
    """Makes receivers, and closes them."""
    made = []

    def make(protocol, mode=Mode.OK):
        made.append(OtlpReceiver(protocol, mode=mode))
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()


@pytest.fixture
def start(setting):
    """Starts tracing to a receiver, and ends it."""
    made = []

    def begin(receiver, **variables):
        setting(
            EXPORTER_OTLP_ENDPOINT=receiver.endpoint, EXPORTER_OTLP_PROTOCOL=receiver.protocol, **variables
        )
        made.append(start_tracing(service="sickbay-agent", resource={"k8s.node.name": "n1"}))
        assert made[-1].enabled
        return made[-1]

    yield begin
    for tracer in made:
        tracer.shutdown(0.2)


def exported(tracer, count):
    wait_until(
        lambda: tracer.counts().exported >= count, 15, f"{count} exported, {tracer.counts()}", every=0.005
    )


@BOTH
def test_a_span_arrives_as_it_was_told(receivers, start, protocol):
    receiver = receivers(protocol)
    tracer = start(receiver)
    told = record(
        attributes={
            "k8s.pod.name": "p",
            "hw.id": "GPU-1",
            "xid": 79,
            "late": True,
            "ratio": 0.5,
            "codes": ("a", "b"),
        },
        links=(SpanLink(TraceRef(0xFE, 0xED), {"sickbay.link": "evicted"}), SpanLink(TraceRef(1, 2))),
        status="error",
        status_message="deadline passed",
    )
    tracer.emit(told)
    exported(tracer, 1)
    ((key, span),) = receiver.spans().items()
    assert key == (HEX, f"{told.span_id:016x}")
    assert (span.name, span.parent_id) == ("pod.schedule", f"{ROOT:016x}")
    assert (span.start_ns, span.end_ns) == (told.start_ns, told.end_ns)
    assert span.attributes == told.attributes
    assert span.links == (
        (f"{0xFE:032x}", f"{0xED:016x}", {"sickbay.link": "evicted"}),
        (f"{1:032x}", f"{2:016x}", {}),
    )
    assert (span.status, span.status_message) == ("error", "deadline passed")


@BOTH
def test_a_root_has_no_parent_and_a_good_end_is_told(receivers, start, protocol):
    receiver = receivers(protocol)
    tracer = start(receiver)
    tracer.emit(record(parent_id=None, status="ok", status_message="not for the wire"))
    exported(tracer, 1)
    (span,) = receiver.arrivals()
    assert (span.parent_id, span.status, span.status_message) == ("", "ok", "")


@BOTH
def test_a_trace_told_again_by_a_successor_folds_to_one(receivers, start, protocol):
    receiver = receivers(protocol)
    for count in (3, 5):
        tracer = start(receiver)
        for number in range(count):
            tracer.emit(record(number))
        tracer.shutdown(5)
        assert tracer.counts() == SpanCounts(exported=count)
    assert len(receiver.arrivals()) == 8
    assert len(receiver.spans()) == 5


def test_every_span_says_of_which_program_it_is(receivers, start):
    receiver = receivers("http/protobuf")
    tracer = start(receiver)
    tracer.emit(record())
    exported(tracer, 1)
    resource = receiver.arrivals()[0].resource
    assert (resource["service.name"], resource["k8s.node.name"]) == ("sickbay-agent", "n1")
    assert resource["service.version"]


def test_the_operators_resource_wins(receivers, start):
    receiver = receivers("http/protobuf")
    tracer = start(
        receiver, SERVICE_NAME="ours", RESOURCE_ATTRIBUTES="k8s.cluster.name=c1,k8s.node.name=other%20name"
    )
    tracer.emit(record())
    exported(tracer, 1)
    resource = receiver.arrivals()[0].resource
    assert resource["service.name"] == "ours"
    assert (resource["k8s.cluster.name"], resource["k8s.node.name"]) == ("c1", "other name")


@BOTH
def test_headers_are_sent(receivers, start, protocol):
    receiver = receivers(protocol)
    tracer = start(receiver, EXPORTER_OTLP_HEADERS="x-tenant=blue,authorization=Bearer%20abc")
    tracer.emit(record())
    exported(tracer, 1)
    assert receiver.headers[0]["x-tenant"] == "blue"
    assert receiver.headers[0]["authorization"] == "Bearer abc"


@BOTH
def test_spans_may_be_compressed(receivers, start, protocol):
    receiver = receivers(protocol)
    tracer = start(receiver, EXPORTER_OTLP_COMPRESSION="gzip")
    tracer.emit(record())
    exported(tracer, 1)
    assert len(receiver.spans()) == 1


@BOTH
def test_a_value_that_the_wire_cannot_carry_costs_no_other_span(receivers, start, protocol):
    receiver = receivers(protocol)
    tracer = start(receiver)
    tracer.emit(record(1))
    tracer.emit(
        record(2, name="\udcff", attributes={"text": "\udcff", "int": 1 << 80, "\udcfe": ("\udcfd",), "": 1})
    )
    exported(tracer, 2)
    strange = receiver.spans()[(HEX, f"{record(2).span_id:016x}")]
    assert strange.name == "?"
    assert strange.attributes == {"text": "?", "int": str(1 << 80), "?": ("?",)}


def test_what_is_too_much_is_cut(receivers, start):
    receiver = receivers("http/protobuf")
    tracer = start(receiver)
    many = {f"a{number}": "x" * 10_000 for number in range(200)}
    tracer.emit(record(attributes=many, links=(SpanLink(TraceRef(1, 2)),) * 200))
    exported(tracer, 1)
    (span,) = receiver.arrivals()
    assert (len(span.attributes), len(span.links)) == (128, 128)
    assert {len(value) for value in span.attributes.values()} == {4096}


def test_only_the_share_that_is_set_is_exported(receivers, start):
    receiver = receivers("http/protobuf")
    tracer = start(receiver, TRACES_SAMPLER="traceidratio", TRACES_SAMPLER_ARG="0.5")
    traces = [trace_id_of("t", number) for number in range(100)]
    for trace in traces:
        tracer.emit(record(trace_id=trace))
    tracer.shutdown(5)
    kept = {span.trace_id for span in receiver.arrivals()}
    assert 25 < len(kept) < 75
    assert tracer.counts() == SpanCounts(exported=len(kept))


@BOTH
@TROUBLE
def test_whoever_emits_never_waits_and_every_span_is_counted(receivers, start, protocol, mode):
    receiver = receivers(protocol, mode)
    tracer = start(
        receiver, BSP_MAX_QUEUE_SIZE="300", BSP_MAX_EXPORT_BATCH_SIZE="100", EXPORTER_OTLP_TIMEOUT="0.3"
    )
    records = [record(number) for number in range(900)]
    slowest = 0.0
    began = perf_counter()
    for made in records:
        before = perf_counter()
        tracer.emit(made)
        slowest = max(slowest, perf_counter() - before)
    spent = perf_counter() - began
    counts = tracer.counts()
    assert counts.exported + counts.failed + counts.dropped + counts.queued == 900
    assert counts.queued <= 300
    # Generous: a loaded machine may take the processor away for a while, but an attempt takes 300 ms.
    assert spent < 0.25
    assert slowest < 0.2


@BOTH
@pytest.mark.parametrize("mode", [Mode.DOWN, Mode.DROP, Mode.BUSY])
def test_a_collector_that_comes_back_gets_what_waited(receivers, start, protocol, mode, monkeypatch, caplog):
    monkeypatch.setattr("runtime.tracing.SpanQueue", partial(SpanQueue, pauses=(0.05,) * 500))
    receiver = receivers(protocol, mode)
    tracer = start(
        receiver, BSP_MAX_QUEUE_SIZE="100", BSP_MAX_EXPORT_BATCH_SIZE="50", EXPORTER_OTLP_TIMEOUT="0.5"
    )
    for number in range(300):
        tracer.emit(record(number))
    wait_until(lambda: "spans cannot be exported" in caplog.text, 15, "the outage", every=0.005)
    receiver.mode = Mode.OK
    exported(tracer, 100)
    assert tracer.counts() == SpanCounts(exported=100, dropped=200)
    assert set(receiver.spans()) == {(HEX, f"{record(number).span_id:016x}") for number in range(100)}


@BOTH
@TROUBLE
def test_the_end_comes_in_time_whatever_the_collector_does(receivers, start, protocol, mode, caplog):
    receiver = receivers(protocol, mode)
    tracer = start(receiver)
    for number in range(1000):
        tracer.emit(record(number))
    began = monotonic()
    tracer.shutdown(0.2)
    assert monotonic() - began < 1
    counts = tracer.counts()
    assert (counts.queued, counts.failed + counts.dropped) == (0, 1000)
    tracer.emit(record())
    assert tracer.counts().dropped == counts.dropped + 1
    tracer.shutdown()
    assert not [line for line in caplog.records if line.name.startswith("opentelemetry")]


@BOTH
def test_the_end_flushes_what_waits_for_its_batch(receivers, start, protocol):
    receiver = receivers(protocol)
    tracer = start(receiver, BSP_SCHEDULE_DELAY="600000")
    for number in range(1100):
        tracer.emit(record(number))
    tracer.shutdown(10)
    assert tracer.counts() == SpanCounts(exported=1100)
    assert len(receiver.spans()) == 1100


@BOTH
def test_a_slow_collector_that_answers_in_time_gets_everything(receivers, start, protocol):
    receiver = receivers(protocol, Mode.SLOW)
    tracer = start(receiver)
    tracer.emit(record())
    wait_until(lambda: receiver.attempts, 15, "the attempt", every=0.005)
    assert tracer.counts() == SpanCounts(queued=1)
    receiver.release()
    exported(tracer, 1)
    assert len(receiver.arrivals()) == 1


@BOTH
def test_an_outage_is_told_in_one_line_with_its_reason(receivers, start, protocol, caplog):
    tracer = start(receivers(protocol, Mode.REFUSE))
    tracer.emit(record())
    wait_until(lambda: caplog.records, 15, "the line", every=0.005)
    tracer.shutdown(0.5)
    (line,) = [line for line in caplog.records if line.getMessage() == "spans cannot be exported"]
    assert "400" in line.reason or "INVALID_ARGUMENT" in line.reason
    assert ";" not in line.reason
    assert not [line for line in caplog.records if line.name.startswith("opentelemetry")]


def metrics(tracer):
    registry = Registry()
    registry.register(tracer, name="tracing")
    return registry.render("text/plain")[1].decode()


def test_metrics_tell_the_fate_of_every_span(receivers, start):
    receiver = receivers("http/protobuf", Mode.SLOW)
    tracer = start(receiver, BSP_MAX_QUEUE_SIZE="2")
    for number in range(5):
        tracer.emit(record(number))
    assert 'sickbay_spans_total{result="dropped"} 3.0' in metrics(tracer)
    assert "sickbay_span_queue_length 2.0" in metrics(tracer)
    receiver.release()
    exported(tracer, 2)
    assert 'sickbay_spans_total{result="exported"} 2.0' in metrics(tracer)
    assert 'sickbay_spans_total{result="failed"} 0.0' in metrics(tracer)


def test_the_families_are_described_without_samples(setting):
    tracer = start_tracing(service="sickbay-agent")
    assert [(family.name, family.samples) for family in tracer.describe()] == [
        ("sickbay_spans", []),
        ("sickbay_span_queue_length", []),
    ]
    assert 'sickbay_spans_total{result="dropped"} 0.0' in metrics(tracer)


def test_a_mistake_in_a_variable_is_told(setting, caplog):
    setting(EXPORTER_OTLP_ENDPOINT="collector:4318")
    assert isinstance(start_tracing(service="sickbay-agent"), TracingOff)
    (line,) = caplog.records
    assert "OTEL_EXPORTER_OTLP_ENDPOINT: expected a URL" in line.reason


def test_an_exporter_that_cannot_be_made_leaves_tracing_off(setting, caplog):
    setting(
        EXPORTER_OTLP_ENDPOINT="http://c:1", EXPORTER_OTLP_PROTOCOL="grpc", EXPORTER_OTLP_COMPRESSION="zip"
    )
    assert isinstance(start_tracing(service="sickbay-agent"), TracingOff)
    assert "tracing cannot start and stays off" in caplog.text


def run(program, **variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {f"OTEL_{name}": value for name, value in variables.items()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_off_imports_nothing_of_opentelemetry():
    done = run(OFF, SERVICE_NAME="given", EXPORTER_OTLP_ENDPOINT="")
    assert done.returncode == 0, done.stderr


def test_http_does_not_import_grpc():
    done = run(ONE_EXPORTER, EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr


@pytest.mark.deep
@BOTH
@TROUBLE
def test_a_program_ends_within_three_seconds_whatever_the_collector_does(receivers, protocol, mode):
    receiver = receivers(protocol, mode)
    done = run(DYING, EXPORTER_OTLP_ENDPOINT=receiver.endpoint, EXPORTER_OTLP_PROTOCOL=protocol)
    ended = monotonic()
    assert done.returncode == 0, done.stderr
    spent, began = map(float, done.stdout.split())
    assert spent <= SHUTDOWN_SECONDS + 0.2
    assert ended - began <= SHUTDOWN_SECONDS + 1
