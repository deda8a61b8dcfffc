"""Sickbay on the lab: an agent for each node and a controller, as real processes under their real accounts."""

from __future__ import annotations

import json
import os
import re
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from simulation.machine import h100_machine, save
from tests.lab import manifests
from tests.lab.api import Object
from tests.lab.images import PROJECT
from tests.lab.lab import Lab
from tests.lab.node import Node
from tests.lab.processes import Child, wait_until

XID_79 = "NVRM: Xid (PCI:{address}): 79, pid=1234, name=python, GPU has fallen off the bus."
AUTO_POLICY = """
apiVersion: sickbay.dev/v1alpha1
kind: Policy
metadata: {name: lab}
rules:
- name: fatal
  match: {severities: [Fatal]}
  mode: Auto
- name: rest
  mode: Observe
budgets: {maxFenced: 50%, startRate: {perMinute: 6000, burst: 1000}}
healthyDwell: 2s
"""

BRISK_RENEWAL = ("--renew-interval", "1s")
SHORT_LEASE = ("--lease-duration", "4s", "--renew-deadline", "3s", "--retry-period", "500ms")
"""So that a successor of a killed controller need not wait for 15 s."""

_PORTS: dict[str, dict[str, int]] = {}


@dataclass
class Agent:
    """The agent of one node, and what it looks at."""

    child: Child
    node: str
    port: int
    machine: Path
    kernel_log: Path
    receipts: Path


class Rig:
    """Starts and stops Sickbay's processes on a lab whose manifests are applied."""

    def __init__(
        self,
        lab: Lab,
        *,
        policy: str = AUTO_POLICY,
        brisk: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`brisk`: renew reports and the Lease every second or so, that tests need not wait; else the defaults.

        `environment` is what all processes get besides this one's.
        """
        self._brisk = brisk
        self._environment = {**os.environ, **(environment or {})}
        self.lab = lab
        self.folder = lab.folder / "sickbay"
        self.folder.mkdir(exist_ok=True)
        self.policy = self.folder / "policy.yaml"
        self.policy.write_text(policy)
        self.agents: dict[str, Agent] = {}
        self.controller: Child | None = None
        self.controller_port = 0

    def start_agent(
        self, node: Node, *flags: str, kernel_log: Path | None = None, machine: Path | None = None
    ) -> Agent:
        """Start a node's agent under a node-bound token; its devices are simulated, its kernel log is a file.

        `machine` is the devices' file, such as the one that the node's device plugin serves.
        """
        name = node.name
        machine = machine or self.folder / f"{name}.machine.json"
        if not machine.exists():
            save(machine, h100_machine(name))
        log = kernel_log or self.folder / f"{name}.kmsg"
        if kernel_log is None:
            log.touch()
        port = self._port(f"agent-{name}")
        receipts = self.folder / f"{name}.receipts"
        worker = f"{sys.executable} -m simulation.worker --machine {machine}"
        arguments = (
            ("--node", name),
            ("--kubeconfig", self.lab.service_account_kubeconfig(*manifests.AGENT, bound_node=name)),
            ("--kernel-log", log),
            ("--boot-id", node.boot_id_path),
            ("--state-file", self.state_file(name)),
            ("--listen", f"127.0.0.1:{port}"),
            ("--worker-command", worker),
            ("--pod-resources-socket", node.kubelet_dir / "pod-resources" / "kubelet.sock"),
            ("--device-plugin-folder", node.kubelet_dir / "device-plugins"),
            ("--pods-socket", node.kubelet_dir / "pods-api" / "pods-api.sock"),
            ("--kubelet-address", f"127.0.0.1:{node.port}"),
            ("--receipts", receipts),
            *((BRISK_RENEWAL,) if self._brisk else ()),
        )
        words = [str(word) for pair in arguments for word in pair]
        child = self._start(f"agent-{name}", ["agent", *words, *flags])
        self.agents[name] = Agent(child, name, port, machine, log, receipts)
        return self.agents[name]

    def state_file(self, node: str) -> Path:
        """What the node's agent remembers."""
        return self.folder / f"{node}.state.json"

    def start_controller(self, *flags: str, name: str = "controller") -> Child:
        """Start a controller under its own token; it is the one that is looked at from now on."""
        self.controller_port = self._port(name)
        kubeconfig = self.lab.service_account_kubeconfig(*manifests.CONTROLLER)
        words = ["--kubeconfig", str(kubeconfig), "--policy", str(self.policy)]
        listen = ["--listen", f"127.0.0.1:{self.controller_port}"]
        self.controller = self._start(
            name, ["controller", *words, *listen, *(SHORT_LEASE if self._brisk else ()), *flags]
        )
        return self.controller

    def _port(self, of: str) -> int:
        """One port for each process of a lab, however often it is started anew: a lab has forty."""
        ports = _PORTS.setdefault(self.lab.lab_id, {})
        if of not in ports:
            ports[of] = self.lab.port()
        return ports[of]

    def _start(self, name: str, words: list[str]) -> Child:
        command = [sys.executable, "-m", "sickbay", *words]
        return self.lab.processes.start(name, command, cwd=PROJECT, env=self._environment)

    def stop(self) -> None:
        """End all of Sickbay's processes."""
        for agent in self.agents.values():
            agent.child.stop()
        if self.controller is not None:
            self.controller.stop()

    def wait_watching(self, *, deadline: float = 40) -> None:
        """Wait until each agent's report is renewed in front of a leading controller, so that a fault would act."""
        wait_until(
            lambda: self.metric("sickbay_nodes", state="healthy") == len(self.agents),
            deadline,
            "the controller to see fresh reports",
            logs=self.logs,
            ignoring=(OSError,),
        )

    @property
    def logs(self) -> list[Path]:
        """The logs of all processes."""
        children = [agent.child for agent in self.agents.values()]
        return [child.log for child in [*children, *([self.controller] if self.controller else [])]]

    def kernel_says(self, node: str, message: str) -> None:
        """Append a line to the node's kernel log."""
        with self.agents[node].kernel_log.open("a", encoding="utf-8") as log:
            log.write(f"{message}\n")

    def lose_gpu(self, node: str, *, address: str = "0000:3b:00") -> None:
        """The driver says that this node's GPU has fallen off the bus."""
        self.kernel_says(node, XID_79.format(address=address))

    def report(self, node: str) -> Object:
        """The node's report."""
        return self.lab.api.get(f"{manifests.REPORTS}/{node}")

    def sessions(self, node: str) -> list[Object]:
        """The node's sessions."""
        found = self.lab.api.items(manifests.SESSIONS)
        return [session for session in found if session["spec"]["nodeName"] == node]

    def node(self, name: str) -> Object:
        """The Node."""
        return self.lab.api.get(f"/api/v1/nodes/{name}")

    def metrics_page(self, port: int) -> str:
        """A whole metrics page. Raises OSError."""
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def metric(self, name: str, *, port: int | None = None, **labels: str) -> float:
        """The sum of a metric's samples with these labels, by default the controller's. Raises OSError."""
        return sum_of(self.metrics_page(port or self.controller_port), name, labels)


_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:]\w*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")


def sum_of(page: str, name: str, labels: dict[str, str]) -> float:
    """The sum of the samples of a metrics page that have this name and these labels."""
    total = 0.0
    for line in page.splitlines():
        found = _SAMPLE.match(line)
        if found is None or found["name"] != name:
            continue
        have = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', found["labels"] or ""))
        if all(have.get(key) == value for key, value in labels.items()):
            total += float(found["value"])
    return total


def as_json(text: str) -> Object:
    """Decode kubectl's JSON."""
    decoded: Object = json.loads(text)
    return decoded
