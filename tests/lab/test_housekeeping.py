"""What the controller does beside repairs, under its own account: it tells pods before a drain, and clears up."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from remediation.retention import KEEP, KEEP_PER_NODE
from tests.lab import manifests, rbac_usage
from tests.lab.api import Object
from tests.lab.conftest import clean
from tests.lab.lab import Lab
from tests.lab.node import Node
from tests.lab.processes import wait_until
from tests.lab.rig import Rig
from tests.lab.workloads import GPU, deployment, placed

NOTICE = "sickbay.dev/drain-notice"
POLICY = """
apiVersion: sickbay.dev/v1alpha1
kind: Policy
metadata: {name: told}
rules:
- name: fatal
  match: {severities: [Fatal]}
  mode: Auto
  drain: {preDrain: {wait: 3s, notice: save your work}, deadline: 2m}
budgets: {maxFenced: 100%, maxDisrupted: 100%, startRate: {perMinute: 6000, burst: 1000}}
healthyDwell: 2s
"""


@pytest.fixture(scope="module")
def node(lab: Lab) -> Iterator[Node]:
    """A node of its own whose GPUs are a number, without a plugin."""
    manifests.apply(lab)
    yield lab.add_node("told", capacity={GPU: 8})
    lab.remove_node("told")
    clean(lab)


@pytest.fixture(scope="module")
def rig(lab: Lab, node: Node) -> Iterator[Rig]:
    """The node's agent and a controller that leads; afterwards nothing was refused to them."""
    begun = len(lab.audit_events())
    rig = Rig(lab, policy=POLICY)
    rig.start_agent(node)
    rig.start_controller()
    try:
        rig.wait_watching()
        yield rig
    finally:
        rig.stop()
        for file in rig.folder.iterdir():
            file.unlink()
    assert not rbac_usage.refusals(lab.audit_events()[begun:])


def test_a_pod_is_told_before_it_is_evicted(rig: Rig, namespace: str) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    rig.lab.apply(*placed(namespace, deployment("training", 1, node="told")))

    def running() -> Object | None:
        return next((pod for pod in rig.lab.api.items(pods) if pod["status"].get("phase") == "Running"), None)

    pod = wait_until(running, 30, "the pod to run")
    rig.lose_gpu("told")
    path = f"{pods}/{pod['metadata']['name']}"
    told = wait_until(
        lambda: rig.lab.api.get(path)["metadata"].get("annotations", {}).get(NOTICE),
        30,
        "the pod to be told",
        logs=rig.logs,
    )
    assert datetime.fromisoformat(told) > datetime.now(UTC) - timedelta(seconds=60)
    wait_until(
        lambda: not rig.lab.api.exists(path) or "deletionTimestamp" in rig.lab.api.get(path)["metadata"],
        30,
        "the pod to be evicted",
        logs=rig.logs,
    )


def test_closed_sessions_are_kept_for_a_while_and_no_more_than_twenty_of_a_node(rig: Rig) -> None:
    now = datetime.now(UTC)
    closed = {
        **{f"kept-{number:02}": now - timedelta(hours=number) for number in range(KEEP_PER_NODE)},
        "one-too-many": now - timedelta(days=2),
    }
    make_closed(rig.lab, "gone", closed)
    make_closed(rig.lab, "gone-too", {"old": now - KEEP - timedelta(hours=1), "young": now})
    left = (closed.keys() - {"one-too-many"}) | {"young"}
    wait_until(
        lambda: (
            {one["metadata"]["name"] for node in ("gone", "gone-too") for one in rig.sessions(node)} == left
        ),
        30,
        "what is too old or too much to be deleted",
        logs=rig.logs,
    )


def make_closed(lab: Lab, node: str, sessions: dict[str, datetime]) -> None:
    """Released sessions of a node that is not there any more, by name and end."""
    for name, end in sessions.items():
        lab.api.create(manifests.SESSIONS, manifests.session(name, node=node, node_uid=f"uid-of-{node}"))
        status = {"phase": "Released", "closedTime": end.isoformat().replace("+00:00", "Z")}
        lab.api.patch(f"{manifests.SESSIONS}/{name}/status", {"status": status})
