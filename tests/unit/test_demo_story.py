"""What the demo tells: each change once, with its time, in plain lines and on a terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
from rich.console import Console

from health.vocabulary import Phase
from remediation.objects import JournalEntry, JournalEvent, RemediationStatus, Rung
from simulation.demo.plain import PlainOutlet, described
from simulation.demo.screen import ScreenOutlet, state
from simulation.demo.story import Line, Story
from simulation.demo.watch import Budget, NodeView, PodView, SessionView, View, parsed_budgets

BEGAN = datetime(2026, 1, 1, 12, tzinfo=UTC)
POD = PodView("train-1", "u1", "n1", "Running")
N1 = NodeView("n1", True, True, "", "8", 8, 8, (), (POD,))
CALM = View((N1,), (), budgets={"fenced": Budget(0, 1), "disrupted": Budget(0, 1)})
PLAN = (Rung("ResetDevice", ("Cordon", "Drain", "Reset")), Rung("RebootNode", ("Cordon", "Reboot")))


def entry(
    seconds: float, step: str, event: JournalEvent, result: str = "", message: str = ""
) -> JournalEntry:
    return JournalEntry(
        time=BEGAN + timedelta(seconds=seconds),
        epoch=1,
        step=step,
        event=event,
        result=result,
        message=message,
    )


CORDON = (
    entry(0.1, "Cordon", JournalEvent.INTENT),
    entry(0.2, "Cordon", JournalEvent.OUTCOME, "Done", "cordoned"),
)


def session(phase: Phase = Phase.DRAINING, **more: object) -> SessionView:
    status = RemediationStatus(phase=phase, plan=PLAN, journal=CORDON, rung="ResetDevice", step="Drain")
    return SessionView("n1-abc", "n1", "2026-01-01T12:00:00Z", msgspec.structs.replace(status, **more))


def told(story: Story, view: View, seconds: float) -> list[str]:
    return [line.text for line in story.follow(view, BEGAN + timedelta(seconds=seconds))]


def begun() -> Story:
    story = Story(BEGAN)
    assert told(story, CALM, 0) == []
    return story


def test_what_stays_as_it_is_is_not_told_again() -> None:
    story = begun()
    assert told(story, CALM, 1) == []
    view = replace(CALM, sessions=(session(),))
    assert told(story, view, 1) != []
    assert told(story, view, 2) == []


def test_a_fault_a_cordon_and_a_lost_offer_are_told() -> None:
    node = replace(N1, schedulable=False, offered="7", faults=("DeviceLost (xid:79)",))
    assert told(begun(), replace(CALM, nodes=(node,)), 1) == [
        "n1's agent reports DeviceLost (xid:79)",
        "Kubernetes: n1 is Ready,SchedulingDisabled",
        "Kubernetes: n1 offers 7 GPUs",
    ]


def test_the_end_of_the_faults_and_the_return_are_told() -> None:
    story = begun()
    bad = replace(N1, ready=False, faults=("a", "b"))
    assert "Kubernetes: n1 is NotReady" in told(story, replace(CALM, nodes=(bad,)), 1)
    assert told(story, CALM, 2) == ["n1's agent reports no fault any more", "Kubernetes: n1 is Ready"]


def test_the_journal_is_told_with_its_own_times_in_their_order() -> None:
    story = begun()
    lines = story.follow(replace(CALM, sessions=(session(),)), BEGAN + timedelta(seconds=1))
    assert [(line.seconds, line.text) for line in lines] == [
        (0.1, "Cordon begins"),
        (0.2, "Cordon: Done, cordoned"),
        (1.0, "session n1-abc, plan: ResetDevice (Cordon, Drain, Reset); else RebootNode (Cordon, Reboot)"),
    ]


def test_sessions_of_before_are_not_told() -> None:
    story = Story(BEGAN, frozenset({"n1-abc"}))
    assert told(story, replace(CALM, sessions=(session(),)), 1) == []


def test_a_session_that_is_held_says_why() -> None:
    held = session(Phase.HELD, reason="HeldByUser", message="alice holds it")
    lines = begun().follow(replace(CALM, sessions=(held,)), BEGAN)
    assert [line.text for line in lines if line.mood == "bad"] == [
        "session n1-abc is Held (HeldByUser): alice holds it"
    ]


def test_pods_that_move_and_pods_that_repair_are_told() -> None:
    story = begun()
    leaving = replace(N1, pods=(replace(POD, phase="Terminating"),))
    repair = PodView("reset-1", "r1", "n1", "Running")
    view = replace(CALM, nodes=(leaving,), repairs=(repair, replace(repair, uid="r2", phase="Pending")))
    assert told(story, view, 1) == ["pod train-1 on n1: Terminating", "repair pod reset-1 on n1: Running"]
    gone = replace(CALM, nodes=(replace(N1, pods=()),), repairs=(replace(repair, phase="Succeeded"),))
    assert told(story, gone, 2) == ["repair pod reset-1 on n1: Succeeded"]


def test_budgets_are_told_when_they_change() -> None:
    story = begun()
    used = replace(CALM, budgets={"fenced": Budget(1, 1), "disrupted": Budget(0, 1)})
    assert told(story, used, 1) == ["budgets: disrupted 0 of 1, fenced 1 of 1"]
    assert told(story, replace(CALM, budgets={}), 2) == []


def test_the_budgets_of_the_cluster_are_read_from_the_metrics_page() -> None:
    page = (
        '# TYPE sickbay_budget_limit gauge\nsickbay_budget_limit{pool="",kind="fenced"} 1.0\n'
        'sickbay_budget_limit{pool="default",kind="fenced"} 7.0\nsickbay_budget_used{pool="",kind="fenced"} 1.0\n'
        'sickbay_nodes{pool="",state="healthy"} 2.0\n'
    )
    assert parsed_budgets(page) == {"fenced": Budget(1, 1)}
    assert parsed_budgets("") == {}


def test_plain_lines_are_times_and_words() -> None:
    out = io.StringIO()
    outlet = PlainOutlet(out)
    outlet.heading("Now")
    outlet.show([Line(0.014, "Cordon begins", "step"), Line(12.5, "n1 is Ready", "good")], CALM)
    outlet.nodes(CALM)
    outlet.prose("word " * 40)
    outlet.note("long " * 40)
    assert out.getvalue().splitlines()[:6] == [
        "",
        "Now",
        "   0.01 s  Cordon begins",
        "  12.50 s  n1 is Ready",
        "  n1  Ready                     8 of 8 GPUs healthy, 8 offered; no fault; train-1",
        "  budgets: disrupted 0 of 1, fenced 0 of 1",
    ]
    assert [len(line) > 110 for line in out.getvalue().splitlines()[6:]] == [False, False, True]


def test_a_node_in_one_line_names_what_is_wrong_with_it() -> None:
    node = replace(
        N1, schedulable=False, healthy=7, faults=("A (xid:1)",), pods=(replace(POD, phase="Terminating"),)
    )
    assert described(node) == (
        "n1  Ready,SchedulingDisabled  7 of 8 GPUs healthy, 8 offered; A (xid:1); train-1 (Terminating)"
    )


def test_a_terminal_shows_nodes_plan_and_budgets() -> None:
    console = Console(file=io.StringIO(), width=140, color_system=None)
    console.print(state(replace(CALM, sessions=(session(),))))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("n1", "8 of 8", "train", "ResetDevice Cordon Drain Reset", "Draining", "fenced 0 of 1"):
        assert words in shown


def test_a_terminal_gets_the_lines_above_and_is_given_back() -> None:
    console = Console(file=io.StringIO(), width=140, force_terminal=True, color_system=None)
    outlet = ScreenOutlet(console)
    outlet.show([Line(1.0, "Cordon begins", "step")], CALM)
    outlet.close()
    outlet.close()
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "   1.00 s  Cordon begins" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1, "the cursor is hidden and shown again"
