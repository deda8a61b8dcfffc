"""Small makers of what the controller decides about: faults, reports, nodes, sessions, policies, situations."""

from datetime import UTC, datetime, timedelta

import msgspec

from health.report import (
    AcceleratorReport,
    Device,
    Fault,
    Maintenance,
    ReportMetadata,
    ReportSpec,
    ReportStatus,
    Source,
)
from health.vocabulary import DeviceHealth, Mode, Phase, Severity
from remediation import journal
from remediation.budget import StartBucket
from remediation.fleet import (
    HOLD_KEY,
    OPT_OUT_KEY,
    SESSION_KEY,
    Fleet,
    Node,
    NodeCondition,
    NodeInfo,
    NodeMetadata,
    NodeSpec,
    NodeStatus,
    Taint,
)
from remediation.objects import (
    AcceleratorControl,
    AcceleratorRemediation,
    Approval,
    ControlSpec,
    Hold,
    NodeSwitch,
    Pause,
    RemediationMetadata,
    RemediationSpec,
    RemediationStatus,
    session_name,
)
from remediation.policy import Budgets, Match, NodeLimit, Policy, Pool, Rule, Selector, StartRate, plan_for
from remediation.situation import Now, Situation
from runtime.quantities import Duration

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NOW = Now(wall=NOON, monotonic=1000.0)
FULL = StartBucket(tokens=10.0, refreshed=1000.0)
GPU = "GPU-aaaaaaaa"
OTHER_GPU = "GPU-bbbbbbbb"


def fault(
    kind: str = "DeviceLost",
    *,
    device: str = GPU,
    advice: str = "RebootNode",
    clears_on: str = "NewBoot",
    severity: Severity = Severity.FATAL,
    code: str = "xid:79",
    seen: datetime = NOON,
    last: datetime | None = None,
) -> Fault:
    return Fault(
        kind=kind,
        severity=severity,
        first_seen=seen,
        last_seen=last or seen,
        code=code,
        device_uuid=device,
        advice=advice,
        clears_on=clears_on,
    )


def report(
    name: str = "n1",
    *faults: Fault,
    uid: str = "",
    boot: str = "boot-1",
    sequence: int = 1,
    version: int = 1,
    maintenance: bool = False,
    sources: tuple[Source, ...] = (),
) -> AcceleratorReport:
    return AcceleratorReport(
        metadata=ReportMetadata(name=name, uid=f"report-{name}", resource_version=str(version)),
        spec=ReportSpec(maintenance=Maintenance("driver upgrade", NOON) if maintenance else None),
        status=ReportStatus(
            node_uid=uid or f"uid-{name}",
            boot_id=boot,
            sequence=sequence,
            devices=(
                Device(uuid=GPU, index=0, serial="S1", health=DeviceHealth.HEALTHY),
                Device(uuid=OTHER_GPU, index=1, serial="S2", health=DeviceHealth.HEALTHY),
            ),
            faults=faults,
            sources=sources,
        ),
    )


def node(
    name: str = "n1",
    *,
    uid: str = "",
    cordoned: bool = False,
    owner: str = "",
    ready: bool = True,
    boot: str = "boot-1",
    labels: dict[str, str] | None = None,
    hold: bool = False,
    opt_out: bool = False,
    taint: str = "",
    deleting: bool = False,
    version: int = 1,
) -> Node:
    keys = {SESSION_KEY: owner, HOLD_KEY: "alice" if hold else "", OPT_OUT_KEY: "alice" if opt_out else ""}
    return Node(
        metadata=NodeMetadata(
            name=name,
            uid=uid or f"uid-{name}",
            resource_version=str(version),
            labels=labels or {},
            annotations={key: value for key, value in keys.items() if value},
            deletion_timestamp=NOON if deleting else None,
        ),
        spec=NodeSpec(unschedulable=cordoned, taints=(Taint(taint),) if taint else ()),
        status=NodeStatus(
            conditions=(NodeCondition("Ready", "True" if ready else "Unknown"),),
            node_info=NodeInfo(boot),
        ),
    )


def session(
    *faults: Fault,
    name: str = "",
    node_name: str = "n1",
    uid: str = "",
    mode: Mode = Mode.AUTO,
    phase: Phase = Phase.PENDING,
    reason: str = "",
    boot: str = "boot-1",
    fenced: bool | None = None,
    healthy_since: datetime | None = None,
    closed: datetime | None = None,
    step: str = "",
    approval: Approval | None = None,
    hold: Hold | None = None,
    version: int = 1,
    created: datetime = NOON,
    planned: bool = True,
    status: RemediationStatus | None = None,
) -> AcceleratorRemediation:
    """A session about these faults (DeviceLost without any); `fenced` by default in phases after Pending."""
    about = faults or (fault(),)
    owner = uid or f"uid-{node_name}"
    if fenced is None:
        fenced = mode is not Mode.OBSERVE and phase not in (Phase.PENDING, Phase.CANCELLED)
    plan = plan_for(Rule(name="r"), about[0].advice) if planned else ()
    told = journal.with_incidents(
        RemediationStatus(
            phase=phase,
            reason=reason,
            step=step,
            plan=plan,
            rung=plan[0].rung if plan else "",
            fenced_time=NOON if fenced else None,
            healthy_since=healthy_since,
            closed_time=closed or (NOON if phase.closed else None),
        ),
        report(node_name, *about, uid=owner, boot=boot),
        about,
        NOON,
    )
    first = about[0]
    return AcceleratorRemediation(
        metadata=RemediationMetadata(
            name=name or session_name(node_name, owner, first.kind, first.device_uuid, first.first_seen),
            uid=f"session-{name or node_name}",
            resource_version=str(version),
            creation_timestamp=created,
        ),
        spec=RemediationSpec(
            node_name=node_name, node_uid=owner, boot_id=boot, mode=mode, approval=approval, hold=hold
        ),
        status=status or told,
    )


def policy(
    mode: Mode = Mode.AUTO,
    *rules: Rule,
    max_fenced: str | int = "100%",
    max_disrupted: str | int = "5%",
    floor: int = 1,
    per_minute: int = 5,
    burst: int = 10,
    pools: tuple[str, ...] = (),
    dwell: str = "5m",
) -> Policy:
    """One rule for everything, or these rules. A pool's nodes carry the label `pool`."""
    return Policy(
        pools=tuple(Pool(name=name, selector=Selector({"pool": name})) for name in pools),
        rules=rules or (Rule(name="all", match=Match(), mode=mode),),
        budgets=Budgets(
            max_fenced=NodeLimit.parse(max_fenced),
            max_disrupted=NodeLimit.parse(max_disrupted),
            floor=floor,
            start_rate=StartRate(per_minute=per_minute, burst=burst),
        ),
        healthy_dwell=Duration.parse(dwell),
    )


def control(*nodes: NodeSwitch, paused: bool = False, version: int = 1) -> AcceleratorControl:
    return AcceleratorControl(
        metadata=RemediationMetadata(name="default", resource_version=str(version)),
        spec=ControlSpec(pause=Pause("alice", "change freeze") if paused else None, nodes=nodes),
    )


def fleet(
    *found: Node | AcceleratorReport | AcceleratorRemediation | AcceleratorControl,
    monotonic: float = NOW.monotonic,
) -> Fleet:
    """A fleet in which every report has just been seen to advance, and was fresh for an hour without a break."""
    made = Fleet()
    for item in found:
        match item:
            case Node():
                made.put_node(item)
            case AcceleratorReport():
                see_advance(made, item, began=monotonic - 3600, until=monotonic)
            case AcceleratorRemediation():
                made.put_session(item)
            case AcceleratorControl():
                made.put_control(item)
    return made


def see_advance(made: Fleet, item: AcceleratorReport, *, began: float, until: float) -> None:
    """Let the fleet see this report from one renewal to the next."""
    renewed, moment, sequence = item, began, item.status.sequence
    made.put_report(item, began - 30)
    while moment <= until:
        sequence += 1
        renewed = with_sequence(renewed, sequence)
        made.put_report(renewed, moment)
        moment += 30


def with_sequence(item: AcceleratorReport, sequence: int) -> AcceleratorReport:
    return AcceleratorReport(
        metadata=ReportMetadata(
            item.metadata.name, item.metadata.uid, str(int(item.metadata.resource_version) + 1)
        ),
        spec=item.spec,
        status=msgspec.structs.replace(item.status, sequence=sequence),
    )


def situation(
    made: Fleet,
    *,
    name: str = "n1",
    under: Policy | None = None,
    bucket: StartBucket = FULL,
    virtual_bucket: StartBucket = FULL,
    wall: datetime = NOON,
    monotonic: float = NOW.monotonic,
    epoch: int = 7,
) -> Situation:
    return Situation(
        name=name,
        fleet=made,
        policy=under or policy(),
        bucket=bucket,
        virtual_bucket=virtual_bucket,
        now=Now(wall=wall, monotonic=monotonic),
        epoch=epoch,
    )


def later(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)
