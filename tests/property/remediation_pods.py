"""The pods of the small cluster: workloads, gangs and device plugins, with evictions that fail like any request."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from msgspec.structs import replace

from remediation.drain import Eviction, Notice
from remediation.pod import Pod, PodCondition
from remediation.steps.plugin import DaemonSetView
from runtime.api_errors import Conflict, ConnectionFailed, Unavailable
from tests.fake_pods import FakePods, budget_refusal, make_pod
from tests.unit.fake_cluster import Crash, Trouble

PLUGIN = {"name": "nvidia-device-plugin-ds", "controller-revision-hash": "r1"}
PLUGIN_OPERAND = "nvidia.com/gpu.deploy.device-plugin"
EXPORTER_OPERAND = "nvidia.com/gpu.deploy.dcgm-exporter"
OPERAND_LABELS = {
    PLUGIN_OPERAND: "true",
    EXPORTER_OPERAND: "true",
    "nvidia.com/gpu.deploy.dcgm": "false",
}
"""Labels of a node by which GPU Operator places its parts; the last is somebody's decision."""

GANG = {"jobset.sigs.k8s.io/jobset-name": "pretrain"}
_WORKLOADS: dict[str, dict[str, Any]] = {
    "plain": {"owner": "ReplicaSet"},
    "job": {"owner": "Job"},
    "jobset": {"owner": "Job", "labels": GANG},
    "without a device": {"owner": "ReplicaSet", "gpus": 0},
    "bare": {"owner": ""},
    "refused": {"owner": "ReplicaSet", "phase": "Failed", "reason": "UnexpectedAdmissionError"},
    "waiting": {"owner": "ReplicaSet", "phase": "Pending"},
}
WORKLOADS = tuple(_WORKLOADS)


@dataclass
class ClusterPods(FakePods):
    """Pods that the world has something to say about: `trouble` decides what becomes of each mutation."""

    trouble: Callable[[], Trouble | None] = lambda: None
    on_mutation: Callable[[str, Pod], None] = lambda verb, pod: None
    broken_plugins: set[str] = field(default_factory=set)
    """Nodes on which a restart of the plugin helps nothing."""

    def bind(self, node_name: str, what: str) -> None:
        """A pod of some kind is on the node now."""
        known = dict(_WORKLOADS[what])
        labels, reason = known.pop("labels", {}), known.pop("reason", "")
        pod = make_pod(**known, created=self.clock.wall(), grace=10, spec={"nodeName": node_name})
        started = None if what in ("waiting", "refused") else self.clock.wall()
        self.put(
            replace(
                pod,
                metadata=replace(pod.metadata, labels=labels),
                status=replace(pod.status, reason=reason, start_time=started),
            )
        )

    def run_daemons(self, node_name: str, labels: Mapping[str, str]) -> bool:
        """The DaemonSets' controller: whether the node had no device plugin and has one now."""
        self._place(node_name, "exporter", EXPORTER_OPERAND, labels.get(EXPORTER_OPERAND) == "true")
        wanted = labels.get(PLUGIN_OPERAND, "true") == "true"
        return self._place(node_name, "", PLUGIN_OPERAND if PLUGIN_OPERAND in labels else "", wanted)

    def _place(self, node_name: str, operand: str, key: str, wanted: bool) -> bool:
        """Start a daemon's pod where it is wanted and there is none, and end it where it is not."""
        mine = {"operand": operand} if operand else PLUGIN
        there = [pod for pod in self.on(node_name) if pod.of_daemon_set and pod.metadata.labels == mine]
        if there and wanted:
            return False
        if not wanted:
            soon = self.clock.wall() + timedelta(seconds=1)
            for pod in there:
                if pod.metadata.deletion_timestamp is None:
                    self.put(replace(pod, metadata=replace(pod.metadata, deletion_timestamp=soon)))
            return False
        pod = make_pod(
            owner="DaemonSet",
            gpus=0,
            namespace="kube-system",
            created=self.clock.wall(),
            grace=1,
            spec={"nodeName": node_name, "nodeSelector": {key: "true"} if key else {}},
        )
        ready = replace(pod.status, start_time=self.clock.wall(), conditions=(PodCondition("Ready", "True"),))
        self.put(replace(pod, metadata=replace(pod.metadata, labels=mine), status=ready))
        self.daemon_sets["kube-system/owner"] = DaemonSetView(on_delete=False, current_revision="r1")
        return True

    def operands_on(self, node_name: str) -> list[Pod]:
        """The pods of GPU Operator that are on a node, and hold its devices."""
        return [pod for pod in self.on(node_name) if pod.spec.node_selector and not pod.finished]

    def on(self, node_name: str) -> list[Pod]:
        """The pods bound to a node."""
        return [pod for pod in self.pods.values() if pod.spec.node_name == node_name]

    def meet(self, node_name: str, what: str) -> None:
        """Something befalls the pods of a node."""
        for pod in self.on(node_name):
            match what:
                case "budget" if not pod.of_daemon_set:
                    self.refusals[pod.uid] = [budget_refusal()]
                case "no budget":
                    self.refusals.pop(pod.uid, None)
                case "stubborn":
                    self.stubborn.add(pod.uid)
                case "ends" if not pod.of_daemon_set:
                    self.remove(pod.uid)
                case "admitted" if pod.unadmitted:
                    running = replace(pod.status, phase="Running", start_time=self.clock.wall())
                    self.put(replace(pod, status=running))

    def clear(self, node_name: str, *, reboot: bool = False) -> None:
        """The node is gone, or has booted: then what was on its way out is gone."""
        for pod in self.on(node_name):
            if not reboot or pod.metadata.deletion_timestamp is not None:
                self.stubborn.discard(pod.uid)
                self.remove(pod.uid)

    def heal(self) -> None:
        """Nothing stands in the way of a pod's end any more."""
        self.stubborn.clear()
        self.refusals.clear()
        self.broken_plugins.clear()
        for name in {pod.spec.node_name for pod in self.pods.values()}:
            self.meet(name, "admitted")

    def let_time_end_pods(self) -> None:
        """What nobody looks at ends too."""
        self._let_time_end_pods()

    def evict(self, eviction: Eviction) -> None:
        self._send("evict", eviction.uid, lambda: FakePods.evict(self, eviction))

    def tell(self, notice: Notice) -> None:
        self._send("tell", notice.uid, lambda: FakePods.tell(self, notice))

    def delete_pod(self, namespace: str, name: str, uid: str) -> None:
        plugin = self.pods.get(uid)
        self._send("delete", uid, lambda: FakePods.delete_pod(self, namespace, name, uid))
        if plugin is not None and plugin.of_daemon_set:
            self.bind(plugin.spec.node_name, "refused")  # as every pod that arrives while no plugin serves

    def _send(self, verb: str, uid: str, act: Callable[[], None]) -> None:
        trouble = self.trouble()
        match trouble:
            case Trouble.CRASH_BEFORE:
                raise Crash
            case Trouble.REFUSED:
                raise Unavailable("not now", status=503, reason="ServiceUnavailable")
            case Trouble.UNREACHABLE:
                raise ConnectionFailed("refused", sent=False)
            case Trouble.CONFLICT:
                raise Conflict("the object has been modified", status=409, reason="Conflict")
        if uid in self.pods:
            self.on_mutation(verb, self.pods[uid])
        act()
        if trouble is Trouble.CRASH_AFTER:
            raise Crash
        if trouble in (Trouble.LOST, Trouble.LATE):
            raise ConnectionFailed("no answer", sent=True)
