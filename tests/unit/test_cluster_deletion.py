"""How objects go at the embedded API: grace, finalizers, preconditions, policies, namespaces, the hour of Events."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.clock import ManualClock
from simulation.cluster.deletion import DeleteOptions
from simulation.cluster.interface import StoreEvent
from simulation.cluster.store import ClusterStore
from tests.unit.embedded_rig import OTHER_UID, REPORTS, SESSIONS, new_store, pod, refusal, remediation, report


@pytest.fixture
def store() -> ClusterStore:
    return new_store()


def events_of(store: ClusterStore) -> list[StoreEvent]:
    heard: list[StoreEvent] = []
    store.subscribe(heard.append)
    return heard


def test_a_pod_on_a_node_is_deleted_gracefully_and_the_grace_only_shortens(store: ClusterStore) -> None:
    store.create("pods", pod("p"))
    heard = events_of(store)
    store.delete("pods", "p", namespace="default")
    meta = store.get("pods", "p", namespace="default")["metadata"]
    assert (meta["deletionGracePeriodSeconds"], meta["deletionTimestamp"]) == (30, "2026-01-01T00:00:30Z")
    assert meta["generation"] == 2
    store.delete("pods", "p", namespace="default", grace_seconds=60)
    store.delete("pods", "p", namespace="default", grace_seconds=5)
    meta = store.get("pods", "p", namespace="default")["metadata"]
    assert (meta["deletionGracePeriodSeconds"], meta["deletionTimestamp"]) == (5, "2026-01-01T00:00:05Z")
    store.delete("pods", "p", namespace="default", grace_seconds=0)
    assert [event.type for event in heard] == ["MODIFIED", "MODIFIED", "MODIFIED", "DELETED"]
    assert refusal(lambda: store.get("pods", "p", namespace="default")).code == 404


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended_or_has_no_node_goes_at_once(store: ClusterStore, phase: str) -> None:
    store.create("pods", pod("free", node=""))
    store.create("pods", pod("ended"))
    store.patch("pods", "ended", {"status": {"phase": phase}}, namespace="default", subresource="status")
    for name in ("free", "ended"):
        store.delete("pods", name, namespace="default")
    assert store.list("pods") == []


def test_a_finalizer_holds_an_object_until_it_is_taken_and_no_new_one_comes(store: ClusterStore) -> None:
    store.create(SESSIONS, remediation("s"))
    store.patch(SESSIONS, "s", {"metadata": {"finalizers": ["a.b/c"]}})
    heard = events_of(store)
    store.delete(SESSIONS, "s")
    held = store.get(SESSIONS, "s")["metadata"]
    assert held["deletionGracePeriodSeconds"] == 0
    more = {"metadata": {"finalizers": ["a.b/c", "a.b/d"]}}
    assert refusal(lambda: store.patch(SESSIONS, "s", more)).code == 422
    store.patch(SESSIONS, "s", {"metadata": {"finalizers": None}})
    assert [event.type for event in heard] == ["MODIFIED", "DELETED"]
    assert heard[-1].object["metadata"]["finalizers"] == ["a.b/c"], "the last state that was stored"
    assert refusal(lambda: store.get(SESSIONS, "s")).code == 404


def test_a_delete_with_another_uid_or_version_is_a_conflict(store: ClusterStore) -> None:
    store.create(REPORTS, report("n"))
    error = refusal(lambda: store.delete(REPORTS, "n", uid=OTHER_UID))
    assert (error.code, error.details["kind"]) == (409, "AcceleratorReport")
    options = DeleteOptions(resource_version="1")
    assert refusal(lambda: store.remove(store.resource(REPORTS), "", "n", options)).code == 409
    assert store.get(REPORTS, "n")


@pytest.mark.parametrize(
    ("propagation", "finalizers"), [("Foreground", ["foregroundDeletion"]), ("Orphan", ["orphan"])]
)
def test_a_propagation_policy_is_recorded_as_a_finalizer(
    store: ClusterStore, propagation: Any, finalizers: list[str]
) -> None:
    store.create(REPORTS, report("n"))
    store.delete(REPORTS, "n", propagation=propagation)
    assert store.get(REPORTS, "n")["metadata"]["finalizers"] == finalizers
    store.delete(REPORTS, "n", propagation="Background")
    assert refusal(lambda: store.get(REPORTS, "n")).code == 404


def test_a_job_that_is_deleted_without_a_policy_orphans_its_pods(store: ClusterStore) -> None:
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}
    store.create("jobs.batch", {"metadata": {"name": "j"}, "spec": {"template": template}})
    store.remove(store.resource("jobs.batch"), "default", "j", DeleteOptions())
    assert store.get("jobs.batch", "j", namespace="default")["metadata"]["finalizers"] == ["orphan"]


def test_a_namespace_takes_what_is_in_it_along_and_nothing_new_comes_in(store: ClusterStore) -> None:
    store.create("namespaces", {"metadata": {"name": "team"}})
    store.create("pods", pod("p"), namespace="team")
    store.create("configmaps", {"metadata": {"name": "c"}}, namespace="team")
    store.delete("namespaces", "team")
    assert store.get("namespaces", "team")["status"]["phase"] == "Terminating"
    error = refusal(lambda: store.create("configmaps", {"metadata": {"name": "d"}}, namespace="team"))
    assert (error.code, error.details["causes"][0]["reason"]) == (403, "NamespaceTerminating")
    assert store.list("configmaps", namespace="team") == []
    store.delete("pods", "p", namespace="team", grace_seconds=0)
    assert refusal(lambda: store.get("namespaces", "team")).code == 404
    assert (
        refusal(lambda: store.create("pods", pod("p"), namespace="team")).message
        == 'namespaces "team" not found'
    )


def test_events_live_for_an_hour() -> None:
    clock = ManualClock()
    store = new_store(clock)
    involved = {"kind": "Pod", "namespace": "default", "name": "p"}
    store.create("events", {"metadata": {"name": "old"}, "involvedObject": involved, "reason": "R"})
    clock.advance(3599)
    store.create("events", {"metadata": {"name": "new"}, "involvedObject": involved, "reason": "R"})
    assert len(store.list("events")) == 2
    clock.advance(2)
    store.create("nodes", {"metadata": {"name": "n"}})
    assert [event["metadata"]["name"] for event in store.list("events")] == ["new"]
