"""PID 1 of a node: makes a piece of this machine look like a machine of its own.

Runs as `python -m tests.lab.node_init FILE` in fresh mount and PID namespaces, imports nothing but the standard
library, and ends (and with it every process of the node) when containerd fails. A kubelet that ends is started
again, as an init system would, though not for ever.
"""

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from tests.lab.mounts import MS_REC, MS_SHARED, bind, mount

# The kubelet writes these (kubernetes pkg/kubelet/cm, setupKernelTunables), the last one the CNI plugin `ptp`; the
# machine's own must not change.
SYSCTLS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "net/ipv4/ip_forward",
)
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
START_DEADLINE_S = 60.0
KUBELET_FAILURES = 3
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Boot:
    """What PID 1 is told; all paths are the machine's.

    `folder` is the node's own. The kubelet starts when the file `gate` exists. `kernel_log` takes the place of
    /dev/kmsg. `keep` are folders that pods or this process need although /run and /var/lib are hidden.
    """

    folder: str
    containerd: list[str]
    kubelet: list[str]
    images_import: list[str]
    gate: str
    kernel_log: str | None
    keep: list[str]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "Boot":
        return cls(**json.loads(path.read_text()))


def main() -> NoReturn:
    boot = Boot.read(Path(sys.argv[1]))
    folder = Path(boot.folder)
    _end_without_a_lab(folder.parent / "lock")
    _mount_everything(boot, folder)
    containerd = _spawn(boot.containerd, folder / "containerd.log")
    _wait_for(_containerd_answers, containerd, "containerd")
    _import_images(boot, folder)
    _wait_for(Path(boot.gate).exists, containerd, "the control plane")
    kubelet = _spawn(boot.kubelet, folder / "kubelet.log")
    failures = 0
    while True:
        pid, status = os.wait()
        code = os.waitstatus_to_exitcode(status)
        if pid == containerd:
            sys.exit(f"containerd ended: exit code {code}")
        if pid != kubelet:
            continue
        failures += 0 if os.WIFSIGNALED(status) else 1
        if failures > KUBELET_FAILURES:
            sys.exit(f"the kubelet ended for the {failures}th time: exit code {code}")
        print(f"the kubelet ended (exit code {code}) and is started again", file=sys.stderr, flush=True)
        kubelet = _spawn(boot.kubelet, folder / "kubelet.log")


def _end_without_a_lab(lock: Path) -> None:
    """Exit if the lab has died already: had it done so while `unshare` forked us, nobody would tell us."""
    with lock.open() as file, contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        sys.exit("the lab has ended")


def _mount_everything(boot: Boot, folder: Path) -> None:
    mount("proc", "/proc", "proc")
    # Shared within this namespace only (it was made private on the way in): kubelet mounts must reach pods.
    mount("", "/", flags=MS_REC | MS_SHARED)
    kept = {path: os.open(path, os.O_PATH) for path in boot.keep if path.startswith(("/run/", "/var/"))}
    for hidden in ("/run", "/var/lib"):
        mount("tmpfs", hidden, "tmpfs", data="mode=755")
    for source, target in (("kubelet", "/var/lib/kubelet"), ("log", "/var/log")):
        Path(target).mkdir(exist_ok=True)
        bind(folder / source, target)
    for path, handle in kept.items():
        Path(path).mkdir(parents=True, exist_ok=True)
        bind(Path(f"/proc/self/fd/{handle}"), path)
        os.close(handle)
    bind(folder / "boot_id", "/proc/sys/kernel/random/boot_id")
    decoys = folder / "sysctl"
    decoys.mkdir(exist_ok=True)
    for name in SYSCTLS:
        decoy = decoys / name.replace("/", ".")
        decoy.write_text(Path("/proc/sys", name).read_text())
        bind(decoy, f"/proc/sys/{name}")
    if boot.kernel_log is not None:
        bind(Path(boot.kernel_log), "/dev/kmsg")


def _containerd_answers() -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(CONTAINERD_SOCKET) == 0


def _import_images(boot: Boot, folder: Path) -> None:
    imported = folder / "images.imported"
    if imported.exists():
        return
    pid = _spawn(boot.images_import, folder / "images.log")
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != 0:
        sys.exit(f"import of images failed ({code}): {(folder / 'images.log').read_text()}")
    imported.touch()


def _wait_for(condition: Callable[[], bool], containerd: int, what: str) -> None:
    end = time.monotonic() + START_DEADLINE_S
    while not condition():
        pid, status = os.waitpid(containerd, os.WNOHANG)
        if pid:
            sys.exit(f"containerd ended: exit code {os.waitstatus_to_exitcode(status)}")
        if time.monotonic() > end:
            sys.exit(f"waited {START_DEADLINE_S:g} s for {what}")
        time.sleep(0.02)


def _spawn(argv: list[str], log: Path) -> int:
    """Start a program with its output appended to `log`; return its PID in this namespace."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [(os.POSIX_SPAWN_OPEN, fd, str(log), flags, 0o600) for fd in (1, 2)]
    return os.posix_spawnp(argv[0], argv, {"PATH": PATH, "HOME": "/root"}, file_actions=actions)


if __name__ == "__main__":
    main()
