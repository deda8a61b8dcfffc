"""Dispatches and remediations are whole traces at a real receiver, also when agent and controller are killed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest

from runtime.spans import dispatch_trace
from tests.lab import images, manifests
from tests.lab.api import Object
from tests.lab.conftest import clean
from tests.lab.gpu_node import GPU, TICK, GpuNode
from tests.lab.lab import Lab
from tests.lab.processes import wait_until
from tests.lab.rig import Rig
from tests.otlp_receiver import Mode, OtlpReceiver, ReceivedSpan

pytestmark = pytest.mark.timeout(240)

NODE = "traced"
STAGES = {"pod.scheduled", "pod.admitted", "pod.running", "pod.ready"}


@pytest.fixture(scope="module")
def gpu_node(lab: Lab) -> Iterator[GpuNode]:
    manifests.apply(lab)
    found = GpuNode(lab, lab.add_node(NODE, status_frequency=TICK))
    yield found
    found.observer.close()
    found.stop_plugins()
    lab.remove_node(NODE)


class Scene:
    """A node with a plugin, agent and controller, and where their spans go."""

    def __init__(self, gpus: GpuNode, receiver: OtlpReceiver) -> None:
        self.gpus, self.receiver = gpus, receiver
        self.rig = Rig(
            gpus.lab,
            environment={
                "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
                "OTEL_EXPORTER_OTLP_PROTOCOL": receiver.protocol,
                "OTEL_BSP_SCHEDULE_DELAY": "200",
            },
        )

    def start_agent(self) -> None:
        self.rig.start_agent(self.gpus.node, machine=self.gpus.machine)

    def spans(self) -> list[ReceivedSpan]:
        """What has arrived; the receiver makes sure that what came twice is the same."""
        return list(self.receiver.spans().values())

    def trace(self, root_name: str, **attributes: str) -> list[ReceivedSpan]:
        """The spans of the trace whose root has this name and these attributes; none before the root is there."""
        wanted = {key.replace("_", "."): value for key, value in attributes.items()}
        spans = self.spans()
        roots = [one for one in spans if one.name == root_name and wanted.items() <= one.attributes.items()]
        return [one for one in spans if roots and one.trace_id == roots[0].trace_id]

    def run_deployment(self) -> str:
        """A Deployment of one GPU pod; the pod's UID once it runs."""
        container = images.container("main", ["sleep", "infinity"])
        container["resources"] = {"limits": {GPU: 1}}
        labels = {"app": "traced"}
        spec = images.pod_spec([container], nodeSelector={"kubernetes.io/hostname": NODE})
        self.gpus.lab.apply(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": "traced", "namespace": self.gpus.namespace},
                "spec": {
                    "selector": {"matchLabels": labels},
                    "template": {"metadata": {"labels": labels}, "spec": spec},
                },
            }
        )
        (pod,) = wait_until(lambda: self._pods("Running"), 30, "the pod to run")
        return str(pod["metadata"]["uid"])

    def _pods(self, phase: str) -> list[Object]:
        found = self.gpus.lab.api.items(f"/api/v1/namespaces/{self.gpus.namespace}/pods")
        return [pod for pod in found if pod["status"].get("phase") == phase]

    def wait_phase(self, phase: str, deadline: float = 60) -> Object:
        def reached() -> Object | None:
            found = self.rig.sessions(NODE)
            return next((one for one in found if one.get("status", {}).get("phase") == phase), None)

        return wait_until(reached, deadline, f"a session in {phase}", logs=self.rig.logs)


@pytest.fixture
def scene(request: pytest.FixtureRequest, gpu_node: GpuNode, namespace: str) -> Iterator[Scene]:
    gpu_node.namespace = namespace
    protocol: Literal["http/protobuf", "grpc"] = getattr(request, "param", "http/protobuf")
    with OtlpReceiver(protocol) as receiver:
        scene = Scene(gpu_node, receiver)
        gpu_node.serve()
        scene.start_agent()
        scene.rig.start_controller()
        try:
            scene.rig.wait_watching()
            yield scene
        finally:
            scene.rig.stop()
            for file in scene.rig.folder.iterdir():
                file.unlink()
            gpu_node.stop_plugins()
            gpu_node.observer.await_nobody()
            clean(gpu_node.lab)


def whole(trace: list[ReceivedSpan]) -> bool:
    """Whether there is one root, and every other span hangs on one that is there."""
    ids = {span.span_id for span in trace}
    return [span.parent_id for span in trace if span.parent_id not in ids] == [""]


@pytest.mark.parametrize("scene", ["http/protobuf", "grpc"], indirect=True)
def test_a_remediation_and_the_dispatches_it_is_linked_to_are_whole_traces(scene: Scene) -> None:
    uid = scene.run_deployment()
    dispatch = wait_until(lambda: scene.trace("pod.dispatch", k8s_pod_uid=uid), 15, "the dispatch")
    assert whole(dispatch) and {span.name for span in dispatch} == {"pod.dispatch", *STAGES}
    assert {span.attributes["k8s.node.name"] for span in dispatch} == {NODE}
    assert all(span.attributes["hw.id"] for span in dispatch), [
        (one.name, one.attributes) for one in dispatch
    ]
    assert {span.resource["service.name"] for span in dispatch} == {"sickbay-agent"}

    scene.rig.lose_gpu(NODE)
    session = scene.wait_phase("Held")
    scene.rig.agents[NODE].child.stop()
    scene.rig.agents[NODE].kernel_log.write_text("")
    scene.gpus.node.reboot(scene.gpus.lab.api)
    scene.start_agent()
    scene.wait_phase("Released", 90)

    name = session["metadata"]["name"]
    told = wait_until(lambda: scene.trace("remediation", sickbay_session_name=name), 15, "the remediation")
    assert whole(told)
    phases = {span.name for span in told if span.name.startswith("phase ")}
    assert phases == {
        f"phase {phase}" for phase in ("Pending", "Fenced", "Draining", "Repairing", "Held", "Verifying")
    }
    steps = {span.name: span for span in told if span.name.startswith("step ")}
    assert steps.keys() == {"step Cordon", "step Drain", "step Reboot", "step Uncordon"}
    linked = {link[0]: link[2]["sickbay.pod.role"] for link in steps["step Drain"].links}
    assert linked[dispatch_trace(uid).trace_hex] == "evicted"
    assert "replacement" in linked.values()
    assert session["status"]["traceID"] == told[0].trace_id


def test_agent_and_controller_that_are_killed_in_the_middle_lose_no_span_and_tell_none_differently(
    scene: Scene,
) -> None:
    scene.receiver.mode = Mode.DOWN
    uid = scene.run_deployment()
    node = scene.rig.agents[NODE]
    port = node.port
    wait_until(
        lambda: (
            scene.rig.metric("accelerator_dispatch_stage_duration_seconds_count", port=port, stage="total")
            == 1
        ),
        15,
        "the dispatch to be measured",
    )
    wait_until(lambda: uid in scene.rig.state_file(NODE).read_text(), 5, "the dispatch to be remembered")
    node.child.kill()
    scene.rig.lose_gpu(NODE)
    scene.start_agent()
    session = scene.wait_phase("Draining")
    assert scene.rig.controller is not None
    scene.rig.controller.kill()
    scene.receiver.mode = Mode.OK
    scene.rig.start_controller()
    scene.wait_phase("Held")
    scene.rig.controller.kill()
    scene.rig.start_controller()

    name = session["metadata"]["name"]
    dispatch = wait_until(lambda: scene.trace("pod.dispatch", k8s_pod_uid=uid), 15, "the dispatch")
    assert whole(dispatch) and {span.name for span in dispatch} == {"pod.dispatch", *STAGES}

    def told() -> set[str]:
        return {span.name for span in scene.spans() if span.attributes.get("sickbay.session.name") == name}

    wanted = {
        "phase Pending",
        "phase Fenced",
        "phase Draining",
        "phase Repairing",
        "step Cordon",
        "step Drain",
    }
    wait_until(lambda: wanted <= told(), 20, f"all phases and steps, now {told()}", logs=scene.rig.logs)
