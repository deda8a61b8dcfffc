"""Each scenario from beginning to end, and every way in which somebody may end it before."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import urllib.request

import pytest

from simulation.demo import scenario
from simulation.demo.flags import DEFAULT_SCENARIO
from tests.demo.command import demo
from tests.lab.processes import wait_until

pytestmark = [pytest.mark.demo, pytest.mark.timeout(150)]

SECONDS = 60.0


@pytest.mark.parametrize("name", scenario.names())
def test_a_scenario_ends_with_a_healed_and_schedulable_node_within_a_minute(name: str) -> None:
    # Without a terminal it is plain and ends by itself, so the default one needs no flag at all.
    flags = () if name == DEFAULT_SCENARIO else ("--plain", "--exit", "--scenario", name)
    with demo(*flags) as run:
        assert run.ends(within=SECONDS) == 0, run.text
        told = scenario.load(name)
        assert re.search(
            rf"^{told.node} is healed by {told.healed_by} and schedulable again", run.text, re.MULTILINE
        )
        assert f"Kubernetes: {told.node} is Ready,SchedulingDisabled" in run.text
        last = run.text.rstrip().splitlines()[-3:]
        assert re.match(
            rf"  {told.node} +Ready +8 of 8 GPUs healthy, 8 offered; no fault; .*inference", last[0]
        )
        assert last[2] == "  budgets: disrupted 0 of 1, fenced 0 of 1"
        assert "\x1b" not in run.text
        run.leaves_nothing()


@pytest.mark.parametrize(
    "moment",
    ["Starting two nodes", "the embedded Kubernetes API serves", "Drain begins", "goes down for a reboot"],
)
def test_ctrl_c_at_any_moment_leaves_nothing_behind(moment: str) -> None:
    with demo("--plain", "--exit") as run:
        run.await_line(moment)
        run.interrupt()
        assert run.ends(within=10) == 130, run.text
        assert "Traceback" not in run.text
        run.leaves_nothing()


def test_sigterm_is_a_ctrl_c() -> None:
    with demo("--plain", "--exit", "--scenario", "ecc-uncorrectable") as run:
        run.await_line("Reset begins")
        run.interrupt(signal.SIGTERM)
        assert run.ends(within=10) == 130, run.text
        run.leaves_nothing()


def test_who_kills_it_has_killed_its_processes_as_well() -> None:
    with demo("--plain", "--exit") as run:
        run.await_line("Cordon: Done")
        assert len(run.relatives()) >= 7, "two agents with a worker each, two device plugins, a controller"
        run.interrupt(signal.SIGKILL)
        run.ends(within=10)
        wait_until(lambda: not run.relatives(), 5, "its processes to be gone")


def test_on_a_terminal_it_stays_for_the_next_fault_until_ctrl_c() -> None:
    with demo("--plain", "--scenario", "ecc-uncorrectable", terminal=True) as run:
        run.await_line("It stays up for you")
        line = run.await_line("echo 'NVRM: Xid")
        page = re.search(r"http://\S+/metrics", run.await_line("metrics of n1's agent"))
        assert page is not None
        with urllib.request.urlopen(page[0], timeout=5) as answer:
            assert b"accelerator_fault_active" in answer.read()
        seen = run.lines()
        subprocess.run(["/bin/sh", "-c", line], check=True, timeout=10)
        run.await_line("n1's agent reports UncorrectableMemory", after=seen)
        run.await_line("Reset: Done", after=seen)
        run.await_line("Kubernetes: n1 is Ready", after=run.lines())
        run.interrupt()
        assert run.ends(within=10) == 0, run.text
        run.leaves_nothing()


def test_a_terminal_that_is_closed_ends_it() -> None:
    ours, theirs = os.openpty()
    with demo("--plain", "--scenario", "ecc-uncorrectable", output=theirs) as run:
        os.close(theirs)
        said = b""
        while b"It stays up for you" not in said:
            said += os.read(ours, 4096)
        os.close(ours)
        run.ends(within=10)
        run.leaves_nothing()


def test_a_port_that_is_taken_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with demo("--plain", "--port", str(port)) as run:
            assert run.ends(within=20) == 2
            assert (
                f"sickbay demo: --port {port} on 127.0.0.1 cannot be had: Address already in use" in run.text
            )
            assert "Traceback" not in run.text
            run.leaves_nothing()
