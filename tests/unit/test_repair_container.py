"""Where the real host is refused: everywhere but in the container of a repair Job, and before anything is touched."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import sickbay
from remediation.repair import real_host
from remediation.repair.container import INITIAL_PID_NAMESPACE, JOB_VARIABLE, refusal
from remediation.repair.host import Host, RefusedError
from remediation.repair.real_host import RealHost

POD = "0b5f3f9e-1111-4222-8333-444455556666"
METHODS: dict[str, Callable[[Host], object]] = {
    "boot_id": lambda host: host.boot_id(),
    "holders": lambda host: host.holders(["GPU-1"]),
    "run": lambda host: host.run(["nvidia-smi"], timeout=1),
    "unit": lambda host: host.unit("kubelet.service"),
    "order_unit": lambda host: host.order_unit("restart", "kubelet.service", timeout=1),
    "reboot_orderly": lambda host: host.reboot_orderly(),
    "reboot_by_sysrq": lambda host: host.reboot_by_sysrq(),
}


class Container:
    """The files that the look at a container reads, as they are in a repair container."""

    def __init__(self, base: Path) -> None:
        self.host, self.own, self.proc = base / "host", base / "own", base / "proc"
        self.marker = base / "etc" / "marker"
        self.environ = {JOB_VARIABLE: POD}
        self.mounts = [
            f"/var/lib/kubelet/pods/{POD}/etc-hosts /etc/hosts",
            f"/ {self.marker.parent}",
            f"/ {self.host}",
        ]
        one, mine = self.host / "proc" / "1", self.proc / "self"
        for folder in (self.own, self.marker.parent, self.host / "etc", self.host / "run/systemd/system"):
            folder.mkdir(parents=True)
        for namespaces in (one / "ns", mine / "ns"):
            namespaces.mkdir(parents=True)
            (namespaces / "mnt").touch()
        (one / "root").symlink_to(self.host)
        (one / "ns" / "pid").symlink_to(INITIAL_PID_NAMESPACE)
        (mine / "root").symlink_to(self.own)
        self.marker.write_text('app="sickbay"\nsickbay.dev/template="reset"\n')

    def refusal(self) -> str:
        lines = [f"36 35 98:0 {mount} rw,noatime master:1 - ext4 /dev/root rw" for mount in self.mounts]
        (self.proc / "self" / "mountinfo").write_text("\n".join(lines))
        return refusal(self.host, environ=self.environ, marker=self.marker, proc=self.proc)


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


def replaced(link: Path, target: Path | str) -> None:
    link.unlink()
    link.symlink_to(target)


def without(container: Container, words: str) -> None:
    container.mounts = [mount for mount in container.mounts if words not in mount]


LACKING: dict[str, tuple[Callable[[Container], object], str]] = {
    "no variable": (lambda it: it.environ.clear(), "SICKBAY_REPAIR_JOB is not the UID of a pod"),
    "a variable that is no UID": (lambda it: it.environ.update({JOB_VARIABLE: "../" + POD}), "not the UID"),
    "the UID of another pod": (
        lambda it: it.environ.update({JOB_VARIABLE: POD.replace("0b", "1c")}),
        "no mount of this process is of the pod 1c5f3f9e",
    ),
    "no pod's mounts": (lambda it: without(it, "etc-hosts"), "no mount of this process is of the pod"),
    "a marker that is no volume": (lambda it: without(it, str(it.marker.parent)), "is not a volume"),
    "no marker": (lambda it: it.marker.unlink(), "No such file"),
    "another pod's marker": (
        lambda it: it.marker.write_text('app="x"\n'),
        "has no label sickbay.dev/template",
    ),
    "an empty label": (
        lambda it: it.marker.write_text('sickbay.dev/template=""\n'),
        "has no label sickbay.dev/template",
    ),
    "no host root": (lambda it: without(it, f" {it.host}"), "is not a mount"),
    "our own root": (lambda it: replaced(it.proc / "self/root", it.host), "is our own root"),
    "a host without processes": (
        lambda it: (it.host / "proc").rename(it.host / "etc" / "p"),
        "it has no proc/1",
    ),
    "a folder of the host": (
        lambda it: replaced(it.host / "proc/1/root", it.own),
        "is not the root of the host's process 1",
    ),
    "the host's own namespace": (
        lambda it: (
            (it.proc / "self/ns/mnt").unlink()
            or (it.proc / "self/ns/mnt").hardlink_to(it.host / "proc/1/ns/mnt")
        ),
        "in the mount namespace of the host itself",
    ),
    "a node that is a container": (
        lambda it: replaced(it.host / "proc/1/ns/pid", "pid:[4026532456]"),
        "is itself a container",
    ),
    "a host without systemd": (lambda it: (it.host / "run/systemd/system").rmdir(), "not run by systemd"),
}


def test_a_repair_container_is_not_refused(container: Container) -> None:
    assert container.refusal() == ""


@pytest.mark.parametrize("what", LACKING)
def test_each_single_thing_that_is_lacking_is_a_refusal_that_names_it(
    container: Container, what: str
) -> None:
    spoil, why = LACKING[what]
    spoil(container)
    assert why in container.refusal()


def test_the_host_is_not_looked_at_before_the_pod_is_proven(container: Container) -> None:
    container.environ.clear()
    (container.host / "proc/1/root").unlink()
    (container.host / "etc").rmdir()
    assert "is not the UID of a pod" in container.refusal()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("root", ["/", "a folder", "/proc/1/root", "/proc/self/root"])
def test_here_the_real_host_refuses_every_method_before_it_touches_anything(
    method: str, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As near to a repair container as an environment can be; this test may well run as root.
    monkeypatch.setenv(JOB_VARIABLE, POD)
    touched: list[object] = []
    monkeypatch.setattr(real_host, "run_bounded", lambda argv, timeout: touched.append(argv))
    monkeypatch.setattr(real_host, "_write", lambda path, text: touched.append(path))
    monkeypatch.setattr(real_host, "holders_in", lambda proc, device_of: touched.append(proc))
    host = RealHost(tmp_path if root == "a folder" else Path(root))
    with pytest.raises(RefusedError, match="no mount of this process is of the pod"):
        METHODS[method](host)
    assert touched == []


def test_every_method_of_a_host_is_tried_above() -> None:
    assert set(METHODS) == {name for name in vars(Host) if not name.startswith("_")}


@pytest.mark.parametrize(
    "command",
    [
        ["reset", "--devices", "GPU-1"],
        ["reboot"],
        ["restart-service", "--service", "kubelet"],
    ],
    ids=lambda command: command[0],
)
def test_the_command_refuses_here_with_its_exit_code_and_writes_nothing(
    command: list[str], tmp_path: Path
) -> None:
    common = ["--session", "s", "--attempt", "1", "--boot-id", "b", "--host-root", str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, sickbay.__file__, "repair", *command, *common],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, JOB_VARIABLE: POD},
        check=False,
    )
    assert ended.returncode == 8
    assert ended.stderr.startswith(
        f"sickbay repair {command[0]}: refused, not in a repair container: no mount"
    )
    assert list(tmp_path.iterdir()) == []
