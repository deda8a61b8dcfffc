"""Receipts: whatever lies in their folder, only whole ones are shown; whenever they are read, the same faults end."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.events import CaughtUp, ReceiptsRead, SourceSaid
from exporter.fold import OTHER_SOURCES, Fold
from exporter.memory import Memory
from exporter.report_wire import status_patch
from exporter.reporting import report_status
from exporter.sources.receipts import ReceiptsSource
from health import xids
from health.receipt import (
    RECEIPT_MESSAGE_LIMIT,
    RECEIPTS_LIMIT,
    Receipt,
    RepairResult,
    read_receipt,
    receipt_name,
)
from health.vocabulary import Severity, SourceState
from tests.crds import schema_of
from tests.property.test_memory import violations
from tests.unit.agent_samples import BOOT, UUIDS, inventory, later, verdict, xid

STATUS_SCHEMA = schema_of("AcceleratorReport")["properties"]["status"]
CATALOGUE = xids.builtin()

sessions = st.sampled_from(["n1-aaaaaaaaaa", "n1-bbbbbbbbbb", "\N{SNOWMAN}"])
receipts = st.builds(
    Receipt,
    session=sessions,
    step=st.sampled_from(["Reset", "Reboot", "RestartService"]),
    attempt=st.integers(0, 3),
    boot_id=st.sampled_from([BOOT, BOOT, "another"]),
    result=st.sampled_from([result.value for result in RepairResult]),
    time=st.integers(0, 1000).map(later),
    devices=st.lists(st.sampled_from(UUIDS), max_size=3).map(tuple),
    message=st.text(max_size=RECEIPT_MESSAGE_LIMIT),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands in the folder under a name: a file with this content, or something else."""

    name: str
    kind: str
    content: bytes = b""

    def put(self, folder: Path) -> None:
        path = folder / self.name
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        path.unlink(missing_ok=True)
        match self.kind:
            case "file":
                path.write_bytes(self.content)
            case "link":
                (folder.parent / "elsewhere").write_bytes(self.content)
                path.symlink_to(folder.parent / "elsewhere")
            case "fifo":
                os.mkfifo(path)
            case "folder":
                path.mkdir()


@st.composite
def entries(draw):
    receipt = draw(receipts)
    whole = msgspec.json.encode(receipt)
    content = draw(
        st.one_of(
            st.just(whole),
            st.integers(0, len(whole) - 1).map(lambda end: whole[:end]),
            st.binary(max_size=80),
            st.tuples(st.integers(0, len(whole) - 1), st.binary(min_size=1, max_size=3)).map(
                lambda change: whole[: change[0]] + change[1] + whole[change[0] + 1 :]
            ),
            st.just(whole + b" " * 20_000),
        )
    )
    other_names = st.sampled_from([".hidden.json", "note.txt", "reset-1-0000000000000000.json"])
    name = draw(st.one_of(*[st.just(receipt_name(*receipt.identity))] * 3, other_names))
    return Entry(name, draw(st.sampled_from(["file"] * 5 + ["link", "fifo", "folder"])), content)


def whole_ones(folder: dict[str, Entry]) -> tuple[Receipt, ...]:
    """The receipts of this boot that stand whole under their own names, the newest first."""
    found = []
    for name, entry in folder.items():
        try:
            receipt = read_receipt(entry.content)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        own = entry.kind == "file" and len(entry.content) <= 16 * 1024 and receipt.boot_id == BOOT
        if own and name == receipt_name(*receipt.identity) and violations_of(receipt) == []:
            found.append(receipt)
    found.sort(key=lambda receipt: (receipt.time, receipt.identity), reverse=True)
    return tuple(found[:RECEIPTS_LIMIT])


def violations_of(receipt: Receipt) -> list[str]:
    schema = STATUS_SCHEMA["properties"]["receipts"]["items"]
    return list(violations(msgspec.json.decode(msgspec.json.encode(receipt)), schema))


def shown_by(source: ReceiptsSource, told: list[tuple[Receipt, ...]]) -> tuple[Receipt, ...]:
    source._look()
    return told[-1] if told else ()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(entries(), max_size=24), min_size=1, max_size=3))
def test_what_is_shown_are_the_receipts_that_stand_whole_in_the_folder_and_nothing_else(rounds):
    home = Path(tempfile.mkdtemp())
    folder = home / "receipts"
    folder.mkdir()
    told, states = [], []
    source = ReceiptsSource(
        on_receipts=told.append,
        on_state=lambda state, _: states.append(state),
        boot_id=BOOT,
        folder=folder,
    )
    try:
        standing = {}
        for entries_of_round in rounds:
            for entry in entries_of_round:
                entry.put(folder)
                standing[entry.name] = entry
            shown = shown_by(source, told)
            assert shown == whole_ones(standing)
            assert [found for one in shown for found in violations_of(one)] == []
        assert states == [SourceState.LIVE]
    finally:
        shutil.rmtree(home)


# By a reset, a new boot, quiet; each kind of fault in one way only. 31 is the workload's.
LINES = [109, 64, 79, 94, 31]
VERDICTS = ["None", "GPU Reset Required", "Node Reboot Required", "an action of a newer driver"]
HEALED = {"EngineHung", "RemapFailed"}


@dataclass(frozen=True, slots=True)
class Line:
    """A kernel line on a device: an Xid, or the driver's verdict."""

    device: int
    said: int | str

    def message(self, sequence: int, at: datetime):
        if isinstance(self.said, int):
            return xid(self.said, device=self.device, sequence=sequence, at=at)
        return verdict(self.said, device=self.device, sequence=sequence, at=at)


@dataclass(frozen=True, slots=True)
class Reset:
    """A reset of a device, whose receipt is read after so many further events."""

    device: int
    read_after: int


@dataclass(frozen=True, slots=True)
class Restart:
    """The agent starts anew, with its state file or without one, and reads receipts first or after the log."""

    kept: bool
    receipts_first: bool


@dataclass(frozen=True, slots=True)
class Pause:
    """A second in which nothing happens."""


def undisturbed(event):
    """The same without a delay and without a restart."""
    match event:
        case Reset(device, _):
            return Reset(device, 0)
        case Restart():
            return Pause()
    return event


events = st.lists(
    st.one_of(
        st.builds(Line, st.integers(0, 1), st.sampled_from([*LINES, *VERDICTS])),
        st.builds(Reset, st.integers(0, 1), st.integers(0, 3)),
        st.builds(Restart, st.booleans(), st.booleans()),
    ),
    max_size=14,
)


class Node:
    """A host: its kernel log and receipts, and the agent on it, over restarts. Every event takes a second."""

    def __init__(self) -> None:
        self.seconds = 0
        self.log: list = []
        self.done: list[tuple[int, Receipt]] = []
        """Receipts, and when the agent may read them at the earliest."""
        self.start(None, receipts_first=True)

    def start(self, memory: Memory | None, *, receipts_first: bool) -> None:
        self.fold = Fold(
            boot_id=BOOT,
            catalogue=CATALOGUE,
            memory=memory,
            drill=False,
            now=later(self.seconds),
            monotonic=float(self.seconds),
        )
        for source in OTHER_SOURCES:
            self.take(SourceSaid(source, SourceState.LIVE, ""))
        self.take(inventory(0, 1))
        for receipts_now in (True, False):
            if receipts_now == receipts_first:
                self.read_receipts(all_of_them=True)
            else:
                for message in self.log:
                    if message.sequence > self.fold.state.cursor:
                        self.take(message)
        self.take(CaughtUp())

    def take(self, *taken) -> None:
        now, monotonic = later(self.seconds), float(self.seconds)
        for event in taken:
            self.fold.take(event, now=now, monotonic=monotonic)
        self.fold.settle(now=now, monotonic=monotonic)

    def read_receipts(self, *, all_of_them: bool = False) -> None:
        there = [one for due, one in self.done if all_of_them or due <= self.seconds]
        self.take(ReceiptsRead(tuple(sorted(there, key=lambda one: one.time, reverse=True))))

    def happen(self, event) -> None:
        self.seconds += 1
        match event:
            case Line():
                self.log.append(event.message(len(self.log), later(self.seconds)))
                self.take(self.log[-1])
            case Reset():
                number = len(self.done)
                receipt = Receipt(
                    session="session",
                    step="Reset",
                    attempt=number,
                    boot_id=BOOT,
                    result=RepairResult.DONE.value,
                    time=later(self.seconds),
                    devices=(UUIDS[event.device],),
                )
                self.done.append((self.seconds + event.read_after, receipt))
            case Restart():
                written = msgspec.json.decode(msgspec.json.encode(self.fold.memory("uid")), type=Memory)
                self.start(written if event.kept else None, receipts_first=event.receipts_first)
        self.read_receipts()

    @property
    def open(self) -> set[tuple[str, str, Severity, str]]:
        """What is open of what kernel lines raise. RecoveryRequired depends on what else was open just then."""
        return {
            (*fault.identity, fault.severity, fault.advice)
            for fault in self.fold.state.diagnosis.faults
            if fault.kind != "RecoveryRequired"
        }

    @property
    def verdicts(self) -> dict[str, str]:
        return dict(self.fold.state.diagnosis.verdicts)


def end_of(history) -> Node:
    node = Node()
    for event in history:
        node.happen(event)
    for _ in range(5):
        node.happen(Pause())
    return node


@settings(deadline=None)
@given(events)
def test_faults_are_the_same_whenever_receipts_are_read_and_the_agent_is_restarted(history):
    disturbed = end_of(history)
    plain = end_of(map(undisturbed, history))
    assert disturbed.open == plain.open
    assert disturbed.verdicts == plain.verdicts


@settings(deadline=None)
@given(events)
def test_after_any_history_a_fault_is_open_if_and_only_if_nothing_has_ended_it_since(history):
    node = end_of(history)
    expected: set[tuple[str, str]] = set()
    for event in history:
        match event:
            case Line(device, int(code)):
                expected.add((CATALOGUE[code].kind.value, UUIDS[device]))
            case Reset(device, _):
                expected -= {(kind, UUIDS[device]) for kind in HEALED}
    assert {(kind, uuid) for kind, uuid, _, _ in node.open} == expected


@settings(deadline=None)
@given(events)
def test_a_device_that_the_driver_says_needs_something_has_a_fault_that_says_so(history):
    node = end_of(history)
    for uuid, action in node.verdicts.items():
        faults = [fault for fault in node.fold.state.diagnosis.faults if fault.device_uuid == uuid]
        assert action == "None" or any(fault.kind != "ApplicationFault" for fault in faults)


@settings(deadline=None)
@given(events)
def test_receipts_and_what_they_ended_are_within_what_the_api_server_takes(history):
    node = end_of(history)
    status = report_status(
        node.fold.state, now=later(node.seconds), samples={}, node_uid="uid", agent_version="1"
    )
    written = msgspec.json.decode(status_patch(status))["status"]
    assert list(violations(written, STATUS_SCHEMA)) == []
