"""Whether we run where a repair may run: in the container of a repair Job, on a machine that is a node.

A repair program is root on its host. So that nothing but a repair Job ever reaches the real host (no test, no
demo, no curious hand), every one of these must hold, and the first that does not is the reason of the refusal:

1. `SICKBAY_REPAIR_JOB` (downward API, `metadata.uid`) is a UID, and the mounts of this process are of that very
   pod: the kernel's mount table names `.../pods/UID/...`, which the kubelet made and no variable can pretend.
2. `/etc/sickbay-repair` is a volume of its own whose file `marker` (downward API, `metadata.labels`) has the label
   `sickbay.dev/template`.
3. The host's root is a mount, and not our own root.
4. Behind it is the root of process 1, which lives in another mount namespace than we do, in the kernel's first PID
   namespace: a node that is itself a container (kind) shares its kernel with a machine that is not ours to boot.
5. The host is run by systemd (`/run/systemd/system`, sd_booted(3)), which alone is asked for reboots and restarts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

JOB_VARIABLE = "SICKBAY_REPAIR_JOB"
MARKER = Path("/etc/sickbay-repair/marker")
TEMPLATE_LABEL = "sickbay.dev/template"
INITIAL_PID_NAMESPACE = "pid:[4026531836]"
"""PROC_PID_INIT_INO, include/linux/proc_ns.h: the same on every kernel since 3.8."""

_UID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MARKER_LIMIT = 64 * 1024


def refusal(
    host_root: Path, *, environ: Mapping[str, str], marker: Path = MARKER, proc: Path = Path("/proc")
) -> str:
    """Why nothing may be done here, in one line; empty in a repair container. Nothing of the host is read before
    the pod has been proven. Raises nothing."""
    checks: tuple[Callable[[], str], ...] = (
        lambda: _not_the_pod(environ, proc),
        lambda: _no_marker(marker, proc),
        lambda: _no_host_root(host_root, proc),
        lambda: _not_process_one(host_root, proc),
        lambda: _not_a_node(host_root),
    )
    for check in checks:
        try:
            why = check()
        except OSError as error:
            why = f"{error.filename}: {error.strerror or error}"
        if why:
            return why
    return ""


def _not_the_pod(environ: Mapping[str, str], proc: Path) -> str:
    uid = environ.get(JOB_VARIABLE, "")
    if not _UID.fullmatch(uid):
        return f"{JOB_VARIABLE} is not the UID of a pod"
    if not any(f"/pods/{uid}/" in source for source, _ in _mounts(proc)):
        return f"no mount of this process is of the pod {uid} that {JOB_VARIABLE} names"
    return ""


def _no_marker(marker: Path, proc: Path) -> str:
    if not any(target in (str(marker), str(marker.parent)) for _, target in _mounts(proc)):
        return f"{marker.parent} is not a volume"
    with marker.open("rb") as stream:
        lines = stream.read(_MARKER_LIMIT).decode("utf-8", "replace").splitlines()
    if not any(line.startswith(f'{TEMPLATE_LABEL}="') and not line.endswith('=""') for line in lines):
        return f"{marker} has no label {TEMPLATE_LABEL}"
    return ""


def _no_host_root(host_root: Path, proc: Path) -> str:
    if not any(target == str(host_root) for _, target in _mounts(proc)):
        return f"{host_root} is not a mount: the host's root must be mounted there"
    if _identity(host_root) == _identity(proc / "self" / "root"):
        return f"{host_root} is our own root"
    for folder in ("proc/1", "etc", "run"):
        if not (host_root / folder).is_dir():
            return f"{host_root} is not the root of a host: it has no {folder}"
    return ""


def _not_process_one(host_root: Path, proc: Path) -> str:
    one = host_root / "proc" / "1"
    if _identity(one / "root") != _identity(host_root):
        return f"{host_root} is not the root of the host's process 1"
    if _identity(one / "ns" / "mnt") == _identity(proc / "self" / "ns" / "mnt"):
        return "we are in the mount namespace of the host itself, not in a container"
    if str((one / "ns" / "pid").readlink()) != INITIAL_PID_NAMESPACE:
        return f"the host behind {host_root} is itself a container"
    return ""


def _not_a_node(host_root: Path) -> str:
    if not (host_root / "run" / "systemd" / "system").is_dir():
        return "the host is not run by systemd"
    return ""


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _mounts(proc: Path) -> Iterator[tuple[str, str]]:
    """(path within its file system, mount point) of every mount that we see; proc_pid_mountinfo(5)."""
    for line in (proc / "self" / "mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split(" ")
        if len(fields) > 4:
            yield fields[3], fields[4]
