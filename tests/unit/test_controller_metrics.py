"""What the controller says of itself: a snapshot of the fleet, and counts of what was carried out."""

from collections.abc import Mapping

import pytest
from prometheus_client import CollectorRegistry

from health.vocabulary import Mode, Phase
from remediation.budget import Usage
from remediation.decide import decide
from remediation.engine import Done
from remediation.executor import Report
from remediation.metrics import EMPTY, ControllerMetrics, Snapshot, snapshot
from remediation.situation import Action, Run, Write
from remediation.steps.outcome import Outcome, Result
from tests.unit.builders import NOON, fault, fleet, later, node, policy, report, session, situation

UNDER = policy(max_fenced="50%", pools=("a",))


def taken(*found: object, now: float = 1000.0) -> Snapshot:
    return snapshot(fleet(*found), UNDER, start_tokens=4.5, epoch=7, now=now)


def value(metrics: ControllerMetrics, name: str, **labels: str) -> float | None:
    registry = CollectorRegistry()
    for collector in (metrics, metrics.actions, metrics.stages, metrics.policy_loads):
        registry.register(collector)
    return registry.get_sample_value(name, labels)


def test_each_accelerator_node_is_in_one_state_of_its_pool() -> None:
    in_a: Mapping[str, str] = {"pool": "a"}
    found = taken(
        *[node(name, labels=dict(in_a)) for name in ("n1", "n2", "n3")],
        report("n1"),
        report("n2", fault()),
        report("n3"),
        session(node_name="n3", phase=Phase.HELD),
        node("n4", cordoned=True),
        report("n4"),
        node("n5"),
        report("n5"),
        session(node_name="n5", mode=Mode.OBSERVE, phase=Phase.FENCED),
        node("cpu"),
        report("gone"),
    )
    assert found.nodes == {
        ("a", "healthy"): 1,
        ("a", "faulty"): 1,
        ("a", "held"): 1,
        ("default", "cordoned"): 1,
        ("default", "healthy"): 1,
    }
    assert found.sessions == {("Held", "Auto"): 1, ("Fenced", "Observe"): 1}


def test_a_node_whose_report_is_stale_is_unknown_and_not_healthy() -> None:
    assert taken(node(), report("n1"), now=1100.0).nodes == {("default", "unknown"): 1}


def test_both_budgets_of_each_pool_and_of_the_cluster_are_told() -> None:
    found = taken(node(cordoned=True, labels={"pool": "a"}), report("n1"), node("n2"), report("n2"))
    assert {(usage.pool, usage.kind): (usage.used, usage.limit) for usage in found.budgets} == {
        ("a", "fenced"): (1, 1),
        ("a", "disrupted"): (0, 1),
        ("default", "fenced"): (0, 1),
        ("default", "disrupted"): (0, 1),
        ("", "fenced"): (1, 1),
        ("", "disrupted"): (0, 1),
    }


def test_the_gauges_are_those_of_the_last_snapshot() -> None:
    metrics = ControllerMetrics()
    metrics.current = Snapshot(
        nodes={("a", "held"): 2},
        sessions={("Held", "Auto"): 2},
        budgets=(Usage(pool="a", kind="fenced", limit=3, used=2),),
        start_tokens=4.5,
        epoch=7,
    )
    assert value(metrics, "sickbay_nodes", pool="a", state="held") == 2
    assert value(metrics, "sickbay_sessions", phase="Held", mode="Auto") == 2
    assert value(metrics, "sickbay_sessions", phase="Pending", mode="Approve") == 0
    assert value(metrics, "sickbay_sessions", phase="Released", mode="Auto") is None
    assert value(metrics, "sickbay_budget_limit", pool="a", kind="fenced") == 3
    assert value(metrics, "sickbay_budget_used", pool="a", kind="fenced") == 2
    assert value(metrics, "sickbay_start_tokens") == 4.5
    assert value(metrics, "sickbay_leader_epoch") == 7


def test_an_open_session_tells_its_node_and_since_when_it_is_in_its_phase() -> None:
    held = session(node_name="n3", phase=Phase.HELD, reason="NoRepairStep")
    closed = session(node_name="n4", phase=Phase.RELEASED)
    metrics = ControllerMetrics()
    metrics.current = taken(node("n3"), report("n3"), held, node("n4"), report("n4"), closed)
    (shown,) = metrics.current.open_sessions
    labels = {"session": held.metadata.name, "session_node": "n3", "phase": "Held", "mode": "Auto"}
    name = "sickbay_session_phase_timestamp_seconds"
    assert value(metrics, name, reason="NoRepairStep", **labels) == shown.since == NOON.timestamp()


def test_before_the_first_snapshot_there_is_no_node_and_no_epoch() -> None:
    metrics = ControllerMetrics()
    assert metrics.current is EMPTY
    assert value(metrics, "sickbay_leader_epoch") == 0
    assert value(metrics, "sickbay_actions_total", action="open", result="failed") == 0


def an_open() -> Action:
    action = decide(situation(fleet(node(), report("n1", fault())))).action
    assert action is not None
    return action


def done(action: Action, **told: object) -> Done:
    return Done("n1", action, Report(**told))


def test_actions_are_counted_by_kind_and_by_whether_they_went_through() -> None:
    metrics = ControllerMetrics()
    held = session(phase=Phase.HELD)
    run = Run(held, "Uncordon", held.current, Phase.RELEASED, "Healthy", "m")
    for action, told in (
        (an_open(), {"error": "503"}),
        (an_open(), {}),
        (Write(held, held.current), {}),
        (run, {"outcome": Outcome(Result.CHANGED, "the node changed")}),
        (run, {"outcome": Outcome(Result.FAILED, "403")}),
        (run, {"outcome": Outcome(Result.DONE, "uncordoned")}),
    ):
        metrics.count(done(action, **told))
    counts = {
        (action, result): value(metrics, "sickbay_actions_total", action=action, result=result)
        for action in ("open", "write", "run")
        for result in ("done", "failed")
    }
    assert counts == {
        ("open", "done"): 1,
        ("open", "failed"): 1,
        ("write", "done"): 1,
        ("write", "failed"): 0,
        ("run", "done"): 1,
        ("run", "failed"): 2,
    }


@pytest.mark.parametrize("error", ["", "503"])
def test_how_long_it_took_from_the_first_sight_of_the_fault_to_the_fence_is_told_once(error: str) -> None:
    metrics = ControllerMetrics()
    fenced = session(fault(seen=later(-2)), fault("EngineHung", seen=later(-1)), phase=Phase.FENCED)
    metrics.count(done(an_open(), sessions=[fenced], error=error))
    metrics.count(done(Write(fenced, fenced.current), sessions=[fenced]))
    assert value(metrics, "sickbay_remediation_stage_duration_seconds_count", stage="fenced") == (
        0 if error else 1
    )
    assert value(metrics, "sickbay_remediation_stage_duration_seconds_sum", stage="fenced") == (
        0 if error else 2
    )


def test_a_node_whose_clock_is_ahead_makes_no_negative_duration() -> None:
    metrics = ControllerMetrics()
    fenced = session(fault(seen=later(100)), phase=Phase.FENCED)
    assert fenced.current.fenced_time == NOON
    metrics.count(done(an_open(), sessions=[fenced]))
    assert value(metrics, "sickbay_remediation_stage_duration_seconds_sum", stage="fenced") == 0
