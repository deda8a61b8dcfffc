"""The image and the manifests as they are: built here, run on a real kubelet, and a fault is met with them.

What the lab changes of the manifests, and why: the DaemonSet's state folder and boot ID (a lab node shares the
machine's), and the agent's configuration (simulated devices; kernel lines of userspace are believed, for nobody else
can write into the machine's /dev/kmsg). The controller's Deployment runs unchanged under Pod Security `restricted`.

It has a lab of its own: the controller's pods go to any node, and only this one has the image and a pod network.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulation.machine import h100_machine, save
from tests.cannot_run import cannot_run
from tests.lab import kernel_log, manifests, plugin_pods, rbac_usage
from tests.lab.api import ApiError, Object
from tests.lab.conftest import PROBLEMS
from tests.lab.images import PROJECT
from tests.lab.lab import Lab
from tests.lab.node import Node
from tests.lab.pod_network import pod_network
from tests.lab.processes import log_tail, wait_until
from tests.lab.rig import XID_79, sum_of
from tests.lab.workloads import GPU, budget, cordon, deployment, job, placed, running

pytestmark = pytest.mark.timeout(900)

NODE, SPARE = "imaged", "spare"
EXIT_REFUSED = 8
HOST_FOLDER = "/var/lib/kubelet/sickbay"
AUTO = """
apiVersion: sickbay.dev/v1alpha1
kind: Policy
metadata: {name: auto}
rules: [{name: all, mode: Auto}]
budgets: {maxFenced: 100%, maxDisrupted: 100%}
repair: {rebootDeadline: 60s}
"""


@pytest.fixture(scope="module")
def archive(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image as `deploy/build-image` builds it, on a base that is made here."""
    missing = [program for program in ("buildah", "mmdebstrap") if shutil.which(program) is None]
    if missing:
        reason = f"the image cannot be built here: apt-get install {' '.join(missing)}"
        pytestconfig.stash.setdefault(PROBLEMS, []).append(reason)
        cannot_run(reason)
    target = tmp_path_factory.mktemp("image") / "sickbay.tar"
    command = [str(PROJECT / "deploy" / "build-image"), "--local-base", "--archive", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return target


class Ward:
    """The node, and our pods on it as they are seen from outside."""

    def __init__(self, lab: Lab, node: Node) -> None:
        self.lab, self.node = lab, node

    def pods(self, namespace: str) -> list[Object]:
        """Running and Ready pods of a namespace."""

        def ready(pod: Object) -> bool:
            conditions = {one["type"]: one["status"] for one in pod["status"].get("conditions", [])}
            return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]

        return [pod for pod in self.lab.api.items(f"/api/v1/namespaces/{namespace}/pods") if ready(pod)]

    def await_ready(self, namespace: str, count: int) -> list[Object]:
        try:
            wait_until(lambda: len(self.pods(namespace)) == count, 90, f"{count} pods of {namespace}")
        except Exception as error:
            told = self.lab.kubectl("describe", "pods", f"--namespace={namespace}", check=False)
            logs = [
                self.lab.kubectl(
                    "logs", f"--namespace={namespace}", pod["metadata"]["name"], "--tail=20", check=False
                )
                for pod in self.lab.api.items(f"/api/v1/namespaces/{namespace}/pods")
            ]
            tails = "\n".join(map(log_tail, self.node.logs))
            raise AssertionError(f"{error}\n{told[-4000:]}\n{logs}\n{tails}") from error
        return self.pods(namespace)

    def metric(self, pod: Object, port: int, name: str, **labels: str) -> float:
        address = pod["status"]["podIP"]
        with urllib.request.urlopen(f"http://{address}:{port}/metrics", timeout=5) as answer:
            return sum_of(answer.read().decode(), name, labels)

    def sessions(self) -> list[Object]:
        return self.lab.api.items(manifests.SESSIONS)

    def kept(self) -> Object:
        """What of the node nobody but people and repair change."""
        found = self.lab.api.get(f"/api/v1/nodes/{NODE}")
        return {
            "spec": found["spec"],
            **{key: found["metadata"].get(key) for key in ("labels", "annotations")},
        }

    def cordoned(self) -> bool:
        return bool(self.kept()["spec"].get("unschedulable"))

    def changes_of_nodes(self) -> list[str]:
        """What Sickbay asked the API server to change on Nodes and pods, conditions aside; from the audit log."""
        return [
            f"{event['verb']} {event['requestURI']}"
            for event in _asked_by_sickbay(self.lab)
            if event["verb"] not in ("get", "list", "watch")
            and event.get("objectRef", {}).get("resource") in ("nodes", "pods")
            and event["objectRef"].get("subresource") != "status"
        ]

    def status_of(self, pod: Object) -> dict[str, str]:
        """/proc/PID/status of the pod's first process that is ours, and how its root is mounted (`root`: ro or rw)."""
        uid = pod["metadata"]["uid"]

        def found() -> dict[str, str] | None:
            return next(
                (one for one in map(_process, Path("/proc").iterdir()) if one and uid in one["cgroup"]), None
            )

        return wait_until(found, 10, f"a process of pod {pod['metadata']['name']}")


def _process(folder: Path) -> dict[str, str] | None:
    """What /proc says of a process of ours; None for any other."""
    if not folder.name.isdecimal():
        return None
    try:
        if b"sickbay" not in (folder / "cmdline").read_bytes():
            return None
        mounts = [row.split() for row in (folder / "mountinfo").read_text().splitlines()]
        root = next(mount for mount in mounts if mount[4] == "/")
        rows = (folder / "status").read_text().splitlines()
        group = (folder / "cgroup").read_text().replace("_", "-")
    except (OSError, StopIteration):
        return None
    return {**dict(row.split(":\t", 1) for row in rows), "root": root[5].split(",")[0], "cgroup": group}


@pytest.fixture(scope="module")
def ward(archive: Path) -> Iterator[Ward]:
    with Lab() as lab:
        node = lab.add_node(NODE, labels={"nvidia.com/gpu.present": "true"})
        manifests.apply(lab)
        _import_image(node, archive)
        with pod_network(lab, node):
            lab.kubectl("apply", "--validate=strict", "-k", manifests.DEPLOY)
            _adapt_agent(lab)
            yield Ward(lab, node)
        events = _asked_by_sickbay(lab)
    refused = rbac_usage.refusals(events)
    assert events
    assert not refused, f"Sickbay asked for what it may not have: {refused[:3]}"


def _asked_by_sickbay(lab: Lab) -> list[Object]:
    """The audit log's events of our two programs."""
    ours = ("sickbay-agent/", "sickbay-controller/")
    return [event for event in lab.audit_events() if event.get("userAgent", "").startswith(ours)]


def _import_image(node: Node, archive: Path) -> None:
    mine = node.kubelet_dir / "sickbay"
    mine.mkdir()
    save(mine / "machine.json", h100_machine(NODE))
    (mine / "boot_id").write_text(node.boot_id)
    shared = mine / "image.tar"
    shutil.copyfile(archive, shared)
    node.execute(
        *("ctr", "--address", "/run/containerd/containerd.sock", "--namespace", "k8s.io"),
        *("images", "import", f"{HOST_FOLDER}/image.tar"),
        timeout=120,
    )
    shared.unlink()


def _adapt_agent(lab: Lab) -> None:
    configuration = {
        "listen": ":9400",
        "drill": True,
        "kernelLogSince": kernel_log.next_sequence(),
        "bootId": f"{HOST_FOLDER}/boot_id",
        "stateFile": f"{HOST_FOLDER}/agent.json",
        "workerCommand": ["python3", "-m", "simulation.worker", "--machine", f"{HOST_FOLDER}/machine.json"],
        "renewInterval": "1s",
    }
    namespace = manifests.AGENT[0]
    config_map = f"/api/v1/namespaces/{namespace}/configmaps/sickbay-agent"
    lab.api.patch(config_map, {"data": {"agent.yaml": json.dumps(configuration)}})
    volumes = [{"name": "state", "hostPath": {"path": HOST_FOLDER, "type": "Directory"}}]
    mounts = [{"name": "state", "mountPath": HOST_FOLDER}]
    patch = {
        "spec": {
            "template": {
                "spec": {"volumes": volumes, "containers": [{"name": "agent", "volumeMounts": mounts}]}
            }
        }
    }
    lab.kubectl(
        *("patch", "daemonset", "sickbay-agent", f"--namespace={namespace}"),
        *("--type=strategic", "--patch", json.dumps(patch)),
    )


def _kernel_says(address: str) -> None:
    kernel_log.write(f"{XID_79.format(address=address)}\n".encode())


def test_the_manifests_run_the_image_and_the_default_policy_only_observes(ward: Ward) -> None:
    controllers = ward.await_ready(manifests.CONTROLLER[0], 2)
    (agent,) = ward.await_ready(manifests.AGENT[0], 1)

    for pod in controllers:
        status = ward.status_of(pod)
        assert status["Uid"].split() == ["65532"] * 4
        assert int(status["CapEff"], 16) == 0 and int(status["CapPrm"], 16) == 0
        assert (status["Seccomp"], status["NoNewPrivs"], status["root"]) == ("2", "1", "ro")
    assert ward.status_of(agent)["root"] == "ro"
    system = ward.lab.api.get(f"/api/v1/namespaces/{manifests.CONTROLLER[0]}")
    assert system["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"

    wait_until(lambda: _reported(ward) == 8, 30, "eight healthy devices in the report", ignoring=(ApiError,))
    wait_until(
        lambda: any(
            ward.metric(pod, 9401, "sickbay_nodes", state="healthy") == 1
            for pod in ward.pods("sickbay-system")
        ),
        60,
        "the leading controller to see a healthy node",
        ignoring=(OSError,),
    )
    before = ward.kept()
    _kernel_says("0000:3b:00")

    def journalled() -> Object | None:
        found = [one for one in ward.sessions() if one.get("status", {}).get("journal")]
        return found[0] if found else None

    session = wait_until(journalled, 30, "a session that says what would be done")
    assert session["spec"]["mode"] == "Observe"
    assert session["status"]["journal"][0]["step"] == "Cordon"
    assert ward.kept() == before
    assert ward.changes_of_nodes() == []


def _reported(ward: Ward) -> int:
    devices = ward.lab.api.get(f"{manifests.REPORTS}/{NODE}").get("status", {}).get("devices", [])
    return sum(device.get("health") == "Healthy" for device in devices)


def test_with_a_policy_that_acts_the_node_is_fenced_and_its_jobs_go_to_another(ward: Ward) -> None:
    namespace = manifests.CONTROLLER[0]
    ward.lab.api.patch(
        f"/api/v1/namespaces/{namespace}/configmaps/sickbay-policy", {"data": {"policy.yaml": AUTO}}
    )
    # A ConfigMap that is mounted changes within a minute or two; a new pod has it at once.
    ward.lab.kubectl("rollout", "restart", "deployment/sickbay-controller", f"--namespace={namespace}")
    ward.lab.kubectl(
        "rollout", "status", "deployment/sickbay-controller", f"--namespace={namespace}", "--timeout=120s"
    )
    _run_jobs(ward)
    _kernel_says("0000:43:00")
    wait_until(ward.cordoned, 60, "the cordon")
    # The audit log hears of a write when it was answered, which is later than its effect is seen.
    wait_until(ward.changes_of_nodes, 10, "the cordon in the audit log")

    def held() -> Object | None:
        found = [one for one in ward.sessions() if one.get("status", {}).get("phase") == "Held"]
        return found[0] if found else None

    session = wait_until(held, 120, "the session to be held")
    assert session["spec"]["mode"] == "Auto"
    assert session["status"]["reason"] == "NoRepairStep"
    steps = [entry["step"] for entry in session["status"]["journal"]]
    assert steps == ["Cordon", "Cordon", "Drain", "Drain", "Reboot", "Reboot"]
    assert "sickbay-repair/reboot" in session["status"]["message"], "what is missing is named"
    assert session["status"]["drain"]["evicted"] == 5
    lab = ward.lab
    assert len(running(lab, "default", NODE)) == 1, "the pod without a GPU stays"
    wait_until(lambda: len(running(lab, "default", SPARE)) == 5, 60, "all jobs to run on the other node")


def test_with_the_repair_switch_a_repair_looks_and_the_real_host_is_not_touched(ward: Ward) -> None:
    """The PodTemplates as they are deployed: `look` runs as nobody in particular, and `repair` is not what it asks for
    here (a lab node has this machine's kernel and no init system of its own), so it refuses before it does anything."""
    ward.lab.kubectl("apply", "--validate=strict", "-k", manifests.DEPLOY / "repair")
    # A person's hold and its end let the session go on, which was held for want of a repair step.
    ward.lab.kubectl("annotate", "node", NODE, "sickbay.dev/hold=alice")
    wait_until(lambda: _held_for(ward) == "HeldByUser", 30, "the hold to be seen")
    ward.lab.kubectl("annotate", "node", NODE, "sickbay.dev/hold-")
    wait_until(lambda: _held_for(ward) == "RepairNotSeen", 180, "the session to be held again")

    pods = ward.lab.api.items(f"/api/v1/namespaces/{manifests.REPAIR[0]}/pods")
    (status,) = [pod["status"] for pod in pods]
    (look,) = status["initContainerStatuses"]
    (repair,) = status["containerStatuses"]
    assert look["state"]["terminated"]["exitCode"] == 0
    assert repair["state"]["terminated"]["exitCode"] == EXIT_REFUSED
    assert f"ended with {EXIT_REFUSED}" in _held(ward)["message"]
    assert not (ward.node.run_dir / "sickbay" / "receipts").exists()


def _held(ward: Ward) -> Object:
    """The status of the session that is held; empty without one. Others of the node have given way before it."""
    held = [one["status"] for one in ward.sessions() if one.get("status", {}).get("phase") == "Held"]
    return held[0] if held else {}


def _held_for(ward: Ward) -> str:
    return str(_held(ward).get("reason", ""))


def _run_jobs(ward: Ward) -> None:
    """A Deployment and a Job with GPUs, and a pod without, all on the node; then another node that could take them.

    It has no agent: that one would read the same kernel log. It comes late, for it has neither image nor pod network.
    """
    lab = ward.lab
    spare = lab.add_node(SPARE)
    cordon(lab, SPARE, True)
    for node in (ward.node, spare):
        plugin_pods.provide_machine(node)
    lab.apply(plugin_pods.plugin_daemon_set(lab.server, namespace="kube-system"))

    def offered() -> bool:
        nodes = lab.api.items("/api/v1/nodes")
        return all(node["status"]["allocatable"].get(GPU) == "8" for node in nodes)

    wait_until(offered, 60, "the devices of both nodes", logs=[*ward.node.logs, *spare.logs])
    work = (deployment("train", 3), budget("train", 2), job("batch", 2), deployment("web", 1, gpus=0))
    lab.apply(*placed("default", *work))
    wait_until(lambda: len(running(lab, "default", NODE)) == 6, 60, "all pods to run", logs=ward.node.logs)
    cordon(lab, SPARE, False)
