"""mount(2) and umount2(2), and what is mounted where."""

import ctypes
import os
from pathlib import Path

# <sys/mount.h>
MS_BIND = 4096
MS_REC = 16384
MS_SHARED = 1 << 20
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str | Path, target: str | Path, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Call mount(2). Raises OSError that names source and target."""
    done = _libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode()
    )
    if done != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(source), None, str(target))


def bind(source: Path, target: str | Path) -> None:
    """Bind `source` and what is mounted below it over `target`."""
    mount(source, target, flags=MS_BIND | MS_REC)


def mounts_below(folder: Path) -> list[Path]:
    """Return the mount points at or below `folder` in our mount namespace, the latest first (proc(5))."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # Blanks in names are octal escapes.
        point = Path(line.split()[4].encode().decode("unicode_escape"))
        if point.is_relative_to(folder):
            points.append(point)
    return points[::-1]


def unmount(point: Path) -> None:
    """Detach whatever is mounted at `point`; nothing mounted there is fine (the caller looks again)."""
    _libc.umount2(os.fsencode(point), MNT_DETACH)


def filesystem_of(path: Path) -> str:
    """Return the type of the filesystem that holds `path` ("ext4", "overlay"...)."""
    best, kind = Path("/"), ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].encode().decode("unicode_escape"))
        if path.is_relative_to(point) and point.is_relative_to(best):
            best, kind = point, after.split()[0]
    return kind
