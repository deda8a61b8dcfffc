"""The invariants of the design, as an outsider checks them: from requests, their effects, and what was delivered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from health.report import AcceleratorReport
from health.vocabulary import Mode, Phase, SourceState
from remediation import budget
from remediation.cluster import CONTROLS, NODES, REMEDIATIONS, REPORTS
from remediation.engine import Resource, Seen
from remediation.executor import VIEW_LIMIT, Basis
from remediation.fleet import FRESH_FOR, HOLD_KEY, OPT_OUT_KEY, SESSION_KEY, Fleet
from remediation.gangs import gang_of
from remediation.objects import (
    JOURNAL_LIMIT,
    AcceleratorRemediation,
    Decision,
    JournalEvent,
    NodeAction,
)
from remediation.orders import JobOrder, RestartOrder, RestoreOrder
from remediation.pod import Pod
from remediation.policy import Policy, StepName, acts
from remediation.situation import Action, Open, Run
from tests.property.remediation_repair_monitor import RepairMonitor, session_of
from tests.unit.fake_cluster import JOBS, Call, Document
from tests.unit.fake_controller import FakeController

if TYPE_CHECKING:
    from tests.property.remediation_hosts import Deed
    from tests.property.remediation_world import World

DRAINING_OR_REPAIRING = (Phase.DRAINING, Phase.REPAIRING)
POOLS = {"n1": "a", "n2": "a", "n3": "a", "n4": "b", "n5": "b"}
PER_MINUTE, BURST = 5, 3


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
        """UIDs of nodes with a cordon that a person made, or took over."""
        self.overruled: set[tuple[str, tuple[str, str], Any]] = set()
        """(node UID, fault identity, first seen) of what a person has uncordoned a node in spite of."""
        self.onsets: dict[tuple[str, tuple[str, str]], Any] = {}
        self.tokens, self.refilled = float(BURST), world.clock.monotonic()
        self.excused = 0
        """Requests that a former leader, or a slow network, may still have sent."""
        self.broken: list[AssertionError] = []
        self.landing = False
        """A request of that kind is carried out now, when nobody waits for it any more."""
        self.repairs = RepairMonitor(world)
        self.gangs: dict[str, set[str]] = {}
        """The sessions that have evicted pods of a gang."""

    # What people do.

    def person_cordons(self, node: Document) -> None:
        self.persons.add(node["metadata"]["uid"])

    def person_takes_over(self, node: Document) -> None:
        uid = node["metadata"]["uid"]
        self.ours.discard(uid)
        if node["spec"].get("unschedulable"):
            self.persons.add(uid)

    def person_uncordons(self, node: Document) -> None:
        uid = node["metadata"]["uid"]
        owner = node["metadata"]["annotations"].get(SESSION_KEY)
        found = self._world.api.objects[REMEDIATIONS].get(owner) if owner else None
        session = session_of(found) if found else None
        if session is not None and uid in self.ours:
            self.overruled |= {
                (uid, incident.identity, incident.first_seen) for incident in session.current.incidents
            }
        self.ours.discard(uid)
        self.persons.discard(uid)

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
        if isinstance(action, Run) and action.order is not None and not _only_looks(action):
            self._may_disrupt(controller, sights[name], action)
        releases = isinstance(action, Run) and action.then is Phase.RELEASED
        if releases and node.owner_session == session and not action.session.current.phase.closed:
            plugin = all("Plugin" in incident.kind for incident in action.status.incidents)
            quick = plugin and action.status.incidents
            policy = engine.policy
            self._may_release(
                sights[name], policy.device_plugin.healthy_dwell if quick else policy.healthy_dwell
            )

    def _may_disrupt(self, controller: FakeController, sight: Sight, run: Run) -> None:
        """A step that touches pods: nobody is against it, there is evidence, and room in the budget."""
        engine, now = controller.engine, self._world.clock.monotonic()
        fleet, spec, status = engine.fleet, run.session.spec, run.status
        node = fleet.nodes[spec.node_name]
        assert engine.view_age() <= VIEW_LIMIT
        assert node.spec.unschedulable, "a node that takes jobs is not drained"
        assert fleet.control.spec.pause is None and fleet.switch(node.name) is None
        assert not node.taken_by, "somebody else is working on the node"
        pool = engine.policy.pool_of(node.metadata.labels)
        rules = [engine.policy.rule_for(incident, pool) for incident in status.incidents]
        assert any(rule is not None and rule.mode is not Mode.OBSERVE for rule in rules), "only observed now"
        if run.step in (StepName.REMOVE_FAILED_PODS, StepName.VERIFY) or _after_a_repair(run):
            return
        lasting = [incident for incident in status.incidents if incident.cleared_time is None]
        boot = node.status.node_info.boot_id
        if not any(item.clears_on == "NewBoot" and item.boot_id == boot for item in lasting):
            assert lasting, "nothing is left of the faults"
            assert sight.advanced is not None and now - sight.advanced <= FRESH_FOR, "stale evidence"
            assert sight.uid == spec.node_uid, "evidence of another node"
        if run.session.current.phase not in DRAINING_OR_REPAIRING:
            for where in (pool, budget.CLUSTER):
                used, limit = recount_disrupted(fleet, engine.policy, where)
                assert used <= limit, f"the disrupted budget of {where or 'the cluster'}: {used} of {limit}"

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

    def _may_release(self, sight: Sight, dwell: float) -> None:
        healthy = self._world.clock.monotonic() - sight.bad
        assert healthy >= dwell - 0.001, "released before the healthy dwell"

    # What changes.

    def changed(self, call: Call) -> None:
        """Look at a request that changed something; what is wrong with it is raised by `check`.

        The controller under test would take an error from here for one of the API's, and go on.
        """
        try:
            self._changed(call)
        except AssertionError as error:
            self.broken.append(error)

    def _changed(self, call: Call) -> None:
        match call.method, call.collection:
            case "PATCH", collection if collection == NODES:
                self._node_changed(call)
            case "POST", collection if collection == JOBS:
                self.repairs.job_created(call, landing=self.landing)
            case "POST", _:
                self._started(call)
            case "PATCH", collection if collection == REPORTS:
                self.repairs.release_changed(call, landing=self.landing)
            case "PATCH", collection if collection == REMEDIATIONS:
                self._written(call)

    def _node_changed(self, call: Call) -> None:
        before, after = call.before, call.after
        assert before is not None and after is not None
        if self.repairs.labels_changed(call, landing=self.landing):
            return
        assert _without_ours(before) == _without_ours(after), "only the cordon and our keys change"
        uid = after["metadata"]["uid"]
        was, now = (bool(item["spec"].get("unschedulable")) for item in (before, after))
        record, recorded = (item["metadata"]["annotations"].get(SESSION_KEY) for item in (before, after))
        if now and not was:
            self._cordoned(before, recorded, uid)
            if not self.landing:
                self.let_by_people(after["metadata"]["name"], recorded)
        elif was and not now:
            assert record and not recorded, "an uncordon takes the record with it"
            assert uid not in self.persons, "a person's cordon was undone"
            assert not before["metadata"]["annotations"].keys() & {HOLD_KEY, OPT_OUT_KEY}, "a person held it"
            assert uid in self.ours, "this cordon is not ours"
            self.ours.discard(uid)
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

    def let_by_people(self, name: str, session: str) -> None:
        """What a live read shows as a person's word just before the request is sent."""
        control = self._world.api.objects[CONTROLS].get("default", {"spec": {}})
        assert "pause" not in control["spec"], "everything was paused"
        assert name not in [entry["name"] for entry in control["spec"].get("nodes", ())], "a person's switch"
        stored = self._world.api.get(REMEDIATIONS, session)["spec"]
        assert "hold" not in stored, "a person held the session"
        approval = stored.get("approval", {}).get("decision")
        assert approval != Decision.DENIED, "a person said no"
        assert stored["mode"] == Mode.AUTO or approval == Decision.APPROVED, "nobody approved"

    def pod_touched(self, verb: str, pod: Pod) -> None:
        """A pod is about to be told, evicted or deleted."""
        try:
            self._pod_touched(verb, pod)
        except AssertionError as error:
            self.broken.append(error)

    def repaired(self, deed: Deed, *, looked: bool) -> None:
        """A repair program has done something to a host; `looked`: its init container has only just looked."""
        try:
            self.repairs.repaired(deed, looked=looked)
        except AssertionError as error:
            self.broken.append(error)

    def _pod_touched(self, verb: str, pod: Pod) -> None:
        if self.landing:
            return
        name = pod.spec.node_name
        node = self._world.api.get(NODES, name)
        session = self._open_session(node)
        status = session.current
        assert session.spec.mode is not Mode.OBSERVE
        assert node["spec"].get("unschedulable") and status.fenced_time is not None, "the node is not fenced"
        assert not node["metadata"]["annotations"].keys() & {HOLD_KEY, OPT_OUT_KEY}, "a person held the node"
        assert not node["spec"].get("taints"), "somebody else was working on the node"
        self.let_by_people(name, session.metadata.name)
        if verb != "delete":
            assert status.phase is Phase.DRAINING, f"{verb} in phase {status.phase}"
            assert pod.asks_for(("nvidia.com/gpu",)) and not pod.of_daemon_set
        elif pod.of_daemon_set:
            assert status.phase is Phase.REPAIRING and status.restart is not None
            assert status.restart.pod_uid == pod.uid, "the plugin's pod is written down before it is deleted"
        else:
            assert pod.failed_admission and status.phase is Phase.VERIFYING, "this pod is not ours to delete"
        step = (
            {StepName.DRAIN} if verb != "delete" else {StepName.RESTART_PLUGIN, StepName.REMOVE_FAILED_PODS}
        )
        intents = [entry for entry in status.journal if entry.event is JournalEvent.INTENT]
        assert any(entry.step in step for entry in intents), "a deed without an intent in the journal"
        after_a_repair = pod.of_daemon_set and status.repair is not None and "Reset" in status.repair.done
        if not pod.failed_admission and not after_a_repair:
            self.evident(node, session)
        gang = gang_of(pod)
        if verb == "evict" and gang and not pod.finished:
            self._one_node_of(gang, session)

    def _open_session(self, node: Document) -> AcceleratorRemediation:
        stored = self._world.api.objects[REMEDIATIONS].values()
        uid = node["metadata"]["uid"]
        found = [item for item in map(session_of, stored) if item is not None and item.spec.node_uid == uid]
        fenced = [
            item
            for item in found
            if not item.current.phase.closed
            and item.current.phase in (*DRAINING_OR_REPAIRING, Phase.VERIFYING)
        ]
        assert len(fenced) == 1, f"a pod is touched, and {len(fenced)} sessions work on its node"
        return fenced[0]

    def evident(self, node: Document, session: AcceleratorRemediation) -> None:
        """What a live read of the report, or the boot of a fault that only a new one clears, still says."""
        lasting = [item for item in session.current.incidents if item.cleared_time is None]
        boot = node["status"]["nodeInfo"]["bootID"]
        if any(item.clears_on == "NewBoot" and item.boot_id == boot for item in lasting):
            return
        report = self._world.api.objects[REPORTS].get(node["metadata"]["name"])
        assert report is not None, "a pod is touched without a report"
        found = report["status"]
        assert (found["nodeUID"], found["bootID"]) == (node["metadata"]["uid"], boot), "another one's report"
        told = {(item["kind"], item.get("deviceUUID", "")) for item in found.get("faults", ())}
        assert any(item.identity in told for item in lasting), "the faults are gone"

    def _one_node_of(self, gang: str, session: AcceleratorRemediation) -> None:
        """A drain that begins anew has given its gangs free in between, and claims those that are still there."""
        name, drain = session.metadata.name, session.current.drain
        assert drain is not None and gang in drain.gangs, "a gang is claimed before its pods are evicted"
        sessions = self.gangs.setdefault(gang, set())
        sessions.add(name)
        stored = self._world.api.objects[REMEDIATIONS]
        busy = [
            other
            for other in sessions - {name}
            if (found := session_of(stored[other]) if other in stored else None) is not None
            and found.current.phase in DRAINING_OR_REPAIRING
            and found.current.drain is not None
            and gang in found.current.drain.gangs
        ]
        assert not busy, f"{gang} is disrupted by {busy} and {name}"

    def _started(self, call: Call) -> None:
        assert call.after is not None
        session = session_of(call.after)
        assert session is not None
        if session.spec.mode is Mode.OBSERVE:
            return
        now = self._world.clock.monotonic()
        self.tokens = min(float(BURST), self.tokens + (now - self.refilled) * PER_MINUTE / 60) - 1
        self.refilled = now
        slack = (VIEW_LIMIT + 1) * PER_MINUTE / 60
        assert self.tokens >= -slack - self.excused, f"sessions start too fast: {self.tokens} tokens"

    def _written(self, call: Call) -> None:
        assert call.before is not None and call.after is not None
        before, after = session_of(call.before), session_of(call.after)
        assert before is not None and after is not None
        assert len(after.current.journal) <= JOURNAL_LIMIT
        assert after.current.leader_epoch >= before.current.leader_epoch, "written under an older epoch"
        assert not (before.current.phase.closed and not after.current.phase.closed), (
            "a closed session is closed"
        )
        self.repairs.written(before, after)
        begins = before.current.phase not in DRAINING_OR_REPAIRING
        if begins and after.current.phase in DRAINING_OR_REPAIRING:
            self._disrupts(after)
        first = {incident.identity: incident.first_seen for incident in before.current.incidents}
        for incident in after.current.incidents:
            since = first.get(incident.identity, incident.first_seen)
            assert incident.first_seen == since, "a fault's clock was reset"

    def _disrupts(self, session: AcceleratorRemediation) -> None:
        """Among all sessions that are stored, whatever the controller knows of them."""
        world = self._world
        nodes = world.api.objects[NODES]
        busy = [
            item
            for item in map(session_of, world.api.objects[REMEDIATIONS].values())
            if item is not None
            and item.current.phase in DRAINING_OR_REPAIRING
            and nodes.get(item.spec.node_name, {"metadata": {"uid": ""}})["metadata"]["uid"]
            == item.spec.node_uid
        ]
        pool = POOLS[session.spec.node_name]
        for where in (pool, budget.CLUSTER):
            count = sum(1 for item in busy if where in (budget.CLUSTER, POOLS[item.spec.node_name]))
            most = world.most_disrupted
            assert count <= most + self.excused, f"{count} nodes of {where or 'the cluster'} are disrupted"

    # What holds at any time.

    def check(self) -> None:
        """After each step."""
        if self.broken:
            raise self.broken[0]
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


def _only_looks(run: Run) -> bool:
    """Whether a step gives back what was lent, or sees a Job to its end."""
    job = run.status.repair.created if run.status.repair is not None else None
    return isinstance(run.order, RestoreOrder) or (isinstance(run.order, JobOrder) and job is not None)


def _after_a_repair(run: Run) -> bool:
    return isinstance(run.order, RestartOrder) and run.order.after is not None


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


def recount_disrupted(fleet: Fleet, policy: Policy, pool: str) -> tuple[int, int]:
    """Used and limit of the disrupted budget, counted the slow way."""
    used = members = 0
    for node in fleet.nodes.values():
        if pool not in (budget.CLUSTER, policy.pool_of(node.metadata.labels)):
            continue
        sessions = list(_open_of(fleet, node.name, node.metadata.uid))
        if node.name not in fleet.reports and not sessions:
            continue
        busy = node.name in fleet.disrupting or any(
            item.current.phase in (*DRAINING_OR_REPAIRING, Phase.VERIFYING)
            for item in sessions
            if item.spec.mode is not Mode.OBSERVE
        )
        aside = any(item.current.phase is Phase.HELD for item in sessions)
        if not busy and (aside or fleet.switch(node.name) is NodeAction.OPT_OUT):
            continue
        members += 1
        used += busy or not node.ready
    return used, policy.budgets.max_disrupted.of(members, floor=policy.budgets.floor)


def _open_of(fleet: Fleet, name: str, uid: str) -> Iterator[AcceleratorRemediation]:
    for session in fleet.sessions.values():
        if (session.spec.node_name, session.spec.node_uid) == (
            name,
            uid,
        ) and not session.current.phase.closed:
            yield session


def _without_ours(node: Document) -> Document:
    servers = ("resourceVersion", "managedFields")
    metadata = {key: value for key, value in node["metadata"].items() if key not in servers}
    metadata["annotations"] = {
        key: value for key, value in metadata["annotations"].items() if key != SESSION_KEY
    }
    spec = {key: value for key, value in node["spec"].items() if key != "unschedulable"}
    return {**node, "metadata": metadata, "spec": spec}
