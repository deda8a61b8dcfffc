"""Collections: pages that hang together, tokens that expire, and the selectors that find a node's own."""

from __future__ import annotations

import msgspec
import pytest

from runtime.api_errors import Gone, Invalid
from tests.contract.objects import config_map, node, pod, remediation, report
from tests.contract.world import APPS, CONTROLS, NODES, REPORTS, SESSIONS, Told, World, refused

BAD = Told(Invalid, 400, "BadRequest")


def _config_maps(world: World, count: int) -> tuple[str, list[str]]:
    """A label that only these have, and their names in their order."""
    label = world.fresh("list")
    names = [f"{label}-{number}" for number in range(count)]
    for name in reversed(names):
        body = config_map(name)
        body["metadata"]["labels"] = {"of": label}
        world.create(world.config_maps, body)
    return f"of={label}", names


def test_a_list_says_what_it_is_and_is_in_the_order_of_names(world: World) -> None:
    selector, names = _config_maps(world, 3)
    found = world.get(world.config_maps, {"labelSelector": selector})
    assert (found["kind"], found["apiVersion"]) == ("ConfigMapList", "v1")
    assert [item["metadata"]["name"] for item in found["items"]] == names
    newest = max(int(item["metadata"]["resourceVersion"]) for item in found["items"])
    assert int(found["metadata"]["resourceVersion"]) >= newest
    assert not found["metadata"].get("continue")


@pytest.mark.parametrize(
    ("collection", "kind"),
    [
        (NODES, "NodeList"),
        (REPORTS, "AcceleratorReportList"),
        (SESSIONS, "AcceleratorRemediationList"),
        (CONTROLS, "AcceleratorControlList"),
        ("/api/v1/pods", "PodList"),
    ],
)
def test_every_collection_that_is_watched_can_be_listed(world: World, collection: str, kind: str) -> None:
    found = world.get(collection, {"limit": 500})
    assert found["kind"] == kind
    assert isinstance(found["items"], list)
    assert found["metadata"]["resourceVersion"].isdigit()


def test_a_list_comes_in_pages_of_one_moment(world: World) -> None:
    selector, names = _config_maps(world, 5)
    query = {"labelSelector": selector}
    pages = world.session.list_pages(world.config_maps, query=query, limit=2)
    first = next(pages)
    # What happens between two pages is not in them: it is for the watch that starts at the list's version.
    late = config_map(f"{names[-1]}-late")
    late["metadata"]["labels"] = {"of": selector.partition("=")[2]}
    world.create(world.config_maps, late)
    world.delete(f"{world.config_maps}/{names[3]}")
    second, third = pages
    found = [[item["metadata"]["name"] for item in _items(page.body)] for page in (first, second, third)]
    assert found == [names[0:2], names[2:4], names[4:5]]
    assert first.resource_version == second.resource_version == third.resource_version
    with world.watch(world.config_maps, third.resource_version, query=query) as watch:
        assert [(kind, item["metadata"]["name"]) for kind, item in (watch.next(), watch.next())] == [
            ("ADDED", late["metadata"]["name"]),
            ("DELETED", names[3]),
        ]


def test_pages_go_over_all_namespaces_and_custom_resources_too(world: World) -> None:
    names = sorted(world.fresh("page") for _ in range(3))
    for name in names:
        world.create(SESSIONS, remediation(name, node_name=names[0]))
    query = {"fieldSelector": f"spec.nodeName={names[0]}"}
    pages = list(world.session.list_pages(SESSIONS, query=query, limit=2))
    assert [item["metadata"]["name"] for page in pages for item in _items(page.body)] == names
    assert len(pages) == 2


def test_a_page_that_is_asked_for_too_late_is_gone(world: World) -> None:
    where = world.fresh("node")
    for number in range(3):
        world.create(SESSIONS, remediation(f"{where}-{number}", node_name=where))
    query = {"fieldSelector": f"spec.nodeName={where}"}
    token = world.get(SESSIONS, {**query, "limit": 2})["metadata"]["continue"]
    world.create(SESSIONS, remediation(world.fresh("between")))
    world.compact()
    with refused(Told(Gone, 410, "Expired")):
        world.get(SESSIONS, {**query, "limit": 2, "continue": world.age(token)})
    # The listing starts anew, which is what the reflector does.
    assert len(list(world.session.list_pages(SESSIONS, query=query, limit=2))) == 2


def test_a_token_that_is_none_is_a_bad_request(world: World) -> None:
    with refused(BAD):
        world.get(world.config_maps, {"limit": 2, "continue": "nonsense"})


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("of={of}", "abc"),
        ("of={of},team=red", "a"),
        ("of={of},team!=red", "bc"),
        ("of={of},team in (red,blue)", "ab"),
        ("of={of},team notin (red)", "bc"),
        ("of={of},team", "ab"),
        ("of={of},!team", "c"),
        ("of=={of},team=green", ""),
    ],
)
def test_label_selectors_find_what_they_say(world: World, selector: str, found: str) -> None:
    label = world.fresh("label")
    for name, team in (("a", "red"), ("b", "blue"), ("c", "")):
        body = config_map(f"{label}-{name}")
        body["metadata"]["labels"] = {"of": label, **({"team": team} if team else {})}
        world.create(world.config_maps, body)
    names = world.names(world.config_maps, labelSelector=selector.format(of=label))
    assert [name[-1] for name in names] == list(found)


def test_sessions_are_found_by_the_label_of_their_node(world: World) -> None:
    name = world.fresh("session")
    world.create(SESSIONS, remediation(name, node_name=name))
    world.create(SESSIONS, remediation(f"{name}-other", node_name="other"))
    assert world.names(SESSIONS, labelSelector=f"sickbay.dev/node-uid=uid-of-{name}") == [name]


@pytest.mark.parametrize("selector", ["a in red", "a=(", "==", "a b"])
def test_a_label_selector_that_cannot_be_read_is_a_bad_request(world: World, selector: str) -> None:
    with refused(BAD):
        world.get(world.config_maps, {"labelSelector": selector})


def test_the_pods_of_a_node_are_found_over_all_namespaces(world: World) -> None:
    where = world.fresh("node")
    bound, other, unbound = (world.fresh("pod") for _ in range(3))
    world.create(world.pods, pod(bound, node=where))
    world.create(world.pods, pod(other, node="contract-other"))
    world.create(world.pods, pod(unbound))
    assert world.names("/api/v1/pods", fieldSelector=f"spec.nodeName={where}") == [bound]
    mine = f"metadata.namespace={world.namespace}"
    assert other in world.names("/api/v1/pods", fieldSelector=f"{mine},spec.nodeName!={where}")
    assert unbound in world.names(world.pods, fieldSelector="spec.nodeName=")
    assert world.names(world.pods, fieldSelector=f"metadata.name={bound},status.phase=Pending") == [bound]
    assert world.names(world.pods, fieldSelector=f"metadata.name={bound},status.phase!=Pending") == []


def test_nodes_and_custom_resources_are_found_by_name(world: World) -> None:
    name = world.fresh("n")
    world.create(NODES, node(name))
    world.create(REPORTS, report(name))
    for collection in (NODES, REPORTS):
        assert world.names(collection, fieldSelector=f"metadata.name={name}") == [name]


def test_nodes_are_found_by_whether_they_are_cordoned(world: World) -> None:
    name = world.fresh("n")
    world.create(NODES, node(name))
    chosen = f"metadata.name={name},spec.unschedulable=true"
    assert world.names(NODES, fieldSelector=chosen) == []
    world.merge(f"{NODES}/{name}", {"spec": {"unschedulable": True}})
    assert world.names(NODES, fieldSelector=chosen) == [name]


def test_sessions_are_found_by_the_name_of_their_node(world: World) -> None:
    where, name = world.fresh("node"), world.fresh("session")
    world.create(SESSIONS, remediation(name, node_name=where))
    assert world.names(SESSIONS, fieldSelector=f"spec.nodeName={where}") == [name]


@pytest.mark.parametrize(
    ("collection", "selector"),
    [
        ("/api/v1/pods", "spec.priority=1"),
        (NODES, "spec.providerID=x"),
        (REPORTS, "spec.pool=x"),
        (SESSIONS, "spec.bootID=x"),
        (NODES, "metadata.labels=x"),
        (NODES, "nonsense"),
    ],
)
def test_a_field_that_cannot_be_selected_by_is_a_bad_request(
    world: World, collection: str, selector: str
) -> None:
    with refused(BAD):
        world.get(collection, {"fieldSelector": selector})


def test_controller_revisions_are_listed_with_what_the_plugin_step_reads(world: World) -> None:
    revisions = world.collection("controllerrevisions", group=APPS)
    sets = world.collection("daemonsets", group=APPS)
    name = world.fresh("plugin")
    labels = {"app": name}
    made = world.create(
        sets,
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": name},
            "spec": {
                "selector": {"matchLabels": labels},
                "updateStrategy": {"type": "OnDelete"},
                "template": {"metadata": {"labels": labels}, "spec": pod("x")["spec"]},
            },
        },
    )
    assert world.get(f"{sets}/{name}")["spec"]["updateStrategy"]["type"] == "OnDelete"
    owner = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": name, "uid": made["metadata"]["uid"]}
    world.create(
        revisions,
        {
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": {
                "name": f"{name}-5d",
                "labels": {**labels, "controller-revision-hash": "5d"},
                "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
            },
            "data": {"spec": {"template": {}}},
            "revision": 3,
        },
    )
    found = [item for item in world.get(revisions)["items"] if item["metadata"]["name"] == f"{name}-5d"]
    assert [item["revision"] for item in found] == [3]
    assert found[0]["metadata"]["ownerReferences"][0]["uid"] == made["metadata"]["uid"]
    assert found[0]["metadata"]["labels"]["controller-revision-hash"] == "5d"


def _items(body: bytes) -> list[dict[str, dict[str, str]]]:
    items: list[dict[str, dict[str, str]]] = msgspec.json.decode(body)["items"]
    return items
