"""The containers of the demo's nodes run what the repair templates say, and nothing outlives its parent."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from simulation.cluster.programs import SIGKILL_EXIT, Launch
from simulation.demo.containers import EndedProgram, NodeContainers, ProcessProgram, arguments_of
from simulation.demo.host_files import HostFiles
from simulation.demo.objects import TEMPLATES
from simulation.demo.processes import DemoError, Processes, exit_code, when_ended
from tests.lab.processes import wait_until

TOLD = {
    "sickbay.dev/session": "n1-abc",
    "sickbay.dev/step": "Reset",
    "sickbay.dev/attempt": "2",
    "sickbay.dev/node-uid": "u-n1",
    "sickbay.dev/boot-id": "b-1",
    "sickbay.dev/devices": "GPU-1,GPU-2",
    "sickbay.dev/service": "kubelet",
}


def pod_of(template: str) -> dict[str, Any]:
    documents = yaml.safe_load_all(TEMPLATES.read_text())
    found = next(one for one in documents if one and one["metadata"]["name"] == template)
    spec = copy.deepcopy(found["template"]["spec"])
    return {"metadata": {"name": "p", "uid": "u-p", "annotations": TOLD}, "spec": {**spec, "nodeName": "n1"}}


def launch(pod: dict[str, Any], container: str, wake: Any = lambda: None) -> Launch:
    return Launch(node="n1", boot_id="b-1", pod=pod, container=container, init=False, started=0.0, wake=wake)


class Recorder(Processes):
    """Takes note of what would be started."""

    started: list[tuple[str, list[str]]]

    def start(self, name: str, module: str, arguments: Any) -> Any:
        self.started.append((module, list(arguments)))
        return super().start_program(name, ["sleep", "60"])


@pytest.fixture
def processes(tmp_path: Path):
    found = Recorder(tmp_path)
    found.started = []
    yield found
    found.stop(grace=0)


@pytest.fixture
def node(tmp_path: Path, processes: Recorder) -> NodeContainers:
    return NodeContainers(HostFiles("n1", tmp_path / "n1"), processes, kubeconfig="/k")


def test_the_last_look_gets_what_the_job_says_and_a_kubeconfig(
    node: NodeContainers, processes: Recorder
) -> None:
    assert isinstance(node.program(launch(pod_of("reset"), "look")), ProcessProgram)
    ((module, words),) = processes.started
    assert (module, words[:2], words[-2:]) == ("sickbay", ["repair", "check"], ["--kubeconfig", "/k"])
    assert words[2:-2] == [
        "--session=n1-abc",
        "--step=Reset",
        "--attempt=2",
        "--node=n1",
        "--node-uid=u-n1",
        "--boot-id=b-1",
    ]


@pytest.mark.parametrize(
    ("template", "own"),
    [
        ("reset", ["--devices=GPU-1,GPU-2"]),
        ("reboot", []),
        ("restart-service", ["--service=kubelet"]),
    ],
)
def test_a_repair_runs_on_the_simulated_host(
    node: NodeContainers, processes: Recorder, template: str, own: list[str]
) -> None:
    node.program(launch(pod_of(template), "repair"))
    ((module, words),) = processes.started
    assert module == "simulation.repair"
    assert words[: 4 + len(own)] == [
        template,
        "--session=n1-abc",
        "--attempt=2",
        "--boot-id=b-1",
        *own,
    ]
    assert [word for word in words[4 + len(own) :] if word.startswith("--")] == [
        "--machine",
        "--boot-id-path",
        "--boot-request",
        "--service-request",
        "--receipts",
    ]


def test_other_containers_are_what_their_annotations_say(node: NodeContainers, processes: Recorder) -> None:
    pod = {"metadata": {"uid": "u"}, "spec": {"containers": [{"name": "main", "args": ["train"]}]}}
    assert node.program(launch(pod, "main")) is None
    assert processes.started == []


def test_a_variable_that_nobody_sets_stays_as_it_is_written() -> None:
    pod = {
        "metadata": {"uid": "u"},
        "spec": {"containers": [{"name": "c", "args": ["$(A)-$(B)"], "env": [{"name": "A", "value": "1"}]}]},
    }
    assert arguments_of(launch(pod, "c")) == ["1-$(B)"]


def test_a_plugin_that_crashes_does_so_until_its_pod_is_another_one(
    node: NodeContainers, processes: Recorder
) -> None:
    with pytest.raises(DemoError, match="no device plugin runs on n1"):
        node.crash_plugin()
    woken = threading.Event()
    container = {"name": "nvidia-device-plugin"}
    pod = {"metadata": {"uid": "u-1"}, "spec": {"containers": [container]}}
    first = node.program(launch(pod, "nvidia-device-plugin", woken.set))
    assert first is not None and first.poll(0) is None
    node.crash_plugin()
    assert woken.wait(5)
    assert first.poll(0) == SIGKILL_EXIT
    again = node.program(launch(pod, "nvidia-device-plugin"))
    assert isinstance(again, EndedProgram) and again.poll(0) == SIGKILL_EXIT
    other = {"metadata": {"uid": "u-2"}, "spec": {"containers": [container]}}
    assert isinstance(node.program(launch(other, "nvidia-device-plugin")), ProcessProgram)


def test_a_programs_signals_reach_its_process(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    child = processes.start_program(
        "c", ["sh", "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.01; done"]
    )
    program = ProcessProgram(child)
    wait_until(lambda: "up" in child.log.read_text(), 5, "its trap")
    assert (program.poll(0), program.due()) == (None, None)
    program.terminate(0)
    assert child.popen.wait(5) == 5 and program.poll(0) == 5


def test_children_die_with_the_process_that_started_them(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib\n"
        "from simulation.demo.processes import Processes\n"
        "child = Processes(pathlib.Path(sys.argv[1])).start_program('c', ['sleep', '60'])\n"
        "print(child.popen.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    wait_until(lambda: b"sleep" in Path(f"/proc/{child}/cmdline").read_bytes()[:5], 5, "the exec")
    parent.kill()
    parent.communicate()
    wait_until(lambda: not _runs(child), 5, "the child's end")


def test_stop_ends_all_children_also_those_that_ignore_it(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    script = "trap '' TERM; echo up; while :; do sleep 0.01; done"
    stubborn = processes.start_program("stubborn", ["sh", "-c", script])
    gentle = processes.start_program("gentle", ["sleep", "60"])
    told = threading.Event()
    when_ended(stubborn, told.set)
    wait_until(lambda: "up" in stubborn.log.read_text(), 5, "its trap")
    wait_until(lambda: b"sleep" in Path(f"/proc/{gentle.popen.pid}/cmdline").read_bytes()[:5], 5, "the exec")
    processes.stop(grace=0.2)
    assert (exit_code(stubborn), exit_code(gentle)) == (SIGKILL_EXIT, 128 + signal.SIGTERM)
    assert told.wait(5) and processes.children == []


def test_a_program_that_is_not_there_ends_with_its_reason_in_the_log(tmp_path: Path) -> None:
    child = Processes(tmp_path).start_program("c", ["nowhere-to-be-found"])
    assert child.popen.wait(5) != 0
    assert "nowhere-to-be-found" in child.tail() or "No such file" in child.tail()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
