"""A restart at any moment changes nothing: the same lines, the same faults, the same counts."""

import re
from datetime import timedelta

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from exporter.memory import Memory, recalled, remembered
from exporter.report_wire import status_patch
from exporter.reporting import report_status
from exporter.sources.kernel_intake import Intake
from exporter.sources.kmsg import Record
from exporter.state import NodeState
from health import xids
from health.kernel_line import RECOVERY_ACTIONS
from runtime.clock import ManualClock
from tests.crds import schema_of
from tests.unit.agent_samples import ADDRESSES, BOOT, NOW, inventory

CATALOGUE = xids.builtin()
STATUS_SCHEMA = schema_of("AcceleratorReport")["properties"]["status"]
UNKNOWN_ADDRESS = "0000:aa:00"
shorts = st.sampled_from([address.removesuffix(".0") for address in ADDRESSES[:2]] + [UNKNOWN_ADDRESS])

lines = st.one_of(
    st.builds("NVRM: Xid (PCI:{}): {}, pid=1, name=x, text".format, shorts, st.integers(1, 180)),
    st.builds(
        "NVRM: Xid (PCI:{}): 154, GPU recovery action changed from 0x0 (None) to 0x1 ({})".format,
        shorts,
        st.sampled_from(RECOVERY_ACTIONS),
    ),
    st.just(f"NVRM: GPU at PCI:{UNKNOWN_ADDRESS}: GPU-660d987e-5b28-3bf6-2a2d-1d5ecae7f6df"),
    st.just("nvidia-nvswitch1: SXid (PCI:0000:00:08.0): 11004, Non-fatal, Link 36 text"),
)


def blank():
    return NodeState(boot_id=BOOT, catalogue=CATALOGUE)


def read(log, state):
    """The state after a replay of this log by an agent that starts with `state`."""
    messages = []
    intake = Intake(on_message=messages.append, clock=ManualClock(wall=NOW), after=state.cursor)
    intake.opened()
    for sequence, line in enumerate(log):
        intake.take(Record(0, sequence, None, line))
    for message in messages:
        state = state.with_message(message)
    return state


def restarted(state):
    written = msgspec.json.encode(remembered(state, node_uid="uid", sequence=1, met=True))
    return recalled(msgspec.json.decode(written, type=Memory), blank(), NOW + timedelta(seconds=1))


@given(st.lists(lines, max_size=15), st.integers(0, 15), st.integers(0, 15), st.booleans())
def test_a_restart_after_any_line_neither_raises_nor_clears_nor_counts_twice(log, first, second, named):
    start = blank().with_inventory(inventory(0, 1), NOW) if named else blank()
    undisturbed = read(log, start)
    state = start
    for cut in sorted((first, second)):
        state = restarted(read(log[:cut], state))
    assert read(log, state) == undisturbed


@given(st.lists(lines, max_size=15), st.integers(0, 15))
def test_it_does_not_matter_when_the_devices_become_known(log, moment):
    early = read(log, blank().with_inventory(inventory(0, 1), NOW))
    late = read(log[:moment], blank()).with_inventory(inventory(0, 1), NOW)
    late = read(log, late)

    def essence(state):
        return {
            (*fault.identity, fault.severity, fault.advice, fault.count, fault.first_seen)
            for fault in state.diagnosis.faults
            if fault.kind != "RecoveryRequired"
        }

    assert essence(late) == essence(early)
    assert late.xids == early.xids


def violations(value, schema, path="status"):
    """Where a value breaks the API server's schema (structural: an object, an array, or a scalar with bounds)."""
    if isinstance(value, dict):
        yield from (f"{path}.{name} is missing" for name in schema.get("required", []) if name not in value)
        for name, inner in value.items():
            yield from violations(inner, schema["properties"][name], f"{path}.{name}")
    elif isinstance(value, list):
        if len(value) > schema["maxItems"]:
            yield f"{path} has {len(value)} items"
        for inner in value:
            yield from violations(inner, schema["items"], f"{path}[]")
    elif isinstance(value, str):
        if len(value) > schema.get("maxLength", len(value)) or value not in schema.get("enum", [value]):
            yield f"{path}: {value!r}"
        if not re.search(schema.get("pattern", ""), value, re.ASCII):
            yield f"{path}: {value!r}"
    elif value is not None and schema["type"] != {bool: "boolean", int: "integer"}[type(value)]:
        yield f"{path}: {value!r}"


@given(st.lists(lines, max_size=15))
def test_every_report_is_within_what_the_api_server_takes_and_the_worst_fault_is_first(log):
    state = read(log, blank().with_inventory(inventory(0, 1), NOW))
    status = report_status(state, now=NOW, samples={}, node_uid="uid", agent_version="1")
    written = msgspec.json.decode(status_patch(status))["status"]
    assert list(violations(written, STATUS_SCHEMA)) == []
    severities = [fault.severity.rank for fault in status.faults]
    assert severities == sorted(severities, reverse=True)
