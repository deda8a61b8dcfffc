"""The parts of the real host that can be tried without one: command lines, /proc, programs that do not end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from remediation.repair.bounded import OUTPUT_KEPT, run_bounded
from remediation.repair.holders import holders_in, minor_numbers, named_devices
from remediation.repair.host import Holder, HostError, Ran, Unit
from remediation.repair.real_host import in_driver_root, in_host, leave_the_pod, read_unit, restart_at_once

POD = "0b5f3f9e-1111-4222-8333-444455556666"
INFORMATION = """Model: \t\t NVIDIA H100 80GB HBM3
IRQ:   \t\t 218
GPU UUID: \t GPU-one
Video BIOS: \t 96.00.89.00.01
Device Minor: \t 0
GPU Excluded:\t No
Model: \t\t NVIDIA H100 80GB HBM3
GPU UUID: \t GPU-????????-????
GPU UUID: \t GPU-two
Device Minor: \t 3
"""


def process(proc: Path, pid: int, comm: str, *links: str, cgroup: str = "0::/system.slice\n") -> None:
    folder = proc / str(pid)
    (folder / "fd").mkdir(parents=True)
    (folder / "comm").write_text(f"{comm}\n")
    (folder / "cgroup").write_text(cgroup)
    for number, link in enumerate(links):
        (folder / "fd" / str(number)).symlink_to(link)


def test_the_drivers_files_tell_a_devices_minor_number() -> None:
    assert minor_numbers(INFORMATION) == {"GPU-one": 0, "GPU-two": 3}
    assert minor_numbers("stopped after 10 s") == {}


def test_who_has_a_device_open_is_found_with_name_and_pod(tmp_path: Path) -> None:
    slice_ = f"0::/kubepods.slice/kubepods-pod{POD.replace('-', '_')}.slice/cri-containerd-1.scope\n"
    process(tmp_path, 30, "python3", "/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia0", cgroup=slice_)
    process(tmp_path, 4, "nvidia-persiste", "/dev/nvidia3", "/dev/nvidia0 (deleted)")
    process(tmp_path, 5, "nv-hostengine", "/dev/nvidia0", cgroup=f"1:cpu:/kubepods/pod{POD}/1\n")
    process(tmp_path, 6, "nv-fabricmanage", "/dev/nvidia0")
    process(
        tmp_path, 7, "bash", "/dev/nvidia1", "/dev/null", "socket:[1]", "/home/nvidia0", "/dev/nvidia-uvm"
    )
    (tmp_path / "meminfo").touch()
    found = holders_in(tmp_path, named_devices({"GPU-one": 0}))
    assert found == (
        Holder(4, "nvidia-persistenced", "GPU-one"),
        Holder(5, "nv-hostengine (DCGM)", "GPU-one", POD),
        Holder(6, "nv-fabricmanager (Fabric Manager)", "GPU-one"),
        Holder(30, "python3", "GPU-one", POD),
    )


def test_where_a_devices_number_is_not_known_every_device_file_counts(tmp_path: Path) -> None:
    process(tmp_path, 7, "python3", "/dev/nvidia5", "/dev/nvidiactl")
    assert holders_in(tmp_path, named_devices({"GPU-lost": None})) == (Holder(7, "python3", "/dev/nvidia5"),)


def test_a_process_that_ends_meanwhile_or_names_itself_strangely_is_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "8").mkdir()
    process(tmp_path, 9, "evil\x1b[1m", "/dev/nvidia0")
    (tmp_path / "9" / "cgroup").unlink()
    assert holders_in(tmp_path, named_devices({"GPU-one": 0})) == (Holder(9, "evil?[1m", "GPU-one"),)


def test_a_file_that_a_real_process_has_open_is_found(tmp_path: Path) -> None:
    device = tmp_path / "dev" / "nvidia0"
    device.parent.mkdir()
    device.touch()
    code = "import sys; file = open(sys.argv[1]); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(device)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"\n"
        found = holders_in(Path("/proc"), named_devices({"GPU-one": 0}))
        holder.stdin.close()
    assert [(who.pid, who.device) for who in found] == [(holder.pid, "GPU-one")]


def test_the_service_manager_is_asked_in_the_hosts_mount_namespace() -> None:
    assert in_host(Path("/host"), ["systemctl", "reboot"]) == [
        "nsenter",
        "--mount=/host/proc/1/ns/mnt",
        "--",
        "systemctl",
        "reboot",
    ]


def test_vendor_tools_run_where_the_driver_is(tmp_path: Path) -> None:
    argv = ["nvidia-smi", "-L"]
    assert in_driver_root(tmp_path, "", argv) == ["chroot", str(tmp_path), *argv]
    assert in_driver_root(tmp_path, "/opt/driver", argv) == ["chroot", str(tmp_path / "opt/driver"), *argv]
    tool = tmp_path / "run/nvidia/driver/usr/bin/nvidia-smi"
    tool.parent.mkdir(parents=True)
    tool.touch()
    assert in_driver_root(tmp_path, "", argv) == ["chroot", str(tmp_path / "run/nvidia/driver"), *argv]
    assert in_driver_root(tmp_path, "/", argv) == ["chroot", str(tmp_path), *argv]


def test_what_systemctl_shows_is_read() -> None:
    shown = "MainPID=812\nLoadState=loaded\nActiveState=active\nActiveEnterTimestampMonotonic=5123456\n"
    assert read_unit(shown) == Unit(True, True, 812, 5123456)
    assert read_unit("LoadState=not-found\nActiveState=inactive\nMainPID=0\n") == Unit(False)
    assert read_unit("garbage") == Unit(False)


@pytest.mark.parametrize(
    ("before", "after"), [("176", "176"), ("1", "1"), ("16", "144"), ("0", "128"), ("?", "128")]
)
def test_sysrq_is_allowed_first_where_it_is_not(tmp_path: Path, before: str, after: str) -> None:
    switch, trigger = tmp_path / "proc/sys/kernel/sysrq", tmp_path / "proc/sysrq-trigger"
    switch.parent.mkdir(parents=True)
    switch.write_text(before)
    trigger.touch()
    restart_at_once(tmp_path)
    assert (switch.read_text(), trigger.read_text()) == (after, "b")


def test_without_a_trigger_none_is_made(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    with pytest.raises(HostError, match="sysrq-trigger: No such file"):
        restart_at_once(tmp_path)
    assert list((tmp_path / "proc").iterdir()) == []


@pytest.mark.parametrize("cgroup", ["sys/fs/cgroup", "sys/fs/cgroup/systemd"])
def test_the_program_leaves_its_pods_cgroup_where_it_can(tmp_path: Path, cgroup: str) -> None:
    leave_the_pod(tmp_path)
    procs = tmp_path / cgroup / "cgroup.procs"
    procs.parent.mkdir(parents=True)
    procs.touch()
    leave_the_pod(tmp_path)
    assert procs.read_text() == str(os.getpid())


def test_a_program_is_run_and_its_output_kept() -> None:
    assert run_bounded(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout=30) == Ran(3, "out\nerr\n")


def test_of_a_long_output_the_end_is_kept() -> None:
    ran = run_bounded(["sh", "-c", "seq 100000"], timeout=30)
    assert ran.ok
    assert len(ran.output) == OUTPUT_KEPT
    assert ran.output.endswith("99999\n100000\n")


def test_a_program_that_is_missing_is_said() -> None:
    assert run_bounded(["no-such-program"], timeout=1) == Ran(
        None, "no-such-program: No such file or directory"
    )


def test_a_program_that_does_not_end_is_stopped_with_all_that_it_started() -> None:
    started = time.monotonic()
    ran = run_bounded(["sh", "-c", "trap '' TERM; echo begun; sleep 600 & echo $!; wait"], timeout=0.5)
    assert ran.code is None
    first, child, *_, last = ran.output.splitlines()
    assert (first, last) == ("begun", "stopped after 0.5 s")
    assert time.monotonic() - started < 20
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}/fd").exists() and not _is_zombie(child) and time.monotonic() < deadline:
        os.sched_yield()
    assert _is_zombie(child)


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_a_program_that_cannot_be_killed_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one in D state: SIGKILL does not end it."""
    kill = os.killpg
    survivors: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda group, _signal: survivors.append(group))
    started = time.monotonic()
    assert run_bounded(["sleep", "600"], timeout=0.2) == Ran(None, "\nstopped after 0.2 s")
    assert time.monotonic() - started < 10
    assert not _is_zombie(str(survivors[0]))
    kill(survivors[0], 9)


def test_a_daemon_that_keeps_the_output_open_is_not_waited_for() -> None:
    started = time.monotonic()
    ran = run_bounded(["sh", "-c", "sleep 20 & echo $!"], timeout=15)
    assert ran.ok
    assert time.monotonic() - started < 10
    os.kill(int(ran.output), 9)


def test_a_program_gets_none_of_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD_NOT", "secret")
    assert "secret" not in run_bounded(["env"], timeout=30).output


def _is_zombie(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
