"""Children of the lab end with it, and waiting fails with words that help."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.lab.processes import LabError, Processes, WaitTimeoutError, children_of, start_time, wait_until

PROJECT = Path(__file__).resolve().parents[2]


def test_waiting_returns_the_value_that_came_true() -> None:
    values = iter([0, "", None, "here"])
    assert wait_until(lambda: next(values), 5, "a value", every=0) == "here"


def test_a_wait_in_vain_names_what_was_waited_for_the_last_value_and_the_log(tmp_path: Path) -> None:
    log = tmp_path / "some.log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    with pytest.raises(WaitTimeoutError) as failed:
        wait_until(list, 0.01, "nodes", logs=[log, tmp_path / "absent.log"])
    text = str(failed.value)
    assert "waited 0.01 s for nodes; last value: []" in text
    assert "line 99" in text
    assert "line 1\n" not in text
    assert "absent.log: No such file or directory" in text


def test_expected_errors_count_as_not_yet_and_others_pass() -> None:
    def refuse() -> bool:
        raise ConnectionError("refused")

    with pytest.raises(WaitTimeoutError, match="last error: ConnectionError: refused"):
        wait_until(refuse, 0.01, "an answer", ignoring=(ConnectionError,))
    with pytest.raises(ConnectionError):
        wait_until(refuse, 0.01, "an answer")


def test_a_child_that_ended_is_reported_with_its_status_and_log(tmp_path: Path) -> None:
    child = Processes(tmp_path).start("short", ["sh", "-c", "echo broken >&2; exit 3"])
    child.popen.wait(10)
    with pytest.raises(LabError, match=r"(?s)short ended with status 3.*broken"):
        child.check()


def test_a_name_is_free_again_only_when_its_child_has_ended(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    first = processes.start("one", ["sleep", "60"])
    with pytest.raises(LabError, match=f"one is already running \\(pid {first.pid}\\)"):
        processes.start("one", ["sleep", "60"])
    first.kill()
    second = processes.start("one", ["sleep", "60"])
    assert second.alive()
    processes.kill_all()
    assert not second.alive()


def test_long_lived_children_are_refused_outside_the_main_thread(tmp_path: Path) -> None:
    errors: list[LabError] = []

    def start() -> None:
        try:
            Processes(tmp_path).start("one", ["sleep", "60"])
        except LabError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])


PARENT = """
import pathlib, sys
from tests.lab.processes import Processes
Processes(pathlib.Path(sys.argv[1])).start("child", ["sleep", "60"])
print("started", flush=True)
sys.stdin.read()
"""


def test_a_child_dies_with_its_killed_parent(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(argv, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"started\n"
        (child,) = children_of(parent.pid)
        assert (tmp_path / "pids").read_text() == f"{child} {start_time(child)}\n"
        parent.kill()
    wait_until(lambda: start_time(child) is None, 5, "the child's end")
