"""Carries out what was decided: a live look first, the intent before the deed, the outcome after it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeVar

from msgspec.structs import replace

from health.vocabulary import Phase
from remediation import evidence, journal
from remediation.cluster import Cluster, FencedError
from remediation.fleet import UNVERIFIED_KEY, Fleet, Node
from remediation.objects import (
    MESSAGE_LIMIT,
    AcceleratorControl,
    AcceleratorRemediation,
    ControlSpec,
    RemediationStatus,
)
from remediation.orders import CleanOrder, DrainOrder, JobOrder, ReleaseOrder, RestartOrder, RestoreOrder
from remediation.policy import StepName
from remediation.repair_state import FAILURE_LIMIT, RepairState
from remediation.situation import Action, Open, Run, Write
from remediation.steps.cordon import cordon, lift_taint, uncordon
from remediation.steps.drain import PodApi, drain_pass
from remediation.steps.job import VERIFICATION_FAILED, JobApi, Subject, job_pass
from remediation.steps.outcome import Outcome, Result
from remediation.steps.plugin import PluginApi, remove_failed_pods, restart_plugin
from remediation.steps.release import ReleaseApi, release_devices, restore_devices
from runtime.api_errors import ApiError, Conflict, NotFound
from runtime.clock import Clock

log = logging.getLogger(__name__)

Read = TypeVar("Read")

VIEW_LIMIT = 5.0
"""Seconds: a view of the cluster that is older starts nothing, nor does a decision that has waited for longer."""


@dataclass(frozen=True, slots=True)
class Basis:
    """What a decision rests on: if a live look differs, another term has begun, or it is old, it is void.

    Sessions are compared by resourceVersion, the people's switches by what they say: their object changes with
    every start, for it also remembers the start tokens.
    """

    node: Node | None
    sessions: frozenset[tuple[str, str]]
    switches: ControlSpec
    epoch: int
    decided: float

    @classmethod
    def of(cls, fleet: Fleet, node_name: str, *, epoch: int, now: float) -> Basis:
        """What the cache holds now, in monotonic seconds."""
        return cls(
            node=fleet.nodes.get(node_name),
            sessions=frozenset(
                (session.metadata.name, session.metadata.resource_version)
                for session in fleet.open_sessions(node_name)
            ),
            switches=fleet.control.spec,
            epoch=epoch,
            decided=now,
        )


@dataclass(slots=True)
class Report:
    """What carrying out came to: objects as the API server answered them, and the error, if any.

    `started` says whether the session was created, or may have been although no answer came; `gone` names
    sessions that do not exist any more.
    """

    sessions: list[AcceleratorRemediation] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    node: Node | None = None
    control: AcceleratorControl | None = None
    outcome: Outcome | None = None
    started: bool = False
    error: str = ""

    @property
    def failed(self) -> str:
        """Why it did not go through, if it did not: an error, or a step that has to be looked at again."""
        if self.error or self.outcome is None or not self.outcome.failed:
            return self.error
        return self.outcome.message


class WorkloadApi(PodApi, PluginApi, Protocol):
    """What the steps that touch pods need of the Kubernetes API."""


class RepairApi(ReleaseApi, JobApi, Protocol):
    """What the steps that repair need of the Kubernetes API."""


class Aside(Protocol):
    """Begins a read at once, beside what its caller goes on with; what it returns waits for what was read."""

    def __call__(self, read: Callable[[], Read], /) -> Callable[[], Read]: ...


class Executor:
    """One per controller; `carry_out` is called from several threads, one action of a node at a time.

    `epoch` says which term this controller is in now; an action of an earlier one is not carried on with.
    """

    def __init__(
        self,
        cluster: Cluster,
        workloads: WorkloadApi,
        clock: Clock,
        *,
        repairs: RepairApi,
        epoch: Callable[[], int],
        aside: Aside,
    ) -> None:
        self._cluster = cluster
        self._workloads = workloads
        self._repairs = repairs
        self._clock = clock
        self._epoch = epoch
        self._aside = aside

    def carry_out(self, action: Action, basis: Basis) -> Report:
        """Do it. API errors end it and are told in the report: what was written stands, the rest is decided anew."""
        report = Report()
        try:
            self._check_term(basis)
            if (waited := self._clock.monotonic() - basis.decided) > VIEW_LIMIT:
                report.error = f"decided {waited:.0f} s ago, so it is decided again"
                return report
            match action:
                case Write(session, status):
                    report.sessions.append(self._cluster.write_status(session, status))
                case Open():
                    self._open(action, basis, report)
                case Run():
                    self._run(action, basis, report)
        except Conflict as conflict:
            self._look_again(action, report)
            report.error = str(conflict)
        except NotFound as error:
            # Nodes that are not found are a step's outcome: what is gone is the session that was to be written.
            if not isinstance(action, Open):
                report.gone.append(action.session.metadata.name)
            report.error = str(error)
        except ApiError as error:
            if error.maybe_applied or (report.started and report.outcome is None):
                self._look_again(action, report)
            report.error = str(error)
        return report

    def _open(self, action: Open, basis: Basis, report: Report) -> None:
        if self._has_another(action, report):
            return
        # A session is no step yet, so it is created while the look at the switches is under way: what is true
        # for milliseconds decides whether the next job still lands on the node.
        look = self._aside(self._cluster.control)
        report.started = True
        try:
            session = self._cluster.create_session(action.name, action.spec, action.status)
        except ApiError as error:
            report.started = error.maybe_applied
            raise
        report.sessions.append(session)
        if not self._unchanged(basis, report, look):
            return
        if action.step is not None:
            run = Run(session, action.step, action.status, Phase.FENCED, "Fenced", action.status.message)
            self._step(run, basis, report)

    def _run(self, action: Run, basis: Basis, report: Report) -> None:
        if not self._unchanged(basis, report, self._cluster.control):
            return
        if action.order is not None and not self._evident(action, basis, report):
            return
        session = action.session
        if action.status != session.current or session.status is None:
            session = self._cluster.write_status(session, action.status)
            report.sessions.append(session)
        self._step(dataclasses.replace(action, session=session), basis, report)

    def _step(self, run: Run, basis: Basis, report: Report) -> None:
        """Take the step of a session whose intent is written, and write what came of it."""
        self._check_term(basis)
        outcome = report.outcome = self._taken(run, basis)
        report.node = outcome.node or report.node
        now = self._clock.wall()
        status = _remembered(run.status, outcome)
        if outcome.result is Result.WAITING:
            if status != run.status:
                self._check_term(basis)
                report.sessions.append(self._cluster.write_status(run.session, status))
            return
        status = journal.with_outcome(
            status,
            step=run.step,
            attempt=run.status.attempt,
            epoch=basis.epoch,
            now=now,
            result=outcome.result.value,
            message=outcome.message,
        )
        if outcome.succeeded:
            status = journal.moved(status, run.then, reason=run.reason, message=_told(run, outcome), now=now)
            if run.step is StepName.CORDON:
                status = replace(status, fenced_time=status.fenced_time or now)
        elif outcome.hold:
            status = _stopped(status, run, outcome, now)
        self._check_term(basis)
        report.sessions.append(self._cluster.write_status(run.session, status))

    def _taken(self, run: Run, basis: Basis) -> Outcome:
        assert basis.node is not None
        name, status, now = basis.node.name, run.status, self._clock.wall()
        try:
            match run.order:
                case DrainOrder():
                    return drain_pass(self._workloads, name, run.order, status.drain, clock=self._clock)
                case RestartOrder():
                    return restart_plugin(self._workloads, name, run.order, status.restart, now=now)
                case CleanOrder():
                    return remove_failed_pods(self._workloads, name, run.order, status.restart, now=now)
                case ReleaseOrder() | JobOrder() | RestoreOrder():
                    return self._repaired(run, basis.node, now)
            if run.step is StepName.LIFT_TAINT:
                return lift_taint(self._cluster, basis.node, UNVERIFIED_KEY)
            take = cordon if run.step is StepName.CORDON else uncordon
            return take(self._cluster, basis.node, session=run.session.metadata.name)
        except FencedError:
            raise
        except ApiError as error:
            return Outcome(Result.FAILED, str(error))

    def _repaired(self, run: Run, node: Node, now: datetime) -> Outcome:
        session = run.session.metadata.name
        memory = run.status.repair or RepairState(started=now)
        match run.order:
            case JobOrder():
                subject = Subject(session, run.step, node.name, run.session.spec.node_uid)
                return job_pass(self._repairs, subject, run.order, memory, now=now)
            case ReleaseOrder():
                return release_devices(self._repairs, node.name, run.order, memory, session=session, now=now)
            case _:
                return restore_devices(self._repairs, node.name, memory, session=session)

    def _check_term(self, basis: Basis) -> None:
        """Raises FencedError for an action of a term that is over, though this process may lead again by now."""
        now = self._epoch()
        if now != basis.epoch:
            raise FencedError(f"decided in epoch {basis.epoch}, and now it is epoch {now}", reason="Fenced")

    def _unchanged(self, basis: Basis, report: Report, look: Callable[[], AcceleratorControl]) -> bool:
        """A live look at people's switches and the node's open session: whether they are as the decision saw them.

        The node itself is guarded by the resourceVersion in its patch. Sessions are read by name and not listed:
        a consistent list is answered from the watch cache, which waits 6 to 24 ms for etcd's progress (seen on
        1.37). That nobody else has opened one is known from the list at the takeover, after which only this
        leader creates any.
        """
        report.control = look()
        same = report.control.spec == basis.switches
        for name, version in basis.sessions:
            live = self._cluster.session(name)
            if live is None:
                report.gone.append(name)
            else:
                report.sessions.append(live)
            same = same and live is not None and live.metadata.resource_version == version
        if not same:
            report.error = "what the decision rested on has changed; it is made again"
        return same

    def _evident(self, run: Run, basis: Basis, report: Report) -> bool:
        """A live look at the node and its agent's report: whether there still is a reason to touch its pods."""
        assert basis.node is not None
        live = self._cluster.get_node(basis.node.name)
        report.node = live
        if not live.like(basis.node):
            report.error = "the node has changed; it is decided again"
            return False
        if not _needs_evidence(run):
            return True
        why = evidence.lacking_live(run.status, live, self._cluster.report(live.name))
        report.error = why
        return not why

    def _has_another(self, action: Open, report: Report) -> bool:
        """Whether the node has an open session that could not be read at the takeover. Raises UnreadableError."""
        if not self._cluster.unclear(action.spec.node_uid):
            return False
        live = self._cluster.sessions_of(action.spec.node_uid)
        report.sessions.extend(live)
        if all(session.current.phase.closed for session in live):
            return False
        report.error = "the node has a session that can be read by now"
        return True

    def _look_again(self, action: Action, report: Report) -> None:
        """After a conflict or a lost answer: the sessions as they are, since the watch may be behind."""
        uid = action.spec.node_uid if isinstance(action, Open) else action.session.spec.node_uid
        try:
            report.sessions.extend(self._cluster.sessions_of(uid))
        except ApiError as error:
            log.warning("cannot read a node's sessions again", extra={"error": str(error)})


def _needs_evidence(run: Run) -> bool:
    """What only tidies up after a repair, proves one, or sees one to its end, needs no fault to be there still."""
    match run.order:
        case CleanOrder() | RestoreOrder():
            return False
        case RestartOrder(after=after):
            return after is None
        case JobOrder(evident=evident):
            return evident and (run.status.repair is None or run.status.repair.created is None)
    return True


def _told(run: Run, outcome: Outcome) -> str:
    """What a session says when a step has been taken. Giving back what was lent changes nothing of what it says."""
    if isinstance(run.order, RestoreOrder):
        return run.status.message
    return outcome.message if run.order is not None else run.message


def _stopped(status: RemediationStatus, run: Run, outcome: Outcome, now: datetime) -> RemediationStatus:
    """A step that cannot go on: a repair gives way to the next rung, all else is a person's affair."""
    reason, message = outcome.hold, outcome.message
    if not _gives_way(run):
        # However a verification ends that proves nothing, it is not run again and again.
        reason = VERIFICATION_FAILED if run.step is StepName.VERIFY else reason
        return journal.moved(status, Phase.HELD, reason=reason, message=message, now=now)
    memory = status.repair or RepairState(started=now)
    status = replace(status, repair=replace(memory, failed=reason, failure=message[:FAILURE_LIMIT]))
    return journal.moved(status, Phase.FENCED, reason=reason, message=message, now=now)


def _gives_way(run: Run) -> bool:
    match run.order:
        case ReleaseOrder():
            return True
        case RestartOrder(after=after):
            return after is not None
        case JobOrder():
            return run.step is not StepName.VERIFY
    return False


def _remembered(status: RemediationStatus, outcome: Outcome) -> RemediationStatus:
    """The status with what the step wants remembered; how a step that waits stands is the session's message."""
    if outcome.drain is not None:
        status = replace(status, drain=outcome.drain)
    if outcome.restart is not None:
        status = replace(status, restart=outcome.restart)
    if outcome.repair is not None:
        status = replace(status, repair=outcome.repair)
    if outcome.result is Result.WAITING:
        status = replace(status, message=outcome.message[:MESSAGE_LIMIT])
    return status
