"""The lab's cgroups: one folder per node in every hierarchy of the machine, v1, hybrid or v2."""

import contextlib
import os
import signal
import time
from pathlib import Path

REMOVE_DEADLINE_S = 10.0


def hierarchies() -> list[tuple[Path, str]]:
    """Return (mount point, "cgroup" or "cgroup2") of every mounted hierarchy (proc(5), mountinfo)."""
    found: dict[Path, str] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind = after.split()[0]
        if kind in {"cgroup", "cgroup2"}:
            found[Path(before.split()[4])] = kind
    return sorted(found.items())


def only_v2() -> bool:
    """Whether the machine has the unified hierarchy alone."""
    return all(kind == "cgroup2" for _, kind in hierarchies())


def create(name: str) -> None:
    """Create `name` in every hierarchy that a kubelet uses, ready to take processes. Raises OSError."""
    unified_only = only_v2()
    for root, kind in hierarchies():
        if kind == "cgroup2" and not unified_only:
            continue
        if unified_only:
            _delegate_controllers(root)
        group = root / name
        group.mkdir(exist_ok=True)
        # A new v1 cpuset is empty and refuses every process until both files are set (cgroup-v1/cpusets).
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if not unified_only and (group / setting).exists():
                (group / setting).write_text((root / setting).read_text())


def _delegate_controllers(root: Path) -> None:
    missing = set((root / "cgroup.controllers").read_text().split())
    missing -= set((root / "cgroup.subtree_control").read_text().split())
    for controller in missing:
        # The kubelet itself names a controller that it misses; others may well stay off.
        with contextlib.suppress(OSError):
            (root / "cgroup.subtree_control").write_text(f"+{controller}")


def find(pattern: str) -> list[Path]:
    """Return the cgroups directly below a hierarchy's root whose names match the glob `pattern`."""
    return [group for root, _ in hierarchies() for group in root.glob(pattern) if group.is_dir()]


def remove(pattern: str) -> list[Path]:
    """Kill what runs in the cgroups whose names match the glob `pattern`, remove them deepest first.

    Retries while the kernel still tears processes down. Returns what could not be removed (empty is good).
    """
    end = time.monotonic() + REMOVE_DEADLINE_S
    while True:
        left = [top for top in find(pattern) if not _remove_tree(top)]
        if not left or time.monotonic() >= end:
            return left
        time.sleep(0.02)


def _remove_tree(top: Path) -> bool:
    for folder, _, _ in os.walk(top, topdown=False):
        _kill_members(Path(folder))
        try:
            Path(folder).rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


def _kill_members(group: Path) -> None:
    with contextlib.suppress(OSError):
        for pid in (group / "cgroup.procs").read_text().split():
            # 0 stands for a process of another PID namespace: not ours to reach, and never our own group.
            if int(pid) > 0:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
