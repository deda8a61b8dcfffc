"""The invariants of repairs, as an outsider checks them: from the Jobs, labels and releases that are asked for, and
from what repair programs have really done to hosts."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec

from health.report import DeviceRelease
from health.vocabulary import Mode, Phase
from remediation.cluster import NODES, REMEDIATIONS, REPORTS
from remediation.fleet import HOLD_KEY, OPT_OUT_KEY, SESSION_KEY
from remediation.objects import AcceleratorRemediation, JournalEvent
from remediation.policy import StepName
from remediation.repair_state import job_name
from remediation.steps.release import PAUSED
from tests.unit.fake_cluster import OPERANDS, Call, Document, changed_labels

if TYPE_CHECKING:
    from tests.property.remediation_hosts import Deed
    from tests.property.remediation_world import World

_AFTER_A_DRAIN = frozenset({StepName.RESET, StepName.REBOOT, StepName.RUN_JOB})
_UPGRADE = "nvidia.com/gpu-driver-upgrade-state"


def session_of(found: Document | None) -> AcceleratorRemediation | None:
    """A session as stored; None where there is none or it cannot be read."""
    try:
        return msgspec.json.decode(msgspec.json.encode(found), type=AcceleratorRemediation) if found else None
    except msgspec.MsgspecError:
        return None


class RepairMonitor:
    """What no repair may do. `landing`: the request is one that nobody waits for any more."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.drained: dict[str, str] = {}
        """Sessions whose last drain was completed, and the rung that it was for."""
        self.lives: Counter[str] = Counter()
        """How often a person has let a session go on."""
        self.jobs: Counter[tuple[str, int, str]] = Counter()
        """Jobs created by session, life and rung."""
        self.deeds: Counter[tuple[str, str, int]] = Counter()

    # Sessions.

    def written(self, before: AcceleratorRemediation, after: AcceleratorRemediation) -> None:
        """A session's status was written."""
        name, was, now = after.metadata.name, before.current, after.current
        if was.phase is Phase.HELD and now.reason == "Resumed":
            self.lives[name] += 1
        if now.phase not in (Phase.DRAINING, Phase.REPAIRING):
            self.drained.pop(name, None)
        elif was.phase is Phase.DRAINING and now.phase is Phase.REPAIRING:
            assert now.reason == "Drained", f"left the drain for {now.reason}"
            self.drained[name] = now.rung
            self._all_gone(after)

    def forgotten(self, name: str) -> None:
        """Somebody has deleted a session, and what it remembered: one of its name begins anew."""
        self.lives[name] += 1
        self.drained.pop(name, None)

    def _all_gone(self, session: AcceleratorRemediation) -> None:
        rung = next(one for one in session.current.plan if one.rung == session.current.rung)
        stuck_may_stay = StepName.REBOOT in rung.steps
        for pod in self._world.pods.on(session.spec.node_name):
            if pod.of_daemon_set or pod.finished or not pod.asks_for(("nvidia.com/gpu",)):
                continue
            ends = pod.metadata.deletion_timestamp
            late = ends is not None and self._world.clock.wall() >= ends + timedelta(seconds=60)
            assert late and stuck_may_stay, f"drained, and {pod.name} is there"

    # Jobs.

    def job_created(self, call: Call, *, landing: bool) -> None:
        """A Job may run from now on."""
        assert call.after is not None
        job = call.after
        annotations = job["metadata"]["annotations"]
        facts = {key.removeprefix("sickbay.dev/"): value for key, value in annotations.items()}
        session = session_of(self._world.api.objects[REMEDIATIONS].get(facts["session"]))
        if session is None:
            assert landing, "a Job of a session that is not there"
            return
        status, step = session.current, facts["step"]
        rung = StepName.VERIFY.value if step == StepName.VERIFY else status.rung
        if not landing:
            self._may_run(session, facts)
        template = job["metadata"]["labels"]["sickbay.dev/template"]
        expected = job_name(
            template, session=facts["session"], rung=rung, step=step, attempt=int(facts["attempt"])
        )
        assert landing or call.name == expected, f"{call.name} is not {expected}"
        pod = job["spec"]["template"]["spec"]
        assert pod == {"containers": [{"name": "repair", "image": "sickbay"}], "nodeName": facts["node"]}
        assert (job["spec"]["backoffLimit"], job["spec"]["parallelism"]) == (0, 1)
        if step != StepName.VERIFY and not landing:
            life = (facts["session"], self.lives[facts["session"]], rung)
            self.jobs[life] += 1
            most = next(one.max_attempts for one in status.plan if one.rung == rung)
            assert self.jobs[life] <= most, f"{self.jobs[life]} attempts of {life}"

    def refused(self, facts: dict[str, str]) -> None:
        """A Job's last look forbade it, so it was no attempt."""
        session = session_of(self._world.api.objects[REMEDIATIONS].get(facts["session"]))
        rung = session.current.rung if session is not None else ""
        life = (facts["session"], self.lives[facts["session"]], rung)
        self.jobs[life] = max(0, self.jobs[life] - 1)

    def _may_run(self, session: AcceleratorRemediation, facts: dict[str, str]) -> None:
        status, spec, step = session.current, session.spec, facts["step"]
        node = self._world.api.get(NODES, facts["node"])
        assert spec.mode is not Mode.OBSERVE, "a session that only observes runs a Job"
        assert not status.phase.closed and status.step == step, f"{step} while at {status.step}"
        phase = Phase.VERIFYING if step == StepName.VERIFY else Phase.REPAIRING
        assert status.phase is phase, f"a Job in phase {status.phase}"
        assert (spec.node_name, spec.node_uid) == (facts["node"], facts["node-uid"])
        assert node["metadata"]["uid"] == facts["node-uid"], "a Job for another node"
        assert node["status"]["nodeInfo"]["bootID"] == facts["boot-id"], "a Job for another boot"
        self._let_by_people(node, session)
        repair = status.repair
        assert repair is not None and repair.created is None, "it was created before"
        assert (str(repair.attempt), repair.boot_id) == (facts["attempt"], facts["boot-id"])
        intents = [entry for entry in status.journal if entry.event is JournalEvent.INTENT]
        assert any(entry.step == step for entry in intents), "a Job without an intent in the journal"
        if step in _AFTER_A_DRAIN:
            assert self.drained.get(session.metadata.name) == status.rung, "not after a completed drain"
        if step == StepName.RESET:
            report = self._world.api.objects[REPORTS][facts["node"]]
            assert report["status"].get("deviceAccess") == "Released", "reset while the agent holds devices"
        if step != StepName.VERIFY:
            self._world.monitor.evident(node, session)
            self._not_too_often(session, step)

    def _not_too_often(self, session: AcceleratorRemediation, step: str) -> None:
        serials = {one.device_serial for one in session.current.incidents if one.cleared_time is None} - {""}
        policy = self._world.policy.repair.repeats
        since = self._world.clock.wall() - timedelta(seconds=policy.within)
        stored = map(session_of, self._world.api.objects[REMEDIATIONS].values())
        times = sum(
            other.metadata.name != session.metadata.name
            and (repair := other.current.repair) is not None
            and repair.done_time is not None
            and step in repair.done
            and repair.done_time >= since
            and any(one.device_serial in serials for one in other.current.incidents)
            for other in stored
            if other is not None
        )
        assert times < policy.limit, f"{step} of {serials} for the {times + 1}th time"

    def _let_by_people(self, node: Document, session: AcceleratorRemediation) -> None:
        metadata = node["metadata"]
        name = session.metadata.name
        assert node["spec"].get("unschedulable"), "somebody uncordoned the node"
        assert not metadata["annotations"].keys() & {HOLD_KEY, OPT_OUT_KEY}, "a person held the node"
        assert not node["spec"].get("taints"), "somebody else is working on the node"
        assert metadata["labels"].get(_UPGRADE, "") in ("", "upgrade-done"), "a driver upgrade is under way"
        self._world.monitor.let_by_people(metadata["name"], name)

    def repaired(self, deed: Deed, *, looked: bool) -> None:
        """A program has reset or booted a host, or restarted a service.

        `looked`: its init container has only just looked, so that nothing may speak against it now, however its
        Job came to be created.
        """
        self.deeds[deed.session, deed.step, deed.attempt] += 1
        assert self.deeds[deed.session, deed.step, deed.attempt] == 1, f"done twice: {deed}"
        session = session_of(self._world.api.objects[REMEDIATIONS].get(deed.session))
        if session is None:
            assert not looked, "done for a session that is not there"
            return
        assert session.spec.node_uid == deed.node_uid
        assert session.spec.mode is not Mode.OBSERVE
        if not looked:
            return
        status = session.current
        node = self._world.api.get(NODES, session.spec.node_name)
        assert (status.phase, status.step) == (Phase.REPAIRING, deed.step)
        assert status.repair is not None and status.repair.attempt == deed.attempt, "an attempt of long ago"
        assert node["metadata"]["annotations"].get(SESSION_KEY) == deed.session, "the cordon is not ours"
        self._let_by_people(node, session)

    # What is lent.

    def labels_changed(self, call: Call, *, landing: bool) -> bool:
        """Whether labels changed, and nothing else."""
        assert call.before is not None and call.after is not None
        changed = changed_labels(call.before, call.after)
        if not changed:
            return False
        for key, pair in changed.items():
            assert key.startswith(OPERANDS) and pair in (("true", PAUSED), (PAUSED, "true")), (key, pair)
        assert _without_labels(call.before) == _without_labels(call.after), "labels and more in one patch"
        paused = {key for key, pair in changed.items() if pair[1] == PAUSED}
        owner = call.before["metadata"]["annotations"].get(SESSION_KEY, "")
        session = session_of(self._world.api.objects[REMEDIATIONS].get(owner))
        if paused and not landing:
            assert session is not None, "operands are paused for a session that is not there"
            self._lends(call.before, session)
            assert session.current.repair is not None
            recorded = {(one.key, one.value) for one in session.current.repair.operands}
            assert {(key, "true") for key in paused} <= recorded, "paused, and not written down"
        return True

    def release_changed(self, call: Call, *, landing: bool) -> None:
        """The controller has told an agent something."""
        assert call.before is not None and call.after is not None
        before, after = (item.get("spec") or {} for item in (call.before, call.after))
        assert {**before, "deviceRelease": None} == {**after, "deviceRelease": None}, "more than the release"
        asked = after.get("deviceRelease")
        if asked is None or landing:
            return
        release = msgspec.convert(asked, DeviceRelease)
        session = session_of(self._world.api.objects[REMEDIATIONS].get(release.session))
        assert session is not None, "a release for a session that is not there"
        node = self._world.api.get(NODES, call.name)
        self._lends(node, session)
        assert session.current.repair is not None
        assert session.current.repair.release_until == release.until, "asked for, and not written down"

    def _lends(self, node: Document, session: AcceleratorRemediation) -> None:
        status = session.current
        assert session.spec.mode is not Mode.OBSERVE
        assert session.spec.node_uid == node["metadata"]["uid"]
        assert (status.phase, status.step) == (Phase.REPAIRING, StepName.RELEASE_DEVICES)
        assert self.drained.get(session.metadata.name) == status.rung, "not after a completed drain"
        self._let_by_people(node, session)

    def at_peace(self) -> None:
        """The world was left alone for a while: nothing is lent for a session that is over, or a person's."""
        world = self._world
        for name in world.agents:
            node = world.api.get(NODES, name)
            uid = node["metadata"]["uid"]
            stored = [
                item for item in world.api.objects[REMEDIATIONS].values() if item["spec"]["nodeUID"] == uid
            ]
            found = [session_of(item) for item in stored]
            if any(item is None or not _rests(item) for item in found):
                continue
            paused = [key for key, value in node["metadata"]["labels"].items() if value == PAUSED]
            assert not paused, f"{paused} of {name} are still paused"
            release = world.spec_of(name).device_release if name in world.api.objects[REPORTS] else None
            known = {item.metadata.name for item in found if item is not None}
            assert release is None or release.session not in known, f"{name} is still asked to let go"


def _rests(session: AcceleratorRemediation) -> bool:
    return session.current.phase.closed or session.current.phase is Phase.HELD


def _without_labels(node: Document) -> Document:
    servers = ("resourceVersion", "managedFields", "labels")
    metadata = {key: value for key, value in node["metadata"].items() if key not in servers}
    return {**node, "metadata": metadata}
