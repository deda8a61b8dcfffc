"""What the lab needs is found, named when it is missing, and unpacked whole or not at all."""

import io
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from tests.lab import binaries, binaries_cache
from tests.lab.processes import LabError

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.setenv("SICKBAY_CACHE", str(tmp_path / "cache"))
    return binaries.cache()


def archive(path: Path, names: tuple[str, ...] = binaries.NAMES, *, prefix: str = "") -> Path:
    with tarfile.open(path, "w:xz") as tar:
        for name in names:
            content = f"#!/bin/sh\necho {name}\n".encode()
            entry = tarfile.TarInfo(f"{prefix}{name}")
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SICKBAY_CACHE": "/one", "XDG_CACHE_HOME": "/two"}, "/one"),
        ({"XDG_CACHE_HOME": "/two"}, "/two/sickbay"),
        ({"HOME": "/home/jane"}, "/home/jane/.cache/sickbay"),
    ],
)
def test_the_cache_is_where_the_environment_says(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SICKBAY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(binaries.cache()).startswith(f"{expected}/kubernetes/v1.37.2-linux-")


def test_kubebuilder_assets_go_before_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert binaries.kubernetes_folder() == cache
    monkeypatch.setenv("KUBEBUILDER_ASSETS", "/elsewhere")
    assert binaries.kubernetes_folder() == Path("/elsewhere")


def test_missing_binaries_are_named_with_the_way_to_get_them(cache: Path) -> None:
    (sentence,) = [line for line in binaries.missing() if "Kubernetes binaries" in line]
    assert str(cache) in sentence
    assert "make lab-binaries" in sentence
    assert all(name in sentence for name in binaries.NAMES)
    with pytest.raises(LabError, match="make lab-binaries"):
        binaries.find()


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(binaries, "SEARCH_PATH", str(tmp_path))
    monkeypatch.setattr(binaries, "CNI_FOLDERS", (tmp_path,))
    sentences = "\n".join(binaries.missing())
    for package in ("containerd", "runc", "busybox-static", "containernetworking-plugins"):
        assert f"apt-get install {package}" in sentences


@pytest.mark.parametrize("prefix", ["", "./", "kubernetes/bin/"])
def test_an_archive_is_unpacked_wherever_the_programs_lie_in_it(
    cache: Path, tmp_path: Path, prefix: str
) -> None:
    assert binaries_cache.unpack(archive(tmp_path / "all.tar.xz", prefix=prefix)) == cache
    assert sorted(entry.name for entry in cache.iterdir()) == sorted(binaries.NAMES)
    assert all(os.access(cache / name, os.X_OK) for name in binaries.NAMES)


def test_two_that_unpack_at_once_both_find_a_whole_cache(cache: Path, tmp_path: Path) -> None:
    source = archive(tmp_path / "all.tar.xz")
    both = [threading.Thread(target=binaries_cache.unpack, args=[source]) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert [entry.name for entry in cache.parent.iterdir() if entry.is_dir()] == [cache.name]


def test_an_archive_without_a_program_is_refused_and_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"has no etcd, kubelet; expected all of"):
        binaries_cache.unpack(archive(tmp_path / "some.tar.xz", binaries.NAMES[1:-1]))
    assert [entry for entry in cache.parent.iterdir() if entry.is_dir()] == []


@pytest.mark.parametrize("content", [None, b"no archive", b"\xfd7zXZ\x00 cut short"])
def test_a_bad_archive_is_named(cache: Path, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.tar.xz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LabError, match=r"bad\.tar\.xz: cannot be unpacked"):
        binaries_cache.unpack(path)
    assert not cache.exists()


def test_an_incomplete_or_unfinished_cache_is_replaced(cache: Path, tmp_path: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "etcd").write_text("half")
    (cache.parent / f"{binaries_cache.UNFINISHED}killed").mkdir()
    binaries_cache.unpack(archive(tmp_path / "all.tar.xz"))
    assert (cache / "etcd").read_text() == "#!/bin/sh\necho etcd\n"
    assert [entry.name for entry in cache.parent.iterdir() if entry.is_dir()] == [cache.name]


def lab_tests_without_binaries(tmp_path: Path, ci: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "tests/lab/test_lab.py"]
    environment = {**os.environ, "KUBEBUILDER_ASSETS": str(tmp_path), "CI": ci}
    return subprocess.run(argv, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)


def test_lab_tests_skip_loudly_where_binaries_are_missing(tmp_path: Path) -> None:
    done = lab_tests_without_binaries(tmp_path, ci="")
    assert done.returncode == 0, done.stdout
    assert "THE LAB TESTS DID NOT RUN" in done.stdout
    assert f"Kubernetes binaries missing in {tmp_path}" in done.stdout
    assert "passed" not in done.stdout.splitlines()[-1]


def test_in_ci_lab_tests_fail_where_binaries_are_missing(tmp_path: Path) -> None:
    done = lab_tests_without_binaries(tmp_path, ci="true")
    assert done.returncode == 1, done.stdout
    assert "CI is set, where tests of real parts may not be skipped" in done.stdout
