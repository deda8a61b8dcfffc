"""The receipts source: what it takes from the folder, what it leaves aside, and what it says of that."""

import logging
import os
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from exporter.sources.receipts import ReceiptsSource
from health.receipt import (
    RECEIPT_FILE_LIMIT,
    RECEIPT_MESSAGE_LIMIT,
    RECEIPTS_LIMIT,
    Receipt,
    RepairResult,
    receipt_name,
)
from health.vocabulary import SourceState
from tests.lab.processes import wait_until
from tests.unit.agent_samples import BOOT, NOW, UUIDS

LIVE = (SourceState.LIVE, "")


def receipt(session="session", step="Reset", attempt=1, **changes):
    values = {"boot_id": BOOT, "result": RepairResult.DONE.value, "time": NOW, "devices": (UUIDS[0],)}
    return Receipt(session=session, step=step, attempt=attempt, **{**values, **changes})


def write(folder: Path, written: Receipt) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / receipt_name(*written.identity)
    temporary = folder / f".{path.name}.new"
    temporary.write_bytes(msgspec.json.encode(written))
    return temporary.replace(path)


class Reading:
    """A source that runs, and what it has said. Each look is waited for."""

    def __init__(self, folder: Path) -> None:
        self.told: list[tuple[Receipt, ...]] = []
        self.states: list[tuple[SourceState, str]] = []
        self.source = ReceiptsSource(
            on_receipts=self.told.append,
            on_state=lambda state, message: self.states.append((state, message)),
            boot_id=BOOT,
            folder=folder,
            interval=0.01,
        )
        self.source.start()
        assert self.source.wait_looked(5)

    def shows(self, *receipts: Receipt) -> None:
        wait_until(lambda: self.told and self.told[-1] == receipts, 5, f"{receipts}, not {self.told}")

    def looks_again(self) -> None:
        """Wait until two more looks have begun: the second one began after this was called."""
        looks = 0
        look = self.source._look

        def counted() -> None:
            nonlocal looks
            looks += 1
            look()

        self.source._look = counted  # type: ignore[method-assign]
        wait_until(lambda: looks > 1, 5, "the folder to be read again")


@pytest.fixture
def reading(tmp_path):
    started = []

    def start(folder=tmp_path / "receipts"):
        started.append(Reading(folder))
        return started[-1]

    yield start
    assert all(one.source.close() for one in started)


@pytest.fixture
def aside(caplog):
    """What the log says of files that are left aside: (file name, why)."""
    caplog.set_level(logging.WARNING)

    def said():
        return [(Path(record.file).name, record.why) for record in caplog.records if hasattr(record, "why")]

    return said


def test_a_folder_that_is_not_there_is_normal(reading, aside):
    one = reading()
    assert (one.states, one.told, aside()) == ([LIVE], [], [])


def test_a_receipt_that_comes_later_is_shown_in_a_folder_that_comes_with_it(reading, tmp_path):
    one = reading()
    begun = receipt(result=RepairResult.BEGUN.value)
    write(tmp_path / "receipts", begun)
    one.shows(begun)
    done = receipt(time=NOW + timedelta(seconds=3))
    write(tmp_path / "receipts", done)
    one.shows(done)
    assert one.states == [LIVE]


def test_receipts_that_are_there_at_the_start_are_told_before_anybody_is_let_go_on(reading, tmp_path):
    write(tmp_path / "receipts", receipt())
    assert reading().told == [(receipt(),)]


def test_a_receipt_that_is_taken_away_is_shown_no_more(reading, tmp_path):
    path = write(tmp_path / "receipts", receipt())
    one = reading()
    path.unlink()
    one.shows()


def test_the_newest_by_time_are_shown_the_newest_first(reading, tmp_path):
    receipts = [receipt(attempt=number, time=NOW + timedelta(seconds=number)) for number in range(40)]
    for one in sorted(receipts, key=lambda one: one.attempt * 7 % 40):
        write(tmp_path / "receipts", one)
    reading().shows(*reversed(receipts[-RECEIPTS_LIMIT:]))


def test_a_message_that_is_too_long_is_cut(reading, tmp_path):
    write(tmp_path / "receipts", receipt(message="x" * 5000))
    reading().shows(receipt(message="x" * RECEIPT_MESSAGE_LIMIT))


def make_link(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere.json"
    elsewhere.write_bytes(msgspec.json.encode(receipt()))
    path.symlink_to(elsewhere)


def content(document: bytes):
    return lambda path: path.write_bytes(document)


def written_as(**changes):
    return content(msgspec.json.encode(receipt(**changes)))


WHOLE = msgspec.json.encode(receipt())


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (make_link, "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (Path.mkdir, "not a regular file"),
        (content(b""), "no receipt: Input data was truncated"),
        (content(WHOLE[:-1]), "no receipt: Input data was truncated"),
        (content(WHOLE + b"}"), "no receipt: JSON is malformed"),
        (content(b"\xff\xfe"), "no receipt: "),
        (content(WHOLE.replace(b"Z", b"")), "no receipt: Expected `datetime` with a timezone"),
        (content(WHOLE.replace(b'"attempt":1,', b"")), "missing required field `attempt`"),
        (content(WHOLE + b" " * RECEIPT_FILE_LIMIT), f"larger than {RECEIPT_FILE_LIMIT} bytes"),
        (written_as(boot_id="another"), "of boot 'another', not of this one"),
        (written_as(attempt=2), f"its content belongs into {receipt_name('session', 'Reset', 2)}"),
        (written_as(attempt=-1), "attempt: expected 0 to"),
        (written_as(session=""), "session: expected an object's name"),
        (written_as(session="x" * 254), "session: expected an object's name"),
        (written_as(session="a/b"), "session: expected an object's name"),
        (written_as(step="reset now"), "step: expected a word such as Reset"),
        (written_as(result="Done\n"), "result: expected a word such as Done"),
        (written_as(devices=("x",) * 17), "devices: expected at most 16"),
        (written_as(devices=("",)), "devices: expected UUIDs of at most 80 characters"),
    ],
)
def test_what_is_no_receipt_is_left_aside_and_said_once(reading, aside, tmp_path, make, why):
    folder = tmp_path / "receipts"
    good = receipt("good")
    write(folder, good)
    make(folder / receipt_name("session", "Reset", 1))
    one = reading()
    one.looks_again()
    assert one.told == [(good,)]
    assert one.states == [LIVE]
    ((name, said),) = aside()
    assert name == receipt_name("session", "Reset", 1)
    assert why in said


def test_a_file_that_becomes_whole_is_taken_then(reading, tmp_path):
    folder = tmp_path / "receipts"
    folder.mkdir()
    path = folder / receipt_name("session", "Reset", 1)
    path.write_bytes(WHOLE[:40])
    one = reading()
    assert one.told == []
    path.write_bytes(WHOLE)
    one.shows(receipt())


def test_what_is_being_written_under_a_hidden_name_is_not_looked_at(reading, aside, tmp_path):
    folder = tmp_path / "receipts"
    folder.mkdir()
    (folder / f".{receipt_name('session', 'Reset', 1)}.new").write_bytes(WHOLE)
    one = reading()
    assert (one.told, aside()) == ([], [])


def test_a_name_that_is_not_utf8_can_be_said(reading, aside, tmp_path):
    folder = tmp_path / "receipts"
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.json")).write_bytes(b"")
    reading()
    assert aside() == [("\\xff.json", "no receipt: Input data was truncated")]


def test_a_folder_that_cannot_be_read_is_a_failure_that_ends(reading, tmp_path):
    path = tmp_path / "receipts"
    path.write_text("no folder")
    one = reading()
    assert one.states == [(SourceState.FAILED, f"{path}: Not a directory")]
    path.unlink()
    write(path, receipt())
    one.shows(receipt())
    assert one.states[-1] == LIVE


def test_a_callback_that_fails_ends_nothing(tmp_path, caplog):
    told = []

    def fail(receipts):
        told.append(receipts)
        raise ValueError("broken")

    source = ReceiptsSource(
        on_receipts=fail, on_state=lambda *_: None, boot_id=BOOT, folder=tmp_path, interval=0.01
    )
    source.start()
    write(tmp_path, receipt())
    wait_until(lambda: told == [(receipt(),)], 5, "the first receipt")
    write(tmp_path, receipt(attempt=2, time=NOW + timedelta(seconds=1)))
    wait_until(lambda: len(told) == 2, 5, "the second receipt")
    assert source.close()
    assert "a callback of the receipts source failed" in caplog.text
