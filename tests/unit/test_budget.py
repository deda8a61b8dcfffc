"""Who counts for which budget, and how fast sessions may start."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from health.vocabulary import Mode, Phase
from remediation import budget
from remediation.budget import CLUSTER, StartBucket, disrupted, fenced, without_room
from remediation.fleet import Fleet, Node
from remediation.objects import AcceleratorRemediation, NodeAction, NodeSwitch
from remediation.policy import Policy
from tests.unit.builders import control, fleet, node, policy, report, session

HALF = policy(max_fenced="50%", max_disrupted="50%", pools=("a", "b"))


def healthy(*names: str, pool: str = "a") -> list[object]:
    return [item for name in names for item in (node(name, labels={"pool": pool}), report(name))]


def used(made: Fleet, *, virtual: bool = False, pool: str = CLUSTER, under: Policy = HALF) -> tuple[int, int]:
    found = fenced(made, under, pool, virtual=virtual)
    return found.used, found.limit


def test_nothing_is_taken_of_a_healthy_fleet_and_the_limit_is_of_each_pool_and_of_the_cluster() -> None:
    made = fleet(*healthy("n1", "n2", "n3", "n4"), *healthy("m1", "m2", pool="b"))
    assert used(made) == (0, 3)
    assert used(made, pool="a") == (0, 2)
    assert used(made, pool="b") == (0, 1)
    assert used(made, pool="default") == (0, 0)


def test_only_nodes_with_a_report_or_a_session_of_ours_are_accelerator_nodes() -> None:
    made = fleet(*healthy("n1"), node("cpu"), node("n3", cordoned=True), session(node_name="n3"))
    assert used(made) == (1, 1)
    made.drop_report("n1")
    made.drop_session(session(node_name="n3").metadata.name)
    assert used(made) == (0, 0)


@pytest.mark.parametrize(
    "lost",
    [
        (node("n1", cordoned=True),),
        (node("n1", ready=False),),
        (node("n1", cordoned=True, ready=False),),
        (node("n1"), session(phase=Phase.PENDING)),
        (node("n1"), session(phase=Phase.HELD)),
        (node("n1"), session(mode=Mode.APPROVE)),
        (node("n1", cordoned=True), session(phase=Phase.FENCED)),
    ],
)
def test_a_node_that_is_lost_to_the_workload_counts_once_whoever_took_it(
    lost: tuple[Node | AcceleratorRemediation, ...],
) -> None:
    made = fleet(*lost, report("n1"), *healthy("n2", "n3"))
    assert used(made) == (1, 1)
    assert used(made, virtual=True) == (1, 1)


def test_a_session_that_only_observes_is_charged_to_the_virtual_budget_alone() -> None:
    made = fleet(*healthy("n1", "n2"), session(mode=Mode.OBSERVE, phase=Phase.FENCED))
    assert used(made) == (0, 1)
    assert used(made, virtual=True) == (1, 1)


@pytest.mark.parametrize("over", [Phase.RELEASED, Phase.CANCELLED])
def test_a_closed_session_and_one_of_an_earlier_node_of_the_name_do_not_count(over: Phase) -> None:
    made = fleet(*healthy("n1", "n2"), session(phase=over), session(name="s2", uid="another"))
    assert used(made, virtual=True) == (0, 1)


def test_a_session_that_is_being_created_counts_already() -> None:
    made = fleet(*healthy("n1", "n2", "n3", "n4"))
    made.begin("n1", virtual=False)
    made.begin("n2", virtual=True)
    assert used(made) == (1, 2)
    assert used(made, virtual=True) == (2, 2)
    made.end("n1")
    made.end("n2")
    assert used(made, virtual=True) == (0, 2)


def test_there_is_room_up_to_the_limit_in_the_pool_and_in_the_cluster() -> None:
    made = fleet(*healthy("n1", "n2", "n3", "n4"), *healthy("m1", "m2", pool="b"))

    def full(name: str) -> str:
        found = without_room(fenced, made, HALF, made.nodes[name], virtual=False)
        return str(found) if found else ""

    assert full("n1") == ""
    made.put_node(node("n1", cordoned=True, labels={"pool": "a"}, version=2))
    assert full("n2") == ""
    made.put_node(node("n2", cordoned=True, labels={"pool": "a"}, version=2))
    assert full("n3") == "2 of 2 nodes fenced in pool a"
    assert full("m1") == ""
    made.put_node(node("m1", cordoned=True, labels={"pool": "b"}, version=2))
    assert full("m2") == "1 of 1 nodes fenced in pool b"


def test_a_node_that_counts_already_takes_no_more_room_and_yet_none_where_the_limit_is_exceeded() -> None:
    made = fleet(*healthy("n2", "n3", "n4"), node("n1", ready=False, labels={"pool": "a"}), report("n1"))
    limit_one = policy(max_fenced=1, pools=("a",))
    assert without_room(fenced, made, limit_one, made.nodes["n1"], virtual=False) is None
    made.put_node(node("n2", ready=False, labels={"pool": "a"}, version=2))
    assert without_room(fenced, made, limit_one, made.nodes["n1"], virtual=False) is not None


def test_a_limit_of_zero_leaves_no_room_at_all() -> None:
    made = fleet(*healthy("n1"))
    assert without_room(fenced, made, policy(max_fenced=0), made.nodes["n1"], virtual=False) is not None


def test_another_policy_counts_anew() -> None:
    made = fleet(*healthy("n1", "n2"), *healthy("m1", "m2", pool="b"))
    assert used(made, pool="a") == (0, 1)
    assert used(made, pool="default", under=policy()) == (0, 4)
    assert used(made, pool="a") == (0, 1)


def test_what_is_being_repaired_is_disrupted_and_what_is_held_or_opted_out_leaves_count_and_population() -> (
    None
):
    made = fleet(
        *healthy("n1", "n2", "n3", "n4", "n5"),
        node("n6", ready=False),
        report("n6"),
        session(node_name="n1", phase=Phase.REPAIRING),
        session(node_name="n2", phase=Phase.VERIFYING),
        session(node_name="n3", phase=Phase.HELD),
        session(node_name="n4", phase=Phase.FENCED),
        control(NodeSwitch(name="n5", action=NodeAction.OPT_OUT, user="alice")),
    )
    found = disrupted(made, HALF, CLUSTER)
    assert (found.used, found.limit) == (3, 2)
    assert found.exceeded
    assert str(found) == "3 of 2 nodes disrupted in the cluster"
    made.put_control(control(version=2))
    found = disrupted(made, HALF, CLUSTER)
    assert (found.used, found.limit) == (3, 2)
    assert without_room(disrupted, made, HALF, made.nodes["n4"], virtual=False) is not None


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("node", "gone", "report", "no report", "session", "begin", "end", "control")),
            st.sampled_from(("n1", "n2", "n3")),
            st.sampled_from(("a", "b", "c")),
            st.booleans(),
            st.booleans(),
        ),
        max_size=25,
    )
)
def test_counts_that_are_kept_are_those_of_a_fleet_that_is_counted_anew(
    changes: list[tuple[str, str, str, bool, bool]],
) -> None:
    made = Fleet()
    for version, (what, name, pool, one, other) in enumerate(changes, start=2):
        match what:
            case "node":
                made.put_node(node(name, cordoned=one, ready=other, labels={"pool": pool}, version=version))
            case "gone":
                made.drop_node(name)
            case "report":
                made.put_report(report(name, version=version), 0.0)
            case "no report":
                made.drop_report(name)
            case "session":
                mode, phase = Mode.OBSERVE if one else Mode.AUTO, Phase.HELD if other else Phase.RELEASED
                made.put_session(session(name=name, node_name=name, mode=mode, phase=phase, version=version))
            case "begin":
                made.begin(name, virtual=one)
            case "end":
                made.end(name)
            case "control":
                switch = NodeSwitch(name=name, action=NodeAction.OPT_OUT, user="alice")
                made.put_control(control(*[switch] if one else [], version=version))
        fresh = Fleet(
            nodes=made.nodes,
            reports=made.reports,
            sessions=made.sessions,
            control=made.control,
            starting=made.starting,
            _open=made._open,
            _closed=made._closed,
        )
        for where in ("a", "b", "default", CLUSTER):
            for virtual in (False, True):
                for count in (budget.fenced, budget.disrupted):
                    assert count(made, HALF, where, virtual=virtual) == count(
                        fresh, HALF, where, virtual=virtual
                    )


def test_the_bucket_refills_with_time_up_to_its_burst() -> None:
    bucket = StartBucket(tokens=0.5, refreshed=100.0)
    assert not bucket.available
    assert bucket.wait(per_minute=5) == 6.0
    assert bucket.at(106.0, per_minute=5, burst=10).available
    assert bucket.at(10_000.0, per_minute=5, burst=10).tokens == 10
    assert bucket.at(106.0, per_minute=5, burst=10).taken().tokens == 0


def test_a_clock_that_goes_back_refills_nothing_and_loses_nothing() -> None:
    bucket = StartBucket(tokens=2.0, refreshed=100.0).at(50.0, per_minute=5, burst=10)
    assert (bucket.tokens, bucket.refreshed) == (2.0, 100.0)


def test_where_no_start_is_allowed_at_all_the_wait_is_a_minute_at_a_time() -> None:
    assert StartBucket(tokens=0.0, refreshed=0.0).wait(per_minute=0) == 60


def test_a_burst_that_was_lowered_counts_at_once() -> None:
    assert StartBucket(tokens=10.0, refreshed=0.0).at(0.0, per_minute=5, burst=2).tokens == 2


@given(st.lists(st.floats(min_value=0, max_value=120), max_size=200), st.integers(0, 30), st.integers(1, 12))
def test_no_more_starts_pass_in_any_stretch_than_burst_and_rate_allow(
    pauses: list[float], per_minute: int, burst: int
) -> None:
    now, bucket, starts = 0.0, StartBucket(tokens=float(burst), refreshed=0.0), []
    for pause in pauses:
        now += pause
        bucket = bucket.at(now, per_minute=per_minute, burst=burst)
        if bucket.available:
            bucket = bucket.taken()
            starts.append(now)
    for first, begun in enumerate(starts):
        for last, ended in enumerate(starts[first:], start=first):
            assert last - first + 1 <= burst + (ended - begun) * per_minute / 60 + 1e-6


def test_a_node_whose_cordon_is_of_a_session_that_was_made_again_counts_until_it_is_given_back() -> None:
    again = session(name="again", node_name="n1", phase=Phase.VERIFYING, fenced=False)
    again = replace(again, status=replace(again.current, incidents=()))
    own = node("n1", cordoned=True, owner="again")
    assert disrupted(fleet(own, report("n1"), again), policy(), CLUSTER).used == 1
    assert disrupted(fleet(node("n1"), report("n1"), again), policy(), CLUSTER).used == 0
