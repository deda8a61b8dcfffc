"""Deployments, ReplicaSets and disruption budgets of the embedded control plane."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from simulation.cluster.kubelet_node import Timings
from simulation.cluster.matching import selects
from simulation.cluster.quantities import QuantityError, milli, scaled
from tests.unit.cluster_rig import Plugins, Rig, condition, pod, template, workload

SLOW = Timings(start=5.0, stop=1.0)


def test_a_deployment_makes_a_replica_set_whose_pods_run_on_different_nodes() -> None:
    rig = Rig(nodes=3)
    rig.create("deployments.apps", workload("Deployment", "web", replicas=3))
    (replica_set,) = rig.store.list("replicasets.apps")
    assert replica_set["metadata"]["ownerReferences"][0]["kind"] == "Deployment"
    assert replica_set["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "1"
    pods = rig.pods("Running", app="web")
    assert Counter(one["spec"]["nodeName"] for one in pods) == {"n1": 1, "n2": 1, "n3": 1}
    digest = replica_set["metadata"]["labels"]["pod-template-hash"]
    assert {one["metadata"]["labels"]["pod-template-hash"] for one in pods} == {digest}
    status = rig.get("deployments.apps", "web")["status"]
    assert (status["readyReplicas"], status["availableReplicas"], status["terminatingReplicas"]) == (3, 3, 0)
    assert "unavailableReplicas" not in status


def test_a_deleted_pod_is_replaced_while_it_still_terminates() -> None:
    rig = Rig(nodes=1)
    stubborn = template("web", annotations={"sickbay.dev/simulate-stop-seconds": "ignored"})
    rig.create("deployments.apps", workload("Deployment", "web", replicas=1, made_of=stubborn))
    (first,) = rig.names(app="web")
    rig.delete("pods", first, grace_seconds=20)
    assert len(rig.names(app="web")) == 2
    rig.advance(21)
    (second,) = rig.names(app="web")
    assert second != first


def test_a_new_template_rolls_within_its_bounds() -> None:
    rig = Rig(nodes=2, timings=SLOW)
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}}
    rig.create("deployments.apps", workload("Deployment", "web", replicas=4, strategy=strategy))
    rig.advance(10)
    rig.patch("deployments.apps", "web", {"spec": {"template": {"metadata": {"labels": {"v": "2"}}}}})
    for _ in range(60):
        live = [one for one in rig.pods(app="web") if "deletionTimestamp" not in one["metadata"]]
        ready = [one for one in live if (condition(one, "Ready") or {}).get("status") == "True"]
        assert len(live) <= 5
        assert len(ready) >= 3
        rig.advance(1)
    assert len(rig.pods("Running", app="web", v="2")) == len(rig.pods(app="web")) == 4
    old, new = sorted(
        rig.store.list("replicasets.apps"),
        key=lambda one: int(one["metadata"]["annotations"]["deployment.kubernetes.io/revision"]),
    )
    assert (old["spec"]["replicas"], new["spec"]["replicas"]) == (0, 4)


def test_recreate_starts_nothing_new_before_the_old_pods_are_gone() -> None:
    rig = Rig(nodes=1, timings=SLOW)
    slow = template("web", annotations={"sickbay.dev/simulate-stop-seconds": "3"})
    body = workload("Deployment", "web", replicas=2, strategy={"type": "Recreate"}, made_of=slow)
    rig.create("deployments.apps", body)
    rig.advance(10)
    rig.patch("deployments.apps", "web", {"spec": {"template": {"metadata": {"labels": {"v": "2"}}}}})
    rig.advance(2)
    assert rig.pods(v="2") == []
    rig.advance(10)
    assert len(rig.pods("Running", v="2")) == len(rig.pods(app="web")) == 2


def test_scaling_down_takes_the_pod_that_is_not_ready() -> None:
    rig = Rig(nodes=1, resources={"cpu": "2", "memory": "8Gi", "pods": "110"})
    rig.create(
        "replicasets.apps", workload("ReplicaSet", "web", replicas=3, made_of=template("web", cpu="1"))
    )
    (pending,) = rig.names("Pending", app="web")
    rig.patch("replicasets.apps", "web", {"spec": {"replicas": 2}})
    assert pending not in rig.names(app="web")
    assert len(rig.names("Running", app="web")) == 2


def test_pods_that_fail_admission_stay_and_are_replaced_at_once() -> None:
    plugins = Plugins(1)
    rig = Rig()
    rig.add_node("n1", plugins=plugins)
    plugins.connected = False
    rig.plane.kubelets.devices_changed("n1")
    rig.create("deployments.apps", workload("Deployment", "web", replicas=1, made_of=template("web", gpus=1)))
    failed = len(rig.pods("Failed", app="web"))
    assert failed == 2
    rig.advance(11)
    assert len(rig.pods("Pending", app="web")) == 1
    plugins.connected = True
    rig.advance(11)
    assert len(rig.pods("Running", app="web")) == 1
    assert len(rig.pods("Failed", app="web")) >= failed


def test_a_deployment_whose_pods_fit_nowhere_says_so_after_its_deadline() -> None:
    rig = Rig(nodes=1)
    body = workload(
        "Deployment", "web", replicas=1, made_of=template("web", cpu="1000"), progressDeadlineSeconds=30
    )
    rig.create("deployments.apps", body)
    rig.advance(31)
    found = rig.condition("deployments.apps", "web", "Progressing")
    assert found is not None
    assert (found["status"], found["reason"]) == ("False", "ProgressDeadlineExceeded")
    available = rig.condition("deployments.apps", "web", "Available")
    assert available is not None and available["reason"] == "MinimumReplicasUnavailable"


def test_min_ready_seconds_keep_a_pod_from_being_available() -> None:
    rig = Rig(nodes=1)
    rig.create("replicasets.apps", workload("ReplicaSet", "web", replicas=1, minReadySeconds=10))
    status = rig.get("replicasets.apps", "web")["status"]
    assert (status["readyReplicas"], status.get("availableReplicas")) == (1, None)
    rig.advance(10)
    assert rig.get("replicasets.apps", "web")["status"]["availableReplicas"] == 1


def test_old_replica_sets_go_beyond_the_history() -> None:
    rig = Rig(nodes=1)
    rig.create("deployments.apps", workload("Deployment", "web", replicas=1, revisionHistoryLimit=1))
    for version in range(4):
        change = {"spec": {"template": {"metadata": {"labels": {"v": str(version)}}}}}
        rig.patch("deployments.apps", "web", change)
    assert len(rig.store.list("replicasets.apps")) == 2


def test_a_value_that_cannot_be_read_stops_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(nodes=1)
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "lots"}}
    rig.create("deployments.apps", workload("Deployment", "bad", replicas=1, strategy=strategy))
    rig.create("deployments.apps", workload("Deployment", "web", replicas=1))
    rig.create("pods", pod("odd", cpu="much", nodeName="n1"))
    rig.advance(1)
    assert len(rig.pods("Running", app="web")) == 1
    assert rig.pods(app="bad") == []
    assert "'lots' is neither a number nor a percentage" in caplog.text
    assert rig.get("pods", "odd")["status"]["phase"] == "Failed"


def budget(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "b", "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, **spec},
    }


@pytest.mark.parametrize(
    ("spec", "desired", "allowed"),
    [
        ({"minAvailable": 2}, 2, 5),
        ({"minAvailable": "50%"}, 4, 3),
        ({"maxUnavailable": "50%"}, 3, 4),
        ({"maxUnavailable": 1}, 6, 1),
        ({"maxUnavailable": 0}, 7, 0),
        ({"minAvailable": "100%"}, 7, 0),
        ({"minAvailable": 9}, 9, 0),
    ],
)
def test_a_budget_rounds_percentages_up(spec: dict[str, Any], desired: int, allowed: int) -> None:
    rig = Rig(nodes=1)
    rig.create("deployments.apps", workload("Deployment", "web", replicas=7))
    rig.create("poddisruptionbudgets.policy", budget(**spec))
    status = rig.get("poddisruptionbudgets.policy", "b")["status"]
    assert (status["expectedPods"], status["currentHealthy"]) == (7, 7)
    assert (status["desiredHealthy"], status["disruptionsAllowed"]) == (desired, allowed)
    assert status["observedGeneration"] == 1
    found = condition({"status": status}, "DisruptionAllowed")
    assert found is not None
    assert found["reason"] == ("SufficientPods" if allowed else "InsufficientPods")


def test_a_budget_over_what_has_no_scale_allows_nothing() -> None:
    rig = Rig(nodes=2)
    rig.create("daemonsets.apps", workload("DaemonSet", "web"))
    rig.create("poddisruptionbudgets.policy", budget(maxUnavailable=1))
    status = rig.get("poddisruptionbudgets.policy", "b")["status"]
    assert status["disruptionsAllowed"] == 0
    found = condition({"status": status}, "DisruptionAllowed")
    assert found is not None and found["reason"] == "SyncFailed"
    assert status.get("observedGeneration", 0) == 0
    assert "daemonsets.apps does not implement the scale subresource" in found["message"]


def test_an_eviction_is_forgotten_when_no_deletion_follows_within_two_minutes() -> None:
    rig = Rig(nodes=1)
    rig.create("deployments.apps", workload("Deployment", "web", replicas=2))
    rig.create("poddisruptionbudgets.policy", budget(minAvailable=1))
    name = rig.names(app="web")[0]
    status = {"status": {"disruptedPods": {name: "2026-01-01T00:00:00Z"}, "disruptionsAllowed": 0}}
    rig.patch("poddisruptionbudgets.policy", "b", status, subresource="status")
    rig.patch("pods", name, {"metadata": {"labels": {"touched": "yes"}}})
    assert rig.get("poddisruptionbudgets.policy", "b")["status"]["currentHealthy"] == 1
    rig.advance(121)
    found = rig.get("poddisruptionbudgets.policy", "b")["status"]
    assert (found["currentHealthy"], found["disruptionsAllowed"]) == (2, 1)
    assert "disruptedPods" not in found


def test_a_budget_of_bare_pods_counts_them_only_with_a_number() -> None:
    rig = Rig(nodes=1)
    rig.create("pods", pod("web"))
    rig.create("poddisruptionbudgets.policy", budget(minAvailable=1))
    assert rig.get("poddisruptionbudgets.policy", "b")["status"]["expectedPods"] == 1
    rig.patch("poddisruptionbudgets.policy", "b", {"spec": {"minAvailable": "50%"}})
    status = rig.get("poddisruptionbudgets.policy", "b")["status"]
    assert (status["expectedPods"], status["currentHealthy"], status["disruptionsAllowed"]) == (0, 1, 0)
    assert status["observedGeneration"] == 2


@pytest.mark.parametrize(
    ("text", "thousandths"),
    [("2", 2000), ("500m", 500), ("1.5", 1500), ("1Ki", 1_024_000), ("1e3", 1_000_000), ("1n", 1)],
)
def test_a_quantity_is_read_in_thousandths_rounded_up(text: str, thousandths: int) -> None:
    assert milli(text) == thousandths


@pytest.mark.parametrize("text", ["", "x", "1 Gi", "1KiB", "--1"])
def test_what_is_no_quantity_is_refused_by_name(text: str) -> None:
    with pytest.raises(QuantityError, match="not a quantity"):
        milli(text)


def test_a_share_that_is_neither_number_nor_percentage_is_refused() -> None:
    with pytest.raises(QuantityError, match="neither a number nor a percentage"):
        scaled("half", 3, round_up=True)


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        (None, False),
        ({}, True),
        ({"matchLabels": {"a": "1"}}, True),
        ({"matchLabels": {"a": "2"}}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, True),
        ({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["1"]}]}, True),
        ({"matchExpressions": [{"key": "b", "operator": "Exists"}]}, False),
        ({"matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["0"]}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "Near", "values": ["1"]}]}, False),
    ],
)
def test_a_selector_selects_as_kubernetes_says(selector: dict[str, Any] | None, matches: bool) -> None:
    assert selects(selector, {"a": "1"}) is matches
