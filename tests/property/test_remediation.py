"""Everybody acts at once, the API fails and controllers die: the invariants of the design hold all the same."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from health.report import Fault
from health.vocabulary import Advice, Mode, Phase, Severity
from remediation.budget import StartBucket
from remediation.cluster import CONTROLS, NODES, REMEDIATIONS, REPORTS
from remediation.decide import decide
from remediation.drain_policy import DrainPolicy, PreDrain
from remediation.engine import NewPolicy
from remediation.fleet import HOLD_KEY, OPT_OUT_KEY, SESSION_KEY
from remediation.objects import OPENING_ANNOTATION
from remediation.policy import Fence, Match, Policy, Rule, StepName
from remediation.repair_policy import RepairPolicy, VerificationPolicy
from remediation.situation import Open
from runtime.quantities import Duration
from tests.property.remediation_hosts import FIGURES, REBOOTS, RELEASES, RESETS, TEMPLATE_NAMES
from tests.property.remediation_monitor import POOLS
from tests.property.remediation_pods import EXPORTER_OPERAND, WORKLOADS
from tests.property.remediation_world import RATE, UPGRADE_KEY, World
from tests.unit.builders import FULL, control, fault, fleet, later, node, policy, report, situation
from tests.unit.fake_cluster import Trouble

# kind, advice, what clears it, severity
FAULTS = (
    ("DeviceLost", "RebootNode", "NewBoot", "Fatal"),
    ("DeviceLost", "ReplaceHardware", "NewBoot", "Fatal"),
    ("EngineHung", "ResetDevice", "DeviceReset", "Fatal"),
    ("EngineHung", "None", "DeviceReset", "Fatal"),
    ("RemapPending", "ResetDevice", "DeviceReset", "Degraded"),
    ("RemapPending", "ResetDevice", "DeviceReset", "Fatal"),
    ("PluginDead", "RestartPlugin", "Dwell", "Degraded"),
    ("PluginHung", "RestartPlugin", "Dwell", "Degraded"),
    ("PluginWedged", "RestartService", "Dwell", "Degraded"),
    ("ApplicationFault", "RestartWorkload", "Dwell", "Info"),
    ("UnknownXid", "SomethingNew", "SomethingElse", "Fatal"),
)

ONE_BY_ONE = DrainPolicy(concurrency=1)
"""Evictions in threads of their own would not come in the same order each time."""

_BY_SEVERITY = (
    Rule(name="fatal", match=Match(severities=(Severity.FATAL,)), mode=Mode.AUTO, drain=ONE_BY_ONE),
    Rule(name="rest", mode=Mode.OBSERVE),
)
_BY_KIND = (
    Rule(name="lost", match=Match(kinds=("DeviceLost",)), mode=Mode.AUTO, drain=ONE_BY_ONE),
    Rule(name="hung", match=Match(kinds=("EngineHung",)), mode=Mode.APPROVE, drain=ONE_BY_ONE),
    Rule(name="pool", match=Match(pools=("a",)), mode=Mode.OBSERVE),
)
LOST, BROKEN, HUNG = FAULTS[:3]
PLUGIN_DEAD = next(found for found in FAULTS if found[0] == "PluginDead")
PLUGIN_WEDGED = next(found for found in FAULTS if found[0] == "PluginWedged")

_SLOWLY = (
    Rule(
        name="lost",
        match=Match(kinds=("DeviceLost",)),
        mode=Mode.AUTO,
        drain=DrainPolicy(pre_drain=PreDrain(wait=Duration.parse("20s")), force=True, concurrency=1),
    ),
    Rule(name="rest", mode=Mode.AUTO, fence=Fence.DEVICE, drain=ONE_BY_ONE),
)
_EVERYTHING = (
    Rule(
        name="all",
        mode=Mode.AUTO,
        plan=(Advice.RESET_DEVICE, Advice.RUN_DIAGNOSTICS, Advice.REBOOT_NODE),
        drain=ONE_BY_ONE,
    ),
)
_PATIENTLY = RepairPolicy(
    max_attempts=2,
    backoff=Duration.parse("20s"),
    proof=Duration.parse("2m"),
    reset_deadline=Duration.parse("3m"),
    reboot_deadline=Duration.parse("4m"),
)
_PROVEN = VerificationPolicy(template="verify", deadline=Duration.parse("2m"))
_COMMON = {"pools": ("a", "b"), "dwell": "120s", **RATE}
POLICIES: tuple[Policy, ...] = (
    policy(Mode.AUTO, Rule(name="all", mode=Mode.AUTO, drain=ONE_BY_ONE), max_fenced="50%", **_COMMON),
    policy(Mode.AUTO, Rule(name="all", mode=Mode.AUTO, drain=ONE_BY_ONE), max_fenced="100%", **_COMMON),
    policy(Mode.AUTO, Rule(name="all", mode=Mode.AUTO, drain=ONE_BY_ONE), max_fenced=1, **_COMMON),
    policy(Mode.AUTO, Rule(name="all", mode=Mode.AUTO, drain=ONE_BY_ONE), max_fenced=0, **_COMMON),
    policy(Mode.APPROVE, Rule(name="all", mode=Mode.APPROVE, drain=ONE_BY_ONE), max_fenced="100%", **_COMMON),
    policy(Mode.OBSERVE, max_fenced="50%", **_COMMON),
    policy(Mode.AUTO, *_BY_SEVERITY, max_fenced="100%", **_COMMON),
    policy(Mode.AUTO, *_BY_KIND, max_fenced="67%", **_COMMON),
    policy(Mode.AUTO, *_SLOWLY, max_fenced="100%", max_disrupted="60%", **_COMMON),
    replace(
        policy(Mode.AUTO, *_EVERYTHING, max_fenced="100%", max_disrupted="60%", **_COMMON),
        repair=_PATIENTLY,
        verification=_PROVEN,
    ),
    replace(
        policy(Mode.AUTO, Rule(name="all", mode=Mode.AUTO, drain=ONE_BY_ONE), max_fenced="100%", **_COMMON),
        repair=_PATIENTLY,
    ),
)

ACTING = (POLICIES[0], *POLICIES[-2:])
"""Policies under which repairs are carried out without anybody's word."""

CRASHES = (
    Trouble.CRASH_BEFORE,
    Trouble.CRASH_AFTER,
    Trouble.LOST,
    Trouble.LATE,
    Trouble.REFUSED,
    Trouble.CONFLICT,
)

# The first node meets most of it, so that things meet each other.
names = st.sampled_from(("n1", "n1", "n1", "n2", "n2", "n3", "n4", "n5"))
collections = st.sampled_from((REPORTS, NODES, REMEDIATIONS, CONTROLS))


class Remediation(RuleBasedStateMachine):
    """Rules are what anybody may do; after each, the leader sees what is not held back, and acts."""

    @initialize(
        which=st.sampled_from((*POLICIES, *ACTING, *ACTING)),
        first=st.sampled_from((LOST, LOST, HUNG, HUNG, HUNG, BROKEN, PLUGIN_DEAD, PLUGIN_WEDGED)),
        blocked=st.sampled_from((True, False, False, False)),
        repairs=st.sampled_from((True, True, True, False)),
        operator=st.booleans(),
        host=st.fixed_dictionaries(
            {
                "reset": st.sampled_from(("helps", *RESETS)),
                "reboot": st.sampled_from(("helps", *REBOOTS)),
                "release": st.sampled_from(("at once", *RELEASES)),
                "figures": st.sampled_from(FIGURES),
                "slow": st.booleans(),
                "twice": st.booleans(),
            }
        ),
        troubles=st.lists(
            st.tuples(st.integers(min_value=0, max_value=12), st.sampled_from(Trouble)), max_size=2
        ),
        steps=st.integers(min_value=0, max_value=14),
    )
    def begin(
        self,
        which: Policy,
        first: tuple[str, str, str, str],
        blocked: bool,
        repairs: bool,
        operator: bool,
        host: dict[str, object],
        troubles: list[tuple[int, Trouble]],
        steps: int,
    ) -> None:
        """A fault of the first node has been dealt with for so many steps, as its host and the API are."""
        self.world = World(populated=True, repairs=repairs, operator=operator)
        self.world.most_disrupted = 0
        for name in POOLS if blocked else ():
            self.world.pods.meet(name, "budget")
        self.change_policy(which)
        self.world.let_pass(45)
        for key, value in host.items():
            setattr(self.world.agents["n1"].host, key, value)
        self.world.plan.extend(troubles)
        self.raise_fault("n1", first, "GPU-0")
        self.world.run()
        for _ in range(steps):
            self.world.let_pass(15)
            self.world.monitor.check()

    @invariant()
    def hold(self) -> None:
        if hasattr(self, "world"):
            self.world.run()
            self.world.monitor.check()

    def _session(self, number: int) -> str:
        found = self.world.sessions()
        return found[number % len(found)].metadata.name if found else ""

    @rule(name=names, which=st.sampled_from(FAULTS), device=st.sampled_from(("GPU-0", "GPU-1")))
    def raise_fault(self, name: str, which: tuple[str, str, str, str], device: str) -> None:
        if name in self.world.agents:
            kind, advice, clears_on, severity = which
            self.world.raise_fault(name, kind, device, advice, clears_on, severity)

    @rule(which=st.sampled_from((*FAULTS[:3], PLUGIN_DEAD)))
    def storm(self, which: tuple[str, str, str, str]) -> None:
        for name in list(self.world.agents):
            self.raise_fault(name, which, "GPU-0")

    @rule(
        name=names,
        how=st.sampled_from(("clear", "reboot", "flap")),
        seconds=st.sampled_from((0.0, 50.0, 200.0)),
    )
    def faults_end(self, name: str, how: str, seconds: float) -> None:
        if name not in self.world.agents:
            return
        if how == "reboot":
            self.world.reboot(name)
        else:
            self.world.clear_faults(name)
        if how == "flap":
            self.world.run()
            self.raise_fault(name, FAULTS[2], "GPU-0")
        self.world.let_pass(seconds)

    @rule(
        name=names,
        other=names,
        what=st.sampled_from(
            (
                "kubelet boots",
                "agent boots",
                "silent",
                "blind",
                "speaks",
                "mixed up",
                "no report",
                "not ready",
                "ready",
                "goes",
                "comes",
                "replaced",
                "taken",
                "free",
                "maintenance",
            )
        ),
    )
    def machine(self, name: str, other: str, what: str) -> None:
        world = self.world
        if name not in world.agents:
            if what in ("comes", "replaced"):
                world.add_node(name)
            return
        agent = world.agents[name]
        match what:
            case "kubelet boots" | "agent boots":
                world.reboot(name, kubelet=what == "kubelet boots", agent=what == "agent boots")
            case "silent" | "blind" | "speaks":
                agent.silent, agent.failing = what == "silent", what == "blind"
                world.tell(name)
            case "mixed up" if other in world.agents:
                agent.uid = world.api.get(NODES, other)["metadata"]["uid"]
                world.tell(name)
            case "no report" if name in world.api.objects[REPORTS]:
                world.api.remove(REPORTS, name)
            case "not ready" | "ready":
                world.ready(name, yes=what == "ready")
            case "goes" | "replaced":
                world.remove_node(name)
                if what == "replaced":
                    world.add_node(name)
            case "taken" | "free":
                taints = [{"key": "karpenter.sh/disrupted"}] if what == "taken" else []
                world.node(name, lambda node: node["spec"].update(taints=taints))
            case "maintenance" if name in world.api.objects[REPORTS]:
                spec = {"maintenance": {"reason": "driver", "since": "2026-01-01T00:00:00Z"}}
                world.api.edit(
                    REPORTS, name, lambda report: report.update(spec={} if report.get("spec") else spec)
                )

    @rule(
        name=names,
        what=st.sampled_from(
            (
                "cordon",
                "uncordon",
                "uncordon",
                "cordon anew",
                "hold",
                "go on",
                "opt out",
                "opt in",
                "take over",
                "Hold",
                "OptOut",
                "none",
            )
        ),
    )
    def person_at_a_node(self, name: str, what: str) -> None:
        world = self.world
        match what:
            case "Hold" | "OptOut":
                world.switch(nodes=[{"name": name, "action": what, "user": "alice"}])
            case "none":
                world.switch(nodes=None)
            case _ if name not in world.agents:
                return
            case "cordon":
                world.cordon(name)
            case "uncordon" | "cordon anew":
                world.uncordon(name)
                if what == "cordon anew":
                    world.cordon(name)
            case "hold" | "go on":
                world.annotate(name, HOLD_KEY, on=what == "hold")
            case "opt out" | "opt in":
                world.annotate(name, OPT_OUT_KEY, on=what == "opt out")
            case "take over":
                world.unrecord(name)

    @rule(
        number=st.integers(min_value=0, max_value=4),
        what=st.sampled_from(
            (
                "approve",
                "approve",
                "deny",
                "withdraw",
                "hold",
                "go on",
                "delete",
                "spoil the status",
                "spoil the opening",
                "empty it",
            )
        ),
    )
    def person_at_a_session(self, number: int, what: str) -> None:
        world, name = self.world, self._session(number)
        if not name:
            return
        match what:
            case "approve" | "deny":
                decision = "Approved" if what == "approve" else "Denied"
                world.say(name, "approval", {"decision": decision, "user": "bob"})
            case "withdraw":
                world.say(name, "approval", None)
            case "hold" | "go on":
                world.say(name, "hold", {"user": "bob"} if what == "hold" else None)
            case "delete":
                world.forget(name)
            case "spoil the status":
                world.spoil(name, ("phase", "closedTime", "journal")[number % 3])
            case "spoil the opening" | "empty it":
                text = "{" if what == "empty it" else '{"phase":"Held"}'
                opening = {OPENING_ANNOTATION: text}
                world.api.edit(
                    REMEDIATIONS, name, lambda found: found["metadata"]["annotations"].update(opening)
                )

    @rule(name=names, what=st.sampled_from(WORKLOADS))
    def pods_come(self, name: str, what: str) -> None:
        if name in self.world.agents:
            self.world.pods.bind(name, what)

    @rule(name=names, what=st.sampled_from(("budget", "no budget", "stubborn", "ends", "admitted")))
    def pods_change(self, name: str, what: str) -> None:
        self.world.pods.meet(name, what)

    @rule(
        name=names,
        what=st.one_of(
            st.tuples(st.just("reset"), st.sampled_from(RESETS)),
            st.tuples(st.just("reboot"), st.sampled_from(REBOOTS)),
            st.tuples(st.just("release"), st.sampled_from(RELEASES)),
            st.tuples(st.just("figures"), st.sampled_from(FIGURES)),
            st.tuples(st.sampled_from(("image", "twice", "slow")), st.booleans()),
        ),
    )
    def host(self, name: str, what: tuple[str, object]) -> None:
        """What will come of the next repairs of a host."""
        if name in self.world.agents:
            setattr(self.world.agents[name].host, *what)

    @rule(
        name=names,
        number=st.integers(min_value=0, max_value=4),
        what=st.sampled_from(
            ("upgrade", "upgraded", "publish", "withdraw", "delete a Job", "operand off", "operand on")
        ),
    )
    def around_repairs(self, name: str, number: int, what: str) -> None:
        world = self.world
        match what:
            case "publish":
                world.jobs.publish()
            case "withdraw":
                world.jobs.withdraw(TEMPLATE_NAMES[number])
            case "delete a Job":
                world.jobs.delete(number)
            case _ if name not in world.agents:
                return
            case "upgrade" | "upgraded":
                world.label(name, UPGRADE_KEY, "upgrade-done" if what == "upgraded" else "drain-required")
            case "operand off" | "operand on":
                world.label(name, EXPORTER_OPERAND, "false" if what == "operand off" else "true")

    @rule(seconds=st.sampled_from((60.0, 180.0)))
    def peace(self, seconds: float) -> None:
        """Nothing goes wrong for a while; what people have switched stays as it is."""
        world = self.world
        world.plan.clear()
        world.lagging.clear()
        world.controller.workers.at_once = True
        while world.controller.workers.pending:
            world.work()
        world.let_pass(seconds)
        world.monitor.repairs.at_peace()

    @rule(name=names, broken=st.booleans())
    def plugin_breaks(self, name: str, broken: bool) -> None:
        (self.world.pods.broken_plugins.add if broken else self.world.pods.broken_plugins.discard)(name)

    @rule(on=st.booleans())
    def person_pauses(self, on: bool) -> None:
        self.world.switch(pause={"user": "alice"} if on else None)

    @rule(which=st.sampled_from(POLICIES))
    def change_policy(self, which: Policy) -> None:
        self.world.policy = which
        limits = self.world.most_disrupted, which.budgets.max_disrupted.of(len(POOLS), floor=1)
        self.world.most_disrupted = max(limits)
        self.world.controller.engine.inbox.put(NewPolicy(which))

    @rule(spared=st.integers(min_value=0, max_value=4), trouble=st.sampled_from(tuple(Trouble)))
    def trouble(self, spared: int, trouble: Trouble) -> None:
        if len(self.world.plan) < 4:
            self.world.plan.append((spared, trouble))

    @rule(collection=collections, what=st.sampled_from(("lags", "all", "all", "some", "again", "lists")))
    def watch(self, collection: str, what: str) -> None:
        watches = self.world.controller.watches
        match what:
            case "lags":
                self.world.lagging.add(collection)
            case "all":
                self.world.lagging.clear()
            case "some":
                watches.deliver(collection, 1)
            case "again":
                watches.repeat(collection)
            case "lists":
                watches.list_all()

    @rule(
        what=st.sampled_from(("queue", "work", "work", "at once", "restart", "depose", "last word", "late"))
    )
    def controllers(self, what: str) -> None:
        world = self.world
        match what:
            case "queue":
                world.controller.workers.at_once = False
            case "work" | "at once":
                world.controller.workers.at_once |= what == "at once"
                world.work()
            case "restart":
                world.new_controller()
            case "depose":
                world.depose()
            case "last word":
                world.last_word()
            case "late":
                world.land()

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
            world.work()
        world.let_pass(90 + world.policy.healthy_dwell + 60 + 90)
        world.rest()
        world.monitor.check()
        world.monitor.repairs.at_peace()
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

    settings = machine(25, 50)


@pytest.mark.deep
@pytest.mark.timeout(3600)
class TestRemediationAtLength(Remediation.TestCase):
    """Long runs."""

    settings = machine(1500, 120)


def projection(world: World, name: str) -> object:
    """What counts in the end: the node's spec and our keys, its pods, and what became of its sessions."""
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
        sorted((pod.asks_for(("nvidia.com/gpu",)), pod.status.phase) for pod in world.pods.on(name)),
    )


WITHOUT_DEVICES = [(False, "Running"), (False, "Running"), (False, "Running")]


def journey(*, spared: int, trouble: Trouble | None) -> tuple[object, object, int]:
    """A GPU is lost, the node is fenced, drained and held; a reboot helps, and it is given back. One write meets
    trouble.

    The projections while it is held and in the end, and how many writes the controllers asked for.
    """
    world = World(populated=True)
    world.let_pass(45)
    if trouble is not None:
        world.plan.append((spared, trouble))
    begun = len(world.api.calls)
    world.raise_fault("n1", "DeviceLost", "GPU-0", "RebootNode", "NewBoot", "Fatal")
    world.let_pass(120)
    held = projection(world, "n1")
    world.reboot("n1")
    world.let_pass(2 * 120 + 120)
    world.rest()
    world.monitor.check()
    writes = sum(call.mutates for call in world.api.calls[begun:]) + len(world.pods.evictions)
    return held, projection(world, "n1"), writes


@pytest.mark.parametrize("trouble", CRASHES)
def test_trouble_at_any_write_leads_to_the_same_end(trouble: Trouble) -> None:
    held, end, writes = journey(spared=0, trouble=None)
    assert held == (True, {SESSION_KEY}, [(Phase.HELD, "NoRepairStep", True)], WITHOUT_DEVICES)
    assert end == (False, set(), [(Phase.RELEASED, "Healthy", True)], WITHOUT_DEVICES)
    assert writes >= 14
    for spared in range(writes):
        assert journey(spared=spared, trouble=trouble)[:2] == (held, end), f"after {spared} writes"


def restart(*, spared: int, trouble: Trouble | None) -> tuple[object, int, int]:
    """A device plugin dies and is restarted: the projection in the end, restarts, and writes."""
    world = World(populated=True)
    world.let_pass(45)
    if trouble is not None:
        world.plan.append((spared, trouble))
    begun = len(world.api.calls)
    world.raise_fault("n1", *PLUGIN_DEAD[:1], "", *PLUGIN_DEAD[1:])
    world.let_pass(240)
    world.rest()
    world.monitor.check()
    deletions = {name for _, name in world.pods.deletions if name.startswith("kube-system")}
    writes = sum(call.mutates for call in world.api.calls[begun:]) + len(world.pods.deletions)
    return projection(world, "n1"), len(deletions), writes


@pytest.mark.parametrize("trouble", CRASHES)
def test_trouble_at_any_write_restarts_a_plugin_once_all_the_same(trouble: Trouble) -> None:
    end, restarts, writes = restart(spared=0, trouble=None)
    pods = [*WITHOUT_DEVICES, (True, "Running"), (True, "Running")]
    assert end == (False, set(), [(Phase.RELEASED, "Healthy", True)], pods)
    assert (restarts, writes >= 12) == (1, True)
    for spared in range(writes):
        assert restart(spared=spared, trouble=trouble)[:2] == (end, 1), f"after {spared} writes"


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
