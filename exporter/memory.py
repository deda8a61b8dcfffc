"""What outlives the agent's restarts within one boot: a small JSON file on the host's disk.

It holds the open faults, what the kernel log has been read up to and how many Xids it had by then, so that a
restart neither raises nor clears a fault nor counts a line twice; and what the controller asked for, so that
an agent that is restarted in the middle of a device reset does not take the device.

A file that is missing, damaged or of another boot is said in the log and left aside; the report in the cluster
and the kernel log then tell.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import msgspec

from exporter.dispatch_trace import Dispatched
from exporter.reporting import action_of_wire
from exporter.samples import DeviceIdentity
from exporter.state import Counter, NodeState
from health.diagnose import Diagnosis
from health.kernel_line import RECOVERY_ACTIONS
from health.receipt import Receipt
from health.report import Device, Driver, Fault, ReportSpec, ReportStatus

FILE_LIMIT = 4 * 2**20
"""Bytes. A node with 8 devices and 30 faults needs 20 KiB."""

log = logging.getLogger(__name__)


class Tally(msgspec.Struct, frozen=True):
    """How often a code came from a PCI address in this boot, and when it did last."""

    address: str
    code: int
    count: int
    last: datetime


class Unattributed(msgspec.Struct, frozen=True):
    """Faults of a device that nobody could name, by its PCI address, and the driver's verdict on it."""

    address: str
    faults: tuple[Fault, ...]
    verdict: str = ""
    verdict_time: datetime | None = None


class Memory(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The file's content.

    `cursor` is the number of the newest kernel line that all the rest includes, `sequence` the report's;
    `met` says that the report in the cluster was taken up already.
    """

    boot_id: str
    node_uid: str = ""
    sequence: int = 0
    met: bool = False
    cursor: int = -1
    driver_version: str = ""
    library_version: str = ""
    devices: tuple[DeviceIdentity, ...] = ()
    addresses: dict[str, str] = {}
    faults: tuple[Fault, ...] = ()
    verdicts: dict[str, str] = {}
    verdict_times: dict[str, datetime] = {}
    actions: dict[str, int] = {}
    unattributed: tuple[Unattributed, ...] = ()
    xids: tuple[Tally, ...] = ()
    sxids: tuple[Tally, ...] = ()
    orders: ReportSpec = ReportSpec()
    dispatches: tuple[Dispatched, ...] = ()
    receipts: tuple[Receipt, ...] = ()


def remembered(state: NodeState, *, node_uid: str, sequence: int, met: bool) -> Memory:
    """What of this state is worth keeping; `sequence` is the report's, `met` that its faults are in the state."""
    return Memory(
        boot_id=state.boot_id,
        node_uid=node_uid,
        sequence=sequence,
        met=met,
        cursor=state.cursor,
        driver_version=state.driver_version,
        library_version=state.library_version,
        devices=state.devices,
        addresses=dict(state.addresses),
        faults=tuple(state.diagnosis.open.values()),
        verdicts=dict(state.diagnosis.verdicts),
        verdict_times=dict(state.diagnosis.verdict_times),
        actions=dict(state.actions),
        unattributed=tuple(
            Unattributed(
                address,
                tuple(held.open.values()),
                held.verdicts.get(address, ""),
                held.verdict_times.get(address),
            )
            for address, held in state.unattributed.items()
        ),
        xids=_tallies(state.xids.items()),
        sxids=_tallies(state.sxids.items()),
        orders=state.orders,
        receipts=state.receipts,
    )


def recalled(memory: Memory, state: NodeState, now: datetime) -> NodeState:
    """A fresh state with what was kept of this boot."""
    kept = replace(
        state,
        cursor=memory.cursor,
        driver_version=memory.driver_version,
        library_version=memory.library_version,
        devices=memory.devices,
        addresses=memory.addresses,
        actions=memory.actions,
        unattributed={
            held.address: Diagnosis(
                open={fault.identity: fault for fault in held.faults},
                verdicts={held.address: held.verdict} if held.verdict else {},
                verdict_times={held.address: held.verdict_time} if held.verdict_time else {},
            )
            for held in memory.unattributed
        },
        xids=_counters(memory.xids),
        sxids=_counters(memory.sxids),
        orders=memory.orders,
        receipts=memory.receipts,
    )
    return kept.restored(memory.faults, memory.verdicts, now, verdict_times=memory.verdict_times)


def with_own_report(report: ReportStatus, state: NodeState, now: datetime) -> NodeState:
    """What this node's own last report says, where no file does.

    Faults that last over a boot are taken from a report of an earlier boot too, devices only of this one.
    """
    if report.boot_id != state.boot_id:
        return state.restored(report.faults, {}, now)
    known = state
    if not state.devices:
        driver = report.driver or Driver()
        known = replace(
            state,
            driver_version=driver.version,
            library_version=driver.library_version,
            devices=tuple(_identity(device) for device in report.devices),
        )
    addresses = {device.pci_address: device.uuid for device in report.devices if device.pci_address}
    words = {
        device.uuid: action_of_wire(device.recovery_action)
        for device in report.devices
        if device.recovery_action
    }
    # Against these a sample shows what the driver has taken back meanwhile.
    actions = {uuid: RECOVERY_ACTIONS.index(said) for uuid, said in words.items() if said in RECOVERY_ACTIONS}
    known = replace(known, actions={**known.actions, **actions})
    known = known.with_addresses({**addresses, **state.addresses})
    verdicts = {uuid: said for uuid, said in words.items() if said != RECOVERY_ACTIONS[0]}
    times = dict.fromkeys(verdicts, report.observed_time) if report.observed_time else {}
    known = known.restored(report.faults, verdicts, now, verdict_times=times).after_resets()
    return known.with_sample(state.sample, state.sampled_at or now) if state.sample else known


def load(path: Path, *, boot_id: str, node_uid: str) -> Memory | None:
    """What was kept of this boot of this node; None, with a line in the log, if there is nothing of use."""
    try:
        with path.open("rb") as file:
            memory = msgspec.json.decode(file.read(FILE_LIMIT), type=Memory)
    except FileNotFoundError:
        log.info("no state file: this is the first start, or it was deleted", extra={"file": str(path)})
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning(
            "the state file cannot be used; the report and the kernel log tell instead",
            extra={"file": str(path), "why": str(error)},
        )
        return None
    if memory.boot_id != boot_id or (node_uid and memory.node_uid and memory.node_uid != node_uid):
        log.info(
            "the state file is of another boot or node and is left aside",
            extra={"file": str(path), "boot_id": memory.boot_id, "node_uid": memory.node_uid},
        )
        return None
    return memory


def save(path: Path, memory: Memory) -> None:
    """Write the file so that a crash at any moment leaves the old one or the new one. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(memory))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class Keeper:
    """Saves the newest memory on a thread of its own: the disk is slow, and no event waits for it."""

    def __init__(self, path: Path, *, write: Callable[[Path, Memory], None] = save) -> None:
        self._path = path
        self._write = write
        self._condition = threading.Condition()
        self._newest: Memory | None = None
        self._stopping = False
        self._complaint = ""
        self._thread = threading.Thread(target=self._run, name="state-file", daemon=True)
        self.failures = 0

    def start(self) -> None:
        """Begin. Returns at once."""
        self._thread.start()

    def offer(self, memory: Memory) -> None:
        """Save this, unless something newer is offered before its turn comes. Returns at once."""
        with self._condition:
            self._newest = memory
            self._condition.notify()

    def stop(self, timeout: float = 1.0) -> bool:
        """Save what was offered last and end. False if the disk takes longer than `timeout` seconds."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._newest is not None or self._stopping)
                memory, self._newest = self._newest, None
            if memory is None:
                return
            self._save(memory)

    def _save(self, memory: Memory) -> None:
        try:
            self._write(self._path, memory)
            self._complaint = ""
        except OSError as error:
            self.failures += 1
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.warning(
                    "the state file cannot be written: a restart will rely on the report in the cluster",
                    extra={"file": str(self._path), "why": str(error)},
                )


def _tallies(counters: Iterable[tuple[tuple[str, int], Counter]]) -> tuple[Tally, ...]:
    return tuple(Tally(address, code, counter.count, counter.last) for (address, code), counter in counters)


def _counters(tallies: Iterable[Tally]) -> dict[tuple[str, int], Counter]:
    return {(tally.address, tally.code): Counter(tally.count, tally.last) for tally in tallies}


def _identity(device: Device) -> DeviceIdentity:
    return DeviceIdentity(
        uuid=device.uuid,
        index=device.index,
        model=device.model or None,
        serial=device.serial or None,
        pci_address=device.pci_address or None,
        vbios=device.vbios or None,
    )
