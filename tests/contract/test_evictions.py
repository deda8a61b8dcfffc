"""Evictions: which pods a budget guards, what a refusal says, and that an eviction holds for one UID.

The budget's status is what the disruption controller would write; here the test does. Source:
pkg/registry/core/pod/storage/eviction.go of Kubernetes 1.37.
"""

from __future__ import annotations

import re
import threading
from dataclasses import replace

import pytest

from runtime.api_errors import ApiError, Conflict, Forbidden, Invalid, NotFound, TooManyRequests, Unavailable
from tests.contract.objects import config_map, pod, running_pod
from tests.contract.world import NAMESPACES, Object, Told, World, refused
from tests.lab.processes import wait_until

BUDGET = Told(TooManyRequests, 429, "TooManyRequests", frozenset({("DisruptionBudget", "")}))


def evict(world: World, target: Object, *, uid: str = "", namespace: str = "") -> None:
    """As the drain does it. Raises ApiError."""
    name = target["metadata"]["name"]
    where = namespace or world.namespace
    document = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name, "namespace": where},
        "deleteOptions": {"preconditions": {"uid": uid or target["metadata"]["uid"]}},
    }
    world.create(f"{world.collection('pods', namespace=where)}/{name}/eviction", document)


def budget(
    world: World, labels: dict[str, str], *, allowed: int, healthy: int = 1, desired: int = 1, **spec: str
) -> str:
    """A budget over the pods with these labels, with the status of a controller that is up to date; its path."""
    name = world.fresh("budget")
    path = f"{world.budgets}/{name}"
    made = world.create(
        world.budgets,
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": name},
            "spec": {"minAvailable": desired, "selector": {"matchLabels": labels}, **spec},
        },
    )
    assert made["metadata"]["generation"] == 1
    status = {
        "observedGeneration": 1,
        "disruptionsAllowed": allowed,
        "currentHealthy": healthy,
        "desiredHealthy": desired,
        "expectedPods": healthy,
    }
    world.merge(f"{path}/status", {"status": status})
    return path


@pytest.fixture
def app(world: World) -> dict[str, str]:
    """Labels that nothing else has."""
    return {"app": world.fresh("app")}


def terminating(world: World, target: Object) -> bool:
    return "deletionTimestamp" in world.get(f"{world.pods}/{target['metadata']['name']}")["metadata"]


def test_an_evicted_pod_is_deleted_with_its_own_grace_and_says_why(world: World) -> None:
    target = running_pod(world)
    path = f"{world.pods}/{target['metadata']['name']}"
    document = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": target["metadata"]["name"], "namespace": world.namespace},
    }
    answer = world.wire.ask("POST", f"{path}/eviction", document)
    assert answer.status == 201
    assert (answer.object["kind"], answer.object["status"]) == ("Status", "Success")
    after = world.get(path)
    assert after["metadata"]["deletionGracePeriodSeconds"] == 30
    condition = {item["type"]: item for item in after["status"]["conditions"]}["DisruptionTarget"]
    assert (condition["status"], condition["reason"]) == ("True", "EvictionByEvictionAPI")


def test_a_budget_that_is_used_up_refuses_with_its_cause(world: World, app: dict[str, str]) -> None:
    target = running_pod(world, labels=app)
    name = budget(world, app, allowed=0).rpartition("/")[2]
    with refused(BUDGET) as caught:
        evict(world, target)
    error = caught.value
    assert isinstance(error, TooManyRequests) and error.is_disruption_budget
    assert name in error.causes[0].message and error.retry_after is None
    assert not terminating(world, target)


def test_a_budget_lets_as_many_go_as_it_allows_and_counts_them(world: World, app: dict[str, str]) -> None:
    first, second = running_pod(world, labels=app), running_pod(world, labels=app)
    path = budget(world, app, allowed=1, healthy=2)
    evict(world, first)
    status = world.get(path)["status"]
    assert status["disruptionsAllowed"] == 0
    assert list(status["disruptedPods"]) == [first["metadata"]["name"]]
    with refused(BUDGET):
        evict(world, second)
    assert terminating(world, first) and not terminating(world, second)


def test_evictions_at_the_same_moment_do_not_overdraw_a_budget(world: World, app: dict[str, str]) -> None:
    targets = [running_pod(world, labels=app) for _ in range(6)]
    path = budget(world, app, allowed=2, healthy=6, desired=4)
    refusals: list[ApiError] = []

    def ask(target: Object) -> None:
        try:
            evict(world, target)
        except ApiError as error:
            refusals.append(error)

    threads = [threading.Thread(target=ask, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(terminating(world, target) for target in targets) == 2
    assert {(type(error), error.status) for error in refusals} == {(TooManyRequests, 429)}
    assert len(refusals) == 4
    assert world.get(path)["status"]["disruptionsAllowed"] == 0


def test_a_budget_that_its_controller_has_not_seen_asks_for_patience(
    world: World, app: dict[str, str]
) -> None:
    target = running_pod(world, labels=app)
    path = budget(world, app, allowed=1)
    changed = world.merge(path, {"spec": {"minAvailable": 0}})
    assert changed["metadata"]["generation"] == 2
    with refused(BUDGET) as caught:
        evict(world, target)
    assert caught.value.retry_after == 10.0


def test_a_pod_that_is_already_terminating_is_not_counted(world: World, app: dict[str, str]) -> None:
    target = running_pod(world, labels=app)
    budget(world, app, allowed=0)
    world.delete(f"{world.pods}/{target['metadata']['name']}")
    before = world.get(f"{world.pods}/{target['metadata']['name']}")
    evict(world, target)
    after = world.get(f"{world.pods}/{target['metadata']['name']}")
    assert after["metadata"]["deletionTimestamp"] == before["metadata"]["deletionTimestamp"]


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended_goes_whatever_its_budget(world: World, app: dict[str, str], phase: str) -> None:
    target = running_pod(world, labels=app)
    path = f"{world.pods}/{target['metadata']['name']}"
    world.merge(f"{path}/status", {"status": {"phase": phase}})
    budget(world, app, allowed=0)
    evict(world, target)
    assert not world.exists(path)


def test_a_pod_that_never_started_goes_whatever_its_budget(world: World, app: dict[str, str]) -> None:
    name = world.fresh("pending")
    target = world.create(world.pods, pod(name, labels=app))
    budget(world, app, allowed=0)
    evict(world, target)
    assert not world.exists(f"{world.pods}/{name}")


@pytest.mark.parametrize(
    ("healthy", "desired", "policy", "goes"),
    [
        (1, 1, {}, True),
        (0, 1, {}, False),
        (0, 0, {}, False),
        (0, 1, {"unhealthyPodEvictionPolicy": "IfHealthyBudget"}, False),
        (0, 1, {"unhealthyPodEvictionPolicy": "AlwaysAllow"}, True),
    ],
)
def test_a_pod_that_is_not_ready_goes_where_enough_others_are_or_the_budget_says_so(
    world: World, app: dict[str, str], healthy: int, desired: int, policy: dict[str, str], goes: bool
) -> None:
    target = running_pod(world, labels=app, ready=False)
    budget(world, app, allowed=0, healthy=healthy, desired=desired, **policy)
    if goes:
        evict(world, target)
    else:
        with refused(BUDGET):
            evict(world, target)
    assert terminating(world, target) is goes


def test_two_budgets_over_one_pod_are_a_500_that_only_its_message_tells_apart(
    world: World, app: dict[str, str]
) -> None:
    target = running_pod(world, labels=app)
    for _ in range(2):
        budget(world, app, allowed=1)
    with refused(Told(Unavailable, 500, "")) as caught:
        evict(world, target)
    assert "more than one PodDisruptionBudget" in caught.value.message
    assert not terminating(world, target)


def test_budgets_of_other_pods_and_namespaces_do_not_count(world: World, app: dict[str, str]) -> None:
    target = running_pod(world, labels=app)
    budget(world, {"app": "another"}, allowed=0)
    budget(world, {**app, "tier": "another"}, allowed=0)
    evict(world, target)
    assert terminating(world, target)


def test_an_empty_selector_guards_every_pod_of_its_namespace(world: World) -> None:
    where = world.fresh("everything")
    world.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": where}})
    other = replace(world, namespace=where)
    target = running_pod(other) if world.name == "embedded" else _with_account(other)
    budget(other, {}, allowed=0)
    with refused(BUDGET):
        evict(other, target)


def test_an_eviction_holds_for_one_uid(world: World) -> None:
    target = running_pod(world)
    with pytest.raises(Conflict) as caught:
        evict(world, target, uid="another")
    error = caught.value
    assert (error.status, error.reason, error.already_exists) == (409, "Conflict", False)
    assert re.search(r"UID in .*another", error.message)
    assert not terminating(world, target)


def test_a_pod_that_is_gone_is_not_found(world: World) -> None:
    with refused(Told(NotFound, 404, "NotFound")):
        evict(world, {"metadata": {"name": "no-such", "uid": "u"}})


def test_an_eviction_under_another_name_is_a_bad_request(world: World) -> None:
    target = running_pod(world)
    document = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "another"}}
    with refused(Told(Invalid, 400, "BadRequest")):
        world.create(f"{world.pods}/{target['metadata']['name']}/eviction", document)


def test_nothing_is_evicted_or_made_in_a_namespace_that_is_being_deleted(world: World) -> None:
    where = world.fresh("ending")
    world.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": where}})
    other = replace(world, namespace=where)
    world.create(
        other.config_maps,
        {**config_map("held"), "metadata": {"name": "held", "finalizers": ["example.com/x"]}},
    )
    target = running_pod(other) if world.name == "embedded" else _with_account(other)
    world.delete(f"{NAMESPACES}/{where}")
    ended = Told(Forbidden, 403, "Forbidden", frozenset({("NamespaceTerminating", "metadata.namespace")}))

    def no_more() -> bool:
        answer = world.wire.ask("POST", other.config_maps, config_map(world.fresh("late")))
        return answer.status == 403

    wait_until(no_more, 10, "the namespace to take nothing more")
    with refused(ended):
        world.create(other.config_maps, config_map("late"))
    with refused(ended):
        evict(other, target)


def _with_account(world: World) -> Object:
    """A running pod in a namespace that has no ServiceAccount yet: its controller stands still."""
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
    world.create(world.collection("serviceaccounts"), account)
    return wait_until(lambda: running_pod(world), 10, "the ServiceAccount to be known", ignoring=(ApiError,))
