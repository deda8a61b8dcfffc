"""The report's content from the node's state. Pure: the publisher adds sequence and times of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

import msgspec.structs

from exporter.plugin_state import PLUGIN, is_live
from exporter.samples import DeviceIdentity, DeviceSample
from exporter.sources.plugin_target import PluginState
from exporter.state import NVML, NodeState, action_words
from health.kernel_line import RECOVERY_ACTIONS
from health.plugin_faults import PLUGIN_FAULTS
from health.report import Device, Driver, Fault, Plugin, PluginResource, ReportStatus, Source
from health.vocabulary import DeviceAccess, DeviceHealth, Severity, SourceState

STALE_INTERVALS = 3
"""A sample that is older than so many sample intervals says nothing of now."""

_VENDOR = "nvidia"

# The API server refuses a report as a whole for one value that is too long (deploy/crds/acceleratorreports.yaml).
_NAME_LIMIT = 128
_VERSION_LIMIT = 64
_MESSAGE_LIMIT = 512
_PLUGIN_LIMIT = 32


def fresh_samples(state: NodeState, *, monotonic: float, interval: float) -> Mapping[str, DeviceSample]:
    """The newest samples by UUID; none if they are too old to speak of now. Times are seconds."""
    if state.sample is None or monotonic - state.sample.monotonic_seconds > STALE_INTERVALS * interval:
        return {}
    return {device.uuid: device for device in state.sample.devices}


def device_health(state: NodeState, uuid: str, samples: Mapping[str, DeviceSample]) -> DeviceHealth:
    """A device's own state. No data is Unknown, which is never a fault of the hardware."""
    severities = {
        fault.severity
        for fault in state.diagnosis.open.values()
        if fault.device_uuid == uuid and fault.kind not in PLUGIN_FAULTS
    }
    if Severity.FATAL in severities:
        return DeviceHealth.FAILED
    if Severity.DEGRADED in severities:
        return DeviceHealth.DEGRADED
    sample = samples.get(uuid)
    return DeviceHealth.UNKNOWN if sample is None or sample.error else DeviceHealth.HEALTHY


def sound_devices(state: NodeState, samples: Mapping[str, DeviceSample]) -> frozenset[str]:
    """The UUIDs of the devices whose own state is healthy."""
    return frozenset(
        device.uuid
        for device in state.devices
        if device_health(state, device.uuid, samples) is DeviceHealth.HEALTHY
    )


def report_status(
    state: NodeState,
    *,
    now: datetime,
    samples: Mapping[str, DeviceSample],
    node_uid: str,
    agent_version: str,
) -> ReportStatus:
    """What the report says of this state, but for `sequence` and `renewTime`."""
    return ReportStatus(
        node_uid=node_uid,
        boot_id=state.boot_id,
        agent_version=agent_version[:_VERSION_LIMIT],
        observed_time=now,
        driver=_driver(state),
        devices=tuple(_device(state, device, samples) for device in state.devices),
        faults=tuple(sorted(state.diagnosis.faults, key=_worst_first)),
        plugin=_plugin(state),
        sources=tuple(_source(state, source) for _, source in sorted(state.sources.items())),
        device_access=device_access(state),
        drill=state.drill,
        receipts=state.receipts,
    )


def device_access(state: NodeState) -> DeviceAccess:
    """Whether this agent holds handles on the devices."""
    nvml = state.sources.get(NVML)
    released = nvml is not None and nvml.state is SourceState.RELEASED
    return DeviceAccess.RELEASED if released else DeviceAccess.HELD


def wire_action(words: str) -> str:
    """A recovery action as one word: `GPU Reset Required` is `GPUResetRequired` in the report."""
    parts = re.findall(r"[A-Za-z0-9]+", words)
    word = "".join(part[:1].upper() + part[1:] for part in parts)
    return word[:_VERSION_LIMIT] if word[:1].isalpha() else ""


def action_of_wire(word: str) -> str:
    """The driver's words again; a word of a driver that this version does not know stays as it is."""
    return _ACTIONS.get(word, word)


_ACTIONS = {wire_action(action): action for action in RECOVERY_ACTIONS}


def _worst_first(fault: Fault) -> tuple[int, datetime, str, str]:
    return (-fault.severity.rank, fault.first_seen, *fault.identity)


def _driver(state: NodeState) -> Driver | None:
    if not state.driver_version and not state.library_version:
        return None
    return Driver(
        name=_VENDOR,
        version=state.driver_version[:_VERSION_LIMIT],
        library_version=state.library_version[:_VERSION_LIMIT],
    )


def _plugin(state: NodeState) -> Plugin | None:
    """The device plugins that were ever seen and whose resource is known; None while nothing is known of them."""
    if not is_live(state.sources, PLUGIN):
        return None
    resources = tuple(
        PluginResource(
            name=plugin.resource[:_NAME_LIMIT], state=plugin.state.value, socket=plugin.socket[:_NAME_LIMIT]
        )
        for plugin in state.kubelet.plugins
        if plugin.resource and (plugin.present or plugin.state is not PluginState.UNKNOWN)
    )
    return Plugin(resources[:_PLUGIN_LIMIT]) if resources else None


def _device(state: NodeState, device: DeviceIdentity, samples: Mapping[str, DeviceSample]) -> Device:
    action = state.actions.get(device.uuid)
    sampled = "" if action is None else action_words(action)
    return Device(
        uuid=device.uuid,
        index=device.index,
        vendor=_VENDOR,
        model=(device.model or "")[:_NAME_LIMIT],
        serial=(device.serial or "")[:_NAME_LIMIT],
        pci_address=device.pci_address or "",
        vbios=(device.vbios or "")[:_VERSION_LIMIT],
        recovery_action=wire_action(state.diagnosis.verdicts.get(device.uuid, sampled)),
        health=device_health(state, device.uuid, samples),
    )


def _source(state: NodeState, source: Source) -> Source:
    maintenance, release = state.orders.maintenance, state.orders.device_release
    reason = source.message
    if source.state is SourceState.RELEASED and maintenance is not None:
        reason = f"maintenance: {maintenance.reason}"
    elif source.state is SourceState.RELEASED and release is not None:
        reason = f"session {release.session}"
    return msgspec.structs.replace(source, message=reason[:_MESSAGE_LIMIT])
