"""The OTEL_* variables."""

import pytest

from runtime.spans import trace_id_of
from runtime.trace_settings import TraceSettings, read_settings

ON = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


def settings(**variables):
    found, problems = read_settings(ON | variables)
    assert not problems
    assert found is not None
    return found


def problem(**variables):
    found, (only,) = read_settings(ON | variables)
    return found, str(only)


def test_without_an_endpoint_tracing_is_off():
    assert read_settings({}) == (None, ())
    assert read_settings({"OTEL_EXPORTER_OTLP_ENDPOINT": "  ", "OTEL_SERVICE_NAME": "x"}) == (None, ())


def test_an_endpoint_alone_is_enough():
    assert settings() == TraceSettings("http/protobuf", "http://collector:4318/v1/traces")


@pytest.mark.parametrize(
    "off",
    [
        {"OTEL_SDK_DISABLED": "True"},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_SAMPLER": "always_off"},
        {"OTEL_TRACES_SAMPLER": "parentbased_always_off"},
        {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"},
    ],
)
def test_tracing_is_off_when_a_variable_says_so(off):
    assert read_settings(ON | off) == (None, ())


@pytest.mark.parametrize(
    ("variables", "protocol", "endpoint"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c/base/"}, "http/protobuf", "https://c/base/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t:1/x"}, "http/protobuf", "http://t:1/x"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "grpc", "http://collector:4318"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "GRPC", "OTEL_EXPORTER_OTLP_ENDPOINT": "c:4317"}, "grpc", "c:4317"),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"},
            "http/protobuf",
            "http://collector:4318/v1/traces",
        ),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": " "}, "http/protobuf", "http://collector:4318/v1/traces"),
    ],
)
def test_the_variables_for_traces_win_and_http_gets_its_path(variables, protocol, endpoint):
    found = settings(**variables)
    assert (found.protocol, found.endpoint) == (protocol, endpoint)


def test_the_timeout_is_in_seconds_and_the_delay_in_milliseconds():
    found = settings(OTEL_EXPORTER_OTLP_TIMEOUT="2.5", OTEL_BSP_SCHEDULE_DELAY="250")
    assert (found.timeout, found.delay) == (2.5, 0.25)


def test_a_timeout_that_was_meant_as_milliseconds_is_cut_and_told():
    found, text = problem(OTEL_EXPORTER_OTLP_TIMEOUT="10000")
    assert found.timeout == 60
    assert text == (
        "environment variable OTEL_EXPORTER_OTLP_TIMEOUT: "
        'expected seconds, at most 60, which is what is taken, got "10000"'
    )


def test_a_batch_is_never_larger_than_the_queue():
    found = settings(OTEL_BSP_MAX_QUEUE_SIZE="100", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="200")
    assert (found.queue, found.batch) == (100, 100)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            "grcp",
            'http/protobuf or grpc (http/protobuf is taken), got "grcp"; did you mean "grpc"?',
        ),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "http/protobuf or grpc (http/protobuf is taken)"),
        ("OTEL_TRACES_EXPORTER", "console", "otlp or none (otlp is taken)"),
        ("OTEL_TRACES_SAMPLER", "alway_on", "always_off or traceidratio (parentbased_always_on is taken)"),
        ("OTEL_TRACES_SAMPLER", "xray", "traceidratio (parentbased_always_on is taken)"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", 'seconds from 0.001 (10 is taken), got "10s"'),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "-1", "(10 is taken)"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "nan", "(10 is taken)"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0", "a whole number from 1 to 65536 (2048 is taken)"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "inf", "(2048 is taken)"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1.5", "(512 is taken)"),
        ("OTEL_BSP_SCHEDULE_DELAY", "soon", "milliseconds from 0 to 3600000 (5000 is taken)"),
    ],
)
def test_a_value_that_cannot_be_taken_is_told_and_passed_over(name, value, expected):
    found, text = problem(**{name: value})
    assert found == settings()
    assert text.startswith(f"environment variable {name}: expected ")
    assert expected in text


@pytest.mark.parametrize(
    "endpoint", ["collector:4318", "grpc://c:1", "http://", "http://c:port", "http://[::1", "http://c:0"]
)
def test_an_endpoint_that_is_no_url_leaves_tracing_off_and_is_told(endpoint):
    found, text = problem(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert found is None
    assert "expected a URL such as http://collector:4318 (tracing stays off)" in text


def test_a_share_out_of_range_keeps_everything():
    found, text = problem(OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG="10")
    assert found.ratio == 1
    assert "a share from 0 to 1" in text


def test_a_share_of_the_traces_is_kept_and_always_the_same_ones():
    half = settings(OTEL_TRACES_SAMPLER="parentbased_traceidratio", OTEL_TRACES_SAMPLER_ARG="0.5")
    traces = [trace_id_of("trace", number) for number in range(2000)]
    kept = {trace for trace in traces if half.keeps(trace)}
    assert 850 < len(kept) < 1150
    quarter = settings(OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG="0.25")
    assert {trace for trace in traces if quarter.keeps(trace)} < kept
    assert all(settings().keeps(trace) for trace in (1, (1 << 128) - 1, *traces))


def test_the_sampler_agrees_with_opentelemetrys_own():
    from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

    third = settings(OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG="0.3")
    theirs = TraceIdRatioBased(0.3)
    for number in range(200):
        trace = trace_id_of("trace", number)
        assert third.keeps(trace) is theirs.should_sample(None, trace, "a").decision.is_sampled()
