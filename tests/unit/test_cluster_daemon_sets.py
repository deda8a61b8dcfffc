"""DaemonSets of the embedded control plane."""

from __future__ import annotations

from typing import Any

from simulation.cluster.kubelet_node import Timings
from tests.unit.cluster_rig import Plugins, Rig, condition, template, workload

SLOW = Timings(start=3.0, stop=1.0)


def nodes_of(rig: Rig, **labels: str) -> list[str]:
    return sorted(one["spec"].get("nodeName", "") for one in rig.pods(**labels))


def change(**labels: str) -> dict[str, Any]:
    return {"spec": {"template": {"metadata": {"labels": labels}}}}


def test_each_matching_node_runs_one_pod_now_and_later() -> None:
    rig = Rig()
    rig.add_node("g1", labels={"gpu": "yes"})
    rig.add_node("c1")
    selected = template("ds", nodeSelector={"gpu": "yes"})
    rig.create("daemonsets.apps", workload("DaemonSet", "ds", made_of=selected))
    assert nodes_of(rig) == ["g1"]
    rig.add_node("g2", labels={"gpu": "yes"})
    rig.advance(1)
    assert nodes_of(rig) == ["g1", "g2"]
    rig.patch("nodes", "g1", {"metadata": {"labels": {"gpu": "no"}}})
    rig.advance(2)
    assert nodes_of(rig) == ["g2"]
    status = rig.get("daemonsets.apps", "ds")["status"]
    assert (status["desiredNumberScheduled"], status["numberReady"], status["numberMisscheduled"]) == (
        1,
        1,
        0,
    )


def test_a_cordon_keeps_no_daemon_pod_away() -> None:
    rig = Rig(nodes=1)
    rig.patch("nodes", "n1", {"spec": {"unschedulable": True}})
    taints = rig.get("nodes", "n1")["spec"]["taints"]
    assert [(one["key"], one["effect"]) for one in taints] == [
        ("node.kubernetes.io/unschedulable", "NoSchedule")
    ]
    rig.create("daemonsets.apps", workload("DaemonSet", "ds"))
    assert len(rig.pods("Running")) == 1
    rig.delete("pods", rig.names()[0])
    rig.advance(2)
    assert len(rig.pods("Running")) == 1


def test_a_taint_that_is_not_tolerated_keeps_new_pods_away_and_lets_old_ones_be() -> None:
    rig = Rig(nodes=2)
    taint = {"key": "broken", "effect": "NoSchedule"}
    rig.patch("nodes", "n1", {"spec": {"taints": [taint]}})
    rig.create("daemonsets.apps", workload("DaemonSet", "ds"))
    assert nodes_of(rig) == ["n2"]
    rig.patch("nodes", "n2", {"spec": {"taints": [taint]}})
    rig.advance(1)
    assert nodes_of(rig) == ["n2"]
    assert rig.get("daemonsets.apps", "ds")["status"]["numberMisscheduled"] == 1


def test_a_pod_that_is_deleted_comes_back_only_when_it_is_gone() -> None:
    rig = Rig(nodes=1, timings=SLOW)
    slow = template("ds", annotations={"sickbay.dev/simulate-stop-seconds": "5"})
    rig.create("daemonsets.apps", workload("DaemonSet", "ds", made_of=slow))
    rig.advance(4)
    (first,) = rig.names()
    rig.delete("pods", first)
    rig.advance(4)
    assert rig.names() == [first]
    rig.advance(4)
    (second,) = rig.names()
    assert second != first


def test_a_rolling_update_replaces_one_pod_at_a_time() -> None:
    rig = Rig(nodes=3, timings=SLOW)
    rig.create("daemonsets.apps", workload("DaemonSet", "ds"))
    rig.advance(5)
    rig.patch("daemonsets.apps", "ds", change(v="2"))
    for _ in range(40):
        ready = [one for one in rig.pods() if (condition(one, "Ready") or {}).get("status") == "True"]
        assert len(ready) >= 2
        rig.advance(1)
    assert len(rig.pods("Running", v="2")) == 3
    assert rig.get("daemonsets.apps", "ds")["status"]["updatedNumberScheduled"] == 3


def test_on_delete_upgrades_only_what_somebody_deletes() -> None:
    rig = Rig(nodes=2)
    rig.create("daemonsets.apps", workload("DaemonSet", "ds", updateStrategy={"type": "OnDelete"}))
    old = {one["metadata"]["labels"]["controller-revision-hash"] for one in rig.pods()}
    rig.patch("daemonsets.apps", "ds", change(v="2"))
    rig.advance(5)
    assert len(old) == 1
    assert rig.pods(v="2") == []
    rig.delete("pods", rig.names()[0])
    rig.advance(5)
    assert len(rig.pods("Running", v="2")) == 1
    revisions = sorted(rig.store.list("controllerrevisions.apps"), key=lambda one: one["revision"])
    assert [one["revision"] for one in revisions] == [1, 2]
    newest = revisions[-1]["metadata"]["labels"]["controller-revision-hash"]
    assert rig.pods(v="2")[0]["metadata"]["labels"]["controller-revision-hash"] == newest


def test_a_template_that_comes_back_takes_up_its_old_revision() -> None:
    rig = Rig(nodes=1)
    rig.create("daemonsets.apps", workload("DaemonSet", "ds"))
    (first,) = rig.store.list("controllerrevisions.apps")
    rig.patch("daemonsets.apps", "ds", change(v="2"))
    rig.patch("daemonsets.apps", "ds", change(v=None))  # type: ignore[arg-type]
    rig.advance(5)
    revisions = {
        one["metadata"]["name"]: one["revision"] for one in rig.store.list("controllerrevisions.apps")
    }
    assert len(revisions) == 2
    assert revisions[first["metadata"]["name"]] == 3


def test_old_revisions_without_pods_go_beyond_the_history() -> None:
    rig = Rig(nodes=1)
    rig.create("daemonsets.apps", workload("DaemonSet", "ds", revisionHistoryLimit=1))
    for version in range(4):
        rig.patch("daemonsets.apps", "ds", change(v=str(version)))
        rig.advance(3)
    assert len(rig.store.list("controllerrevisions.apps")) == 2


def test_a_surge_starts_the_new_pod_beside_the_old_one() -> None:
    rig = Rig(nodes=1, timings=SLOW)
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    rig.create("daemonsets.apps", workload("DaemonSet", "ds", updateStrategy=rolling))
    rig.advance(5)
    rig.patch("daemonsets.apps", "ds", change(v="2"))
    assert len(rig.pods()) == 2
    rig.advance(10)
    assert len(rig.pods()) == len(rig.pods("Running", v="2")) == 1


def test_a_failed_pod_is_deleted_and_made_anew_less_and_less_often() -> None:
    rig = Rig()
    plugins = Plugins(1)
    rig.add_node("n1", plugins=plugins)
    plugins.error = "rpc error: code = Unavailable"
    seen: set[str] = set()
    rig.create("daemonsets.apps", workload("DaemonSet", "ds", made_of=template("ds", gpus=1)))
    for _ in range(20):
        seen.update(rig.names())
        rig.advance(1)
    assert 4 <= len(seen) <= 7
    plugins.error = ""
    rig.advance(60)
    assert len(rig.pods("Running")) == 1
