"""One simulated GPU node below its agent: what is broken in truth, its device plugin, and what repairs do to it.

The plugin is NVIDIA's as measured (0.20): an Xid that it does not ignore makes it withhold the device, it never takes
one back by itself, and after its restart it offers a bad device again, unless the device has left the bus.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from exporter.samples import GPU_IS_LOST, DeviceIdentity, DeviceSample
from exporter.sources.plugin_target import Plugin, PluginState
from health.receipt import RECEIPTS_LIMIT, Receipt
from simulation.cluster.kubelet_devices import AllocateError, AllocateHangsError
from simulation.fleet_rates import Cause, Effect

GPU = "nvidia.com/gpu"
SOCKET = "nvidia-gpu.sock"
MODEL = "NVIDIA H100 80GB HBM3"
DRIVER, LIBRARY = "580.95.05", "13.580.95.05"
VBIOS = "96.00.74.00.01"

_IGNORED = frozenset({13, 31, 43, 45, 68, 109})
"""Xids that NVIDIA's plugin takes for an application's (k8s-device-plugin, internal/rm/health.go)."""

_TEXTS = {
    31: "pid=4242, name=python3, Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS faulted @ 0x7f4d_5ee00000",
    48: "pid=4242, name=python3, An uncorrectable double bit error (DBE) has been detected on GPU in the framebuffer",
    79: "pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
    95: "pid='<unknown>', name=<unknown>, Uncontained: FBHUB. RST: Yes, D-RST: No",
    119: "pid=4242, name=python3, Timeout after 6s of waiting for RPC response from GPU0 GSP!",
}


@dataclass(slots=True)
class Machine:
    """A node's hardware and driver. `changed` is called when what the plugin lists or does has changed."""

    name: str
    number: int
    devices: tuple[DeviceIdentity, ...]
    rng: random.Random
    changed: Callable[[], None] = lambda: None
    up: bool = True
    broken: dict[str, Cause] = field(default_factory=dict)
    """By UUID, what is broken in truth, whatever anybody has seen of it."""
    receipts: tuple[Receipt, ...] = ()
    plugin: PluginState = PluginState.UNKNOWN
    lines: int = 0
    """Records of the kernel log in this boot."""
    log: list[tuple[int, datetime, str]] = field(default_factory=list)
    """The driver's lines of this boot: number, time, text."""
    _present: frozenset[str] = frozenset()
    _withheld: set[str] = field(default_factory=set)
    _offered: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._present = frozenset(device.uuid for device in self.devices)

    # What its agent sees.

    @property
    def present(self) -> tuple[DeviceIdentity, ...]:
        """The devices that the driver has found at boot; one that is lost since then is among them."""
        return tuple(device for device in self.devices if device.uuid in self._present)

    def samples(self) -> tuple[DeviceSample, ...]:
        """What NVML says of each."""
        return tuple(self._sample(device.uuid) for device in self.present)

    def probed(self) -> tuple[Plugin, ...]:
        """What a probe of the plugin's socket finds."""
        there = self.plugin in (PluginState.SERVING, PluginState.HUNG)
        return (Plugin(GPU, SOCKET, self.plugin, there),)

    def xid_text(self, cause: Cause, uuid_: str) -> str:
        """The driver's line of a cause."""
        device = next(device for device in self.devices if device.uuid == uuid_)
        address = (device.pci_address or "").removesuffix(".0")
        return f"NVRM: Xid (PCI:{address}): {cause.xid}, {_TEXTS.get(cause.xid, 'unspecified')}"

    # What happens to it.

    def strike(self, cause: Cause, uuid_: str) -> bool:
        """Break a device; whether the driver says anything of it: a device that is gone is silent."""
        if uuid_ not in self._present or self._lost(uuid_):
            return False
        if cause.effect in (Effect.DEVICE, Effect.DEVICE_LOST):
            self.broken[uuid_] = cause
        if cause.xid not in _IGNORED and uuid_ in self._offered:
            self._withheld.add(uuid_)
            self.changed()
        self.lines += 1
        return True

    def hang_plugin(self) -> None:
        """The plugin's process stops to answer."""
        if self.plugin is PluginState.SERVING:
            self.plugin = PluginState.HUNG
            self.changed()

    def plugin_started(self) -> None:
        """A new plugin process has registered: it lists what the driver has, and remembers nothing."""
        self.plugin = PluginState.SERVING
        self._withheld.clear()
        self._offered = tuple(device.uuid for device in self.present if not self._lost(device.uuid))
        self.changed()

    def plugin_ended(self) -> None:
        """Its process has ended."""
        if self.plugin is not PluginState.UNKNOWN:
            self.plugin = PluginState.DEAD
            self.changed()

    def reset(self, uuids: Sequence[str]) -> list[str]:
        """Reset devices; those that are still broken."""
        for one in uuids:
            if one in self.broken and self.rng.random() < self.broken[one].reset:
                del self.broken[one]
        return [one for one in uuids if one in self.broken]

    def booted(self) -> list[str]:
        """The machine is up again; the devices that are still broken, of which those that were lost are not found."""
        for one, cause in list(self.broken.items()):
            if self.rng.random() < cause.reboot:
                del self.broken[one]
        self.up, self.plugin, self.lines, self.receipts = True, PluginState.UNKNOWN, 0, ()
        self.log.clear()
        self._withheld.clear()
        self._offered = ()
        self._present = frozenset(device.uuid for device in self.devices if not self._lost(device.uuid))
        return list(self.broken)

    def leave(self, receipt: Receipt) -> None:
        """A repair program has left this on the host."""
        others = [one for one in self.receipts if one.identity != receipt.identity]
        self.receipts = (receipt, *others)[:RECEIPTS_LIMIT]

    # The plugin, as its kubelet asks it (simulation.cluster.kubelet_devices.DevicePlugins).

    def listed(self) -> Mapping[str, Mapping[str, bool]]:
        """The devices by ID, and whether each is healthy."""
        if self.plugin not in (PluginState.SERVING, PluginState.HUNG):
            return {}
        return {GPU: {one: one not in self._withheld for one in self._offered}}

    def allocate(self, resource: str, devices: Sequence[str]) -> None:
        """Raises AllocateHangsError, AllocateError."""
        if self.plugin is PluginState.HUNG:
            raise AllocateHangsError
        if self.plugin is not PluginState.SERVING:
            raise AllocateError("rpc error: code = Unavailable desc = connection error")

    def _lost(self, uuid_: str) -> bool:
        cause = self.broken.get(uuid_)
        return cause is not None and cause.effect is Effect.DEVICE_LOST

    def _sample(self, uuid_: str) -> DeviceSample:
        if self._lost(uuid_):
            return DeviceSample(uuid=uuid_, error=GPU_IS_LOST)
        cause = self.broken.get(uuid_)
        return DeviceSample(uuid=uuid_, recovery_action=cause.verdict if cause is not None else 0)


def built(name: str, number: int, *, gpus: int, seed: int) -> Machine:
    """The machine of this number: the same one for the same seed."""
    rng = random.Random(f"{seed}/{name}")  # noqa: S311
    devices = tuple(
        DeviceIdentity(
            uuid=f"GPU-{uuid.UUID(int=rng.getrandbits(128), version=4)}",
            index=index,
            model=MODEL,
            serial=str(1650000000000 + 16 * number + index),
            pci_address=f"0000:{0x18 + 8 * index:02x}:00.0",
            vbios=VBIOS,
            minor_number=index,
        )
        for index in range(gpus)
    )
    return Machine(name=name, number=number, devices=devices, rng=rng)
