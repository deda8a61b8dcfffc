"""A ward for repairs: two nodes with agents, device plugins and jobs as pods, and who plays their hosts.

The controller is a process under its own account, so that it can be killed. Only what a repair's privileged container
does to the host is simulated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from tests.lab import manifests
from tests.lab.api import ApiError, Object
from tests.lab.processes import wait_until
from tests.lab.repair.hosts import OPERAND, Host
from tests.lab.rig import Rig
from tests.lab.sickbay_pods import SickbayPods

POLICY = """
apiVersion: sickbay.dev/v1alpha1
kind: Policy
metadata: {name: repairs}
rules:
- name: reset-only
  match: {codes: ["xid:119"]}
  mode: Auto
  plan: [ResetDevice]
  drain: {mode: Evict, deadline: 3m}
- name: replace
  match: {codes: ["xid:64"]}
  mode: Auto
  plan: [ReplaceHardware]
  drain: {mode: Evict, deadline: 3m}
- name: all
  mode: Auto
  drain: {mode: Evict, deadline: 3m}
budgets: {maxFenced: 50%, maxDisrupted: 50%, startRate: {perMinute: 600, burst: 100}}
healthyDwell: 3s
repair:
  releaseDeadline: 40s
  resetDeadline: 25s
  rebootDeadline: 60s
  proof: 20s
  repeats: {limit: 1000}
"""
UNCONTAINED = "NVRM: Xid (PCI:{address}): 95, pid=1234, name=python, Uncontained ECC error"
GSP_TIMEOUT = "NVRM: Xid (PCI:{address}): 119, pid=1234, name=python, Timeout waiting for RPC from GSP"
REMAP_FAILED = "NVRM: Xid (PCI:{address}): 64, pid=1234, name=python, Row remapping failed"
ADDRESS = "0000:3b:00"
G1 = "/api/v1/nodes/g1"


class Ward:
    """Two nodes with everything on them, and who plays their hosts."""

    def __init__(self, pods: SickbayPods, rig: Rig, hosts: dict[str, Host]) -> None:
        self.pods, self.rig, self.hosts, self.lab = pods, rig, hosts, pods.lab
        self.host = hosts["g1"]
        self.besides: Callable[[], None] | None = None
        """What else is to be done while something is waited for."""
        self.uuid = self.host.uuid_at(ADDRESS)

    def kernel_says(self, line: str) -> None:
        self.pods.kernel_says("g1", line.format(address=ADDRESS))

    def session(self) -> Object:
        """The node's newest session."""
        found = sorted(self.pods.sessions("g1"), key=lambda one: one["metadata"]["creationTimestamp"])
        return found[-1] if found else {}

    def status(self) -> Object:
        return dict(self.session().get("status", {}))

    def wait(self, condition: Callable[[], Any], deadline: float, what: str) -> Any:
        """`wait_until`, while the hosts do what they are asked."""

        def looked() -> Any:
            for host in self.hosts.values():
                host.obey()
            if self.besides is not None:
                self.besides()
            return condition()

        return wait_until(looked, deadline, what, logs=self.rig.logs, ignoring=(OSError,))

    def until(self, reached: Callable[[Object], bool], what: str, deadline: float = 120) -> Object:
        """Wait for what the session says of itself."""

        def found() -> Object | None:
            status = self.status()
            return status if status and reached(status) else None

        try:
            return dict(self.wait(found, deadline, what))
        except Exception as error:
            told = msgspec.json.format(msgspec.json.encode(self.session().get("status"))).decode()
            raise AssertionError(f"{error}\n{told}") from error

    def ends(self, phase: str, reason: str, deadline: float = 120) -> Object:
        return self.until(
            lambda status: (status["phase"], status["reason"]) == (phase, reason),
            f"{phase} ({reason})",
            deadline,
        )

    def obey_policy(self, *, more: str = "", instead: bool = False) -> None:
        """Give the controller the ward's policy with more in it, or with other rules, and wait until it goes by it."""
        rules = POLICY[POLICY.index("rules:") : POLICY.index("budgets:")]
        text = POLICY.replace(rules, "") if instead else POLICY
        loaded = self._policies_loaded()
        if self.rig.policy.read_text() != text + more:
            self.rig.policy.write_text(text + more)
            self.wait(lambda: self._policies_loaded() > loaded, 30, "the new policy")

    def _policies_loaded(self) -> float:
        return self.rig.metric("sickbay_policy_loads_total", result="done")

    def wait_for_api(self, condition: Callable[[], Any], what: str) -> None:
        """Until the API server no longer refuses."""
        wait_until(condition, 20, what, ignoring=(ApiError,))

    def jobs(self) -> list[Object]:
        return list(self.lab.api.items(manifests.JOBS))

    def ran(self, template: str) -> list[Object]:
        """The session's Jobs of a template."""
        name = self.session()["metadata"]["name"]
        return [
            job
            for job in self.jobs()
            if job["metadata"]["labels"].get("sickbay.dev/template") == template
            and job["metadata"]["annotations"]["sickbay.dev/session"] == name
        ]

    @property
    def resets(self) -> int:
        """How many resets of this session were carried out, by the receipts on the host (of this boot)."""
        name = self.session()["metadata"]["name"]
        receipts = self.host.receipts("reset")
        return sum((one["session"], one["result"]) == (name, "Done") for one in receipts)

    def labels(self) -> dict[str, str]:
        return dict(self.lab.api.get(G1)["metadata"]["labels"])

    def asked_to_release(self) -> bool:
        return "deviceRelease" in self.pods.report("g1").get("spec", {})

    def gives_everything_back(self) -> None:
        """Nothing that was taken for a reset is kept."""
        self.wait(lambda: self.labels()[OPERAND] == "true", 30, "the operand's label to be given back")
        self.wait(lambda: not self.asked_to_release(), 30, "the agent to have its devices back")

    def is_whole(self) -> None:
        """The node is open, with all its devices, and nothing of ours is on it."""
        node = self.lab.api.get(G1)
        assert not node["spec"].get("unschedulable")
        assert "sickbay.dev/session" not in node["metadata"].get("annotations", {})
        self.gives_everything_back()
        self.pods.wait_offered()


def steps_of(status: Object) -> list[str]:
    """The steps whose outcome is in the journal, each once, in order."""
    done = [entry["step"] for entry in status["journal"] if entry["event"] == "Outcome"]
    return list(dict.fromkeys(done))


def again(ward: Ward, job: Object) -> None:
    """Run a Job's main container once more, as a kubelet does that has forgotten it: past the look of its init
    container, which would refuse it."""
    spec = {**job["spec"]["template"]["spec"], "initContainers": []}
    name = f"again-{job['metadata']['name']}"[:60]
    pod: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "sickbay-repair",
            "annotations": job["spec"]["template"]["metadata"]["annotations"],
            "labels": {"sickbay.dev/template": job["metadata"]["labels"]["sickbay.dev/template"]},
        },
        "spec": spec,
    }
    path = "/api/v1/namespaces/sickbay-repair/pods"
    ward.lab.api.create(path, pod)
    ward.wait(
        lambda: ward.lab.api.get(f"{path}/{name}")["status"].get("phase") == "Succeeded",
        60,
        f"{name} to end",
    )
    ward.lab.api.delete(f"{path}/{name}")


def upgrade(ward: Ward, state: str | None) -> None:
    """What GPU Operator says of a driver upgrade of the node."""
    ward.lab.api.patch(G1, {"metadata": {"labels": {"nvidia.com/gpu-driver-upgrade-state": state}}})


@contextlib.contextmanager
def plugin_that_does_not_leave(ward: Ward) -> Iterator[None]:
    """While somebody's finalizer keeps the plugin's pod, the devices are not released."""
    pod = ward.pods.plugin_pod("g1")["metadata"]
    path = f"/api/v1/namespaces/{pod['namespace']}/pods/{pod['name']}"
    ward.lab.api.patch(path, {"metadata": {"finalizers": ["example.com/stays"]}})
    try:
        yield
    finally:
        with contextlib.suppress(ApiError):
            ward.lab.api.patch(path, {"metadata": {"finalizers": None}})
