"""The files that a simulated host consists of: its devices, its kernel log, its boot ID, what repairs ask of it."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from simulation.machine import SimulatedDevice, h100_machine, save, update
from simulation.nvidia_smi import after_reset
from simulation.plugin import socket_name

GPU = "nvidia.com/gpu"


@dataclass(frozen=True, slots=True)
class HostFiles:
    """One host's folder."""

    name: str
    folder: Path

    @property
    def machine(self) -> Path:
        """The simulated devices."""
        return self.folder / "machine.json"

    @property
    def kernel_log(self) -> Path:
        """What stands for /dev/kmsg."""
        return self.folder / "kmsg"

    @property
    def boot_id(self) -> Path:
        return self.folder / "boot_id"

    @property
    def receipts(self) -> Path:
        """What repairs leave behind; a boot empties it, as it does /run."""
        return self.folder / "receipts"

    @property
    def boot_request(self) -> Path:
        return self.folder / "boot-request"

    @property
    def service_request(self) -> Path:
        return self.folder / "service-request"

    @property
    def plugins(self) -> Path:
        """The kubelet's folder of device plugins' sockets."""
        return self.folder / "plugins"

    @property
    def pod_resources(self) -> Path:
        """The kubelet's socket that tells who holds which device."""
        return self.folder / "pod-resources.sock"

    @property
    def repair_flags(self) -> list[str]:
        """Where `simulation.repair` finds the host."""
        places = {
            "--machine": self.machine,
            "--boot-id-path": self.boot_id,
            "--boot-request": self.boot_request,
            "--service-request": self.service_request,
            "--receipts": self.receipts,
        }
        return [str(word) for pair in places.items() for word in pair]

    @property
    def plugin_flags(self) -> list[str]:
        """Where `simulation.plugin` finds devices and kubelet."""
        return ["--machine", str(self.machine), "--socket-dir", str(self.plugins), "--resource", GPU]

    def agent_flags(self, *, kubeconfig: Path, port: int) -> list[str]:
        """An agent's that looks at this host.

        There is no Pods API and no kubelet port here, so that allocation latency is a source that the agent reports
        as Unsupported; all its other sources are served.
        """
        worker = f"{sys.executable} -m simulation.worker --machine {self.machine}"
        places = {
            "--node": self.name,
            "--kubeconfig": kubeconfig,
            "--kernel-log": self.kernel_log,
            "--boot-id": self.boot_id,
            "--state-file": self.folder / "agent.json",
            "--receipts": self.receipts,
            "--pod-resources-socket": self.pod_resources,
            "--device-plugin-folder": self.plugins,
            "--pods-socket": self.folder / "no-pods-api.sock",
            "--worker-command": worker,
            "--listen": f"127.0.0.1:{port}",
            "--sample-interval": "1s",
            "--renew-interval": "2s",
        }
        return [str(word) for pair in places.items() for word in pair]

    def build(self, boot_id: str) -> None:
        """A new machine with 8 H100, switched on for the first time."""
        self.plugins.mkdir(parents=True)
        save(self.machine, h100_machine(self.name))
        self.boot(boot_id)

    def boot(self, boot_id: str) -> None:
        """What a power cycle does: devices begin anew, kernel log and /run are empty."""
        shutil.rmtree(self.receipts, ignore_errors=True)
        self.boot_request.unlink(missing_ok=True)
        self.service_request.unlink(missing_ok=True)
        (self.plugins / socket_name(GPU)).unlink(missing_ok=True)
        self.kernel_log.write_text("")
        self.boot_id.write_text(f"{boot_id}\n")
        update(
            self.machine,
            lambda machine: msgspec.structs.replace(machine, devices=tuple(map(_powered, machine.devices))),
        )

    def kernel_says(self, line: str) -> None:
        """Append a line to the kernel log."""
        with self.kernel_log.open("a", encoding="utf-8") as log:
            log.write(f"{line}\n")


def _powered(device: SimulatedDevice) -> SimulatedDevice:
    return msgspec.structs.replace(after_reset(device), lost=False)
