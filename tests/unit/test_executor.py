"""Carrying out: the live look, the intent before the deed, the outcome after it, and what is told of errors."""

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from health.vocabulary import Mode, Phase
from remediation.cluster import CONTROLS, NODES, REMEDIATIONS, Cluster
from remediation.decide import decide
from remediation.executor import VIEW_LIMIT, Basis, Executor, Report
from remediation.fleet import SESSION_KEY, Fleet
from remediation.objects import OPENING_ANNOTATION, AcceleratorRemediation, JournalEvent, RemediationStatus
from remediation.policy import StepName
from remediation.situation import Action, Open, Run, Write
from remediation.steps.outcome import Result
from runtime.clock import ManualClock
from tests.fake_pods import FakePods
from tests.fake_repairs import FakeRepairs
from tests.unit.builders import NOON, fault, later, policy, report, see_advance, situation
from tests.unit.fake_cluster import Call, Crash, Document, FakeApi, Trouble
from tests.unit.fake_controller import read_at_once

EPOCH = 7


class World:
    """One node with a fault, and a controller that has seen it."""

    def __init__(self) -> None:
        self.clock = ManualClock(wall=NOON)
        self.api = FakeApi(self.clock)
        self.epoch = EPOCH
        self.session, self.cluster = self.api.cluster(epoch=EPOCH)
        self.pods = FakePods(self.clock)
        self.repairs = FakeRepairs(self.cluster, self.pods)
        self.executor = Executor(
            self.cluster,
            self.pods,
            self.clock,
            repairs=self.repairs,
            epoch=lambda: self.epoch,
            aside=read_at_once,
        )
        node = self.api.create(
            NODES,
            {
                "metadata": {"name": "n1", "annotations": {}},
                "spec": {},
                "status": {
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "nodeInfo": {"bootID": "boot-1"},
                },
            },
        )
        self.uid = node["metadata"]["uid"]
        self.api.create(CONTROLS, {"metadata": {"name": "default"}, "spec": {}})
        self.fleet = Fleet()
        see_advance(self.fleet, report("n1", fault(), uid=self.uid), began=0.0, until=1000.0)
        self.catch_up()

    def catch_up(self) -> None:
        """Let the cache see what the API has."""
        self.fleet.put_node(self.cluster.get_node("n1"))
        self.fleet.put_control(self.cluster.control())
        for found in self.cluster.sessions_of(self.uid):
            self.fleet.put_session(found)

    def action(self, mode: Mode = Mode.AUTO) -> Action:
        decision = decide(situation(self.fleet, under=policy(mode), epoch=EPOCH))
        assert decision.action is not None, decision
        return decision.action

    def basis(self) -> Basis:
        return Basis.of(self.fleet, "n1", epoch=EPOCH, now=self.clock.monotonic())

    def carry_out(self, action: Action | None = None, basis: Basis | None = None) -> Report:
        return self.executor.carry_out(action or self.action(), basis or self.basis())

    def begun(self, mode: Mode = Mode.AUTO) -> AcceleratorRemediation:
        """Open the session and let the cache see it."""
        done = self.carry_out(self.action(mode))
        assert not done.failed, done
        self.catch_up()
        return done.sessions[-1]

    def stored(self) -> AcceleratorRemediation:
        (found,) = self.api.objects[REMEDIATIONS].values()
        return msgspec.json.decode(msgspec.json.encode(found), type=AcceleratorRemediation)

    @property
    def cordoned(self) -> bool:
        return bool(self.api.get(NODES, "n1")["spec"].get("unschedulable"))

    def mutations(self) -> list[Call]:
        return [call for call in self.api.calls if call.mutates]


@pytest.fixture
def world() -> World:
    return World()


def meet(world: World, trouble: Trouble, *, at: int = 0, method: str = "") -> None:
    """The trouble meets one request: the mutation of that number from now on, or the first of a method."""
    seen = [0]

    def choose(call: Call) -> Trouble | None:
        if call.method == method if method else call.mutates:
            seen[0] += 1
            return trouble if seen[0] == at + 1 else None
        return None

    world.api.trouble = choose


def test_opening_a_session_writes_intent_cordon_and_outcome_in_this_order(world: World) -> None:
    done = world.carry_out()
    assert [(call.method, call.collection, call.subresource) for call in world.mutations()] == [
        ("POST", REMEDIATIONS, ""),
        ("PATCH", NODES, ""),
        ("PATCH", REMEDIATIONS, "status"),
    ]
    assert {call.epoch for call in world.mutations()} == {EPOCH}
    assert (done.started, done.failed, done.gone) == (True, "", [])
    assert done.node is not None and done.node.owner_session == world.stored().metadata.name
    assert done.outcome is not None and done.outcome.result is Result.DONE
    status = world.stored().current
    assert (status.phase, status.reason, status.fenced_time) == (Phase.FENCED, "Fenced", NOON)
    assert [(line.event, line.step, line.result) for line in status.journal] == [
        (JournalEvent.INTENT, "Cordon", ""),
        (JournalEvent.OUTCOME, "Cordon", "Done"),
    ]


def test_the_first_intent_is_in_the_session_from_its_birth(world: World) -> None:
    meet(world, Trouble.CRASH_BEFORE, method="PATCH")
    with pytest.raises(Crash):
        world.carry_out()
    assert not world.cordoned
    born = world.stored()
    assert born.status is None and OPENING_ANNOTATION in born.metadata.annotations
    (line,) = born.current.journal
    assert (line.event, line.step) == (JournalEvent.INTENT, "Cordon")


@pytest.mark.parametrize("mode", [Mode.APPROVE, Mode.OBSERVE])
def test_a_session_that_takes_no_step_touches_no_node(world: World, mode: Mode) -> None:
    done = world.carry_out(world.action(mode))
    assert [call.method for call in world.mutations()] == ["POST"]
    assert done.started and done.outcome is None and not world.cordoned


def test_a_step_of_a_session_that_exists_writes_its_intent_first(world: World) -> None:
    world.begun(Mode.APPROVE)
    name = world.stored().metadata.name
    world.api.edit(
        REMEDIATIONS,
        name,
        lambda found: found["spec"].update(approval={"decision": "Approved", "user": "bob"}),
    )
    world.catch_up()
    before = len(world.mutations())
    run = world.action()
    assert isinstance(run, Run) and run.step is StepName.CORDON
    done = world.carry_out(run)
    assert not done.failed and world.cordoned
    assert [call.subresource or "node" for call in world.mutations()[before:]] == ["status", "node", "status"]
    assert world.stored().current.phase is Phase.FENCED


def approve(found: Document) -> None:
    found["spec"]["approval"] = {"decision": "Approved", "user": "bob"}


def hold(found: Document) -> None:
    found["spec"]["hold"] = {"user": "bob"}


def withdraw(found: Document) -> None:
    found["spec"].pop("approval")


@pytest.mark.parametrize("change", [hold, withdraw])
def test_what_a_person_says_of_a_session_after_the_decision_stops_the_step(world: World, change: Any) -> None:
    world.begun(Mode.APPROVE)
    name = world.stored().metadata.name
    world.api.edit(REMEDIATIONS, name, approve)
    world.catch_up()
    run, basis = world.action(), world.basis()
    world.api.edit(REMEDIATIONS, name, change)
    before = len(world.mutations())
    done = world.carry_out(run, basis)
    assert "changed" in done.error and not world.cordoned
    assert len(world.mutations()) == before
    assert done.sessions[-1].metadata.resource_version == world.stored().metadata.resource_version


@pytest.mark.parametrize(
    "spec",
    [
        {"pause": {"user": "alice"}},
        {"nodes": [{"name": "n1", "action": "Hold", "user": "alice"}]},
        {"nodes": [{"name": "n1", "action": "OptOut", "user": "alice"}]},
    ],
)
def test_a_switch_that_a_person_sets_after_the_decision_stops_the_step(world: World, spec: Document) -> None:
    action, basis = world.action(), world.basis()
    world.api.edit(CONTROLS, "default", lambda found: found.update(spec=spec))
    done = world.carry_out(action, basis)
    assert "changed" in done.error and done.started and not world.cordoned
    assert [call.collection for call in world.mutations()] == [REMEDIATIONS], "an object of ours, and no step"
    assert done.control is not None and done.control.spec == world.cluster.control().spec


def test_what_the_controller_itself_remembers_beside_the_switches_stops_nothing(world: World) -> None:
    action, basis = world.action(), world.basis()
    world.api.edit(
        CONTROLS,
        "default",
        lambda found: found.update(
            status={"startTokens": {"tokens": 3, "refreshedTime": "2026-01-01T00:00:00Z"}}
        ),
    )
    assert not world.carry_out(action, basis).failed
    assert world.cordoned


def test_without_a_control_object_everything_works(world: World) -> None:
    world.api.remove(CONTROLS, "default")
    world.fleet.put_control(world.cluster.control())
    assert not world.carry_out().failed


def test_a_hold_on_the_node_after_the_decision_stops_the_cordon_and_is_seen(world: World) -> None:
    action, basis = world.action(), world.basis()
    world.api.edit(
        NODES, "n1", lambda node: node["metadata"]["annotations"].update({"sickbay.dev/hold": "alice"})
    )
    done = world.carry_out(action, basis)
    assert done.failed and not done.error and not world.cordoned
    assert done.node is not None and done.node.held
    status = world.stored().current
    assert (status.phase, status.journal[-1].result) == (Phase.PENDING, "Changed")


def test_an_error_of_the_step_is_in_the_journal(world: World) -> None:
    meet(world, Trouble.REFUSED, at=1)
    done = world.carry_out()
    assert "overloaded" in done.failed and done.started
    status = world.stored().current
    assert (status.phase, status.journal[-1].event, status.journal[-1].result) == (
        Phase.PENDING,
        JournalEvent.OUTCOME,
        "Failed",
    )
    assert "overloaded" in status.journal[-1].message


@pytest.mark.parametrize(
    ("trouble", "started"),
    [(Trouble.REFUSED, True), (Trouble.UNREACHABLE, False), (Trouble.LOST, True), (Trouble.CONFLICT, False)],
)
def test_whether_a_session_may_have_been_created_is_told(
    world: World, trouble: Trouble, started: bool
) -> None:
    meet(world, trouble)
    done = world.carry_out()
    assert (bool(done.error), done.started, world.cordoned) == (True, started, False)


def test_a_session_whose_creation_was_answered_to_nobody_is_found_at_once(world: World) -> None:
    meet(world, Trouble.LOST)
    done = world.carry_out()
    assert [found.metadata.name for found in done.sessions] == [world.stored().metadata.name]


def test_a_second_creation_for_the_same_onset_is_a_conflict_and_finds_the_first(world: World) -> None:
    action, basis = world.action(), world.basis()
    world.carry_out(action, basis)
    again = world.carry_out(action, basis)
    assert "already exists" in again.error and not again.started
    assert again.sessions[-1].current.phase is Phase.FENCED
    assert len(world.api.objects[REMEDIATIONS]) == 1


def test_a_status_that_somebody_else_wrote_first_is_not_overwritten(world: World) -> None:
    session = world.begun()
    world.api.edit(REMEDIATIONS, session.metadata.name, hold)
    done = world.carry_out(Write(session, RemediationStatus(phase=Phase.RELEASED)))
    assert done.error and world.stored().current.phase is Phase.FENCED
    assert done.sessions[-1].spec.hold is not None


def test_a_status_is_written_whole_so_that_what_is_over_is_gone(world: World) -> None:
    session = world.begun()
    bare = RemediationStatus(phase=Phase.HELD, incidents=session.current.incidents)
    assert not world.carry_out(Write(session, bare)).failed
    assert world.stored().current == bare


def test_a_session_that_was_deleted_is_told_to_be_gone(world: World) -> None:
    session = world.begun()
    world.api.remove(REMEDIATIONS, session.metadata.name)
    done = world.carry_out(Write(session, replace(session.current, phase=Phase.HELD)))
    assert done.error and done.gone == [session.metadata.name]
    run = Run(session, StepName.UNCORDON, session.current, Phase.RELEASED, "Healthy", "m")
    done = world.carry_out(run)
    assert done.error and done.gone == [session.metadata.name]
    assert world.cordoned


def test_a_session_that_cannot_be_read_is_an_error_and_nothing_is_done(world: World) -> None:
    session = world.begun()
    world.api.edit(REMEDIATIONS, session.metadata.name, lambda found: found["status"].update(phase="Broken"))
    run = Run(session, StepName.UNCORDON, session.current, Phase.RELEASED, "Healthy", "m")
    before = len(world.mutations())
    done = world.carry_out(run)
    assert session.metadata.name in done.error and "Broken" in done.error
    assert len(world.mutations()) == before and world.cordoned


def test_no_second_session_is_opened_beside_one_that_could_not_be_read_at_the_takeover(world: World) -> None:
    name = world.begun(Mode.OBSERVE).metadata.name
    world.api.edit(REMEDIATIONS, name, lambda found: found.update(status={"phase": "Broken"}))
    assert world.cluster.all_sessions().readable == ()
    fresh = Fleet()
    see_advance(fresh, report("n1", fault(seen=later(5)), uid=world.uid), began=0.0, until=1000.0)
    world.fleet = fresh
    fresh.put_node(world.cluster.get_node("n1"))
    action = world.action()
    assert isinstance(action, Open) and action.name != name
    done = world.carry_out(action)
    assert "Broken" in done.error and not done.started and len(world.api.objects[REMEDIATIONS]) == 1
    world.api.edit(REMEDIATIONS, name, lambda found: found.update(status={"phase": "Fenced"}))
    done = world.carry_out(action)
    assert done.error and [found.metadata.name for found in done.sessions] == [name]
    world.api.edit(REMEDIATIONS, name, lambda found: found.update(status={"phase": "Cancelled"}))
    assert world.carry_out(action).started


def test_an_action_that_waited_too_long_for_a_worker_is_decided_again(world: World) -> None:
    action, basis = world.action(), world.basis()
    world.clock.advance(VIEW_LIMIT + 0.1)
    done = world.carry_out(action, basis)
    assert "decided again" in done.error and not done.started and world.mutations() == []


def test_an_action_of_an_earlier_term_is_not_carried_on_with(world: World) -> None:
    action, basis = world.action(), world.basis()
    world.epoch = EPOCH + 1
    done = world.carry_out(action, basis)
    assert "epoch" in done.error and not done.started and world.mutations() == []


def test_a_term_that_ends_between_intent_and_deed_stops_the_deed(world: World) -> None:
    def ends(call: Call) -> Trouble | None:
        if call.method == "POST":
            world.epoch = 0
        return None

    world.api.trouble = ends
    done = world.carry_out()
    assert "epoch" in done.error and done.started and not world.cordoned


def test_a_controller_that_may_not_write_sends_nothing(world: World) -> None:
    _, fenced = world.api.cluster(epoch=EPOCH, may_write=lambda: False)
    executor = Executor(
        fenced,
        world.pods,
        world.clock,
        repairs=world.repairs,
        epoch=lambda: EPOCH,
        aside=read_at_once,
    )
    done = executor.carry_out(world.action(), world.basis())
    assert "lease is not proven" in done.error and not done.started
    assert world.mutations() == []


def test_an_uncordon_takes_the_node_back_and_closes_the_session(world: World) -> None:
    session = world.begun()
    run = Run(
        session, StepName.UNCORDON, session.current, Phase.RELEASED, "Healthy", "healthy for the whole dwell"
    )
    done = world.carry_out(run)
    assert not done.failed and not world.cordoned
    assert SESSION_KEY not in world.api.get(NODES, "n1")["metadata"]["annotations"]
    status = world.stored().current
    assert (status.phase, status.reason, status.closed_time) == (Phase.RELEASED, "Healthy", NOON)


def test_a_node_that_is_gone_meanwhile_leaves_the_session_as_it_was(world: World) -> None:
    session = world.begun()
    run = Run(session, StepName.UNCORDON, session.current, Phase.RELEASED, "Healthy", "m")
    basis = world.basis()
    world.api.remove(NODES, "n1")
    done = world.carry_out(run, basis)
    assert done.failed == "the node is gone" and done.gone == []
    assert world.stored().current.phase is Phase.FENCED


def test_the_cluster_reads_all_pages_and_leaves_alone_what_it_cannot_read(world: World) -> None:
    session = world.begun()
    whole = world.api.get(REMEDIATIONS, session.metadata.name)
    for number in range(1200):
        metadata = {**whole["metadata"], "name": f"s-{number}"}
        status = {"phase": "Broken"} if number % 100 == 0 else whole["status"]
        world.api.create(REMEDIATIONS, {**whole, "metadata": metadata, "status": status})
    found = world.cluster.all_sessions().readable
    assert len(found) == 1201 - 12
    assert world.cluster.unclear(world.uid)
    assert isinstance(world.cluster, Cluster)
