"""The simulated machine and its library, as the real pynvml and other processes see them."""

import json
import subprocess
import sys
import threading
from itertools import pairwise

import msgspec
import pynvml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulation import control
from simulation.fields import FIELDS
from simulation.machine import COUNTERS, MachineError, h100_machine, load, save, settled, update
from simulation.nvml import MachineFile, SimulatedLibrary, installed
from simulation.readings import readings_at


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "machine.json"
    save(path, h100_machine("node-a"))
    return path


@pytest.fixture
def library(path):
    with installed(SimulatedLibrary(MachineFile(path))) as library:
        pynvml.nvmlInit()
        yield library


def change(path, selector, **values):
    for key, value in values.items():
        update(
            path, lambda machine, key=key, value=value: control.set_value(machine, selector, key, str(value))
        )


def field(handle, number):
    return pynvml.nvmlDeviceGetFieldValues(handle, [number])[0]


def test_eight_h100_have_names_and_addresses_of_their_own(library, path):
    machine = load(path)
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    assert len(handles) == 8
    assert {pynvml.nvmlDeviceGetName(handle) for handle in handles} == {"NVIDIA H100 80GB HBM3"}
    assert [pynvml.nvmlDeviceGetUUID(handle) for handle in handles] == [one.uuid for one in machine.devices]
    assert [pynvml.nvmlDeviceGetSerial(handle) for handle in handles] == [
        one.serial for one in machine.devices
    ]
    assert len({one.uuid for one in machine.devices} | {one.serial for one in machine.devices}) == 16
    info = pynvml.nvmlDeviceGetPciInfo(handles[1])
    assert (info.busId, info.busIdLegacy) == ("00000000:3B:00.0", "0000:3B:00.0")
    assert (info.domain, info.bus, info.device, info.pciDeviceId) == (0, 0x3B, 0, 0x233010DE)
    assert [pynvml.nvmlDeviceGetMinorNumber(handle) for handle in handles] == list(range(8))


def test_a_machine_follows_from_its_nodes_name():
    devices = [one.uuid for one in h100_machine("node-a").devices]
    assert devices == [one.uuid for one in h100_machine("node-a").devices]
    assert not set(devices) & {one.uuid for one in h100_machine("node-b").devices}
    assert not set(devices) & {one.uuid for one in h100_machine("node-a", seed=1).devices}


def test_a_device_is_found_by_uuid_serial_and_address(library, path):
    device = load(path).devices[1]
    for handle in (
        pynvml.nvmlDeviceGetHandleByUUID(device.uuid),
        pynvml.nvmlDeviceGetHandleBySerial(device.serial),
        pynvml.nvmlDeviceGetHandleByPciBusId("00000000:3B:00.0"),
        pynvml.nvmlDeviceGetHandleByPciBusId(device.pci_address),
    ):
        assert pynvml.nvmlDeviceGetIndex(handle) == 1


@pytest.mark.parametrize("name", ["GPU-none", "0000:ff:00.0", "nonsense"])
def test_a_device_that_is_not_there_is_not_found(library, name):
    look_up = pynvml.nvmlDeviceGetHandleByUUID if name[0] == "G" else pynvml.nvmlDeviceGetHandleByPciBusId
    with pytest.raises((pynvml.NVMLError_NotFound, pynvml.NVMLError_InvalidArgument)):
        look_up(name)
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlDeviceGetHandleByIndex(8)


def test_pinned_values_come_back_in_nvmls_own_units(library, path):
    change(path, "1", utilization_ratio=0.42, memory_utilization_ratio=0.17, temperature_celsius=71)
    change(path, "1", power_watts=512.5, power_limit_watts=650, sm_clock_hertz=1.5e9, memory_used_bytes=2**30)
    change(
        path, "1", pcie_replays=7, ecc_volatile_corrected=3, ecc_aggregate_uncorrected=2, performance_state=2
    )
    change(path, "1", remapped_rows_uncorrected=4, remap_pending="true")
    handle = pynvml.nvmlDeviceGetHandleByIndex(1)
    rates = pynvml.nvmlDeviceGetUtilizationRates(handle)
    assert (rates.gpu, rates.memory) == (42, 17)
    assert pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU) == 71
    assert pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU) == 71
    assert pynvml.nvmlDeviceGetPowerUsage(handle) == 512_500
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 650_000
    assert pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) == 1500
    assert pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM) == 2619
    assert pynvml.nvmlDeviceGetPerformanceState(handle) == 2
    assert pynvml.nvmlDeviceGetPcieReplayCounter(handle) == 7
    assert pynvml.nvmlDeviceGetEccMode(handle) == [1, 1]
    assert pynvml.nvmlDeviceGetTotalEccErrors(handle, 0, pynvml.NVML_VOLATILE_ECC) == 3
    assert pynvml.nvmlDeviceGetTotalEccErrors(handle, 1, pynvml.NVML_AGGREGATE_ECC) == 2
    assert pynvml.nvmlDeviceGetRemappedRows(handle) == (0, 4, 1, 0)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2)
    assert memory.used == 2**30
    assert memory.total == memory.used + memory.free + memory.reserved == 80 * 2**30
    assert pynvml.nvmlDeviceGetMemoryInfo(handle).used == memory.used + memory.reserved


def test_every_field_agrees_with_the_device_and_unknown_ones_are_not_supported(library, path):
    change(path, "1", ecc_volatile_uncorrected=9, pcie_replays=5, recovery_action=4, remap_failed="true")
    handle = pynvml.nvmlDeviceGetHandleByIndex(1)
    values = pynvml.nvmlDeviceGetFieldValues(handle, [*FIELDS, 9999])
    assert [value.nvmlReturn for value in values] == [0] * len(FIELDS) + [pynvml.NVML_ERROR_NOT_SUPPORTED]
    assert field(handle, pynvml.NVML_FI_DEV_ECC_DBE_VOL_TOTAL).value.ullVal == 9
    assert field(handle, pynvml.NVML_FI_DEV_PCIE_REPLAY_COUNTER).value.uiVal == 5
    assert field(handle, pynvml.NVML_FI_DEV_REMAPPED_FAILURE).value.uiVal == 1
    assert field(handle, pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION).value.uiVal == 4
    energy = field(handle, pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION).value.ullVal
    assert energy <= pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) <= energy + 10_000_000


def test_any_field_can_be_given_a_value_of_its_own(library, path):
    change(path, "1", **{"field_values.9999": "2.5", "field_values.9998": "-3", "errors.field:82": 999})
    handle = pynvml.nvmlDeviceGetHandleByIndex(1)
    assert field(handle, 9999).value.dVal == 2.5
    assert (field(handle, 9998).valueType, field(handle, 9998).value.sllVal) == (4, -3)
    assert field(handle, pynvml.NVML_FI_DEV_MEMORY_TEMP).nvmlReturn == 999


def test_a_lost_device_answers_nothing_and_is_still_counted(library, path):
    device = load(path).devices[1]
    handle = pynvml.nvmlDeviceGetHandleByIndex(1)
    update(path, lambda machine: control.lose(machine, "0000:3b:00.0"))
    assert pynvml.nvmlDeviceGetCount() == 8
    for call in (
        lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        lambda: pynvml.nvmlDeviceGetUUID(handle),
        lambda: pynvml.nvmlDeviceGetFieldValues(handle, [230]),
        lambda: pynvml.nvmlDeviceGetHandleByIndex(1),
        lambda: pynvml.nvmlDeviceGetHandleByUUID(device.uuid),
        lambda: pynvml.nvmlDeviceGetHandleByPciBusId(device.pci_address),
    ):
        with pytest.raises(pynvml.NVMLError_GpuIsLost):
            call()
    assert pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)) == device.name


def test_a_device_that_needs_a_reset_says_so(library, path):
    handle = pynvml.nvmlDeviceGetHandleByIndex(2)
    change(path, "2", reset_required="true")
    with pytest.raises(pynvml.NVMLError_ResetRequired):
        pynvml.nvmlDeviceGetUtilizationRates(handle)
    assert field(handle, 230).value.uiVal == pynvml.NVML_GPU_RECOVERY_ACTION_GPU_RESET


def test_a_single_function_can_fail(library, path):
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    change(path, "0", **{"errors.nvmlDeviceGetPowerUsage": 3})
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetPowerUsage(handle)
    assert pynvml.nvmlDeviceGetUUID(handle).startswith("GPU-")
    change(path, "0", **{"errors.nvmlDeviceGetPowerUsage": "none"})
    assert pynvml.nvmlDeviceGetPowerUsage(handle) > 0


def test_a_hung_device_blocks_the_call_and_then_fails(path):
    slept = []
    with installed(SimulatedLibrary(MachineFile(path), sleep=slept.append)):
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        change(path, "0", hang_seconds=6)
        with pytest.raises(pynvml.NVMLError_Unknown):
            pynvml.nvmlDeviceGetPowerUsage(handle)
    assert slept == [6.0]


def test_what_the_library_does_not_have_is_function_not_found(library, path):
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    with pytest.raises(pynvml.NVMLError_FunctionNotFound):
        pynvml.nvmlDeviceGetBoardId(handle)
    change(path, "machine", missing_functions="nvmlDeviceGetSerial,nvmlDeviceGetVbiosVersion")
    with pytest.raises(pynvml.NVMLError_FunctionNotFound):
        pynvml.nvmlDeviceGetSerial(handle)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (9, pynvml.NVMLError_DriverNotLoaded),
        (18, pynvml.NVMLError_LibRmVersionMismatch),
        (4, pynvml.NVMLError_NoPermission),
        (999, pynvml.NVMLError_Unknown),
    ],
)
def test_the_library_as_a_whole_can_fail(path, code, error):
    change(path, "machine", library_error=code)
    with installed(SimulatedLibrary(MachineFile(path))):
        with pytest.raises(error):
            pynvml.nvmlInit()
        change(path, "machine", library_error=0)
        pynvml.nvmlInit()
        change(path, "machine", library_error=code)
        with pytest.raises(error):
            pynvml.nvmlDeviceGetCount()


def test_a_library_that_is_shut_down_knows_nothing(library):
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    pynvml.nvmlShutdown()
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlDeviceGetName(handle)
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlShutdown()


def test_a_handle_does_not_outlive_a_shutdown(library):
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    pynvml.nvmlShutdown()
    pynvml.nvmlInit()
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlDeviceGetName(handle)
    assert pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)) == "NVIDIA H100 80GB HBM3"


def test_another_process_changes_a_running_machine(library, path):
    handle = pynvml.nvmlDeviceGetHandleByIndex(3)
    command = [sys.executable, "-m", "simulation.machine", str(path), "set", "3", "temperature_celsius", "88"]
    subprocess.run(command, check=True)
    assert pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU) == 88


def test_a_machine_file_that_breaks_leaves_the_machine_as_it_was(library, path, capfd):
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    path.write_text('{"node_name": "node-a", "devices": 3}')
    assert pynvml.nvmlDeviceGetName(handle) == "NVIDIA H100 80GB HBM3"
    path.unlink()
    assert pynvml.nvmlDeviceGetName(handle) == "NVIDIA H100 80GB HBM3"
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "machine.json: not a simulated machine: Expected `array`, got `int` - at `$.devices`" in errors[0]
    assert "No such file" in errors[1]


def test_changes_made_at_the_same_time_are_all_kept(path):
    def grow():
        for _ in range(10):
            update(
                path,
                lambda machine: control.set_value(
                    machine, "0", "pcie_replays", str(machine.devices[0].pcie_replays + 1)
                ),
            )

    threads = [threading.Thread(target=grow) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert load(path).devices[0].pcie_replays == 40


def test_energy_is_the_integral_of_power_and_survives_a_change_of_power():
    machine = msgspec.structs.replace(h100_machine("node-a"), changed_at=100.0)
    device = machine.devices[0]

    def at(now):
        return readings_at(device, seed=0, since=100.0, now=now)

    joules = sum(at(100 + step / 10).power_watts / 10 for step in range(3000))
    assert at(400).energy_joules - at(100).energy_joules == pytest.approx(joules, rel=1e-3)
    later = settled(machine, now=400.0)
    assert later.devices[0].energy_joules == at(400).energy_joules
    idle = msgspec.structs.replace(later.devices[0], power_watts=0.0)
    assert readings_at(idle, seed=0, since=400.0, now=500.0).energy_joules == at(400).energy_joules


def test_a_change_settles_what_was_consumed_before_it(path):
    machine = load(path)
    device = msgspec.structs.replace(machine.devices[0], power_watts=700.0, energy_joules=5.0)
    machine = control.replace_device(machine, 0, device)
    save(path, msgspec.structs.replace(machine, changed_at=machine.changed_at - 1000))
    change(path, "0", power_watts=0)
    assert 700_005 <= load(path).devices[0].energy_joules < 700_005 + 700 * 60


def test_energy_never_goes_back_for_a_reader_who_looked_during_a_change():
    machine = msgspec.structs.replace(h100_machine("node-a"), changed_at=0.0)
    busy = control.set_value(machine, "0", "power_watts", "700")
    idle = control.set_value(settled(busy, now=5.0), "0", "power_watts", "0")
    shown = [busy]
    with installed(SimulatedLibrary(lambda: shown[-1], clock=lambda: 10.0)):
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        before = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        shown.append(idle)
        assert pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) == before


instants = st.floats(min_value=0, max_value=1e7, allow_nan=False)
optional_ratio = st.none() | st.floats(min_value=0, max_value=1)


@settings(max_examples=100, deadline=None)
@given(
    since=instants,
    times=st.lists(instants, min_size=2, max_size=6),
    load=optional_ratio,
    seed=st.integers(0, 99),
)
def test_readings_stay_plausible_and_energy_never_falls(since, times, load, seed):
    device = msgspec.structs.replace(h100_machine("node", devices=1).devices[0], utilization_ratio=load)
    readings = [readings_at(device, seed=seed, since=since, now=now) for now in sorted(times)]
    for one in readings:
        assert 0 <= one.utilization_ratio <= 1
        assert 0 <= one.memory_used_bytes <= device.memory_total_bytes - device.memory_reserved_bytes
        assert 60 <= one.power_watts <= device.power_limit_watts
        assert 20 <= one.temperature_celsius < one.memory_temperature_celsius < 95
    energies = [one.energy_joules for one in readings]
    # 10^9 J in a double leave a microjoule of rounding.
    assert all(later >= earlier - 1e-5 for earlier, later in pairwise(energies))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["set", "1", "temprature_celsius", "3"],
            "unknown key 'temprature_celsius'; the nearest is 'temperature_celsius'",
        ),
        (["set", "1", "pcie_replays", "many"], "key 'pcie_replays': value 'many': Expected `int`"),
        (
            ["set", "1", "utilization_ratio", "1.5"],
            "key 'utilization_ratio': value '1.5': Expected `float` <= 1",
        ),
        (["set", "1", "errors", "3"], "key 'errors': expected 'errors.NAME'"),
        (["set", "1", "lost.now", "3"], "key 'lost.now': expected 'lost'"),
        (
            ["set", "9", "lost", "true"],
            "no device '9' on node-a: expected an index below 8, a UUID or a PCI address",
        ),
        (["set", "0000:3b:01.0", "lost", "true"], "the nearest is '0000:3b:00.0'"),
        (["set", "machine", "devices", "3"], "unknown key 'devices'"),
        (["lose", "GPU-x"], "no device 'GPU-x'"),
        (["create", "node-b"], "exists already"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(path, capsys, arguments, message):
    before = path.read_bytes()
    with pytest.raises(SystemExit) as end:
        control.main([str(path), *arguments])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(path) in error
    assert path.read_bytes() == before


@pytest.mark.parametrize("counter", sorted(COUNTERS))
def test_a_counter_is_never_lowered(path, counter):
    change(path, "1", **{counter: 10**10})
    with pytest.raises(MachineError, match="a counter never goes back"):
        change(path, "1", **{counter: 5})


def test_the_command_creates_changes_and_shows(tmp_path, capsys):
    path = tmp_path / "new.json"
    for arguments in (
        ["create", "n", "--devices", "2"],
        ["lose", "1"],
        ["set", "machine", "library_error", "9"],
        ["show"],
    ):
        with pytest.raises(SystemExit) as end:
            control.main([str(path), *arguments])
        assert end.value.code == 0
    shown = json.loads(capsys.readouterr().out)
    assert [one["lost"] for one in shown["devices"]] == [False, True]
    assert shown["library_error"] == 9


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Input data was truncated"),
        (b"\xff\xfe", "JSON is malformed"),
        (b'{"node_name":"n","devices":[],"driver":"5"}', "unknown field `driver`"),
        (b'{"node_name":"n","devices":[{"uuid":"a","serial":"b","pci_address":"3b:00"}]}', "$.devices[0]"),
    ],
)
def test_a_file_that_is_no_machine_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "machine.json"
    path.write_bytes(content)
    with pytest.raises(MachineError) as refused:
        load(path)
    assert message in str(refused.value)
    assert str(path) in str(refused.value)


def test_a_machine_cannot_be_written_where_there_is_no_directory(tmp_path):
    with pytest.raises(MachineError, match="No such file or directory"):
        save(tmp_path / "none" / "machine.json", h100_machine("n"))
    with pytest.raises(MachineError, match="No such file or directory"):
        update(tmp_path / "none" / "machine.json", lambda machine: machine)
