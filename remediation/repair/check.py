"""The last look before a repair: whether the session, the node and the people still allow it.

It runs in a container of its own, unprivileged, which alone of the repair's containers has a token. What the
controller decided may be minutes old by the time a pod runs; this is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from health.vocabulary import GROUP_VERSION, Mode, Phase
from remediation.fleet import Node
from remediation.objects import AcceleratorControl, AcceleratorRemediation, Decision, NodeAction
from remediation.repair.order import Exit, Outcome
from runtime.api_errors import ApiError, NotFound
from runtime.clock import Clock
from runtime.kubernetes import Session

RETRY_SECONDS = 20.0
"""How long an API server that does not answer, or not usefully, is asked again."""

VERIFY = "Verify"
"""The one step that is also taken in the phase Verifying."""

_Object = TypeVar("_Object")

_BETWEEN_SECONDS = 1.0
_NODES = "/api/v1/nodes"
_SESSIONS = f"/apis/{GROUP_VERSION}/acceleratorremediations"
_CONTROL = f"/apis/{GROUP_VERSION}/acceleratorcontrols/default"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is about to be done: a step of a session, to a node in a boot.

    `attempt`: the number of the Job, which tells it from an earlier one of the same step that comes late; 0: unknown.
    """

    session: str
    step: str
    node: str
    node_uid: str
    boot_id: str
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Look:
    """What the API says now; None for what does not exist."""

    session: AcceleratorRemediation | None
    node: Node | None
    control: AcceleratorControl


def check(api: Session, asked: Asked, *, clock: Clock, pause: Callable[[float], object]) -> Outcome:
    """Look until there is an answer, for at most RETRY_SECONDS, and say whether the repair may go on."""
    deadline = clock.monotonic() + RETRY_SECONDS
    while True:
        try:
            found = look(api, asked)
        except ApiError as error:
            why = str(error)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            why = f"an object cannot be read: {error}"
        else:
            if refused := refusal(found.session, found.node, found.control, asked):
                return Outcome(Exit.NOT_ALLOWED, f"not allowed any more: {refused}")
            return Outcome(Exit.DONE, f"{asked.step} of session {asked.session} may go on")
        left = deadline - clock.monotonic()
        if left <= 0:
            return Outcome(Exit.UNREACHABLE, f"not known whether it is still allowed: {why}")
        pause(min(_BETWEEN_SECONDS, left))


def look(api: Session, asked: Asked) -> Look:
    """Read the three objects once. The session comes last, for a hold of it must not be read too early.

    Raises ApiError, msgspec.MsgspecError.
    """
    control = _read(api, _CONTROL, AcceleratorControl)
    node = _read(api, f"{_NODES}/{asked.node}", Node)
    session = _read(api, f"{_SESSIONS}/{asked.session}", AcceleratorRemediation)
    return Look(session=session, node=node, control=control or AcceleratorControl())


def refusal(
    session: AcceleratorRemediation | None, node: Node | None, control: AcceleratorControl, asked: Asked
) -> str:
    """Why the step must not be taken any more, in one line; empty where nothing speaks against it. Pure."""
    return _of_people(control, node, asked) or _of_session(session, asked) or _of_node(node, asked)


def _of_people(control: AcceleratorControl, node: Node | None, asked: Asked) -> str:
    if pause := control.spec.pause:
        return f"{pause.user} paused everything ({pause.reason or 'no reason given'})"
    for switch in control.spec.nodes:
        if switch.name == asked.node:
            verb = "holds" if switch.action is NodeAction.HOLD else "opts out"
            return f"{switch.user} {verb} node {asked.node} ({switch.reason or 'no reason given'})"
    if node is not None and node.held:
        return f"a person holds node {asked.node} by its annotation"
    if node is not None and node.opted_out:
        return f"node {asked.node} is opted out, or of the control plane"
    return ""


def _of_session(session: AcceleratorRemediation | None, asked: Asked) -> str:
    if session is None:
        return f"there is no session {asked.session}"
    spec, status = session.spec, session.current
    if session.metadata.deletion_timestamp is not None:
        return f"session {asked.session} is being deleted"
    if hold := spec.hold:
        return f"{hold.user} holds the session ({hold.reason or 'no reason given'})"
    if approval := _lacking_approval(session):
        return approval
    if spec.mode is Mode.OBSERVE:
        return "the session only observes"
    if status.phase is not Phase.REPAIRING and (status.phase, asked.step) != (Phase.VERIFYING, VERIFY):
        return f"the session is {status.phase}, not {Phase.REPAIRING}"
    if status.step != asked.step:
        return f"the session is at step {status.step or 'none'}, not {asked.step}"
    attempt = status.repair.attempt if status.repair is not None else 0
    if asked.attempt and asked.attempt != attempt:
        return f"the session is at attempt {attempt} of {asked.step}, not {asked.attempt}"
    if (spec.node_name, spec.node_uid) != (asked.node, asked.node_uid):
        return f"the session is about node {spec.node_name} ({spec.node_uid}), not {asked.node} ({asked.node_uid})"
    return ""


def _lacking_approval(session: AcceleratorRemediation) -> str:
    approval = session.spec.approval
    if approval is not None and approval.decision is not Decision.APPROVED:
        return f"{approval.user} said no to the session"
    if approval is None and session.spec.mode is Mode.APPROVE:
        return "nobody approves of the session"
    return ""


def _of_node(node: Node | None, asked: Asked) -> str:
    if node is None:
        return f"there is no node {asked.node}"
    if node.metadata.uid != asked.node_uid:
        return f"node {asked.node} is another one now ({node.metadata.uid}, not {asked.node_uid})"
    boot_id = node.status.node_info.boot_id
    if boot_id != asked.boot_id:
        return f"node {asked.node} is in boot {boot_id or 'unknown'}, not in {asked.boot_id}"
    if not node.spec.unschedulable:
        return f"node {asked.node} is not cordoned any more"
    if node.owner_session != asked.session:
        return f"the cordon of node {asked.node} is not of this session ({node.owner_session or 'nobody'} has it)"
    return node.taken_by


def _read(api: Session, path: str, kind: type[_Object]) -> _Object | None:
    try:
        return msgspec.json.decode(api.get(path).body, type=kind)
    except NotFound:
        return None
