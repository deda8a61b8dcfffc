"""AcceleratorReport: what a node's agent says of its accelerators, and what the controller asks of the agent.

These structs are the contract; `deploy/crds/acceleratorreports.yaml` is the same thing for the API server,
and a test holds the two together. Times are RFC 3339 in UTC. Fields that are absent are not known.

The structs read tolerantly (open strings for words that may grow) since a controller meets reports of
older and newer agents; the enums of `health.vocabulary` are what this version writes.
"""

from __future__ import annotations

from health.receipt import Receipt
from health.vocabulary import DeviceAccess, DeviceHealth, Scope, Severity, SourceState
from health.wire import Time, Wire

__all__ = [
    "AcceleratorReport",
    "Device",
    "DeviceRelease",
    "Drill",
    "Driver",
    "Evidence",
    "Fault",
    "Maintenance",
    "Partition",
    "Plugin",
    "PluginResource",
    "Receipt",
    "ReportMetadata",
    "ReportSpec",
    "ReportStatus",
    "Source",
    "Time",
    "Wire",
]


class Partition(Wire, frozen=True):
    """A part of a device that workloads see as a device: a MIG instance, a compute partition."""

    parent_uuid: str
    profile: str


class Device(Wire, frozen=True):
    """One accelerator, or one partition of it.

    `index` is the vendor tool's number, `pci_address` is `dddd:bb:dd.f` in lower case, `vendor` the vendor's
    name in lower case (`nvidia`, `amd`), `recovery_action` the driver's own verdict as one word (NVML field
    230: `GPUResetRequired`; empty where the driver has none).
    """

    uuid: str
    index: int
    vendor: str = ""
    model: str = ""
    serial: str = ""
    pci_address: str = ""
    vbios: str = ""
    partition: Partition | None = None
    recovery_action: str = ""
    health: DeviceHealth = DeviceHealth.UNKNOWN


class Evidence(Wire, frozen=True):
    """Where a fault was seen: the source's name, the boot, the record's number in it, and at most 512 characters."""

    source: str = ""
    boot_id: str = ""
    sequence: int = 0
    excerpt: str = ""


class Fault(Wire, frozen=True):
    """One fault. Its identity is (kind, device UUID); `code` (such as `xid:79`) is evidence, not identity.

    `kind` and `advice` are open strings on the wire: `health.vocabulary.FaultKind` and `Advice` are what this
    version writes. `device_uuid` is empty for a fault of the node, or of a device that nobody can name.
    """

    kind: str
    severity: Severity
    first_seen: Time
    last_seen: Time
    code: str = ""
    scope: Scope = Scope.DEVICE
    device_uuid: str = ""
    advice: str = "None"
    clears_on: str = "Dwell"
    count: int = 1
    drill: bool = False
    evidence: Evidence | None = None

    @property
    def identity(self) -> tuple[str, str]:
        """(kind, device UUID)."""
        return (self.kind, self.device_uuid)


class PluginResource(Wire, frozen=True):
    """One device plugin of the node as the agent's probe finds it: its resource (`nvidia.com/gpu`) and state."""

    name: str
    state: str = ""
    socket: str = ""


class Plugin(Wire, frozen=True):
    """The device plugins of the node."""

    resources: tuple[PluginResource, ...] = ()


class Source(Wire, frozen=True):
    """How one of the agent's sources works: its name, its state and why."""

    name: str
    state: SourceState
    message: str = ""


class Driver(Wire, frozen=True):
    """The accelerator driver: its name (`nvidia`), the kernel module's version and the library's."""

    name: str = ""
    version: str = ""
    library_version: str = ""


class ReportStatus(Wire, frozen=True):
    """Written by the node's agent alone. `sequence` grows by one with every write, also across restarts.

    `receipts` are what repairs of this boot have left on the host, the newest first and at most 16.
    """

    node_uid: str = ""
    boot_id: str = ""
    agent_version: str = ""
    observed_time: Time | None = None
    sequence: int = 0
    renew_time: Time | None = None
    driver: Driver | None = None
    devices: tuple[Device, ...] = ()
    faults: tuple[Fault, ...] = ()
    plugin: Plugin | None = None
    sources: tuple[Source, ...] = ()
    device_access: DeviceAccess = DeviceAccess.HELD
    drill: bool = False
    receipts: tuple[Receipt, ...] = ()


class DeviceRelease(Wire, frozen=True):
    """The controller asks the agent to let go of its device handles for a session, at most until `until`."""

    session: str
    until: Time


class Maintenance(Wire, frozen=True):
    """Somebody works on the node (a driver upgrade): faults are shown, nothing is started."""

    reason: str
    since: Time


class Drill(Wire, frozen=True):
    """Until `until`, kernel lines that userspace wrote are believed as well; faults from them say `drill`."""

    user: str
    until: Time


class ReportSpec(Wire, frozen=True):
    """Written by the controller alone: the way back to the agent, which reads it in the answer to each renewal."""

    device_release: DeviceRelease | None = None
    maintenance: Maintenance | None = None
    pool: str = ""
    drill: Drill | None = None


class ReportMetadata(Wire, frozen=True):
    """What is read of an object's metadata."""

    name: str = ""
    uid: str = ""
    resource_version: str = ""


class AcceleratorReport(Wire, frozen=True):
    """The whole object, `kind: AcceleratorReport`, named as its node."""

    metadata: ReportMetadata = ReportMetadata()
    spec: ReportSpec = ReportSpec()
    status: ReportStatus = ReportStatus()
