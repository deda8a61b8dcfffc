"""Nothing of a lab is left behind, however it ends, and labs do not disturb each other."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import binaries, cgroups, images, reaper
from tests.lab.lab import Lab
from tests.lab.mounts import mount, mounts_below
from tests.lab.node import Node
from tests.lab.processes import Child, Processes, children_of, run, start_time, wait_until

STARTED = "Ctrl-C ends it all"
# SIGKILL while a start, which takes about five seconds, brings up etcd and the API server, the controllers,
# containerd, the kubelet; and when all is up and a pod runs.
MOMENTS = (0.3, 1.0, 2.0, 3.5, None)


class OtherLab:
    """`python -m tests.lab --nodes 1` as a process of its own, and what belongs to it."""

    def __init__(self, folder: Path) -> None:
        self._output = folder / "output"
        self._cache = folder / "kubecache"
        program = [sys.executable, "-m", "tests.lab", "--nodes", "1"]
        self.child: Child = Processes(folder).start("lab", program, cwd=images.PROJECT, stdout=self._output)

    def wait_started(self) -> None:
        def started() -> bool:
            self.child.check()
            return STARTED in self._output.read_text()

        wait_until(started, 60, "the other lab to start", logs=[self.child.log])

    def kubectl(self, *arguments: str, input_text: str | None = None) -> str:
        export = "export KUBECONFIG="
        (line,) = [line for line in self._output.read_text().splitlines() if line.startswith(export)]
        options = [f"--kubeconfig={line.removeprefix(export)}", f"--cache-dir={self._cache}"]
        done = run([binaries.find()["kubectl"], *options, *arguments], input_text=input_text)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def folder(self) -> Path | None:
        """Return the lab's folder, known by the lock that its process holds open; None before there is one."""
        for descriptor in Path(f"/proc/{self.child.pid}/fd").iterdir():
            target = descriptor.readlink()
            if target.name == "lock" and target.parent.parent == reaper.PARENT:
                return target.parent
        return None

    def processes(self) -> dict[int, int]:
        """Return the lab's process and every process below it, each with its start time."""
        found: dict[int, int] = {}
        todo = [self.child.pid]
        while todo:
            pid = todo.pop()
            if started := start_time(pid):
                found[pid] = started
            todo += children_of(pid)
        return found


@pytest.fixture
def other(tmp_path: Path) -> Iterator[OtherLab]:
    lab = OtherLab(tmp_path)
    yield lab
    lab.child.stop(30)
    reaper.claim().release()


def alive(processes: dict[int, int]) -> list[int]:
    return [pid for pid, started in processes.items() if start_time(pid) == started]


def traces(folder: Path) -> list[Path]:
    """Return what is left of a lab on the machine: mounts, cgroups, its folder."""
    left = [*mounts_below(folder), *cgroups.find(f"{reaper.CGROUP_PREFIX}{folder.name}-*")]
    return [*left, folder] if folder.exists() else left


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_second_lab_runs_beside_the_first_and_leaves_nothing_when_told_to_end(
    lab: Lab, two_nodes: tuple[Node, Node], other: OtherLab, ending: signal.Signals
) -> None:
    other.wait_started()
    assert other.kubectl("get", "nodes", "-o", "name") == "node/n1\n"
    folder, processes = other.folder(), other.processes()
    assert folder is not None
    assert folder != lab.folder
    assert len(processes) > len(("etcd", "apiserver", "controllers", "scheduler", "containerd", "kubelet"))

    other.child.popen.send_signal(ending)
    assert other.child.popen.wait(30) == 0

    assert alive(processes) == []
    assert traces(folder) == []
    assert {node["metadata"]["name"] for node in lab.api.items("/api/v1/nodes")} >= {"n1", "n2"}
    assert two_nodes[0].execute("echo", "undisturbed") == "undisturbed\n"


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: f"after {moment} s" if moment else "when up")
def test_a_killed_lab_leaves_no_process_and_the_next_start_removes_the_rest(
    other: OtherLab, moment: float | None
) -> None:
    if moment is None:
        other.wait_started()
        other.kubectl("create", "-f", "-", input_text=json.dumps(images.busybox_pod("sleeper")))
        other.kubectl("wait", "pod/sleeper", "--for=condition=Ready", "--timeout=30s")
    else:
        kill_at = time.monotonic() + moment
        wait_until(lambda: time.monotonic() >= kill_at, 2 * moment, "the moment of the kill")
    folder, processes = other.folder(), other.processes()

    other.child.kill()

    wait_until(lambda: not alive(processes), 10, f"the end of all of {processes}")
    next_lab = reaper.claim()
    try:
        assert folder is None or traces(folder) == []
    finally:
        next_lab.release()
    assert traces(next_lab.folder) == []


@pytest.fixture
def dead_lab() -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """What the worst kill could leave: a recorded process in a cgroup of the lab, a mount, a free lock."""
    keeper = reaper.claim()
    folder = reaper.PARENT / "f00d00"
    (folder / "mounted").mkdir(parents=True)
    (folder / "lock").touch()
    mount("tmpfs", folder / "mounted", "tmpfs")
    cgroup = f"{reaper.CGROUP_PREFIX}{folder.name}-n1"
    cgroups.create(cgroup)
    orphan = subprocess.Popen(["sleep", "infinity"])
    for group in cgroups.find(cgroup):
        (group / "pods").mkdir()
    (folder / "pids").write_text(f"{orphan.pid} {start_time(orphan.pid)}\n999999 1\ncut short")
    yield folder, orphan
    orphan.kill()
    orphan.wait()
    keeper.release()


def test_the_reaper_removes_processes_mounts_cgroups_and_folder_of_a_dead_lab(
    dead_lab: tuple[Path, subprocess.Popen[bytes]],
) -> None:
    folder, orphan = dead_lab
    assert len(traces(folder)) > 2
    assert folder.name in reaper.reap_dead()
    assert orphan.wait(10) == -signal.SIGKILL
    assert traces(folder) == []


def test_the_reaper_leaves_a_living_lab_and_a_reused_pid_alone(
    dead_lab: tuple[Path, subprocess.Popen[bytes]],
) -> None:
    folder, orphan = dead_lab
    (folder / "pids").write_text(f"{orphan.pid} 1\n")
    living = reaper.claim()
    try:
        reaper.reap_dead()
        assert living.folder.exists()
        assert orphan.poll() is None
    finally:
        living.release()


def test_a_slot_with_a_port_in_use_is_passed_over() -> None:
    first = reaper.claim()
    try:
        with socket.socket() as squatter:
            squatter.bind(("127.0.0.1", first.first_port + reaper.PORTS_PER_SLOT + 7))
            squatter.listen()
            second = reaper.claim()
            second.release()
    finally:
        first.release()
    assert second.first_port > first.first_port + reaper.PORTS_PER_SLOT
