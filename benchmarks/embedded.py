"""The embedded Kubernetes API under a large fleet: `python -m benchmarks.embedded`.

A server process is filled with nodes and their reports of eight devices; every agent keeps its connection.
Measured: what the server weighs then, what 5,000 agents' renewals (one in 30 s each) cost it while a controller
watches, and how many requests and watch events a second it can do with one client that does nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import msgspec

from benchmarks import reports
from benchmarks.figures import percentiles, usage_of
from benchmarks.reports import REPORTS

RENEWAL_SECONDS = 30.0
TARGET_CORES = 0.25
TARGET_MIB = 256.0
_JSON = "application/json"
_BLOCK = 1 << 16


class Client:
    """One kept connection: a request's bytes out, its answer's bytes in."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, method: str, path: str, body: object = None, content_type: str = _JSON) -> bytes:
        """The body of the answer. Raises RuntimeError for what is no success."""
        data = b"" if body is None else msgspec.json.encode(body)
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nUser-Agent: bench\r\nContent-Type: {content_type}\r\n"
        self._socket.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        answer = bytearray()
        while (end := answer.find(b"\r\n\r\n")) < 0:
            answer += self._receive()
        length = int(answer[: end + 2].partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
        while len(answer) < end + 4 + length:
            answer += self._receive()
        if answer[9:10] != b"2":
            raise RuntimeError(f"{method} {path}: {bytes(answer[:500])!r}")
        return bytes(answer[end + 4 :])

    def watch(self, path: str) -> Iterator[bytes]:
        """Pieces of a watch, as they come."""
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        self._socket.settimeout(600)
        with contextlib.suppress(OSError):
            while True:
                yield self._receive()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _receive(self) -> bytes:
        block = self._socket.recv(_BLOCK)
        if not block:
            raise ConnectionError("the server closed the connection")
        return block


class Watcher:
    """Counts the events of a watch on the reports."""

    def __init__(self, port: int) -> None:
        self.events = 0
        self._came = threading.Condition()
        self._client = Client(port)
        version = msgspec.json.decode(Client(port).send("GET", f"{REPORTS}?limit=1"))["metadata"][
            "resourceVersion"
        ]
        self._path = f"{REPORTS}?watch=1&allowWatchBookmarks=true&resourceVersion={version}"
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait_for(self, events: int, seconds: float) -> bool:
        """Whether so many came in time."""
        with self._came:
            return self._came.wait_for(lambda: self.events >= events, seconds)

    def close(self) -> None:
        self._client.close()
        self._thread.join(5)

    def _read(self) -> None:
        with contextlib.suppress(ConnectionError):
            for block in self._client.watch(self._path):
                with self._came:
                    self.events += block.count(b'"type":"MODIFIED"')
                    self._came.notify_all()


@contextmanager
def server() -> Iterator[tuple[int, int]]:
    """A server process: its PID and port."""
    command = [sys.executable, "-m", "simulation.cluster", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        yield process.pid, int(first.split()[2].rpartition(":")[2])
    finally:
        process.terminate()
        process.wait(10)


@dataclass(slots=True)
class Agent:
    """What an agent remembers from one renewal to the next."""

    client: Client
    number: int
    version: str
    sequence: int = 0

    def renew(self, client: Client) -> float:
        """One renewal; how long it took in seconds."""
        self.sequence += 1
        body = reports.update(self.number, self.sequence, self.version)
        begun = time.perf_counter()
        answer = client.send("PUT", f"{REPORTS}/{reports.name(self.number)}/status", body)
        took = time.perf_counter() - begun
        self.version = reports.version_of(answer)
        return took


def fill(port: int, nodes: int) -> list[Agent]:
    """Create the nodes and reports, each over the connection that its agent keeps."""
    agents: list[Agent] = []
    for number in range(nodes):
        client = Client(port)
        node = {"metadata": {"name": reports.name(number), "labels": {"pool": "gpu"}}}
        client.send("POST", "/api/v1/nodes", node)
        version = reports.version_of(client.send("POST", REPORTS, reports.new(number)))
        agents.append(Agent(client, number, version))
        agents[-1].renew(client)
    return agents


def renewals(pid: int, port: int, agents: list[Agent], seconds: float) -> None:
    """The fleet as it is when nothing happens, with one watch."""
    watcher = Watcher(port)
    rate = len(agents) / RENEWAL_SECONDS
    before, begun = usage_of(pid).cpu_seconds, time.monotonic()
    took = []
    for sent in range(int(rate * seconds)):
        agent = agents[sent % len(agents)]
        took.append(agent.renew(agent.client))
        ahead = begun + sent / rate - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
    passed = time.monotonic() - begun
    complete = watcher.wait_for(len(took), 10)
    usage = usage_of(pid)
    cores = (usage.cpu_seconds - before) / passed
    latency = percentiles(took)
    print(f"{len(agents)} nodes, {len(took) / passed:.0f} renewals/s for {passed:.0f} s, one watch")
    print(f"  renewal  p50 {latency['p50']:.2f} ms, p99 {latency['p99']:.2f} ms, max {latency['max']:.1f} ms")
    print(f"  watch    {'every event came' if complete else 'EVENTS ARE MISSING'}")
    _against("CPU", cores, "cores", TARGET_CORES)
    _against("memory", usage.pss_mib, "MiB", TARGET_MIB)
    watcher.close()


def throughput(pid: int, port: int, agents: list[Agent], count: int) -> None:
    """As fast as one client asks, and what each request costs the server."""
    client, nodes = Client(port), len(agents)
    used = [usage_of(pid).cpu_seconds]
    begun = time.perf_counter()
    for number in range(count):
        client.send("GET", f"/api/v1/nodes/{reports.name(number % nodes)}")
    reads = count / (time.perf_counter() - begun)
    used.append(usage_of(pid).cpu_seconds)
    watcher = Watcher(port)
    begun = time.perf_counter()
    for number in range(count):
        agents[number % nodes].renew(client)
    writes = count / (time.perf_counter() - begun)
    used.append(usage_of(pid).cpu_seconds)
    watcher.wait_for(count, 10)
    events = watcher.events / (time.perf_counter() - begun)
    begun = time.perf_counter()
    token, pages = "", 0
    while True:
        page = msgspec.json.decode(client.send("GET", f"{REPORTS}?limit=500&continue={token}"))
        pages += 1
        token = page["metadata"].get("continue", "")
        if not token:
            break
    listed = time.perf_counter() - begun
    read_cpu, write_cpu = ((after - before) / count * 1e6 for before, after in pairwise(used))
    print(f"one client, {nodes} nodes")
    print(f"  GET of a node        {reads:8.0f} /s, {read_cpu:.0f} µs of the server's CPU each")
    print(f"  PUT of a report      {writes:8.0f} /s, {write_cpu:.0f} µs of the server's CPU each, watched")
    print(f"  watch events         {events:8.0f} /s")
    print(f"  list of all reports  {listed * 1000:8.0f} ms in {pages} pages, decoded")
    watcher.close()


def _against(name: str, value: float, unit: str, target: float) -> None:
    verdict = "met" if value <= target else "MISSED"
    print(f"  {name:<8} {value:.2f} {unit}   target {target:g} {unit}: {verdict}")


def main() -> int:
    """Measure, print; the exit code is 0 whatever the figures are."""
    parser = argparse.ArgumentParser(prog="benchmarks.embedded", description=__doc__)
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--requests", type=int, default=5000)
    flags = parser.parse_args()
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with server() as (pid, port):
        empty = usage_of(pid).pss_mib
        agents = fill(port, flags.nodes)
        print(
            f"memory: {empty:.0f} MiB empty, {usage_of(pid).pss_mib:.0f} MiB with {flags.nodes} nodes and reports"
        )
        renewals(pid, port, agents, flags.seconds)
        throughput(pid, port, agents, flags.requests)
        for agent in agents:
            agent.client.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
