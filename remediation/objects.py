"""The controller's objects: AcceleratorRemediation (a session) and AcceleratorControl (the people's switches).

These structs are the contract; the CRDs in `deploy/crds/` are the same for the API server, and a test holds
them together. A session is the journal: every intent is in it before it is carried out.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from enum import StrEnum

import msgspec

from health.report import Fault, Time, Wire
from health.vocabulary import Mode, Phase, Scope, Severity
from remediation.drain_state import DrainState
from remediation.plugin_state import PluginRestart
from remediation.repair_state import RepairState

PHASE_LIMIT = 64
"""Phases kept in a session's history."""

JOURNAL_LIMIT = 64
"""Entries kept in a session's journal; repeats are folded into a count."""

INCIDENT_LIMIT = 256
"""Incidents kept in a session; the schema allows no more."""

MESSAGE_LIMIT = 1024
"""Characters of a message; the schema allows no more."""

OPENING_ANNOTATION = "sickbay.dev/opening"
"""The status a session is born with. The API server drops `status` on create, and the first intent must not
wait for a second write: so it travels in this annotation until the first status write replaces it."""

NODE_LABEL = "sickbay.dev/node-uid"
"""Label of a session: the node's UID, for listing a node's sessions."""


class JournalEvent(StrEnum):
    """An intent is written before the deed, an outcome after it."""

    INTENT = "Intent"
    OUTCOME = "Outcome"


class Decision(StrEnum):
    """What a person says to a session in mode Approve."""

    APPROVED = "Approved"
    DENIED = "Denied"


class NodeAction(StrEnum):
    """What a person may ask for a node in AcceleratorControl."""

    HOLD = "Hold"
    OPT_OUT = "OptOut"


class PolicyReference(Wire, frozen=True):
    """The policy a session was opened under: its name and the first 12 hex digits of its SHA-256."""

    name: str = ""
    hash: str = ""


class Approval(Wire, frozen=True):
    """A person's decision; an admission policy proves that `user` is who wrote it."""

    decision: Decision
    user: str


class Hold(Wire, frozen=True):
    """A person stops a session here; an admission policy proves that `user` is who wrote it."""

    user: str
    reason: str = ""


class RemediationSpec(Wire, frozen=True):
    """What a session is about. Only `approval` and `hold` may change, and only by people."""

    node_name: str
    node_uid: str
    boot_id: str
    mode: Mode
    policy: PolicyReference = PolicyReference()
    approval: Approval | None = None
    hold: Hold | None = None


class Incident(Wire, frozen=True):
    """A fault as the session knows it, with the time it was found gone (absent while it lasts)."""

    kind: str
    first_seen: Time
    last_seen: Time
    code: str = ""
    scope: Scope = Scope.DEVICE
    device_uuid: str = ""
    device_serial: str = ""
    severity: Severity = Severity.FATAL
    advice: str = "None"
    clears_on: str = "Dwell"
    boot_id: str = ""
    drill: bool = False
    cleared_time: Time | None = None

    @property
    def identity(self) -> tuple[str, str]:
        """(kind, device UUID), as of the fault."""
        return (self.kind, self.device_uuid)

    @classmethod
    def of(cls, fault: Fault, *, boot_id: str, serial: str = "") -> Incident:
        """The incident that a fault of a report opens, in the boot it was reported from."""
        return cls(
            kind=fault.kind,
            code=fault.code,
            scope=fault.scope,
            device_uuid=fault.device_uuid,
            device_serial=serial,
            severity=fault.severity,
            advice=fault.advice,
            clears_on=fault.clears_on,
            boot_id=boot_id,
            drill=fault.drill,
            first_seen=fault.first_seen,
            last_seen=fault.last_seen,
        )


class Rung(Wire, frozen=True):
    """One rung of the ladder: its name (an advice), its steps in order, its deadline in seconds and attempts."""

    rung: str
    steps: tuple[str, ...]
    deadline_seconds: int = 3600
    max_attempts: int = 1


class JournalEntry(Wire, frozen=True):
    """One line of the journal. Equal lines that follow each other are one line with a count."""

    time: Time
    epoch: int
    step: str
    event: JournalEvent
    attempt: int = 1
    result: str = ""
    message: str = ""
    count: int = 1


class PhaseEntry(Wire, frozen=True):
    """A phase that the session entered, and when. It ended when the next one began."""

    phase: Phase
    started: Time


class Condition(Wire, frozen=True):
    """A Kubernetes condition (meta/v1)."""

    type: str
    status: str
    reason: str
    last_transition_time: Time
    message: str = ""


class RemediationStatus(Wire, frozen=True):
    """Where a session stands; written by the controller alone. `reason` is a CamelCase word for why.

    `device_count`: the most whole devices that the node's reports have shown, which all must be back in the end.
    """

    phase: Phase = Phase.PENDING
    step: str = ""
    rung: str = ""
    attempt: int = 0
    reason: str = ""
    message: str = ""
    incidents: tuple[Incident, ...] = ()
    plan: tuple[Rung, ...] = ()
    journal: tuple[JournalEntry, ...] = ()
    leader_epoch: int = 0
    trace_id: str = ""
    fenced_time: Time | None = None
    healthy_since: Time | None = None
    closed_time: Time | None = None
    phases: tuple[PhaseEntry, ...] = ()
    drain: DrainState | None = None
    restart: PluginRestart | None = None
    repair: RepairState | None = None
    device_count: int = 0
    conditions: tuple[Condition, ...] = ()


class RemediationMetadata(Wire, frozen=True):
    """What the controller reads of a session's metadata."""

    name: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: Time | None = None
    deletion_timestamp: Time | None = None
    annotations: dict[str, str] = {}
    labels: dict[str, str] = {}


class AcceleratorRemediation(Wire, frozen=True):
    """A whole session as it is read. `status` is absent until the first status write."""

    metadata: RemediationMetadata
    spec: RemediationSpec
    status: RemediationStatus | None = None

    @property
    def current(self) -> RemediationStatus:
        """The status, or the one the session was born with while none was written yet.

        An opening annotation that does not decode (edited by hand) counts as an empty status.
        """
        if self.status is not None:
            return self.status
        try:
            return msgspec.json.decode(
                self.metadata.annotations.get(OPENING_ANNOTATION, "{}"), type=RemediationStatus
            )
        except msgspec.MsgspecError:
            return RemediationStatus()


class Pause(Wire, frozen=True):
    """A person stops all of the controller's steps but releases."""

    user: str
    reason: str = ""


class NodeSwitch(Wire, frozen=True):
    """A person holds a node, or opts it out."""

    name: str
    action: NodeAction
    user: str
    reason: str = ""


class ControlSpec(Wire, frozen=True):
    """The people's switches."""

    pause: Pause | None = None
    nodes: tuple[NodeSwitch, ...] = ()


class StartTokens(Wire, frozen=True):
    """The start-rate bucket as last written: tokens left at a time, so that it survives a restart."""

    tokens: float
    refreshed_time: Time


class BreakerState(StrEnum):
    """`Open` stops new steps; `HalfOpen` lets one through to see."""

    CLOSED = "Closed"
    OPEN = "Open"
    HALF_OPEN = "HalfOpen"


class Breaker(Wire, frozen=True):
    """The storm breaker as last written."""

    state: BreakerState
    since: Time
    reason: str = ""


class ControlStatus(Wire, frozen=True):
    """What must survive a restart of the controller."""

    breaker: Breaker | None = None
    start_tokens: StartTokens | None = None


class AcceleratorControl(Wire, frozen=True):
    """The singleton `default`."""

    metadata: RemediationMetadata = RemediationMetadata()
    spec: ControlSpec = ControlSpec()
    status: ControlStatus = ControlStatus()


def session_name(
    node_name: str,
    node_uid: str,
    kind: str,
    device_uuid: str,
    first_seen: datetime,
    *,
    succeeding: Mode | None = None,
) -> str:
    """The session's name: creating one twice for the same onset of the same fault is a conflict.

    The node's name cut to 200 characters (without a trailing dot or dash, which a name may not have before
    the dash that follows) and 10 hex digits of SHA-256 over node UID, fault identity and first seen. A session
    of a mode that may do more, `succeeding` one of the same onset that was superseded, has its mode in the hash.
    """
    onset = first_seen.astimezone(UTC).isoformat()
    identity = "\n".join((node_uid, kind, device_uuid, onset, *([succeeding.value] if succeeding else [])))
    digest = hashlib.sha256(identity.encode()).hexdigest()[:10]
    return f"{node_name[:200].rstrip('.-')}-{digest}"
