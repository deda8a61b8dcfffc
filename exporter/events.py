"""What the agent's threads tell the one that folds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from exporter.holdings import Holdings
from exporter.pods import PodSeen, PodsListed
from exporter.samples import Inventory, Sample
from exporter.sources.kernel_intake import KernelMessage
from exporter.sources.plugin_target import Plugin
from health.receipt import Receipt
from health.report import ReportSpec, ReportStatus
from health.vocabulary import SourceState


@dataclass(frozen=True, slots=True)
class SourceSaid:
    """A source's state, or the reason of it, has changed."""

    name: str
    state: SourceState
    message: str


@dataclass(frozen=True, slots=True)
class Probed:
    """Something about a device plugin has changed; all of them, sorted by socket."""

    plugins: tuple[Plugin, ...]


@dataclass(frozen=True, slots=True)
class ReceiptsRead:
    """What repairs have left on the host has changed; the newest receipts, the newest first."""

    receipts: tuple[Receipt, ...]


@dataclass(frozen=True, slots=True)
class AllocationFailed:
    """The kubelet has refused a pod (`NAMESPACE/NAME`) that the scheduler had given devices of this resource.

    `time` is when, None for just now.
    """

    resource: str
    pod: str
    time: datetime | None = None


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """The kernel log has been read up to its end."""


@dataclass(frozen=True, slots=True)
class Met:
    """This node's report was read for the first time; None if there is none to take up."""

    status: ReportStatus | None


@dataclass(frozen=True, slots=True)
class Written:
    """The report was written, with this sequence number."""

    sequence: int


Event = (
    KernelMessage
    | Inventory
    | Sample
    | SourceSaid
    | Probed
    | Holdings
    | ReceiptsRead
    | AllocationFailed
    | PodSeen
    | PodsListed
    | CaughtUp
    | Met
    | Written
    | ReportSpec
)
