"""Dispatches: each stage is measured once, from what was seen, and a restart measures nothing twice."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric

from exporter.dispatch import STAGES, Dispatches, Told
from exporter.dispatch_outlet import DispatchOutlet
from exporter.dispatch_trace import Dispatched
from exporter.events import AllocationFailed
from exporter.holdings import Holding, Holdings
from exporter.pods import PodSeen, PodsListed
from runtime.spans import SpanRecord, dispatch_trace
from runtime.tracing import SpanCounts

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
GPU = "nvidia.com/gpu"


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def look(seconds: float, uid: str = "uid-1", *, listed: bool = False, **fields: object) -> PodSeen:
    """A pod that was created at noon, seen so many seconds later; `fields` are those that it has by then."""
    base: dict[str, object] = {"phase": "Pending", "scheduled": NOON}
    return PodSeen(
        uid=uid,
        namespace="team",
        name=f"pod-{uid}",
        resource=GPU,
        created=NOON,
        at=at(seconds),
        listed=listed,
        **{**base, **fields},  # type: ignore[arg-type]
    )


def whole(uid: str = "uid-1", *, listed: bool = False) -> list[PodSeen]:
    """A pod's way from being bound until it is ready, as a watch tells it."""
    running = {"admitted": NOON, "running": at(1), "phase": "Running"}
    return [
        look(0.25, uid, listed=listed),
        look(0.5, uid, listed=listed, admitted=NOON),
        look(1.5, uid, listed=listed, **running),
        look(1.75, uid, listed=listed, **running, ready=at(1)),
    ]


class Collected:
    """A tracer that keeps what it is given."""

    enabled = True

    def __init__(self) -> None:
        self.spans: list[SpanRecord] = []

    def emit(self, record: SpanRecord) -> None:
        self.spans.append(record)

    def counts(self) -> SpanCounts:
        return SpanCounts()

    def shutdown(self, timeout: float = 3.0) -> None:
        raise AssertionError("nobody ends it here")

    def collect(self) -> Iterator[Metric]:
        return iter(())

    describe = collect


@pytest.fixture
def tracer() -> Collected:
    return Collected()


@pytest.fixture
def outlet(tracer: Collected) -> DispatchOutlet:
    return DispatchOutlet(tracer, node="n1")


def count_of(outlet: DispatchOutlet, stage: str) -> float:
    return sample(outlet.stages.collect(), "accelerator_dispatch_stage_duration_seconds_count", stage=stage)


def sample(families: object, name: str, **labels: str) -> float:
    found = [
        one.value
        for family in families  # type: ignore[attr-defined]
        for one in family.samples
        if one.name == name and labels.items() <= one.labels.items()
    ]
    return sum(found)


def told_of(looks: list[PodSeen]) -> list[Told]:
    dispatches, all_told = Dispatches(), []
    for pod in looks:
        dispatches, told = dispatches.with_pod(pod)
        if told is not None:
            all_told.append(told)
    return all_told


def test_a_pod_that_was_seen_to_come_is_measured_stage_by_stage(outlet: DispatchOutlet) -> None:
    for pod in whole():
        outlet.take_pod(pod)
    name = "accelerator_dispatch_stage_duration_seconds_sum"
    sums = {stage: sample(outlet.stages.collect(), name, stage=stage) for stage in (*STAGES, "total")}
    assert sums == {"scheduled": 0.25, "admitted": 0.25, "running": 1.0, "ready": 0.25, "total": 1.75}
    assert (
        sample(outlet.allocation.collect(), "accelerator_allocation_duration_seconds_sum", resource=GPU)
        == 0.25
    )


def test_the_kubelets_devices_tell_the_admission_before_the_pod_does(outlet: DispatchOutlet) -> None:
    first, *rest = whole()
    outlet.take_pod(first)
    assert outlet.waits_for_devices
    outlet.take_holdings(Holdings((Holding(GPU, "GPU-1", "team", "pod-uid-1", "main"),)), at(0.28))
    assert not outlet.waits_for_devices
    for pod in rest:
        outlet.take_pod(pod)
    total = sample(outlet.allocation.collect(), "accelerator_allocation_duration_seconds_sum", resource=GPU)
    assert total == pytest.approx(0.03)


def test_devices_that_a_pod_of_the_same_name_held_before_say_nothing(outlet: DispatchOutlet) -> None:
    held = Holdings((Holding(GPU, "GPU-1", "team", "pod-uid-1", "main"),))
    outlet.take_holdings(held, at(0.2))
    outlet.take_pod(look(0.25))
    outlet.take_holdings(held, at(0.3))
    assert count_of(outlet, "admitted") == 0
    outlet.take_pod(look(0.5, admitted=NOON))
    assert count_of(outlet, "admitted") == 1


@pytest.mark.parametrize("repeats", [1, 3])
def test_what_comes_again_is_measured_once(outlet: DispatchOutlet, repeats: int) -> None:
    for pod in [pod for pod in whole() for _ in range(repeats)] + whole() * repeats:
        outlet.take_pod(pod)
    assert {stage: count_of(outlet, stage) for stage in (*STAGES, "total")} == dict.fromkeys(
        (*STAGES, "total"), 1
    )


def test_a_pod_that_was_there_before_is_told_and_not_measured(
    outlet: DispatchOutlet, tracer: Collected
) -> None:
    ready = whole(listed=True)[-1]
    outlet.take_pod(ready)
    assert [count_of(outlet, stage) for stage in STAGES] == [0, 0, 0, 0]
    (root,) = [span for span in tracer.spans if span.parent_id is None]
    assert root.ref == dispatch_trace("uid-1")
    assert root.attributes["sickbay.dispatch.times"] == "api"


def test_a_pod_that_has_been_ready_for_long_is_not_told_again(
    outlet: DispatchOutlet, tracer: Collected
) -> None:
    outlet.take_pod(look(3600, listed=True, admitted=NOON, running=at(1), ready=at(1), phase="Running"))
    assert tracer.spans == []


def test_a_restarted_agent_tells_the_same_spans_again_and_measures_nothing(
    outlet: DispatchOutlet, tracer: Collected
) -> None:
    for pod in whole():
        outlet.take_pod(pod)
    kept = msgspec.json.decode(msgspec.json.encode(outlet.remembered), type=tuple[Dispatched, ...])
    again = Collected()
    restarted = DispatchOutlet(again, node="n1")
    restarted.restore(kept, at(60))
    restarted.take_pod(whole(listed=True)[-1])
    assert again.spans == tracer.spans and len(tracer.spans) == 5
    assert count_of(restarted, "ready") == 0
    late = DispatchOutlet(again, node="n1")
    late.restore(kept, at(3600))
    assert len(again.spans) == 5 and late.remembered == ()


def test_a_trace_hangs_together_and_names_its_pod_and_devices(
    outlet: DispatchOutlet, tracer: Collected
) -> None:
    first, *rest = whole()
    outlet.take_pod(first)
    outlet.take_holdings(Holdings((Holding(GPU, "GPU-1", "team", "pod-uid-1", "main"),)), at(0.3))
    for pod in rest:
        outlet.take_pod(pod)
    by_name = {span.name: span for span in tracer.spans}
    assert by_name.keys() == {"pod.dispatch", *(f"pod.{stage}" for stage in STAGES)}
    root = by_name.pop("pod.dispatch")
    assert root.status == "ok" and {span.parent_id for span in by_name.values()} == {root.span_id}
    assert root.attributes["k8s.pod.uid"] == "uid-1" and root.attributes["k8s.node.name"] == "n1"
    assert root.attributes["hw.id"] == ("GPU-1",)
    assert root.end_ns - root.start_ns == 1_750_000_000


def test_a_pod_that_the_kubelet_refuses_is_a_failed_allocation(
    outlet: DispatchOutlet, tracer: Collected
) -> None:
    outlet.take_pod(look(0.25))
    failed = outlet.take_pod(look(0.3, phase="Failed", reason="UnexpectedAdmissionError"))
    assert failed == AllocationFailed(GPU, "team/pod-uid-1", at(0.3))
    name = "accelerator_allocation_failures_total"
    assert sample(outlet.failures.collect(), name, resource=GPU, reason="UnexpectedAdmissionError") == 1
    (root,) = [span for span in tracer.spans if span.parent_id is None]
    assert (root.status, root.status_message) == ("error", "UnexpectedAdmissionError")


def test_a_failure_that_was_there_before_is_not_counted(outlet: DispatchOutlet) -> None:
    old = look(0.3, listed=True, phase="Failed", reason="UnexpectedAdmissionError")
    assert outlet.take_pod(old) is None
    assert sample(outlet.failures.collect(), "accelerator_allocation_failures_total") == 0


def test_reasons_that_nobody_knows_are_counted_as_other(outlet: DispatchOutlet) -> None:
    outlet.take_pod(look(0.25))
    outlet.take_pod(look(0.3, phase="Failed", reason="Whatever-" + "x" * 500))
    name = "accelerator_allocation_failures_total"
    assert sample(outlet.failures.collect(), name, resource=GPU, reason="other") == 1


def test_a_pod_that_is_deleted_on_its_way_ends_its_trace_and_is_no_failure(
    outlet: DispatchOutlet, tracer: Collected
) -> None:
    outlet.take_pod(look(0.25))
    outlet.take_pod(look(2.0, deleted=True))
    assert sample(outlet.failures.collect(), "accelerator_allocation_failures_total") == 0
    (root,) = [span for span in tracer.spans if span.parent_id is None]
    assert root.status_message == "Deleted"


def test_pods_that_vanished_while_nobody_watched_are_forgotten() -> None:
    dispatches, _ = Dispatches().with_pod(look(0.25))
    assert dispatches.with_list(PodsListed(frozenset(), at(9))) == Dispatches()


def test_times_that_go_backwards_make_no_negative_stage() -> None:
    looks = [look(-0.4), look(-0.5, admitted=NOON), look(-0.6, admitted=NOON, running=NOON, ready=NOON)]
    stages = [stage for told in told_of(looks) for stage in told.stages]
    assert [stage.seconds for stage in stages] == [0, 0, 0, 0]


uids = st.sampled_from(["a", "b", "c"])


@given(st.lists(st.tuples(uids, st.integers(0, 3), st.booleans(), st.booleans())))
def test_in_whatever_order_looks_come_each_stage_of_a_pod_is_told_once_and_never_negative(
    moves: list[tuple[str, int, bool, bool]],
) -> None:
    dispatches = Dispatches()
    told_stages: dict[str, list[str]] = {}
    endings: dict[str, int] = {}
    for uid, step, listed, deleted in moves:
        pod = whole(uid, listed=listed)[step]
        if deleted:
            told_stages.pop(uid, None)
            endings.pop(uid, None)
            pod = look(5, uid, deleted=True)
        dispatches, told = dispatches.with_pod(pod)
        if told is None or deleted:
            continue
        for stage in told.stages:
            assert stage.seconds >= 0
            told_stages.setdefault(uid, []).append(stage.name)
        endings[uid] = endings.get(uid, 0) + told.over
    for names in told_stages.values():
        assert len(names) == len(set(names)) and names == [name for name in STAGES if name in names]
    assert all(count <= 1 for count in endings.values())
