"""Fills the project's cache of Kubernetes binaries: from an archive, or from their Go modules."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.lab.binaries import HERE, KUBERNETES, NAMES, cache
from tests.lab.processes import LabError

ETCD_PACKAGE = "go.etcd.io/etcd/server/v3"
KUBERNETES_PACKAGES = [f"k8s.io/kubernetes/cmd/{name}" for name in NAMES if name != "etcd"]
VERSION_VARIABLES = "k8s.io/component-base/version"
UNFINISHED = ".unfinished-"


def unpack(archive: Path) -> Path:
    """Fill the cache from a tar archive with the six programs; return its folder. Raises LabError.

    Does nothing when the cache is complete. Safe beside another that does the same.
    """

    def extract(folder: Path) -> None:
        try:
            _extract(archive, folder)
        except (OSError, tarfile.TarError, EOFError) as error:
            raise LabError(f"{archive}: cannot be unpacked: {error}") from error

    return _fill(extract, str(archive))


def build() -> Path:
    """Fill the cache from the Go modules that go.mod here pins; minutes of work. Raises LabError."""
    return _fill(_build, str(HERE / "go.mod"))


def _fill(produce: Callable[[Path], None], source: str) -> Path:
    target = cache()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(target.parent):
        if not _absent(target):
            return target
        for leftover in target.parent.glob(f"{UNFINISHED}*"):
            shutil.rmtree(leftover)
        fresh = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=target.parent))
        try:
            produce(fresh)
            _require_complete(fresh, source)
            fresh.chmod(0o755)
            if target.exists():
                shutil.rmtree(target)
            fresh.rename(target)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    return target


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _absent(folder: Path) -> list[str]:
    return [name for name in NAMES if not os.access(folder / name, os.X_OK)]


def _require_complete(folder: Path, source: str) -> None:
    if absent := _absent(folder):
        raise LabError(f"{source} has no {', '.join(absent)}; expected all of: {', '.join(NAMES)}")


def _extract(archive: Path, folder: Path) -> None:
    """Take the six programs out of the archive, wherever in it they lie, and nothing else."""
    with tarfile.open(archive, "r|*") as members:
        for member in members:
            name = Path(member.name).name
            content = members.extractfile(member) if name in NAMES and member.isfile() else None
            if content is None:
                continue
            with (folder / name).open("wb") as file:
                shutil.copyfileobj(content, file, 1 << 20)
            (folder / name).chmod(0o755)


def _build(folder: Path) -> None:
    if shutil.which("go") is None:
        raise LabError(
            "program go is missing: install Go (the version that tests/lab/go.mod names, or newer)"
        )
    major, minor, _ = KUBERNETES.removeprefix("v").split(".")
    # Without these the API server calls itself v0.0.0.
    values = {"gitVersion": KUBERNETES, "gitMajor": major, "gitMinor": minor}
    variables = " ".join(f"-X {VERSION_VARIABLES}.{name}={value}" for name, value in values.items())
    _go_build(folder / "etcd", "-s -w", [ETCD_PACKAGE])
    _go_build(folder, f"-s -w {variables}", KUBERNETES_PACKAGES)


def _go_build(output: Path, linker_flags: str, packages: list[str]) -> None:
    argv = [
        "go",
        "build",
        "-trimpath",
        "-mod=readonly",
        f"-ldflags={linker_flags}",
        f"-o={output}",
        *packages,
    ]
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": ""}
    done = subprocess.run(argv, cwd=HERE, env=environment, check=False)
    if done.returncode != 0:
        raise LabError(f"{' '.join(argv)} in {HERE}: exit code {done.returncode}")
