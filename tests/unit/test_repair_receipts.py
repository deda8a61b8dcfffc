"""The receipts folder: one claim for each identity, nothing of others is overwritten, no more than its bound."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from health.receipt import RepairResult, read_receipt, receipt_name
from remediation.repair.order import Order, Step
from remediation.repair.receipts import ReceiptError, ReceiptFolder
from runtime.clock import ManualClock
from tests.unit.fake_host import order

NOW = ManualClock().wall()
BEGUN = order().receipt(RepairResult.BEGUN, time=NOW)
DONE = order().receipt(RepairResult.DONE, time=NOW, message="well")


def path_of(folder: Path, of: Order | None = None) -> Path:
    of = of or order()
    return folder / receipt_name(of.session, of.step, of.attempt)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_claim_is_on_the_disk_and_gives_way_to_the_outcome(tmp_path: Path) -> None:
    folder = ReceiptFolder(tmp_path / "run" / "receipts")
    assert folder.begin(BEGUN) == ""
    assert read_receipt(path_of(tmp_path / "run" / "receipts").read_bytes()) == BEGUN
    folder.finish(BEGUN, DONE)
    assert read_receipt(path_of(tmp_path / "run" / "receipts").read_bytes()) == DONE
    assert len(names(tmp_path / "run" / "receipts")) == 1


def test_file_and_folder_are_synced_before_the_claim_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    folder = ReceiptFolder(tmp_path)
    folder.begin(BEGUN)
    assert synced == [str(path_of(tmp_path)), str(tmp_path)]
    folder.finish(BEGUN, DONE)
    assert synced[2:] == [str(tmp_path / f".{path_of(tmp_path).name}.new"), str(tmp_path)]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"session":"other"}'])
def test_a_damaged_or_foreign_file_counts_and_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path_of(tmp_path).write_bytes(content)
    assert "no receipt that can be read" in ReceiptFolder(tmp_path).begin(BEGUN)
    assert path_of(tmp_path).read_bytes() == content


@pytest.mark.parametrize("kind", ["folder", "dangling link", "pipe"])
def test_whatever_has_the_name_counts(tmp_path: Path, kind: str) -> None:
    path = path_of(tmp_path)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "elsewhere")
    assert "exists" in ReceiptFolder(tmp_path).begin(BEGUN)
    assert not (tmp_path / "elsewhere").exists()


def test_an_outcome_does_not_overwrite_what_somebody_else_put_there(tmp_path: Path) -> None:
    folder = ReceiptFolder(tmp_path)
    folder.begin(BEGUN)
    path_of(tmp_path).write_bytes(b"mine")
    with pytest.raises(ReceiptError, match="left as it is"):
        folder.finish(BEGUN, DONE)
    assert path_of(tmp_path).read_bytes() == b"mine"


def test_an_outcome_is_not_written_where_its_beginning_is_gone(tmp_path: Path) -> None:
    folder = ReceiptFolder(tmp_path)
    folder.begin(BEGUN)
    path_of(tmp_path).unlink()
    with pytest.raises(ReceiptError, match="No such file"):
        folder.finish(BEGUN, DONE)
    assert names(tmp_path) == set()


def test_what_a_crash_left_half_written_does_not_stop_the_outcome(tmp_path: Path) -> None:
    folder = ReceiptFolder(tmp_path)
    folder.begin(BEGUN)
    (tmp_path / f".{path_of(tmp_path).name}.new").write_bytes(b"half")
    folder.finish(BEGUN, DONE)
    assert read_receipt(path_of(tmp_path).read_bytes()) == DONE


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ReceiptError, match=str(tmp_path / "run")):
        ReceiptFolder(tmp_path / "run" / "receipts").begin(BEGUN)


def test_old_receipts_give_way_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("not ours")
    (tmp_path / "reset-9-0123456789abcdef.json").mkdir()
    folder = ReceiptFolder(tmp_path, kept=4)
    for attempt in range(1, 10):
        made = order(attempt=attempt)
        assert folder.begin(made.receipt(RepairResult.DONE, time=NOW)) == ""
        os.utime(path_of(tmp_path, made), ns=(attempt, attempt))
    kept = {path_of(tmp_path, order(attempt=attempt)).name for attempt in range(6, 10)}
    assert names(tmp_path) == kept | {"notes.json", "reset-9-0123456789abcdef.json"}


def test_what_cannot_be_tidied_up_does_not_stop_a_repair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(1, "Operation not permitted", str(self))

    folder = ReceiptFolder(tmp_path, kept=1)
    folder.begin(order(attempt=1).receipt(RepairResult.DONE, time=NOW))
    monkeypatch.setattr(Path, "unlink", refused)
    assert folder.begin(order(attempt=2).receipt(RepairResult.DONE, time=NOW)) == ""


def test_a_clock_that_was_set_back_does_not_cost_the_newest_receipt(tmp_path: Path) -> None:
    folder = ReceiptFolder(tmp_path, kept=2)
    for attempt in (1, 2):
        made = order(attempt=attempt)
        folder.begin(made.receipt(RepairResult.DONE, time=NOW))
        os.utime(path_of(tmp_path, made), (2**32, 2**32))
    folder.begin(order(attempt=3).receipt(RepairResult.DONE, time=NOW))
    assert path_of(tmp_path, order(attempt=3)).exists()


def test_steps_and_sessions_have_receipts_of_their_own(tmp_path: Path) -> None:
    folder = ReceiptFolder(tmp_path)
    for step in Step:
        assert folder.begin(order(step).receipt(RepairResult.BEGUN, time=NOW)) == ""
    assert len(names(tmp_path)) == len(Step)


def test_of_many_who_claim_at_once_one_may_act(tmp_path: Path) -> None:
    folder = ReceiptFolder(tmp_path)
    start = threading.Barrier(8)
    claims: list[str] = []

    def claim() -> None:
        start.wait()
        claims.append(folder.begin(BEGUN))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claims) == 8
    assert claims.count("") == 1


def test_an_attempt_that_is_late_gives_way_to_the_later_one(tmp_path: Path) -> None:
    folder = ReceiptFolder(tmp_path)
    later = order(attempt=2)
    assert folder.begin(later.receipt(RepairResult.BEGUN, time=NOW)) == ""
    assert "of a later attempt" in folder.begin(BEGUN)
    assert names(tmp_path) == {path_of(tmp_path, later).name}


def test_a_later_attempt_waits_for_no_earlier_one_and_does_not_act_beside_it(tmp_path: Path) -> None:
    folder = ReceiptFolder(tmp_path)
    later = order(attempt=2).receipt(RepairResult.BEGUN, time=NOW)
    assert folder.begin(BEGUN) == ""
    assert "an earlier attempt is not over" in folder.begin(later)
    folder.finish(BEGUN, DONE)
    assert folder.begin(later) == ""


def test_other_sessions_and_other_steps_do_not_count(tmp_path: Path) -> None:
    folder = ReceiptFolder(tmp_path)
    for other in (replace(order(attempt=9), session="other"), order(Step.REBOOT, attempt=9)):
        assert folder.begin(other.receipt(RepairResult.BEGUN, time=NOW)) == ""
    assert folder.begin(BEGUN) == ""
