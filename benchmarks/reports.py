"""The reports of a simulated fleet, as large as real ones, and how its agents write them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from health.vocabulary import GROUP_VERSION
from runtime.clock import rfc3339

REPORTS = f"/apis/{GROUP_VERSION}/acceleratorreports"
DEVICES = 8

Object = dict[str, Any]


class _Metadata(msgspec.Struct, frozen=True):
    resource_version: str = msgspec.field(name="resourceVersion")


class _Answer(msgspec.Struct, frozen=True):
    metadata: _Metadata


_decode = msgspec.json.Decoder(_Answer).decode


def name(number: int) -> str:
    """The node, and its report."""
    return f"simulated-{number:05}"


def new(number: int) -> Object:
    """What is created; the status comes by its own way."""
    return {"apiVersion": GROUP_VERSION, "kind": "AcceleratorReport", "metadata": {"name": name(number)}}


def update(number: int, sequence: int, version: str) -> Object:
    """A renewal, as `exporter.publish` makes it: the whole status in the place of that version."""
    head = new(number)
    head["metadata"]["resourceVersion"] = version
    return {**head, "status": status(number, sequence)}


def version_of(answer: bytes) -> str:
    """The resourceVersion of an object."""
    return _decode(answer).metadata.resource_version


def status(number: int, sequence: int) -> Object:
    """A report's status as an agent of a node with eight GPUs writes it."""
    devices = [
        {
            "uuid": f"GPU-{number:08x}-1111-2222-3333-{index:012x}",
            "index": index,
            "vendor": "NVIDIA",
            "model": "NVIDIA H100 80GB HBM3",
            "serial": f"16523{number:05}{index}",
            "pciAddress": f"00000000:{index:02x}:00.0",
            "vbios": "96.00.61.00.01",
            "recoveryAction": "None",
            "health": "Healthy",
        }
        for index in range(DEVICES)
    ]
    sources = [
        {"name": name, "state": "Live"}
        for name in ("nvml", "kernel-log", "pod-resources", "pods", "device-plugin", "network")
    ]
    now = rfc3339(datetime.now(UTC))
    return {
        "nodeUID": f"node-{number}",
        "bootID": f"{number:08x}-aaaa-bbbb-cccc-dddddddddddd",
        "agentVersion": "0.1.0",
        "sequence": sequence,
        "renewTime": now,
        "observedTime": now,
        "driver": {"name": "nvidia", "version": "580.65.06"},
        "devices": devices,
        "faults": [],
        "sources": sources,
    }
