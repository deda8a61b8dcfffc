"""The embedded API's store: metadata, preconditions, status subresources, deletion, namespaces."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from simulation.cluster.interface import Store, StoreEvent
from simulation.cluster.records import Writer
from simulation.cluster.store import ClusterStore
from tests.unit.embedded_rig import OTHER_UID, REPORTS, new_store, pod, refusal, report


@pytest.fixture
def store() -> ClusterStore:
    return new_store()


def events_of(store: ClusterStore) -> list[StoreEvent]:
    heard: list[StoreEvent] = []
    store.subscribe(heard.append)
    return heard


def test_the_store_is_what_the_interface_says(store: ClusterStore) -> None:
    promised: Store = store
    assert promised.list("nodes") == []


def test_a_new_object_gets_a_uid_a_version_a_time_and_a_generation(store: ClusterStore) -> None:
    made = store.create("pods", pod("p"))
    meta = made["metadata"]
    assert (meta["namespace"], meta["generation"], meta["creationTimestamp"]) == (
        "default",
        1,
        "2026-01-01T00:00:00Z",
    )
    assert len(meta["uid"]) == 36
    assert meta["resourceVersion"] == str(store.version)
    assert (made["kind"], made["apiVersion"]) == ("Pod", "v1")


def test_a_name_is_generated_and_a_taken_one_is_a_conflict(store: ClusterStore) -> None:
    made = store.create("pods", {**pod("x"), "metadata": {"generateName": "job-"}})
    assert made["metadata"]["name"].startswith("job-")
    assert len(made["metadata"]["name"]) == 9
    store.create("pods", pod("p"))
    error = refusal(lambda: store.create("pods", pod("p")))
    assert (error.code, error.reason, error.message) == (409, "AlreadyExists", 'pods "p" already exists')


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        ({"name": "UPPER"}, "metadata.name"),
        ({"name": "a" * 254}, "metadata.name"),
        ({}, "metadata.name"),
        ({"name": "n", "labels": {"a b": "c"}}, "metadata.labels"),
        ({"name": "n", "labels": {"a": "x" * 64}}, "metadata.labels"),
        ({"name": "n", "annotations": {"a": "x" * 300_000}}, "metadata.annotations"),
    ],
)
def test_metadata_that_is_none_is_refused_by_its_field(
    store: ClusterStore, metadata: dict[str, Any], field: str
) -> None:
    error = refusal(lambda: store.create("nodes", {"metadata": metadata}))
    assert (error.code, error.reason) == (422, "Invalid")
    assert {cause["field"] for cause in error.details["causes"]} == {field}


def test_an_update_under_an_old_version_is_a_conflict_and_changes_nothing(store: ClusterStore) -> None:
    old = store.create("nodes", {"metadata": {"name": "n"}})
    new = store.patch("nodes", "n", {"spec": {"unschedulable": True}})
    error = refusal(lambda: store.update("nodes", old))
    assert (error.code, error.reason) == (409, "Conflict")
    assert "the object has been modified" in error.message
    assert store.get("nodes", "n") == new


def test_a_patch_with_another_uid_is_invalid_but_not_on_the_status_of_a_custom_resource(
    store: ClusterStore,
) -> None:
    """As kube-apiserver 1.37 has it: the status of a custom resource is written whatever uid the patch names."""
    store.create("nodes", {"metadata": {"name": "n"}})
    error = refusal(lambda: store.patch("nodes", "n", {"metadata": {"uid": OTHER_UID}}))
    assert (error.code, error.details["causes"][0]["field"]) == (422, "metadata.uid")
    store.create(REPORTS, report("n"))
    patch = {"metadata": {"uid": OTHER_UID}, "status": {"sequence": 1}}
    assert store.patch(REPORTS, "n", patch, subresource="status")["status"]["sequence"] == 1
    assert refusal(lambda: store.patch(REPORTS, "n", patch)).code == 422


def test_a_patch_that_changes_nothing_keeps_the_version_and_makes_no_event(store: ClusterStore) -> None:
    made = store.create("nodes", {"metadata": {"name": "n", "labels": {"a": "b"}}})
    heard = events_of(store)
    assert store.patch("nodes", "n", {"metadata": {"labels": {"a": "b"}}}) == made
    assert heard == []


def test_spec_and_status_are_written_apart_and_only_spec_moves_the_generation(store: ClusterStore) -> None:
    store.create(REPORTS, report("n", spec={}, status={"sequence": 9}))
    assert "status" not in store.get(REPORTS, "n")
    patch = {"metadata": {"labels": {"a": "b"}}, "spec": {"pool": "gpu"}, "status": {"sequence": 2}}
    by_status = store.patch(REPORTS, "n", patch, subresource="status")
    assert by_status["status"] == {"sequence": 2, "deviceAccess": "Held"}
    assert "labels" not in by_status["metadata"]
    assert "pool" not in by_status["spec"]
    by_main = store.patch(REPORTS, "n", {**patch, "status": {"sequence": 3}})
    assert (by_main["status"]["sequence"], by_main["spec"]["pool"]) == (2, "gpu")
    assert [by_status["metadata"]["generation"], by_main["metadata"]["generation"]] == [1, 2]


def test_a_label_on_the_status_of_a_node_is_written_but_not_its_spec(store: ClusterStore) -> None:
    store.create("nodes", {"metadata": {"name": "n"}})
    patch = {
        "metadata": {"labels": {"a": "b"}},
        "spec": {"unschedulable": True},
        "status": {"capacity": {"cpu": "1"}},
    }
    node = store.patch("nodes", "n", patch, subresource="status")
    assert node["metadata"]["labels"] == {"a": "b"}
    assert "unschedulable" not in node["spec"]
    assert node["status"]["capacity"] == {"cpu": "1"}


def test_the_field_manager_of_a_cordon_is_kept_and_goes_with_it(store: ClusterStore) -> None:
    nodes = store.resource("nodes")
    store.insert(nodes, "", {"metadata": {"name": "n", "labels": {"a": "b"}}}, writer=Writer("kubelet"))

    def cordon(value: bool | None, manager: str) -> dict[str, str]:
        def change(old: Any) -> Any:
            return {**old, "spec": {**old["spec"], "unschedulable": value}}

        store.modify(nodes, "", "n", change, writer=Writer(manager))
        entries = store.get("nodes", "n")["metadata"]["managedFields"]
        return {entry["manager"]: str(entry["fieldsV1"].get("f:spec")) for entry in entries}

    assert cordon(True, "kubectl")["kubectl"] == "{'f:unschedulable': {}}"
    assert cordon(True, "sickbay")["kubectl"] == "{'f:unschedulable': {}}"
    assert "kubectl" not in cordon(False, "sickbay")
    assert "unschedulable" not in store.get("nodes", "n")["spec"]
    assert cordon(True, "sickbay")["sickbay"] == "{'f:unschedulable': {}}"


def test_a_node_that_was_created_with_nothing_is_never_tracked(store: ClusterStore) -> None:
    store.create("nodes", {"metadata": {"name": "n"}})
    node = store.patch("nodes", "n", {"spec": {"unschedulable": True}})
    assert "managedFields" not in node["metadata"]


def test_a_replace_needs_a_version_where_the_kind_says_so_and_a_lease_is_created_by_it(
    store: ClusterStore,
) -> None:
    leases = store.resource("leases.coordination.k8s.io")
    body = {"metadata": {"name": "l"}, "spec": {"holderIdentity": "a"}}

    def put(given: Any) -> Any:
        return store.modify(leases, "default", "l", lambda _old: given, replace=True)

    assert put(body).created
    assert refusal(lambda: put(body)).code == 422
    version = store.get(leases.id, "l", namespace="default")["metadata"]["resourceVersion"]
    assert not put({**body, "metadata": {"name": "l", "resourceVersion": version}, "spec": {}}).created
    assert refusal(lambda: put({**body, "metadata": {"name": "l", "resourceVersion": version}})).code == 409


@pytest.mark.parametrize(
    "spec",
    [
        {"renewTime": "2026-01-01T00:00:00Z"},
        {"renewTime": "2026-01-01T00:00:00.123Z"},
        {"acquireTime": "now"},
    ],
)
def test_the_times_of_a_lease_have_six_digits_after_the_point(
    store: ClusterStore, spec: dict[str, str]
) -> None:
    body = {"metadata": {"name": "l"}, "spec": spec}
    assert refusal(lambda: store.create("leases.coordination.k8s.io", body)).code == 400


def test_most_of_a_pods_spec_is_fixed(store: ClusterStore) -> None:
    store.create("pods", pod("p"))
    error = refusal(lambda: store.patch("pods", "p", {"spec": {"nodeName": "n2"}}, namespace="default"))
    assert (error.code, error.details["causes"][0]["reason"]) == (422, "FieldValueForbidden")
    store.patch("pods", "p", {"spec": {"activeDeadlineSeconds": 5}}, namespace="default")


def test_versions_never_repeat_and_events_come_in_their_order_whoever_writes(store: ClusterStore) -> None:
    heard = events_of(store)
    writers = [
        threading.Thread(
            target=lambda prefix=prefix: [  # type: ignore[misc]
                store.create("configmaps", {"metadata": {"name": f"{prefix}-{place}"}}) for place in range(50)
            ]
        )
        for prefix in "abcd"
    ]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join(30)
    versions = [int(event.object["metadata"]["resourceVersion"]) for event in heard]
    assert len(versions) == 200
    assert versions == sorted(set(versions))


def test_what_the_store_hands_out_is_a_copy(store: ClusterStore) -> None:
    store.create("nodes", {"metadata": {"name": "n", "labels": {"a": "b"}}})
    store.get("nodes", "n")["metadata"]["labels"]["a"] = "c"
    assert store.list("nodes", labels={"a": "b"}) == [store.get("nodes", "n")]
