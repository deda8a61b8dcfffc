"""Carries out what was decided: a live look first, the intent before the deed, the outcome after it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from health.vocabulary import Phase
from remediation import journal
from remediation.cluster import Cluster
from remediation.fleet import Fleet, Node
from remediation.objects import AcceleratorControl, AcceleratorRemediation
from remediation.policy import StepName
from remediation.situation import Action, Open, Run, Write
from remediation.steps.cordon import cordon, uncordon
from remediation.steps.outcome import Outcome
from runtime.api_errors import ApiError, Conflict
from runtime.clock import Clock

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Basis:
    """The exact objects that a decision rests on: if a live look differs, it is void.

    Sessions count by resource version, the people's switches by generation, which grows with their spec alone:
    their status is what this controller itself remembers there.
    """

    node: Node | None
    sessions: frozenset[tuple[str, str]]
    control: int

    @classmethod
    def of(cls, fleet: Fleet, node_name: str) -> Basis:
        """What the cache holds now."""
        return cls(
            node=fleet.nodes.get(node_name),
            sessions=frozenset(
                (session.metadata.name, session.metadata.resource_version)
                for session in fleet.open_sessions(node_name)
            ),
            control=fleet.control.metadata.generation,
        )


@dataclass(slots=True)
class Report:
    """What carrying out came to: objects as the API server answered them, and the error, if any.

    `started` says whether the session was created, or may have been although no answer came.
    """

    sessions: list[AcceleratorRemediation] = field(default_factory=list)
    node: Node | None = None
    control: AcceleratorControl | None = None
    outcome: Outcome | None = None
    started: bool = False
    error: str = ""


class Executor:
    """One per controller; `carry_out` is called from several threads, one action of a node at a time."""

    def __init__(self, cluster: Cluster, clock: Clock, *, epoch: Callable[[], int]) -> None:
        self._cluster = cluster
        self._clock = clock
        self._epoch = epoch

    def carry_out(self, action: Action, basis: Basis) -> Report:
        """Do it. API errors end it and are told in the report: what was written stands, the rest is decided anew."""
        report = Report()
        try:
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
        except ApiError as error:
            report.error = str(error)
        return report

    def _open(self, action: Open, basis: Basis, report: Report) -> None:
        if not self._unchanged(basis, action.spec.node_uid, report):
            return
        report.started = True
        try:
            session = self._cluster.create_session(action.name, action.spec, action.status)
        except ApiError as error:
            report.started = error.maybe_applied
            raise
        report.sessions.append(session)
        if action.step is None:
            report.sessions.append(self._cluster.write_status(session, action.status))
        else:
            run = Run(session, action.step, action.status, Phase.FENCED, "Fenced", action.status.message)
            self._step(run, basis, report)

    def _run(self, action: Run, basis: Basis, report: Report) -> None:
        if not self._unchanged(basis, action.session.spec.node_uid, report):
            return
        session = self._cluster.write_status(action.session, action.status)
        report.sessions.append(session)
        self._step(dataclasses.replace(action, session=session), basis, report)

    def _step(self, run: Run, basis: Basis, report: Report) -> None:
        """Take the step of a session whose intent is written, and write what came of it."""
        assert basis.node is not None
        take = cordon if run.step is StepName.CORDON else uncordon
        outcome = take(self._cluster, basis.node, session=run.session.metadata.name)
        report.outcome = outcome
        report.node = outcome.node
        now = self._clock.wall()
        status = journal.with_outcome(
            run.status,
            step=run.step,
            attempt=run.status.attempt,
            epoch=self._epoch(),
            now=now,
            result=outcome.result.value,
            message=outcome.message,
        )
        if outcome.succeeded:
            status = journal.moved(status, run.then, reason=run.reason, message=run.message, now=now)
            if run.step is StepName.CORDON:
                status = replace(status, fenced_time=status.fenced_time or now)
        report.sessions.append(self._cluster.write_status(run.session, status))

    def _unchanged(self, basis: Basis, node_uid: str, report: Report) -> bool:
        """A live look at people's switches and the node's sessions: whether they are as the decision saw them.

        The node itself is guarded by the resourceVersion in its patch.
        """
        live = self._cluster.sessions_of(node_uid)
        report.control = self._cluster.control()
        report.sessions.extend(live)
        open_now = frozenset(
            (session.metadata.name, session.metadata.resource_version)
            for session in live
            if not session.current.phase.closed
        )
        if open_now == basis.sessions and report.control.metadata.generation == basis.control:
            return True
        report.error = "what the decision rested on has changed; it is made again"
        return False

    def _look_again(self, action: Action, report: Report) -> None:
        """After a conflict: the sessions as they are, since the watch may be behind."""
        uid = action.spec.node_uid if isinstance(action, Open) else action.session.spec.node_uid
        try:
            report.sessions.extend(self._cluster.sessions_of(uid))
        except ApiError as error:
            log.warning("cannot read a node's sessions after a conflict", extra={"error": str(error)})
