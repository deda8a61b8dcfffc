"""The same pods drained by `kubectl drain` and by us, each on a node of its own, and what only we do.

Where we differ from kubectl, the situation says how and why, and both outcomes are asserted. The allowed reasons:

- The pods are listed until nothing new comes: kubectl misses what is bound after its one list, and calls a node
  drained to which a pod that tolerates the cordon has come back.
- Only accelerator pods are meant, unless the policy says All; a finished one holds no accelerator any more.
- A pod that is being deleted already needs nobody's leave: kubectl refuses to begin when that one has no controller.
- Every eviction carries the pod's UID; retries are jittered; a pass sends a bounded number; there is a deadline.
  These change no outcome here but how it is come by, and that is asserted from the audit log.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from remediation.drain import Eviction, Verdict
from remediation.drain_policy import DrainPolicy, PodSelection, PreDrain
from remediation.drain_selection import Fate, judge
from remediation.drain_state import DrainState
from remediation.pod_api import NOTICE_ANNOTATION, KubernetesPods
from remediation.steps.drain import Drained, drain
from runtime.api_errors import Conflict
from runtime.clock import SystemClock
from runtime.kubernetes import Session
from runtime.quantities import Duration
from tests.lab import images
from tests.lab.api import Object
from tests.lab.drain_situations import (
    GPU,
    GPU_SITUATIONS,
    PRIORITY,
    SITUATIONS,
    TIME_LIMIT_S,
    Place,
    Situation,
    bare,
    managed,
)
from tests.lab.lab import Lab
from tests.lab.node import Node
from tests.lab.processes import LabError, wait_until

pytestmark = pytest.mark.timeout(300)

AGENT = "sickbay-drain-test"
EVERYTHING = DrainPolicy(
    pods=PodSelection.ALL,
    force=True,
    delete_empty_dir_data=True,
    deadline=Duration.parse(f"{TIME_LIMIT_S}s"),
    concurrency=16,
)
FLAGS = ("--ignore-daemonsets", "--force", "--delete-emptydir-data")
LATE = "late"
NEVER_LEFT = {"daemonset", "static", "gated", "gpu-daemonset"}
HELD_BY_BUDGETS = {
    "budget-blocks",
    "budget-one-of-two",
    "two-budgets",
    "unready-blocked",
    "unready-beside-healthy",
}
BY_NAME = {situation.name: situation for situation in SITUATIONS}


@dataclass
class Side:
    """One of the two nodes: all situations are made on it, and one of the two drains it."""

    lab: Lab
    node: Node
    namespace: str
    before: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    """By situation: names of its pods by UID, before any drain."""

    def pods(self) -> list[Object]:
        here = self.lab.api.items(f"/api/v1/namespaces/{self.namespace}/pods")
        ending = self.lab.api.items(f"/api/v1/namespaces/{self.namespace}-ending/pods")
        return [pod for pod in (*here, *ending) if "situation" in pod["metadata"].get("labels", {})]

    def by_situation(self) -> dict[str, list[Object]]:
        found: dict[str, list[Object]] = defaultdict(list)
        for pod in self.pods():
            found[pod["metadata"]["labels"]["situation"]].append(pod)
        return found

    def left(self) -> dict[str, str]:
        """What is left of each situation's first pods, in sorted words."""
        now = {pod["metadata"]["uid"]: pod for pod in self.pods()}
        return {
            name: " ".join(sorted(_fate(now.get(uid)) for uid in pods)) for name, pods in self.before.items()
        }

    def situations_of(self, pod_names: set[str]) -> set[str]:
        """The situations that pods of these names belong to, those of before included."""
        known = {name: situation for situation, pods in self.before.items() for name in pods.values()}
        known.update({pod["metadata"]["name"]: pod["metadata"]["labels"]["situation"] for pod in self.pods()})
        return {known[name] for name in pod_names if name in known}


def _fate(pod: Object | None) -> str:
    if pod is None:
        return "gone"
    return "terminating" if "deletionTimestamp" in pod["metadata"] else "there"


@dataclass
class Arena:
    """Two nodes with the same pods on them."""

    lab: Lab
    kubectl: Side
    ours: Side
    pods: KubernetesPods

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.kubectl, self.ours

    def run_kubectl(self, *flags: str) -> tuple[bool, str]:
        """Drain its node; whether it succeeded, and what it said."""
        words = ("drain", self.kubectl.node.name, *flags)
        try:
            return True, self.lab.kubectl(*words)
        except LabError as error:
            if "exit code 1" not in str(error):
                raise
            return False, str(error)

    def drain(
        self,
        policy: DrainPolicy,
        *,
        after_first: Callable[[], object] = lambda: None,
        accelerators: tuple[str, ...] = (GPU,),
    ) -> list[Drained]:
        """Drain our node, pass by pass, as long as the verdict is open."""
        clock = SystemClock()
        passes: list[Drained] = []
        state: DrainState | None = None
        while True:
            drained = drain(
                self.pods,
                self.ours.node.name,
                policy,
                state,
                clock=clock,
                next_rung_is_reboot=False,
                accelerators=accelerators,
            )
            passes.append(drained)
            state = drained.state
            if drained.again is None:
                return passes
            if len(passes) == 1:
                after_first()
            due = clock.monotonic() + drained.again
            wait_until(partial(_past, due), drained.again + 5, "the next pass")

    def judge(self, policy: DrainPolicy) -> list[tuple[str, Fate, str]]:
        """Situation, fate and reason of each pod that is on our node now."""
        judged = [
            judge(pod, policy, datetime.now(UTC), (GPU,)) for pod in self.pods.pods_on(self.ours.node.name)
        ]
        return [
            (one.pod.metadata.labels["situation"], one.fate, one.reason)
            for one in judged
            if "situation" in one.pod.metadata.labels
        ]


def _past(moment: float) -> bool:
    return SystemClock().monotonic() >= moment


# The arena.


@pytest.fixture(scope="module")
def arena(lab: Lab) -> Iterator[Arena]:
    options = {"staticPodPath": "/var/lib/kubelet/manifests", "fileCheckFrequency": "1s"}
    nodes = lab.add_nodes("drain-k", "drain-s", capacity={GPU: 8}, kubelet=options)
    sides = (Side(lab, nodes[0], "test-drain-k"), Side(lab, nodes[1], "test-drain-s"))
    session = Session.from_kubeconfig(lab.kubeconfig, user_agent=AGENT)
    pods = KubernetesPods(session, clock=SystemClock(), may_write=lambda: True)
    try:
        lab.apply(_priority_class())
        for side in sides:
            _make(side)
        for side in sides:
            _wait_made(side)
        yield Arena(lab, *sides, pods)
    finally:
        for side in sides:
            _let_go(side)
            for namespace in (side.namespace, f"{side.namespace}-ending"):
                if lab.api.exists(f"/api/v1/namespaces/{namespace}"):
                    lab.api.delete(f"/api/v1/namespaces/{namespace}")
        for node in nodes:
            lab.remove_node(node.name)
        lab.kubectl("delete", "priorityclass", PRIORITY)


def _priority_class() -> Object:
    return {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": PRIORITY},
        "value": 1_000_000,
    }


def _make(side: Side) -> None:
    api = side.lab.api
    for namespace in (side.namespace, f"{side.namespace}-ending"):
        api.create(
            "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        )
        account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
        wait_until(partial(api.exists, account), 15, f"ServiceAccount default of {namespace}")
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owner"}}
    owner = api.create(f"/api/v1/namespaces/{side.namespace}/configmaps", config)["metadata"]["uid"]
    place = Place(side.namespace, side.node.name, owner)
    objects = [made for situation in SITUATIONS for made in situation.objects(place)]
    ending = Place(f"{side.namespace}-ending", side.node.name, owner)
    objects += managed(ENDING.name, terminationGracePeriodSeconds=15)(ending)
    side.lab.apply(*objects)
    static = images.busybox_pod("static", namespace=side.namespace)
    static["metadata"]["labels"] = {"situation": "static"}
    (side.node.kubelet_dir / "manifests").mkdir(exist_ok=True)
    (side.node.kubelet_dir / "manifests" / "static.json").write_text(json.dumps(static))


ENDING = Situation("namespace-ending", lambda place: [])


def _wait_made(side: Side) -> None:
    unmade: list[str] = []

    def made() -> bool:
        found = side.by_situation()
        unmade[:] = [one.name for one in (*SITUATIONS, ENDING) if not _is_made(one, found.get(one.name, []))]
        unmade.extend(_miscounted(side, found))
        return not unmade

    try:
        wait_until(made, 120, f"the situations on {side.node.name}")
    except LabError as error:
        raise LabError(f"{error}; not made: {unmade}") from None
    for name, pods in side.by_situation().items():
        for pod in pods:
            side.before[name][pod["metadata"]["uid"]] = pod["metadata"]["name"]


def _is_made(situation: Situation, pods: list[Object]) -> bool:
    if len(pods) != situation.pods:
        return False
    return all(
        not situation.phase or (pod["status"]["phase"] == situation.phase and pod["spec"].get("nodeName"))
        for pod in pods
    )


def _miscounted(side: Side, found: dict[str, list[Object]]) -> list[str]:
    """The budgets for which the disruption controller has not counted the pods as they are.

    Of several budgets over one pod it follows an arbitrary one, so nothing is expected of those.
    """
    budgets: dict[str, list[Object]] = defaultdict(list)
    for one in side.lab.api.items(f"/apis/policy/v1/namespaces/{side.namespace}/poddisruptionbudgets"):
        budgets[one["spec"]["selector"]["matchLabels"]["situation"]].append(one)
    return [
        f"budget of {name}: {of_it[0].get('status')}"
        for name, of_it in budgets.items()
        if len(of_it) == 1
        and of_it[0].get("status", {}).get("currentHealthy") != sum(map(_is_ready, found[name]))
    ]


def _is_ready(pod: Object) -> bool:
    probed = any("readinessProbe" in container for container in pod["spec"]["containers"])
    return pod["status"]["phase"] == "Running" and not probed


def _let_go(side: Side) -> None:
    """Take away what holds pods back: budgets, finalizers, and the workload that tolerates the cordon."""
    api = side.lab.api
    api.delete(f"/apis/policy/v1/namespaces/{side.namespace}/poddisruptionbudgets")
    for pod in side.pods():
        if "example.com/hold" in pod["metadata"].get("finalizers", []):
            path = f"/api/v1/namespaces/{side.namespace}/pods/{pod['metadata']['name']}"
            api.patch(path, {"metadata": {"finalizers": None}})
    tolerating = f"/apis/apps/v1/namespaces/{side.namespace}/replicasets/tolerating"
    if api.exists(tolerating):
        api.delete(tolerating)


# The rounds, each after the one before.


@dataclass
class Round:
    """What both came to. `failed`: situations with pods that are named as the reason."""

    kubectl_succeeded: bool
    kubectl_said: str
    kubectl_left: dict[str, str]
    kubectl_failed: set[str]
    passes: list[Drained]
    ours_left: dict[str, str]
    ours_failed: set[str]

    @property
    def last(self) -> Drained:
        return self.passes[-1]


@pytest.fixture(scope="module")
def accelerator_round(arena: Arena) -> Round:
    """Only the pods that ask for accelerators; kubectl is told which by their label."""
    policy = DrainPolicy(force=True, delete_empty_dir_data=True, deadline=Duration.parse("60s"))
    return _both(
        arena, (*FLAGS, "--pod-selector=gpu=yes", "--timeout=60s"), policy, after_first=lambda side: None
    )


@dataclass
class Selection:
    """What both make of the pods under one set of flags, by situation."""

    kubectl_blocking: dict[str, set[str]]
    kubectl_evicts: set[str]
    ours: list[tuple[str, Fate, str]]


OPTIONS = [(force, data) for force in (False, True) for data in (False, True)]


@pytest.fixture(scope="module")
def selections(arena: Arena, accelerator_round: Round) -> dict[tuple[bool, bool], Selection]:
    for side in arena.sides:
        for name, pods in side.before.items():
            if name in BY_NAME and BY_NAME[name].deleted:
                for pod in pods.values():
                    arena.lab.api.delete(f"/api/v1/namespaces/{side.namespace}/pods/{pod}")
        arena.lab.api.delete(f"/api/v1/namespaces/{side.namespace}-ending")
    for side in arena.sides:
        wait_until(partial(_is_ending, side), 10, "the pod of an ending namespace to end")
    found = {}
    for force, data in OPTIONS:
        flags = [*(["--force"] if force else []), *(["--delete-emptydir-data"] if data else [])]
        _, said = arena.run_kubectl("--ignore-daemonsets", "--dry-run=client", *flags)
        policy = DrainPolicy(pods=PodSelection.ALL, force=force, delete_empty_dir_data=data)
        found[force, data] = Selection(
            {
                reason: arena.kubectl.situations_of(names)
                for reason, names in _blocking(said, arena.kubectl.namespace).items()
            },
            arena.kubectl.situations_of(
                {name.rpartition("/")[2] for name in re.findall(r"evicting pod (\S+) \(dry run\)", said)}
            ),
            arena.judge(policy),
        )
    return found


def _is_ending(side: Side) -> bool:
    return side.left()[ENDING.name] == "terminating"


def _blocking(said: str, namespace: str) -> dict[str, set[str]]:
    """Pod names by the flag that would let them go, as kubectl complains of them."""
    found: dict[str, set[str]] = defaultdict(set)
    for flag, names in re.findall(
        r"cannot delete Pods [^(]*\(use --(\S+) to override\): ((?:[\w.-]+/[\w.-]+(?:, )?)+)", said
    ):
        found[flag] |= {name.rpartition("/")[2] for name in names.split(", ") if name}
    return found


@pytest.fixture(scope="module")
def blocked(arena: Arena, selections: object) -> Round:
    """Without leave for what cannot be undone, both begin nothing."""
    policy = DrainPolicy(pods=PodSelection.ALL)
    return _both(arena, ("--ignore-daemonsets", "--timeout=5s"), policy, after_first=lambda side: None)


@pytest.fixture(scope="module")
def timed(arena: Arena, blocked: Round) -> Round:
    """With every leave, for a limited time; a pod is bound to each node when its drain has begun."""
    return _both(arena, (*FLAGS, f"--timeout={TIME_LIMIT_S}s"), EVERYTHING, after_first=_bind_late)


def _bind_late(side: Side) -> None:
    place = Place(side.namespace, side.node.name, "")
    (late,) = bare(LATE, nodeName=side.node.name)(place)
    made = side.lab.api.create(f"/api/v1/namespaces/{side.namespace}/pods", late)
    side.before[LATE][made["metadata"]["uid"]] = LATE


@pytest.fixture(scope="module")
def last(arena: Arena, timed: Round) -> Round:
    """When nothing stands in the way any more."""
    for side in arena.sides:
        _let_go(side)
    policy = DrainPolicy(
        pods=PodSelection.ALL, force=True, delete_empty_dir_data=True, deadline=Duration.parse("50s")
    )
    return _both(arena, (*FLAGS, "--timeout=50s"), policy, after_first=lambda side: None)


def _both(
    arena: Arena, flags: tuple[str, ...], policy: DrainPolicy, *, after_first: Callable[[Side], object]
) -> Round:
    """Drain both nodes at the same time; `after_first` happens to each when its drain has begun."""

    def by_kubectl() -> tuple[bool, str, dict[str, str]]:
        succeeded, said = arena.run_kubectl(*flags)
        return succeeded, said, arena.kubectl.left()

    arena.lab.kubectl("cordon", arena.ours.node.name)
    with ThreadPoolExecutor(1) as beside:
        kubectl = beside.submit(by_kubectl)
        if after_first is _bind_late:
            wait_until(lambda: arena.kubectl.left()["bare"] != "there", 15, "kubectl to begin")
            after_first(arena.kubectl)
        passes = arena.drain(policy, after_first=lambda: after_first(arena.ours))
        ours_left = arena.ours.left()
        succeeded, said, kubectl_left = kubectl.result()
    failed = set(re.findall(r'error when (?:evicting pods/|waiting for pod )"([^"]+)"', said))
    ours_failed = {one.pod.metadata.labels.get("situation", "") for one in passes[-1].look.left}
    return Round(
        succeeded, said, kubectl_left, arena.kubectl.situations_of(failed), passes, ours_left, ours_failed
    )


# The tests only read what the rounds came to.


@pytest.mark.parametrize("name", [situation.name for situation in SITUATIONS])
def test_accelerator_pods_only(accelerator_round: Round, name: str) -> None:
    situation = BY_NAME[name]
    pods = " ".join(["there"] * situation.pods)
    assert accelerator_round.kubectl_left[name] == (situation.left if situation.gpu else pods)
    assert accelerator_round.ours_left[name] == (
        (situation.ours or situation.left) if situation.gpu else pods
    )


def test_both_call_the_node_drained_when_the_accelerator_pods_are_gone(accelerator_round: Round) -> None:
    assert accelerator_round.kubectl_succeeded, accelerator_round.kubectl_said
    assert accelerator_round.last.verdict is Verdict.COMPLETED


@pytest.mark.parametrize("options", OPTIONS, ids=["neither", "data", "force", "force-and-data"])
def test_the_same_pods_are_meant_and_the_same_need_leave(
    selections: dict[tuple[bool, bool], Selection], options: tuple[bool, bool]
) -> None:
    found = selections[options]
    ours: dict[str, set[str]] = defaultdict(set)
    for name, fate, reason in found.ours:
        ours[f"{fate.value} {reason}" if fate is Fate.BLOCKS else fate.value].add(name)
    leave = {
        "force": ours["Blocks without a controller (force is off)"],
        "delete-emptydir-data": ours["Blocks with emptyDir data (deleteEmptyDirData is off)"],
    }
    # Deviation: what is terminating already needs nobody's leave.
    extra = {
        "force": set() if options[0] else {"terminating-bare"},
        "delete-emptydir-data": set() if options[1] else {"terminating-emptydir"},
    }
    for flag, blocking in leave.items():
        assert found.kubectl_blocking.get(flag, set()) == blocking | extra[flag]
    assert bool(leave["force"]) is not options[0]
    assert bool(leave["delete-emptydir-data"]) is not options[1]
    assert ours[Fate.SKIP.value] == {"daemonset", "static", "gpu-daemonset"}
    if options == (True, True):
        # What the first round left of the accelerator pods on our node only is no longer on kubectl's.
        meant = (ours[Fate.EVICT.value] | ours[Fate.TERMINATING.value]) - {"gpu-finished"}
        assert found.kubectl_evicts == meant
        assert len(meant) > 30


def test_both_begin_nothing_where_a_pod_needs_leave_and_has_none(blocked: Round) -> None:
    assert not blocked.kubectl_succeeded
    assert blocked.last.verdict is Verdict.BLOCKED
    assert len(blocked.passes) == 1
    for left in (blocked.kubectl_left, blocked.ours_left):
        untouched = {name for name, words in left.items() if set(words.split()) == {"there"}}
        expected = {one.name for one in SITUATIONS if not one.deleted and not one.gpu}
        assert untouched - {one.name for one in GPU_SITUATIONS} == expected


@pytest.mark.parametrize("name", [situation.name for situation in SITUATIONS])
def test_the_same_is_left_when_time_is_up(timed: Round, name: str) -> None:
    situation = BY_NAME[name]
    assert timed.kubectl_left[name] == situation.left
    if situation.gpu:
        # The node was drained of accelerator pods before; now all pods are meant, finished ones too.
        assert timed.ours_left[name] == situation.left
        return
    assert timed.ours_left[name] == (situation.ours or situation.left)


def test_a_namespace_that_is_being_deleted_is_waited_for(timed: Round) -> None:
    assert timed.kubectl_left[ENDING.name] == timed.ours_left[ENDING.name] == "gone"


def test_a_pod_that_is_bound_after_the_first_list_is_missed_by_kubectl_and_found_by_us(timed: Round) -> None:
    assert timed.kubectl_left[LATE] == "there"
    assert timed.ours_left[LATE] == "gone"


def test_both_say_that_the_node_is_not_drained_and_name_the_same_pods(arena: Arena, timed: Round) -> None:
    assert not timed.kubectl_succeeded
    assert timed.last.verdict is Verdict.DEADLINE
    held = {one.name for one in SITUATIONS if {"there", "terminating"} & set(one.left.split())} - NEVER_LEFT
    assert timed.kubectl_failed == held
    # Deviation: kubectl does not look again, and does not see who came back.
    assert timed.ours_failed - {"tolerating"} == held
    names = {name.rpartition("/")[2] for name in timed.last.look.held_back}
    assert arena.ours.situations_of(names) == HELD_BY_BUDGETS
    assert "held back by a disruption budget" in timed.last.message
    assert "under more than one disruption budget" in timed.last.message


def test_what_comes_back_is_not_evicted_in_a_loop(arena: Arena, timed: Round) -> None:
    evicted = [name for name, _ in _evictions(arena, AGENT) if name.startswith("tolerating") and timed.passes]
    assert 2 <= len(set(evicted)) <= 8


def test_both_complete_when_nothing_stands_in_the_way(last: Round) -> None:
    assert last.kubectl_succeeded, last.kubectl_said
    assert last.last.verdict is Verdict.COMPLETED
    for left in (last.kubectl_left, last.ours_left):
        kept = {name for name, words in left.items() if set(words.split()) != {"gone"}}
        assert kept == NEVER_LEFT


def test_the_audit_log_shows_that_only_refused_pods_are_tried_again_and_not_within_five_seconds(
    arena: Arena, timed: Round
) -> None:
    began = timed.passes[0].state.started
    tried: dict[str, list[datetime]] = defaultdict(list)
    for name, when in _evictions(arena, AGENT):
        if began <= when <= began + EVERYTHING.time_limit:
            tried[name].append(when)
    assert len(tried) > 30
    again = {name for name, moments in tried.items() if len(moments) > 1}
    assert arena.ours.situations_of(again) == HELD_BY_BUDGETS
    for name in again:
        for earlier, later in itertools.pairwise(tried[name]):
            assert timedelta(seconds=5) <= later - earlier <= timedelta(seconds=15), name


def _evictions(arena: Arena, agent: str) -> list[tuple[str, datetime]]:
    """Pod and time of each eviction that a client sent, oldest first."""
    return [
        (event["objectRef"]["name"], datetime.fromisoformat(event["requestReceivedTimestamp"]))
        for event in arena.lab.audit_events()
        if event.get("objectRef", {}).get("subresource") == "eviction"
        and event["userAgent"].startswith(agent)
        and event["stage"] == "ResponseComplete"
    ]


# What has no likeness in kubectl.


WORKLOADS = ("deployments", "replicasets", "statefulsets", "replicationcontrollers", "jobs")


@pytest.fixture
def emptied(arena: Arena, last: Round) -> Arena:
    """Our node, drained and schedulable again, and nobody waits for it."""
    namespace = f"--namespace={arena.ours.namespace}"
    arena.lab.kubectl("delete", ",".join(WORKLOADS), "--all", namespace, "--wait=false")
    wait_until(lambda: arena.ours.by_situation().keys() <= NEVER_LEFT, 30, "the replacements to go")
    arena.lab.kubectl("uncordon", arena.ours.node.name)
    return arena


def _start(arena: Arena, name: str, **options: Any) -> Object:
    side = arena.ours
    place = Place(side.namespace, side.node.name, "")
    for made in managed(name, **options)(place):
        side.lab.apply(made)
    return wait_until(lambda: _running(side, name), 30, f"{name} to run")


def _running(side: Side, name: str, *, other_than: str = "") -> Object | None:
    for pod in side.by_situation().get(name, []):
        if pod["status"]["phase"] == "Running" and pod["metadata"]["uid"] != other_than:
            return pod
    return None


def test_an_eviction_under_the_uid_of_a_pod_that_was_replaced_leaves_the_replacement_alone(
    emptied: Arena,
) -> None:
    first = _start(emptied, "replaced", kind="StatefulSet", workload={"serviceName": "none"})
    metadata = first["metadata"]
    eviction = Eviction(metadata["namespace"], metadata["name"], metadata["uid"])
    emptied.pods.evict(eviction)
    second = wait_until(
        lambda: _running(emptied.ours, "replaced", other_than=metadata["uid"]), 30, "the replacement"
    )
    assert second["metadata"]["name"] == metadata["name"]
    with pytest.raises(Conflict, match="UID in"):
        emptied.pods.evict(eviction)
    assert _running(emptied.ours, "replaced", other_than=metadata["uid"]) is not None


def test_pods_are_told_before_they_are_evicted(emptied: Arena) -> None:
    pod = _start(emptied, "told", gpu=True, container={"resources": {"limits": {GPU: "1"}}})
    path = f"/api/v1/namespaces/{emptied.ours.namespace}"
    seen: list[Object] = []

    def look() -> None:
        seen.append(emptied.lab.api.get(f"{path}/pods/{pod['metadata']['name']}"))

    emptied.lab.kubectl("cordon", emptied.ours.node.name)
    policy = DrainPolicy(pre_drain=PreDrain(wait=Duration.parse("3s"), notice="save your work"))
    passes = emptied.drain(policy, after_first=look)
    assert passes[-1].verdict is Verdict.COMPLETED
    assert "deletionTimestamp" not in seen[0]["metadata"]
    done_by = datetime.fromisoformat(seen[0]["metadata"]["annotations"][NOTICE_ANNOTATION])
    ((_, when),) = [one for one in _evictions(emptied, AGENT) if one[0] == pod["metadata"]["name"]]
    assert when >= done_by - timedelta(seconds=0.5)
    events = emptied.lab.api.items(f"{path}/events?fieldSelector=reason=DrainNotice")
    assert [event["involvedObject"]["uid"] for event in events] == [pod["metadata"]["uid"]]
    assert events[0]["message"].startswith("save your work")
