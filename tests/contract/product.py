"""The product's own calls, each made once against a world: what `test_calls.py` records."""

from __future__ import annotations

import queue
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from exporter.publish import Publisher
from health.report import AcceleratorReport, ReportStatus
from health.vocabulary import Mode
from remediation.cluster import CONTROLS, NODES, REMEDIATIONS, REPORTS, Cluster
from remediation.drain import Eviction, Notice
from remediation.drain_state import EvictedPod
from remediation.election import LeaseRecord
from remediation.fleet import Node
from remediation.lease import KubernetesLeaseApi
from remediation.objects import (
    AcceleratorControl,
    AcceleratorRemediation,
    RemediationSpec,
    RemediationStatus,
    StartTokens,
)
from remediation.pod_api import KubernetesPods
from remediation.reflector import Event, Kind, Reflector
from remediation.repair import check
from remediation.repair_api import KubernetesRepairs
from remediation.steps.job import RepairJob
from runtime.clock import SystemClock
from runtime.kubernetes import Session
from tests.contract.objects import node, pod, running_pod
from tests.contract.world import APPS, World

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def drive(world: World, session: Session) -> None:
    """Every call there is, by `session`, with the answers that it normally gets; `world` sets the scene."""
    name = world.fresh("driven")
    uid = world.create(NODES, node(name))["metadata"]["uid"]
    if not world.exists(f"{CONTROLS}/default"):
        control = {"kind": "AcceleratorControl", "metadata": {"name": "default"}}
        world.create(CONTROLS, {"apiVersion": "sickbay.dev/v1alpha1", **control})
    assert session.check().startswith("v1.")
    _agent(world, session, name, uid)
    _controller(world, session, name, uid)
    _drain(world, session, name)
    _plugin(world, session)
    _repairs(world, session, name, uid)
    _election(world, session)


def _agent(world: World, session: Session, name: str, uid: str) -> None:
    met: queue.Queue[object] = queue.Queue()
    written: queue.Queue[int] = queue.Queue()
    publisher = Publisher(
        session,
        node=name,
        node_uid=uid,
        on_met=met.put,
        on_spec=lambda spec: None,
        on_written=lambda sequence, write, seconds: written.put(sequence),
    )
    publisher.start()
    try:
        assert met.get(timeout=10) is None
        publisher.offer(ReportStatus(node_uid=uid, boot_id="boot-1"))
        assert written.get(timeout=10) == 1
        publisher.offer(ReportStatus(node_uid=uid, boot_id="boot-2"))
        assert written.get(timeout=10) == 2
    finally:
        assert publisher.stop(5.0)


def _controller(world: World, session: Session, name: str, uid: str) -> None:
    cluster = Cluster(session, may_write=lambda: True)
    found = cluster.get_node(name)
    patch = {
        "metadata": {"uid": uid, "resourceVersion": found.metadata.resource_version},
        "spec": {"unschedulable": True},
    }
    cluster.patch_node(name, msgspec.json.encode(patch))
    assert cluster.get_node(name).cordoned_by
    world.merge(f"{NODES}/{name}", {"spec": {"taints": [{"key": "example.com/t", "effect": "NoSchedule"}]}})
    assert not cluster.remove_taint(cluster.get_node(name), "example.com/t").spec.taints
    report = cluster.report(name)
    assert report is not None and report.status.boot_id == "boot-2"
    spec = RemediationSpec(node_name=name, node_uid=uid, boot_id="boot-1", mode=Mode.OBSERVE)
    opened = cluster.create_session(f"{name}-0123456789", spec, RemediationStatus())
    opened = cluster.write_status(opened, RemediationStatus(leader_epoch=3))
    assert cluster.session(opened.metadata.name) == opened
    assert cluster.sessions_of(uid) == (opened,)
    assert opened in cluster.all_sessions().readable
    cluster.control()
    cluster.write_start_tokens(StartTokens(tokens=1.0, refreshed_time=NOW))
    for path, kind, one in (
        (REPORTS, AcceleratorReport, name),
        (NODES, Node, name),
        (REMEDIATIONS, AcceleratorRemediation, opened.metadata.name),
        (CONTROLS, AcceleratorControl, "default"),
    ):
        _reflect(world, session, path, kind, one)
    cluster.delete_session(opened)
    assert cluster.session(opened.metadata.name) is None


def _reflect(world: World, session: Session, path: str, kind: Any, name: str) -> None:
    """List and watch a collection until a change of the object of this name has come."""
    events: queue.Queue[Event[Any]] = queue.Queue()
    reflector: Reflector[Any] = Reflector(
        session, path, kind, key=lambda found: str(found.metadata.name), sink=events.put
    )
    reflector.start()
    try:
        assert reflector.synced.wait(10)
        world.merge(f"{path}/{name}", {"metadata": {"annotations": {"example.com/at": world.fresh("t")}}})
        while (event := events.get(timeout=10)).kind is not Kind.MODIFIED or event.key != name:
            pass
    finally:
        reflector.stop()
    assert (reflector.counters.errors, reflector.counters.skipped) == (0, 0)


def _drain(world: World, session: Session, name: str) -> None:
    pods = KubernetesPods(session, clock=SystemClock(), may_write=lambda: True)
    first, second = running_pod(world, node=name), running_pod(world, node=name)
    found = {one.metadata.name: one for one in pods.pods_on(name)}
    assert found.keys() == {first["metadata"]["name"], second["metadata"]["name"]}
    target = found[first["metadata"]["name"]]
    where, called = target.metadata.namespace, target.metadata.name
    notice = Notice(where, called, target.uid, NOW + timedelta(minutes=1), "will be evicted")
    pods.tell(notice)
    pods.tell(notice)
    pods.evict(Eviction(where, called, target.uid))
    assert pods.replacements([EvictedPod(target.uid, where, "uid-of-owner")], since=NOW) == ()
    pods.delete_pod(where, second["metadata"]["name"], second["metadata"]["uid"])


def _plugin(world: World, session: Session) -> None:
    labels = {"app": world.fresh("plugin")}
    spec = {
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod("x")["spec"]},
    }
    body = {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": labels["app"]}, "spec": spec}
    world.create(world.collection("daemonsets", group=APPS), body)
    pods = KubernetesPods(session, clock=SystemClock(), may_write=lambda: True)
    assert not pods.daemon_set(world.namespace, labels["app"]).on_delete


def _repairs(world: World, session: Session, name: str, uid: str) -> None:
    cluster = Cluster(session, may_write=lambda: True)
    pods = KubernetesPods(session, clock=SystemClock(), may_write=lambda: True)
    repairs = KubernetesRepairs(session, cluster, pods, may_write=lambda: True)
    report = cluster.report(name)
    assert report is not None
    repairs.order_release(report, None)
    template = {
        "apiVersion": "v1",
        "kind": "PodTemplate",
        "metadata": {"name": f"{name}-reset"},
        "template": {"spec": {**pod("x")["spec"], "restartPolicy": "Never"}},
    }
    world.create(world.collection("podtemplates"), template)
    repairs.create_job(RepairJob(f"{name}-job", f"{name}-reset", world.namespace, name, {}, 600))
    assert not repairs.job(world.namespace, f"{name}-job").ended
    asked = check.Asked(session=f"{name}-none", node=name, node_uid=uid, step="Reset", boot_id="boot-1")
    assert check.look(session, asked).node is not None


def _election(world: World, session: Session) -> None:
    api = KubernetesLeaseApi(session, namespace=world.namespace, name=world.fresh("controller"))
    assert api.read(timeout=5) is None
    record = LeaseRecord(
        "a", 0, 15, acquired="2026-03-01T12:00:00.000000Z", renewed="2026-03-01T12:00:00.000000Z"
    )
    made = api.create(record, timeout=5)
    renewed = LeaseRecord("a", 0, 15, made.acquired, made.renewed, made.resource_version, made.document)
    assert api.replace(renewed, timeout=5).holder == "a"
    assert api.read(timeout=5) is not None
