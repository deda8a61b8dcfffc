"""Nodes that their operator wants proven before jobs may come: the taint `sickbay.dev/unverified`."""

import json
from typing import Any

import pytest
from msgspec.structs import replace

from health.report import Source
from health.vocabulary import Mode, Phase, SourceState
from remediation import budget
from remediation.cluster import NODES, Cluster
from remediation.decide import decide
from remediation.fleet import UNVERIFIED_KEY, Fleet, NodeSpec, Taint
from remediation.objects import AcceleratorRemediation, RemediationMetadata
from remediation.policy import Policy, StepName
from remediation.repair_policy import VerificationPolicy
from remediation.situation import Decision, Open, Run, Write
from remediation.steps.cordon import lift_taint
from remediation.steps.outcome import Result
from runtime.api_errors import Conflict
from tests.api_server import ScriptedApi
from tests.unit.builders import NOW, control, fault, fleet, later, node, policy, report, situation

LIVE = (Source("nvml", SourceState.LIVE),)
VERIFYING = replace(policy(), verification=VerificationPolicy(unverified=True))


def newcomer(*faults: Any, reported: bool = True, **given: Any) -> Fleet:
    found = [node(taint=UNVERIFIED_KEY, **given)]
    return fleet(*found, *([report("n1", *faults, sources=LIVE)] if reported else []))


def about(made: Fleet, under: Policy = VERIFYING, **given: Any) -> Decision:
    return decide(situation(made, under=under, **given))


def opened(made: Fleet) -> AcceleratorRemediation:
    action = about(made).action
    assert isinstance(action, Open)
    return AcceleratorRemediation(
        metadata=RemediationMetadata(name=action.name, uid="s", resource_version="1"),
        spec=action.spec,
        status=action.status,
    )


def test_a_newcomer_gets_a_session_that_uses_neither_a_start_nor_a_budget() -> None:
    made = newcomer()
    action = about(made).action
    assert isinstance(action, Open)
    assert (action.step, action.charged, action.status.phase) == (None, False, Phase.VERIFYING)
    made.put_session(opened(made))
    assert budget.fenced(made, VERIFYING, budget.CLUSTER).used == 0
    assert budget.disrupted(made, VERIFYING, budget.CLUSTER).used == 0


@pytest.mark.parametrize(
    ("made", "under", "said"),
    [
        (newcomer(), policy(), "nothing to do"),
        (fleet(node(), report("n1", sources=LIVE)), VERIFYING, "nothing to do"),
        (newcomer(reported=False), VERIFYING, "nobody reports yet"),
        (newcomer(opt_out=True), VERIFYING, "opted out"),
    ],
)
def test_a_node_is_proven_only_where_its_operator_and_the_policy_ask_for_it_and_nobody_forbids_it(
    made: Fleet, under: Policy, said: str
) -> None:
    decision = about(made, under)
    assert decision.action is None and said in decision.sentence


def test_a_pause_keeps_newcomers_waiting() -> None:
    made = newcomer()
    made.put_control(control(paused=True))
    assert about(made).action is None


def test_the_taint_goes_after_the_dwell_and_ends_the_session() -> None:
    made = newcomer()
    found = opened(made)
    made.put_session(replace(found, status=replace(found.current, healthy_since=NOW.wall)))
    waits = about(made)
    assert waits.action is None and "dwells" in waits.sentence
    action = about(made, wall=later(301)).action
    assert isinstance(action, Run)
    assert (action.step, action.then, action.reason) == (StepName.LIFT_TAINT, Phase.RELEASED, "Healthy")


def test_a_newcomer_is_verified_by_the_policys_job_although_no_rule_is_about_it() -> None:
    under = replace(policy(Mode.OBSERVE), verification=VerificationPolicy(template="nccl", unverified=True))
    made = newcomer()
    found = opened(made)
    made.put_session(replace(found, status=replace(found.current, healthy_since=NOW.wall)))
    action = about(made, under, wall=later(301)).action
    assert isinstance(action, Run)
    assert (action.step, action.then) == (StepName.VERIFY, Phase.VERIFYING)


def test_a_newcomer_that_turns_out_to_be_bad_is_fenced_as_any_other() -> None:
    made = newcomer(fault())
    made.put_session(opened(newcomer()))
    decision = about(made)
    assert "a fault is back" in decision.sentence


def test_a_taint_that_comes_back_in_the_same_boot_is_its_operators_affair() -> None:
    made = newcomer()
    found = opened(made)
    closed = replace(found.current, phase=Phase.RELEASED, closed_time=NOW.wall)
    made.put_session(replace(found, status=closed))
    decision = about(made)
    assert decision.action is None and "proven in this boot already" in decision.sentence


PAUSED = {"nvidia.com/gpu.deploy.dcgm": "paused-for-sickbay"}


def test_operands_that_nobody_remembers_are_given_back_and_the_session_ends() -> None:
    made = fleet(node(labels=PAUSED, hold=True), report("n1", sources=LIVE))
    found = opened(made)
    assert found.current.reason == "PausedOperands"
    made.put_session(found)
    action = about(made).action
    assert isinstance(action, Run) and action.step is StepName.RESTORE
    clean = fleet(node(version=2), report("n1", sources=LIVE))
    clean.put_session(replace(found, status=replace(found.current, healthy_since=NOW.wall)))
    closed = about(clean, wall=later(301)).action
    assert isinstance(closed, Write) and closed.status.phase is Phase.RELEASED


def test_operands_of_an_open_session_are_its_own_affair() -> None:
    made = fleet(node(labels=PAUSED, cordoned=True, owner="n1-gone"), report("n1", sources=LIVE))
    assert "made again" in about(made).sentence


class Tainted:
    """`steps.cordon.NodeApi` with one node."""

    def __init__(self, *keys: str) -> None:
        self.node = replace(node(), spec=NodeSpec(taints=tuple(map(Taint, keys))))
        self.refusal: Exception | None = None

    def get_node(self, name: str) -> Any:
        return self.node

    def patch_node(self, name: str, patch: bytes) -> Any:
        raise AssertionError("no merge patch of taints")

    def remove_taint(self, found: Any, key: str) -> Any:
        if self.refusal:
            raise self.refusal
        self.node = replace(
            found, spec=NodeSpec(taints=tuple(one for one in found.spec.taints if one.key != key))
        )
        return self.node


def test_only_the_taint_of_this_key_is_lifted() -> None:
    api = Tainted("other", UNVERIFIED_KEY)
    assert lift_taint(api, api.node, UNVERIFIED_KEY).result is Result.DONE
    assert [taint.key for taint in api.node.spec.taints] == ["other"]


def test_a_node_that_changes_meanwhile_is_looked_at_again() -> None:
    api = Tainted(UNVERIFIED_KEY)
    api.refusal = Conflict("changed", status=409, reason="Conflict")
    assert lift_taint(api, api.node, UNVERIFIED_KEY).result is Result.CHANGED
    assert lift_taint(api, node(hold=True), UNVERIFIED_KEY).result is Result.CHANGED


def test_taints_are_removed_by_their_place_under_the_version_that_was_read(api: ScriptedApi) -> None:
    api.answer("PATCH", {"metadata": {"name": "n1", "resourceVersion": "8"}})
    taints = (Taint(UNVERIFIED_KEY), Taint("other"), Taint(UNVERIFIED_KEY))
    found = replace(node(version=7), spec=NodeSpec(taints=taints))
    Cluster(api.session(), may_write=lambda: True).remove_taint(found, UNVERIFIED_KEY)
    (request,) = api.requests
    assert request.path == f"{NODES}/n1"
    assert request.headers["content-type"] == "application/json-patch+json"
    patch = [(one["op"], one["path"], one.get("value")) for one in json.loads(request.body)]
    assert patch == [
        ("test", "/metadata/resourceVersion", "7"),
        ("test", "/spec/taints/2/key", UNVERIFIED_KEY),
        ("remove", "/spec/taints/2", None),
        ("test", "/spec/taints/0/key", UNVERIFIED_KEY),
        ("remove", "/spec/taints/0", None),
    ]


def test_a_test_that_does_not_hold_is_a_conflict(api: ScriptedApi) -> None:
    api.refuse("PATCH", 422, "Invalid")
    found = replace(node(), spec=NodeSpec(taints=(Taint(UNVERIFIED_KEY),)))
    with pytest.raises(Conflict):
        Cluster(api.session(), may_write=lambda: True).remove_taint(found, UNVERIFIED_KEY)
