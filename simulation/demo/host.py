"""One simulated node: its files, its kubelet's sockets, the agent on it; and who obeys what repairs ask of the host."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path

from simulation.cluster.kubelet import Kubelets
from simulation.cluster.kubelet_devices import Holding
from simulation.cluster.kubelet_node import NodeShape
from simulation.demo.containers import NodeContainers
from simulation.demo.host_files import HostFiles
from simulation.demo.kubelet_sockets import KubeletSockets
from simulation.demo.objects import OPERAND
from simulation.demo.processes import Child, DemoError, Processes, kill
from simulation.demo.scenario import Scenario, kernel_line, with_fault
from simulation.machine import MachineError, load, update
from simulation.plugin_control import control_path, raise_xid

BOOT_SECONDS = 4.0
"""From the power going off to a kubelet that serves: minutes on a real server."""

AGENT_LIVES = 5.0
"""An agent that ends sooner, in seconds, would only do so again."""


class Host:
    """A node of the demo. Everything but `allocate` and the like is for the main thread, which owns the agent."""

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        kubelets: Callable[[], Kubelets],
        processes: Processes,
        kubeconfig: Path,
    ) -> None:
        self.files = HostFiles(name, folder / name)
        self.name = name
        self.boots = 0
        self.agent_port = 0
        self._kubelets = kubelets
        self._processes = processes
        self._agent_kubeconfig = folder / f"{name}.kubeconfig"
        self._agent: Child | None = None
        self._agent_since = 0.0
        self._up_at: float | None = None
        self.sockets = KubeletSockets(self.files, holdings=self._holdings, changed=self._plugin_spoke)
        self.containers = NodeContainers(self.files, processes, kubeconfig=str(kubeconfig))

    def switch_on(self) -> None:
        """The first boot. Raises DemoError."""
        boot_id = str(uuid.uuid4())
        self.files.build(boot_id)
        self.sockets.start()
        labels = {OPERAND: "true", "nvidia.com/gpu.present": "true", "kubernetes.io/hostname": self.name}
        shape = NodeShape(self.name, labels=labels, plugins=self.sockets, programs=self.containers.program)
        self._kubelets().add_node(shape, boot_id=boot_id)

    def start_agent(self, kubeconfig: Path, port: int) -> None:
        """Start the node's agent; from now on it is started with every boot."""
        self._agent_kubeconfig, self.agent_port = kubeconfig, port
        self._run_agent()

    def obey(self) -> str:
        """Do what a repair asks of the host, if anything; what was done, for people. Raises DemoError."""
        if self._up_at is not None:
            return self._come_up() if time.monotonic() >= self._up_at else ""
        if self.files.boot_request.exists():
            return self._go_down()
        if self.files.service_request.exists():
            self.sockets.stop()
            self._kubelets().restart_kubelet(self.name)
            self.sockets.start()
            self.files.service_request.unlink(missing_ok=True)
            return f"{self.name}'s kubelet is restarted"
        return self._keep_agent()

    def suffer(self, scenario: Scenario) -> None:
        """Let the scenario's fault happen. Raises DemoError."""
        fault = scenario.fault
        try:
            update(self.files.machine, lambda machine: with_fault(machine, fault))
        except MachineError as error:
            raise DemoError(str(error)) from error
        if fault.xid is not None:
            uuids = [one.uuid for one in load(self.files.machine).devices if one.pci_address == fault.device]
            for device in uuids:
                raise_xid(control_path(self.files.machine), device, fault.xid)
            self.files.kernel_says(kernel_line(scenario))
        if fault.plugin == "crashes":
            self.containers.crash_plugin()

    def close(self) -> None:
        """The sockets go; the processes are their folder's to end."""
        self.sockets.stop()

    def _run_agent(self) -> None:
        flags = self.files.agent_flags(kubeconfig=self._agent_kubeconfig, port=self.agent_port)
        self._agent = self._processes.start(f"agent-{self.name}", "sickbay", ["agent", *flags])
        self._agent_since = time.monotonic()

    def _keep_agent(self) -> str:
        """Start an agent that has ended again, as its DaemonSet would."""
        if self._agent is None or not self._agent.ended:
            return ""
        if time.monotonic() - self._agent_since < AGENT_LIVES:
            raise DemoError(f"the agent of {self.name} cannot run\n{self._agent.tail()}")
        self._run_agent()
        return f"{self.name}'s agent has ended and is started again"

    def _go_down(self) -> str:
        """As by a power cut: every process of the host ends at once, and nothing of it is heard."""
        boot_id = str(uuid.uuid4())
        self._kubelets().reboot(self.name, seconds=BOOT_SECONDS, boot_id=boot_id)
        if self._agent is not None:
            kill(self._agent)
        self.sockets.stop()
        self.files.boot(boot_id)
        self.boots += 1
        self._up_at = time.monotonic() + BOOT_SECONDS
        return f"{self.name} goes down for a reboot"

    def _come_up(self) -> str:
        self._up_at = None
        self.sockets.start()
        self._run_agent()
        return f"{self.name} is up again, with another boot ID"

    def _holdings(self) -> list[Holding]:
        return self._kubelets().holdings(self.name)

    def _plugin_spoke(self) -> None:
        self._kubelets().devices_changed(self.name)
