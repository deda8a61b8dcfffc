"""A small cluster with everybody in it: nodes, agents, people, an unreliable API, controllers that die and return.

Each of them acts when a test says so. `RemediationMonitor` looks at every request that changes something and
at every action that a controller decides for, and holds them against the invariants of the design.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from health.report import AcceleratorReport, Device, Fault, ReportMetadata, ReportStatus, Source
from health.vocabulary import DeviceHealth, Mode, Severity, SourceState
from remediation.cluster import CONTROLS, NODES, REMEDIATIONS, REPORTS
from remediation.fleet import HOLD_KEY, OPT_OUT_KEY, SESSION_KEY
from remediation.objects import AcceleratorRemediation
from remediation.policy import Policy
from runtime.clock import ManualClock
from tests.property.remediation_monitor import BURST, PER_MINUTE, POOLS, RemediationMonitor, session_of
from tests.property.remediation_pods import ClusterPods
from tests.unit.builders import policy
from tests.unit.fake_cluster import Call, Crash, Document, FakeApi, Trouble
from tests.unit.fake_controller import FakeController, InlineWorkers

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


class World:
    """Everything there is. `controller` leads; `former` have led and do not know, or are stuck, or dead."""

    def __init__(self, *, populated: bool = False) -> None:
        self.clock = ManualClock()
        self.populated = populated
        self.pods = ClusterPods(self.clock, trouble=self._next_trouble)
        self.api = FakeApi(self.clock, trouble=self._trouble)
        self.policy: Policy = policy(Mode.AUTO, max_fenced="50%", pools=("a", "b"), dwell="120s", **RATE)
        self.agents: dict[str, Agent] = {}
        self.transitions = 0
        self.plan: list[tuple[int, Trouble]] = []
        self.garbled: dict[str, Document | None] = {}
        self.former: list[FakeController] = []
        self.lagging: set[str] = set()
        self.births = 0
        self.most_disrupted = 5
        """The most that any policy of late has let be drained or repaired, in a pool and in the cluster."""
        for name in POOLS:
            self.add_node(name)
        self.api.create(CONTROLS, {"kind": "AcceleratorControl", "metadata": {"name": "default"}, "spec": {}})
        self.monitor = RemediationMonitor(self)
        self.api.on_change = self.monitor.changed
        self.pods.on_mutation = self.monitor.pod_touched
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
                    "allocatable": {"nvidia.com/gpu": "2"},
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
        self.pods.start_plugin(name)
        for what in ("plain", "jobset", "without a device") if self.populated else ():
            self.pods.bind(name, what)
        self.speak(name)

    def remove_node(self, name: str) -> None:
        """The Node is deleted, and its report with it."""
        self.api.remove(NODES, name)
        if name in self.api.objects[REPORTS]:
            self.api.remove(REPORTS, name)
        self.pods.clear(name)
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
        of_plugin = kind.startswith("Plugin")
        device = "" if of_plugin else device
        known = agent.faults.get((kind, device))
        agent.faults[kind, device] = Fault(
            kind=kind,
            severity=Severity(severity),
            first_seen=known.first_seen if known else now,
            last_seen=now,
            code="plugin:nvidia.com/gpu" if of_plugin else f"xid:{len(agent.faults)}",
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
        self.pods.clear(name, reboot=True)
        if kubelet:
            self.node(name, lambda node: node["status"]["nodeInfo"].update(bootID=boot))
        if agent:
            self.agents[name].boot = boot
            self.agents[name].faults.clear()
            self.tell(name)

    def node(self, name: str, change: Any) -> None:
        self.api.edit(NODES, name, change)

    def start_plugins(self) -> None:
        """Where a device plugin is gone another one starts, and its faults are over if that is what helps."""
        self.pods.let_time_end_pods()
        for name, agent in self.agents.items():
            if self.pods.start_plugin(name) and name not in self.pods.broken_plugins:
                agent.faults = {key: found for key, found in agent.faults.items() if "Plugin" not in key[0]}
                self.tell(name)

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

    def unrecord(self, name: str) -> None:
        """Somebody takes our record off a node: the cordon is theirs now."""
        found = self.api.get(NODES, name)
        if SESSION_KEY in found["metadata"]["annotations"]:
            self.monitor.person_takes_over(found)
            self.annotate(name, SESSION_KEY, on=False)

    def spoil(self, session: str, key: str) -> None:
        """Somebody writes into a session's status what cannot be read."""
        if session in self.garbled:
            return
        self.garbled[session] = self.api.get(REMEDIATIONS, session).get("status")
        self.api.edit(
            REMEDIATIONS, session, lambda found: found.setdefault("status", {}).update({key: "12 o'clock"})
        )

    def forget(self, session: str) -> None:
        """Somebody deletes a session."""
        self.api.remove(REMEDIATIONS, session)
        self.garbled.pop(session, None)
        self.monitor.excused += 1

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
        return self._next_trouble() if call.mutates else None

    def _next_trouble(self) -> Trouble | None:
        if not self.plan:
            return None
        spared, trouble = self.plan[0]
        if spared:
            self.plan[0] = (spared - 1, trouble)
            return None
        self.plan.pop(0)
        if trouble is Trouble.LATE:
            self.monitor.excused += 1
        return trouble

    def land(self) -> None:
        """The first of the late requests is carried out."""
        if self.api.late:
            self.monitor.landing = True
            self.api.land(self.api.late.pop(0))
            self.monitor.landing = False

    def work(self) -> None:
        """A worker carries out what it was given."""
        try:
            if self.controller.workers.pending:
                self.controller.workers.run_next()
        except Crash:
            self.new_controller()

    def depose(self) -> None:
        """Another controller takes over, and this one does not know yet."""
        self.controller.leads = False
        self.former.append(self.controller)
        self.new_controller()

    def last_word(self) -> None:
        """A former leader sends one more request of what it was about to do."""
        former = self.former.pop(0) if self.former else None
        if former is None or not former.workers.pending:
            return
        former.allowance = 1
        self.monitor.excused += 1
        self.monitor.landing = True
        try:
            former.workers.run_next()
        except Crash:
            pass
        finally:
            self.monitor.landing = False

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
                pods=self.pods,
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

    def let_pass(self, seconds: float, *, speaking: bool = True) -> None:
        """Time passes in steps, in which agents renew (if they are `speaking`) and the leader works."""
        while seconds > 0:
            step = min(15.0, seconds)
            seconds -= step
            self.clock.advance(step)
            self.start_plugins()
            for agent in self.agents.values():
                if speaking and not agent.silent and self.clock.monotonic() - agent.renewed >= RENEWAL:
                    self.speak(agent.name)
            self.run()

    def heal(self) -> None:
        """Everything that is wrong with the cluster is put right, and whoever stopped something lets it go on."""
        self.plan.clear()
        self.api.late.clear()
        self.lagging.clear()
        self.pods.heal()
        self.policy = policy(Mode.AUTO, pools=("a", "b"), dwell="120s", **RATE)
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


def _restored(session: Document, *, status: Document | None) -> None:
    session.pop("status")
    if status is not None:
        session["status"] = status
