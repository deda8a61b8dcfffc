"""Cordon and uncordon against an API server in memory: what is ours is taken back, what is a person's stays."""

from collections.abc import Callable

import msgspec
import pytest

from remediation.cluster import NODES, Cluster
from remediation.fleet import FIELD_MANAGER, HOLD_KEY, SESSION_KEY, Node
from remediation.steps.cordon import cordon, uncordon
from remediation.steps.outcome import Result
from runtime.api_errors import Forbidden, Unavailable
from runtime.clock import ManualClock
from tests.unit.fake_cluster import Document, FakeApi, Trouble


@pytest.fixture
def api() -> FakeApi:
    server = FakeApi(ManualClock())
    server.create(
        NODES,
        {
            "metadata": {"name": "n1", "labels": {"a": "b"}, "annotations": {"foreign": "x"}},
            "spec": {"podCIDR": "10.0.0.0/24"},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"bootID": "boot-1"}},
        },
    )
    return server


@pytest.fixture
def cluster(api: FakeApi) -> Cluster:
    return api.cluster(epoch=3)[1]


def stored(api: FakeApi) -> Document:
    return api.get(NODES, "n1")


def facts(api: FakeApi) -> tuple[bool, str | None]:
    found = stored(api)
    return bool(found["spec"].get("unschedulable")), found["metadata"]["annotations"].get(SESSION_KEY)


def edit(api: FakeApi, *, cordoned: bool | None = None, **annotations: str | None) -> None:
    """Change the node as a person does; with `cordoned` and `owner` as a cordon of ours does."""

    def change(node: Document) -> None:
        if cordoned is not None:
            node["spec"]["unschedulable"] = cordoned
        for key, value in annotations.items():
            node["metadata"]["annotations"][{"owner": SESSION_KEY, "hold": HOLD_KEY}.get(key, key)] = value

    ours = cordoned and annotations.get("owner")
    api.edit(NODES, "n1", change, manager=FIELD_MANAGER if ours else "kubectl-cordon")


def heartbeat(api: FakeApi) -> None:
    """The kubelet writes something that decides nothing."""
    api.edit(NODES, "n1", lambda node: node["status"].update(addresses=[{"address": str(api.version)}]))


def patches(api: FakeApi) -> int:
    return sum(call.method == "PATCH" for call in api.calls)


def replace_node(api: FakeApi) -> None:
    found = stored(api)
    api.remove(NODES, "n1")
    api.create(NODES, found)


def test_a_cordon_sets_the_record_in_the_same_patch_and_nothing_else(api: FakeApi, cluster: Cluster) -> None:
    before = stored(api)
    outcome = cordon(cluster, cluster.get_node("n1"), session="s1")
    assert (outcome.result, facts(api)) == (Result.DONE, (True, "s1"))
    assert outcome.node is not None and outcome.node.owner_session == "s1"
    assert patches(api) == 1
    after = stored(api)
    assert after["spec"] == {**before["spec"], "unschedulable": True}
    assert after["metadata"]["labels"] == before["metadata"]["labels"]
    assert after["metadata"]["annotations"] == {"foreign": "x", SESSION_KEY: "s1"}


def test_a_node_that_a_person_cordoned_gets_no_record(api: FakeApi, cluster: Cluster) -> None:
    edit(api, cordoned=True)
    outcome = cordon(cluster, cluster.get_node("n1"), session="s1")
    assert (outcome.result, facts(api)) == (Result.ALREADY_CORDONED, (True, None))
    assert patches(api) == 0


def test_that_somebody_had_cordoned_the_node_is_not_believed_of_a_view_that_is_out_of_date(
    api: FakeApi, cluster: Cluster
) -> None:
    edit(api, cordoned=True)
    old = cluster.get_node("n1")
    edit(api, cordoned=False)
    outcome = cordon(cluster, old, session="s1")
    assert outcome.result is Result.CHANGED
    assert outcome.node is not None and not outcome.node.spec.unschedulable
    assert facts(api) == (False, None)


def test_a_cordon_that_is_done_is_done_again_without_a_request(api: FakeApi, cluster: Cluster) -> None:
    edit(api, cordoned=True, owner="s1")
    node = cluster.get_node("n1")
    asked = len(api.calls)
    assert cordon(cluster, node, session="s1").result is Result.DONE
    assert len(api.calls) == asked


def test_a_cordon_whose_answer_was_lost_is_found_done(api: FakeApi, cluster: Cluster) -> None:
    old = cluster.get_node("n1")
    edit(api, cordoned=True, owner="s1")
    assert cordon(cluster, old, session="s1").result is Result.DONE


def test_a_heartbeat_of_the_kubelet_in_between_does_not_hold_the_cordon_up(
    api: FakeApi, cluster: Cluster
) -> None:
    old = cluster.get_node("n1")
    heartbeat(api)
    assert cordon(cluster, old, session="s1").result is Result.DONE
    assert facts(api) == (True, "s1")


@pytest.mark.parametrize(
    "change",
    [
        lambda node: node["metadata"]["annotations"].update({HOLD_KEY: "alice"}),
        lambda node: node["metadata"]["annotations"].update({"sickbay.dev/opt-out": "alice"}),
        lambda node: node["metadata"]["labels"].update({"node-role.kubernetes.io/control-plane": ""}),
        lambda node: node["spec"].update(taints=[{"key": "karpenter.sh/disrupted"}]),
        lambda node: node["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z"),
        lambda node: node["status"]["nodeInfo"].update(bootID="boot-2"),
        lambda node: node["status"]["conditions"][0].update(status="Unknown"),
        lambda node: node["metadata"]["annotations"].update({SESSION_KEY: "s1"}),
    ],
)
def test_what_decides_and_changed_since_the_decision_stops_the_cordon(
    api: FakeApi, cluster: Cluster, change: Callable[[Document], None]
) -> None:
    old = cluster.get_node("n1")
    api.edit(NODES, "n1", change)
    outcome = cordon(cluster, old, session="s1")
    assert outcome.result is Result.CHANGED and not outcome.succeeded
    assert outcome.node is not None and not facts(api)[0]


def test_a_node_that_changes_at_every_attempt_is_left_for_another_time(
    api: FakeApi, cluster: Cluster
) -> None:
    api.trouble = lambda call: Trouble.CONFLICT if call.mutates else None
    assert cordon(cluster, cluster.get_node("n1"), session="s1").result is Result.CHANGED
    assert facts(api) == (False, None)


@pytest.mark.parametrize("step", [cordon, uncordon])
def test_a_node_that_is_gone_or_replaced_is_not_touched(
    api: FakeApi, cluster: Cluster, step: Callable[..., object]
) -> None:
    edit(api, cordoned=step is uncordon, **({"owner": "s1"} if step is uncordon else {}))
    old = cluster.get_node("n1")
    replace_node(api)
    before = stored(api)
    assert step(cluster, old, session="s1").result is Result.CHANGED
    assert stored(api) == before
    api.remove(NODES, "n1")
    assert step(cluster, old, session="s1").result is Result.CHANGED


def test_an_uncordon_takes_the_cordon_and_its_record_back(api: FakeApi, cluster: Cluster) -> None:
    edit(api, cordoned=True, owner="s1")
    outcome = uncordon(cluster, cluster.get_node("n1"), session="s1")
    assert (outcome.result, facts(api)) == (Result.DONE, (False, None))
    assert stored(api)["metadata"]["annotations"] == {"foreign": "x"}


@pytest.mark.parametrize("owner", ["s2", None])
def test_a_cordon_that_is_not_this_sessions_stays(api: FakeApi, cluster: Cluster, owner: str | None) -> None:
    edit(api, cordoned=True, **({"owner": owner} if owner else {}))
    outcome = uncordon(cluster, cluster.get_node("n1"), session="s1")
    assert (outcome.result, outcome.succeeded, facts(api)) == (Result.NOT_OURS, True, (True, owner))


def test_where_a_person_uncordoned_only_the_record_goes(api: FakeApi, cluster: Cluster) -> None:
    edit(api, cordoned=False, owner="s1")
    outcome = uncordon(cluster, cluster.get_node("n1"), session="s1")
    assert (outcome.result, facts(api)) == (Result.DONE, (False, None))


def test_a_cordon_that_a_person_made_after_the_uncordon_we_saw_stays(api: FakeApi, cluster: Cluster) -> None:
    edit(api, cordoned=False, owner="s1")
    seen = cluster.get_node("n1")
    edit(api, cordoned=True)
    outcome = uncordon(cluster, seen, session="s1")
    assert (outcome.result, facts(api)) == (Result.DONE, (True, None))


def test_a_cordon_that_a_person_made_after_an_uncordon_nobody_saw_stays(
    api: FakeApi, cluster: Cluster
) -> None:
    edit(api, cordoned=True, owner="s1")
    edit(api, cordoned=False)
    edit(api, cordoned=True)
    outcome = uncordon(cluster, cluster.get_node("n1"), session="s1")
    assert (outcome.result, outcome.succeeded, facts(api)) == (Result.NOT_OURS, True, (True, None))
    assert "kubectl-cordon" in outcome.message


def test_a_cordon_is_made_under_the_controllers_own_name(api: FakeApi, cluster: Cluster) -> None:
    cordon(cluster, cluster.get_node("n1"), session="s1")
    assert cluster.get_node("n1").cordoned_by == FIELD_MANAGER
    uncordon(cluster, cluster.get_node("n1"), session="s1")
    assert cluster.get_node("n1").cordoned_by == ""


def test_an_uncordon_that_a_stale_view_shows_is_not_believed(api: FakeApi, cluster: Cluster) -> None:
    old = cluster.get_node("n1")
    edit(api, cordoned=True, owner="s1")
    outcome = uncordon(cluster, old, session="s1")
    assert (outcome.result, facts(api)) == (Result.CHANGED, (True, "s1"))


def test_a_hold_that_came_after_the_decision_stops_the_uncordon(api: FakeApi, cluster: Cluster) -> None:
    edit(api, cordoned=True, owner="s1")
    old = cluster.get_node("n1")
    edit(api, hold="alice")
    outcome = uncordon(cluster, old, session="s1")
    assert (outcome.result, facts(api)) == (Result.CHANGED, (True, "s1"))


def test_an_uncordon_that_conflicts_is_looked_at_again(api: FakeApi, cluster: Cluster) -> None:
    edit(api, cordoned=True, owner="s1")
    node = cluster.get_node("n1")
    api.trouble = lambda call: Trouble.CONFLICT if call.mutates else None
    assert uncordon(cluster, node, session="s1").result is Result.CHANGED


def test_other_errors_of_the_api_are_the_callers(api: FakeApi, cluster: Cluster) -> None:
    node = cluster.get_node("n1")
    api.trouble = lambda call: Trouble.REFUSED
    with pytest.raises(Unavailable):
        cordon(cluster, node, session="s1")


def test_the_servers_own_rules_would_refuse_an_uncordon_without_a_record(
    api: FakeApi, cluster: Cluster
) -> None:
    edit(api, cordoned=True)
    patch = {"spec": {"unschedulable": None}}
    with pytest.raises(Forbidden):
        cluster.patch_node("n1", msgspec.json.encode(patch))


def test_two_nodes_are_alike_where_only_what_decides_nothing_differs(api: FakeApi, cluster: Cluster) -> None:
    one: Node = cluster.get_node("n1")
    heartbeat(api)
    assert cluster.get_node("n1").like(one)
    edit(api, owner="s1")
    assert not cluster.get_node("n1").like(one)
