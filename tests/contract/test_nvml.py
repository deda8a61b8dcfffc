"""What Sickbay relies on in NVML: the same checks on the simulation and, where there is one, the real library."""

import re

import pynvml
import pytest

from exporter.nvml import Nvml
from exporter.readings import FIELDS
from simulation.machine import h100_machine, save
from simulation.nvml import MachineFile, SimulatedLibrary, install, installed


@pytest.fixture(params=["simulated", "real"])
def handles(request, tmp_path):
    """The devices of an initialised library; at least one."""
    if request.param == "simulated":
        save(tmp_path / "machine.json", h100_machine("node-a"))
        with installed(SimulatedLibrary(MachineFile(tmp_path / "machine.json"))):
            pynvml.nvmlInit()
            yield all_handles()
        return
    install(None)
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        pytest.skip(f"no real NVML on this machine: {error}")
    try:
        yield all_handles() or pytest.skip("the real NVML counts no device on this machine")
    finally:
        pynvml.nvmlShutdown()
        install(None)


def all_handles():
    return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]


def test_uuids_are_distinct_and_lead_back_to_their_device(handles):
    uuids = [pynvml.nvmlDeviceGetUUID(handle) for handle in handles]
    assert len(set(uuids)) == len(handles)
    for index, uuid in enumerate(uuids):
        assert re.fullmatch("GPU-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", uuid)
        assert pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByUUID(uuid)) == index


def test_pci_addresses_have_the_drivers_form_and_lead_back_to_their_device(handles):
    for index, handle in enumerate(handles):
        info = pynvml.nvmlDeviceGetPciInfo_v3(handle)
        assert info.busId == "%08X:%02X:%02X.0" % (info.domain, info.bus, info.device)  # noqa: UP031
        assert info.pciDeviceId & 0xFFFF == 0x10DE
        assert pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByPciBusId(info.busId)) == index


def test_what_is_not_there_is_refused(handles):
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetHandleByUUID("GPU-00000000-0000-0000-0000-000000000000")
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlDeviceGetHandleByIndex(len(handles))
    with pytest.raises(pynvml.NVMLError_FunctionNotFound):
        pynvml._nvmlGetFunctionPointer("nvmlSickbayHasNoSuchFunction")


def test_each_field_has_a_return_code_of_its_own(handles):
    wanted = [field for field, _, _ in FIELDS]
    for handle in handles:
        values = pynvml.nvmlDeviceGetFieldValues(handle, [*wanted, 60_000])
        assert [value.fieldId for value in values] == [*wanted, 60_000]
        assert values[-1].nvmlReturn != pynvml.NVML_SUCCESS
        assert any(value.nvmlReturn == pynvml.NVML_SUCCESS for value in values)
        assert all(0 <= value.valueType < pynvml.NVML_VALUE_TYPE_COUNT for value in values)


def test_memory_adds_up(handles):
    for handle in handles:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2)
        assert 0 <= memory.used <= memory.total
        assert memory.used + memory.free <= memory.total
        older = pynvml.nvmlDeviceGetMemoryInfo(handle)
        assert older.total == memory.total


def test_energy_does_not_fall(handles):
    for handle in handles:
        first = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        assert pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) >= first > 0


def test_a_library_that_is_shut_down_refuses_calls(handles):
    pynvml.nvmlShutdown()
    try:
        with pytest.raises(pynvml.NVMLError_Uninitialized):
            pynvml.nvmlDeviceGetCount()
    finally:
        pynvml.nvmlInit()


def test_the_worker_reads_every_device(handles):
    nvml = Nvml()
    inventory = nvml.acquire()
    try:
        assert [device.index for device in inventory.devices] == list(range(len(handles)))
        assert all(
            re.fullmatch("[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}[.]0", device.pci_address or "")
            for device in inventory.devices
        )
        for device in nvml.sample().devices:
            assert device.error is None
            assert device.utilization_ratio is None or 0 <= device.utilization_ratio <= 1
            assert device.temperature_celsius is None or 0 < device.temperature_celsius < 150
            assert device.power_watts is None or 0 < device.power_watts < 3000
    finally:
        nvml.release()
