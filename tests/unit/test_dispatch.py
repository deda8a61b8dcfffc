"""Dispatches: each stage is measured once, from what was seen, and a restart measures nothing twice."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from prometheus_client.metrics_core import Metric

from exporter.dispatch import LIMIT, STAGES, Dispatches, Outcome
from exporter.dispatch_outlet import RESOURCES, TOTAL, DispatchOutlet
from exporter.dispatch_trace import Dispatched
from exporter.events import AllocationFailed
from exporter.holdings import Holding, Holdings
from exporter.pods import PodSeen, PodsListed
from runtime.spans import SpanRecord, dispatch_trace
from tests.unit.collected_spans import Collected

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
GPU = "nvidia.com/gpu"
STAGE_SUM = "accelerator_dispatch_stage_duration_seconds_sum"
ALLOCATION = "accelerator_allocation_duration_seconds"
FAILURES = "accelerator_allocation_failures_total"
DISPATCHES = "accelerator_dispatches_total"


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def look(seconds: float, uid: str = "uid-1", **fields: object) -> PodSeen:
    """A pod that was created at noon, seen so many seconds later; `fields` are those that it has by then."""
    base: dict[str, object] = {"phase": "Pending", "scheduled": NOON, "arrived": at(0.2)}
    return PodSeen(
        uid=uid,
        namespace="team",
        name=f"pod-{uid}",
        resource=GPU,
        created=NOON,
        at=at(seconds),
        **{**base, **fields},  # type: ignore[arg-type]
    )


def whole(uid: str = "uid-1", **fields: object) -> list[PodSeen]:
    """A pod's way from its admission, which is the watch's first word of it, until it is ready."""
    running = {"admitted": NOON, "running": at(1), "phase": "Running", "began": True}
    return [
        look(0.25, uid, admitted=NOON, began=True, **fields),
        look(1.5, uid, **running, **fields),
        look(1.75, uid, **running, ready=at(1), **fields),
    ]


def rejected(seconds: float = 0.3, reason: str = "UnexpectedAdmissionError", **fields: object) -> PodSeen:
    """As the kubelet shows it: a startTime, and neither conditions nor container statuses."""
    shown: dict[str, object] = {"phase": "Failed", "reason": reason, "admitted": NOON, "scheduled": None}
    return look(seconds, **{**shown, **fields})  # type: ignore[arg-type]


@pytest.fixture
def tracer() -> Collected:
    return Collected()


@pytest.fixture
def outlet(tracer: Collected) -> DispatchOutlet:
    return DispatchOutlet(tracer, node="n1")


def count_of(outlet: DispatchOutlet, stage: str) -> float:
    return sample(outlet.stages.collect(), "accelerator_dispatch_stage_duration_seconds_count", stage=stage)


def counts(outlet: DispatchOutlet) -> dict[str, float]:
    return {stage: count_of(outlet, stage) for stage in (*STAGES, TOTAL)}


def sums(outlet: DispatchOutlet) -> dict[str, float]:
    return {stage: sample(outlet.stages.collect(), STAGE_SUM, stage=stage) for stage in (*STAGES, TOTAL)}


def outcomes(outlet: DispatchOutlet) -> dict[str, float]:
    """How dispatches ended, without those that no dispatch has."""
    found = {one: sample(outlet.dispatches.collect(), DISPATCHES, outcome=one) for one in Outcome}
    return {str(name): value for name, value in found.items() if value}


def sample(families: Iterable[Metric], name: str, **labels: str) -> float:
    return sum(
        one.value
        for family in families
        for one in family.samples
        if one.name == name and labels.items() <= one.labels.items()
    )


def root_of(tracer: Collected) -> SpanRecord:
    (root,) = [span for span in tracer.spans if span.parent_id is None]
    return root


def take(outlet: DispatchOutlet, *looks: PodSeen | PodsListed) -> None:
    for one in looks:
        outlet.take_pod(one)


def test_a_pod_that_was_seen_to_come_is_measured_stage_by_stage(outlet: DispatchOutlet) -> None:
    take(outlet, *whole())
    wanted = {"scheduled": 0.0, "admitted": 0.05, "running": 1.25, "ready": 0.25, TOTAL: 1.55}
    assert sums(outlet) == pytest.approx(wanted)
    assert sample(outlet.allocation.collect(), f"{ALLOCATION}_sum", resource=GPU) == pytest.approx(0.05)
    assert outcomes(outlet) == {"Ready": 1}


def test_scheduling_is_the_difference_of_two_times_that_are_cut_alike(outlet: DispatchOutlet) -> None:
    take(outlet, look(7.31, scheduled=at(7), arrived=at(7.3), admitted=at(7), began=True))
    assert sums(outlet)["scheduled"] == 7.0
    assert sums(outlet)["admitted"] == pytest.approx(0.01)


def test_a_pod_that_waits_for_its_devices_is_measured_from_when_the_kubelet_got_it(
    outlet: DispatchOutlet,
) -> None:
    take(outlet, look(42.2, admitted=at(42), began=True))
    assert sample(outlet.allocation.collect(), f"{ALLOCATION}_sum") == pytest.approx(42.0)


@pytest.mark.parametrize("repeats", [1, 3])
def test_what_comes_again_is_measured_once(outlet: DispatchOutlet, repeats: int) -> None:
    take(outlet, *[pod for pod in whole() for _ in range(repeats)], *whole() * repeats)
    assert counts(outlet) == dict.fromkeys((*STAGES, TOTAL), 1)
    assert outcomes(outlet) == {"Ready": 1}


def test_a_pod_that_starts_its_containers_again_is_not_dispatched_again(outlet: DispatchOutlet) -> None:
    take(outlet, *whole())
    restarted = {"admitted": NOON, "phase": "Running", "began": True, "restarted": True}
    take(outlet, look(60, **restarted), look(61, running=at(61), ready=at(61), **restarted))
    assert counts(outlet) == dict.fromkeys((*STAGES, TOTAL), 1)


def test_a_pod_that_was_there_before_is_told_and_not_measured(
    outlet: DispatchOutlet, tracer: Collected
) -> None:
    take(outlet, whole(listed=True)[-1])
    assert counts(outlet) == dict.fromkeys((*STAGES, TOTAL), 0) and outcomes(outlet) == {}
    root = root_of(tracer)
    assert root.ref == dispatch_trace("uid-1")
    assert root.attributes["sickbay.dispatch.times"] == "api"


@pytest.mark.parametrize("fields", [{}, {"restarted": True}], ids=["long ago", "restarted"])
def test_a_pod_that_did_not_become_ready_lately_is_not_told_again(
    outlet: DispatchOutlet, tracer: Collected, fields: dict[str, object]
) -> None:
    seconds = 60 if fields else 3600
    ready = {"admitted": NOON, "running": at(1), "ready": at(1), "phase": "Running", "began": True}
    take(outlet, look(seconds, listed=True, **ready, **fields))
    assert tracer.spans == []


def test_pods_that_a_restarted_kubelet_shows_as_new_are_not_measured(
    outlet: DispatchOutlet, tracer: Collected
) -> None:
    take(outlet, *whole("a"))
    told = len(tracer.spans)
    take(outlet, PodsListed(frozenset(), at(600)))
    take(outlet, look(601, "a", arrived=at(600.5), admitted=NOON, running=at(1), ready=at(1), began=True))
    take(outlet, look(601, "b", arrived=at(600.5), admitted=at(500), began=True))
    take(outlet, look(602, "b", arrived=at(600.5), admitted=at(500), running=at(602), ready=at(602)))
    assert counts(outlet) == dict.fromkeys((*STAGES, TOTAL), 1)
    about_b = [span for span in tracer.spans if span.attributes["k8s.pod.uid"] == "b"]
    assert len(tracer.spans) == told + len(about_b)
    assert {span.attributes["sickbay.dispatch.times"] for span in about_b} == {"api"}


def test_what_happened_while_nobody_watched_is_not_measured(
    outlet: DispatchOutlet, tracer: Collected
) -> None:
    first, _, ready = whole()
    take(outlet, first, replace(ready, at=at(30), listed=True), PodsListed(frozenset({"uid-1"}), at(30)))
    assert counts(outlet) == {"scheduled": 1, "admitted": 1, "running": 0, "ready": 0, TOTAL: 0}
    by_name = {span.name: span for span in tracer.spans}
    assert by_name["pod.dispatch"].attributes["sickbay.dispatch.times"] == "api"
    assert by_name["pod.running"].end_ns == by_name["pod.ready"].end_ns == int(at(1).timestamp() * 1e9)


def test_a_watch_that_is_begun_anew_in_the_middle_does_no_harm(outlet: DispatchOutlet) -> None:
    first, *rest = whole()
    again = replace(first, at=at(0.9), listed=True)
    take(outlet, first, again, PodsListed(frozenset({"uid-1"}), at(0.9)), *rest)
    assert counts(outlet) == dict.fromkeys((*STAGES, TOTAL), 1)


def test_polled_pods_are_measured_by_the_apis_times(outlet: DispatchOutlet, tracer: Collected) -> None:
    for pod in whole(polled=True):
        take(outlet, replace(pod, at=pod.at + timedelta(seconds=0.7)))
    assert sums(outlet) == {"scheduled": 0, "admitted": 0, "running": 1, "ready": 0, TOTAL: 1}
    assert root_of(tracer).attributes["sickbay.dispatch.times"] == "api"


def test_a_polled_pod_that_is_gone_was_deleted_unless_nobody_looked(outlet: DispatchOutlet) -> None:
    take(outlet, look(0.25, polled=True), PodsListed(frozenset(), at(9), gap=True))
    assert outcomes(outlet) == {}
    take(outlet, look(0.25, "b", polled=True), PodsListed(frozenset(), at(9), gap=False))
    assert outcomes(outlet) == {"Deleted": 1}


def test_a_restarted_agent_tells_the_same_spans_again_and_measures_nothing(
    outlet: DispatchOutlet, tracer: Collected
) -> None:
    take(outlet, *whole())
    kept = msgspec.json.decode(msgspec.json.encode(outlet.remembered), type=tuple[Dispatched, ...])
    again = Collected()
    restarted = DispatchOutlet(again, node="n1")
    restarted.restore(kept, at(60))
    take(restarted, whole(listed=True)[-1], PodsListed(frozenset({"uid-1"}), at(60)), *whole())
    assert again.spans == tracer.spans and len(tracer.spans) == 5
    assert count_of(restarted, "ready") == 0
    late = DispatchOutlet(again, node="n1")
    late.restore(kept, at(3600))
    flapped = look(3601, listed=True, admitted=NOON, running=at(1), ready=at(3600), began=True)
    take(late, flapped)
    assert len(again.spans) == 5, "what was told once is not told otherwise"


def test_a_trace_hangs_together_and_names_its_pod_and_devices(
    outlet: DispatchOutlet, tracer: Collected
) -> None:
    take(outlet, *whole(devices=("GPU-1", "GPU-2")))
    by_name = {span.name: span for span in tracer.spans}
    assert by_name.keys() == {"pod.dispatch", *(f"pod.{stage}" for stage in STAGES)}
    root = by_name.pop("pod.dispatch")
    assert root.status == "ok" and {span.parent_id for span in by_name.values()} == {root.span_id}
    assert root.attributes["k8s.pod.uid"] == "uid-1" and root.attributes["k8s.node.name"] == "n1"
    assert root.attributes["hw.id"] == ("GPU-1", "GPU-2")
    assert root.end_ns - root.start_ns == 1_750_000_000
    ends = [by_name[f"pod.{stage}"].end_ns for stage in STAGES]
    begins = [by_name[f"pod.{stage}"].start_ns for stage in STAGES]
    assert begins == [root.start_ns, *ends[:-1]] and ends[-1] == root.end_ns


def test_where_pods_do_not_name_their_devices_the_kubelets_holdings_do(
    outlet: DispatchOutlet, tracer: Collected
) -> None:
    first, *rest = whole()
    take(outlet, first)
    assert outlet.waits_for_devices
    outlet.take_holdings(Holdings((Holding(GPU, "GPU-1", "team", "pod-uid-1", "main"),)))
    assert not outlet.waits_for_devices
    take(outlet, *rest)
    assert root_of(tracer).attributes["hw.id"] == ("GPU-1",)


def test_nobody_is_asked_for_devices_that_a_pod_names_itself(outlet: DispatchOutlet) -> None:
    take(outlet, whole(devices=("GPU-1",))[0])
    assert not outlet.waits_for_devices


def test_a_pod_that_the_kubelet_rejects_is_a_failed_allocation_and_no_allocation(
    outlet: DispatchOutlet, tracer: Collected
) -> None:
    failed = outlet.take_pod(rejected())
    assert failed == AllocationFailed(GPU, "team/pod-uid-1", at(0.3))
    assert outlet.take_pod(rejected(0.4)) is None
    assert sample(outlet.failures.collect(), FAILURES, resource=GPU, reason="UnexpectedAdmissionError") == 1
    assert sample(outlet.allocation.collect(), f"{ALLOCATION}_count") == 0
    assert outcomes(outlet) == {"Rejected": 1}
    root = root_of(tracer)
    assert (root.status, root.status_message) == ("error", "UnexpectedAdmissionError")


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("TopologyAffinityError", "TopologyAffinityError"),
        (f"OutOf{GPU}", f"OutOf{GPU}"),
        ("OutOfexample.com/made-up", "other"),
        ("Whatever-" + "x" * 500, "other"),
    ],
)
def test_other_rejections_are_counted_by_reasons_that_are_known_and_blame_no_plugin(
    outlet: DispatchOutlet, reason: str, shown: str
) -> None:
    assert outlet.take_pod(rejected(reason=reason)) is None
    assert sample(outlet.failures.collect(), FAILURES, resource=GPU, reason=shown) == 1


@pytest.mark.parametrize(
    "old",
    [
        {"listed": True},
        {"arrived": at(600.5), "seconds": 601.0},
    ],
    ids=["there before", "shown again by a restarted kubelet"],
)
def test_an_old_rejection_is_not_counted(outlet: DispatchOutlet, old: dict[str, object]) -> None:
    assert outlet.take_pod(rejected(**old)) is None  # type: ignore[arg-type]
    assert sample(outlet.failures.collect(), FAILURES) == 0 and outcomes(outlet) == {}


def test_a_pod_whose_containers_fail_before_it_is_ready_is_no_failed_allocation(
    outlet: DispatchOutlet, tracer: Collected
) -> None:
    take(outlet, whole()[0], look(2, admitted=NOON, running=at(1), phase="Failed", began=True))
    assert sample(outlet.failures.collect(), FAILURES) == 0
    assert outcomes(outlet) == {"Failed": 1}
    assert counts(outlet) == {"scheduled": 1, "admitted": 1, "running": 0, "ready": 0, TOTAL: 0}
    assert root_of(tracer).status_message == "Failed"


def test_a_pod_that_is_done_before_it_was_seen_to_run_has_no_times_that_nobody_knows(
    outlet: DispatchOutlet, tracer: Collected
) -> None:
    take(outlet, whole()[0], look(2, admitted=NOON, running=at(1), phase="Succeeded", began=True))
    assert outcomes(outlet) == {"Ended": 1}
    assert counts(outlet)["running"] == 0 and root_of(tracer).status == "ok"


def test_a_pod_that_is_deleted_on_its_way_ends_its_trace_and_is_no_failure(
    outlet: DispatchOutlet, tracer: Collected
) -> None:
    take(outlet, whole()[0], look(2.0, deleted=True), *whole())
    assert sample(outlet.failures.collect(), FAILURES) == 0
    assert outcomes(outlet) == {"Deleted": 1}
    assert root_of(tracer).status_message == "Deleted"


def test_pods_that_vanished_while_nobody_watched_are_followed_no_more() -> None:
    dispatches, _ = Dispatches().with_pod(whole()[0])
    assert dispatches.with_list(PodsListed(frozenset(), at(9))) == (Dispatches(missed=("uid-1",)), ())


def test_times_that_go_backwards_make_no_negative_stage(outlet: DispatchOutlet) -> None:
    first, running, ready = (replace(pod, created=at(500), scheduled=at(499)) for pod in whole())
    take(outlet, first, replace(running, at=at(0.1)), replace(ready, at=at(-3)))
    assert sums(outlet) == dict.fromkeys((*STAGES, TOTAL), 0)


def test_series_of_a_resource_are_there_before_its_first_pod(outlet: DispatchOutlet) -> None:
    outlet.take_holdings(Holdings((), {GPU: frozenset({"GPU-1"}), "example.com/nic": frozenset({"n"})}))
    shown = [one for _, held in outlet.collectors for family in held.collect() for one in family.samples]
    names = {(one.name, one.labels["resource"]) for one in shown}
    assert {(FAILURES, GPU), (DISPATCHES, GPU), (f"{ALLOCATION}_count", GPU)} <= names
    assert {resource for _, resource in names} == {GPU}


def test_made_up_resources_do_not_grow_the_page(outlet: DispatchOutlet) -> None:
    for number in range(3 * RESOURCES):
        take(outlet, replace(rejected(uid=f"u{number}"), resource=f"nvidia.com/mig-{number}"))
    labels = {one.labels["resource"] for family in outlet.failures.collect() for one in family.samples}
    assert len(labels) == RESOURCES + 1 and "other" in labels
    assert sample(outlet.failures.collect(), FAILURES) == 3 * RESOURCES


def test_more_pods_than_a_kubelet_runs_are_not_followed() -> None:
    dispatches = Dispatches()
    for number in range(2 * LIMIT):
        dispatches, _ = dispatches.with_pod(look(0.3, f"u{number}"))
    assert len(dispatches.under_way) == LIMIT
    for number in range(2 * LIMIT):
        dispatches, _ = dispatches.with_pod(look(0.4, f"u{number}", deleted=True))
    assert (dispatches.under_way, dispatches.over, len(dispatches.gone)) == ({}, frozenset(), LIMIT)
