"""Drains and plugin restarts as the whole controller takes them: passes, writes, live looks, budgets, failures."""

from typing import Any

import pytest
from msgspec.structs import replace

from health.vocabulary import Mode, Phase
from remediation.cluster import NODES, REMEDIATIONS, REPORTS
from remediation.drain_policy import DrainPolicy
from remediation.engine import NewPolicy
from remediation.objects import JournalEvent
from remediation.policy import Policy, Rule
from runtime.api_errors import Forbidden, Unavailable
from tests.fake_pods import FakePods
from tests.property.remediation_pods import PLUGIN
from tests.property.remediation_world import World
from tests.unit.builders import policy
from tests.unit.fake_cluster import Call, Trouble

LOST = ("DeviceLost", "GPU-0", "RebootNode", "NewBoot", "Fatal")
HUNG = ("EngineHung", "GPU-0", "ResetDevice", "DeviceReset", "Fatal")
DEAD = ("PluginDead", "", "RestartPlugin", "Dwell", "Degraded")


class Ward(World):
    """The small cluster with a controller that leads, and pods that a test binds; no administrator has made a template
    of a repair."""

    def __init__(self, **given: Any) -> None:
        super().__init__()
        self.change(policy(Mode.AUTO, pools=("a", "b"), dwell="60s", **given))
        self.let_pass(45)

    def change(self, under: Policy) -> None:
        self.policy = under
        self.controller.engine.inbox.put(NewPolicy(under))
        self.run()

    def sick(self, name: str, what: tuple[str, str, str, str, str] = LOST) -> None:
        self.raise_fault(name, *what)
        self.rest()

    def status(self, name: str) -> Any:
        (found,) = [item for item in self.sessions(opened=False) if item.spec.node_name == name]
        return found.current

    def session_name(self, name: str) -> str:
        (found,) = [item for item in self.sessions() if item.spec.node_name == name]
        return found.metadata.name

    def writes(self, name: str) -> list[Call]:
        """Status writes of a node's sessions."""
        return [
            call
            for call in self.api.calls
            if (call.collection, call.method) == (REMEDIATIONS, "PATCH") and call.name.startswith(name)
        ]

    def tick(self, seconds: float) -> None:
        """Time passes a second at a time, with everything carried out."""
        for _ in range(int(seconds)):
            self.let_pass(1)
            self.rest()

    def evicted(self) -> list[str]:
        return [eviction.name for _, eviction in self.pods.evictions]


@pytest.fixture
def ward() -> Ward:
    return Ward()


def test_a_drain_evicts_waits_looks_once_more_and_says_what_comes_next(ward: Ward) -> None:
    for what in ("plain", "bare", "without a device"):
        ward.pods.bind("n1", what)
    ward.change(policy(Mode.AUTO, Rule(name="all", mode=Mode.AUTO, drain=DrainPolicy(force=True))))
    ward.sick("n1")
    assert len(ward.evicted()) == 2
    status = ward.status("n1")
    assert (status.phase, status.step) == (Phase.DRAINING, "Drain")
    assert "2 accelerator pods left: 2 evicted" in status.message
    ward.tick(20)
    status = ward.status("n1")
    assert (status.phase, status.reason) == (Phase.HELD, "NoRepairStep")
    told = [(line.step, line.event, line.result) for line in status.journal]
    assert told[2:] == [
        ("Drain", JournalEvent.INTENT, ""),
        ("Drain", JournalEvent.OUTCOME, "Done"),
        ("Reboot", JournalEvent.INTENT, ""),
        ("Reboot", JournalEvent.OUTCOME, "Blocked"),
    ]
    assert not any(pod.asks_for(("nvidia.com/gpu",)) for pod in ward.pods.on("n1"))
    assert [pod for pod in ward.pods.on("n1") if not pod.of_daemon_set], "the others stay"


def test_a_drain_that_waits_for_a_pod_writes_only_news(ward: Ward) -> None:
    ward.pods.bind("n1", "plain")
    ward.sick("n1")
    ward.pods.meet("n1", "stubborn")
    ward.tick(20)
    before, looks = len(ward.writes("n1")), ward.pods.lists
    ward.tick(40)
    assert ward.status("n1").phase is Phase.DRAINING
    assert len(ward.writes("n1")) == before, "nothing has changed"
    assert ward.pods.lists > looks + 3, "and it was looked all the same"


def test_a_refusing_budget_is_written_no_oftener_than_it_is_asked(ward: Ward) -> None:
    ward.pods.bind("n1", "plain")
    ward.pods.meet("n1", "budget")
    ward.sick("n1")
    before, asked = len(ward.writes("n1")), len(ward.evicted())
    ward.tick(120)
    assert "held back by a disruption budget" in ward.status("n1").message
    assert 10 <= len(ward.evicted()) - asked <= 24
    assert len(ward.writes("n1")) - before <= len(ward.evicted()) - asked


@pytest.mark.parametrize("how", ["pause", "hold", "node", "policy"])
def test_whoever_stops_a_drain_stops_the_evictions_and_who_lets_it_go_on_has_them_go_on(
    ward: Ward, how: str
) -> None:
    ward.pods.bind("n1", "plain")
    ward.pods.meet("n1", "budget")
    ward.sick("n1")
    match how:
        case "pause":
            ward.switch(pause={"user": "alice"})
        case "hold":
            ward.say(ward.session_name("n1"), "hold", {"user": "alice"})
        case "node":
            ward.annotate("n1", "sickbay.dev/hold", on=True)
        case "policy":
            ward.change(policy(Mode.OBSERVE))
    ward.tick(2)
    before = len(ward.evicted())
    ward.tick(60)
    assert len(ward.evicted()) == before
    assert ward.status("n1").phase in (Phase.FENCED, Phase.HELD)
    ward.pods.meet("n1", "no budget")
    match how:
        case "pause":
            ward.switch(pause=None)
        case "hold":
            ward.say(ward.session_name("n1"), "hold", None)
        case "node":
            ward.annotate("n1", "sickbay.dev/hold", on=False)
        case "policy":
            ward.change(policy(Mode.AUTO))
    ward.tick(40)
    assert len(ward.evicted()) == before + 1
    assert ward.status("n1").reason == "NoRepairStep"


def test_an_uncordon_ends_a_drain(ward: Ward) -> None:
    ward.pods.bind("n1", "plain")
    ward.pods.meet("n1", "budget")
    ward.sick("n1")
    ward.uncordon("n1")
    ward.tick(3)
    before = len(ward.evicted())
    ward.tick(60)
    assert len(ward.evicted()) == before
    assert ward.status("n1").reason == "UncordonedByUser"


def test_a_live_look_that_does_not_find_the_fault_stops_the_step_before_it_is_written(ward: Ward) -> None:
    ward.pods.bind("n1", "plain")
    ward.controller.workers.at_once = False
    ward.raise_fault("n1", *HUNG)
    for _ in range(2):  # create and cordon, then the outcome leads to the drain
        ward.run()
        if ward.api.get(NODES, "n1")["spec"].get("unschedulable"):
            break
        ward.work()
    ward.run()
    ward.lagging = {REPORTS}
    ward.clear_faults("n1")
    while ward.controller.workers.pending:
        ward.work()
        ward.controller.engine.run_once(patience=0)
        if "live look" in str(ward.controller.engine.sentences) or len(ward.api.calls) > 500:
            break
    assert ward.evicted() == []
    assert ward.status("n1").phase is Phase.FENCED


def test_an_intent_whose_answer_is_lost_keeps_the_room_that_it_took(ward: Ward) -> None:
    ward.change(policy(Mode.AUTO, max_disrupted=0, floor=0))
    for name in ("n1", "n2"):
        ward.sick(name)
    ward.node("n1", lambda node: node["spec"].update(taints=[{"key": "karpenter.sh/disrupted"}]))
    ward.rest()
    ward.controller.workers.at_once = False
    ward.change(policy(Mode.AUTO))
    ward.plan = [(0, Trouble.LOST)]
    ward.lagging = {REMEDIATIONS}
    ward.work()
    assert ward.plan == [] and ward.status("n2").phase is Phase.DRAINING, "and nobody has told the controller"
    ward.node("n1", lambda node: node["spec"].update(taints=[]))
    ward.run()
    while ward.controller.workers.pending:
        ward.work()
        ward.run()
    assert [item.spec.node_name for item in ward.sessions() if item.current.phase is Phase.DRAINING] == ["n2"]


def test_pods_that_cannot_be_listed_are_tried_until_the_deadline_and_then_a_persons_affair(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: FakePods, node_name: str) -> Any:
        raise Forbidden("pods is forbidden", status=403, reason="Forbidden")

    monkeypatch.setattr(FakePods, "pods_on", fails)
    ward.sick("n1")
    ward.let_pass(600)
    status = ward.status("n1")
    assert (status.phase, status.step) == (Phase.DRAINING, "Drain")
    assert len(status.journal) == 4, "folded"
    ward.let_pass(3600)
    assert (ward.status("n1").phase, ward.status("n1").reason) == (Phase.HELD, "DrainDeadline")


def test_one_node_of_a_gang_after_the_other() -> None:
    ward = Ward(max_disrupted="100%")
    for name in ("n1", "n4"):
        ward.pods.bind(name, "job")
    ward.sick("n1")
    ward.sick("n4")
    assert len(ward.evicted()) == 1
    assert "wait for a gang that is disrupted on another node" in ward.status("n4").message
    ward.tick(40)
    assert ward.status("n1").reason == "NoRepairStep", "a person has it now"
    assert len(ward.evicted()) == 2 and ward.status("n4").phase is not Phase.FENCED


def test_two_nodes_that_each_have_a_gang_the_other_waits_for_do_not_wait_for_ever() -> None:
    ward = Ward(max_disrupted="100%")
    for name in ("n1", "n2", "n4"):
        for what in ("job", "jobset"):
            ward.pods.bind(name, what)
        ward.raise_fault(name, *LOST)
    ward.rest()
    ward.tick(120)
    assert {ward.status(name).reason for name in ("n1", "n2", "n4")} == {"NoRepairStep"}


def test_a_plugin_is_restarted_behind_a_cordon_and_what_failed_meanwhile_is_removed(ward: Ward) -> None:
    ward.pods.bind("n1", "plain")
    (plugin,) = [pod for pod in ward.pods.on("n1") if pod.metadata.labels == PLUGIN]
    ward.sick("n1", DEAD)
    ward.tick(40)
    status = ward.status("n1")
    assert (status.phase, status.reason) == (Phase.RELEASED, "Healthy")
    assert not ward.api.get(NODES, "n1")["spec"].get("unschedulable")
    steps = [line.step for line in status.journal if line.event is JournalEvent.OUTCOME]
    assert [step for step in steps if step != "RestartPlugin"] == ["Cordon", "RemoveFailedPods", "Uncordon"]
    assert plugin.uid not in ward.pods.pods and ward.evicted() == []
    assert not any(pod.failed_admission for pod in ward.pods.on("n1"))
    assert any(pod.asks_for(("nvidia.com/gpu",)) for pod in ward.pods.on("n1")), "it runs on"


def test_a_restart_that_does_not_help_is_held_after_two_minutes_and_not_repeated(ward: Ward) -> None:
    ward.pods.broken_plugins.add("n1")
    ward.sick("n1", DEAD)
    ward.tick(60)
    assert ward.status("n1").reason == "Restarted"
    ward.tick(120)
    assert (ward.status("n1").phase, ward.status("n1").reason) == (Phase.HELD, "NotHealed")
    deleted = len(ward.pods.deletions)
    ward.tick(300)
    assert len(ward.pods.deletions) == deleted == 1
    ward.clear_faults("n1")
    agent = ward.agents["n1"]
    agent.faults.clear()
    ward.tell("n1")
    ward.tick(30)
    assert ward.status("n1").phase is Phase.RELEASED, "it healed after all"


def test_a_failed_eviction_is_an_answer_and_not_a_failure_of_the_step(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    ward.pods.bind("n1", "plain")
    (pod,) = [pod for pod in ward.pods.on("n1") if not pod.of_daemon_set]
    ward.pods.refusals[pod.uid] = [Unavailable("etcd is slow", status=503), None]
    ward.sick("n1")
    assert '"etcd is slow"' in ward.status("n1").message
    ward.tick(30)
    assert ward.status("n1").reason == "NoRepairStep" and len(ward.evicted()) == 2


def test_a_status_message_never_outgrows_its_schema(ward: Ward) -> None:
    for _ in range(30):
        ward.pods.bind("n1", "plain")
    long = "x" * 400
    for pod in ward.pods.on("n1"):
        if not pod.of_daemon_set:
            ward.pods.put(
                replace(pod, metadata=replace(pod.metadata, name=f"{long[:200]}-{pod.metadata.name}"))
            )
    ward.sick("n1")
    assert len(ward.status("n1").message) <= 1024


def test_more_pods_than_a_session_can_remember_are_drained_all_the_same(ward: Ward) -> None:
    for _ in range(300):
        ward.pods.bind("n1", "plain")
    ward.pods.meet("n1", "budget")
    ward.change(policy(Mode.AUTO, Rule(name="all", mode=Mode.AUTO, drain=DrainPolicy(concurrency=32))))
    ward.sick("n1")
    ward.tick(20)
    assert len(ward.status("n1").drain.pods) == 256
    ward.pods.meet("n1", "no budget")
    ward.tick(120)
    assert ward.status("n1").reason == "NoRepairStep"
