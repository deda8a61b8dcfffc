"""The moves that a decision about an open session can be: take a step, hold, wait, end. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from health.vocabulary import Phase
from remediation import journal
from remediation.objects import AcceleratorRemediation, JournalEvent, RemediationStatus
from remediation.orders import Order
from remediation.policy import StepName
from remediation.situation import RECHECK, Decision, Run, Situation, Write


@dataclass(frozen=True, slots=True)
class Step:
    """A step that is taken pass by pass under one intent: in which phase, what it is told, its sentence for people, and
    where it leads: a phase and why."""

    name: StepName
    phase: Phase
    order: Order
    sentence: str
    then: tuple[Phase, str]


def begin(at: Situation, session: AcceleratorRemediation, status: RemediationStatus, step: Step) -> Decision:
    """The first pass of a step: its intent moves the session into the phase."""
    message = said(session, step.sentence)
    status = journal.moved(status, step.phase, reason=step.name, message=message, now=at.now.wall)
    return run(at, session, status, step.name, then=step.then, sentence=step.sentence, order=step.order)


def go_on(at: Situation, session: AcceleratorRemediation, status: RemediationStatus, step: Step) -> Decision:
    """A further pass, when it is due, under the intent that stands; where an outcome (a failure) has ended that, under
    a new one."""
    if (left := at.resume_at - at.now.monotonic) > 0:
        return keep(session, status, f"{session.metadata.name}: {status.message}", left)
    if not _stands(status, step.name, at.epoch):
        return run(at, session, status, step.name, then=step.then, sentence=step.sentence, order=step.order)
    action = Run(session, step.name, status, *step.then, status.message, order=step.order)
    return Decision(step.sentence, action)


def _stands(status: RemediationStatus, step: StepName, epoch: int) -> bool:
    """Whether the last attempt has an intent of this epoch and no outcome. The order of lines says nothing: equal
    ones are folded."""
    events = {
        entry.event
        for entry in status.journal
        if (entry.step, entry.attempt, entry.epoch) == (step, status.attempt, epoch)
    }
    return status.step == step and events == {JournalEvent.INTENT}


def run(
    at: Situation,
    session: AcceleratorRemediation,
    status: RemediationStatus,
    step: StepName,
    *,
    then: tuple[Phase, str],
    sentence: str,
    order: Order | None = None,
) -> Decision:
    """Take a step, after which the session is in `then`: a phase and why."""
    attempt = 1 + max(
        (entry.attempt for entry in status.journal if entry.step == step),
        default=status.attempt if status.step == step else 0,
    )
    message = said(session, sentence)
    intent = journal.with_intent(
        status, step=step, attempt=attempt, epoch=at.epoch, now=at.now.wall, message=message
    )
    return Decision(sentence, Run(session, step, intent, *then, message, order))


def close(
    at: Situation,
    session: AcceleratorRemediation,
    status: RemediationStatus,
    then: tuple[Phase, str],
    sentence: str,
) -> Decision:
    """End a session without a step."""
    phase, reason = then
    closed = journal.moved(status, phase, reason=reason, message=said(session, sentence), now=at.now.wall)
    return Decision(sentence, Write(session, replace(closed, leader_epoch=at.epoch)))


def hold(
    at: Situation, session: AcceleratorRemediation, status: RemediationStatus, reason: str, message: str
) -> Decision:
    """Stop where it is, for a person."""
    sentence = f"{session.metadata.name}: held ({reason}): {message}"
    if status.phase is Phase.HELD and status.reason == reason:
        return keep(session, status, sentence)
    held = journal.moved(status, Phase.HELD, reason=reason, message=message, now=at.now.wall)
    return Decision(sentence, Write(session, replace(held, healthy_since=None)))


def wait(
    session: AcceleratorRemediation, status: RemediationStatus, reason: str, message: str, *, detail: str = ""
) -> Decision:
    """Take no step now. Before the first step the session says why; `detail`, which changes often, is not written."""
    if status.phase is Phase.FENCED:
        status = replace(status, reason=reason, message=message)
    sentence = f"{session.metadata.name}: {message}{f' ({detail})' if detail else ''}"
    return keep(session, status, sentence, RECHECK)


def keep(
    session: AcceleratorRemediation, status: RemediationStatus, sentence: str, again: float | None = None
) -> Decision:
    """Nothing to do but to remember what the report changed."""
    # A session that was just born carries its status in an annotation only, where nobody looks for it.
    changed = status != session.current or session.status is None
    return Decision(sentence, Write(session, status) if changed else None, again)


def said(session: AcceleratorRemediation, sentence: str) -> str:
    """A sentence without the session's name in front."""
    return sentence.removeprefix(f"{session.metadata.name}: ")
