"""Configuration: what wins, and what is said of what is wrong."""

import enum
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.config import (
    ConfigError,
    Loaded,
    UnknownKeyError,
    decode_yaml_document,
    load,
    load_yaml_document,
)
from runtime.quantities import Duration, ListenAddress, Percentage


class Kubelet(msgspec.Struct, frozen=True, rename="camel"):
    port: int = 10250
    read_timeout: Duration = Duration(5)


class Agent(msgspec.Struct, frozen=True, rename="camel"):
    listen: ListenAddress = ListenAddress(":9400")
    sample_interval: Duration = Duration(1)
    kernel_log: Path = Path("/dev/kmsg")
    xids: tuple[int, ...] = ()
    names: list[str] = []
    drill: bool = False
    node: str | None = None
    kubelet: Kubelet = Kubelet()


def agent(file: Path | None = None, environ: dict[str, str] | None = None, **flags: object) -> Loaded[Agent]:
    return load(Agent, file=file, environ=environ or {}, flags=flags, prefix="SICKBAY_AGENT_")


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def to_file(text: str | bytes) -> Path:
        path = tmp_path / "agent.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return to_file


def test_without_anything_the_defaults_hold() -> None:
    loaded = agent()
    assert loaded.value == Agent()
    assert set(loaded.origin.values()) == {"default"}
    assert "kubelet.readTimeout" in loaded.origin


def test_flag_beats_environment_beats_file_beats_default(write: Any) -> None:
    file = write('listen: ":1"\nsampleInterval: 1m\nkernelLog: /file\nkubelet: {port: 1, readTimeout: 9s}\n')
    environ = {
        "SICKBAY_AGENT_SAMPLE_INTERVAL": "2m",
        "SICKBAY_AGENT_KERNEL_LOG": "/env",
        "SICKBAY_AGENT_KUBELET_PORT": "2",
        "UNRELATED": "x",
    }
    loaded = agent(file, environ, kernel_log=Path("/flag"), node=None, **{"kubelet.port": 3})
    value = loaded.value
    assert (value.listen.port, value.sample_interval, value.kernel_log) == (1, Duration(120), Path("/flag"))
    assert value.kubelet == Kubelet(3, Duration(9))
    assert loaded.origin == {
        "listen": "file",
        "sampleInterval": "env",
        "kernelLog": "flag",
        "xids": "default",
        "names": "default",
        "drill": "default",
        "node": "default",
        "kubelet.port": "flag",
        "kubelet.readTimeout": "file",
    }


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("XIDS", "79, 48", "xids", (79, 48)),
        ("XIDS", "[79, 48]", "xids", (79, 48)),
        ("NAMES", "a:b,[::1]:9400", "names", ["a:b", "[::1]:9400"]),
        ("DRILL", "true", "drill", True),
        ("NODE", "123", "node", "123"),
        ("NODE", "no", "node", "no"),
        ("LISTEN", "[::1]:9400", "listen", ListenAddress("[::1]:9400")),
        ("DRILL", "", "drill", False),
    ],
)
def test_a_variables_text_is_read_by_its_keys_type(variable: str, text: str, key: str, value: object) -> None:
    assert getattr(agent(environ={f"SICKBAY_AGENT_{variable}": text}).value, key) == value


def test_the_variables_that_kubernetes_sets_for_a_service_are_not_ours() -> None:
    class Server(msgspec.Struct, frozen=True):
        port: int = 9400

    environ = {
        "SICKBAY_AGENT_PORT": "tcp://10.0.0.7:9400",
        "SICKBAY_AGENT_SERVICE_HOST": "10.0.0.7",
        "SICKBAY_AGENT_SERVICE_PORT": "9400",
        "SICKBAY_AGENT_SERVICE_PORT_METRICS": "9400",
        "SICKBAY_AGENT_PORT_9400_TCP": "tcp://10.0.0.7:9400",
        "SICKBAY_AGENT_PORT_9400_TCP_ADDR": "10.0.0.7",
        "SICKBAY_AGENT_METRICS_SERVICE_HOST": "10.0.0.7",
        "SICKBAY_AGENT_METRICS_PORT": "tcp://10.0.0.7:9400",
    }
    assert load(Server, file=None, environ=environ, flags={}, prefix="SICKBAY_AGENT_").value.port == 9400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lisen: ':1'", 'unknown key "lisen" (value ":1"); did you mean "listen"?'),
        ("sample_interval: 1s", 'unknown key "sample_interval" (value "1s"); did you mean "sampleInterval"?'),
        ("kubelet: {prot: 5}", 'unknown key "kubelet.prot" (value 5); did you mean "port"?'),
        (
            "quux: 1",
            'unknown key "quux" (value 1); known keys: listen, sampleInterval, kernelLog, xids, names, ',
        ),
        ("kubelet: {port: a}", 'kubelet.port: expected a whole number, got "a"'),
        ("kubelet: {port: true}", "kubelet.port: expected a whole number, got true"),
        ("kubelet: {port: 1.5}", "kubelet.port: expected a whole number, got 1.5"),
        ("kubelet: 5", "kubelet: expected a mapping with the keys port, readTimeout, got 5"),
        ("kubelet:", "kubelet: expected a mapping with the keys port, readTimeout, got null"),
        (
            "sampleInterval: 30",
            "sampleInterval: expected a duration such as 30s, 5m or 1h30m: a number needs a unit",
        ),
        (
            "sampleInterval: 1m1h",
            "sampleInterval: expected a duration such as 30s, 5m or 1h30m: each unit once",
        ),
        (
            "listen: 9400",
            'listen: expected ADDRESS:PORT such as 0.0.0.0:9400, [::1]:9400 or :9400: write ":9400"',
        ),
        ("listen: ':65536'", "with a port from 0 to 65535"),
        ("listen: '::1:9400'", "an IPv6 address stands in brackets"),
        ("listen: [::1]:9400", "needs quotes"),
        ("xids: 79", "xids: expected a list, got 79"),
        ("xids: [79, x]", 'xids[1]: expected a whole number, got "x"'),
        ("drill: yes", 'drill: expected true or false, got "yes"'),
        ("node: 5", "node: expected text (in quotes), got 5"),
        ("kernelLog: 5", "kernelLog: expected a path, got 5"),
        ("kernelLog: ''", 'kernelLog: expected a path, got ""'),
        ("- a", "expected a mapping of keys to values"),
        ("listen: ':1'\nlisten: ':2'", 'line 2, column 1: duplicate key "listen", first on line 1'),
        ("xids: &x [1]\nnames: *x", "anchors and aliases are not accepted"),
        ("<<: {listen: ':1'}", 'unknown key "<<"'),
        ("node: !!python/name:os.system", "tags are not accepted"),
        ("? [a]\n: 1", "a key must be plain text"),
        ("a: 1\n---\nb: 2", "another document"),
        ("xids: " + "[" * 40 + "]" * 40, "nested deeper than 32"),
        ("node: '", "valid YAML (line"),
        ("node: \x00", "valid YAML"),
        (b"node: \xff", "UTF-8 text (byte 6 is not)"),
        (b"#" * ((1 << 20) + 1), "a file of at most 1 MiB"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(write: Any, text: str | bytes, message: str) -> None:
    file = write(text)
    with pytest.raises(ConfigError) as refused:
        agent(file)
    shown = str(refused.value)
    assert shown.startswith(f"{file}: ") and message in shown
    assert "\n" not in shown and refused.value.file == file


def test_an_error_has_its_parts(write: Any) -> None:
    with pytest.raises(UnknownKeyError) as refused:
        agent(write("kubelet: {readTimeOut: 9s}"))
    error = refused.value
    assert (error.key, error.value, error.nearest) == ("kubelet.readTimeOut", "9s", "readTimeout")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "absent.yaml", "no such file"), (tmp_path, "is a directory")):
        with pytest.raises(ConfigError, match=why) as refused:
            agent(path)
        assert str(path) in str(refused.value)


def test_an_empty_file_is_no_configuration_and_no_error(write: Any) -> None:
    assert agent(write("# all defaults\n")).value == Agent()


@pytest.mark.parametrize(
    ("environ", "flags", "message"),
    [
        (
            {"SICKBAY_AGENT_LISTENN": "x"},
            {},
            'environment: unknown key "SICKBAY_AGENT_LISTENN" (value "x"); did you mean "SICKBAY_AGENT_LISTEN"?',
        ),
        (
            {"SICKBAY_AGENT_KUBELET_PORT": "x"},
            {},
            'environment variable SICKBAY_AGENT_KUBELET_PORT: kubelet.port: expected a whole number, got "x"',
        ),
        (
            {"SICKBAY_AGENT_XIDS": "79,x"},
            {},
            'environment variable SICKBAY_AGENT_XIDS: xids[1]: expected a whole number, got "x"',
        ),
        (
            {"SICKBAY_AGENT_XIDS": "[79,"},
            {},
            "environment variable SICKBAY_AGENT_XIDS: xids: expected valid YAML",
        ),
        ({}, {"sample_interval": "5"}, "flag --sample-interval: sampleInterval: expected a duration"),
        ({}, {"kubelet.port": "x"}, "flag --kubelet-port: kubelet.port: expected a whole number"),
    ],
)
def test_what_is_wrong_in_a_variable_or_flag_is_named(
    environ: dict[str, str], flags: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        load(Agent, file=None, environ=environ, flags=flags, prefix="SICKBAY_AGENT_")
    assert message in str(refused.value)
    assert refused.value.file is None


def test_a_required_key_may_come_from_anywhere(write: Any) -> None:
    class Needy(msgspec.Struct, frozen=True):
        node: str
        pool: str

    loaded = load(Needy, file=write("node: n1"), environ={"P_POOL": "p"}, flags={}, prefix="P_")
    assert loaded.value == Needy("n1", "p")
    with pytest.raises(ConfigError, match="pool: expected text, got nothing"):
        load(Needy, file=write("node: n1"), environ={}, flags={}, prefix="P_")


# Documents such as the policy


class Mode(enum.Enum):
    OBSERVE = "Observe"
    APPROVE = "Approve"
    AUTO = "Auto"


class Rule(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    mode: Mode = Mode.OBSERVE
    fence: Literal["Node", "Device"] = "Node"
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=10)] = 2

    def __post_init__(self) -> None:
        if self.mode is Mode.AUTO and self.name == "manual":
            raise ValueError("a rule called manual cannot be Auto")


class Policy(msgspec.Struct, frozen=True, rename="camel"):
    api_version: Literal["sickbay.dev/v1alpha1"]
    rules: tuple[Rule, ...] = ()
    max_fenced: Percentage = Percentage.parse("30%")
    pools: dict[str, Rule] = {}
    dwell: Duration | None = None


def test_a_document_becomes_its_structs(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(
        "apiVersion: sickbay.dev/v1alpha1\n"
        "maxFenced: 12.5%\n"
        "dwell: 5m\n"
        "rules:\n"
        "- {name: no, mode: Auto, fence: Device, maxAttempts: 3}\n"
        "- name: on\n"
        "pools: {a100.x: {name: '010'}}\n"
    )
    policy = load_yaml_document(path, Policy)
    assert policy.rules == (Rule("no", Mode.AUTO, "Device", 3), Rule("on"))
    assert policy.max_fenced.of(40) == 5
    assert policy.dwell == Duration(300)
    assert policy.pools == {"a100.x": Rule("010")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a document, it is empty"),
        ("rules: []", "apiVersion: expected one of sickbay.dev/v1alpha1, got nothing"),
        (
            "apiVersion: sickbay.dev/v1",
            'apiVersion: expected one of sickbay.dev/v1alpha1, got "sickbay.dev/v1"; did',
        ),
        ("rules: [{name: a}, {name: b}, {name: c, moed: Auto}]", 'unknown key "rules[2].moed"'),
        (
            "rules: [{name: a, mode: auto}]",
            'rules[0].mode: expected one of Observe, Approve, Auto, got "auto"; did you',
        ),
        (
            "rules: [{name: a, mode: Never}]",
            'rules[0].mode: expected one of Observe, Approve, Auto, got "Never"',
        ),
        ("rules: [{name: a, fence: Devise}]", 'got "Devise"; did you mean "Device"?'),
        ("rules: [{mode: Auto}]", "rules[0].name: expected text, got nothing"),
        ("rules: [{name: a, maxAttempts: 0}]", "rules[0].maxAttempts: expected a whole number >= 1, got 0"),
        (
            "rules: [{name: a, maxAttempts: 11}]",
            "rules[0].maxAttempts: expected a whole number <= 10, got 11",
        ),
        ("rules: [{name: manual, mode: Auto}]", "rules[0]: expected a rule called manual cannot be Auto"),
        ("rules: [5]", "rules[0]: expected a mapping with the keys name, mode, fence, maxAttempts, got 5"),
        ("rules: {}", "rules: expected a list, got {}"),
        ("pools: {a.b: {name: x, mode: no}}", "pools.a.b.mode: expected one of"),
        ("pools: []", "pools: expected a mapping, got []"),
        ("maxFenced: 30", 'maxFenced: expected a percentage from 0% to 100% such as 30%: write "30%"'),
        ("maxFenced: 101%", "maxFenced: expected a percentage from 0% to 100%"),
        ("dwell: [5m]", "dwell: expected a duration"),
        ("dwell: 2026-01-01", "dwell: expected a duration"),
    ],
)
def test_what_is_wrong_in_a_document_is_named_by_its_path(text: str, message: str) -> None:
    if text and "apiVersion" not in text and "got nothing" not in message.partition("apiVersion")[2]:
        text = f"apiVersion: sickbay.dev/v1alpha1\n{text}"
    with pytest.raises(ConfigError) as refused:
        decode_yaml_document(text, Policy, file=Path("policy.yaml"))
    shown = str(refused.value)
    assert shown.startswith("policy.yaml: ") and message in shown


def test_a_document_that_unfolds_is_refused_in_no_time() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    began = time.monotonic()
    with pytest.raises(ConfigError, match="anchors and aliases"):
        decode_yaml_document(bomb, Policy)
    with pytest.raises(ConfigError):
        decode_yaml_document("[" * 500_000, Policy)
    assert time.monotonic() - began < 5


@given(st.one_of(st.text(), st.binary(max_size=200)))
def test_no_document_does_more_than_be_refused(text: str | bytes) -> None:
    with pytest.raises(ConfigError) as refused:
        decode_yaml_document(text, Policy, file=Path("p"))
    assert "\n" not in str(refused.value)


PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.dictionaries(st.sampled_from(["rules", "name", "mode", "dwell", "pools", "apiVersion"]), children),
    ),
    max_leaves=15,
)


@given(PLAIN)
def test_no_value_does_more_than_be_refused(value: object) -> None:
    try:
        decode_yaml_document(msgspec.json.encode(value), Policy)
    except ConfigError as error:
        assert str(error)


# Quantities


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("250ms", 0.25),
        ("2d", 172800),
        ("0s", 0),
        ("1.5h", 5400),
        (" 1m ", 60),
    ],
)
def test_durations_are_seconds(text: str, seconds: float) -> None:
    assert Duration.parse(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "-1s", "1 s", "1m1m", "1s1m", "1w", "1e3s", "٣s", "9999999999s", None, [], {}, True]
)
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="a duration such as"):
        Duration.parse(text)


@given(st.integers(0, 10**11))
def test_a_duration_is_read_back_from_its_short_form(milliseconds: int) -> None:
    duration = Duration(milliseconds / 1000)
    assert round(Duration.parse(str(duration)) * 1000) == milliseconds


@given(percent=st.integers(0, 10_000), total=st.integers(0, 10_000))
def test_a_share_is_rounded_down_exactly(percent: int, total: int) -> None:
    share = Percentage.parse(f"{percent // 100}.{percent % 100:02}%")
    assert share.of(total) == percent * total // 10_000


@pytest.mark.parametrize("text", ["", "%", "30", "-1%", "100.01%", "1e1%", "30 percent", None, 30, 0.3, True])
def test_what_is_no_percentage_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="a percentage from 0% to 100%"):
        Percentage.parse(text)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        (":9400", "", 9400),
        ("0.0.0.0:0", "0.0.0.0", 0),
        ("[::1]:9400", "::1", 9400),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
        ("localhost:65535", "localhost", 65535),
    ],
)
def test_addresses_are_taken_apart(text: str, host: str, port: int) -> None:
    address = ListenAddress.parse(text)
    assert (address.host, address.port, str(address)) == (host, port, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "9400",
        "host",
        "host:",
        "host:x",
        "host:-1",
        "host:65536",
        "a b:1",
        "::1:1",
        "[x]:1",
        "[]:1",
        "h:٣",
        5,
        None,
    ],
)
def test_what_is_no_address_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="ADDRESS:PORT"):
        ListenAddress.parse(text)
