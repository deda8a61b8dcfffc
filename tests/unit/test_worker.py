"""The NVML worker: its answers on a simulated machine, and the process on the real loader."""

import io
import os
import shutil
import signal
import subprocess
import sys

import msgspec
import pynvml
import pytest

from exporter.nvml import Nvml
from exporter.samples import (
    DeviceIdentity,
    Inventory,
    Operation,
    Released,
    Reply,
    Request,
    Sample,
    UnidentifiedDevice,
    WorkerError,
    WorkerFailure,
)
from exporter.worker import answer, serve
from simulation import control
from simulation.machine import h100_machine
from simulation.nvml import SimulatedLibrary, installed

STAND_IN = r"""
#include <stdio.h>
#include <string.h>
int nvmlInitWithFlags(unsigned flags) { printf("chatter on stdout\n"); fflush(stdout); return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 0; return 0; }
int nvmlSystemGetDriverVersion(char *version, unsigned length) { strncpy(version, "999.77", length); return 0; }
"""


class Bench:
    """A worker's NVML on a machine that the test changes, in a time that passes when a call blocks."""

    def __init__(self):
        self.machine = h100_machine("node-a")
        self.now = 1000.0
        self.nvml = Nvml(clock=lambda: self.now)
        self.slept = []

    def sleep(self, seconds):
        self.now += seconds
        self.slept.append(seconds)

    def set(self, selector, key, value):
        self.machine = control.set_value(self.machine, selector, key, str(value))

    def ask(self, operation, known=()):
        return answer(self.nvml, Request(1, operation, known))

    def sample(self):
        body = self.ask(Operation.SAMPLE)
        assert isinstance(body, Sample), body
        return body.devices

    def errors(self):
        return {index: device.error for index, device in enumerate(self.sample()) if device.error}


@pytest.fixture
def bench():
    bench = Bench()
    with installed(SimulatedLibrary(lambda: bench.machine, clock=lambda: bench.now, sleep=bench.sleep)):
        yield bench


def test_the_inventory_names_driver_and_devices(bench):
    inventory = bench.ask(Operation.ACQUIRE)
    assert isinstance(inventory, Inventory)
    assert (inventory.driver_version, inventory.nvml_version) == ("580.95.05", "13.580.95.05")
    device = bench.machine.devices[1]
    assert inventory.devices[1] == DeviceIdentity(
        uuid=device.uuid,
        index=1,
        model="NVIDIA H100 80GB HBM3",
        serial=device.serial,
        pci_address="0000:3b:00.0",
        vbios=device.vbios,
        minor_number=1,
    )
    assert len(inventory.devices) == 8
    assert inventory.unidentified == ()


def test_a_sample_has_every_value_in_base_units(bench):
    pinned = {
        "utilization_ratio": 0.5,
        "memory_utilization_ratio": 0.25,
        "memory_used_bytes": 2**30,
        "temperature_celsius": 60,
        "memory_temperature_celsius": 70,
        "power_watts": 432.1,
        "power_limit_watts": 700,
        "energy_joules": 2e9,
        "sm_clock_hertz": 1.98e9,
        "memory_clock_hertz": 2.619e9,
        "performance_state": 0,
        "ecc_volatile_corrected": 1,
        "ecc_volatile_uncorrected": 2,
        "ecc_aggregate_corrected": 3,
        "ecc_aggregate_uncorrected": 4,
        "pcie_replays": 5,
        "remapped_rows_corrected": 6,
        "remapped_rows_uncorrected": 7,
        "remap_pending": True,
        "remap_failed": False,
        "recovery_action": 4,
    }
    for key, value in pinned.items():
        bench.set("1", key, value)
    bench.now = bench.machine.changed_at
    bench.ask(Operation.ACQUIRE)
    sample = msgspec.structs.asdict(bench.sample()[1])
    assert sample == pinned | {
        "uuid": bench.machine.devices[1].uuid,
        "error": None,
        "ecc_enabled": True,
        "memory_total_bytes": 80 * 2**30,
        "memory_free_bytes": 80 * 2**30 - 2**30 - 640 * 2**20,
    }


def test_what_is_not_supported_is_unknown_and_not_zero(bench, capfd):
    bench.ask(Operation.ACQUIRE)
    bench.set("1", "errors.nvmlDeviceGetUtilizationRates", pynvml.NVML_ERROR_NOT_SUPPORTED)
    bench.set("1", "errors.field:83", pynvml.NVML_ERROR_NOT_SUPPORTED)
    bench.set("1", "ecc_enabled", "false")
    bench.set("1", "performance_state", pynvml.NVML_PSTATE_UNKNOWN)
    device = bench.sample()[1]
    missing = {name for name, value in msgspec.structs.asdict(device).items() if value is None}
    assert missing == {
        "error",
        "utilization_ratio",
        "memory_utilization_ratio",
        "energy_joules",
        "performance_state",
        "ecc_volatile_corrected",
        "ecc_volatile_uncorrected",
        "ecc_aggregate_corrected",
        "ecc_aggregate_uncorrected",
    }
    assert device.ecc_enabled is False
    assert capfd.readouterr().err == ""


def test_a_function_that_the_library_lacks_is_replaced_or_logged_once(bench, capfd):
    names = (
        "nvmlDeviceGetMemoryInfo_v2,nvmlDeviceGetTemperatureV,nvmlDeviceGetFieldValues,nvmlDeviceGetSerial"
    )
    bench.set("machine", "missing_functions", names)
    bench.set("0", "temperature_celsius", 50)
    inventory = bench.ask(Operation.ACQUIRE)
    assert {device.serial for device in inventory.devices} == {None}
    for device in (bench.sample()[0], bench.sample()[0]):
        assert device.error is None
        assert device.temperature_celsius == 50
        assert device.memory_used_bytes + device.memory_free_bytes == device.memory_total_bytes
        assert device.energy_joules is None
    errors = capfd.readouterr().err
    assert errors.count("field values cannot be read: FunctionNotFound") == 1
    assert errors.count("serial cannot be read: FunctionNotFound") == 1


def test_an_odd_value_costs_only_itself(bench, capfd):
    bench.ask(Operation.ACQUIRE)
    bench.set("0", "errors.nvmlDeviceGetPowerUsage", pynvml.NVML_ERROR_UNKNOWN)
    bench.set("0", "errors.field:230", 77)
    device = bench.sample()[0]
    assert (device.error, device.power_watts, device.recovery_action) == (None, None, None)
    assert device.utilization_ratio is not None
    assert device.energy_joules is not None
    errors = capfd.readouterr().err
    assert "power cannot be read: Unknown" in errors
    assert "field 230 cannot be read: Code77" in errors


def test_a_lost_device_takes_no_other_with_it(bench):
    bench.ask(Operation.ACQUIRE)
    bench.machine = control.lose(bench.machine, "1")
    devices = bench.sample()
    assert devices[1] == type(devices[1])(uuid=bench.machine.devices[1].uuid, error="GpuIsLost")
    others = devices[:1] + devices[2:]
    assert all(device.error is None and device.power_watts for device in others)


@pytest.mark.parametrize("call", ["nvmlDeviceGetTemperatureV", "field:142"])
def test_a_device_lost_in_the_middle_of_a_sample_shows_no_value(bench, call):
    bench.ask(Operation.ACQUIRE)
    bench.set("1", f"errors.{call}", pynvml.NVML_ERROR_GPU_IS_LOST)
    device = bench.sample()[1]
    assert device == type(device)(uuid=bench.machine.devices[1].uuid, error="GpuIsLost")


def test_a_device_that_needs_a_reset_still_tells_its_recovery_action(bench):
    bench.ask(Operation.ACQUIRE)
    bench.set("3", "reset_required", "true")
    device = bench.sample()[3]
    assert (device.error, device.recovery_action, device.power_watts) == ("ResetRequired", 1, None)


def test_a_device_lost_before_the_start_is_counted_and_cannot_be_named(bench):
    bench.machine = control.lose(bench.machine, "1")
    inventory = bench.ask(Operation.ACQUIRE)
    assert inventory.unidentified == (UnidentifiedDevice(index=1, error="GpuIsLost"),)
    assert [device.index for device in inventory.devices] == [0, 2, 3, 4, 5, 6, 7]
    assert len(bench.sample()) == 7


def test_a_lost_device_keeps_its_identity_through_a_release_and_in_the_next_worker(bench):
    before = bench.ask(Operation.ACQUIRE)
    bench.machine = control.lose(bench.machine, "1")
    assert bench.ask(Operation.RELEASE) == Released()
    assert bench.ask(Operation.ACQUIRE) == before
    assert bench.errors() == {1: "GpuIsLost"}
    bench.ask(Operation.RELEASE)
    bench.nvml = Nvml(clock=lambda: bench.now)
    assert bench.ask(Operation.ACQUIRE, before.devices) == before
    assert bench.errors() == {1: "GpuIsLost"}


def test_an_identity_is_never_forgotten_in_part(bench):
    before = bench.ask(Operation.ACQUIRE)
    bench.set("1", "errors.nvmlDeviceGetSerial", pynvml.NVML_ERROR_UNKNOWN)
    bench.set("2", "errors.nvmlDeviceGetVbiosVersion", pynvml.NVML_ERROR_GPU_IS_LOST)
    assert bench.ask(Operation.INVENTORY) == before


def test_another_device_in_the_same_place_has_an_identity_of_its_own(bench):
    bench.ask(Operation.ACQUIRE)
    bench.set("1", "uuid", "GPU-00000000-0000-4000-8000-000000000001")
    bench.set("1", "errors.nvmlDeviceGetSerial", pynvml.NVML_ERROR_NOT_SUPPORTED)
    device = bench.ask(Operation.INVENTORY).devices[1]
    assert (device.uuid, device.serial) == ("GPU-00000000-0000-4000-8000-000000000001", None)


def test_a_hung_device_is_asked_once_and_then_spared_for_a_while(bench):
    bench.ask(Operation.ACQUIRE)
    bench.set("2", "hang_seconds", 6)
    assert bench.errors() == {2: "Unresponsive"}
    assert bench.errors() == {2: "Unresponsive"}
    assert isinstance(bench.ask(Operation.INVENTORY), Inventory)
    assert bench.slept == [6.0]
    bench.set("2", "hang_seconds", 0)
    bench.now += 31
    assert bench.errors() == {}


def test_released_devices_are_not_touched(bench):
    library = pynvml.nvmlLib
    bench.ask(Operation.ACQUIRE)
    assert library.references == 1
    assert bench.ask(Operation.RELEASE) == Released()
    assert library.references == 0
    assert bench.ask(Operation.RELEASE) == Released()
    assert bench.ask(Operation.SAMPLE) == Released()
    assert bench.ask(Operation.INVENTORY) == Released()
    assert isinstance(bench.ask(Operation.ACQUIRE), Inventory)
    assert bench.errors() == {}


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (9, WorkerError.DRIVER_NOT_LOADED),
        (18, WorkerError.LIBRARY_MISMATCH),
        (4, WorkerError.NO_PERMISSION),
        (999, WorkerError.UNKNOWN),
        (77, WorkerError.UNKNOWN),
    ],
)
def test_a_library_that_fails_as_a_whole_says_how(bench, code, error):
    bench.set("machine", "library_error", code)
    failure = bench.ask(Operation.ACQUIRE)
    assert isinstance(failure, WorkerFailure)
    assert failure.error is error
    assert f"(NVML code {code})" in failure.message


def test_no_device_is_blamed_when_all_are_out_of_reach(bench):
    bench.ask(Operation.ACQUIRE)
    bench.set("machine", "library_error", 999)
    assert bench.ask(Operation.SAMPLE) == WorkerFailure(
        error=WorkerError.UNKNOWN, message="no device answers: Unknown"
    )


def test_all_devices_lost_is_a_matter_of_devices(bench):
    bench.ask(Operation.ACQUIRE)
    for index in range(8):
        bench.machine = control.lose(bench.machine, str(index))
    assert bench.errors() == dict.fromkeys(range(8), "GpuIsLost")


def test_a_machine_without_devices_is_sampled_too(bench):
    bench.machine = h100_machine("node-a", devices=0)
    assert bench.ask(Operation.ACQUIRE).devices == ()
    assert bench.sample() == ()


def test_lines_that_are_no_request_are_skipped(bench, capfd):
    requests = io.BytesIO(
        b'nonsense\n{"id":1,"operation":"Explode"}\n\xff\xfe\n{"id":2,"operation":"Acquire"}\n{"id":3,"operation"'
    )
    replies = io.BytesIO()
    serve(bench.nvml, requests, replies)
    lines = replies.getvalue().splitlines()
    assert [msgspec.json.decode(line, type=Reply).id for line in lines] == [2]
    errors = capfd.readouterr().err
    assert errors.count("not a request") == 4
    assert "'Explode'" in errors


def test_a_surprise_of_the_library_is_an_answer(bench, monkeypatch):
    bench.ask(Operation.ACQUIRE)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 1 / 0)
    failure = bench.ask(Operation.INVENTORY)
    assert failure == WorkerFailure(error=WorkerError.UNKNOWN, message="ZeroDivisionError: division by zero")


def run_worker(*operations, **environment):
    requests = b"".join(
        msgspec.json.encode(Request(number, operation)) + b"\n" for number, operation in enumerate(operations)
    )
    done = subprocess.run(
        [sys.executable, "-m", "exporter.worker"],
        input=requests,
        capture_output=True,
        env=os.environ | environment,
        timeout=20,
        check=True,
    )
    return [
        msgspec.json.decode(line, type=Reply).body for line in done.stdout.splitlines()
    ], done.stderr.decode()


def test_without_a_library_the_worker_says_what_the_loader_says(tmp_path):
    (failure, again), _ = run_worker(Operation.ACQUIRE, Operation.ACQUIRE, LD_LIBRARY_PATH=str(tmp_path))
    assert failure.error is WorkerError.LIBRARY_NOT_FOUND
    assert "libnvidia-ml.so.1: cannot open shared object file" in failure.message
    assert again == failure


def test_a_library_that_cannot_be_loaded_is_told_from_one_that_is_missing(tmp_path):
    (tmp_path / "libnvidia-ml.so.1").write_text("no library")
    (failure,), _ = run_worker(Operation.ACQUIRE, LD_LIBRARY_PATH=str(tmp_path))
    assert failure.error is WorkerError.LIBRARY_NOT_FOUND
    assert "file too short" in failure.message or "invalid ELF header" in failure.message


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler (cc) to build a stand-in library with")
def test_the_worker_takes_the_library_that_the_loader_finds(tmp_path):
    (tmp_path / "nvml.c").write_text(STAND_IN)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True)
    (inventory, sample, released), errors = run_worker(
        Operation.ACQUIRE, Operation.SAMPLE, Operation.RELEASE, LD_LIBRARY_PATH=str(tmp_path)
    )
    assert inventory == Inventory(driver_version="999.77", nvml_version=None)
    assert sample.devices == ()
    assert released == Released()
    assert "chatter on stdout" in errors
    assert "NVML version cannot be read: FunctionNotFound" in errors


def test_the_worker_ends_with_its_input_and_not_by_ctrl_c():
    worker = subprocess.Popen(
        [sys.executable, "-m", "exporter.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        worker.stdin.write(b'{"id":1,"operation":"Release"}\n')
        worker.stdin.flush()
        assert worker.stdout.readline() == b'{"id":1,"body":{"type":"Released"}}\n'
        worker.send_signal(signal.SIGINT)
        worker.stdin.write(b'{"id":2,"operation":"Release"}\n')
        worker.stdin.flush()
        assert worker.stdout.readline() == b'{"id":2,"body":{"type":"Released"}}\n'
        worker.stdin.close()
        assert worker.wait(10) == 0
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()


def test_the_worker_stays_small():
    heavy = (
        "{'grpc', 'kubernetes', 'prometheus_client', 'urllib3', 'opentelemetry', 'asyncio', 'logging', 'ssl'}"
    )
    code = f"import sys, exporter.worker; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("machine", ["", "/nowhere/machine.json"])
def test_the_simulated_worker_says_which_machine_it_misses(machine):
    done = subprocess.run(
        [sys.executable, "-m", "simulation.worker"],
        env=os.environ | {"SICKBAY_SIMULATED_MACHINE": machine},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert (machine or "give --machine PATH or set SICKBAY_SIMULATED_MACHINE") in done.stderr
