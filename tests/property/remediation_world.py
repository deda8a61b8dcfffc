"""A small cluster with everybody in it: nodes, agents, people, an unreliable API, controllers that die and return.

Each of them acts when a test says so. `RemediationMonitor` looks at every request that changes something and
at every action that a controller decides for, and holds them against the invariants of the design.
"""

from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

import msgspec
from msgspec.structs import replace

from health.receipt import Receipt, RepairResult
from health.report import (
    AcceleratorReport,
    Device,
    DeviceRelease,
    Fault,
    ReportMetadata,
    ReportSpec,
    ReportStatus,
    Source,
)
from health.vocabulary import DeviceAccess, DeviceHealth, Mode, Severity, SourceState
from remediation.cluster import CONTROLS, NODES, REMEDIATIONS, REPORTS, Cluster
from remediation.fleet import HOLD_KEY, OPT_OUT_KEY, SESSION_KEY
from remediation.objects import AcceleratorRemediation
from remediation.policy import Policy
from remediation.repair_api import KubernetesRepairs
from runtime.clock import ManualClock
from tests.property.remediation_hosts import LATE, Host, Jobs
from tests.property.remediation_monitor import BURST, PER_MINUTE, POOLS, RemediationMonitor
from tests.property.remediation_pods import OPERAND_LABELS, ClusterPods
from tests.property.remediation_repair_monitor import session_of
from tests.unit.builders import policy
from tests.unit.fake_cluster import Call, Crash, Document, FakeApi, Trouble
from tests.unit.fake_controller import FakeController, GuardedPods, InlineWorkers

RENEWAL = 30.0


@dataclass
class Agent:
    """A node's agent: what it finds, and whether it still says so."""

    name: str
    uid: str
    boot: str
    host: Host
    sequence: int = 0
    silent: bool = False
    failing: bool = False
    down: bool = False
    """Whether its host has not started it yet."""
    faults: dict[tuple[str, str], Fault] = field(default_factory=dict)
    renewed: float = 0.0
    released: bool = False
    order: DeviceRelease | None = None
    """What it was last asked for, and since when (`asked`)."""
    asked: float = 0.0
    read: dict[tuple[str, str, int], Receipt] = field(default_factory=dict)

    @property
    def talks(self) -> bool:
        """Whether it reaches the API server."""
        return not self.silent and not self.down

    def status(self) -> Document:
        state = SourceState.RELEASED if self.released else SourceState.LIVE
        found = ReportStatus(
            node_uid=self.uid,
            boot_id=self.boot,
            sequence=self.sequence,
            devices=tuple(
                Device(
                    uuid=f"GPU-{index}",
                    index=index,
                    serial=f"S{index}-{self.name}",
                    health=DeviceHealth.HEALTHY,
                )
                for index in (0, 1)
            ),
            faults=tuple(self.faults.values()),
            sources=(Source("nvml", SourceState.FAILED if self.failing else state),),
            device_access=DeviceAccess.RELEASED if self.released else DeviceAccess.HELD,
            receipts=tuple(list(self.read.values())[-16:]),
        )
        return document(found)

    def look(self) -> bool:
        """Read the receipts on its host, and end what a reset has ended; whether anything is new."""
        if self.boot != self.host.boot or self.read == self.host.receipts:
            return False
        new = [one for key, one in self.host.receipts.items() if self.read.get(key) != one]
        self.read = dict(self.host.receipts)
        for receipt in new:
            if (receipt.step, receipt.result) == ("Reset", RepairResult.DONE):
                self.faults = {
                    key: found
                    for key, found in self.faults.items()
                    if found.clears_on != "DeviceReset"
                    or found.device_uuid not in receipt.devices
                    or found.last_seen >= receipt.time
                }
        return True

    def boots(self) -> None:
        """It starts in the boot that its host is in."""
        self.boot = self.host.boot
        self.down = self.released = False
        self.order = None
        self.faults.clear()
        self.read.clear()
        self.look()

    def again(self, devices: tuple[str, ...], now: datetime) -> None:
        """What was to be over shows itself again."""
        for key, found in self.faults.items():
            if found.device_uuid in devices:
                self.faults[key] = replace(found, last_seen=now)

    def listen(self, order: DeviceRelease | None, moment: float) -> None:
        """What the answer to its renewal says."""
        if order is not None and (self.order is None or self.order.session != order.session):
            self.asked = moment
        self.order = order

    def obey(self, now: datetime, moment: float) -> bool:
        """Let go of the devices when asked, and take them again by itself; whether that is news."""
        before = self.released
        late = LATE if self.host.release == "late" else 0.0
        asked = self.order is not None and now < self.order.until and moment >= self.asked + late
        self.released = asked and self.host.release != "never"
        return self.released != before


def document(struct: msgspec.Struct) -> Document:
    """A struct as it is on the wire."""
    made: Document = msgspec.json.decode(msgspec.json.encode(struct))
    return made


class World:
    """Everything there is. `controller` leads; `former` have led and do not know, or are stuck, or dead."""

    def __init__(self, *, populated: bool = False, repairs: bool = False, operator: bool = True) -> None:
        self.clock = ManualClock()
        self.populated = populated
        self.operands = OPERAND_LABELS if operator else {}
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
        self.jobs = Jobs(self)
        self.most_disrupted = 5
        """The most that any policy of late has let be drained or repaired, in a pool and in the cluster."""
        for name in POOLS:
            self.add_node(name)
        if repairs:
            self.jobs.publish()
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
                    "labels": {"pool": POOLS[name], "foreign": "label", **self.operands},
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
        self.agents[name] = Agent(name, uid, boot, Host(boot), renewed=self.clock.monotonic())
        self.pods.run_daemons(name, made["metadata"]["labels"])
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
        agent.look()
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
        if self.agents[name].talks:
            self.speak(name)

    def reboot(self, name: str, *, kubelet: bool = True, agent: bool = True) -> None:
        """A new boot, of which kubelet and agent may not both have spoken yet."""
        self.births += 1
        boot = f"boot-{self.births}"
        self.pods.clear(name, reboot=True)
        self.agents[name].host.boots(boot)
        if kubelet:
            self.node(name, lambda node: node["status"]["nodeInfo"].update(bootID=boot))
        if agent:
            self.agents[name].boots()
            self.tell(name)

    def come_back(self, name: str, boot: str) -> None:
        """What has not started yet since a boot starts, if that boot is still the last one."""
        if name not in self.agents or self.agents[name].host.boot != boot:
            return
        self.node(name, lambda node: node["status"]["nodeInfo"].update(bootID=boot))
        self.ready(name, yes=True)
        if self.agents[name].boot != boot or self.agents[name].down:
            self.agents[name].boots()
        self.tell(name)

    def node(self, name: str, change: Any) -> None:
        self.api.edit(NODES, name, change)

    def start_plugins(self) -> None:
        """Where a device plugin is gone another one starts, and its faults are over if that is what helps."""
        self.pods.let_time_end_pods()
        for name, agent in self.agents.items():
            labels = self.api.get(NODES, name)["metadata"]["labels"]
            if self.pods.run_daemons(name, labels) and name not in self.pods.broken_plugins:
                agent.faults = {key: found for key, found in agent.faults.items() if "Plugin" not in key[0]}
                self.tell(name)

    def agents_look(self) -> None:
        """Each agent looks at the receipts of its host, and at what it is asked for."""
        for name, agent in self.agents.items():
            if agent.down:
                continue
            if agent.talks:
                agent.listen(self.spec_of(name).device_release, self.clock.monotonic())
            news = agent.look()
            if agent.obey(self.clock.wall(), self.clock.monotonic()) or news:
                self.tell(name)

    def spec_of(self, name: str) -> ReportSpec:
        """What the controller has told an agent."""
        report = self.api.objects[REPORTS].get(name, {})
        found: ReportSpec = msgspec.json.decode(
            msgspec.json.encode(report.get("spec") or {}), type=ReportSpec
        )
        return found

    def is_ready(self, name: str) -> bool:
        """Whether a node's kubelet starts pods."""
        return bool(self.api.get(NODES, name)["status"]["conditions"][1]["status"] == "True")

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
        self.monitor.repairs.forgotten(session)

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
                repairs_of=_repairs,
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
            self.jobs.work()
            self.agents_look()
            for agent in self.agents.values():
                if speaking and agent.talks and self.clock.monotonic() - agent.renewed >= RENEWAL:
                    self.speak(agent.name)
            self.run()

    def heal(self) -> None:
        """Everything that is wrong with the cluster is put right, and whoever stopped something lets it go on."""
        self.plan.clear()
        self.api.late.clear()
        self.lagging.clear()
        self.pods.heal()
        self.jobs.heal()
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
            agent.silent = agent.failing = agent.down = False
            agent.host.heal()
            agent.faults.clear()
            self.reboot(name)
            self.label(name, UPGRADE_KEY, "")
            self.api.edit(REPORTS, name, lambda report: report.get("spec", {}).pop("maintenance", None))

    def label(self, name: str, key: str, value: str) -> None:
        """Somebody sets a label of a node, or takes it away."""

        def change(node: Document) -> None:
            node["metadata"]["labels"].pop(key, None)
            if value:
                node["metadata"]["labels"][key] = value

        self.node(name, change)

    def ready(self, name: str, *, yes: bool) -> None:
        status = "True" if yes else "Unknown"
        self.node(name, lambda node: node["status"]["conditions"][1].update(status=status))


UPGRADE_KEY = "nvidia.com/gpu-driver-upgrade-state"


def _repairs(cluster: Cluster, pods: GuardedPods) -> KubernetesRepairs:
    """The real one, over the API in memory."""
    session = cluster._session
    return KubernetesRepairs(session, cluster, pods, may_write=pods.may_write)  # type: ignore[arg-type]


RATE: dict[str, Any] = {"per_minute": PER_MINUTE, "burst": BURST}


def _restored(session: Document, *, status: Document | None) -> None:
    session.pop("status")
    if status is not None:
        session["status"] = status
