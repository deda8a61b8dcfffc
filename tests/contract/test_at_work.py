"""The controller at work on either API: a fault is fenced, its node drained, and all it asks for is in the list."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from exporter.publish import Publisher
from health.report import Fault, ReportStatus
from health.vocabulary import Severity
from remediation.configuration import ControllerConfiguration
from remediation.controller import Controller
from remediation.drain import Notice
from remediation.pod_api import NOTICE_ANNOTATION, KubernetesPods
from runtime.api_errors import Invalid
from runtime.clock import SystemClock
from runtime.quantities import Duration, ListenAddress
from tests.contract.calls import CALLS
from tests.contract.objects import node, running_pod
from tests.contract.sent import PRODUCT, recording
from tests.contract.test_calls import fits
from tests.contract.world import CONTROLS, NODES, SESSIONS, Object, World
from tests.lab.processes import wait_until

POLICY = """
apiVersion: sickbay.dev/v1alpha1
kind: Policy
metadata: {name: contract}
rules:
- name: all
  mode: Auto
  drain: {mode: Evict, pods: All, force: true, deadline: 1m, preDrain: {wait: 200ms, notice: save your work}}
budgets: {maxFenced: 100%, maxDisrupted: 100%, startRate: {perMinute: 6000, burst: 1000}}
"""


@contextlib.contextmanager
def running_controller(world: World, tmp_path: Path) -> Iterator[None]:
    """A controller in threads of its own."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    session = world.session.clone()
    session.user_agent = "sickbay-controller/contract"
    config = ControllerConfiguration(
        policy=policy,
        listen=ListenAddress.parse("127.0.0.1:0"),
        lease_namespace=world.namespace,
        lease_name=world.fresh("controller"),
        lease_duration=Duration.parse("4s"),
        renew_deadline=Duration.parse("3s"),
        retry_period=Duration.parse("500ms"),
    )
    controller = Controller(config, session, version="contract")
    thread = threading.Thread(target=controller.run)
    thread.start()
    try:
        yield
    finally:
        controller.stopping.set()
        thread.join(20)
        assert not thread.is_alive()


@contextlib.contextmanager
def reported(world: World, name: str, uid: str) -> Iterator[None]:
    """The node's agent reports a board that is to be replaced."""
    now = datetime.now(UTC)
    fault = Fault(
        kind="RemapFailed",
        severity=Severity.FATAL,
        first_seen=now,
        last_seen=now,
        device_uuid="GPU-1",
        advice="ReplaceHardware",
    )
    publisher = Publisher(
        world.session.clone(),
        node=name,
        node_uid=uid,
        on_met=lambda status: None,
        on_spec=lambda spec: None,
        on_written=lambda sequence, write, seconds: None,
        renew_interval=1.0,
    )
    publisher.start()
    publisher.offer(ReportStatus(node_uid=uid, boot_id="boot-1", faults=(fault,)))
    try:
        yield
    finally:
        assert publisher.stop(5.0)


def test_a_fault_is_fenced_and_drained_with_listed_calls_alone(world: World, tmp_path: Path) -> None:
    name = world.fresh("sick")
    uid = world.create(NODES, node(name))["metadata"]["uid"]
    if not world.exists(f"{CONTROLS}/default"):
        body = {"apiVersion": "sickbay.dev/v1alpha1", "kind": "AcceleratorControl"}
        world.create(CONTROLS, {**body, "metadata": {"name": "default"}})
    target = running_pod(world, node=name)
    pod_path = f"{world.pods}/{target['metadata']['name']}"

    def session() -> Object | None:
        found = world.get(SESSIONS, {"labelSelector": f"sickbay.dev/node-uid={uid}"})["items"]
        return found[0] if found else None

    def evicted() -> bool:
        return "deletionTimestamp" in world.get(pod_path)["metadata"]

    with recording() as sent, running_controller(world, tmp_path), reported(world, name, uid):
        wait_until(evicted, 30, "the pod to be evicted")
    fenced = world.get(f"{NODES}/{name}")
    found = session()
    assert found is not None
    assert fenced["spec"]["unschedulable"] is True
    assert fenced["metadata"]["annotations"]["sickbay.dev/session"] == found["metadata"]["name"]
    ours = {one for one in sent if one.site.partition("/")[0] in PRODUCT}
    assert {one for one in ours if not any(fits(one, call) for call in CALLS)} == set()
    verbs = {(one.verb, one.resource) for one in ours}
    assert {("create", "pods/eviction"), ("patch", "pods"), ("create", "events"), ("patch", "nodes")} <= verbs
    assert {("watch", "nodes"), ("update", "leases.coordination.k8s.io")} <= verbs


def test_a_notice_reaches_no_pod_but_the_one_that_is_meant(world: World) -> None:
    """A replacement of the same name has another UID, which the API finds Invalid in a patch, and no Conflict."""
    target = running_pod(world)
    name = target["metadata"]["name"]
    pods = KubernetesPods(world.session, clock=SystemClock(), may_write=lambda: True)
    done_by = datetime.now(UTC)
    with pytest.raises(Invalid):
        pods.tell(Notice(world.namespace, name, "uid-of-its-predecessor", done_by, "save your work"))
    assert world.get(f"{world.pods}/{name}") == target
    pods.tell(Notice(world.namespace, name, target["metadata"]["uid"], done_by, "save your work"))
    assert NOTICE_ANNOTATION in world.get(f"{world.pods}/{name}")["metadata"]["annotations"]
