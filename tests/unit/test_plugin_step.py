"""Restarting a device plugin, pass by pass, and removing what its kubelet refused meanwhile."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest
from msgspec.structs import replace

from remediation.orders import CleanOrder, RestartOrder
from remediation.plugin_policy import DevicePluginPolicy
from remediation.plugin_state import PluginRestart
from remediation.pod import Pod, PodCondition
from remediation.steps.outcome import Outcome, Result
from remediation.steps.plugin import DaemonSetView, remove_failed_pods, restart_plugin
from runtime.api_errors import Forbidden, Unavailable
from runtime.clock import ManualClock
from tests.fake_pods import FakePods, make_pod
from tests.unit.builders import NOON, later

PLUGIN = {"name": "nvidia-device-plugin-ds", "controller-revision-hash": "r1"}


@dataclass
class Ward:
    """A node with a plugin's pod, and a restart that remembers."""

    clock: ManualClock = field(default_factory=lambda: ManualClock(wall=NOON))
    memory: PluginRestart | None = None
    hung: bool = False
    policy: DevicePluginPolicy = field(default_factory=DevicePluginPolicy)

    def __post_init__(self) -> None:
        self.pods = FakePods(self.clock)
        self.pods.daemon_sets["kube-system/owner"] = DaemonSetView(on_delete=False, current_revision="r1")

    def plugin(self, *, age: float = 3600, ready: bool = True, **labels: str) -> Pod:
        pod = make_pod(owner="DaemonSet", gpus=0, namespace="kube-system", created=self.now(-age), grace=1)
        conditions = (PodCondition("Ready", "True" if ready else "False"),)
        made = replace(
            pod,
            metadata=replace(pod.metadata, labels=PLUGIN | labels),
            status=replace(pod.status, start_time=self.now(-age), conditions=conditions),
        )
        self.pods.put(made)
        return made

    def waiting(self) -> Pod:
        pod = make_pod(phase="Pending", created=self.now())
        self.pods.put(pod)
        return pod

    def now(self, seconds: float = 0) -> datetime:
        return later((self.clock.wall() - NOON).total_seconds() + seconds)

    def take(self) -> Outcome:
        """The next pass; what it wants remembered is."""
        order = RestartOrder(self.policy, hung=self.hung)
        outcome = restart_plugin(self.pods, "n1", order, self.memory, now=self.clock.wall())
        self.memory = outcome.restart or self.memory
        return outcome

    @property
    def deleted(self) -> list[str]:
        return [name for _, name in self.pods.deletions]


@pytest.fixture
def ward() -> Ward:
    return Ward()


def blocked(outcome: Outcome, hold: str, *told: str) -> None:
    assert (outcome.result, outcome.hold) == (Result.BLOCKED, hold), outcome
    assert all(part in outcome.message for part in told), outcome.message


def waits(outcome: Outcome, *told: str) -> None:
    assert outcome.result is Result.WAITING and outcome.again is not None, outcome
    assert all(part in outcome.message for part in told), outcome.message


def test_the_pod_is_written_down_then_deleted_and_done_when_its_replacement_is_ready(ward: Ward) -> None:
    old = ward.plugin()
    waits(ward.take(), f"restarts {old.name}")
    assert ward.memory is not None and ward.deleted == []
    assert (ward.memory.pod, ward.memory.pod_uid, ward.memory.daemon_set_uid) == (
        old.name,
        old.uid,
        "owner-uid",
    )
    waits(ward.take(), "on its way out")
    waits(ward.take(), "on its way out")
    assert ward.deleted == [old.name], "once"
    ward.clock.advance(1)
    waits(ward.take(), "not Ready yet")
    ward.plugin(age=0, ready=False)
    waits(ward.take(), "not Ready yet")
    new = ward.plugin(age=0)
    outcome = ward.take()
    assert outcome.result is Result.DONE and new.name in outcome.message
    assert ward.memory is not None
    assert (ward.memory.done_time, ward.memory.attempts) == (ward.clock.wall(), 1)


def test_a_pod_that_went_by_itself_after_it_was_chosen_is_not_followed_by_a_second_deletion(
    ward: Ward,
) -> None:
    old = ward.plugin()
    ward.take()
    ward.pods.remove(old.uid)
    new = ward.plugin(age=0)
    assert ward.take().result is Result.DONE
    assert ward.deleted == [] and new.uid in ward.pods.pods


def test_a_pod_of_another_daemon_set_is_no_replacement(ward: Ward) -> None:
    old = ward.plugin()
    ward.take()
    ward.pods.remove(old.uid)
    other = ward.plugin(age=0)
    owner = replace(other.metadata.owner_references[0], uid="another")
    ward.pods.put(replace(other, metadata=replace(other.metadata, owner_references=(owner,))))
    waits(ward.take(), "not Ready yet")


def test_a_pod_that_is_not_admitted_yet_is_waited_for(ward: Ward) -> None:
    ward.plugin()
    pod = ward.waiting()
    waits(ward.take(), pod.name, "must be admitted first")
    ward.clock.advance(60)
    waits(ward.take(), "must be admitted first")
    ward.pods.remove(pod.uid)
    ward.take()
    late = ward.waiting()
    waits(ward.take(), late.name)
    assert ward.deleted == [], "nor when it came after the choice"


def test_a_plugin_that_hangs_with_a_pod_stuck_behind_it_is_a_persons_affair(ward: Ward) -> None:
    ward.hung = True
    ward.plugin()
    pod = ward.waiting()
    waits(ward.take(), "must be admitted first")
    ward.clock.advance(5)
    blocked(ward.take(), "AdmissionStuck", pod.name, "restart the kubelet by hand")
    ward.pods.remove(pod.uid)
    waits(ward.take(), "restarts")


def test_it_does_not_take_for_ever(ward: Ward) -> None:
    ward.plugin()
    ward.waiting()
    ward.take()
    ward.clock.advance(179)
    waits(ward.take())
    ward.clock.advance(1)
    outcome = ward.take()
    assert (outcome.result, outcome.hold) == (Result.DEADLINE, "PluginNotRestarted")
    assert "3m" in outcome.message


def test_it_does_not_take_for_ever_where_the_pods_cannot_be_listed(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: FakePods, node_name: str) -> tuple[Pod, ...]:
        raise Unavailable("not now", status=503)

    monkeypatch.setattr(FakePods, "pods_on", fails)
    ward.memory = PluginRestart(started=NOON)
    with pytest.raises(Unavailable):
        ward.take()
    ward.clock.advance(180)
    assert ward.take().hold == "PluginNotRestarted"


def test_without_the_pod_of_a_known_plugin_there_is_nothing_to_restart(ward: Ward) -> None:
    ward.plugin(name="something-else")
    blocked(ward.take(), "PluginNotFound", "devicePlugin.selectors")


def test_a_finished_pod_is_no_plugin(ward: Ward) -> None:
    pod = ward.plugin()
    ward.pods.put(replace(pod, status=replace(pod.status, phase="Failed")))
    blocked(ward.take(), "PluginNotFound")


def test_two_plugins_on_one_node_are_not_restarted(ward: Ward) -> None:
    names = sorted(ward.plugin().name for _ in range(2))
    blocked(ward.take(), "SeveralPlugins", *names, "kubelet restart")
    assert ward.deleted == []


@pytest.mark.parametrize("owner", ["", "ReplicaSet"])
def test_a_plugin_that_nobody_would_replace_is_not_deleted(ward: Ward, owner: str) -> None:
    pod = make_pod(owner=owner, gpus=0, namespace="kube-system", created=later(-3600))
    ward.pods.put(replace(pod, metadata=replace(pod.metadata, labels=PLUGIN)))
    blocked(ward.take(), "PluginNotFound", "nobody would replace it")


def test_a_daemon_set_that_is_gone_replaces_nothing(ward: Ward) -> None:
    ward.plugin()
    ward.pods.daemon_sets.clear()
    blocked(ward.take(), "PluginNotFound", "is gone")


@pytest.mark.parametrize(
    ("on_delete", "revision", "hold"),
    [(True, "r2", "WouldUpgrade"), (True, "r1", ""), (False, "r2", ""), (False, "", "")],
)
def test_a_deletion_that_would_be_an_upgrade_is_not_made(
    ward: Ward, on_delete: bool, revision: str, hold: str
) -> None:
    ward.plugin()
    ward.pods.daemon_sets["kube-system/owner"] = DaemonSetView(on_delete, revision)
    outcome = ward.take()
    assert outcome.hold == hold
    assert outcome.hold or ("an upgrade" in outcome.message) is (revision == "r2")
    assert ward.deleted == []


def test_a_plugin_that_has_only_just_started_is_given_its_time(ward: Ward) -> None:
    ward.plugin(age=5)
    waits(ward.take(), "only just been started")
    ward.clock.advance(15)
    waits(ward.take(), "restarts")


def test_a_plugin_that_somebody_else_is_replacing_is_left_to_them(ward: Ward) -> None:
    pod = ward.plugin()
    ward.pods.put(replace(pod, metadata=replace(pod.metadata, deletion_timestamp=later(60))))
    waits(ward.take(), "by somebody else")


# What the kubelet refused.


def refused(ward: Ward, *, owner: str = "ReplicaSet", gpus: int = 1, age: float = 0, **status: Any) -> Pod:
    pod = make_pod(owner=owner, gpus=gpus, phase="Failed", created=ward.now(-age))
    made = replace(pod, status=replace(pod.status, **{"reason": "UnexpectedAdmissionError", **status}))
    ward.pods.put(made)
    return made


def clean(ward: Ward) -> Outcome:
    since = CleanOrder(later(-60))
    return remove_failed_pods(ward.pods, "n1", since, ward.memory, now=ward.clock.wall())


def test_only_refused_accelerator_pods_with_a_controller_and_of_this_time_are_removed(ward: Ward) -> None:
    gone = [refused(ward), refused(ward, owner="Job")]
    refused(ward, owner="")
    refused(ward, gpus=0)
    refused(ward, age=61)
    refused(ward, reason="Evicted")
    refused(ward, phase="Running")
    outcome = clean(ward)
    assert ward.deleted == [pod.name for pod in gone]
    assert outcome.result is Result.DONE and all(pod.name in outcome.message for pod in gone)
    assert outcome.restart == PluginRestart(started=NOON, cleaned=True)
    assert "no pod failed" in clean(ward).message


def test_more_than_a_hundred_are_removed_in_several_passes(ward: Ward) -> None:
    for _ in range(101):
        refused(ward)
    waits(clean(ward), "101 pods")
    assert len(ward.deleted) == 100
    assert clean(ward).result is Result.DONE and len(ward.deleted) == 101


def test_a_pod_that_cannot_be_removed_is_named_and_the_others_go(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    pods = [refused(ward) for _ in range(3)]
    delete = FakePods.delete_pod

    def sometimes(self: FakePods, namespace: str, name: str, uid: str) -> None:
        if uid == pods[0].uid:
            raise Forbidden("no", status=403, reason="Forbidden")
        delete(self, namespace, name, uid)

    monkeypatch.setattr(FakePods, "delete_pod", sometimes)
    outcome = clean(ward)
    assert (outcome.result, len(ward.deleted)) == (Result.FAILED, 2)
    assert "1 of 3 pods" in outcome.message and f"{pods[0].name} stays" in outcome.message


def test_the_memory_of_the_restart_is_kept(ward: Ward) -> None:
    ward.memory = PluginRestart(started=later(-30), pod="kube-system/p", attempts=1)
    assert clean(ward).restart == replace(ward.memory, cleaned=True)
