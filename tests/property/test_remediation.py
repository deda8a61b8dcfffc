"""Everybody acts at once, the API fails and controllers die: the invariants of the design hold all the same."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from health.report import Fault
from health.vocabulary import Advice, Mode, Phase, Severity
from remediation.budget import StartBucket
from remediation.cluster import CONTROLS, NODES, REMEDIATIONS, REPORTS
from remediation.decide import decide
from remediation.engine import NewPolicy
from remediation.fleet import HOLD_KEY, OPT_OUT_KEY, SESSION_KEY
from remediation.objects import OPENING_ANNOTATION
from remediation.policy import Match, Policy, Rule, StepName
from remediation.situation import Open
from tests.property.remediation_world import POOLS, RATE, World
from tests.unit.builders import FULL, control, fault, fleet, later, node, policy, report, situation
from tests.unit.fake_cluster import Crash, Document, Trouble

# kind, advice, what clears it, severity
FAULTS = (
    ("DeviceLost", "RebootNode", "NewBoot", "Fatal"),
    ("DeviceLost", "ReplaceHardware", "NewBoot", "Fatal"),
    ("EngineHung", "ResetDevice", "DeviceReset", "Fatal"),
    ("EngineHung", "None", "DeviceReset", "Fatal"),
    ("RemapPending", "ResetDevice", "DeviceReset", "Degraded"),
    ("RemapPending", "ResetDevice", "DeviceReset", "Fatal"),
    ("PluginDead", "RestartPlugin", "Dwell", "Degraded"),
    ("ApplicationFault", "RestartWorkload", "Dwell", "Info"),
    ("UnknownXid", "SomethingNew", "SomethingElse", "Fatal"),
)

_BY_SEVERITY = (
    Rule(name="fatal", match=Match(severities=(Severity.FATAL,)), mode=Mode.AUTO),
    Rule(name="rest", mode=Mode.OBSERVE),
)
_BY_KIND = (
    Rule(name="lost", match=Match(kinds=("DeviceLost",)), mode=Mode.AUTO),
    Rule(name="hung", match=Match(kinds=("EngineHung",)), mode=Mode.APPROVE),
    Rule(name="pool", match=Match(pools=("a",)), mode=Mode.OBSERVE),
)
_COMMON = {"pools": ("a", "b"), "dwell": "60s", **RATE}
POLICIES: tuple[Policy, ...] = (
    policy(Mode.AUTO, max_fenced="50%", **_COMMON),
    policy(Mode.AUTO, max_fenced="100%", **_COMMON),
    policy(Mode.AUTO, max_fenced=1, **_COMMON),
    policy(Mode.AUTO, max_fenced=0, **_COMMON),
    policy(Mode.APPROVE, max_fenced="100%", **_COMMON),
    policy(Mode.OBSERVE, max_fenced="50%", **_COMMON),
    policy(Mode.AUTO, *_BY_SEVERITY, max_fenced="100%", **_COMMON),
    policy(Mode.AUTO, *_BY_KIND, max_fenced="67%", **_COMMON),
)

CRASHES = (
    Trouble.CRASH_BEFORE,
    Trouble.CRASH_AFTER,
    Trouble.LOST,
    Trouble.LATE,
    Trouble.REFUSED,
    Trouble.CONFLICT,
)

names = st.sampled_from(sorted(POOLS))
collections = st.sampled_from((REPORTS, NODES, REMEDIATIONS, CONTROLS))
whole = st.integers(min_value=0, max_value=50)


class Remediation(RuleBasedStateMachine):
    """Rules are what anybody may do; after each, the leader sees what is not held back, and acts."""

    @initialize(which=st.sampled_from(POLICIES))
    def begin(self, which: Policy) -> None:
        self.world = World()
        self.change_policy(which)
        self.world.let_pass(45)

    @invariant()
    def hold(self) -> None:
        if hasattr(self, "world"):
            self.world.run()
            self.world.monitor.check()

    def _there(self, name: str) -> bool:
        return name in self.world.agents

    def _session(self, number: int) -> str:
        found = self.world.sessions()
        return found[number % len(found)].metadata.name if found else ""

    # Machines and their agents.

    @rule(name=names, which=st.sampled_from(FAULTS), device=st.sampled_from(("GPU-0", "GPU-1")))
    def raise_fault(self, name: str, which: tuple[str, str, str, str], device: str) -> None:
        if self._there(name):
            kind, advice, clears_on, severity = which
            self.world.raise_fault(name, kind, device, advice, clears_on, severity)

    @rule(which=st.sampled_from(FAULTS[:4]))
    def storm(self, which: tuple[str, str, str, str]) -> None:
        for name in list(self.world.agents):
            self.raise_fault(name, which, "GPU-0")

    @rule(name=names, which=st.sampled_from(FAULTS), seconds=st.sampled_from((1.0, 70.0)))
    def fault_lasts(self, name: str, which: tuple[str, str, str, str], seconds: float) -> None:
        self.raise_fault(name, which, "GPU-0")
        self.world.let_pass(seconds)

    @rule(name=names, seconds=st.sampled_from((1.0, 50.0, 130.0)))
    def reboot_helps(self, name: str, seconds: float) -> None:
        self.reboot(name, kubelet=True, agent=True)
        self.world.let_pass(seconds)

    @rule(name=names)
    def clear_faults(self, name: str) -> None:
        if self._there(name):
            self.world.clear_faults(name)

    @rule(name=names, which=st.sampled_from(FAULTS[2:]))
    def flap(self, name: str, which: tuple[str, str, str, str]) -> None:
        for _ in range(2):
            self.raise_fault(name, which, "GPU-0")
            self.world.run()
            self.clear_faults(name)
            self.world.run()

    @rule(name=names, kubelet=st.booleans(), agent=st.booleans())
    def reboot(self, name: str, kubelet: bool, agent: bool) -> None:
        if self._there(name):
            self.world.reboot(name, kubelet=kubelet, agent=agent)

    @rule(name=names, silent=st.booleans(), failing=st.booleans())
    def agent_falls_silent_or_speaks(self, name: str, silent: bool, failing: bool) -> None:
        if self._there(name):
            self.world.agents[name].silent = silent
            self.world.agents[name].failing = failing
            self.world.tell(name)

    @rule(name=names, other=names)
    def report_of_another_node(self, name: str, other: str) -> None:
        if self._there(name) and self._there(other):
            self.world.agents[name].uid = self.world.api.get(NODES, other)["metadata"]["uid"]
            self.world.tell(name)

    @rule(name=names)
    def report_vanishes(self, name: str) -> None:
        if name in self.world.api.objects[REPORTS]:
            self.world.api.remove(REPORTS, name)

    @rule(name=names, yes=st.booleans())
    def readiness(self, name: str, yes: bool) -> None:
        if self._there(name):
            self.world.ready(name, yes=yes)

    @rule(name=names)
    def node_goes_or_comes(self, name: str) -> None:
        if self._there(name):
            self.world.remove_node(name)
        else:
            self.world.add_node(name)

    @rule(name=names)
    def node_is_replaced_at_once(self, name: str) -> None:
        if self._there(name):
            self.world.remove_node(name)
            self.world.add_node(name)

    @rule(name=names, on=st.booleans())
    def somebody_else_works_on_it(self, name: str, on: bool) -> None:
        if self._there(name):
            taints = [{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}] if on else []
            self.world.node(name, lambda node: node["spec"].update(taints=taints))

    @rule(name=names, on=st.booleans())
    def maintenance(self, name: str, on: bool) -> None:
        if name in self.world.api.objects[REPORTS]:
            spec = {"maintenance": {"reason": "driver", "since": "2026-01-01T00:00:00Z"}} if on else {}
            self.world.api.edit(REPORTS, name, lambda report: report.update(spec=spec))

    # People.

    @rule(name=names)
    def person_cordons(self, name: str) -> None:
        if self._there(name):
            self.world.cordon(name)

    @rule(name=names)
    def person_uncordons(self, name: str) -> None:
        if self._there(name):
            self.world.uncordon(name)

    @rule(name=names, key=st.sampled_from((HOLD_KEY, OPT_OUT_KEY)), on=st.booleans())
    def person_annotates(self, name: str, key: str, on: bool) -> None:
        if self._there(name):
            self.world.annotate(name, key, on=on)

    @rule(name=names)
    def person_removes_the_record(self, name: str) -> None:
        if self._there(name):
            node = self.world.api.get(NODES, name)
            if SESSION_KEY in node["metadata"]["annotations"]:
                uid = node["metadata"]["uid"]
                for marks in (self.world.monitor.ours, self.world.monitor.unclear):
                    marks.discard(uid)
                self.world.monitor.persons.add(uid)
                self.world.annotate(name, SESSION_KEY, on=False)

    @rule(name=names, action=st.sampled_from(("Hold", "OptOut", None)))
    def person_switches(self, name: str, action: str | None) -> None:
        nodes = [{"name": name, "action": action, "user": "alice"}] if action else None
        self.world.switch(nodes=nodes)

    @rule(on=st.booleans())
    def person_pauses(self, on: bool) -> None:
        self.world.switch(pause={"user": "alice"} if on else None)

    @rule(number=whole, decision=st.sampled_from(("Approved", "Approved", "Denied", None)))
    def person_decides(self, number: int, decision: str | None) -> None:
        if name := self._session(number):
            self.world.say(name, "approval", {"decision": decision, "user": "bob"} if decision else None)

    @rule(number=whole, on=st.booleans())
    def person_holds_a_session(self, number: int, on: bool) -> None:
        if name := self._session(number):
            self.world.say(name, "hold", {"user": "bob"} if on else None)

    @rule(number=whole)
    def person_deletes_a_session(self, number: int) -> None:
        if name := self._session(number):
            self.world.api.remove(REMEDIATIONS, name)
            self.world.garbled.pop(name, None)
            self.world.monitor.excused += 1

    @rule(number=whole, text=st.sampled_from(("", "{", "[]", '{"phase":"Broken"}', '{"phase":"Held"}')))
    def person_spoils_an_opening(self, number: int, text: str) -> None:
        if name := self._session(number):
            self.world.api.edit(
                REMEDIATIONS,
                name,
                lambda found: found["metadata"]["annotations"].update({OPENING_ANNOTATION: text}),
            )

    @rule(number=whole, key=st.sampled_from(("phase", "closedTime", "journal")))
    def person_spoils_a_status(self, number: int, key: str) -> None:
        name = self._session(number)
        if not name or name in self.world.garbled:
            return
        self.world.garbled[name] = self.world.api.get(REMEDIATIONS, name).get("status")

        def spoil(found: Document) -> None:
            found.setdefault("status", {})[key] = "12 o'clock"

        self.world.api.edit(REMEDIATIONS, name, spoil)

    @rule(which=st.sampled_from(POLICIES))
    def change_policy(self, which: Policy) -> None:
        self.world.policy = which
        self.world.controller.engine.inbox.put(NewPolicy(which))

    # The API, the watches, the controllers.

    @rule(spared=st.integers(min_value=0, max_value=4), trouble=st.sampled_from(tuple(Trouble)))
    def trouble(self, spared: int, trouble: Trouble) -> None:
        if len(self.world.plan) < 4:
            self.world.plan.append((spared, trouble))

    @rule()
    def late_request_lands(self) -> None:
        if self.world.api.late:
            self.world.api.land(self.world.api.late.pop(0))

    @rule(collection=collections)
    def watch_lags(self, collection: str) -> None:
        self.world.lagging.add(collection)

    @rule()
    def watches_catch_up(self) -> None:
        self.world.lagging.clear()

    @rule(collection=collections, count=st.integers(min_value=1, max_value=3))
    def watch_delivers_some(self, collection: str, count: int) -> None:
        self.world.controller.watches.deliver(collection, count)

    @rule(collection=collections)
    def watch_repeats_itself(self, collection: str) -> None:
        self.world.controller.watches.repeat(collection)

    @rule()
    def watches_list_again(self) -> None:
        self.world.controller.watches.list_all()

    @rule(at_once=st.booleans())
    def workers(self, at_once: bool) -> None:
        self.world.controller.workers.at_once = at_once
        self.work()

    @precondition(lambda self: self.world.controller.workers.pending)
    @rule()
    def work(self) -> None:
        try:
            if self.world.controller.workers.pending:
                self.world.controller.workers.run_next()
        except Crash:
            self.world.new_controller()

    @rule()
    def controller_is_restarted(self) -> None:
        self.world.new_controller()

    @rule()
    def another_leads_and_the_former_does_not_know(self) -> None:
        self.world.controller.leads = False
        self.world.former.append(self.world.controller)
        self.world.new_controller()

    @precondition(lambda self: self.world.former)
    @rule()
    def former_leader_sends_what_it_was_about_to(self) -> None:
        former = self.world.former.pop(0)
        if former.workers.pending:
            former.allowance = 1
            self.world.monitor.excused += 1
            try:
                former.workers.run_next()
            except Crash:
                return

    @rule(seconds=st.sampled_from((1.0, 6.0, 35.0, 70.0, 130.0)))
    def time_passes(self, seconds: float) -> None:
        self.world.let_pass(seconds)

    # In the end.

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        world.heal()
        world.controller.engine.inbox.put(NewPolicy(world.policy))
        world.controller.workers.at_once = True
        while world.controller.workers.pending:
            self.work()
        world.let_pass(90 + 60 + 60 + 90)
        world.rest()
        world.monitor.check()
        quiet = len([call for call in world.api.calls if call.mutates])
        world.let_pass(60)
        assert quiet == len([call for call in world.api.calls if call.mutates]), "never comes to rest"
        for session in world.sessions():
            assert session.current.phase is Phase.HELD, f"neither released nor held: {session}"
        for name in world.agents:
            node = world.api.get(NODES, name)
            owner = node["metadata"]["annotations"].get(SESSION_KEY)
            held = [item.metadata.name for item in world.sessions() if item.current.phase is Phase.HELD]
            assert owner is None or owner in held, (
                f"{name} is fenced for good: {world.controller.engine.sentences}"
            )


def machine(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


class TestRemediation(Remediation.TestCase):
    """Short runs, many of them."""

    settings = machine(120, 50)


@pytest.mark.deep
@pytest.mark.timeout(3600)
class TestRemediationAtLength(Remediation.TestCase):
    """Long runs."""

    settings = machine(1500, 120)


def projection(world: World, name: str) -> object:
    """What counts in the end: the node's spec and our keys, and what became of its sessions."""
    node = world.api.get(NODES, name)
    sessions = [item for item in world.sessions(opened=False) if item.spec.node_name == name]
    ours = {key for key in node["metadata"]["annotations"] if key.startswith("sickbay.dev/")}
    return (
        node["spec"].get("unschedulable", False),
        ours,
        [
            (item.current.phase, item.current.reason, item.current.fenced_time is not None)
            for item in sessions
        ],
    )


def journey(*, spared: int, trouble: Trouble | None) -> tuple[object, object, int]:
    """A GPU is lost, the node is fenced and held; a reboot helps, and it is given back. One write meets trouble.

    The projections while it is held and in the end, and how many writes the controllers asked for.
    """
    world = World()
    world.let_pass(45)
    if trouble is not None:
        world.plan.append((spared, trouble))
    begun = len(world.api.calls)
    world.raise_fault("n1", "DeviceLost", "GPU-0", "RebootNode", "NewBoot", "Fatal")
    world.let_pass(75)
    held = projection(world, "n1")
    world.reboot("n1")
    world.let_pass(180)
    world.rest()
    world.monitor.check()
    return held, projection(world, "n1"), sum(call.mutates for call in world.api.calls[begun:])


@pytest.mark.parametrize("trouble", CRASHES)
def test_trouble_at_any_write_leads_to_the_same_end(trouble: Trouble) -> None:
    held, end, writes = journey(spared=0, trouble=None)
    assert held == (True, {SESSION_KEY}, [(Phase.HELD, "NoRepairStep", True)])
    assert end == (False, set(), [(Phase.RELEASED, "Healthy", True)])
    assert writes >= 7
    for spared in range(writes):
        assert journey(spared=spared, trouble=trouble)[:2] == (held, end), f"after {spared} writes"


faults = st.lists(
    st.builds(
        fault,
        st.sampled_from(("DeviceLost", "EngineHung", "RemapPending", "ApplicationFault")),
        device=st.sampled_from(("GPU-0", "GPU-1", "")),
        advice=st.sampled_from((*Advice, "SomethingNew")),
        severity=st.sampled_from(Severity),
        seen=st.sampled_from((later(0), later(-60))),
    ),
    max_size=3,
    unique_by=lambda found: found.identity,
)


@given(
    found=faults,
    flags=st.sets(st.sampled_from(("cordoned", "hold", "opt_out", "deleting")), max_size=1),
    ready=st.booleans(),
    taken=st.integers(min_value=0, max_value=4),
    limit=st.sampled_from(("100%", "50%", 2, 0)),
    tokens=st.sampled_from((10.0, 1.0, 0.5)),
    paused=st.booleans(),
    age=st.sampled_from((0.0, 80.0, 100.0)),
    boot=st.sampled_from(("boot-1", "boot-1", "boot-0")),
)
def test_observe_takes_the_same_first_step_as_auto_and_nothing_but_writes_a_session(
    found: list[Fault],
    flags: set[str],
    ready: bool,
    taken: int,
    limit: str | int,
    tokens: float,
    paused: bool,
    age: float,
    boot: str,
) -> None:
    others = [node(f"other-{number}", cordoned=number < taken) for number in range(4)]
    made = fleet(
        node(ready=ready, **dict.fromkeys(flags, True)),
        report("n1", *found, boot=boot),
        *others,
        *(report(other.name) for other in others),
        control(paused=paused),
    )
    bucket = StartBucket(tokens=tokens, refreshed=1000.0)
    observed, done = (
        decide(
            situation(
                made,
                under=policy(mode, max_fenced=limit),
                bucket=bucket if mode is Mode.AUTO else FULL,
                virtual_bucket=bucket if mode is Mode.OBSERVE else StartBucket(0.0, 1000.0),
                monotonic=1000.0 + age,
            )
        )
        for mode in (Mode.OBSERVE, Mode.AUTO)
    )
    assert (observed.action is None) == (done.action is None), (observed, done)
    if observed.action is None or done.action is None:
        assert observed == done
        return
    assert isinstance(observed.action, Open) and isinstance(done.action, Open)
    assert observed.action.step is None and observed.action.virtual
    assert (done.action.step, done.action.virtual) == (StepName.CORDON, False)
    one, other = observed.action.status, done.action.status
    assert (observed.action.name, one.incidents, one.plan, one.rung) == (
        done.action.name,
        other.incidents,
        other.plan,
        other.rung,
    )
    assert one.journal[0].step == other.journal[0].step == StepName.CORDON
