"""A Prometheus on the demo's metrics pages, with the rules of `alerts/`, where its program is installed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from simulation.demo.processes import PROJECT, CannotBeginError
from simulation.demo.world import World, free_ports

RULES = PROJECT / "alerts"


class Prometheus:
    """Its program; `start` runs it among the world's processes."""

    def __init__(self, program: str) -> None:
        self._program = program

    @classmethod
    def found(cls) -> Prometheus:
        """Raises CannotBeginError where there is none."""
        program = shutil.which("prometheus")
        if program is None:
            raise CannotBeginError(
                "--prometheus: no program `prometheus` on the path; on Debian: apt install prometheus"
            )
        return cls(program)

    def start(self, world: World) -> str:
        """Where it serves. Raises DemoError where it cannot be started."""
        (port,) = free_ports(1)
        folder = world.folder / "prometheus"
        folder.mkdir()
        configuration = folder / "prometheus.yml"
        configuration.write_text(json.dumps(scrape_configuration(world)))
        flags = [
            f"--config.file={configuration}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        world.processes.start_program("prometheus", [self._program, *flags])
        return f"http://127.0.0.1:{port}"


def scrape_configuration(world: World) -> dict[str, object]:
    """Jobs by the names that our rules expect."""
    agents = [
        {"targets": [f"127.0.0.1:{host.agent_port}"], "labels": {"node": name}}
        for name, host in world.hosts.items()
    ]
    controller = [{"targets": [f"127.0.0.1:{world.controller_port}"]}]
    return {
        "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
        "rule_files": sorted(str(path) for path in Path(RULES).glob("*.rules.yaml")),
        "scrape_configs": [
            {"job_name": "sickbay-agent", "static_configs": agents},
            {"job_name": "sickbay-controller", "static_configs": controller},
        ],
    }
