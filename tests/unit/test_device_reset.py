"""What a receipt of a device reset ends, and what it must leave."""

from dataclasses import replace

import msgspec
import pytest

from exporter.events import CaughtUp, Met, ReceiptsRead, SourceSaid
from exporter.fold import OTHER_SOURCES, Fold
from exporter.memory import Memory
from exporter.reporting import report_status
from health import xids
from health.receipt import Receipt, RepairResult
from health.vocabulary import SourceState
from tests.unit.agent_samples import (
    BOOT,
    NOW,
    UUIDS,
    fresh_state,
    full_sample,
    inventory,
    known_state,
    later,
    sample,
    verdict,
    xid,
)

DEVICE_RESET, NEW_BOOT, DWELL = 109, 79, 94
"""Xids whose faults end by a reset, a new boot and quiet (health/xids.tsv)."""


def reset(at=10, *, device=1, session="session", **changes):
    values = {
        "boot_id": BOOT,
        "result": RepairResult.DONE.value,
        "devices": (UUIDS[device],),
        "step": "Reset",
    }
    return Receipt(session=session, attempt=1, time=later(at), **{**values, **changes})


def kinds(state):
    return [fault.kind for fault in state.diagnosis.faults]


def hung(at=0, **options):
    return known_state().with_message(xid(DEVICE_RESET, at=later(at), **options))


def test_a_reset_ends_what_it_heals_on_its_device_and_nothing_else():
    state = (
        hung()
        .with_message(xid(DEVICE_RESET, device=0, at=NOW))
        .with_message(xid(NEW_BOOT, at=NOW))
        .with_message(xid(DWELL, at=NOW))
        .with_receipts((reset(),), later(11))
    )
    assert {fault.identity for fault in state.diagnosis.faults} == {
        ("EngineHung", UUIDS[0]),
        ("DeviceLost", UUIDS[1]),
        ("ContainedMemory", UUIDS[1]),
    }


@pytest.mark.parametrize(
    "other",
    [
        reset(result=RepairResult.BEGUN.value),
        reset(result=RepairResult.HELD.value),
        reset(result=RepairResult.FAILED.value),
        reset(step="Reboot"),
        reset(boot_id="another"),
        reset(devices=()),
        reset(device=0),
        reset(at=-1),
    ],
)
def test_only_a_reset_that_was_done_to_the_device_in_this_boot_after_the_fault_ends_it(other):
    assert kinds(hung().with_receipts((other,), later(11))) == ["EngineHung"]


def test_a_fault_of_the_very_moment_of_the_reset_is_ended_and_a_later_one_stays():
    assert kinds(hung(10).with_receipts((reset(10),), later(11))) == []
    assert kinds(hung(10.001).with_receipts((reset(10),), later(11))) == ["EngineHung"]


def test_several_devices_may_be_reset_at_once():
    state = hung().with_message(xid(DEVICE_RESET, device=0, at=NOW))
    assert kinds(state.with_receipts((reset(devices=UUIDS[:2]),), later(11))) == []


def test_a_receipt_that_begun_and_is_then_done_counts_as_new():
    state = hung().with_receipts((reset(5, result=RepairResult.BEGUN.value),), later(6))
    assert kinds(state) == ["EngineHung"]
    assert kinds(state.with_receipts((reset(),), later(11))) == []


def test_a_receipt_that_is_known_is_not_applied_again_though_the_clock_was_set_back():
    state = known_state().with_receipts((reset(100),), later(101))
    state = state.with_message(xid(DEVICE_RESET, at=later(50)))
    again = state.with_receipts((reset(100), reset(1, session="older", device=0)), later(51))
    assert kinds(again.at(later(52))) == ["EngineHung"]


def test_a_receipt_of_the_future_counts_as_one_of_now():
    state = hung().with_receipts((reset(10_000),), later(1))
    assert kinds(state) == []
    assert state.receipts[0].time == later(1)
    later_fault = state.with_message(xid(DEVICE_RESET, at=later(2)))
    assert kinds(later_fault.with_receipts((reset(10_000),), later(3))) == ["EngineHung"]


def test_the_drivers_verdict_is_forgotten_with_what_came_of_it():
    state = known_state().with_message(verdict("GPU Reset Required", at=NOW))
    assert kinds(state) == ["RecoveryRequired"]
    healed = state.with_receipts((reset(),), later(11))
    assert (kinds(healed), healed.diagnosis.verdicts) == ([], {})


def test_a_verdict_that_came_after_the_reset_stays():
    state = hung().with_message(verdict("Node Reboot Required", at=later(10.5)))
    healed = state.with_receipts((reset(),), later(11))
    assert healed.diagnosis.verdicts == {UUIDS[1]: "Node Reboot Required"}


@pytest.mark.parametrize(("action", "expected"), [(0, []), (1, ["RecoveryRequired"])])
def test_after_a_reset_the_next_sample_says_what_the_driver_thinks_now(action, expected):
    before = known_state().with_sample(sample(full_sample(0), full_sample(1, recovery_action=1)), NOW)
    assert kinds(before) == ["RecoveryRequired"]
    healed = before.with_receipts((reset(),), later(11))
    assert kinds(healed) == []
    after = healed.with_sample(sample(full_sample(0), full_sample(1, recovery_action=action)), later(12))
    assert kinds(after) == expected


def test_the_report_has_the_receipts_as_they_are():
    told = (reset(message="said"), reset(5, session="other"))
    state = known_state().with_receipts(told, later(11))
    status = report_status(state, now=NOW, samples={}, node_uid="uid", agent_version="1")
    assert status.receipts == told


class Agent:
    """A fold and its clock; `seconds` is the time of what is taken in next."""

    def __init__(self, memory=None, at=0.0, devices=(0, 1)):
        self.seconds = at
        self.fold = Fold(
            boot_id=BOOT,
            catalogue=xids.builtin(),
            memory=memory,
            drill=False,
            now=later(at),
            monotonic=1000 + at,
        )
        for source in OTHER_SOURCES:
            self.take(SourceSaid(source, SourceState.LIVE, ""))
        self.take(inventory(*devices))

    def take(self, *events, at=None):
        self.seconds = self.seconds if at is None else at
        for event in events:
            self.fold.take(event, now=later(self.seconds), monotonic=1000 + self.seconds)
        self.fold.settle(now=later(self.seconds), monotonic=1000 + self.seconds)
        return self

    def remembered(self):
        return msgspec.json.decode(msgspec.json.encode(self.fold.memory("uid")), type=Memory)

    @property
    def kinds(self):
        return kinds(self.fold.state)


@pytest.mark.parametrize("receipts_first", [True, False])
def test_a_line_from_before_the_reset_that_is_replayed_raises_nothing(receipts_first):
    told = [ReceiptsRead((reset(),)), xid(DEVICE_RESET, at=NOW), CaughtUp()]
    order = told if receipts_first else [*told[1:], told[0]]
    assert Agent(at=20).take(*order).kinds == []


def test_a_line_from_before_the_reset_is_not_even_shown_while_the_log_is_replayed():
    agent = Agent(at=20).take(ReceiptsRead((reset(),)))
    assert agent.take(xid(DEVICE_RESET, at=NOW)).kinds == []
    assert agent.take(xid(DEVICE_RESET, at=later(15), sequence=2)).kinds == ["EngineHung"]


def test_a_line_that_is_counted_is_counted_though_a_reset_has_healed_it():
    agent = Agent(at=20).take(ReceiptsRead((reset(),)), xid(DEVICE_RESET, at=NOW), CaughtUp())
    assert sum(counter.count for counter in agent.fold.state.xids.values()) == 1


def test_a_restart_does_not_apply_a_receipt_to_a_newer_fault():
    agent = Agent().take(CaughtUp(), ReceiptsRead((reset(),)), at=11)
    agent.take(
        xid(DEVICE_RESET, at=later(12)), verdict("GPU Reset Required", at=later(12), sequence=2), at=12
    )
    restarted = Agent(agent.remembered(), at=30).take(ReceiptsRead((reset(),)), CaughtUp())
    assert restarted.kinds == ["EngineHung"]
    assert restarted.fold.state.diagnosis.verdicts == {UUIDS[1]: "GPU Reset Required"}


def test_a_line_that_is_read_as_it_is_written_is_newer_than_the_reset_though_the_kernels_clock_lags():
    agent = Agent().take(CaughtUp(), ReceiptsRead((reset(),)), at=11)
    lagging = replace(xid(DEVICE_RESET, at=later(-30)), received=1011.5)
    (fault,) = agent.take(lagging, at=12).fold.state.diagnosis.faults
    assert fault.last_seen == later(11.5)
    unread = Agent().take(CaughtUp()).take(replace(lagging, received=1010.5), at=10.6)
    assert unread.take(ReceiptsRead((reset(),)), at=11).kinds == ["EngineHung"]


def test_the_own_report_from_before_the_reset_raises_nothing_again():
    old = hung().with_message(verdict("GPU Reset Required", at=NOW, sequence=2))
    status = report_status(old, now=later(5), samples={}, node_uid="uid", agent_version="1")
    agent = Agent(at=20).take(ReceiptsRead((reset(),)), CaughtUp()).take(Met(status))
    assert (agent.kinds, agent.fold.state.diagnosis.verdicts) == ([], {})
    newer = report_status(old, now=later(15), samples={}, node_uid="uid", agent_version="1")
    agent = Agent(at=20).take(ReceiptsRead((reset(),)), CaughtUp()).take(Met(newer))
    assert agent.fold.state.diagnosis.verdicts == {UUIDS[1]: "GPU Reset Required"}


def test_a_fault_whose_device_becomes_known_late_is_ended_too():
    agent = Agent(at=20, devices=(0,))
    agent.take(ReceiptsRead((reset(),)), xid(DEVICE_RESET, at=NOW), CaughtUp())
    assert agent.kinds == ["EngineHung"]
    assert agent.take(inventory(0, 1)).kinds == []


def test_verdicts_without_a_time_are_older_than_any_reset():
    state = fresh_state().restored((), {UUIDS[1]: "GPU Reset Required"}, NOW)
    assert state.with_receipts((reset(),), later(11)).diagnosis.verdicts == {}
