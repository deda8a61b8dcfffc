"""What is served, how the server says that it is there, and the tables that `kubectl get` shows."""

from __future__ import annotations

import re
from typing import Any

import pytest

from runtime.transport import Query
from tests.contract.objects import node, pod, remediation, report
from tests.contract.world import CONTROLS, NODES, REPORTS, SESSIONS, Object, World
from tests.crds import DEFINITIONS, version_of

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"

USED = {
    "/api/v1": {
        "nodes": {"get", "list", "patch", "update", "watch", "create", "delete"},
        "nodes/status": {"get", "patch", "update"},
        "pods": {"get", "list", "patch", "update", "watch", "create", "delete"},
        "pods/status": {"get", "patch", "update"},
        "pods/eviction": {"create"},
        "events": {"create", "get", "list", "watch"},
        "namespaces": {"create", "get", "list", "delete"},
    },
    "/apis/apps/v1": {
        "daemonsets": {"get", "list", "watch", "create"},
        "deployments": {"get", "list", "watch", "create"},
        "replicasets": {"get", "list", "watch", "create"},
        "controllerrevisions": {"get", "list", "watch", "create"},
    },
    "/apis/batch/v1": {"jobs": {"get", "list", "watch", "create"}},
    "/apis/policy/v1": {"poddisruptionbudgets": {"get", "list", "watch", "create"}},
    "/apis/coordination.k8s.io/v1": {"leases": {"get", "create", "update"}},
}


@pytest.mark.parametrize("path", USED)
def test_what_is_used_is_served_with_its_verbs(world: World, path: str) -> None:
    found = world.get(path)
    assert (found["kind"], found["groupVersion"]) == ("APIResourceList", re.sub("^/apis?/", "", path))
    served = {item["name"]: item for item in found["resources"]}
    for name, verbs in USED[path].items():
        assert verbs <= set(served[name]["verbs"]), name
        namespaced = name.partition("/")[0] not in ("nodes", "namespaces")
        assert served[name]["namespaced"] is namespaced
    if path == "/api/v1":
        eviction = served["pods/eviction"]
        assert (eviction["kind"], eviction["group"], eviction["version"]) == ("Eviction", "policy", "v1")


def test_the_custom_resources_are_served_under_their_names(world: World) -> None:
    served = {item["name"]: item for item in world.get("/apis/sickbay.dev/v1alpha1")["resources"]}
    for kind, definition in DEFINITIONS.items():
        names = definition["spec"]["names"]
        found = served[names["plural"]]
        assert (found["kind"], found["singularName"]) == (kind, names["singular"])
        assert (found["shortNames"], found["categories"]) == (names["shortNames"], names["categories"])
        assert found["namespaced"] is False
        assert {"get", "list", "watch", "create", "update", "patch", "delete"} <= set(found["verbs"])
        assert set(served[f"{names['plural']}/status"]["verbs"]) == {"get", "patch", "update"}


def test_the_groups_are_listed(world: World) -> None:
    assert world.get("/api")["versions"] == ["v1"]
    groups = {item["name"]: item for item in world.get("/apis")["groups"]}
    for name in ("apps", "batch", "policy", "coordination.k8s.io"):
        assert groups[name]["preferredVersion"]["version"] == "v1"
    assert groups["sickbay.dev"]["preferredVersion"]["groupVersion"] == "sickbay.dev/v1alpha1"


def test_the_server_says_its_version_and_that_it_is_ready(world: World) -> None:
    assert re.fullmatch(r"v1\.\d+\.\d+\S*", world.session.check())
    version = world.get("/version")
    assert version["major"] == "1" and version["minor"].isdigit()
    for path in ("/readyz", "/livez", "/healthz"):
        answer = world.wire.ask("GET", path)
        assert (answer.status, answer.body) == (200, b"ok")


@pytest.mark.parametrize("collection", [REPORTS, SESSIONS, CONTROLS])
def test_a_table_of_ours_has_the_columns_of_the_definition(world: World, collection: str) -> None:
    kind = next(kind for kind, found in DEFINITIONS.items() if found["spec"]["names"]["plural"] in collection)
    columns = [("Name", "string", 0)] + [
        (item["name"], item["type"], item.get("priority", 0))
        for item in version_of(kind)["additionalPrinterColumns"]
    ]
    found = _table(world, collection)
    assert [(one["name"], one["type"], one["priority"]) for one in found["columnDefinitions"]] == columns


def test_a_row_of_ours_shows_what_the_object_says(world: World) -> None:
    where, name = world.fresh("n"), world.fresh("session")
    world.create(SESSIONS, remediation(name, node_name=where))
    incident = {"kind": "XidFatal", "firstSeen": "2026-03-01T12:00:00Z", "lastSeen": "2026-03-01T12:00:00Z"}
    world.merge(f"{SESSIONS}/{name}/status", {"status": {"phase": "Fenced", "incidents": [incident]}})
    for path, query in ((SESSIONS, {"fieldSelector": f"spec.nodeName={where}"}), (f"{SESSIONS}/{name}", {})):
        table = _table(world, path, query)
        (row,) = table["rows"]
        cells = dict(zip([one["name"] for one in table["columnDefinitions"]], row["cells"], strict=True))
        assert {key: cells[key] for key in ("Name", "Node", "Phase", "Mode", "Fault", "Rung")} == {
            "Name": name,
            "Node": where,
            "Phase": "Fenced",
            "Mode": "Observe",
            "Fault": "XidFatal",
            "Rung": None,
        }
        assert re.fullmatch(r"\d+[smhd]\S*", cells["Since"])
        assert row["object"]["kind"] == "PartialObjectMetadata"
        assert row["object"]["metadata"]["name"] == name


@pytest.mark.parametrize(
    ("make", "collection", "wanted"),
    [
        (node, NODES, ["Name", "Status", "Roles", "Age", "Version"]),
        (pod, "pods", ["Name", "Ready", "Status", "Restarts", "Age"]),
    ],
)
def test_a_table_of_nodes_and_pods_reads_as_kubectl_shows_it(
    world: World, make: Any, collection: str, wanted: list[str]
) -> None:
    name = world.fresh("shown")
    path = world.pods if collection == "pods" else collection
    world.create(path, make(name))
    if make is node:
        world.merge(f"{path}/{name}", {"spec": {"unschedulable": True}})
    table = _table(world, path, {"fieldSelector": f"metadata.name={name}"})
    names = [one["name"] for one in table["columnDefinitions"] if not one["priority"]]
    assert names == wanted
    (row,) = table["rows"]
    cells = dict(zip([one["name"] for one in table["columnDefinitions"]], row["cells"], strict=True))
    assert cells["Name"] == name
    assert cells["Status"] == ("Ready,SchedulingDisabled" if make is node else "Pending")


def test_a_watch_can_be_shown_as_tables_too(world: World) -> None:
    name = world.fresh("shown")
    start = world.version(REPORTS)
    world.create(REPORTS, report(name))
    query: Query = {"watch": "true", "resourceVersion": start, "timeoutSeconds": 1}
    answer = world.wire.ask("GET", REPORTS, query=query, accept=TABLE)
    assert answer.status == 200
    assert b'"kind":"Table"' in answer.body and name.encode() in answer.body


def _table(world: World, path: str, query: dict[str, str] | None = None) -> Object:
    answer = world.wire.ask("GET", path, query=query or {}, accept=TABLE)
    found = answer.object
    assert (answer.status, found["kind"], found["apiVersion"]) == (200, "Table", "meta.k8s.io/v1")
    return found
