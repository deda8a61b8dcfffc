"""The deciding loop with a real executor over an API server in memory: who is looked at when, and how it rests."""

from typing import Any

import pytest

from health.vocabulary import Mode, Phase
from remediation.cluster import CONTROLS, NODES, REMEDIATIONS, REPORTS
from remediation.engine import Done, Led, NewPolicy, Resource, Seen
from remediation.executor import VIEW_LIMIT
from remediation.fleet import SESSION_KEY
from remediation.objects import AcceleratorRemediation, JournalEvent
from remediation.policy import Policy
from remediation.reflector import Kind
from tests.property.remediation_world import World
from tests.unit.builders import fault, node, policy, report
from tests.unit.fake_cluster import Call, Document, Trouble
from tests.unit.fake_controller import FakeController, InlineWorkers

FATAL = ("DeviceLost", "GPU-0", "RebootNode", "NewBoot", "Fatal")
PASSING = ("EngineHung", "GPU-0", "ResetDevice", "DeviceReset", "Fatal")


class Ward(World):
    """The small cluster, reports fresh and a controller that leads; nobody has made a template of a repair."""

    def __init__(self, under: Policy | None = None) -> None:
        super().__init__()
        self.change(under or policy(Mode.AUTO, max_fenced="100%", pools=("a", "b"), dwell="60s"))
        self.let_pass(45)

    def change(self, under: Policy) -> None:
        self.policy = under
        self.controller.engine.inbox.put(NewPolicy(under))
        self.run()

    def sick(self, name: str, what: tuple[str, str, str, str, str] = FATAL) -> None:
        self.raise_fault(name, *what)
        self.rest()

    def session(self, name: str) -> AcceleratorRemediation:
        (found,) = [item for item in self.sessions(opened=False) if item.spec.node_name == name]
        return found

    def fenced(self) -> list[str]:
        return sorted(
            name for name, found in self.api.objects[NODES].items() if found["spec"].get("unschedulable")
        )

    def mutations(self) -> list[Call]:
        return [call for call in self.api.calls if call.mutates]

    @property
    def sentences(self) -> dict[str, str]:
        return self.controller.engine.sentences


@pytest.fixture
def ward() -> Ward:
    return Ward()


def every_mutation(trouble: Trouble, **only: str) -> Any:
    def choose(call: Call) -> Trouble | None:
        wanted = call.mutates and all(getattr(call, key) == value for key, value in only.items())
        return trouble if wanted else None

    return choose


def test_a_fault_ends_in_a_cordon_and_a_reboot_in_a_release(ward: Ward) -> None:
    ward.sick("n1")
    assert ward.fenced() == ["n1"]
    assert ward.session("n1").current.phase is Phase.DRAINING
    ward.let_pass(30)
    assert ward.session("n1").current.reason == "NoRepairStep"
    ward.reboot("n1")
    ward.let_pass(30)
    assert ward.session("n1").current.phase is Phase.VERIFYING
    ward.let_pass(75)
    assert ward.fenced() == []
    assert ward.session("n1").current.phase is Phase.RELEASED


def test_nothing_is_decided_before_it_leads_and_everything_when_it_does() -> None:
    ward = Ward()
    follower = FakeController(ward.api, ward.clock, policy(Mode.AUTO))
    ward.raise_fault("n1", *FATAL)
    before = len(ward.mutations())
    follower.settle()
    assert len(ward.mutations()) == before and follower.engine.sentences == {}
    follower.take_over(100)
    follower.settle()
    assert follower.engine.sentences.keys() == ward.agents.keys()


def test_a_controller_that_no_longer_leads_decides_nothing_more(ward: Ward) -> None:
    ward.controller.engine.inbox.put(Led(0))
    before = len(ward.mutations())
    ward.sick("n1")
    assert len(ward.mutations()) == before


def test_without_new_input_the_loop_is_at_rest(ward: Ward) -> None:
    for name, what in (("n1", FATAL), ("n2", PASSING)):
        ward.sick(name, what)
    ward.let_pass(900)
    assert {ward.session(name).current.reason for name in ("n1", "n2")} == {"NoRepairStep"}
    before = len(ward.mutations())
    ward.let_pass(3600)
    assert len(ward.mutations()) == before


def test_what_has_come_is_taken_in_before_anything_is_decided(ward: Ward) -> None:
    ward.raise_fault("n1", *PASSING)
    ward.clear_faults("n1")
    ward.run()
    assert ward.api.objects[REMEDIATIONS] == {}


def test_a_view_that_is_too_old_starts_nothing_and_is_said(ward: Ward) -> None:
    ward.lagging.add(NODES)
    ward.node("n3", lambda found: found["metadata"]["labels"].update(x="y"))
    ward.clock.advance(VIEW_LIMIT + 0.1)
    ward.raise_fault("n1", *FATAL)
    ward.run()
    assert ward.fenced() == [] and "too old" in ward.sentences["n1"]
    ward.lagging.clear()
    ward.let_pass(2)
    assert ward.fenced() == ["n1"]


def test_nodes_that_wait_for_room_are_looked_at_when_a_session_closes() -> None:
    ward = Ward(policy(Mode.AUTO, max_fenced=1, pools=("a", "b"), dwell="60s"))
    ward.sick("n1", PASSING)
    ward.sick("n2")
    assert ward.fenced() == ["n1"] and "budget" in ward.sentences["n2"]
    ward.clear_faults("n1")
    ward.let_pass(60)
    assert ward.fenced() == ["n1"]
    ward.let_pass(15)
    assert ward.fenced() == ["n2"]


def test_an_answer_that_shows_what_was_closed_before_wakes_nobody() -> None:
    ward = Ward(policy(Mode.AUTO, max_fenced=1, pools=("a", "b"), dwell="60s"))
    ward.sick("n1", PASSING)
    ward.clear_faults("n1")
    ward.let_pass(90)
    closed = ward.session("n1")
    ward.sick("n3")
    ward.sick("n4")
    engine = ward.controller.engine
    ward.sentences.clear()
    engine.inbox.put(Seen(Resource.SESSION, Kind.MODIFIED, closed.metadata.name, closed))
    ward.controller.pump()
    assert set(ward.sentences) == {"n1"}


def test_tokens_are_shared_by_starts_at_once_and_remembered() -> None:
    ward = Ward(policy(Mode.AUTO, max_fenced="100%", pools=("a", "b"), burst=3, per_minute=5))
    for name in ward.agents:
        ward.raise_fault(name, *FATAL)
    ward.rest()
    assert len(ward.fenced()) == 3
    assert sum("a minute" in sentence for sentence in ward.sentences.values()) == 2
    assert ward.api.get(CONTROLS, "default")["status"]["startTokens"]["tokens"] == 0
    ward.let_pass(12)
    assert len(ward.fenced()) == 4
    ward.let_pass(12)
    assert len(ward.fenced()) == 5


def test_a_token_comes_back_where_surely_nothing_was_started_and_not_where_something_may_have_been() -> None:
    ward = Ward(policy(Mode.AUTO, max_fenced="100%", pools=("a", "b"), burst=3, per_minute=0))
    ward.api.trouble = every_mutation(Trouble.UNREACHABLE, method="POST")
    ward.sick("n1")
    assert ward.controller.engine.bucket(virtual=False).tokens == 3
    ward.api.trouble = every_mutation(Trouble.REFUSED, method="POST")
    ward.let_pass(15)
    ward.rest()
    assert ward.controller.engine.bucket(virtual=False).tokens < 3


def test_a_restarted_controller_goes_on_with_the_tokens_that_were_left() -> None:
    limited = policy(Mode.AUTO, max_fenced="100%", pools=("a", "b"), burst=3, per_minute=5)
    ward = Ward(limited)
    for name in ("n1", "n2", "n3"):
        ward.sick(name)
    ward.new_controller()
    assert ward.controller.engine.bucket(virtual=False).tokens == pytest.approx(0, abs=0.01)
    assert ward.controller.engine.bucket(virtual=True).tokens == 3


def test_tokens_that_could_not_be_remembered_are_told_by_the_sessions() -> None:
    ward = Ward(policy(Mode.AUTO, max_fenced="100%", pools=("a", "b"), burst=3, per_minute=5))
    ward.api.trouble = every_mutation(Trouble.REFUSED, collection=CONTROLS)
    for name in ("n1", "n2", "n3"):
        ward.sick(name)
    assert "status" not in ward.api.get(CONTROLS, "default")
    ward.new_controller()
    assert ward.controller.engine.bucket(virtual=False).tokens == pytest.approx(0, abs=0.1)


def test_a_follower_that_watched_for_long_does_not_begin_with_a_full_bucket() -> None:
    ward = Ward(policy(Mode.AUTO, max_fenced="100%", pools=("a", "b"), burst=3, per_minute=5))
    follower = FakeController(ward.api, ward.clock, ward.policy)
    assert follower.engine.bucket(virtual=False).tokens == 3
    for name in ("n1", "n2", "n3"):
        ward.sick(name)
    follower.settle()
    follower.take_over(100)
    follower.settle()
    assert follower.engine.bucket(virtual=False).tokens < 0.1


def test_failures_are_tried_again_at_once_and_then_ever_more_slowly(ward: Ward) -> None:
    ward.api.trouble = every_mutation(Trouble.REFUSED, collection=NODES)
    ward.sick("n1")
    attempts = [call for call in ward.mutations() if call.collection == NODES]
    assert len(attempts) == 2
    ward.let_pass(300)
    attempts = [call for call in ward.mutations() if call.collection == NODES]
    assert 8 <= len(attempts) <= 25
    journal = ward.session("n1").current.journal
    assert len(journal) == 3
    assert sum(line.count for line in journal if line.event is JournalEvent.INTENT) == len(attempts)
    ward.api.trouble = lambda call: None
    ward.let_pass(45)
    assert ward.fenced() == ["n1"]


def test_what_a_failing_attempt_writes_itself_does_not_cut_its_pause_short(ward: Ward) -> None:
    ward.api.trouble = every_mutation(Trouble.REFUSED, collection=NODES)
    ward.sick("n1")
    before = len(ward.mutations())
    for _ in range(50):
        ward.controller.watches.repeat(REMEDIATIONS)
        ward.controller.watches.repeat(NODES)
        ward.rest()
    assert len(ward.mutations()) == before


def test_a_node_that_is_asked_for_during_its_pause_is_looked_at_when_the_pause_ends(ward: Ward) -> None:
    ward.api.trouble = every_mutation(Trouble.REFUSED, collection=NODES)
    ward.sick("n1")
    ward.let_pass(120)
    ward.api.trouble = lambda call: None
    ward.sentences.clear()
    ward.controller.engine._look_again_in("n1", 0.0)
    ward.controller.pump()
    assert "n1" not in ward.sentences and ward.fenced() == []
    ward.let_pass(30, speaking=False)
    assert ward.fenced() == ["n1"]


def test_a_node_that_vanishes_under_a_step_is_not_hammered(ward: Ward) -> None:
    ward.sick("n1", PASSING)
    ward.clear_faults("n1")
    ward.let_pass(45)
    ward.lagging.add(NODES)
    ward.api.remove(NODES, "n1")
    before = len(ward.mutations())
    ward.clock.advance(1)
    for _ in range(30):
        ward.run()
    assert len(ward.mutations()) - before <= 4
    ward.lagging.clear()
    del ward.agents["n1"]
    ward.let_pass(60)
    assert ward.session("n1").current.reason == "NodeGone"


def test_an_answer_that_comes_after_the_node_is_gone_does_not_bring_it_back(ward: Ward) -> None:
    ward.controller.workers.at_once = False
    ward.raise_fault("n1", *FATAL)
    ward.run()
    ward.controller.workers.run_next()
    ward.remove_node("n1")
    ward.run()
    ward.controller.workers.at_once = True
    ward.rest()
    assert "n1" not in ward.controller.engine.fleet.nodes
    assert ward.session("n1").current.reason == "NodeGone"
    assert "n1" not in ward.sentences


def test_a_session_that_was_deleted_under_an_action_does_not_haunt_the_node(ward: Ward) -> None:
    ward.sick("n1")
    name = ward.session("n1").metadata.name
    ghost = ward.session("n1")
    ward.api.remove(REMEDIATIONS, name)
    ward.controller.watches.deliver_all()
    ward.controller.pump()
    ward.controller.engine.fleet.put_session(ghost)
    ward.reboot("n1")
    ward.let_pass(240)
    assert ward.fenced() == []
    assert [item.current.phase for item in ward.sessions(opened=False)] == [Phase.RELEASED]


def test_a_persons_uncordon_does_not_lead_to_another_cordon_for_anything_in_that_session(ward: Ward) -> None:
    ward.sick("n1", PASSING)
    ward.sick("n1", ("RemapFailed", "GPU-1", "ReplaceHardware", "DriverVerdict", "Fatal"))
    ward.uncordon("n1")
    ward.rest()
    assert ward.session("n1").current.reason == "UncordonedByUser"
    assert SESSION_KEY not in ward.api.get(NODES, "n1")["metadata"]["annotations"]
    ward.let_pass(600)
    assert ward.fenced() == [] and len(ward.sessions(opened=False)) == 1
    ward.sick("n1", FATAL)
    assert ward.fenced() == ["n1"]


def test_a_pause_is_seen_also_where_an_answer_that_was_sent_before_it_comes_after(ward: Ward) -> None:
    ward.controller.workers.at_once = False
    ward.raise_fault("n1", *FATAL)
    ward.run()
    old = ward.controller.engine.fleet.control
    ward.switch(pause={"user": "alice"})
    ward.run()
    ward.controller.engine.fleet.put_control(old)
    ward.controller.workers.at_once = True
    ward.rest()
    assert ward.fenced() == [] and "paused" in ward.sentences["n1"]
    ward.switch(pause=None)
    ward.let_pass(1)
    assert ward.fenced() == ["n1"]


def test_what_the_controller_remembers_in_the_control_object_wakes_no_node(ward: Ward) -> None:
    ward.sentences.clear()
    tokens = {"tokens": 1, "refreshedTime": "2026-01-01T00:00:00Z"}
    ward.api.edit(CONTROLS, "default", lambda found: found.update(status={"startTokens": tokens}))
    ward.run()
    assert ward.sentences == {}
    ward.switch(pause={"user": "alice"})
    ward.run()
    assert ward.sentences.keys() == ward.agents.keys()
    ward.sentences.clear()
    ward.api.remove(CONTROLS, "default")
    ward.run()
    assert ward.sentences.keys() == ward.agents.keys()


def test_a_policy_that_is_tightened_stops_a_session_before_its_next_step(ward: Ward) -> None:
    ward.controller.workers.at_once = False
    ward.raise_fault("n1", *FATAL)
    ward.run()
    ward.api.trouble = every_mutation(Trouble.REFUSED, collection=NODES)
    ward.controller.workers.run_next()
    ward.change(policy(Mode.OBSERVE, max_fenced="100%", pools=("a", "b")))
    ward.api.trouble = lambda call: None
    ward.controller.workers.at_once = True
    ward.rest()
    assert ward.fenced() == [] and "only observes now" in ward.sentences["n1"]
    ward.change(policy(Mode.AUTO, max_fenced="100%", pools=("a", "b")))
    ward.rest()
    assert ward.fenced() == ["n1"]


def test_an_old_leaders_action_changes_nothing_once_another_leads(ward: Ward) -> None:
    ward.controller.workers.at_once = False
    ward.raise_fault("n1", *FATAL)
    ward.run()
    former = ward.controller
    former.leads = False
    ward.new_controller()
    before = len(ward.mutations())
    former.workers.run_next()
    assert len(ward.mutations()) == before and ward.fenced() == []
    ward.let_pass(45)
    assert ward.fenced() == ["n1"] and ward.session("n1").current.leader_epoch == ward.controller.engine.epoch


def test_one_nodes_objects_that_nobody_can_decide_about_do_not_stop_the_others(
    ward: Ward, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from remediation import engine

    decide = engine.decide

    def raises(at: Any) -> Any:
        if at.name == "n1":
            raise TypeError("can't compare offset-naive and offset-aware datetimes")
        return decide(at)

    monkeypatch.setattr(engine, "decide", raises)
    for name in ("n1", "n2"):
        ward.raise_fault(name, *FATAL)
    ward.rest()
    assert ward.fenced() == ["n2"]
    assert "no decision can be made about a node" in caplog.text
    monkeypatch.undo()
    ward.let_pass(45)
    assert ward.fenced() == ["n1", "n2"]


def test_an_action_that_fails_in_a_way_nobody_foresaw_is_tried_again(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = ward.controller.engine.executor
    carry_out, told = executor.carry_out, []

    def breaks(action: Any, basis: Any) -> Any:
        if not told:
            told.append(action)
            raise RuntimeError("out of memory")
        return carry_out(action, basis)

    monkeypatch.setattr(executor, "carry_out", breaks)
    ward.sick("n1")
    assert told and ward.fenced() == ["n1"]


def test_every_action_that_was_carried_out_is_told(ward: Ward) -> None:
    told: list[Done] = []
    ward.controller.engine.on_done = told.append
    ward.sick("n1")
    assert [type(done.action).__name__ for done in told] == ["Open", "Run"]
    assert [done.node_name for done in told] == ["n1", "n1"]


def test_a_hold_on_a_session_that_verifies_is_kept_and_when_lifted_the_dwell_begins_anew(ward: Ward) -> None:
    ward.sick("n1", PASSING)
    ward.clear_faults("n1")
    ward.let_pass(45)
    ward.say(ward.session("n1").metadata.name, "hold", {"user": "bob"})
    ward.let_pass(300)
    assert ward.session("n1").current.reason == "HeldByUser" and ward.fenced() == ["n1"]
    ward.say(ward.session("n1").metadata.name, "hold", None)
    ward.let_pass(45)
    assert ward.session("n1").current.phase is Phase.VERIFYING and ward.fenced() == ["n1"]
    ward.let_pass(45)
    assert ward.session("n1").current.phase is Phase.RELEASED and ward.fenced() == []


def test_a_silent_agent_during_the_dwell_makes_it_begin_anew(ward: Ward) -> None:
    ward.change(policy(Mode.AUTO, max_fenced="100%", pools=("a", "b"), dwell="5m"))
    ward.sick("n1", PASSING)
    ward.clear_faults("n1")
    ward.let_pass(30)
    ward.agents["n1"].silent = True
    ward.let_pass(120)
    ward.agents["n1"].silent = False
    ward.let_pass(285)
    assert ward.fenced() == ["n1"]
    ward.let_pass(75)
    assert ward.fenced() == []


@pytest.mark.parametrize("spoil", ["status", "opening"])
def test_a_session_that_is_edited_by_hand_into_what_cannot_be_read_harms_nothing_else(
    ward: Ward, spoil: str
) -> None:
    ward.sick("n1")
    name = ward.session("n1").metadata.name

    def change(found: Document) -> None:
        if spoil == "status":
            found["status"]["phase"] = "Broken"
        else:
            del found["status"]
            found["metadata"]["annotations"]["sickbay.dev/opening"] = "{"

    ward.api.edit(REMEDIATIONS, name, change)
    ward.new_controller()
    ward.let_pass(60)
    ward.sick("n2")
    assert ward.fenced() == ["n1", "n2"]
    assert len(ward.api.objects[REMEDIATIONS]) == 2
    ward.reboot("n1")
    ward.let_pass(240)
    assert ward.fenced() == (["n1", "n2"] if spoil == "status" else ["n2"])


@pytest.mark.parametrize("where", ["status", "opening"])
def test_a_term_begins_above_the_epoch_of_a_session_that_cannot_be_read(ward: Ward, where: str) -> None:
    ward.sick("n1")
    name = ward.session("n1").metadata.name
    whole = ward.api.get(REMEDIATIONS, name)["status"]

    def spoil(found: Document) -> None:
        found["spec"]["mode"] = "Later"
        if where == "status":
            found["status"]["leaderEpoch"] = 40
        else:
            del found["status"]
            found["metadata"]["annotations"]["sickbay.dev/opening"] = '{"leaderEpoch":40}'

    def mend(found: Document) -> None:
        found["spec"]["mode"] = "Auto"
        found["status"] = {**whole, "leaderEpoch": 40}

    ward.api.edit(REMEDIATIONS, name, spoil)
    ward.new_controller()
    assert ward.controller.engine.epoch == 41
    ward.api.edit(REMEDIATIONS, name, mend)
    ward.reboot("n1")
    ward.let_pass(240)
    assert ward.fenced() == [] and ward.session("n1").current.leader_epoch == 41


def test_a_takeover_that_took_several_attempts_is_one_epoch_which_the_next_term_is_above(ward: Ward) -> None:
    ward.sick("n1")
    name = ward.session("n1").metadata.name
    ward.plan.extend([(0, Trouble.LOST)] * 3)
    ward.new_controller()
    epoch = ward.controller.engine.epoch
    assert not ward.plan and ward.session("n1").current.leader_epoch == epoch == ward.transitions + 1
    ward.forget(name)
    ward.new_controller()
    assert ward.controller.engine.epoch > epoch


def test_a_sleeping_node_is_looked_at_at_its_earliest_wish(ward: Ward) -> None:
    engine = ward.controller.engine
    engine._look_again_in("n1", 50)
    engine._look_again_in("n1", 20)
    engine._look_again_in("n1", 30)
    ward.sentences.clear()
    ward.clock.advance(19)
    ward.controller.pump()
    assert "n1" not in ward.sentences
    ward.clock.advance(1)
    ward.controller.pump()
    assert "n1" in ward.sentences


def test_what_a_watch_says_of_unknown_objects_is_taken_as_it_comes(ward: Ward) -> None:
    inbox = ward.controller.engine.inbox
    for resource in Resource:
        inbox.put(Seen(resource, Kind.DELETED, "nobody", None))
        inbox.put(Seen(resource, Kind.SYNCED, "", None))
    inbox.put(Seen(Resource.REPORT, Kind.ADDED, "nobody", report("nobody", fault())))
    inbox.put(Seen(Resource.NODE, Kind.ADDED, "n9", node("n9")))
    ward.rest()
    assert ward.sentences["n9"].startswith("n9: no fresh report")
    assert "nobody" not in ward.sentences


def test_workers_that_have_not_begun_do_not_hold_up_the_loop(ward: Ward) -> None:
    ward.controller.workers.at_once = False
    for name in ward.agents:
        ward.raise_fault(name, *FATAL)
    ward.run()
    assert len(ward.controller.workers.pending) == 5
    assert ward.fenced() == []
    assert isinstance(ward.controller.workers, InlineWorkers)
    while ward.controller.workers.pending:
        ward.controller.workers.run_next()
        ward.run()
    assert len(ward.fenced()) == 5


def test_a_report_that_vanishes_does_not_end_a_session(ward: Ward) -> None:
    ward.sick("n1")
    ward.api.remove(REPORTS, "n1")
    ward.let_pass(300)
    assert ward.fenced() == ["n1"]
    assert ward.session("n1").current.phase in (Phase.HELD, Phase.VERIFYING)
