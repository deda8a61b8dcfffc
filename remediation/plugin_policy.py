"""How a device plugin is restarted and proven, as the policy says it: its `devicePlugin`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import msgspec

from runtime.quantities import Duration


class PluginSelector(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Labels that a device plugin's pod has, all of them; in a namespace, or in any where none is named."""

    match_labels: dict[str, str]
    namespace: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError where it would select every pod."""
        if not self.match_labels:
            raise ValueError("at least one label, or every pod would be taken for the device plugin")

    def matches(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """Whether a pod with these labels is meant."""
        return self.namespace in ("", namespace) and self.match_labels.items() <= labels.items()


KNOWN_PLUGINS = (
    PluginSelector(match_labels={"app.kubernetes.io/name": "nvidia-device-plugin"}),
    PluginSelector(match_labels={"app": "nvidia-device-plugin-daemonset"}),
    PluginSelector(match_labels={"name": "nvidia-device-plugin-ds"}),
    PluginSelector(match_labels={"k8s-app": "nvidia-gpu-device-plugin"}, namespace="kube-system"),
    PluginSelector(match_labels={"name": "amdgpu-dp-ds"}),
)
"""Pods of NVIDIA's chart, its GPU Operator, its static manifest, GKE's and AMD's: the labels their manifests set."""


class DevicePluginPolicy(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Which pods are device plugins, how long a restart may take, and how long a plugin must serve to be proven.

    `healthyDwell` takes the place of the policy's own where a plugin was all that failed: nothing is wrong with
    the hardware, and every second of the cordon keeps jobs off healthy devices.
    """

    selectors: tuple[PluginSelector, ...] = KNOWN_PLUGINS
    deadline: Duration = Duration.parse("3m")
    healthy_dwell: Duration = Duration.parse("10s")

    @property
    def time_limit(self) -> timedelta:
        """`deadline` as a time span."""
        return timedelta(seconds=self.deadline)

    def selects(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """Whether a pod is a device plugin's."""
        return any(selector.matches(namespace, labels) for selector in self.selectors)
