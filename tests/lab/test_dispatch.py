"""What the agent measures of a real pod's dispatch, on a real kubelet, is what a watch at the API server sees."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtime.api_errors import ConnectionFailed
from runtime.kubernetes import Session
from runtime.spans import dispatch_trace
from simulation.plugin_control import change_control
from tests.lab import manifests
from tests.lab.conftest import clean
from tests.lab.gpu_node import GPU, TICK, GpuNode
from tests.lab.lab import Lab
from tests.lab.processes import wait_until
from tests.lab.rig import Rig
from tests.otlp_receiver import OtlpReceiver, ReceivedSpan

pytestmark = pytest.mark.timeout(180)

NODE = "dispatching"
STAGES = ("scheduled", "admitted", "running", "ready")
STAGE = "accelerator_dispatch_stage_duration_seconds"
ALLOCATION = "accelerator_allocation_duration_seconds"
TOLERANCE = 0.5
"""Seconds between what two watches on a busy machine see of the same thing."""


class Watch:
    """When a namespace's pods were first seen in a state, by an API watch, in seconds of the wall clock."""

    def __init__(self, lab: Lab, namespace: str) -> None:
        self.seen: dict[tuple[str, str], float] = {}
        self._session = Session.from_kubeconfig(lab.kubeconfig, user_agent="dispatch-watch")
        path = f"/api/v1/namespaces/{namespace}/pods"
        listed = msgspec.json.decode(self._session.get(path).body)
        version = listed["metadata"]["resourceVersion"]
        self._stream = self._session.watch(path, resource_version=version, timeout_seconds=120)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(ConnectionFailed):
            for event in self._stream:
                now = time.time()
                pod: Any = msgspec.json.decode(event)["object"]
                name, status = pod["metadata"]["name"], pod["status"]
                self.seen.setdefault((name, status.get("phase", "")), now)
                for condition in status.get("conditions", []):
                    if condition["status"] == "True":
                        self.seen.setdefault((name, condition["type"]), now)

    def when(self, name: str, state: str) -> float:
        return wait_until(lambda: self.seen.get((name, state)), 15, f"{name} to be {state}")

    def close(self) -> None:
        self._stream.close()
        self._thread.join(10)
        self._session.close()


class Scene:
    """A node whose agent is told nothing but by its kubelet, and what comes of it."""

    def __init__(self, gpus: GpuNode, receiver: OtlpReceiver, watch: Watch) -> None:
        self.gpus, self.receiver, self.watch = gpus, receiver, watch
        self.rig = Rig(
            gpus.lab,
            environment={
                "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
                "OTEL_BSP_SCHEDULE_DELAY": "200",
            },
        )

    def start_agent(self, *flags: str) -> None:
        self.rig.start_agent(self.gpus.node, *flags, machine=self.gpus.machine)
        self.await_source("pods", "Live")
        self.await_source("pod-resources", "Live")

    def serve(self, *, latency: float = 0.0) -> None:
        """Start the plugin, which takes so many seconds for an allocation."""
        change_control(
            self.gpus.control, lambda found: msgspec.structs.replace(found, allocate_latency_seconds=latency)
        )
        self.gpus.serve()

    def await_source(self, name: str, state: str) -> None:
        def said() -> bool:
            return self.metric("sickbay_source_state", source=name, state=state) == 1

        wait_until(said, 20, f"{name} to be {state}", logs=self.rig.logs, ignoring=(OSError,))

    def metric(self, name: str, **labels: str) -> float:
        return self.rig.metric(name, port=self.rig.agents[NODE].port, **labels)

    def seconds(self, stage: str) -> float:
        return self.metric(f"{STAGE}_sum", stage=stage, resource=GPU)

    def counts(self) -> dict[str, float]:
        return {stage: self.metric(f"{STAGE}_count", stage=stage) for stage in (*STAGES, "total")}

    def await_outcomes(self, outcome: str, count: int) -> None:
        def counted() -> bool:
            return self.metric("accelerator_dispatches_total", outcome=outcome) == count

        wait_until(counted, 15, f"{count} dispatches that are {outcome}", logs=self.rig.logs)

    def uid(self, pod: str) -> str:
        path = f"/api/v1/namespaces/{self.gpus.namespace}/pods/{pod}"
        return str(self.gpus.lab.api.get(path)["metadata"]["uid"])

    def trace(self, uid: str, spans: int) -> dict[str, ReceivedSpan]:
        """The spans of a pod's dispatch by name, once so many have come."""
        wanted = dispatch_trace(uid).trace_hex

        def come() -> dict[str, ReceivedSpan] | None:
            found = [one for one in self.receiver.spans().values() if one.trace_id == wanted]
            return {one.name: one for one in found} if len(found) == spans else None

        return wait_until(come, 15, f"{spans} spans of {uid}", logs=self.rig.logs)


@pytest.fixture(scope="module")
def gpu_node(lab: Lab) -> Iterator[GpuNode]:
    manifests.apply(lab)
    found = GpuNode(lab, lab.add_node(NODE, status_frequency=TICK))
    yield found
    found.observer.close()
    found.stop_plugins()
    lab.remove_node(NODE)


@pytest.fixture
def scene(gpu_node: GpuNode, namespace: str) -> Iterator[Scene]:
    gpu_node.namespace = namespace
    watch = Watch(gpu_node.lab, namespace)
    with OtlpReceiver("http/protobuf") as receiver:
        scene = Scene(gpu_node, receiver, watch)
        try:
            yield scene
        finally:
            scene.rig.stop()
            scene.rig.state_file(NODE).unlink(missing_ok=True)
            watch.close()
            gpu_node.stop_plugins()
            gpu_node.observer.await_nobody()
            clean(gpu_node.lab)


def length(span: ReceivedSpan) -> float:
    return (span.end_ns - span.start_ns) / 1e9


def test_stages_agree_with_a_watch_and_are_told_as_a_whole_trace(scene: Scene) -> None:
    scene.serve(latency=0.7)
    scene.start_agent()
    assert scene.counts() == dict.fromkeys((*STAGES, "total"), 0), "series are there before the first pod"
    posted = time.time()
    scene.gpus.run_pod("one", 1, scheduled=True)
    scene.await_outcomes("Ready", 1)

    assert scene.counts() == dict.fromkeys((*STAGES, "total"), 1)
    bound, ready = scene.watch.when("one", "PodScheduled"), scene.watch.when("one", "Ready")
    assert scene.seconds("scheduled") in (0.0, 1.0)
    assert abs(scene.seconds("scheduled") - (bound - posted)) < 1
    assert 0.7 <= scene.metric(f"{ALLOCATION}_sum", resource=GPU) < 0.7 + TOLERANCE
    assert scene.seconds("admitted") == scene.metric(f"{ALLOCATION}_sum", resource=GPU)
    watched = sum(scene.seconds(stage) for stage in ("admitted", "running", "ready"))
    assert abs(watched - (ready - bound)) < TOLERANCE
    assert scene.seconds("total") == pytest.approx(watched + scene.seconds("scheduled"))

    spans = scene.trace(scene.uid("one"), 5)
    root = spans.pop("pod.dispatch")
    assert spans.keys() == {f"pod.{stage}" for stage in STAGES}
    assert {span.parent_id for span in spans.values()} == {root.span_id} and root.parent_id == ""
    for stage in STAGES[1:]:
        assert length(spans[f"pod.{stage}"]) == pytest.approx(scene.seconds(stage), abs=1e-5)
    assert [span.start_ns for span in (spans["pod.scheduled"], spans["pod.admitted"])] == [
        root.start_ns,
        spans["pod.scheduled"].end_ns,
    ]
    assert abs(root.end_ns / 1e9 - ready) < TOLERANCE
    held = wait_until(lambda: scene.gpus.held_by("one"), 5, "the holdings")
    assert list(root.attributes["hw.id"]) == held
    assert root.attributes["sickbay.dispatch.times"] == "watched"


def test_the_kubelets_own_measure_is_passed_on(scene: Scene) -> None:
    scene.serve()
    scene.gpus.run_pod("one", 1)
    scene.start_agent()
    scene.await_source("kubelet-metrics", "Live")
    name = "accelerator_kubelet_allocation_duration_seconds_count"
    wait_until(lambda: scene.metric(name, resource=GPU) >= 1, 10, "the kubelet's histogram")


def test_a_rejected_pod_is_a_failure_and_no_allocation(scene: Scene) -> None:
    scene.serve()
    scene.start_agent()
    scene.gpus.stop_plugins()
    scene.gpus.observer.await_nobody()
    scene.gpus.reject_pod("refused")
    scene.await_outcomes("Rejected", 1)
    failures = "accelerator_allocation_failures_total"
    assert scene.metric(failures, resource=GPU, reason="UnexpectedAdmissionError") == 1
    assert scene.metric(f"{ALLOCATION}_count") == 0 and scene.counts()["admitted"] == 0
    (root,) = scene.trace(scene.uid("refused"), 1).values()
    assert (root.status, root.status_message) == ("error", "UnexpectedAdmissionError")


def test_neither_a_kubelet_nor_an_agent_that_starts_again_measures_a_pod_again(scene: Scene) -> None:
    scene.serve()
    scene.start_agent()
    scene.gpus.run_pod("one", 1)
    scene.await_outcomes("Ready", 1)
    told = scene.trace(scene.uid("one"), 5)
    arrived = len(scene.receiver.arrivals())
    scene.gpus.node.kill_kubelet()
    scene.gpus.await_offered(8, 8, 15)
    scene.await_source("pods", "Live")
    scene.gpus.run_pod("two", 1)
    scene.await_outcomes("Ready", 2)
    assert scene.counts() == dict.fromkeys((*STAGES, "total"), 2)
    scene.trace(scene.uid("two"), 5)
    assert len(scene.receiver.arrivals()) == arrived + 5, "the first pod's trace was not told again"

    state = scene.rig.state_file(NODE)
    wait_until(lambda: scene.uid("two") in state.read_text(), 5, "the dispatch to be remembered")
    scene.rig.agents[NODE].child.kill()
    scene.start_agent()
    wait_until(lambda: len(scene.receiver.arrivals()) >= arrived + 15, 15, "both traces to be told again")
    assert scene.trace(scene.uid("one"), 5).keys() == told.keys()
    assert scene.counts() == dict.fromkeys((*STAGES, "total"), 0)


def test_without_the_pods_api_the_kubelets_page_tells_with_whole_seconds(
    scene: Scene, tmp_path: Path
) -> None:
    scene.serve()
    scene.start_agent("--pods-socket", str(tmp_path / "none.sock"))
    scene.gpus.run_pod("one", 1)
    scene.await_outcomes("Ready", 1)
    assert scene.counts() == dict.fromkeys((*STAGES, "total"), 1)
    assert all(scene.seconds(stage) in (0, 1, 2) for stage in STAGES)
    assert scene.trace(scene.uid("one"), 5)["pod.dispatch"].attributes["sickbay.dispatch.times"] == "api"


def test_a_kubelet_that_proves_nothing_is_not_asked(scene: Scene, tmp_path: Path) -> None:
    scene.rig.start_agent(
        scene.gpus.node,
        *("--pods-socket", str(tmp_path / "none.sock")),
        *("--kubelet-authority", str(scene.gpus.lab.folder / "admin.crt")),
        machine=scene.gpus.machine,
    )
    for source in ("pods", "kubelet-metrics"):
        scene.await_source(source, "Unsupported")
    assert "CERTIFICATE_VERIFY_FAILED" in scene.rig.agents[NODE].child.log.read_text()
