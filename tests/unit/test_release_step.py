"""Everybody gets off the devices before a reset and back on after it: operands, the agent, and who changes them."""

from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from health.report import AcceleratorReport, DeviceRelease
from health.vocabulary import DeviceAccess
from remediation.cluster import FencedError
from remediation.fleet import Node
from remediation.orders import ReleaseOrder
from remediation.pod import Pod
from remediation.repair_policy import KNOWN_OPERANDS
from remediation.repair_state import Operand, RepairState
from remediation.steps.outcome import Outcome, Result
from remediation.steps.release import PAUSED, paused_operands, release_devices, restore_devices
from runtime.api_errors import ApiError, Conflict, Forbidden, NotFound, Unavailable
from runtime.clock import ManualClock
from tests.fake_pods import FakePods, make_pod
from tests.unit.builders import NOON, later, node, report

SESSION = "n1-0123456789"
PLUGIN, DCGM, NVSM = (f"nvidia.com/gpu.deploy.{name}" for name in ("device-plugin", "dcgm", "nvsm"))
OPERANDS = {PLUGIN: "true", DCGM: "true", NVSM: "false", "pool": "a"}


@dataclass
class Machine:
    """A node with its labels, its agent and its pods; what is asked of it is kept in its order."""

    labels: dict[str, str] = field(default_factory=lambda: dict(OPERANDS))
    release: DeviceRelease | None = None
    access: DeviceAccess = DeviceAccess.HELD
    reported: bool = True
    there: bool = True
    version: int = 1
    errors: list[ApiError | None] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)
    pods: FakePods = field(default_factory=lambda: FakePods(ManualClock(wall=NOON)))

    def get_node(self, name: str) -> Node:
        if not self.there:
            raise NotFound('nodes "n1" not found', status=404, reason="NotFound")
        return node(cordoned=True, owner=SESSION, labels=dict(self.labels), version=self.version)

    def patch_node(self, name: str, patch: bytes) -> Node:
        document = msgspec.json.decode(patch)
        metadata = document["metadata"]
        self._fail()
        if (metadata["uid"], metadata["resourceVersion"]) != ("uid-n1", str(self.version)):
            raise Conflict("the object has been modified", status=409, reason="Conflict")
        assert document.keys() == {"metadata"} and metadata.keys() == {"uid", "resourceVersion", "labels"}
        self.asked.append(metadata["labels"])
        self.labels.update(metadata["labels"])
        self.version += 1
        return self.get_node(name)

    def report(self, node_name: str) -> AcceleratorReport | None:
        if not self.reported:
            return None
        found = report("n1", version=self.version)
        spec = replace(found.spec, device_release=self.release)
        return replace(found, spec=spec, status=replace(found.status, device_access=self.access))

    def order_release(self, found: AcceleratorReport, release: DeviceRelease | None) -> None:
        self._fail()
        self.asked.append(release)
        self.release = release

    def pods_on(self, node_name: str) -> tuple[Pod, ...]:
        return self.pods.pods_on(node_name)

    def operand(self, key: str, **given: Any) -> Pod:
        """The pod of an operand, which the label of its nodeSelector keeps on the node."""
        pod = make_pod(owner="DaemonSet", gpus=0, spec={"nodeSelector": {key: "true"}}, **given)
        self.pods.put(pod)
        return pod

    def _fail(self) -> None:
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error


class Ward:
    """A release and its return, pass by pass; the memory goes through JSON, as a session does."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.order = ReleaseOrder(
            operands=KNOWN_OPERANDS,
            deadline=later(300) - NOON,
            until=later(960),
        )
        self.memory = RepairState(started=NOON)

    def take(self, seconds: float = 0) -> Outcome:
        """A pass of the release, so long after its begin. A later decision would ask for another time."""
        order = replace_until(self.order, seconds)
        return self._kept(
            release_devices(self.machine, "n1", order, self.memory, session=SESSION, now=later(seconds))
        )

    def give_back(self) -> Outcome:
        return self._kept(restore_devices(self.machine, "n1", self.memory, session=SESSION))

    def release(self) -> None:
        """The whole of it."""
        self.take()
        self.take()
        self.machine.access = DeviceAccess.RELEASED
        assert self.take(5).result is Result.DONE

    def _kept(self, outcome: Outcome) -> Outcome:
        assert outcome.repair is not None
        self.memory = msgspec.json.decode(msgspec.json.encode(outcome.repair), type=RepairState)
        assert self.memory == outcome.repair
        return outcome


def replace_until(order: ReleaseOrder, seconds: float) -> ReleaseOrder:
    return ReleaseOrder(order.operands, order.deadline, order.until + (later(seconds) - NOON))


@pytest.fixture
def ward() -> Ward:
    return Ward()


def waits(outcome: Outcome, *told: str) -> None:
    assert outcome.result is Result.WAITING and outcome.again is not None, outcome
    assert all(part in outcome.message for part in told), outcome.message


# Letting go.


def test_the_first_pass_changes_nothing_and_writes_down_what_will_be(ward: Ward) -> None:
    waits(ward.take(), "pauses 2 operands and asks the agent to let go")
    assert ward.machine.asked == [] and ward.machine.labels == OPERANDS
    assert ward.memory.operands == (Operand(DCGM, "true"), Operand(PLUGIN, "true"))
    assert (ward.memory.release_until, ward.memory.lent) == (later(960), True)


def test_only_operands_that_run_are_paused_and_nothing_else_is_touched(ward: Ward) -> None:
    ward.take()
    ward.take()
    assert ward.machine.asked[0] == {PLUGIN: PAUSED, DCGM: PAUSED}
    assert ward.machine.labels == {**OPERANDS, PLUGIN: PAUSED, DCGM: PAUSED}


def test_the_agent_is_asked_once_by_the_session_and_until_the_time_that_was_written_down(ward: Ward) -> None:
    for second in range(6):
        waits(ward.take(second))
    assert [item for item in ward.machine.asked if not isinstance(item, dict)] == [
        DeviceRelease(session=SESSION, until=later(960))
    ]


def test_it_is_done_when_the_agent_says_that_it_has_let_go(ward: Ward) -> None:
    ward.take()
    waits(ward.take(1), "the agent is asked")
    waits(ward.take(2), "the agent has not let go")
    ward.machine.access = DeviceAccess.RELEASED
    outcome = ward.take(3)
    assert outcome.result is Result.DONE and ward.memory.lent, "it is given back after the reset"


def test_what_the_agent_said_before_it_was_asked_does_not_count(ward: Ward) -> None:
    ward.machine.access = DeviceAccess.RELEASED
    ward.take()
    waits(ward.take(1), "the agent is asked")


def test_the_pods_of_what_is_paused_must_leave_and_no_others(ward: Ward) -> None:
    pod = ward.machine.operand(DCGM)
    ward.machine.operand(NVSM)
    ward.machine.operand(PLUGIN, phase="Failed")
    ward.machine.pods.put(make_pod(owner="DaemonSet"))
    ward.machine.access = DeviceAccess.RELEASED
    ward.take()
    ward.take(1)
    outcome = ward.take(2)
    waits(outcome, f"{pod.name} must leave first")
    ward.machine.pods.remove(pod.uid)
    assert ward.take(3).result is Result.DONE


def test_without_an_operator_only_the_agent_is_asked(ward: Ward) -> None:
    ward.machine.labels = {"pool": "a"}
    waits(ward.take(), "asks the agent to let go")
    ward.take(1)
    ward.machine.access = DeviceAccess.RELEASED
    assert ward.take(2).result is Result.DONE
    assert ward.memory.operands == () and ward.machine.labels == {"pool": "a"}


def test_an_operand_that_somebody_switches_off_meanwhile_is_left_alone(ward: Ward) -> None:
    ward.take()
    ward.machine.labels[DCGM] = "false"
    ward.take(1)
    assert ward.machine.labels[DCGM] == "false"


def test_an_operand_that_somebody_switches_on_again_is_paused_again(ward: Ward) -> None:
    ward.take()
    ward.take(1)
    ward.machine.labels[DCGM] = "true"
    ward.take(2)
    assert ward.machine.labels[DCGM] == PAUSED


def test_a_pass_that_was_cut_off_between_its_writes_is_gone_on_with(ward: Ward) -> None:
    ward.take()
    ward.machine.errors = [None, Unavailable("timed out", status=504)]
    with pytest.raises(Unavailable):
        ward.take(1)
    assert ward.machine.labels[PLUGIN] == PAUSED and ward.machine.release is None
    waits(ward.take(2), "the agent is asked")
    assert len([item for item in ward.machine.asked if isinstance(item, dict)]) == 1


def test_a_conflict_is_tried_again_soon(ward: Ward) -> None:
    ward.take()
    ward.machine.errors = [Conflict("modified", status=409, reason="Conflict")]
    waits(ward.take(1), "cannot be changed", "modified")
    waits(ward.take(2), "the agent is asked")


def test_at_the_deadline_it_says_who_has_not_let_go(ward: Ward) -> None:
    pod = ward.machine.operand(DCGM)
    ward.take()
    ward.take(1)
    waits(ward.take(299))
    outcome = ward.take(300)
    assert (outcome.result, outcome.hold) == (Result.DEADLINE, "DevicesNotReleased")
    assert pod.name in outcome.message and ward.memory.lent


def test_a_node_without_a_report_has_nobody_who_could_let_go(ward: Ward) -> None:
    ward.machine.reported = False
    ward.take()
    waits(ward.take(1), "the agent has not let go")
    assert ward.take(300).hold == "DevicesNotReleased"


@pytest.mark.parametrize(
    "error",
    [
        Conflict("modified", status=409, reason="Conflict"),
        Forbidden("the controller may not", status=403, reason="Forbidden"),
        Unavailable("etcd is slow", status=503),
    ],
)
def test_what_fails_for_ever_is_given_up_at_the_deadline_too(ward: Ward, error: ApiError) -> None:
    ward.take()
    ward.machine.errors = [error] * 9
    if isinstance(error, Conflict):
        waits(ward.take(299))
    else:
        with pytest.raises(type(error)):
            ward.take(299)
    outcome = ward.take(300)
    assert (outcome.result, outcome.hold) == (Result.DEADLINE, "DevicesNotReleased")
    assert error.message in outcome.message


def test_a_controller_that_no_longer_leads_gives_nothing_up(ward: Ward) -> None:
    ward.take()
    ward.machine.errors = [FencedError("the lease is not proven", reason="Fenced")]
    with pytest.raises(FencedError):
        ward.take(9999)


# Giving back.


def test_everything_is_given_back_as_it_was(ward: Ward) -> None:
    ward.release()
    outcome = ward.give_back()
    assert outcome.result is Result.DONE and "2 operands" in outcome.message
    assert ward.machine.labels == OPERANDS and ward.machine.release is None
    assert not ward.memory.lent and outcome.node is not None
    assert outcome.node.metadata.labels == OPERANDS


def test_what_was_only_written_down_and_never_changed_is_given_back_without_a_request(ward: Ward) -> None:
    ward.take()
    assert ward.give_back().result is Result.DONE
    assert ward.machine.asked == [] and not ward.memory.lent


def test_only_what_is_still_ours_is_given_back(ward: Ward) -> None:
    ward.release()
    ward.machine.labels[DCGM] = "false"
    del ward.machine.labels[PLUGIN]
    ward.machine.release = DeviceRelease(session="n1-another", until=later(9))
    ward.machine.asked.clear()
    assert ward.give_back().result is Result.DONE
    assert ward.machine.asked == [] and ward.machine.labels[DCGM] == "false"
    assert PLUGIN not in ward.machine.labels


def test_operands_that_a_session_paused_that_is_gone_are_given_back(ward: Ward) -> None:
    ward.machine.labels |= {NVSM: PAUSED, PLUGIN: PAUSED}
    assert paused_operands(ward.machine.labels) == (Operand(PLUGIN, "true"), Operand(NVSM, "true"))
    assert ward.give_back().result is Result.DONE
    assert ward.machine.labels == {**OPERANDS, NVSM: "true"}


def test_a_label_that_is_no_operands_is_not_ours_whatever_its_value(ward: Ward) -> None:
    ward.machine.labels["example.com/state"] = PAUSED
    assert paused_operands(ward.machine.labels) == ()
    ward.release()
    ward.give_back()
    assert ward.machine.labels["example.com/state"] == PAUSED


def test_what_the_session_remembers_is_given_back_whatever_it_is_called(ward: Ward) -> None:
    ward.order = ReleaseOrder(("example.com/monitor",), ward.order.deadline, ward.order.until)
    ward.machine.labels["example.com/monitor"] = "true"
    ward.release()
    assert ward.machine.labels["example.com/monitor"] == PAUSED
    ward.give_back()
    assert ward.machine.labels["example.com/monitor"] == "true"


@pytest.mark.parametrize("writes_before", [0, 1], ids=["of the node", "of the report"])
def test_a_conflict_keeps_the_memory_until_everything_is_back(ward: Ward, writes_before: int) -> None:
    ward.release()
    ward.machine.errors = [*[None] * writes_before, Conflict("modified", status=409, reason="Conflict")]
    assert ward.give_back().result is Result.CHANGED
    assert ward.memory.lent
    assert ward.give_back().result is Result.DONE
    assert ward.machine.labels == OPERANDS and ward.machine.release is None


def test_a_report_that_is_gone_has_nothing_to_be_told(ward: Ward) -> None:
    ward.release()
    ward.machine.reported = False
    assert ward.give_back().result is Result.DONE
    assert ward.machine.labels == OPERANDS and not ward.memory.lent


def test_a_node_that_is_gone_has_nothing_to_be_given_back(ward: Ward) -> None:
    ward.release()
    ward.machine.there = False
    assert ward.give_back().result is Result.DONE
    assert not ward.memory.lent


def test_given_back_twice_is_given_back_once(ward: Ward) -> None:
    ward.release()
    ward.give_back()
    ward.machine.asked.clear()
    assert ward.give_back().result is Result.DONE and ward.machine.asked == []
