"""The agent's configuration: what its file, environment (`SICKBAY_AGENT_*`) and flags may say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import msgspec

from health.receipt import RECEIPT_FOLDER
from runtime.kubelet_rpc import DEVICE_PLUGIN_FOLDER, POD_RESOURCES_SOCKET, PODS_SOCKET
from runtime.quantities import Duration, ListenAddress

ENVIRONMENT_PREFIX = "SICKBAY_AGENT_"


class AgentConfiguration(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """One field is one key of the file (camelCase), one variable and, where `sickbay agent` has it, one flag."""

    node: str = ""
    """This node's name. Empty: the name in the ServiceAccount token, else the machine's host name."""

    kubeconfig: Path | None = None
    """How to reach the cluster from outside a pod; null is the pod's own ServiceAccount."""

    report: bool = True
    """Publish the AcceleratorReport. Without a cluster nothing is published, which is logged."""

    listen: ListenAddress = ListenAddress(":9400")
    """Where `/metrics`, `/healthz` and `/readyz` are served."""

    kernel_log: Path = Path("/dev/kmsg")
    """The kernel log: the device, or a file or FIFO in its place that is framed by newlines."""

    kernel_log_since: int | None = None
    """In drill mode: kernel records before this sequence number are passed over."""

    boot_id: Path = Path("/proc/sys/kernel/random/boot_id")
    """Where this boot's ID stands."""

    state_file: Path | None = Path("/var/lib/sickbay/agent.json")
    """What outlives the agent's restarts within a boot; on the host's disk. Null keeps nothing."""

    worker_command: tuple[str, ...] = (sys.executable, "-m", "exporter.worker")
    """The process that talks to NVML, as `exporter.worker` defines it."""

    sample_interval: Duration = Duration(5)
    """From one sample of the devices to the next."""

    renew_interval: Duration = Duration(30)
    """From one renewal of the report to the next; at most 5 s where a Fatal fault is open or the devices are released.
    Controllers call a report stale after 90 s without one."""

    pod_resources_socket: Path = POD_RESOURCES_SOCKET
    """The kubelet's socket that tells who holds which device. Where there is none, that is not known."""

    device_plugin_folder: Path = DEVICE_PLUGIN_FOLDER
    """The folder of the device plugins' sockets, each of which is asked whether it answers."""

    pods_socket: Path = PODS_SOCKET
    """The kubelet's socket that tells this node's pods (Kubernetes 1.37 and later), for allocation latency."""

    receipts: Path = Path(RECEIPT_FOLDER)
    """Where repairs leave on the host what they did. Without the folder none was done since the boot."""

    kubelet_address: ListenAddress | None = None
    """`HOST:PORT` of this node's kubelet: pods where there is no such socket, and its own measure of allocations."""

    kubelet_authority: Path | None = None
    """The kubelet's serving certificate, or its signer's. Null: the cluster's CA has signed it for that address."""

    xid_overrides: Path | None = None
    """A file in the form of `health/xids.tsv`, whose entries stand in the place of the built-in ones."""

    drill: bool = False
    """Believe kernel lines that userspace wrote as well; their faults, and the report, say `drill`."""

    log_format: Literal["json", "text"] = "json"
    """JSON lines for machines, or text for people; on standard error."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """The least severe messages that are written."""

    def __post_init__(self) -> None:
        # Read as "expected ...", after the name of the file or flag.
        if self.kernel_log_since is not None and not self.drill:
            raise ValueError("drill: true (--drill) beside kernelLogSince, which needs drill mode")
        if self.kernel_log_since is not None and self.kernel_log_since < 0:
            raise ValueError(f"a sequence number from 0 in kernelLogSince, not {self.kernel_log_since}")
        if not self.worker_command:
            raise ValueError("a program in workerCommand; without the key it is the built-in worker")
        if not 0.5 <= self.sample_interval <= 300:
            raise ValueError(f"a sampleInterval from 500ms to 5m, not {self.sample_interval}")
        if not 1 <= self.renew_interval <= 45:
            raise ValueError(
                f"a renewInterval from 1s to 45s, not {self.renew_interval}: after 90 s a report is stale"
            )
