"""Finds what the lab runs and says what is missing.

`python -m tests.lab.binaries check` lists what is missing; `unpack ARCHIVE.tar.xz` and `build` fill the cache.
"""

import argparse
import os
import platform
import shutil
import socket
import sys
from pathlib import Path

from tests.lab import cgroups
from tests.lab.processes import LabError

KUBERNETES = "v1.37.2"
NAMES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kubelet")
HERE = Path(__file__).resolve().parent
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
# Debian packages of what a node needs besides the kubelet.
PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "containerd-shim-runc-v2": "containerd",
    "runc": "runc",
    "busybox": "busybox-static",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mount": "mount",
}
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
CNI_PACKAGE = "containernetworking-plugins"
# TEST-NET-1 (RFC 5737): asking for the way there sends nothing and names the address we would use.
ELSEWHERE = ("192.0.2.254", 9)


def cache() -> Path:
    """Return the folder of the cached Kubernetes binaries; it need not exist."""
    if own := os.environ.get("SICKBAY_CACHE"):
        base = Path(own)
    elif xdg := os.environ.get("XDG_CACHE_HOME"):
        base = Path(xdg) / "sickbay"
    else:
        base = Path.home() / ".cache" / "sickbay"
    return base / "kubernetes" / f"{KUBERNETES}-linux-{ARCHITECTURE}"


def kubernetes_folder() -> Path:
    """Return where the Kubernetes binaries are looked for: KUBEBUILDER_ASSETS, else the cache."""
    named = os.environ.get("KUBEBUILDER_ASSETS")
    return Path(named) if named else cache()


def tool(name: str) -> Path | None:
    """Return a machine's program by name."""
    found = shutil.which(name, path=SEARCH_PATH)
    return Path(found) if found else None


def cni_folder() -> Path | None:
    """Return the folder with the CNI plugin `loopback`."""
    return next((folder for folder in CNI_FOLDERS if (folder / "loopback").exists()), None)


def find() -> dict[str, Path]:
    """Return the path of every program the lab runs, by name. Raises LabError that lists what is missing."""
    if problems := _missing_kubernetes() + _missing_tools():
        raise LabError("\n".join(problems))
    found = {name: kubernetes_folder() / name for name in NAMES}
    return found | {name: path for name in PACKAGES if (path := tool(name))}


def missing() -> list[str]:
    """Return a sentence for each thing that keeps the lab from running here; an empty list is good."""
    return _missing_rights() + _missing_tools() + _missing_kubernetes()


def _missing_kubernetes() -> list[str]:
    folder = kubernetes_folder()
    absent = [name for name in NAMES if not os.access(folder / name, os.X_OK)]
    if not absent:
        return []
    source = "KUBEBUILDER_ASSETS" if os.environ.get("KUBEBUILDER_ASSETS") else "the cache"
    how = "`make lab-binaries` builds them into the cache (needs Go), or set KUBEBUILDER_ASSETS to a folder"
    return [f"Kubernetes binaries missing in {folder} ({source}): {', '.join(absent)}; {how}"]


def _missing_tools() -> list[str]:
    sentences = []
    for name, package in PACKAGES.items():
        if tool(name) is None:
            sentences.append(f"program {name} is missing: apt-get install {package}")
    if cni_folder() is None:
        where = " or ".join(map(str, CNI_FOLDERS))
        sentences.append(f"CNI plugin loopback is missing in {where}: apt-get install {CNI_PACKAGE}")
    return sentences


def _missing_rights() -> list[str]:
    sentences = []
    if sys.platform != "linux":
        return [f"the lab needs Linux, this is {sys.platform}"]
    if os.geteuid() != 0:
        sentences.append(f"the lab needs root (namespaces, mounts, cgroups), this is user {os.geteuid()}")
    if not cgroups.hierarchies():
        sentences.append("no cgroup hierarchy is mounted")
    for root, _ in cgroups.hierarchies():
        if not os.access(root, os.W_OK):
            sentences.append(f"cgroup hierarchy {root} is read-only: a container needs --privileged")
    if _own_address() is None:
        sentences.append("this machine has no address but loopback, which a kubelet refuses as its node's")
    return sentences


def _own_address() -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(ELSEWHERE)
        except OSError:
            return None
        return str(probe.getsockname()[0])


def main(arguments: list[str]) -> int:
    """Return the exit status: 0 done or nothing missing, 1 failed or something missing, 2 wrong usage."""
    from tests.lab import binaries_cache

    parser = argparse.ArgumentParser(prog="python -m tests.lab.binaries")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="list what keeps the lab from running here")
    commands.add_parser("build", help=f"build {KUBERNETES} from its Go modules into the cache (minutes)")
    unpack = commands.add_parser("unpack", help="unpack an archive of the binaries into the cache")
    unpack.add_argument("archive", type=Path, metavar="ARCHIVE.tar.xz")
    chosen = parser.parse_args(arguments)
    if chosen.command == "check":
        problems = missing()
        print("\n".join(problems) or "nothing is missing")
        return 1 if problems else 0
    try:
        folder = (
            binaries_cache.build() if chosen.command == "build" else binaries_cache.unpack(chosen.archive)
        )
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Kubernetes {KUBERNETES} is in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
