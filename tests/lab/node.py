"""A real node: kubelet and containerd in mount and PID namespaces of their own."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

from tests.lab import cgroups, images
from tests.lab.api import Api, Object
from tests.lab.control_plane import NOT_YET
from tests.lab.node_files import NodePlan
from tests.lab.processes import Child, LabError, Processes, children_of, log_tail, run, wait_until

READY_DEADLINE_S = 60.0
POWER_OFF_DEADLINE_S = 10.0
NOT_READY_TAINT = "node.kubernetes.io/not-ready"


class Node:
    """One node, made by `Lab.add_node`. Its files are below `folder`; boot it from the main thread only."""

    def __init__(self, plan: NodePlan, processes: Processes) -> None:
        self.name = plan.name
        self.folder = plan.folder
        self.port = plan.port
        """The kubelet's port on 127.0.0.1; its serving certificate is signed by the lab's CA."""
        self.kubelet_dir = plan.folder / "kubelet"
        """What the node sees as /var/lib/kubelet, with the kubelet's sockets."""
        self.boot_id_path = plan.folder / "boot_id"
        """The file that the node sees as /proc/sys/kernel/random/boot_id."""
        self.kernel_log = plan.options.kernel_log or Path("/dev/kmsg")
        """What the node sees as /dev/kmsg."""
        self._plan = plan
        self._processes = processes
        self._init: Child | None = None
        self._booted = 0.0
        self.ready_seconds = 0.0
        """How long the last boot took until the cluster saw it Ready."""

    @property
    def boot_id(self) -> str:
        """The boot ID that the node's kubelet and agents see."""
        return self.boot_id_path.read_text().strip()

    @property
    def init_pid(self) -> int:
        """The machine's PID of the node's PID 1. Raises LabError when the node is down."""
        children = children_of(self._init.pid) if self._init is not None else []
        if not children:
            raise LabError(f"node {self.name} is not running")
        return children[0]

    @property
    def root(self) -> Path:
        """The node's file system as seen from outside (until it reboots)."""
        return Path(f"/proc/{self.init_pid}/root")

    @property
    def run_dir(self) -> Path:
        """The node's /run as seen from outside (until it reboots)."""
        return self.root / "run"

    @property
    def logs(self) -> list[Path]:
        """The logs worth reading when this node misbehaves."""
        init = [self._init.log] if self._init is not None else []
        return [*init, *(log for log in self.folder.glob("*.log") if log.stat().st_size)]

    def boot(self) -> None:
        """Switch the node on, with a new boot ID; returns at once."""
        if self._init is not None:
            raise LabError(f"node {self.name} is already running")
        self._booted = time.monotonic()
        self.boot_id_path.write_text(f"{uuid.uuid4()}\n")
        cgroups.create(self._plan.cgroup)
        wrapper = [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child=KILL",
            "--propagation",
            "private",
            "--",
        ]
        program = [sys.executable, "-S", "-m", "tests.lab.node_init", str(self.folder / "boot.json")]
        self._init = self._processes.start(f"node-{self.name}", [*wrapper, *program], cwd=images.PROJECT)

    def wait_ready(self, api: Api, deadline: float = READY_DEADLINE_S) -> Object:
        """Wait until the cluster sees this very boot as Ready and schedulable; return the Node object.

        `deadline` is seconds. Raises LabError with the ends of the logs, at once when the node has died.
        """

        def ready() -> Object | None:
            if self._init is None:
                raise LabError(f"node {self.name} is not running")
            self._init.check()
            node = api.get(f"/api/v1/nodes/{self.name}")
            return node if self._seen_ready(node) and self._kubelet_listens() else None

        try:
            wait_until(ready, deadline, f"node {self.name} to be Ready", ignoring=NOT_YET)
        except LabError as error:
            raise LabError("\n".join([str(error), *map(log_tail, self.logs)])) from error
        self.ready_seconds = time.monotonic() - self._booted
        self._apply_options(api)
        return wait_until(lambda: self._offers_all(api), deadline, f"capacity of node {self.name}")

    def stop(self) -> None:
        """Switch the node off as a power cut does: SIGKILL to everything at once. The Node object stays."""
        self.power_off()
        # Stale cgroups would cost the next kubelet 25 s.
        if left := cgroups.remove(self._plan.cgroup):
            raise LabError(f"cgroups of node {self.name} cannot be removed: {', '.join(map(str, left))}")

    def power_off(self) -> None:
        """SIGKILL every process of the node and wait for their end; its cgroups stay."""
        if self._init is None:
            return
        # The kernel ends every process of the namespace with its PID 1; unshare ends after the last of them.
        for pid in children_of(self._init.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._init.popen.wait(POWER_OFF_DEADLINE_S)
        self._init.kill()
        self._init = None

    def reboot(self, api: Api, deadline: float = READY_DEADLINE_S) -> str:
        """Rehearse a reboot: power cut, new boot ID, start, wait until Ready; return the new boot ID.

        Disks (images, /var/lib/kubelet) stay; /run, processes and cgroups are lost.
        """
        self.stop()
        self.boot()
        self.wait_ready(api, deadline)
        return self.boot_id

    def delete_files(self) -> None:
        """Delete everything below `folder`; the node has to be stopped."""
        shutil.rmtree(self.folder)

    def kill_kubelet(self) -> None:
        """SIGKILL the kubelet and wait until the node's PID 1 has started another, which answers."""
        old = self._kubelet_pid()
        if old is None:
            raise LabError(f"no kubelet is running on node {self.name}")
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: self._kubelet_pid() not in {None, old}, 10, f"a new kubelet on {self.name}")
        wait_until(self._kubelet_listens, READY_DEADLINE_S, f"the new kubelet on {self.name}", logs=self.logs)

    def execute(self, *argv: str, timeout: float = 30) -> str:
        """Run a program in the node's mount and PID namespaces; return its output. Raises LabError."""
        done = run(["nsenter", f"--target={self.init_pid}", "--mount", "--pid", *argv], timeout=timeout)
        if done.returncode != 0:
            raise LabError(f"{' '.join(argv)} on {self.name}: exit code {done.returncode}\n{done.stderr}")
        return done.stdout

    def _kubelet_pid(self) -> int | None:
        kubelet = os.fsencode(self._plan.binaries["kubelet"])
        for pid in children_of(self.init_pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] == kubelet:
                    return pid
        return None

    def _kubelet_listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _seen_ready(self, node: Object) -> bool:
        status = node["status"]
        states = {condition["type"]: condition["status"] for condition in status.get("conditions", [])}
        taints = {taint["key"] for taint in node["spec"].get("taints", [])}
        this_boot = status["nodeInfo"]["bootID"] == self.boot_id
        return this_boot and states.get("Ready") == "True" and NOT_READY_TAINT not in taints

    def _apply_options(self, api: Api) -> None:
        """Set what the kubelet may not, or cannot, say of itself."""
        path = f"/api/v1/nodes/{self.name}"
        if labels := dict(self._plan.options.labels):
            api.patch(path, {"metadata": {"labels": labels}})
        if capacity := {name: str(count) for name, count in self._plan.options.capacity.items()}:
            api.patch(f"{path}/status", {"status": {"capacity": capacity}})

    def _offers_all(self, api: Api) -> Object | None:
        node = api.get(f"/api/v1/nodes/{self.name}")
        offered = node["status"]["allocatable"]
        wanted = self._plan.options.capacity
        return node if all(offered.get(name) == str(count) for name, count in wanted.items()) else None
