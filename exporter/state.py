"""The node's state: what the sources have said so far, folded into one immutable value.

Every method returns the next state and reads no clock. An Xid line names a PCI address; whose it is, is told
by the inventory, by the driver's own lines or by what was remembered. Xids of an address that nobody knows
are counted and raise a fault without a device; once the address is known they are that device's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import msgspec.structs

from exporter.plugin_state import PluginView
from exporter.samples import (
    GPU_IS_LOST,
    RESET_REQUIRED,
    DeviceIdentity,
    DeviceSample,
    Inventory,
    Sample,
)
from exporter.sources.kernel_intake import KernelMessage
from health.diagnose import Diagnosis, XidEvent, device_lost, nobodys
from health.kernel_line import RECOVERY_ACTIONS, GpuAtLine, SxidLine, XidLine
from health.receipt import RESET, Receipt, RepairResult
from health.report import Evidence, Fault, ReportSpec, Source
from health.vocabulary import FaultKind, Severity, SourceState
from health.xids import Catalogue

NVML = "nvml"
KERNEL_LOG = "kernel-log"

ADDRESS_LIMIT = 256
"""Addresses that are remembered. No machine has so many GPUs; a drill may write any address."""

COUNTER_LIMIT = 1024
"""Counters of kernel lines. What comes beyond is counted under OTHER_CODE of its address, or of no address."""

SEEN_AGAIN = timedelta(seconds=30)
"""How often a fault that lasts is said to have been seen again."""

OTHER_CODE = -1
_NO_ACTION, _RESET_ACTION = 0, 1  # NVML field 230


@dataclass(frozen=True, slots=True)
class Counter:
    """How many lines, and the time of the last one."""

    count: int
    last: datetime


@dataclass(frozen=True, slots=True)
class NodeState:
    """What is known of this node. `boot_id` and `catalogue` never change within a process.

    `devices` are the inventory's, and those that an earlier inventory of this boot had and that are lost.
    `actions` is the recovery action (NVML field 230) that each device's last sample had. `unattributed` holds,
    by PCI address, what is wrong with devices that nobody can name. `xids` and `sxids` count kernel lines of
    this boot by (PCI address, code). `kubelet` is what device plugins and the kubelet say. `cursor` is the number
    of the newest kernel line in this state, `orders` what the controller asks for. `receipts` are those that the
    host has, the newest first; the faults that their resets ended are no longer in `diagnosis`.
    """

    boot_id: str
    catalogue: Catalogue
    devices: tuple[DeviceIdentity, ...] = ()
    driver_version: str = ""
    library_version: str = ""
    sample: Sample | None = None
    sampled_at: datetime | None = None
    actions: Mapping[str, int] = field(default_factory=dict)
    addresses: Mapping[str, str] = field(default_factory=dict)
    diagnosis: Diagnosis = field(default_factory=Diagnosis)
    unattributed: Mapping[str, Diagnosis] = field(default_factory=dict)
    xids: Mapping[tuple[str, int], Counter] = field(default_factory=dict)
    sxids: Mapping[tuple[str, int], Counter] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)
    cursor: int = -1
    orders: ReportSpec = field(default_factory=ReportSpec)
    drill: bool = False
    kubelet: PluginView = field(default_factory=PluginView)
    receipts: tuple[Receipt, ...] = ()

    def with_source(self, name: str, state: SourceState, message: str) -> NodeState:
        """A source says how it works."""
        said = replace(self, sources={**self.sources, name: Source(name, state, message)})
        released = name == NVML and state is SourceState.RELEASED
        return replace(said, sample=None) if released else said

    def with_inventory(self, inventory: Inventory, now: datetime) -> NodeState:
        """The devices were looked up. A lost one that was known before stays, also under a new agent."""
        named = {device.uuid for device in inventory.devices}
        errors = {device.index: device.error for device in inventory.unidentified}
        kept = [
            device
            for device in self.devices
            if device.uuid not in named and (device.index in errors or self._failed(device.uuid))
        ]
        known = replace(
            self,
            devices=tuple(sorted((*inventory.devices, *kept), key=lambda device: device.index)),
            driver_version=inventory.driver_version or "",
            library_version=inventory.nvml_version or "",
        )
        for device in kept:
            if errors.get(device.index) == GPU_IS_LOST:
                known = known._with_lost(device.uuid, now)
        return known.with_addresses(
            {device.pci_address: device.uuid for device in known.devices if device.pci_address}
        )

    def with_addresses(self, addresses: Mapping[str, str]) -> NodeState:
        """These addresses are of these devices; what was seen there before is theirs."""
        if all(self.addresses.get(address) == uuid for address, uuid in addresses.items()):
            return self
        others = {address: uuid for address, uuid in self.addresses.items() if address not in addresses}
        known = replace(self, addresses=dict([*addresses.items(), *others.items()][:ADDRESS_LIMIT]))
        for address in addresses:
            if address in known.unattributed:
                known = known._attributed(address)
        return known

    def with_sample(self, sample: Sample, now: datetime) -> NodeState:
        """A look at all devices."""
        sampled = replace(self, sample=sample, sampled_at=now)
        for device in sample.devices:
            if device.error == GPU_IS_LOST:
                sampled = sampled._with_lost(device.uuid, now)
            action = _recovery_action(device)
            if action is not None and action != sampled.actions.get(device.uuid):
                sampled = sampled._with_action(device.uuid, action, now)
        return sampled

    def with_message(self, message: KernelMessage) -> NodeState:
        """A line of the driver in the kernel log."""
        line = message.line
        advanced = replace(self, cursor=max(self.cursor, message.sequence))
        if isinstance(line, GpuAtLine):
            full = line.address not in self.addresses and len(self.addresses) >= ADDRESS_LIMIT
            if full or any(device.pci_address == line.address for device in self.devices):
                return advanced
            return advanced.with_addresses({line.address: line.uuid})
        if isinstance(line, SxidLine):
            return replace(advanced, sxids=_counted(self.sxids, line.address, line.code, message.time))
        return advanced._with_xid(line, message)

    def with_receipts(self, receipts: tuple[Receipt, ...], now: datetime) -> NodeState:
        """The host has these receipts: each new one of a reset that was done ends what the reset healed.

        One that is known already is not applied again, and keeps its time. A time that lies ahead, since the wall
        clock was set back, is now: else the receipt would end faults that are yet to come.
        """
        known = {(receipt.identity, receipt.result): receipt for receipt in self.receipts}
        taken, new = [], []
        for receipt in receipts:
            before = known.get((receipt.identity, receipt.result))
            taken.append(before or msgspec.structs.replace(receipt, time=min(receipt.time, now)))
            if before is None:
                new.append(taken[-1])
        return replace(self, receipts=tuple(taken))._after(new)

    def after_resets(self) -> NodeState:
        """What is left of faults that were taken in from before: those that no known reset has healed."""
        return self._after(self.receipts)

    def _after(self, receipts: Iterable[Receipt]) -> NodeState:
        diagnosis = self.diagnosis
        for receipt in receipts:
            for uuid in self._reset_by(receipt):
                diagnosis = diagnosis.after_reset(uuid, receipt.time)
        if diagnosis is self.diagnosis:
            return self
        # Against these a sample shows what the driver says anew.
        forgotten = self.diagnosis.verdicts.keys() - diagnosis.verdicts.keys()
        actions = {uuid: action for uuid, action in self.actions.items() if uuid not in forgotten}
        return replace(self, diagnosis=diagnosis, actions=actions)

    def _reset_by(self, receipt: Receipt) -> tuple[str, ...]:
        """The devices that this receipt says were reset in this boot."""
        done = (receipt.step, receipt.result, receipt.boot_id) == (RESET, RepairResult.DONE, self.boot_id)
        return receipt.devices if done else ()

    def restored(
        self,
        faults: Iterable[Fault],
        verdicts: Mapping[str, str],
        now: datetime,
        *,
        verdict_times: Mapping[str, datetime] | None = None,
    ) -> NodeState:
        """What was open before, and what the driver said then.

        A fault that is open again already is not counted twice, and a verdict that is newer stands.
        """
        diagnosis = self.diagnosis
        for fault in faults:
            known = diagnosis.open.get(fault.identity)
            if known is not None:
                fault = msgspec.structs.replace(  # noqa: PLW2901
                    fault, count=max(0, fault.count - known.count)
                )
            diagnosis = diagnosis.with_fault(fault)
        for uuid, action in verdicts.items():
            if uuid not in self.diagnosis.verdicts:
                diagnosis = diagnosis.with_noted(uuid, action, (verdict_times or {}).get(uuid))
        return replace(self, diagnosis=diagnosis).at(now)

    def at(self, now: datetime) -> NodeState:
        """Drop the faults that time or a boot has cleared."""
        diagnosis = self.diagnosis.at(now, boot_id=self.boot_id)
        unattributed = {
            address: held.at(now, boot_id=self.boot_id) for address, held in self.unattributed.items()
        }
        if diagnosis is self.diagnosis and all(
            held is self.unattributed[address] for address, held in unattributed.items()
        ):
            return self
        left = {address: held for address, held in unattributed.items() if held.open}
        return replace(self, diagnosis=diagnosis, unattributed=left)

    def _with_xid(self, line: XidLine, message: KernelMessage) -> NodeState:
        uuid = self.addresses.get(line.address, "")
        event = XidEvent(
            line=line,
            uuid=uuid,
            time=message.time,
            boot_id=self.boot_id,
            sequence=message.sequence,
            excerpt=message.excerpt,
            drill=message.drill,
        )
        seen = replace(
            self,
            xids=_counted(self.xids, line.address, line.code, message.time),
            diagnosis=self.diagnosis.with_xid(event, self.catalogue),
        )
        if uuid or (line.address not in self.unattributed and len(self.unattributed) >= ADDRESS_LIMIT):
            return seen
        held = self.unattributed.get(line.address, Diagnosis())
        held = held.with_xid(replace(event, uuid=line.address), self.catalogue)
        if not held.open:
            return seen
        return replace(seen, unattributed={**self.unattributed, line.address: held})

    def _attributed(self, address: str) -> NodeState:
        """Give what was held under an address to its device; what nobody can be named for is what is left."""
        uuid = self.addresses[address]
        unattributed = dict(self.unattributed)
        held = remaining = unattributed.pop(address)
        for receipt in self.receipts:
            if uuid in self._reset_by(receipt):
                remaining = remaining.after_reset(address, receipt.time)
        diagnosis = self.diagnosis
        for (kind, _), fault in held.open.items():
            diagnosis = diagnosis.without(kind, "")
            if fault.identity in remaining.open:
                diagnosis = diagnosis.with_fault(msgspec.structs.replace(fault, device_uuid=uuid))
            for other, left in unattributed.items():
                if (same := left.open.get((kind, other))) and kind != FaultKind.RECOVERY_REQUIRED:
                    diagnosis = diagnosis.with_fault(nobodys(same))
        if action := remaining.verdicts.get(address):
            diagnosis = diagnosis.with_noted(uuid, action, remaining.verdict_times.get(address))
        return replace(self, diagnosis=diagnosis, unattributed=unattributed)

    def _with_action(self, uuid: str, action: int, now: datetime) -> NodeState:
        """The driver's verdict in a sample has changed.

        Only a change is taken in: the kernel log may know a newer verdict than a sample that was begun before.
        """
        noted = replace(self, actions={**self.actions, uuid: action})
        if self.actions.get(uuid, _NO_ACTION) == action:
            return noted
        words = action_words(action)
        evidence = Evidence(source=NVML, boot_id=self.boot_id, excerpt=f"recovery action: {words}")
        return replace(noted, diagnosis=self.diagnosis.with_verdict(uuid, words, now, evidence=evidence))

    def _with_lost(self, uuid: str, now: datetime) -> NodeState:
        fault = device_lost(uuid, now, boot_id=self.boot_id, source=NVML, excerpt="NVML: GPU is lost (15)")
        known = self.diagnosis.open.get(fault.identity)
        if known is not None:
            if not known.drill and now - known.last_seen < SEEN_AGAIN:
                return self
            # One loss, seen again: it lasts, but it did not happen again.
            fault = msgspec.structs.replace(fault, count=0)
        return replace(self, diagnosis=self.diagnosis.with_fault(fault))

    def _failed(self, uuid: str) -> bool:
        return any(
            fault.device_uuid == uuid and fault.severity is Severity.FATAL
            for fault in self.diagnosis.open.values()
        )


def action_words(action: int) -> str:
    """A recovery action by its number in NVML field 230, in the words of Xid 154."""
    return RECOVERY_ACTIONS[action] if 0 <= action < len(RECOVERY_ACTIONS) else f"unknown action {action}"


def _recovery_action(device: DeviceSample) -> int | None:
    if device.error == RESET_REQUIRED and not device.recovery_action:
        return _RESET_ACTION
    return device.recovery_action


def _counted(
    counters: Mapping[tuple[str, int], Counter], address: str, code: int, time: datetime
) -> Mapping[tuple[str, int], Counter]:
    key = (address, code)
    if key not in counters and len(counters) >= COUNTER_LIMIT:
        key = ("", OTHER_CODE)
    known = counters.get(key)
    counter = Counter(1, time) if known is None else Counter(known.count + 1, max(known.last, time))
    return {**counters, key: counter}
