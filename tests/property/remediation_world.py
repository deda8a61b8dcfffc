"""A small cluster with everybody in it: nodes, agents, people, an unreliable API, controllers that die and return.

Each of them acts when a test says so. `RemediationMonitor` looks at every request that changes something and
at every action that a controller decides for, and holds them against the invariants of the design.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from health.report import AcceleratorReport, Device, Fault, ReportMetadata, ReportStatus, Source
from health.vocabulary import DeviceHealth, Mode, Phase, Severity, SourceState
from remediation import budget
from remediation.cluster import CONTROLS, NODES, REMEDIATIONS, REPORTS
from remediation.engine import Resource, Seen
from remediation.executor import Basis
from remediation.fleet import FRESH_FOR, HOLD_KEY, OPT_OUT_KEY, SESSION_KEY, Fleet
from remediation.objects import JOURNAL_LIMIT, AcceleratorRemediation, JournalEvent
from remediation.policy import Policy, StepName, acts
from remediation.situation import Action, Open, Run
from runtime.clock import ManualClock
from tests.unit.builders import policy
from tests.unit.fake_cluster import Call, Crash, Document, FakeApi, Trouble
from tests.unit.fake_controller import FakeController, InlineWorkers

POOLS = {"n1": "a", "n2": "a", "n3": "a", "n4": "b", "n5": "b"}
DWELL = 60.0
PER_MINUTE, BURST = 5, 3
RENEWAL = 30.0


@dataclass
class Agent:
    """A node's agent: what it finds, and whether it still says so."""

    name: str
    uid: str
    boot: str
    sequence: int = 0
    silent: bool = False
    failing: bool = False
    faults: dict[tuple[str, str], Fault] = field(default_factory=dict)
    renewed: float = 0.0

    def status(self) -> Document:
        found = ReportStatus(
            node_uid=self.uid,
            boot_id=self.boot,
            sequence=self.sequence,
            devices=(
                Device(uuid="GPU-0", index=0, serial="S0", health=DeviceHealth.HEALTHY),
                Device(uuid="GPU-1", index=1, serial="S1", health=DeviceHealth.HEALTHY),
            ),
            faults=tuple(self.faults.values()),
            sources=(Source("nvml", SourceState.FAILED if self.failing else SourceState.LIVE),),
        )
        return document(found)


def document(struct: msgspec.Struct) -> Document:
    """A struct as it is on the wire."""
    made: Document = msgspec.json.decode(msgspec.json.encode(struct))
    return made


def session_of(found: Document) -> AcceleratorRemediation | None:
    """A session as stored; None where it cannot be read."""
    try:
        return msgspec.json.decode(msgspec.json.encode(found), type=AcceleratorRemediation)
    except msgspec.MsgspecError:
        return None


class World:
    """Everything there is. `controller` leads; `former` have led and do not know, or are stuck, or dead."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.api = FakeApi(self.clock, trouble=self._trouble)
        self.policy: Policy = policy(Mode.AUTO, max_fenced="50%", pools=("a", "b"), dwell="60s", **RATE)
        self.agents: dict[str, Agent] = {}
        self.transitions = 0
        self.plan: list[tuple[int, Trouble]] = []
        self.garbled: dict[str, Document | None] = {}
        self.former: list[FakeController] = []
        self.lagging: set[str] = set()
        self.births = 0
        for name in POOLS:
            self.add_node(name)
        self.api.create(CONTROLS, {"kind": "AcceleratorControl", "metadata": {"name": "default"}, "spec": {}})
        self.monitor = RemediationMonitor(self)
        self.api.on_change = self.monitor.changed
        self.controller = self.new_controller()

    # Nodes and agents.

    def add_node(self, name: str) -> None:
        """A machine joins, or one with the same name as one that was."""
        self.births += 1
        boot = f"boot-{self.births}"
        made = self.api.create(
            NODES,
            {
                "kind": "Node",
                "metadata": {
                    "name": name,
                    "labels": {"pool": POOLS[name], "foreign": "label"},
                    "annotations": {"foreign": "x"},
                },
                "spec": {"podCIDR": "10.0.0.0/24", "taints": []},
                "status": {
                    "nodeInfo": {"bootID": boot},
                    "conditions": [
                        {"type": "MemoryPressure", "status": "False"},
                        {"type": "Ready", "status": "True"},
                    ],
                },
            },
        )
        uid = made["metadata"]["uid"]
        self.agents[name] = Agent(name, uid, boot, renewed=self.clock.monotonic())
        self.speak(name)

    def remove_node(self, name: str) -> None:
        """The Node is deleted, and its report with it."""
        self.api.remove(NODES, name)
        if name in self.api.objects[REPORTS]:
            self.api.remove(REPORTS, name)
        del self.agents[name]

    def speak(self, name: str) -> None:
        """The agent writes its report."""
        agent = self.agents[name]
        agent.sequence += 1
        agent.renewed = self.clock.monotonic()
        status = agent.status()
        if name not in self.api.objects[REPORTS]:
            report = AcceleratorReport(ReportMetadata(name=name))
            self.api.create(REPORTS, {**document(report), "status": status})
            return
        self.api.edit(REPORTS, name, lambda report: report.update(status=status))

    def raise_fault(
        self, name: str, kind: str, device: str, advice: str, clears_on: str, severity: str
    ) -> None:
        agent, now = self.agents[name], self.clock.wall()
        known = agent.faults.get((kind, device))
        agent.faults[kind, device] = Fault(
            kind=kind,
            severity=Severity(severity),
            first_seen=known.first_seen if known else now,
            last_seen=now,
            code=f"xid:{len(agent.faults)}",
            device_uuid=device,
            advice=advice,
            clears_on=clears_on,
        )
        self.tell(name)

    def clear_faults(self, name: str) -> None:
        """What clears without a boot is over."""
        agent = self.agents[name]
        agent.faults = {key: fault for key, fault in agent.faults.items() if fault.clears_on == "NewBoot"}
        self.tell(name)

    def tell(self, name: str) -> None:
        if not self.agents[name].silent:
            self.speak(name)

    def reboot(self, name: str, *, kubelet: bool = True, agent: bool = True) -> None:
        """A new boot, of which kubelet and agent may not both have spoken yet."""
        self.births += 1
        boot = f"boot-{self.births}"
        if kubelet:
            self.node(name, lambda node: node["status"]["nodeInfo"].update(bootID=boot))
        if agent:
            self.agents[name].boot = boot
            self.agents[name].faults.clear()
            self.tell(name)

    def node(self, name: str, change: Any) -> None:
        self.api.edit(NODES, name, change)

    # People.

    def cordon(self, name: str) -> None:
        found = self.api.get(NODES, name)
        if not found["spec"].get("unschedulable"):
            self.monitor.person_cordons(found)
            self.node(name, lambda node: node["spec"].update(unschedulable=True))

    def uncordon(self, name: str) -> None:
        found = self.api.get(NODES, name)
        if found["spec"].get("unschedulable"):
            self.monitor.person_uncordons(found)
            self.node(name, lambda node: node["spec"].pop("unschedulable"))

    def annotate(self, name: str, key: str, *, on: bool) -> None:
        def change(node: Document) -> None:
            node["metadata"]["annotations"].pop(key, None)
            if on:
                node["metadata"]["annotations"][key] = "alice"

        self.node(name, change)

    def switch(self, **spec: Any) -> None:
        """Somebody edits the control object; None takes a switch away."""

        def change(control: Document) -> None:
            for key, value in spec.items():
                control["spec"].pop(key, None)
                if value is not None:
                    control["spec"][key] = value

        self.api.edit(CONTROLS, "default", change)

    def sessions(self, *, opened: bool = True) -> list[AcceleratorRemediation]:
        """The sessions in the API that can be read."""
        found = [session_of(item) for item in self.api.objects[REMEDIATIONS].values()]
        return [item for item in found if item is not None and not (opened and item.current.phase.closed)]

    def say(self, session: str, key: str, value: Document | None) -> None:
        """Somebody edits a session's spec."""

        def change(found: Document) -> None:
            found["spec"].pop(key, None)
            if value is not None:
                found["spec"][key] = value

        self.api.edit(REMEDIATIONS, session, change)

    # The API's troubles, and the controllers.

    def _trouble(self, call: Call) -> Trouble | None:
        """Each planned trouble meets a mutation, after so many that are spared."""
        if not call.mutates or not self.plan:
            return None
        spared, trouble = self.plan[0]
        if spared:
            self.plan[0] = (spared - 1, trouble)
            return None
        self.plan.pop(0)
        if trouble is Trouble.LATE:
            self.monitor.excused += 1
        return trouble

    def new_controller(self) -> FakeController:
        """A fresh process, which takes over the lead."""
        while True:
            self.transitions += 1
            sights = self.monitor.new_sights()
            made = FakeController(
                self.api,
                self.clock,
                self.policy,
                workers=InlineWorkers(),
                on_seen=partial(self.monitor.delivered, sights),
            )
            made.workers.on_action = partial(self.monitor.decided, made, sights)
            try:
                if made.take_over(self.transitions):
                    self.controller, self.sights = made, sights
                    made.pump()
                    return made
            except Crash:
                continue

    def run(self) -> None:
        """Let the leader see what is not held back, and act; a crash is followed by another process."""
        try:
            for collection in (REPORTS, NODES, REMEDIATIONS, CONTROLS):
                if collection not in self.lagging:
                    self.controller.watches.deliver(collection, 1000)
            self.controller.pump()
            self.monitor.shown(self.controller, self.sights)
        except Crash:
            self.new_controller()

    def rest(self, *, limit: int = 300) -> None:
        """Until nothing happens any more without new input."""
        for _ in range(limit):
            try:
                self.controller.settle(limit=limit)
                return
            except Crash:
                self.new_controller()
        raise AssertionError("crashes without end")

    def let_pass(self, seconds: float) -> None:
        """Time passes in steps, in which agents renew and the leader works."""
        while seconds > 0:
            step = min(15.0, seconds)
            seconds -= step
            self.clock.advance(step)
            for agent in self.agents.values():
                if not agent.silent and self.clock.monotonic() - agent.renewed >= RENEWAL:
                    self.speak(agent.name)
            self.run()

    def heal(self) -> None:
        """Everything that is wrong with the cluster is put right, and whoever stopped something lets it go on."""
        self.plan.clear()
        self.api.late.clear()
        self.lagging.clear()
        self.policy = policy(Mode.AUTO, pools=("a", "b"), dwell="60s", **RATE)
        for name, status in self.garbled.items():
            if name in self.api.objects[REMEDIATIONS]:
                self.api.edit(REMEDIATIONS, name, partial(_restored, status=status))
        self.garbled.clear()
        self.switch(pause=None, nodes=None)
        for session in self.sessions():
            self.say(session.metadata.name, "hold", None)
        for name, agent in self.agents.items():
            for key in (HOLD_KEY, OPT_OUT_KEY):
                self.annotate(name, key, on=False)
            self.node(name, lambda node: node["spec"].update(taints=[]))
            self.ready(name, yes=True)
            self.node(name, lambda node: node["metadata"].pop("deletionTimestamp", None))
            agent.uid = self.api.get(NODES, name)["metadata"]["uid"]
            agent.silent = agent.failing = False
            agent.faults.clear()
            self.reboot(name)
            self.api.edit(REPORTS, name, lambda report: report.update(spec={}))

    def ready(self, name: str, *, yes: bool) -> None:
        status = "True" if yes else "Unknown"
        self.node(name, lambda node: node["status"]["conditions"][1].update(status=status))


RATE: dict[str, Any] = {"per_minute": PER_MINUTE, "burst": BURST}


@dataclass
class Sight:
    """What one controller was shown of one node's health, and when."""

    uid: str = ""
    sequence: int = 0
    advanced: float | None = None
    bad: float = 0.0
    boot: str = ""


Sights = dict[str, Sight]


class RemediationMonitor:
    """The invariants, as an outsider would check them: from requests, their effects, and what was delivered."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.ours: set[str] = set()
        """UIDs of nodes with a cordon that a controller made and nobody has touched since."""
        self.persons: set[str] = set()
        """UIDs of nodes that a person cordoned while no record of ours was on them."""
        self.unclear: set[str] = set()
        """UIDs of nodes that a person cordoned again under a record of ours: nobody can tell whose cordon it is."""
        self.overruled: set[tuple[str, tuple[str, str], Any]] = set()
        """(node UID, fault identity, first seen) of what a person has uncordoned a node in spite of."""
        self.onsets: dict[tuple[str, tuple[str, str]], Any] = {}
        self.tokens, self.refilled = float(BURST), world.clock.monotonic()
        self.excused = 0
        """Requests that a former leader, or a slow network, may still have sent."""
        self.epochs: dict[str, int] = {}

    # What people do.

    def person_cordons(self, node: Document) -> None:
        uid = node["metadata"]["uid"]
        recorded = SESSION_KEY in node["metadata"]["annotations"]
        (self.unclear if recorded else self.persons).add(uid)

    def person_uncordons(self, node: Document) -> None:
        uid = node["metadata"]["uid"]
        owner = node["metadata"]["annotations"].get(SESSION_KEY)
        found = self._world.api.objects[REMEDIATIONS].get(owner) if owner else None
        session = session_of(found) if found else None
        if session is not None and uid in self.ours:
            self.overruled |= {
                (uid, incident.identity, incident.first_seen) for incident in session.current.incidents
            }
        for marks in (self.ours, self.persons, self.unclear):
            marks.discard(uid)

    # What a controller is shown.

    def new_sights(self) -> Sights:
        """What a controller that has just started was shown: nothing."""
        return {name: Sight(bad=self._world.clock.monotonic()) for name in POOLS}

    def delivered(self, sights: Sights, seen: Seen) -> None:
        """A watch of a controller delivered something: a report that advances is fresh from now on."""
        if seen.resource is not Resource.REPORT:
            return
        sight, now = sights[seen.key], self._world.clock.monotonic()
        if not isinstance(seen.found, AcceleratorReport):
            sights[seen.key] = Sight(bad=now)
            return
        status = seen.found.status
        if sight.advanced is None or now - sight.advanced > FRESH_FOR:
            sight.bad = now
        if status.node_uid != sight.uid:
            sight.uid, sight.sequence, sight.advanced = status.node_uid, status.sequence, None
        elif status.sequence > sight.sequence:
            sight.sequence, sight.advanced = status.sequence, now

    def shown(self, controller: FakeController, sights: Sights) -> None:
        """Bring up to date since when each node looks healthy to a controller."""
        fleet, now = controller.engine.fleet, self._world.clock.monotonic()
        for name, sight in sights.items():
            view, node = fleet.reports.get(name), fleet.nodes.get(name)
            boot = view.report.status.boot_id if view is not None else ""
            healthy = (
                view is not None
                and node is not None
                and node.ready
                and view.report.status.node_uid == node.metadata.uid
                and boot == node.status.node_info.boot_id == sight.boot
                and not any(acts(fault) for fault in view.report.status.faults)
                and all(source.state is SourceState.LIVE for source in view.report.status.sources)
            )
            sight.boot = boot
            if not healthy:
                sight.bad = now

    # What a controller decides.

    def decided(
        self, controller: FakeController, sights: Sights, name: str, action: Action, basis: Basis
    ) -> None:
        self.shown(controller, sights)
        engine = controller.engine
        node = engine.fleet.nodes.get(name)
        if not isinstance(action, Open | Run) or action.step is None:
            return
        assert node is not None
        assert basis.epoch == engine.epoch > 0
        spec = action.spec if isinstance(action, Open) else action.session.spec
        assert spec.mode is not Mode.OBSERVE, "a session that only observes takes no step"
        session = action.name if isinstance(action, Open) else action.session.metadata.name
        if action.step is StepName.CORDON and node.owner_session != session:
            self._may_fence(controller, sights[name], name)
        releases = isinstance(action, Run) and action.then is Phase.RELEASED
        if releases and node.owner_session == session and not action.session.current.phase.closed:
            self._may_release(sights[name])

    def _may_fence(self, controller: FakeController, sight: Sight, name: str) -> None:
        engine, now = controller.engine, self._world.clock.monotonic()
        fleet, node = engine.fleet, engine.fleet.nodes[name]
        assert engine.view_age() <= 5
        status = fleet.reports[name].report.status
        assert sight.advanced is not None and now - sight.advanced <= FRESH_FOR, "stale evidence"
        assert status.node_uid == node.metadata.uid == sight.uid, "evidence of another node"
        assert status.boot_id == node.status.node_info.boot_id, "evidence of another boot"
        pool = engine.policy.pool_of(node.metadata.labels)
        rules = [engine.policy.rule_for(fault, pool) for fault in status.faults if acts(fault)]
        assert any(rule is not None and rule.mode is not Mode.OBSERVE for rule in rules), "no fault to act on"
        assert fleet.control.spec.pause is None
        assert fleet.switch(name) is None
        for where in (pool, budget.CLUSTER):
            used, limit = recount(fleet, engine.policy, where, virtual=False)
            assert used <= limit, (
                f"the fenced budget of {where or 'the cluster'} is exceeded: {used} of {limit}"
            )

    def _may_release(self, sight: Sight) -> None:
        assert self._world.clock.monotonic() - sight.bad >= DWELL - 0.001, "released before the healthy dwell"

    # What changes.

    def changed(self, call: Call) -> None:
        match call.method, call.collection:
            case "PATCH", collection if collection == NODES:
                self._node_changed(call)
            case "POST", _:
                self._started(call)
            case "PATCH", collection if collection == REMEDIATIONS:
                self._written(call)

    def _node_changed(self, call: Call) -> None:
        before, after = call.before, call.after
        assert before is not None and after is not None
        assert _without_ours(before) == _without_ours(after), "only the cordon and our keys change"
        uid = after["metadata"]["uid"]
        was, now = (bool(item["spec"].get("unschedulable")) for item in (before, after))
        record, recorded = (item["metadata"]["annotations"].get(SESSION_KEY) for item in (before, after))
        if now and not was:
            self._cordoned(before, recorded, uid)
        elif was and not now:
            assert record and not recorded, "an uncordon takes the record with it"
            assert uid in self.ours | self.unclear, "this cordon is not ours"
            assert uid not in self.persons, "a person's cordon was undone"
            self.ours.discard(uid)
            self.unclear.discard(uid)
        elif was and record and not recorded:
            self.ours.discard(uid)
            self.persons.add(uid)
        step = StepName.CORDON if now and not was else StepName.UNCORDON
        session = session_of(self._world.api.objects[REMEDIATIONS].get(recorded or record, {"metadata": {}}))
        if session is not None:
            intents = [entry for entry in session.current.journal if entry.event is JournalEvent.INTENT]
            assert any(entry.step == step for entry in intents), "a deed without an intent in the journal"

    def _cordoned(self, before: Document, recorded: str, uid: str) -> None:
        annotations, spec = before["metadata"]["annotations"], before["spec"]
        assert recorded, "a cordon without a record"
        assert HOLD_KEY not in annotations and OPT_OUT_KEY not in annotations
        assert not spec.get("taints"), "somebody else was working on the node"
        found = self._world.api.objects[REMEDIATIONS].get(recorded)
        session = session_of(found) if found else None
        if session is not None:
            assert session.spec.node_uid == uid and session.spec.mode is not Mode.OBSERVE
            told = {(uid, item.identity, item.first_seen) for item in session.current.incidents}
            assert not told or told - self.overruled, "a person's uncordon was overruled"
        self.ours.add(uid)

    def _started(self, call: Call) -> None:
        assert call.after is not None
        session = session_of(call.after)
        assert session is not None
        if session.spec.mode is Mode.OBSERVE:
            return
        now = self._world.clock.monotonic()
        self.tokens = min(float(BURST), self.tokens + (now - self.refilled) * PER_MINUTE / 60) - 1
        self.refilled = now
        assert self.tokens >= -0.2 - self.excused, f"sessions start too fast: {self.tokens} tokens"

    def _written(self, call: Call) -> None:
        assert call.before is not None and call.after is not None
        before, after = session_of(call.before), session_of(call.after)
        assert before is not None and after is not None
        assert len(after.current.journal) <= JOURNAL_LIMIT
        assert after.current.leader_epoch >= before.current.leader_epoch, "written under an older epoch"
        assert not (before.current.phase.closed and not after.current.phase.closed), (
            "a closed session is closed"
        )
        first = {incident.identity: incident.first_seen for incident in before.current.incidents}
        for incident in after.current.incidents:
            since = first.get(incident.identity, incident.first_seen)
            assert incident.first_seen == since, "a fault's clock was reset"

    # What holds at any time.

    def check(self) -> None:
        """After each step."""
        world = self._world
        open_of: dict[str, list[str]] = {}
        for name, stored in world.api.objects[REMEDIATIONS].items():
            session = session_of(stored)
            if session is None or not session.current.phase.closed:
                open_of.setdefault(stored["spec"]["nodeUID"], []).append(name)
        surplus = sum(len(names) - 1 for names in open_of.values())
        assert surplus <= self.excused, f"more than one open session of a node: {open_of}"
        engine = world.controller.engine
        assert all(engine.sentences.values())
        for pool in ("a", "b", "default", budget.CLUSTER):
            for virtual in (False, True):
                usage = budget.fenced(engine.fleet, engine.policy, pool, virtual=virtual)
                assert (usage.used, usage.limit) == recount(
                    engine.fleet, engine.policy, pool, virtual=virtual
                )
        epochs = [call.epoch for call in world.api.calls[-20:] if call.mutates and call.changed]
        assert all(epoch <= engine.epoch or engine.epoch == 0 for epoch in epochs)


def recount(fleet: Fleet, policy: Policy, pool: str, *, virtual: bool) -> tuple[int, int]:
    """Used and limit of the fenced budget, counted the slow way."""
    members = [
        node
        for node in fleet.nodes.values()
        if (pool == budget.CLUSTER or policy.pool_of(node.metadata.labels) == pool)
        and (node.name in fleet.reports or any(True for _ in _open_of(fleet, node.name, node.metadata.uid)))
    ]
    used = 0
    for node in members:
        sessions = [
            session
            for session in _open_of(fleet, node.name, node.metadata.uid)
            if virtual or session.spec.mode is not Mode.OBSERVE
        ]
        starting = node.name in fleet.starting and (virtual or not fleet.starting[node.name])
        if sessions or starting or node.spec.unschedulable or not node.ready:
            used += 1
    limit = policy.budgets.max_fenced.of(len(members), floor=policy.budgets.floor)
    return used, limit


def _open_of(fleet: Fleet, name: str, uid: str) -> Iterator[AcceleratorRemediation]:
    for session in fleet.sessions.values():
        if (session.spec.node_name, session.spec.node_uid) == (
            name,
            uid,
        ) and not session.current.phase.closed:
            yield session


def _restored(session: Document, *, status: Document | None) -> None:
    session.pop("status")
    if status is not None:
        session["status"] = status


def _without_ours(node: Document) -> Document:
    metadata = {key: value for key, value in node["metadata"].items() if key != "resourceVersion"}
    metadata["annotations"] = {
        key: value for key, value in metadata["annotations"].items() if key != SESSION_KEY
    }
    spec = {key: value for key, value in node["spec"].items() if key != "unschedulable"}
    return {**node, "metadata": metadata, "spec": spec}
