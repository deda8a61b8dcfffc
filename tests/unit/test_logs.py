"""Logs: one valid line a record, whatever is in it, and no credentials."""

import enum
import io
import json
import logging
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime import logs
from runtime.clock import parse_rfc3339

TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzIn0.c2lnbmF0dXJl"


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], _ = before
    root.setLevel(before[1])
    logging.captureWarnings(False)


class Log:
    def __init__(self, format_: Any = "json", **given: Any) -> None:
        self.stream = io.StringIO()
        logs.configure(format=format_, stream=self.stream, **given)
        self.logger = logging.getLogger("test")

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()

    def record(self) -> dict[str, Any]:
        (line,) = self.lines
        record: dict[str, Any] = json.loads(line)
        return record


def fail(error: Exception) -> None:
    raise error


def test_a_record_is_a_json_line_with_its_fields() -> None:
    log = Log(fields={"node": "n1"})
    log.logger.info(
        "fenced %s", "now", extra={"session": "s-1", "count": 3, "ratio": 0.5, "dry": True, "why": None}
    )
    record = log.record()
    moment = parse_rfc3339(record.pop("ts"))
    assert abs((datetime.now(UTC) - moment).total_seconds()) < 5
    assert record == {
        "level": "info",
        "msg": "fenced now",
        "logger": "test",
        "node": "n1",
        "session": "s-1",
        "count": 3,
        "ratio": 0.5,
        "dry": True,
        "why": None,
    }


def test_a_line_of_text_is_for_people() -> None:
    log = Log("text")
    log.logger.warning("fenced", extra={"node": "n1", "why": "two words", "empty": "", "list": [1, "a"]})
    assert log.lines[0].endswith('Z WARNING fenced node=n1 why="two words" empty="" list=[1, "a"]')
    parse_rfc3339(log.lines[0].split()[0])


@pytest.mark.parametrize("format_", ["json", "text"])
def test_nothing_in_a_record_can_forge_a_line_or_move_a_cursor(format_: str) -> None:
    log = Log(format_)
    evil = 'a\nb\r\n\x1b[2J\x9b1A\u2028\u202e\x00"\\ \udcff'
    log.logger.info("%s", evil, extra={"field": evil, "key\n2": evil, "nested": {"k\n": [evil]}})
    text = log.stream.getvalue()
    assert text.count("\n") == 1
    assert text.rstrip("\n").isprintable()
    text.encode("utf-8")


@pytest.mark.parametrize("format_", ["json", "text"])
@pytest.mark.parametrize(
    "secret",
    [f"Bearer {TOKEN}", "Bearer abc123", "authorization: bearer  abc123==", f"token={TOKEN} rest", TOKEN],
)
def test_credentials_are_never_written(format_: str, secret: str) -> None:
    log = Log(format_)
    try:
        fail(RuntimeError(f"refused with {secret}"))
    except RuntimeError:
        log.logger.exception(
            "sent %s", secret, extra={"header": secret, "deep": {"list": [secret]}, secret: secret}
        )
    text = log.stream.getvalue()
    assert "abc123" not in text and "eyJ" not in text and "c2lnbmF0dXJl" not in text
    assert "[redacted]" in text


def test_fields_that_are_secrets_by_name_are_never_written() -> None:
    log = Log()
    log.logger.info(
        "x", extra={"token": "hunter2", "Authorization": "hunter2", "headers": {"password": "hunter2"}}
    )
    assert "hunter2" not in log.stream.getvalue()


def test_an_exception_is_folded_into_its_record() -> None:
    log = Log()
    try:
        fail(ValueError("line one\nline two"))
    except ValueError:
        log.logger.exception("failed")
    record = log.record()
    assert record["level"] == "error"
    assert record["exception"].startswith("Traceback") and record["exception"].endswith("line one\nline two")


def test_a_long_traceback_keeps_both_ends() -> None:
    def deep(count: int) -> None:
        if count:
            deep(count - 1)
        raise ValueError("the end" + "x" * 5000)

    log = Log()
    try:
        deep(50)
    except ValueError:
        log.logger.exception("failed")
    trace = log.record()["exception"]
    assert trace.startswith("Traceback") and trace.endswith("xxx") and len(trace) < 8192


class Unshowable:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (1 << 70, str(1 << 70)),
        (b"\xffbytes", "\\xffbytes"),
        (datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01T00:00:00.000000Z"),
        (Path("/dev/kmsg"), "/dev/kmsg"),
        (Colour.RED, "Colour.RED"),
        (ValueError("x"), "x"),
        (Unshowable(), "<Unshowable that cannot be shown>"),
        ((1, {2}), [1, [2]]),
        ({1: {"a": [1]}}, {"1": {"a": [1]}}),
    ],
)
def test_values_that_json_does_not_know_are_shown_all_the_same(value: object, shown: object) -> None:
    log = Log()
    log.logger.info("x", extra={"value": value})
    assert log.record()["value"] == shown


def test_a_value_that_contains_itself_ends() -> None:
    log = Log()
    loop: list[Any] = []
    loop.append(loop)
    log.logger.info("x", extra={"value": loop})
    assert "value" in log.record()


def test_a_record_is_bounded() -> None:
    log = Log()
    log.logger.info("x" * 1_000_000, extra={f"field{number}": "y" * 10_000 for number in range(200)})
    assert len(log.lines[0]) < 100_000
    assert log.record()["msg"].startswith("xxx") and log.record()["fields_dropped"] > 100_000


@pytest.mark.parametrize("args", [(1,), ("a", "b"), (Unshowable(),)])
def test_a_message_that_does_not_fit_its_arguments_is_written(args: tuple[Any, ...]) -> None:
    log = Log()
    log.logger.info("no place %d %d %d", *args)
    assert log.record()["msg"].startswith("no place %d")


def test_the_names_of_a_lines_own_keys_are_kept_for_them() -> None:
    log = Log()
    log.logger.info("x", extra={"ts": "mine", "level": "mine", "exception": "mine"})
    record = log.record()
    assert (record["level"], record["ts_"], record["level_"], record["exception_"]) == (
        "info",
        "mine",
        "mine",
        "mine",
    )


def test_the_level_is_obeyed_and_libraries_are_quiet() -> None:
    log = Log(level="INFO")
    log.logger.debug("no")
    logging.getLogger("urllib3.connectionpool").info("no")
    logging.getLogger("urllib3.connectionpool").warning("yes")
    assert [json.loads(line)["msg"] for line in log.lines] == ["yes"]


def test_warnings_become_records() -> None:
    log = Log()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old", UserWarning, stacklevel=1)
    assert "old" in log.record()["msg"]


def test_a_stream_that_is_closed_or_full_stops_nobody() -> None:
    log = Log()
    log.stream.close()
    log.logger.info("into the void")


def test_configuring_twice_writes_once() -> None:
    Log()
    log = Log()
    log.logger.info("x")
    assert len(log.lines) == 1


PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
    lambda children: st.one_of(st.lists(children), st.dictionaries(st.text(), children)),
    max_leaves=20,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(message=st.text(), value=PLAIN)
def test_any_text_and_any_value_makes_one_line_of_json(message: str, value: object) -> None:
    for format_ in ("json", "text"):
        log = Log(format_)
        log.logger.info(message, extra={"value": value})
        text = log.stream.getvalue()
        assert text.count("\n") == 1 and text.endswith("\n")
        if format_ == "json":
            assert set(json.loads(text)) == {"ts", "level", "msg", "logger", "value"}
