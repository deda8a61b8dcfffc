"""Evictions and bindings at the embedded API, in the order in which the real server looks at things."""

from __future__ import annotations

from typing import Any

import pytest

from simulation.cluster import pods
from simulation.cluster.interface import Object
from simulation.cluster.records import Writer
from simulation.cluster.store import ClusterStore
from tests.unit.embedded_rig import OTHER_UID, budget, new_store, pod, refusal, running

BUDGETS = "poddisruptionbudgets.policy"
APP = {"app": "a"}


@pytest.fixture
def store() -> ClusterStore:
    return new_store()


def evict(store: ClusterStore, name: str, **preconditions: str) -> None:
    body = {"metadata": {"name": name}, "deleteOptions": {"preconditions": preconditions}}
    pods.evict(store, "default", name, body, writer=Writer())


def get(store: ClusterStore, name: str) -> Object:
    return store.get("pods", name, namespace="default")


def status_of(store: ClusterStore, name: str) -> Object:
    return dict(store.get(BUDGETS, name, namespace="default")["status"])


def test_a_pod_without_a_budget_is_told_why_and_deleted_gracefully(store: ClusterStore) -> None:
    running(store, "p", labels=APP)
    evict(store, "p")
    evicted = get(store, "p")
    conditions = {item["type"]: item for item in evicted["status"]["conditions"]}
    assert conditions["DisruptionTarget"]["reason"] == "EvictionByEvictionAPI"
    assert evicted["metadata"]["deletionGracePeriodSeconds"] == 30


def test_a_budget_is_charged_and_then_used_up(store: ClusterStore) -> None:
    for name in ("p", "q"):
        running(store, name, labels=APP)
    budget(store, "b", app="a", disruptionsAllowed=1)
    evict(store, "p")
    charged = status_of(store, "b")
    assert charged["disruptionsAllowed"] == 0
    assert list(charged["disruptedPods"]) == ["p"]
    assert charged["conditions"][0]["reason"] == "InsufficientPods"
    error = refusal(lambda: evict(store, "q"))
    assert (error.code, error.details["causes"][0]["reason"]) == (429, "DisruptionBudget")
    assert "retryAfterSeconds" not in error.details
    assert error.details["causes"][0]["message"] == (
        "The disruption budget b needs 1 healthy pods and has 1 currently"
    )
    assert "deletionTimestamp" not in get(store, "q")["metadata"]


def test_a_budget_whose_status_is_of_an_older_self_says_when_to_come_again(store: ClusterStore) -> None:
    running(store, "p", labels=APP)
    budget(store, "b", app="a", disruptionsAllowed=1, observedGeneration=0)
    error = refusal(lambda: evict(store, "p"))
    assert (error.code, error.details["retryAfterSeconds"]) == (429, 10)


def test_two_budgets_are_500_and_nothing_is_charged(store: ClusterStore) -> None:
    running(store, "p", labels=APP)
    for name in ("b", "c"):
        budget(store, name, app="a", disruptionsAllowed=1)
    error = refusal(lambda: evict(store, "p"))
    assert (error.code, error.reason) == (500, "")
    assert "more than one PodDisruptionBudget" in error.message
    assert [status_of(store, name)["disruptionsAllowed"] for name in ("b", "c")] == [1, 1]


def test_the_budget_is_charged_before_the_uid_is_asked(store: ClusterStore) -> None:
    running(store, "p", labels=APP)
    budget(store, "b", app="a", disruptionsAllowed=1)
    error = refusal(lambda: evict(store, "p", uid=OTHER_UID))
    assert (error.code, error.reason) == (409, "Conflict")
    assert status_of(store, "b")["disruptionsAllowed"] == 0
    assert "deletionTimestamp" not in get(store, "p")["metadata"]


@pytest.mark.parametrize("phase", ["Pending", "Succeeded", "Failed"])
def test_a_pod_that_does_not_run_needs_no_budget(store: ClusterStore, phase: str) -> None:
    store.create("pods", pod("p", labels=APP))
    store.patch("pods", "p", {"status": {"phase": phase}}, namespace="default", subresource="status")
    budget(store, "b", app="a", disruptionsAllowed=0)
    evict(store, "p")
    left = [item["metadata"]["name"] for item in store.list("pods")]
    assert left == (["p"] if phase == "Pending" else [])


def test_a_pod_that_is_terminating_is_evicted_again_with_success_and_no_charge(store: ClusterStore) -> None:
    running(store, "p", labels=APP)
    budget(store, "b", app="a", disruptionsAllowed=1)
    evict(store, "p")
    evict(store, "p")
    assert status_of(store, "b")["disruptionsAllowed"] == 0


@pytest.mark.parametrize(
    ("policy", "healthy", "wanted", "goes"),
    [
        ("IfHealthyBudget", 2, 1, True),
        ("IfHealthyBudget", 0, 1, False),
        ("IfHealthyBudget", 0, 0, False),
        ("AlwaysAllow", 0, 1, True),
    ],
)
def test_an_unready_pod_goes_where_its_budgets_policy_lets_it_and_is_not_charged(
    store: ClusterStore, policy: str, healthy: int, wanted: int, goes: bool
) -> None:
    running(store, "p", ready=False, labels=APP)
    budget(store, "b", app="a", disruptionsAllowed=0, currentHealthy=healthy, desiredHealthy=wanted)
    patch = {"spec": {"unhealthyPodEvictionPolicy": policy}}
    generation = store.patch(BUDGETS, "b", patch, namespace="default")["metadata"]["generation"]
    observed = {"status": {"observedGeneration": generation}}
    store.patch(BUDGETS, "b", observed, namespace="default", subresource="status")
    if goes:
        evict(store, "p")
    else:
        assert refusal(lambda: evict(store, "p")).code == 429
    assert ("deletionTimestamp" in get(store, "p")["metadata"]) is goes


def test_a_budget_without_a_selector_guards_nobody_and_an_empty_one_everybody(store: ClusterStore) -> None:
    for name, labels in (("p", APP), ("bare", {})):
        running(store, name, labels=labels)
    store.create(BUDGETS, {"metadata": {"name": "none"}, "spec": {"minAvailable": 1}})
    store.create(BUDGETS, {"metadata": {"name": "all"}, "spec": {"minAvailable": 1, "selector": {}}})
    for name in ("p", "bare"):
        assert refusal(lambda name=name: evict(store, name)).code == 429  # type: ignore[misc]
    store.delete(BUDGETS, "all", namespace="default")
    evict(store, "bare")


def test_nothing_is_evicted_from_a_namespace_that_is_being_deleted(store: ClusterStore) -> None:
    store.create("namespaces", {"metadata": {"name": "team"}})
    store.create("pods", pod("p"), namespace="team")
    store.delete("namespaces", "team")
    body = {"metadata": {"name": "p"}}
    error = refusal(lambda: pods.evict(store, "team", "p", body, writer=Writer()))
    assert (error.code, error.details["causes"][0]["reason"]) == (403, "NamespaceTerminating")


def test_the_name_in_the_body_must_be_that_of_the_path(store: ClusterStore) -> None:
    running(store, "p")
    body = {"metadata": {"name": "q"}}
    assert refusal(lambda: pods.evict(store, "default", "p", body, writer=Writer())).code == 400
    assert refusal(lambda: pods.bind(store, "default", "p", body, writer=Writer())).code == 400


def bind(store: ClusterStore, name: str, node: str, **metadata: Any) -> None:
    body = {"metadata": {"name": name, **metadata}, "target": {"kind": "Node", "name": node}}
    pods.bind(store, "default", name, body, writer=Writer())


def test_a_pod_is_bound_once(store: ClusterStore) -> None:
    store.create("pods", pod("p", node=""))
    assert refusal(lambda: bind(store, "p", "n1", uid=OTHER_UID)).code == 409
    bind(store, "p", "n1", annotations={"a": "b"})
    bound = get(store, "p")
    assert bound["spec"]["nodeName"] == "n1"
    assert bound["metadata"]["annotations"] == {"a": "b"}
    assert bound["status"]["conditions"][0]["type"] == "PodScheduled"
    assert refusal(lambda: bind(store, "p", "n2")).code == 409


def test_a_pod_that_is_being_deleted_is_not_bound(store: ClusterStore) -> None:
    store.create("pods", pod("p", node="", finalizers=["a.b/c"]))
    store.delete("pods", "p", namespace="default")
    assert "is being deleted" in refusal(lambda: bind(store, "p", "n1")).message
