"""The repair programs on a simulated host: its machine's file changes, and who plays the host obeys requests."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from health.receipt import Receipt, read_receipt
from simulation.control import replace_device
from simulation.machine import SimulatedDevice, h100_machine, load, save
from simulation.repair import main


class Stage:
    """The files that a simulated host consists of, and what to type."""

    def __init__(self, base: Path) -> None:
        self.machine = base / "machine.json"
        self.boot_id = base / "boot_id"
        self.boot_request = base / "boot.request"
        self.service_request = base / "service.request"
        self.receipts = base / "receipts"
        self.devices = base / "machine.json.devices"
        save(self.machine, h100_machine("n1", devices=2))
        self.boot_id.write_text("boot-1\n")

    def run(self, program: str, *words: str, attempt: int = 1) -> int:
        return main(
            [
                program,
                *("--session", "s", "--attempt", str(attempt), "--boot-id", "boot-1"),
                *("--machine", str(self.machine), "--boot-id-path", str(self.boot_id)),
                *("--boot-request", str(self.boot_request), "--service-request", str(self.service_request)),
                *("--receipts", str(self.receipts)),
                *words,
            ]
        )

    def reset(self) -> int:
        return self.run("reset", "--devices", self.device.uuid)

    @property
    def device(self) -> SimulatedDevice:
        return load(self.machine).devices[0]

    def change(self, **values) -> None:
        save(
            self.machine,
            replace_device(load(self.machine), 0, msgspec.structs.replace(self.device, **values)),
        )

    def receipt(self) -> Receipt:
        (path,) = self.receipts.iterdir()
        return read_receipt(path.read_bytes())

    @contextmanager
    def obeying(self, request: Path, obey: Callable[[dict], object]) -> Iterator[None]:
        """Somebody who plays the host: does what the request says as soon as it is there."""

        def play() -> None:
            deadline = time.monotonic() + 20
            while not request.exists() and time.monotonic() < deadline:
                over.wait(0.005)
            obey(json.loads(request.read_text()))

        over = threading.Event()
        player = threading.Thread(target=play)
        player.start()
        yield
        player.join()


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_a_reset_ends_what_a_reset_ends(stage: Stage) -> None:
    stage.change(
        reset_required=True,
        hang_seconds=6.0,
        errors={"nvmlDeviceGetPowerUsage": 999},
        field_values={230: 4, 82: 1},
        recovery_action=1,
        ecc_volatile_corrected=7,
        ecc_volatile_uncorrected=3,
        ecc_aggregate_uncorrected=3,
        remap_pending=True,
        remap_failed=True,
        persistence_mode=True,
    )
    other = load(stage.machine).devices[1]
    assert stage.reset() == 0
    after = stage.device
    assert (after.reset_required, after.hang_seconds, after.errors, after.recovery_action) == (
        False,
        0,
        {},
        None,
    )
    assert (after.field_values, after.remap_pending, after.remap_failed) == ({82: 1}, False, True)
    assert (after.ecc_volatile_corrected, after.ecc_volatile_uncorrected) == (0, 0)
    assert after.ecc_aggregate_uncorrected == 3
    assert after.persistence_mode
    assert load(stage.machine).devices[1].errors == other.errors
    assert stage.receipt().result == "Done"
    assert "persistence mode" in stage.receipt().message


def test_a_reset_that_does_not_help_succeeds_and_changes_nothing(stage: Stage) -> None:
    stage.change(reset_required=True, reset_helps=False, ecc_volatile_uncorrected=3)
    before = stage.device
    assert stage.reset() == 0
    assert stage.device.reset_required
    assert stage.device.ecc_volatile_uncorrected == before.ecc_volatile_uncorrected


def test_a_device_that_fell_off_the_bus_cannot_be_reset(stage: Stage) -> None:
    stage.change(lost=True)
    assert stage.reset() == 7
    assert stage.receipt().result == "Failed"
    assert "GPU is lost" in stage.receipt().message


def test_a_process_that_the_machine_names_holds_the_device(stage: Stage) -> None:
    stage.change(held_by="python3", reset_required=True)
    assert stage.reset() == 6
    assert "python3 (process 0) has" in stage.receipt().message
    assert stage.device.reset_required


def test_a_real_process_that_has_the_devices_file_open_holds_it(stage: Stage, tmp_path: Path) -> None:
    stage.devices.mkdir()
    (stage.devices / "nvidia1").touch()
    (stage.devices / "nvidia0").touch()
    # By another name, as in the mount namespace of a container.
    elsewhere = tmp_path / "dev"
    elsewhere.hardlink_to(stage.devices / "nvidia0")
    with elsewhere.open("rb"):
        assert stage.reset() == 6
    assert f"(process {os.getpid()}" in stage.receipt().message
    assert stage.run("reset", "--devices", stage.device.uuid, attempt=2) == 0


def test_the_persistence_daemon_of_a_simulated_host_is_paused(stage: Stage) -> None:
    stage.change(held_by="nvidia-persistenced", reset_required=True)
    assert stage.reset() == 0
    assert not stage.device.reset_required
    assert stage.device.held_by == "nvidia-persistenced"


def test_a_reboot_is_asked_for_and_ends_with_another_boot_id(
    stage: Stage, capsys: pytest.CaptureFixture
) -> None:
    requests = []

    def boot(request: dict) -> None:
        requests.append(request)
        stage.boot_id.write_text("boot-2\n")

    with stage.obeying(stage.boot_request, boot):
        assert stage.run("reboot") == 0
    assert requests == [{"action": "reboot", "by": "systemctl", "bootID": "boot-1"}]
    stage.boot_request.unlink()
    assert stage.run("reboot") == 0
    assert not stage.boot_request.exists()
    assert "nothing to do: the host is in boot boot-2, not in boot-1" in capsys.readouterr().err


def test_a_reboot_that_nobody_obeys_is_forced_and_then_a_failure(stage: Stage) -> None:
    assert stage.run("reboot", "--orderly-timeout", "0.05", "--sysrq-timeout", "0.05") == 7
    assert json.loads(stage.boot_request.read_text())["by"] == "sysrq"
    assert stage.receipt().result == "Failed"


def test_a_restart_is_asked_for_and_done_when_its_request_is_gone(stage: Stage) -> None:
    requests = []

    def restart(request: dict) -> None:
        requests.append(request)
        stage.service_request.unlink()

    with stage.obeying(stage.service_request, restart):
        assert stage.run("restart-service", "--service", "kubelet") == 0
    assert requests == [{"action": "restart", "unit": "kubelet.service"}]
    assert stage.receipt().message == "restarted kubelet.service, main process 1001"


def test_a_restart_that_nobody_obeys_is_a_failure(stage: Stage) -> None:
    assert stage.run("restart-service", "--service", "fabric-manager", "--restart-timeout", "0.1") == 7
    assert (
        "nvidia-fabricmanager.service does not restart, did not end: nobody obeyed" in stage.receipt().message
    )


@pytest.mark.parametrize("content", ["", "{", '{"node_name": 1}'])
def test_a_machine_that_cannot_be_read_is_a_failure_that_names_the_file(stage: Stage, content: str) -> None:
    device = stage.device.uuid
    stage.machine.write_text(content)
    assert stage.run("reset", "--devices", device) == 7
    assert str(stage.machine) in stage.receipt().message


def test_a_tool_that_the_machine_does_not_have_is_a_failure(stage: Stage) -> None:
    words = ["--devices", stage.device.uuid, "--reset-command", "amd-smi reset {device}"]
    assert stage.run("reset", *words) == 7
    assert "amd-smi: not on this simulated machine" in stage.receipt().message


def test_an_unknown_argument_of_the_vendors_tool_is_a_failure(stage: Stage) -> None:
    words = ["--devices", stage.device.uuid, "--reset-command", "nvidia-smi --melt -i {device}"]
    assert stage.run("reset", *words) == 7
    assert "cannot do nvidia-smi --melt" in stage.receipt().message
