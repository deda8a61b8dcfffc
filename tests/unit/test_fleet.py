"""The cache: which version counts, what is fresh, who has a node in hand."""

import msgspec.structs
import pytest

from health.receipt import Receipt
from health.report import AcceleratorReport, Source
from health.vocabulary import Mode, Phase, SourceState
from remediation.fleet import FRESH_FOR, Fleet, meaning
from remediation.objects import AcceleratorControl, NodeAction, NodeSwitch
from tests.unit.builders import GPU, control, fault, later, node, report, session


def seen(made: Fleet, at: float, **about: object) -> bool:
    faults = about.pop("faults", ())
    return made.put_report(report("n1", *faults, **about), at)


def with_receipts(*receipts: Receipt) -> AcceleratorReport:
    plain = report("n1")
    return msgspec.structs.replace(plain, status=msgspec.structs.replace(plain.status, receipts=receipts))


def fresh(made: Fleet, at: float) -> bool:
    return made.reports["n1"].fresh(at)


def test_an_older_version_of_an_object_changes_nothing() -> None:
    made = Fleet()
    made.put_node(node(cordoned=True, version=10))
    made.put_node(node(version=9))
    assert made.nodes["n1"].spec.unschedulable
    made.put_session(session(phase=Phase.HELD, version=10))
    assert not made.put_session(session(phase=Phase.RELEASED, version=9))
    assert len(made.open_sessions("n1")) == 1
    made.put_control(control(paused=True, version=10))
    assert not made.put_control(control(version=9))
    assert made.control.spec.pause is not None


def test_versions_are_compared_as_numbers_and_the_same_one_again_is_taken() -> None:
    made = Fleet()
    made.put_node(node(version=9))
    made.put_node(node(cordoned=True, version=10))
    made.put_node(node(cordoned=True, ready=False, version=10))
    assert made.nodes["n1"].spec.unschedulable and not made.nodes["n1"].ready


def test_an_answer_to_a_request_does_not_bring_back_a_node_that_is_gone_or_replaced() -> None:
    made = Fleet()
    made.put_node(node(version=1))
    made.refresh_node(node(cordoned=True, version=2))
    assert made.nodes["n1"].spec.unschedulable
    made.put_node(node(uid="new", version=3))
    made.refresh_node(node(cordoned=True, version=4))
    assert made.nodes["n1"].metadata.uid == "new"
    made.drop_node("n1")
    made.refresh_node(node(version=5))
    assert made.nodes == {}


def test_a_report_that_is_met_for_the_first_time_is_not_fresh_and_is_from_its_next_renewal_on() -> None:
    made = Fleet()
    assert seen(made, 100.0, sequence=5, version=1)
    assert not fresh(made, 100.0)
    assert seen(made, 130.0, sequence=6, version=2)
    assert fresh(made, 130.0) and fresh(made, 130.0 + FRESH_FOR)
    assert not fresh(made, 130.1 + FRESH_FOR)


def test_only_a_sequence_that_advances_is_a_renewal() -> None:
    made = Fleet()
    seen(made, 100.0, sequence=5, version=1)
    seen(made, 110.0, sequence=5, version=2)
    assert not fresh(made, 110.0)
    seen(made, 120.0, sequence=4, version=3)
    assert not fresh(made, 120.0)
    seen(made, 130.0, sequence=6, version=4)
    seen(made, 150.0, sequence=6, version=5)
    assert not fresh(made, 130.1 + FRESH_FOR)


def test_the_report_of_another_node_under_the_name_begins_anew() -> None:
    made = Fleet()
    seen(made, 100.0, sequence=5, version=1)
    seen(made, 110.0, sequence=6, version=2)
    seen(made, 120.0, sequence=7, version=3, uid="new")
    assert not fresh(made, 120.0)
    seen(made, 130.0, sequence=8, version=4, uid="new")
    assert fresh(made, 130.0)


def test_a_report_that_went_and_came_back_begins_anew() -> None:
    made = Fleet()
    seen(made, 100.0, sequence=5, version=1)
    seen(made, 110.0, sequence=6, version=2)
    made.drop_report("n1")
    assert seen(made, 120.0, sequence=7, version=3)
    assert not fresh(made, 120.0)


def test_an_old_report_that_comes_late_neither_renews_nor_replaces() -> None:
    made = Fleet()
    seen(made, 100.0, sequence=5, version=5)
    assert not seen(made, 110.0, sequence=9, version=4)
    assert made.reports["n1"].report.status.sequence == 5 and not fresh(made, 110.0)


def test_a_renewal_alone_is_no_news_but_the_one_that_makes_it_fresh_is() -> None:
    made = Fleet()
    assert seen(made, 100.0, sequence=1, version=1)
    assert seen(made, 130.0, sequence=2, version=2)
    assert not seen(made, 160.0, sequence=3, version=3)
    assert seen(made, 400.0, sequence=4, version=4)


@pytest.mark.parametrize(
    "other",
    [
        report("n1", fault()),
        report("n1", boot="boot-2"),
        report("n1", uid="new"),
        report("n1", maintenance=True),
        report("n1", sources=(Source("nvml", SourceState.FAILED),)),
        with_receipts(Receipt("session", "Reset", 1, "boot-1", "Done", later(0))),
    ],
)
def test_what_decides_something_is_news(other: AcceleratorReport) -> None:
    assert meaning(other) != meaning(report("n1"))


@pytest.mark.parametrize(
    "changed", [{"code": "xid:1"}, {"advice": "None"}, {"clears_on": "Dwell"}, {"seen": later(9)}]
)
def test_another_word_about_a_fault_or_a_new_onset_of_it_is_news_and_another_sight_of_it_is_not(
    changed: dict[str, object],
) -> None:
    assert meaning(report("n1", fault(**changed))) != meaning(report("n1", fault()))
    assert meaning(report("n1", fault(last=later(60)), sequence=9)) == meaning(report("n1", fault()))


def since(made: Fleet) -> float:
    return made.reports["n1"].since


def test_how_long_a_report_has_said_the_same_ends_with_a_gap_a_boot_or_a_fault_that_acts() -> None:
    made = Fleet()
    for number, moment in enumerate((100.0, 130.0, 160.0, 190.0)):
        seen(made, moment, sequence=number, version=number)
    assert since(made) == 130.0
    seen(made, 300.0, sequence=10, version=10)
    assert since(made) == 300.0
    seen(made, 330.0, sequence=11, version=11, boot="boot-2")
    assert since(made) == 330.0
    seen(made, 360.0, sequence=12, version=12, boot="boot-2", faults=(fault(),))
    assert since(made) == 360.0
    seen(made, 390.0, sequence=13, version=13, boot="boot-2", faults=(fault(code="xid:1"),))
    assert since(made) == 360.0
    seen(made, 420.0, sequence=14, version=14, boot="boot-2")
    assert since(made) == 420.0
    harmless = fault("ApplicationFault", advice="RestartWorkload", clears_on="Dwell")
    seen(made, 450.0, sequence=15, version=15, boot="boot-2", faults=(harmless,))
    assert since(made) == 420.0


def test_a_session_moves_from_open_to_closed_once() -> None:
    made = Fleet()
    assert not made.put_session(session(phase=Phase.HELD, version=1))
    assert list(made.all_open()) == list(made.open_sessions("n1"))
    assert made.put_session(session(phase=Phase.RELEASED, version=2))
    assert not made.put_session(session(phase=Phase.RELEASED, version=3))
    assert (made.open_sessions("n1"), len(made.closed_sessions("n1")), list(made.all_open())) == ((), 1, [])


def test_a_session_that_is_met_closed_frees_nothing() -> None:
    assert not Fleet().put_session(session(phase=Phase.RELEASED))


@pytest.mark.parametrize("phase", [Phase.HELD, Phase.RELEASED])
def test_a_dropped_session_leaves_no_trace(phase: Phase) -> None:
    made = Fleet()
    made.put_session(session(phase=phase))
    name = session().metadata.name
    gone = made.drop_session(name)
    assert gone is not None and gone.metadata.name == name
    assert made.drop_session(name) is None
    assert (made.sessions, made.open_sessions("n1"), made.closed_sessions("n1")) == ({}, (), ())
    assert made._open == {} and made._closed == {}


def test_the_switches_are_news_and_what_the_controller_remembers_there_is_not() -> None:
    made = Fleet()
    assert made.put_control(control(paused=True, version=1))
    assert not made.put_control(control(paused=True, version=2))
    assert made.put_control(AcceleratorControl())
    assert made.control.spec.pause is None


@pytest.mark.parametrize(
    ("found", "entries", "expected"),
    [
        (node(), (), None),
        (node(hold=True), (), NodeAction.HOLD),
        (node(opt_out=True), (), NodeAction.OPT_OUT),
        (node(hold=True, opt_out=True), (), NodeAction.HOLD),
        (node(labels={"node-role.kubernetes.io/control-plane": ""}), (), NodeAction.OPT_OUT),
        (node(labels={"node-role.kubernetes.io/master": "true"}), (), NodeAction.OPT_OUT),
        (node(), (NodeAction.OPT_OUT,), NodeAction.OPT_OUT),
        (node(), (NodeAction.OPT_OUT, NodeAction.HOLD), NodeAction.HOLD),
        (node(opt_out=True), (NodeAction.HOLD,), NodeAction.HOLD),
    ],
)
def test_what_a_person_asked_for_a_node_may_stand_on_it_or_in_the_control_object(
    found: object, entries: tuple[NodeAction, ...], expected: NodeAction | None
) -> None:
    made = Fleet()
    made.put_node(found)
    made.put_control(control(*(NodeSwitch(name="n1", action=action, user="alice") for action in entries)))
    assert made.switch("n1") is expected
    assert made.switch("n2") is None


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (node(), ""),
        (node(taint="karpenter.sh/disrupted"), "Karpenter"),
        (node(taint="ToBeDeletedByClusterAutoscaler"), "cluster autoscaler"),
        (node(taint="nvidia.com/gpu"), ""),
        (node(labels={"nvidia.com/gpu-driver-upgrade-state": "drain-required"}), "driver upgrade"),
        (node(labels={"nvidia.com/gpu-driver-upgrade-state": "upgrade-done"}), ""),
        (node(labels={"nvidia.com/gpu-driver-upgrade-state": "upgrade-required"}), ""),
        (node(labels={"dgxc.nvidia.com/nvsentinel-state": "draining"}), "NVSentinel"),
        (node(deleting=True), "being deleted"),
    ],
)
def test_who_else_works_on_a_node_is_said(found: object, told: str) -> None:
    assert told in found.taken_by and bool(told) == bool(found.taken_by)


def test_a_node_without_a_ready_condition_is_not_ready() -> None:
    assert node().ready and not node(ready=False).ready
    bare = node()
    assert not type(bare)(metadata=bare.metadata).ready


def test_sessions_of_other_nodes_are_not_this_nodes() -> None:
    made = Fleet()
    made.put_session(session(node_name="n1"))
    made.put_session(session(node_name="n2", mode=Mode.OBSERVE))
    assert [item.spec.node_name for item in made.open_sessions("n2")] == ["n2"]
    assert made.open_sessions("n3") == ()
    assert made.sessions[session().metadata.name].current.incidents[0].device_uuid == GPU
