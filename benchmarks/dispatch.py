"""What watching a node's pods costs, and how soon it is told: `python -m benchmarks.dispatch`.

A real kubelet, the simulated device plugin and the real agent. Pods that hold a GPU for a moment come and go; the
agent's CPU is compared with a time in which nothing happens, at one scrape every 15 s. Before that pods come at the
same rate, one by one: from the moment that a watch at the same socket of the kubelet has one until the agent's page
counts it.
"""

from __future__ import annotations

import argparse
import queue
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.figures import line, percentiles, usage_of
from runtime.kubelet_pods import EventType
from runtime.kubelet_rpc import PodsClient
from runtime.unix_rpc import RpcError
from tests.lab import binaries, images, manifests
from tests.lab.api import ApiError, Object
from tests.lab.gpu_node import GPU, GpuNode
from tests.lab.lab import Lab
from tests.lab.processes import children_of, wait_until
from tests.lab.rig import Rig, sum_of

RATE = 5.0
CPU_TARGET_PERCENT = 2.0
TARGETS_MS = {"p99": 100.0}
SCRAPE_SECONDS = 15.0
POLL_SECONDS = 0.005
RESOURCES = (GPU, "nvidia.com/mig-1g.10gb", "nvidia.com/mig-2g.20gb")
"""Of each there are 8. The kubelet holds a device for a while after its pod, so 8 are too few for the rate."""
ADMITTED = re.compile(
    r'^accelerator_dispatch_stage_duration_seconds_count{.*stage="admitted"} (\S+)$', re.MULTILINE
)


class Arrivals:
    """When each pod of a node was first told by the kubelet, in perf_counter seconds."""

    def __init__(self, socket: Path) -> None:
        self.first: queue.SimpleQueue[tuple[str, float]] = queue.SimpleQueue()
        self._client = PodsClient(socket)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        known: set[str] = set()
        try:
            for event in self._client.watch():
                arrived = time.perf_counter()
                if event.pod is None or event.type is EventType.DELETED or event.pod.metadata.uid in known:
                    continue
                known.add(event.pod.metadata.uid)
                self.first.put((event.pod.metadata.name, arrived))
        except RpcError as error:
            # The kubelet ends with the lab; who waits for a pod then is told by the queue's time-out.
            print(f"the watch has ended: {error}", file=sys.stderr)

    def wait(self, name: str) -> float:
        """Raises queue.Empty."""
        while True:
            found, arrived = self.first.get(timeout=30)
            if found == name:
                return arrived


def pod(number: int, node: str, *, prefix: str) -> Object:
    """A pod that holds a device for a moment."""
    name = f"{prefix}-{number}"
    made = images.busybox_pod(name, command=["sleep", "0.1"], nodeName=node, restartPolicy="Never")
    made["spec"]["containers"][0]["resources"] = {"limits": {RESOURCES[number % len(RESOURCES)]: 1}}
    return made


def churn(lab: Lab, node: str, seconds: float, *, prefix: str) -> tuple[int, float]:
    """Create pods at the rate and delete those that have ended; how many, and how many seconds it really took."""
    pods = "/api/v1/namespaces/default/pods"
    begun = time.monotonic()
    created: list[str] = []
    pace = threading.Event()
    while (elapsed := time.monotonic() - begun) < seconds:
        if len(created) < elapsed * RATE:
            made = pod(len(created), node, prefix=prefix)
            lab.api.create(pods, made)
            created.append(made["metadata"]["name"])
            if len(created) > 4 * RATE:
                _delete(lab, created[len(created) - 1 - int(4 * RATE)])
            continue
        pace.wait(0.01)
    took = time.monotonic() - begun
    for name in created[-int(4 * RATE) - 1 :]:
        _delete(lab, name)
    return len(created), took


def _delete(lab: Lab, name: str) -> None:
    options = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
    try:
        lab.api.delete(f"/api/v1/namespaces/default/pods/{name}", options)
    except ApiError as error:
        if error.status != 404:
            raise


def start_plugin(gpus: GpuNode, resource: str) -> None:
    """Start a plugin that serves the node's devices under this name."""
    where: list[str | Path] = ["--machine", gpus.machine, "--socket-dir", gpus.socket.parent]
    command = [sys.executable, "-m", "simulation.plugin", *where, "--resource", resource]
    gpus.lab.processes.start(f"plugin-{resource.rpartition('/')[2]}", command, cwd=images.PROJECT)


def cpu_during(rig: Rig, node: str, do: Callable[[], object]) -> float:
    """CPU seconds of the agent and its worker meanwhile, which is scraped every 15 s."""
    agent = rig.agents[node]
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(SCRAPE_SECONDS):
            rig.metrics_page(agent.port)

    def used() -> float:
        pids = [agent.child.pid, *children_of(agent.child.pid)]
        return sum(usage_of(pid).cpu_seconds for pid in pids)

    scraper = threading.Thread(target=scrape, daemon=True)
    scraper.start()
    before = used()
    do()
    after = used()
    over.set()
    scraper.join()
    return after - before


def latencies(lab: Lab, rig: Rig, gpus: GpuNode, arrivals: Arrivals, count: int) -> list[float]:
    """Seconds from the kubelet's word of a pod until the agent's page counts it as admitted."""
    node = gpus.node.name
    port = rig.agents[node].port

    def counted() -> float:
        # A few lines of a page that is asked for every few milliseconds: to parse it all would take a core.
        return sum(map(float, ADMITTED.findall(rig.metrics_page(port))))

    figures = []
    pace = threading.Event()
    due = time.monotonic()
    for number in range(count):
        due = max(due + 1 / RATE, time.monotonic())
        pace.wait(due - time.monotonic())
        name = f"one-{number}"
        before = counted()
        lab.api.create("/api/v1/namespaces/default/pods", pod(number, node, prefix="one"))
        arrived = arrivals.wait(name)
        wait_until(lambda: counted() > before, 10, "the pod to be counted", every=POLL_SECONDS)  # noqa: B023
        figures.append(time.perf_counter() - arrived)
        if number >= 4:
            _delete(lab, f"one-{number - 4}")
    return figures


def main() -> int:
    """Measure, print; the exit code is 0 whatever the figures are, 2 where the lab cannot run."""
    parser = argparse.ArgumentParser(prog="benchmarks.dispatch", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of churn, and of quiet before it")
    parser.add_argument("--pods", type=int, default=200, help="that come one by one")
    flags = parser.parse_args()
    if problems := binaries.missing():
        print(f"the lab cannot run here: {'; '.join(problems)}", file=sys.stderr)
        return 2
    with Lab() as lab:
        manifests.apply(lab)
        gpus = GpuNode(lab, lab.add_node("n1", status_frequency=10.0))
        gpus.observer.close()
        rig = Rig(lab, brisk=False)
        rig.start_agent(gpus.node, machine=gpus.machine)
        for resource in RESOURCES:
            start_plugin(gpus, resource)
        wait_until(lambda: gpus.offered() == ("8", "8"), 60, "the devices to be offered", logs=rig.logs)
        arrivals = Arrivals(gpus.node.kubelet_dir / "pods-api" / "pods-api.sock")
        figures = latencies(lab, rig, gpus, arrivals, flags.pods)
        quiet = cpu_during(rig, "n1", lambda: threading.Event().wait(flags.seconds))
        made: list[tuple[int, float]] = []
        busy = cpu_during(rig, "n1", lambda: made.append(churn(lab, "n1", flags.seconds, prefix="churn")))
        page = rig.metrics_page(rig.agents["n1"].port)
        rig.stop()
        gpus.stop_plugins()
    pods, took = made[0]
    outcomes = {
        name: int(sum_of(page, "accelerator_dispatches_total", {"outcome": name}))
        for name in ("Ready", "Ended", "Rejected", "Failed", "Deleted")
    }
    added = (busy / took - quiet / flags.seconds) * 100
    held = sum_of(page, "accelerator_allocation_duration_seconds_sum", {})
    mean = held / max(1, sum_of(page, "accelerator_allocation_duration_seconds_count", {}))
    verdict = "met" if added <= CPU_TARGET_PERCENT else "MISSED"
    print(f"\nthe kubelet's word of a pod -> counted on the agent's page, {len(figures)} pods one by one")
    for name, milliseconds in percentiles(figures).items():
        print(line(name, milliseconds, TARGETS_MS.get(name)))
    print(f"CPU of agent and worker: {quiet / flags.seconds * 100:.2f} % of a core while nothing happens,")
    print(f"  {busy / took * 100:.2f} % with {pods / took:.1f} pods a second ({pods} pods)")
    print(f"  of all: {', '.join(f'{count} {name}' for name, count in outcomes.items())};", end=" ")
    print(f"{mean * 1000:.1f} ms mean allocation")
    print(f"  added  {added:.2f} %   target {CPU_TARGET_PERCENT:g} %: {verdict}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
