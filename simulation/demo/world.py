"""The demo's world: the embedded API, two nodes with simulated GPUs, two agents and a controller as real processes."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from runtime.clock import SystemClock
from simulation.cluster.control_plane import ControlPlane
from simulation.cluster.interface import Object, Store, StoreError
from simulation.cluster.kubelet import Kubelets
from simulation.cluster.kubelet_node import Timings
from simulation.cluster.server import EmbeddedApi
from simulation.demo.host import Host
from simulation.demo.host_files import GPU
from simulation.demo.objects import POLICY, REPORTS, SESSIONS, TEAM, give_work, populate
from simulation.demo.processes import CannotBeginError, Child, DemoError, Processes
from simulation.demo.scenario import NODES

TICK_SECONDS = 0.05
"""From one look at the world to the next. Slept and not waited for on an event: a signal handler that sets the event
its own thread waits on can lock that thread for ever."""
_SOCKET_PATH_LIMIT = 60
"""Characters of our folder's path, so that a unix socket below it stays within its 107."""

_STATUS_SECONDS = 1.0
"""Between a kubelet's looks at its node's status (nodeStatusUpdateFrequency): 10 by default, too long to watch."""


class StoppedError(Exception):
    """Somebody has asked the demo to end."""


class World:
    """Set up by `start`, kept alive by `tick`, taken down by `close`; all three on the main thread."""

    def __init__(self, *, port: int, stopping: Callable[[], bool]) -> None:
        self._stopping = stopping
        self.api = EmbeddedApi(clock=SystemClock(), port=port)
        self.folder = _folder()
        self.processes = Processes(self.folder)
        self._served = False
        self.plane: ControlPlane | None = None
        self.hosts: dict[str, Host] = {}
        self.controller_port = 0
        self._controller: Child | None = None
        self._port = port

    @property
    def store(self) -> Store:
        return self.api.store

    def start(self, tell: Callable[[str], None]) -> None:
        """Bring everything up, until both nodes are watched and their work runs. Raises DemoError, StoppedError."""
        self._serve()
        populate(self.store)
        kubeconfig = self._kubeconfig("sickbay-repair", "system:serviceaccount:sickbay-repair:sickbay-repair")
        for name in NODES:
            self.hosts[name] = Host(
                name, self.folder, kubelets=self._kubelets, processes=self.processes, kubeconfig=kubeconfig
            )
            try:
                self.hosts[name].switch_on()
            except OSError as error:
                raise DemoError(f"{name} cannot be switched on: {error}") from error
        self.until(lambda: len(self.store.list("nodes")) == len(NODES), 10, "the nodes to register")
        tell(f"the embedded Kubernetes API serves on {self.api.url}, with nodes {' and '.join(NODES)}")
        self._start_sickbay()
        tell("two agents and a controller have started, as processes of their own")
        self.until(self._offered, 30, "8 GPUs of each node")
        give_work(self.store)
        self.until(self._works, 30, "the jobs' pods to run")
        tell("a training job and an inference service run on both nodes")
        self.until(self._watched, 40, "a report from each node")

    def tick(self) -> list[str]:
        """Let the hosts do what is asked of them; what they did. Raises DemoError, StoppedError."""
        if self._stopping():
            raise StoppedError
        self._check()
        return [done for host in self.hosts.values() if (done := host.obey())]

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Tick until it is so. Raises DemoError, StoppedError."""
        deadline = time.monotonic() + seconds
        while not condition():
            self.tick()
            if time.monotonic() >= deadline:
                raise DemoError(f"waited {seconds:g} s for {what}\n{self.logs()}")
            time.sleep(TICK_SECONDS)

    def close(self) -> None:
        """End all processes and remove the folder; safe at any moment of `start`."""
        self.processes.stop()
        if self.plane is not None:
            self.plane.stop()
        # What the control plane had started until then.
        self.processes.stop(grace=0)
        for host in self.hosts.values():
            host.close()
        if self._served:
            self.api.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _serve(self) -> None:
        try:
            self.api.start()
        except (OSError, OverflowError) as error:
            number = getattr(error, "errno", None)
            why = os.strerror(number) if number else str(error)
            raise CannotBeginError(f"--port {self._port} on 127.0.0.1 cannot be had: {why}") from error
        self._served = True
        self.plane = ControlPlane(
            self.store,
            clock=SystemClock(),
            timings=Timings(status=_STATUS_SECONDS),
            collected=(REPORTS, SESSIONS),
        )
        self.plane.start()

    def _kubelets(self) -> Kubelets:
        assert self.plane is not None, "the nodes come after the control plane"
        return self.plane.kubelets

    def _start_sickbay(self) -> None:
        ports = free_ports(len(NODES) + 1)
        for host, port in zip(self.hosts.values(), ports, strict=False):
            uid = str(self.store.get("nodes", host.name)["metadata"]["uid"])
            host.start_agent(self._kubeconfig(f"agent-{host.name}", agent_token(host.name, uid)), port)
        self.controller_port = ports[-1]
        policy = self.folder / "policy.yaml"
        policy.write_text(POLICY)
        words = {
            "--kubeconfig": self._kubeconfig(
                "controller", "system:serviceaccount:sickbay-system:sickbay-controller"
            ),
            "--policy": policy,
            "--listen": f"127.0.0.1:{self.controller_port}",
        }
        flags = [str(word) for pair in words.items() for word in pair]
        self._controller = self.processes.start("controller", "sickbay", ["controller", *flags])

    def _kubeconfig(self, name: str, token: str) -> Path:
        path = self.folder / f"{name}.kubeconfig"
        path.write_text(json.dumps(kubeconfig(self.api.url, token)))
        return path

    def _offered(self) -> bool:
        return all(node["status"].get("allocatable", {}).get(GPU) == "8" for node in self.store.list("nodes"))

    def _works(self) -> bool:
        pods = self.store.list("pods", namespace=TEAM)
        return len(pods) == 4 and all(pod["status"].get("phase") == "Running" for pod in pods)

    def _watched(self) -> bool:
        """Each node's report is there and was renewed in front of the controller, so that a fault would act."""
        return all(int(_report(self.store, name).get("sequence", 0)) >= 2 for name in NODES)

    def _check(self) -> None:
        if self._controller is not None and self._controller.ended:
            raise DemoError(f"the controller ended\n{self._controller.tail()}")

    def logs(self) -> str:
        return "\n".join(child.tail() for child in self.processes.children)


def _report(store: Store, name: str) -> Object:
    try:
        status: Object = store.get(REPORTS, name).get("status", {})
    except StoreError:
        return {}
    return status


def kubeconfig(server: str, token: str) -> Object:
    """How a process of ours reaches the embedded API, which takes a bearer token for its user's name."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "demo", "cluster": {"server": server}}],
        "users": [{"name": "demo", "user": {"token": token}}],
        "contexts": [{"name": "demo", "context": {"cluster": "demo", "user": "demo"}}],
        "current-context": "demo",
    }


def agent_token(node: str, uid: str) -> str:
    """The token of an agent that is bound to its node, as `kubectl create token --bound-object-kind Node` makes it;
    unsigned, for the embedded API proves nobody."""
    claims = {
        "kubernetes.io": {"node": {"name": node, "uid": uid}},
        "sub": "system:serviceaccount:sickbay-agent:sickbay-agent",
    }
    parts = [{"alg": "none"}, claims]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, "unsigned"])


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody has just now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _folder() -> Path:
    folder = tempfile.mkdtemp(prefix="sickbay-demo-")
    if len(folder) > _SOCKET_PATH_LIMIT:
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix="sickbay-demo-", dir="/tmp")
    return Path(folder)
