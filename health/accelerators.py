"""Which extended resources are accelerators: what the vendors' device plugins register, as shell patterns. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

ACCELERATOR_RESOURCES = (
    "nvidia.com/gpu",
    "nvidia.com/gpu.shared",
    "nvidia.com/mig-*",
    "amd.com/gpu",
    "amd.com/?px_nps?",
    "gpu.intel.com/*",
    "habana.ai/gaudi",
    "google.com/tpu",
    "aws.amazon.com/neuron*",
)


def uuid_of(device_id: str) -> str:
    """The device that an ID of the kubelet's names; NVIDIA's plugin appends `::N` where it shares a device.

    Source: internal/rm/devices.go of NVIDIA's device plugin.
    """
    return device_id.partition("::")[0]


def is_accelerator(resource: str, patterns: Iterable[str] = ACCELERATOR_RESOURCES) -> bool:
    """Whether a resource's name fits one of the patterns."""
    return any(fnmatchcase(resource, pattern) for pattern in patterns)
