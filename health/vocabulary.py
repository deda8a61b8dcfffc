"""The words that Sickbay's parts share: kinds of fault, severities, advice, states.

Every enum is CamelCase on the wire (Kubernetes API conventions) and its values are permanent: there is
no conversion webhook. A second vendor's words fit in: nothing here names a vendor, an Xid or NVML.
"""

from __future__ import annotations

from enum import StrEnum

API_GROUP = "sickbay.dev"
API_VERSION = "v1alpha1"
GROUP_VERSION = f"{API_GROUP}/{API_VERSION}"


class FaultKind(StrEnum):
    """What is wrong. With the device it is a fault's identity: a new code or count never restarts its clock."""

    DEVICE_LOST = "DeviceLost"
    UNCORRECTABLE_MEMORY = "UncorrectableMemory"
    CONTAINED_MEMORY = "ContainedMemory"
    REMAP_PENDING = "RemapPending"
    REMAP_FAILED = "RemapFailed"
    ENGINE_HUNG = "EngineHung"
    FIRMWARE_HUNG = "FirmwareHung"
    LINK_FAULT = "LinkFault"
    FABRIC_FAULT = "FabricFault"
    PCIE_DEGRADED = "PcieDegraded"
    THROTTLED = "Throttled"
    DRIVER_HUNG = "DriverHung"
    DRIVER_MISSING = "DriverMissing"
    LIBRARY_MISMATCH = "LibraryMismatch"
    DEVICE_MISSING = "DeviceMissing"
    INVENTORY_DRIFT = "InventoryDrift"
    APPLICATION_FAULT = "ApplicationFault"
    DEVICE_NOT_RELEASED = "DeviceNotReleased"
    NETWORK_LINK = "NetworkLink"
    PLUGIN_DEAD = "PluginDead"
    PLUGIN_HUNG = "PluginHung"
    PLUGIN_WEDGED = "PluginWedged"
    PLUGIN_SOCKET_LOST = "PluginSocketLost"
    DEVICE_NOT_OFFERED = "DeviceNotOffered"
    DEVICE_OFFERED_THOUGH_BAD = "DeviceOfferedThoughBad"
    UNKNOWN_XID = "UnknownXid"
    RECOVERY_REQUIRED = "RecoveryRequired"


class Scope(StrEnum):
    """How far a fault reaches."""

    DEVICE = "Device"
    NODE = "Node"
    FABRIC = "Fabric"


class Severity(StrEnum):
    """`Info` is counted, `Degraded` is shown and alerts, `Fatal` fences the node at once."""

    INFO = "Info"
    DEGRADED = "Degraded"
    FATAL = "Fatal"

    @property
    def rank(self) -> int:
        """0 for Info to 2 for Fatal, for comparing two severities."""
        return _SEVERITIES.index(self)


_SEVERITIES = tuple(Severity)


class Advice(StrEnum):
    """The cheapest repair that is known to help. On the wire an open string: an older reader meets new words."""

    NONE = "None"
    RUN_DIAGNOSTICS = "RunDiagnostics"
    RESTART_WORKLOAD = "RestartWorkload"
    RESTART_PLUGIN = "RestartPlugin"
    RESTART_SERVICE = "RestartService"
    RESET_DEVICE = "ResetDevice"
    REBOOT_NODE = "RebootNode"
    REPLACE_HARDWARE = "ReplaceHardware"

    @property
    def rank(self) -> int:
        """0 for None, growing with what the repair costs, for comparing two pieces of advice."""
        return _ADVICE.index(self)


_ADVICE = tuple(Advice)


class ClearsOn(StrEnum):
    """What ends a fault: a new boot, a device reset, quiet for the dwell time, or the driver saying so."""

    NEW_BOOT = "NewBoot"
    DEVICE_RESET = "DeviceReset"
    DWELL = "Dwell"
    DRIVER_VERDICT = "DriverVerdict"

    @property
    def rank(self) -> int:
        """0 for what clears most easily (Dwell) to 3 for a new boot."""
        return _CLEARING.index(self)


_CLEARING = (ClearsOn.DWELL, ClearsOn.DRIVER_VERDICT, ClearsOn.DEVICE_RESET, ClearsOn.NEW_BOOT)


class DeviceHealth(StrEnum):
    """A device's own state. `Unknown` means no data, which is never a fault of the hardware."""

    HEALTHY = "Healthy"
    DEGRADED = "Degraded"
    FAILED = "Failed"
    UNKNOWN = "Unknown"


class SourceState(StrEnum):
    """How well one of the agent's sources works."""

    LIVE = "Live"
    STALE = "Stale"
    FAILED = "Failed"
    RELEASED = "Released"
    UNSUPPORTED = "Unsupported"


class DeviceAccess(StrEnum):
    """Whether the agent holds handles on the devices; a device reset needs them released."""

    HELD = "Held"
    RELEASED = "Released"


class Mode(StrEnum):
    """What a rule may do: decide and journal only, ask first, or act."""

    OBSERVE = "Observe"
    APPROVE = "Approve"
    AUTO = "Auto"


class Phase(StrEnum):
    """Where a remediation session stands. `Released` and `Cancelled` are closed, all others are open."""

    PENDING = "Pending"
    FENCED = "Fenced"
    DRAINING = "Draining"
    REPAIRING = "Repairing"
    VERIFYING = "Verifying"
    RELEASED = "Released"
    HELD = "Held"
    CANCELLED = "Cancelled"

    @property
    def closed(self) -> bool:
        """Whether the session has ended for good."""
        return self in (Phase.RELEASED, Phase.CANCELLED)
