"""What a person may try while the demo stays up."""

from __future__ import annotations

import shutil

from simulation.demo.flags import DEFAULT_SCENARIO
from simulation.demo.host_files import HostFiles
from simulation.demo.scenario import Scenario, kernel_line, load
from simulation.demo.world import World


def hints(world: World, scenario: Scenario, *, prometheus: str = "") -> list[str]:
    """Lines with the addresses, what to type, and how to inject the next fault."""
    host = next(iter(world.hosts.values()))
    line = kernel_line(scenario) or kernel_line(load(DEFAULT_SCENARIO))
    kubectl = f"kubectl --server {world.api.url}"
    pages = {f"{name}'s agent": host.agent_port for name, host in world.hosts.items()}
    pages["the controller"] = world.controller_port
    return [
        *(f"  metrics of {who:<15} http://127.0.0.1:{port}/metrics" for who, port in pages.items()),
        f"  the Kubernetes API         {world.api.url}",
        *([f"  Prometheus                 {prometheus}"] if prometheus else []),
        "",
        "Try:",
        f"  {kubectl} get nodes",
        f"  {kubectl} get acrem                        # sessions; -o yaml shows the journal",
        f"  {kubectl} get acr                          # the agents' reports",
        f"  {kubectl} get pods -A -o wide",
        f"  curl -s http://127.0.0.1:{host.agent_port}/metrics | grep accelerator_fault_active",
        *(
            [f"  curl -s http://127.0.0.1:{host.agent_port}/metrics | promtool check metrics"]
            if shutil.which("promtool")
            else []
        ),
        "",
        "The next fault, by hand:",
        f"  {injection(host.files, line)}",
        f"  {kubectl} annotate node {host.name} sickbay.dev/hold=me    # stops it in the middle",
        f"  {kubectl} annotate node {host.name} sickbay.dev/hold-      # lets it go on",
    ]


def injection(files: HostFiles, line: str) -> str:
    """What a shell appends to a node's kernel log."""
    return f"echo '{line}' >> {files.kernel_log}"
