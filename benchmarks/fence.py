"""From a kernel line to a fenced node: `python -m benchmarks.fence`.

Real agent and controller processes under their own accounts, a real API server with TLS and the admission
policies, etcd with fsync, all on one machine (`tests.lab.control_plane` says what that asks of the API server's
memory). One injection writes an Xid line to the kernel log (/dev/kmsg in a drill, else a FIFO) and ends when a
watch, such as a scheduler has, delivers `spec.unschedulable`. Then the node is uncordoned as a person would, and
another GPU fails; when all eight have, the node boots, and all are well again.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from benchmarks.figures import Usage, line, percentiles, usage_of
from runtime.api_errors import ConnectionFailed
from runtime.kubernetes import Session
from simulation.machine import load
from tests.lab import binaries, manifests
from tests.lab.api import ApiError
from tests.lab.images import PROJECT
from tests.lab.kernel_log import KMSG, next_sequence, write
from tests.lab.lab import Lab
from tests.lab.node import Node
from tests.lab.processes import children_of, wait_until
from tests.lab.rig import Rig

TARGETS_MS = {"p50": 25.0, "p99": 50.0}
SIMULATED_REPORTS = 5000
RENEWALS_PER_SECOND = 167
CODES = (79, 119)
IDLE_SECONDS = 0.2
QUIET_SECONDS = 30.0
POLICY = """
apiVersion: sickbay.dev/v1alpha1
kind: Policy
metadata: {name: bench}
rules: [{name: all, mode: Auto}]
budgets: {maxFenced: 100%, startRate: {perMinute: 1000000, burst: 1000000}}
healthyDwell: 10m
"""
SOURCES = ("nvml", "kernel-log")


class Watcher:
    """A watch on one Node: (arrival in perf_counter seconds, unschedulable) of every event, and its reset."""

    def __init__(self, session: Session, node: str) -> None:
        self._session = session
        self._path = f"/api/v1/nodes/{node}"
        self.events: queue.SimpleQueue[tuple[float, bool]] = queue.SimpleQueue()
        node_object = msgspec.json.decode(session.get(self._path).body)
        stream = session.clone().watch(
            "/api/v1/nodes",
            query={"fieldSelector": f"metadata.name={node}"},
            resource_version=node_object["metadata"]["resourceVersion"],
            timeout_seconds=3600,
            inactivity_seconds=3600,
        )
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def _read(self, stream: Iterator[bytes]) -> None:
        # The stream breaks when the lab ends: who still waits then is told by the queue's time-out.
        with contextlib.suppress(ConnectionFailed):
            for raw in stream:
                arrived = time.perf_counter()
                event = msgspec.json.decode(raw)
                self.events.put((arrived, bool(event["object"]["spec"].get("unschedulable"))))

    def wait(self, *, unschedulable: bool, seconds: float = 60) -> float:
        """When the node was first seen so. Raises queue.Empty."""
        while True:
            arrived, seen = self.events.get(timeout=seconds)
            if seen is unschedulable:
                return arrived

    def uncordon(self) -> None:
        """As `kubectl uncordon` does."""
        self._session.strategic_merge_patch(self._path, b'{"spec":{"unschedulable":null}}')


class Injector:
    """Writes kernel lines for one agent, which it replaces when every GPU has failed."""

    def __init__(self, rig: Rig, node: Node, fifo: Path | None) -> None:
        self._rig = rig
        self._node = node
        self._fifo = fifo
        self._left: list[str] = []
        self._codes = itertools.cycle(CODES)

    def next_line(self) -> bytes:
        """The next fault's line; a new agent where the last one has seen all devices fail."""
        if not self._left:
            self._start_clean()
        return self._left.pop().encode()

    def write(self, text: bytes) -> None:
        """One write; /dev/kmsg limits lines per open file, so it is opened for each."""
        write(text, self._fifo or KMSG)

    def _start_clean(self) -> None:
        """Boot the node anew, which ends all faults, and start its agent."""
        rig, node = self._rig, self._node
        if node.name in rig.agents:
            rig.agents[node.name].child.stop()
            node.reboot(rig.lab.api)
        flags = ["--drill", "--kernel-log-since", str(next_sequence())] if self._fifo is None else []
        agent = rig.start_agent(node, *flags, kernel_log=self._fifo or KMSG)
        wait_until(
            lambda: _ready(rig, node.name),
            60,
            "the new agent to be known as healthy",
            logs=rig.logs,
            ignoring=(ApiError, OSError),
        )
        code = next(self._codes)
        self._left = [
            f"NVRM: Xid (PCI:{device.pci_address.rpartition('.')[0]}): {code}, pid=1234, name=python, bench\n"
            for device in load(agent.machine).devices
        ]


def _ready(rig: Rig, node: str) -> bool:
    status = rig.report(node).get("status", {})
    live = {one["name"]: one["state"] for one in status.get("sources", []) if one["name"] in SOURCES}
    healthy = rig.metric("sickbay_nodes", state="healthy") >= 1
    return not status.get("faults") and list(live.values()) == ["Live"] * len(SOURCES) and healthy


def measure(
    rig: Rig, injector: Injector, watcher: Watcher, count: int, progress: Callable[[int], None]
) -> list[float]:
    """Seconds from the write of the kernel line to the watch, for `count` injections."""
    figures = []
    idle = threading.Event()
    for number in range(count):
        text = injector.next_line()
        begun = time.perf_counter()
        injector.write(text)
        figures.append(watcher.wait(unschedulable=True) - begun)
        watcher.uncordon()
        watcher.wait(unschedulable=False)
        wait_until(lambda: _at_rest(rig), 30, "the session to end", every=0.01, logs=rig.logs)
        progress(number + 1)
        # The writes that end a session would share the disk with the next one's: idle means idle.
        idle.wait(IDLE_SECONDS)
    return figures


def _at_rest(rig: Rig) -> bool:
    """Whether the last session has ended and left nothing on the node."""
    annotations = rig.node("n1")["metadata"].get("annotations", {})
    return "sickbay.dev/session" not in annotations and not _open_sessions(rig)


def _open_sessions(rig: Rig) -> bool:
    sessions = rig.sessions("n1")
    return any(
        one.get("status", {}).get("phase", "Pending") not in ("Cancelled", "Released") for one in sessions
    )


@contextmanager
def renewals(lab: Lab) -> Iterator[Callable[[], str]]:
    """Simulated reports that are renewed as those of 5,000 nodes are, from a process of their own; yields what tells
    how many a second it came to."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.renewals",
        str(lab.kubeconfig),
        str(SIMULATED_REPORTS),
        str(RENEWALS_PER_SECOND),
    ]
    child = lab.processes.start("renewals", command, cwd=PROJECT)
    try:
        wait_until(lambda: "ready" in child.log.read_text(), 120, "the reports to exist", logs=[child.log])
        yield lambda: _achieved(child.log)
    finally:
        child.stop()


def _achieved(log: Path) -> str:
    """From the newest line of the renewals' account."""
    words = [line.split() for line in log.read_text().splitlines() if line.startswith("renewed ")][-1]
    return f"{int(words[1]) / float(words[5]):.0f} renewals/s in the mean, {words[3]} failed"


def _run(lab: Lab, count: int, fifo: bool, loaded: bool) -> list[float]:
    manifests.apply(lab)
    rig = Rig(lab, policy=POLICY, brisk=False)
    node = lab.add_node("n1", status_frequency=10.0)
    pipe = rig.folder / "kmsg.fifo" if fifo else None
    if pipe is not None:
        os.mkfifo(pipe)
    rig.start_controller()
    session = Session.from_kubeconfig(lab.kubeconfig, user_agent="bench")
    injector = Injector(rig, node, pipe)
    injector.next_line()
    watcher = Watcher(session, "n1")
    show = _progress(count)
    figures = measure(rig, injector, watcher, count, show)
    title = f"under {RENEWALS_PER_SECOND} renewals/s" if loaded else "idle"
    log = "a FIFO" if fifo else "/dev/kmsg"
    print(f"\nkernel line -> spec.unschedulable at a watch, {count} injections, {title}, by {log}")
    for name, milliseconds in percentiles(figures).items():
        target = TARGETS_MS.get(name) if not loaded else None
        print(line(name, milliseconds, target))
    before = _usages(rig)
    threading.Event().wait(QUIET_SECONDS)
    after = _usages(rig)
    for name, usage in after.items():
        cpu = usage.cpu_seconds - before[name].cpu_seconds
        print(
            f"  {name:<12} PSS {usage.pss_mib:6.1f} MiB   CPU {cpu:5.2f} s in {QUIET_SECONDS:g} s without a fault"
        )
    rig.stop()
    return figures


def _usages(rig: Rig) -> dict[str, Usage]:
    assert rig.controller is not None
    agent = rig.agents["n1"].child.pid
    found = {"agent": usage_of(agent), "controller": usage_of(rig.controller.pid)}
    for worker in children_of(agent):
        found["worker"] = usage_of(worker)
    return found


def _progress(count: int) -> Callable[[int], None]:
    def show(done: int) -> None:
        if sys.stderr.isatty() or done % 100 == 0:
            print(f"\r{done}/{count}", end="", file=sys.stderr, flush=True)

    return show


def main() -> int:
    """Measure, print; the exit code is 0 whatever the figures are, 2 where the lab cannot run."""
    parser = argparse.ArgumentParser(prog="benchmarks.fence", description=__doc__)
    parser.add_argument("--injections", type=int, default=1000)
    parser.add_argument("--fifo", action="store_true", help="a FIFO in the place of /dev/kmsg")
    parser.add_argument("--only", choices=("idle", "loaded"))
    flags = parser.parse_args()
    if problems := binaries.missing():
        print(f"the lab cannot run here: {'; '.join(problems)}", file=sys.stderr)
        return 2
    for loaded in (False, True):
        if flags.only and (flags.only == "loaded") is not loaded:
            continue
        with Lab(fsync=True) as lab:
            if loaded:
                manifests.apply(lab)
                with renewals(lab) as achieved:
                    _run(lab, flags.injections, flags.fifo, loaded)
                    print(f"  of {RENEWALS_PER_SECOND} renewals/s asked for: {achieved()}")
            else:
                _run(lab, flags.injections, flags.fifo, loaded)
    return 0


if __name__ == "__main__":
    sys.exit(main())
