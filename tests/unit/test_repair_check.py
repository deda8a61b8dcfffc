"""The last look: what forbids a repair, what lets it go on, and an API server that does not answer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
import pytest

from health.vocabulary import Mode, Phase
from remediation.fleet import Node
from remediation.objects import (
    AcceleratorControl,
    AcceleratorRemediation,
    Approval,
    ControlSpec,
    Decision,
    Hold,
    NodeAction,
    NodeSwitch,
    Pause,
)
from remediation.repair.check import RETRY_SECONDS, Asked, check, refusal
from remediation.repair.order import Exit
from remediation.repair_state import RepairState
from runtime.clock import ManualClock
from tests.api_server import Recorded, Reply, ScriptedApi, status_object
from tests.unit.builders import node, session
from tests.unit.fake_host import Patience

NAME = "n1-0123456789"
ASKED = Asked(session=NAME, step="Reset", node="n1", node_uid="uid-n1", boot_id="boot-1")
NO_CONTROL = AcceleratorControl()


def a_session(**changed) -> AcceleratorRemediation:
    return session(**{"name": NAME, "phase": Phase.REPAIRING, "step": "Reset", **changed})


def a_node(**changed) -> Node:
    return node(**{"cordoned": True, "owner": NAME, **changed})


def with_switch(action: NodeAction, name: str = "n1") -> AcceleratorControl:
    return AcceleratorControl(spec=ControlSpec(nodes=(NodeSwitch(name, action, "alice", "looking"),)))


def deleting(of: AcceleratorRemediation) -> AcceleratorRemediation:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    return msgspec.structs.replace(
        of, metadata=msgspec.structs.replace(of.metadata, deletion_timestamp=moment)
    )


def told_no(mode: Mode) -> AcceleratorRemediation:
    return a_session(mode=mode, approval=Approval(Decision.DENIED, "bob"))


FORBIDDEN: dict[str, tuple[AcceleratorRemediation | None, Node | None, AcceleratorControl, str]] = {
    "no session": (None, a_node(), NO_CONTROL, "there is no session n1-0123456789"),
    "session deleted": (deleting(a_session()), a_node(), NO_CONTROL, "is being deleted"),
    "session held": (
        a_session(hold=Hold("alice", "wait")),
        a_node(),
        NO_CONTROL,
        "alice holds the session (wait)",
    ),
    "observing": (a_session(mode=Mode.OBSERVE), a_node(), NO_CONTROL, "the session only observes"),
    "not approved": (a_session(mode=Mode.APPROVE), a_node(), NO_CONTROL, "nobody approves of the session"),
    "denied": (told_no(Mode.APPROVE), a_node(), NO_CONTROL, "bob said no to the session"),
    "denied in auto": (told_no(Mode.AUTO), a_node(), NO_CONTROL, "bob said no to the session"),
    "closed": (
        a_session(phase=Phase.RELEASED),
        a_node(),
        NO_CONTROL,
        "the session is Released, not Repairing",
    ),
    "held by us": (a_session(phase=Phase.HELD), a_node(), NO_CONTROL, "the session is Held, not Repairing"),
    "draining": (a_session(phase=Phase.DRAINING), a_node(), NO_CONTROL, "the session is Draining"),
    "verifying": (a_session(phase=Phase.VERIFYING), a_node(), NO_CONTROL, "the session is Verifying"),
    "another step": (a_session(step="Reboot"), a_node(), NO_CONTROL, "at step Reboot, not Reset"),
    "another node's": (
        a_session(uid="uid-old"),
        a_node(),
        NO_CONTROL,
        "the session is about node n1 (uid-old)",
    ),
    "no node": (a_session(), None, NO_CONTROL, "there is no node n1"),
    "node replaced": (
        a_session(),
        a_node(uid="uid-new"),
        NO_CONTROL,
        "is another one now (uid-new, not uid-n1)",
    ),
    "node booted": (a_session(), a_node(boot="boot-2"), NO_CONTROL, "is in boot boot-2, not in boot-1"),
    "uncordoned": (a_session(), a_node(cordoned=False), NO_CONTROL, "is not cordoned any more"),
    "a human's cordon": (a_session(), a_node(owner=""), NO_CONTROL, "not of this session (nobody has it)"),
    "another's cordon": (a_session(), a_node(owner="s2"), NO_CONTROL, "not of this session (s2 has it)"),
    "node held": (a_session(), a_node(hold=True), NO_CONTROL, "a person holds node n1"),
    "node opted out": (a_session(), a_node(opt_out=True), NO_CONTROL, "node n1 is opted out"),
    "control plane": (
        a_session(),
        a_node(labels={"node-role.kubernetes.io/control-plane": ""}),
        NO_CONTROL,
        "of the control plane",
    ),
    "driver upgrade": (
        a_session(),
        a_node(labels={"nvidia.com/gpu-driver-upgrade-state": "drain-required"}),
        NO_CONTROL,
        "a driver upgrade is under way (drain-required)",
    ),
    "node deleted": (a_session(), a_node(deleting=True), NO_CONTROL, "the node is being deleted"),
    "paused": (
        a_session(),
        a_node(),
        AcceleratorControl(spec=ControlSpec(pause=Pause("carol"))),
        "carol paused everything (no reason given)",
    ),
    "hold switch": (a_session(), a_node(), with_switch(NodeAction.HOLD), "alice holds node n1 (looking)"),
    "opt-out switch": (a_session(), a_node(), with_switch(NodeAction.OPT_OUT), "alice opts out node n1"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_each_single_thing_that_speaks_against_it_forbids_it(what: str) -> None:
    about, at, control, why = FORBIDDEN[what]
    assert why in refusal(about, at, control, ASKED)


ALLOWED = {
    "auto": (a_session(), a_node(), NO_CONTROL),
    "approved": (
        a_session(mode=Mode.APPROVE, approval=Approval(Decision.APPROVED, "bob")),
        a_node(),
        NO_CONTROL,
    ),
    "another node's switch": (a_session(), a_node(), with_switch(NodeAction.HOLD, "n2")),
    "a node that is not ready": (a_session(), a_node(ready=False), NO_CONTROL),
    "a driver upgrade that is over": (
        a_session(),
        a_node(labels={"nvidia.com/gpu-driver-upgrade-state": "upgrade-done"}),
        NO_CONTROL,
    ),
}


@pytest.mark.parametrize("what", ALLOWED)
def test_where_nothing_speaks_against_it_it_may_go_on(what: str) -> None:
    assert refusal(*ALLOWED[what], ASKED) == ""


def at_attempt(number: int | None) -> AcceleratorRemediation:
    found = a_session()
    memory = None if number is None else RepairState(started=datetime(2026, 1, 1, tzinfo=UTC), attempt=number)
    return msgspec.structs.replace(found, status=msgspec.structs.replace(found.current, repair=memory))


@pytest.mark.parametrize("number", [2, 0, None])
def test_a_job_that_comes_late_does_nothing_when_another_one_has_its_place(number: int | None) -> None:
    asked = dataclasses.replace(ASKED, attempt=1)
    assert refusal(at_attempt(1), a_node(), NO_CONTROL, asked) == ""
    why = refusal(at_attempt(number), a_node(), NO_CONTROL, asked)
    assert why == f"the session is at attempt {number or 0} of Reset, not 1"


def test_a_template_that_does_not_tell_its_attempt_is_not_asked_about_it() -> None:
    assert refusal(at_attempt(7), a_node(), NO_CONTROL, ASKED) == ""


def test_a_verification_may_run_in_the_phase_verifying() -> None:
    verify = msgspec.structs.replace(a_session(phase=Phase.VERIFYING, step="Verify"))
    asked = Asked(session=NAME, step="Verify", node="n1", node_uid="uid-n1", boot_id="boot-1")
    assert refusal(verify, a_node(), NO_CONTROL, asked) == ""


PATHS = {
    "/api/v1/nodes/n1": a_node(),
    f"/apis/sickbay.dev/v1alpha1/acceleratorremediations/{NAME}": a_session(),
    "/apis/sickbay.dev/v1alpha1/acceleratorcontrols/default": NO_CONTROL,
}


def serving(**instead: Reply | None) -> Callable[[Recorded], Reply]:
    """The three objects; a part of a path given here is answered by what is given, None by 404."""

    def route(request: Recorded) -> Reply:
        assert request.method == "GET"
        for part, reply in instead.items():
            if part in request.path:
                return reply or Reply(json.dumps(status_object(404, "NotFound")).encode(), 404)
        return Reply(msgspec.json.encode(PATHS[request.path]))

    return route


def looked(api: ScriptedApi) -> tuple[int, str, float]:
    clock = ManualClock()
    pause = Patience(clock)
    outcome = check(api.session(), ASKED, clock=clock, pause=pause)
    return outcome.code, outcome.message, pause.waited


def test_the_three_objects_are_read_once_and_allow_it(api: ScriptedApi) -> None:
    api.route = serving()
    assert looked(api) == (Exit.DONE, f"Reset of session {NAME} may go on", 0)
    assert sorted(request.path for request in api.requests) == sorted(PATHS)


def test_without_a_control_object_nobody_has_switched_anything(api: ScriptedApi) -> None:
    api.route = serving(acceleratorcontrols=None)
    assert looked(api)[0] == Exit.DONE


@pytest.mark.parametrize(
    ("part", "what"), [("nodes", "node n1"), ("acceleratorremediations", f"session {NAME}")]
)
def test_what_is_gone_forbids_it_at_once(api: ScriptedApi, part: str, what: str) -> None:
    api.route = serving(**{part: None})
    assert looked(api) == (Exit.NOT_ALLOWED, f"not allowed any more: there is no {what}", 0)


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_an_api_server_that_refuses_is_asked_for_twenty_seconds(api: ScriptedApi, status: int) -> None:
    api.route = serving(nodes=Reply(json.dumps(status_object(status, "Why", "because")).encode(), status))
    code, message, waited = looked(api)
    assert (code, waited) == (Exit.UNREACHABLE, RETRY_SECONDS)
    assert message.startswith(f"not known whether it is still allowed: GET /api/v1/nodes/n1 {status}")


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"metadata": {"name": 1}}', b"\xff"])
def test_an_object_that_cannot_be_read_allows_nothing(api: ScriptedApi, body: bytes) -> None:
    api.route = serving(acceleratorremediations=Reply(body))
    code, message, _ = looked(api)
    assert code == Exit.UNREACHABLE
    assert "cannot be read" in message


def test_an_answer_that_comes_late_is_enough(api: ScriptedApi) -> None:
    answers = iter([Reply(None), Reply(b"", 503)])
    usual = serving()
    api.route = lambda request: next(answers, None) or usual(request)
    code, _, waited = looked(api)
    assert (code, waited) == (Exit.DONE, 2)
