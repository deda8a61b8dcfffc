"""The moves that a decision about an open session can be: take a step, hold, wait, end. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from health.vocabulary import Phase
from remediation import journal
from remediation.objects import AcceleratorRemediation, RemediationStatus
from remediation.orders import Order
from remediation.policy import StepName
from remediation.situation import RECHECK, Decision, Run, Situation, Write


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
