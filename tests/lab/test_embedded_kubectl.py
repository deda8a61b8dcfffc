"""The real kubectl against the embedded API: what people type at a cluster works, and says what it says elsewhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runtime.clock import SystemClock
from simulation.cluster.server import EmbeddedApi
from tests.lab import binaries
from tests.unit.embedded_rig import budget, eventually, pod, remediation, report, running

REPORT = "acceleratorreports.sickbay.dev"
SESSION = "acceleratorremediations.sickbay.dev"


@dataclass(frozen=True, slots=True)
class Kubectl:
    """kubectl as a user of one embedded API, with a home of its own."""

    url: str
    home: Path
    user: str = "alice"

    @property
    def _start(self) -> list[str]:
        program = str(binaries.kubernetes_folder() / "kubectl")
        return [program, "--server", self.url, "--as", self.user, "--request-timeout", "10s"]

    @property
    def _environment(self) -> dict[str, str]:
        return {"HOME": str(self.home), "KUBECONFIG": str(self.home / "none"), "PATH": os.environ["PATH"]}

    def __call__(self, *arguments: str, stdin: str = "", fails: bool = False) -> str:
        """What it prints, or what it says when it has to fail."""
        ran = subprocess.run(
            [*self._start, *arguments],
            input=stdin,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (ran.returncode != 0) is fails, f"{arguments}: {ran.stdout}{ran.stderr}"
        return ran.stderr if fails else ran.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "-o", "json"))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._start, *arguments], env=self._environment, stdout=subprocess.PIPE, text=True
        )


@pytest.fixture(scope="module")
def api() -> Iterator[EmbeddedApi]:
    with EmbeddedApi(clock=SystemClock()) as running:
        ready = {
            "conditions": [{"type": "Ready", "status": "True"}],
            "nodeInfo": {"kubeletVersion": "v1.37.2"},
        }
        for name in ("n1", "n2"):
            running.store.create(
                "nodes", {"metadata": {"name": name, "labels": {"pool": name}}, "status": ready}
            )
        yield running


@pytest.fixture
def kubectl(api: EmbeddedApi, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    return Kubectl(api.url, tmp_path_factory.getbasetemp())


def test_it_knows_the_version_and_the_resources(kubectl: Kubectl) -> None:
    assert kubectl.json("version")["serverVersion"]["gitVersion"] == "v1.37.2"
    names = set(kubectl("api-resources", "-o", "name").split())
    assert {"nodes", "pods", "jobs.batch", REPORT, SESSION} <= names


def test_nodes_are_listed_by_name_label_and_field(kubectl: Kubectl) -> None:
    lines = kubectl("get", "nodes").splitlines()
    assert lines[0].split() == ["NAME", "STATUS", "ROLES", "AGE", "VERSION"]
    assert lines[1].split()[:3] == ["n1", "Ready", "<none>"]
    assert "CONTAINER-RUNTIME" in kubectl("get", "nodes", "-o", "wide")
    assert kubectl("get", "nodes", "-l", "pool=n2", "-o", "name") == "node/n2\n"
    assert kubectl("get", "nodes", "--field-selector", "metadata.name=n1", "-o", "name") == "node/n1\n"
    assert kubectl("get", "nodes", "--chunk-size", "1", "-o", "name").split() == ["node/n1", "node/n2"]
    assert "kind: Node" in kubectl("get", "node", "n1", "-o", "yaml")
    assert 'nodes "n9" not found' in kubectl("get", "node", "n9", fails=True)


def test_a_node_is_cordoned_and_uncordoned(api: EmbeddedApi, kubectl: Kubectl) -> None:
    assert kubectl("cordon", "n1") == "node/n1 cordoned\n"
    assert "Ready,SchedulingDisabled" in kubectl("get", "node", "n1")
    managers = kubectl.json("get", "node", "n1", "--show-managed-fields")["metadata"]["managedFields"]
    (cordon,) = [entry for entry in managers if "f:unschedulable" in entry["fieldsV1"].get("f:spec", {})]
    assert cordon["manager"] == "kubectl"
    assert "already cordoned" in kubectl("cordon", "n1")
    assert kubectl("uncordon", "n1") == "node/n1 uncordoned\n"
    assert "unschedulable" not in api.store.get("nodes", "n1")["spec"]
    patches = [entry for entry in api.audit.entries() if entry.verb == "patch" and entry.name == "n1"]
    assert {entry.user for entry in patches} == {"alice"}
    assert all(entry.user_agent.startswith("kubectl/") for entry in patches)


def test_annotations_and_labels_are_set_and_taken(kubectl: Kubectl) -> None:
    kubectl("annotate", "node", "n2", "sickbay.dev/hold=by hand")
    kubectl("label", "node", "n2", "team=a")
    assert "--overwrite is false" in kubectl("label", "node", "n2", "team=b", fails=True)
    kubectl("label", "node", "n2", "team=b", "--overwrite")
    metadata = kubectl.json("get", "node", "n2")["metadata"]
    assert metadata["annotations"] == {"sickbay.dev/hold": "by hand"}
    assert metadata["labels"]["team"] == "b"
    kubectl("annotate", "node", "n2", "sickbay.dev/hold-")
    assert "annotations" not in kubectl.json("get", "node", "n2")["metadata"]


def test_our_kinds_have_their_short_names_and_columns(api: EmbeddedApi, kubectl: Kubectl) -> None:
    kubectl("create", "--validate=false", "-f", "-", stdin=json.dumps(report("n1")))
    api.store.create(SESSION, remediation("n1-0123456789"))
    api.store.patch(SESSION, "n1-0123456789", {"status": {"phase": "Draining"}}, subresource="status")
    assert kubectl("get", "acr", "-o", "name") == "acceleratorreport.sickbay.dev/n1\n"
    header, row = kubectl("get", "acrem").splitlines()
    assert header.split()[:4] == ["NAME", "NODE", "PHASE", "MODE"]
    assert row.split()[:4] == ["n1-0123456789", "n1", "Draining", "Auto"]
    assert "MESSAGE" in kubectl("get", "acrem", "-o", "wide")
    assert kubectl("get", "acrem", "--field-selector", "spec.nodeName=n2", "-o", "name") == ""
    assert "acceleratorreport.sickbay.dev/n1" in kubectl("get", "sickbay")
    wrong = {"spec": {"mode": "Never"}}
    told = kubectl("patch", "acrem", "n1-0123456789", "--type=merge", "-p", json.dumps(wrong), fails=True)
    assert 'Unsupported value: "Never"' in told


def test_a_pod_is_deleted_and_waited_for(api: EmbeddedApi, kubectl: Kubectl) -> None:
    api.store.create("pods", pod("p"))
    assert kubectl("get", "pods", "-o", "wide").splitlines()[1].split()[:3] == ["p", "0/1", "Pending"]
    waiting = kubectl.start("delete", "pod", "p")
    eventually(
        lambda: "deletionTimestamp" in api.store.get("pods", "p", namespace="default")["metadata"],
        "the pod is terminating",
        seconds=20,
    )
    assert kubectl("get", "pod", "p").splitlines()[1].split()[2] == "Terminating"
    assert waiting.poll() is None
    api.store.delete("pods", "p", namespace="default", grace_seconds=0)
    out, _ = waiting.communicate(timeout=20)
    assert 'pod "p" deleted' in out
    api.store.create("pods", pod("q"))
    kubectl("delete", "pod", "q", "--grace-period=0", "--force")
    assert api.store.list("pods") == []


def test_a_watch_prints_what_happens(api: EmbeddedApi, kubectl: Kubectl) -> None:
    watching = kubectl.start("get", "nodes", "-w")
    assert watching.stdout is not None
    try:
        assert [watching.stdout.readline().split()[0] for _ in range(3)] == ["NAME", "n1", "n2"]
        eventually(lambda: api.watches() == 1, "kubectl watches", seconds=20)
        api.store.patch("nodes", "n2", {"spec": {"unschedulable": True}})
        assert watching.stdout.readline().split()[:2] == ["n2", "Ready,SchedulingDisabled"]
        api.store.patch("nodes", "n2", {"spec": {"unschedulable": None}})
        assert watching.stdout.readline().split()[:2] == ["n2", "Ready"]
    finally:
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=20)


def test_events_workloads_and_budgets_are_listed(api: EmbeddedApi, kubectl: Kubectl) -> None:
    involved = {"kind": "Pod", "namespace": "default", "name": "p"}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    event = {
        "involvedObject": involved,
        "reason": "Seen",
        "message": "hello",
        "type": "Warning",
        "lastTimestamp": now,
    }
    api.store.create("events", {"metadata": {"name": "e"}, **event})
    assert kubectl("get", "events").splitlines()[1].split()[1:] == ["Warning", "Seen", "pod/p", "hello"]
    template: Any = {
        "metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }
    spec = {"selector": {"matchLabels": {"a": "b"}}, "template": template}
    api.store.create("deployments.apps", {"metadata": {"name": "d"}, "spec": spec})
    assert kubectl("get", "deploy").splitlines()[1].split()[:4] == ["d", "0/1", "0", "0"]
    batch = {"template": {"spec": {**template["spec"], "restartPolicy": "Never"}}}
    kubectl(
        "create",
        "--validate=false",
        "-f",
        "-",
        stdin=json.dumps({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": batch}),
    )
    assert kubectl("get", "jobs").splitlines()[1].split()[:3] == ["j", "Running", "0/1"]
    assert kubectl("get", "pdb", "-o", "name") == ""


def test_a_drain_evicts_and_is_held_up_by_a_budget(api: EmbeddedApi, kubectl: Kubectl) -> None:
    running(api.store, "free", node="n2", labels={"app": "free"})
    running(api.store, "guarded", node="n2", labels={"app": "guarded"})
    budget(api.store, "b", app="guarded", disruptionsAllowed=0)
    told = kubectl("drain", "n2", "--force", "--timeout=3s", fails=True)
    assert "Cannot evict pod as it would violate the pod's disruption budget" in told
    pods = {item["metadata"]["name"]: item for item in api.store.list("pods")}
    assert "deletionTimestamp" in pods["free"]["metadata"]
    assert "deletionTimestamp" not in pods["guarded"]["metadata"]
    kubectl("uncordon", "n2")
    for name in pods:
        api.store.delete("pods", name, namespace="default", grace_seconds=0)
