"""Devices, samples and kernel messages as the agent's unit tests need them."""

from datetime import UTC, datetime, timedelta

from exporter.samples import DeviceIdentity, DeviceSample, Inventory, Sample
from exporter.sources.kernel_intake import KernelMessage
from exporter.state import KERNEL_LOG, NVML, NodeState
from health import xids
from health.kernel_line import parse
from health.vocabulary import SourceState

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
BOOT = "11111111-1111-1111-1111-111111111111"
UUIDS = tuple(f"GPU-{number:08d}-0000-0000-0000-000000000000" for number in range(8))
ADDRESSES = tuple(f"0000:{bus:02x}:00.0" for bus in (0x1B, 0x3B, 0x43, 0x52, 0x9B, 0xBB, 0xCB, 0xDB))


def later(seconds):
    return NOW + timedelta(seconds=seconds)


def identity(index, **changes):
    return DeviceIdentity(
        **{
            "uuid": UUIDS[index],
            "index": index,
            "model": "NVIDIA H100 80GB HBM3",
            "serial": f"165{index}",
            "pci_address": ADDRESSES[index],
            "vbios": "96.00",
            **changes,
        }
    )


def inventory(*devices, **changes):
    return Inventory(
        driver_version="580.95.05",
        nvml_version="13.580.95.05",
        devices=tuple(map(identity, devices)),
        **changes,
    )


def full_sample(index, **changes):
    """Every value that a device can have."""
    values = {
        "utilization_ratio": 0.5,
        "memory_utilization_ratio": 0.25,
        "memory_total_bytes": 80 * 2**30,
        "memory_used_bytes": 2**30,
        "memory_free_bytes": 79 * 2**30,
        "temperature_celsius": 60.0,
        "memory_temperature_celsius": 70.0,
        "power_watts": 500.0,
        "power_limit_watts": 700.0,
        "energy_joules": 1e6,
        "sm_clock_hertz": 1.8e9,
        "memory_clock_hertz": 2.6e9,
        "performance_state": 0,
        "ecc_enabled": True,
        "ecc_volatile_corrected": 1,
        "ecc_volatile_uncorrected": 0,
        "ecc_aggregate_corrected": 5,
        "ecc_aggregate_uncorrected": 2,
        "pcie_replays": 3,
        "remapped_rows_corrected": 0,
        "remapped_rows_uncorrected": 1,
        "remap_pending": False,
        "remap_failed": False,
        "recovery_action": 0,
    }
    return DeviceSample(uuid=UUIDS[index], **{**values, **changes})


def sample(*devices, at=1000.0):
    return Sample(monotonic_seconds=at, duration_seconds=0.05, devices=devices)


def message(text, *, sequence=1, at=NOW, drill=False):
    return KernelMessage(
        line=parse(text), sequence=sequence, time=at, received=0.0, excerpt=text, drill=drill
    )


def xid(code, *, device=1, address=None, **options):
    short = (address or ADDRESSES[device]).removesuffix(".0")
    return message(f"NVRM: Xid (PCI:{short}): {code}, pid=1, name=python, text", **options)


def verdict(words, *, device=1, **options):
    short = ADDRESSES[device].removesuffix(".0")
    return message(
        f"NVRM: Xid (PCI:{short}): 154, GPU recovery action changed from 0x0 (None) to 0x1 ({words})",
        **options,
    )


def fresh_state(**changes):
    """A state whose sources have not found anything yet."""
    return (
        NodeState(boot_id=BOOT, catalogue=xids.builtin(), **changes)
        .with_source(KERNEL_LOG, SourceState.LIVE, "")
        .with_source(NVML, SourceState.LIVE, "")
    )


def known_state(count=2, **changes):
    """A state that knows so many healthy devices."""
    return (
        fresh_state(**changes)
        .with_inventory(inventory(*range(count)), NOW)
        .with_sample(sample(*map(full_sample, range(count))), NOW)
    )
