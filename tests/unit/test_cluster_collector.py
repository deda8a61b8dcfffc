"""Garbage collection of the embedded control plane, and what becomes of it all under any sequence of changes."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.clock import ManualClock
from simulation.cluster.control_plane import ControlPlane
from simulation.cluster.interface import StoreError
from simulation.cluster.pods import evict
from simulation.cluster.records import SIMULATION
from simulation.cluster.store import ClusterStore
from tests.unit.cluster_rig import Object, Plugins, Rig, condition, job, pod, template, workload


def config(name: str, *owners: Object, block: bool = False) -> Object:
    references = [
        {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
            **({"blockOwnerDeletion": True} if block else {}),
        }
        for owner in owners
    ]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default", "ownerReferences": references},
    }


def configs(rig: Rig) -> list[str]:
    return [one["metadata"]["name"] for one in rig.store.list("configmaps")]


def test_what_is_owned_goes_after_its_owner_all_the_way_down() -> None:
    rig = Rig(nodes=1)
    rig.create("deployments.apps", workload("Deployment", "web", replicas=2))
    rig.delete("deployments.apps", "web")
    assert rig.store.list("replicasets.apps") == []
    rig.advance(2)
    assert rig.pods() == []


def test_in_the_foreground_the_owner_goes_last() -> None:
    rig = Rig(nodes=1)
    slow = template("web", annotations={"sickbay.dev/simulate-stop-seconds": "5"})
    rig.create("deployments.apps", workload("Deployment", "web", replicas=1, made_of=slow))
    rig.delete("deployments.apps", "web", propagation="Foreground")
    rig.advance(2)
    owner = rig.get("deployments.apps", "web")["metadata"]
    assert owner["finalizers"] == ["foregroundDeletion"]
    assert len(rig.pods()) == 1
    rig.advance(5)
    assert rig.pods() == []
    assert rig.store.list("deployments.apps") == []


def test_a_dependent_that_blocks_nothing_does_not_hold_its_owner() -> None:
    rig = Rig()
    owner = rig.create("configmaps", config("owner"))
    body = config("child", owner)
    body["metadata"]["finalizers"] = ["example.com/held"]
    rig.create("configmaps", body)
    rig.delete("configmaps", "owner", propagation="Foreground")
    assert configs(rig) == ["child"]


def test_orphans_forget_their_owner_and_stay() -> None:
    rig = Rig(nodes=1)
    rig.create("replicasets.apps", workload("ReplicaSet", "web", replicas=2))
    rig.delete("replicasets.apps", "web", propagation="Orphan")
    assert rig.store.list("replicasets.apps") == []
    rig.advance(60)
    assert len(rig.pods("Running")) == 2
    assert all("ownerReferences" not in one["metadata"] for one in rig.pods())


def test_an_object_stays_while_one_of_its_owners_is_there() -> None:
    rig = Rig()
    first, second = (rig.create("configmaps", config(name)) for name in ("first", "second"))
    rig.create("configmaps", config("child", first, second))
    rig.delete("configmaps", "first")
    (left,) = rig.get("configmaps", "child")["metadata"]["ownerReferences"]
    assert left["name"] == "second"
    rig.delete("configmaps", "second")
    assert configs(rig) == []


def test_an_owner_that_never_was_takes_its_dependent_with_it() -> None:
    rig = Rig()
    owner = rig.create("configmaps", config("owner"))
    other = {**owner, "metadata": {**owner["metadata"], "uid": "00000000-0000-4000-8000-000000000000"}}
    rig.create("configmaps", config("child", other))
    assert configs(rig) == ["owner"]


def test_an_owner_of_a_kind_that_nobody_knows_protects_its_dependent() -> None:
    rig = Rig()
    owner = {"apiVersion": "example.com/v1", "kind": "Unknown", "metadata": {"name": "x", "uid": "u"}}
    rig.create("configmaps", config("child", owner))
    rig.advance(60)
    assert configs(rig) == ["child"]


def test_what_a_node_owns_goes_with_it_and_its_pods_go_after_the_quarantine() -> None:
    rig = Rig(nodes=1)
    rig.create("pods", pod())
    rig.store.create("leases.coordination.k8s.io", lease("other"))
    rig.delete("nodes", "n1")
    names = [one["metadata"]["name"] for one in rig.store.list("leases.coordination.k8s.io")]
    assert names == ["other"]
    rig.advance(39)
    assert rig.names() == ["p"]
    rig.advance(2)
    assert rig.names() == []


def lease(name: str) -> Object:
    metadata = {"name": name, "namespace": "kube-node-lease"}
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": {}}


def test_what_was_there_before_the_control_plane_is_collected_too() -> None:
    clock = ManualClock()
    store = ClusterStore(clock=clock)
    owner = store.create("configmaps", config("owner"))
    store.create("configmaps", config("child", owner))
    store.delete("configmaps", "owner", namespace="default")
    assert len(store.list("configmaps")) == 1
    ControlPlane(store, clock=clock).settle()
    assert store.list("configmaps") == []


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            (
                "delete",
                "kill",
                "evict",
                "evict",
                "scale",
                "roll",
                "cordon",
                "uncordon",
                "drop node",
                "reboot",
                "add node",
                "unplug",
                "plug",
                "cut",
                "mend",
                "finish",
                "wait",
            )
        ),
        st.integers(min_value=0, max_value=7),
    ),
    max_size=14,
)


class _Fleet:
    """Nodes with two GPUs each, a Deployment and a DaemonSet, and what may happen to them."""

    def __init__(self) -> None:
        self.rig = Rig()
        self.plugins: dict[str, Plugins] = {}
        self.added = 0
        for _ in range(3):
            self.add()
        self.rig.create(
            "deployments.apps", workload("Deployment", "web", replicas=3, made_of=template("web", gpus=1))
        )
        self.rig.create("daemonsets.apps", workload("DaemonSet", "ds"))
        timed = template("j", annotations={"sickbay.dev/simulate-seconds": "30"}, restartPolicy="Never")
        self.rig.create("jobs.batch", job("j", made_of=timed, parallelism=2, completions=3))
        budget = {
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"minAvailable": "50%", "selector": {"matchLabels": {"app": "web"}}},
        }
        self.rig.create("poddisruptionbudgets.policy", budget)

    def add(self) -> None:
        self.added += 1
        name = f"n{self.added}"
        self.plugins[name] = Plugins(2)
        self.rig.add_node(name, plugins=self.plugins[name])

    def do(self, action: str, number: int) -> None:
        rig = self.rig
        nodes = [one["metadata"]["name"] for one in rig.store.list("nodes")]
        pods = rig.names()
        node = nodes[number % len(nodes)] if nodes else ""
        match action:
            case "delete" | "kill" if pods:
                grace = 0 if action == "kill" else None
                rig.delete("pods", pods[number % len(pods)], grace_seconds=grace)
            case "evict" if pods:
                self.evict(pods[number % len(pods)])
            case "scale":
                rig.patch("deployments.apps", "web", {"spec": {"replicas": number}})
            case "roll":
                for resource, name in (("deployments.apps", "web"), ("daemonsets.apps", "ds")):
                    labels = {"metadata": {"labels": {"v": str(number)}}}
                    rig.patch(resource, name, {"spec": {"template": labels}})
            case "cordon" | "uncordon" if node:
                rig.patch("nodes", node, {"spec": {"unschedulable": action == "cordon" or None}})
            case "drop node" if node:
                rig.plane.kubelets.remove_node(node)
                rig.delete("nodes", node)
            case "reboot" if node:
                rig.plane.kubelets.reboot(node, seconds=float(number * 20))
            case "add node" if len(nodes) < 5:
                self.add()
            case "unplug" | "plug" if node:
                self.plugins[node].connected = action == "plug"
                rig.plane.kubelets.devices_changed(node)
            case "cut" | "mend" if node:
                (rig.plane.kubelets.disconnect if action == "cut" else rig.plane.kubelets.reconnect)(node)
            case "wait":
                rig.advance(number * 10)
            case _:
                rig.advance(0.5)
        rig.advance(0.5)

    def evict(self, name: str) -> None:
        """Evict a pod, unless that would leave fewer healthy ones than its budget wants."""
        allowed = self.rig.get("poddisruptionbudgets.policy", "web")["status"]["disruptionsAllowed"]
        target = self.rig.get("pods", name)
        guarded = target["metadata"]["labels"]["app"] == "web" and target["status"]["phase"] == "Running"
        live = "deletionTimestamp" not in target["metadata"]
        try:
            evict(self.rig.store, "default", name, {"metadata": {"name": name}}, writer=SIMULATION)
        except StoreError as error:
            assert error.code == 429
        else:
            healthy = (condition(target, "Ready") or {}).get("status") == "True"
            assert allowed > 0 or not (guarded and live and healthy)

    def calm(self) -> None:
        """Everything that is broken but not cordoned is mended, and time passes."""
        for node in self.rig.store.list("nodes"):
            name = node["metadata"]["name"]
            self.plugins[name].connected = True
            self.rig.plane.kubelets.reconnect(name)
        self.rig.advance(900)


@settings(max_examples=25, deadline=None)
@given(actions=ACTIONS)
def test_whatever_happens_it_settles_to_what_is_wanted_or_says_why_not(
    actions: list[tuple[str, int]],
) -> None:
    fleet = _Fleet()
    for action, number in actions:
        fleet.do(action, number)
    fleet.calm()
    rig = fleet.rig
    wanted = rig.get("deployments.apps", "web")["spec"]["replicas"]
    live = [one for one in rig.pods(app="web") if one["status"]["phase"] in ("Pending", "Running")]
    stuck = rig.condition("deployments.apps", "web", "Progressing") or {}
    # A roll that finds no room for its surge ends as the real one does: late, and it says so.
    assert len(live) == wanted or stuck["reason"] == "ProgressDeadlineExceeded"
    for one in live:
        said = condition(one, "PodScheduled") or {}
        running = one["status"]["phase"] == "Running" and (condition(one, "Ready") or {})["status"] == "True"
        assert running or (said["status"], said["reason"]) == ("False", "Unschedulable")
    kinds = {one["type"] for one in rig.get("jobs.batch", "j")["status"].get("conditions") or ()}
    waiting = [condition(one, "PodScheduled") or {} for one in rig.pods("Pending", app="j")]
    assert kinds & {"Complete", "Failed"} or {one["reason"] for one in waiting} == {"Unschedulable"}
    nodes = sorted(one["metadata"]["name"] for one in rig.store.list("nodes"))
    daemons = [one for one in rig.pods(app="ds") if one["status"]["phase"] == "Running"]
    assert sorted(one["spec"]["nodeName"] for one in daemons) == nodes
    _check_rooms(rig)


def _check_rooms(rig: Rig) -> None:
    """No device is held twice, and nothing that is not in the API holds one."""
    uids = {one["metadata"]["uid"] for one in rig.pods()}
    for node in rig.store.list("nodes"):
        holdings = rig.plane.kubelets.holdings(node["metadata"]["name"])
        devices = [device for held in holdings for ids in held.devices.values() for device in ids]
        assert len(devices) == len(set(devices))
        assert {held.pod["metadata"]["uid"] for held in holdings} <= uids


@settings(max_examples=15, deadline=None)
@given(actions=ACTIONS)
def test_the_view_is_what_the_store_has(actions: list[tuple[str, int]]) -> None:
    fleet = _Fleet()
    for action, number in actions:
        fleet.do(action, number)
    view, store = fleet.rig.plane.view, fleet.rig.store
    for resource in ("pods", "nodes", "replicasets.apps", "daemonsets.apps"):
        known: dict[str, Any] = {one["metadata"]["uid"]: one for one in view.all(resource)}
        there = {one["metadata"]["uid"]: one for one in store.list(resource)}
        assert {uid: one["metadata"]["resourceVersion"] for uid, one in known.items()} == {
            uid: one["metadata"]["resourceVersion"] for uid, one in there.items()
        }
    bound = {(one["metadata"]["namespace"], one["metadata"]["name"]) for one in store.list("pods")}
    by_node = {
        key
        for name in {one["spec"].get("nodeName", "") for one in store.list("pods")}
        for key in ((p["metadata"]["namespace"], p["metadata"]["name"]) for p in view.pods_on(name))
    }
    assert by_node == bound


def test_a_refusal_of_the_store_is_no_crash_of_the_control_plane() -> None:
    rig = Rig(nodes=1)
    refused: list[int] = []
    create = rig.store.create

    def failing(resource: str, body: Object, *, namespace: str = "") -> Object:
        if resource == "pods" and len(refused) < 3:
            refused.append(1)
            raise StoreError(500, "InternalError", "the store is not well")
        return create(resource, body, namespace=namespace)

    rig.store.create = failing  # type: ignore[method-assign]
    rig.store.create("replicasets.apps", workload("ReplicaSet", "web", replicas=2))
    rig.advance(2)
    assert len(refused) == 3
    assert len(rig.pods("Running")) == 2
