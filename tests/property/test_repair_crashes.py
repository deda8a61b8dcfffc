"""A reset and a reboot are carried out once, and end alike, whatever single write of the controller goes wrong."""

import random
from collections import Counter
from functools import cache

import pytest

from health.vocabulary import Phase
from remediation.cluster import NODES
from tests.property.remediation_pods import OPERAND_LABELS
from tests.property.remediation_world import World
from tests.unit.fake_cluster import JOBS, OPERANDS, Trouble

RESET = ("EngineHung", "GPU-0", "ResetDevice", "DeviceReset", "Fatal")
REBOOT = ("DeviceLost", "GPU-0", "RebootNode", "NewBoot", "Fatal")
PLANS = {"Reset": RESET, "Reboot": REBOOT}
WAYS = [("Reset", True), ("Reset", False), ("Reboot", True)]
"""Plans, and whether GPU Operator places the device plugin, which then leaves the node for a reset."""

AT_A_WRITE = (
    Trouble.CRASH_BEFORE,
    Trouble.CRASH_AFTER,
    Trouble.LOST,
    Trouble.REFUSED,
    Trouble.UNREACHABLE,
    Trouble.CONFLICT,
    Trouble.LATE,
)
LONG = 600.0
"""Seconds in which each of the plans comes to its end, the dwell and pauses after a failure included."""


class Journey:
    """A node falls ill, is repaired and given back; one write meets trouble, after so many that are spared."""

    def __init__(self, plan: str, operator: bool, *, spared: int = 0, trouble: Trouble | None = None) -> None:
        self.world = world = World(populated=True, repairs=True, operator=operator)
        world.let_pass(45)
        if trouble is not None:
            world.plan.append((spared, trouble))
        begun = len(world.api.calls)
        kind, *rest = PLANS[plan]
        world.raise_fault("n1", kind, *rest)
        world.run()
        for _ in range(round(LONG / 15)):
            world.let_pass(15)
            while world.api.late:
                world.land()
        world.rest()
        world.monitor.check()
        world.monitor.repairs.at_peace()
        evicted = len(world.pods.evictions) + len(world.pods.deletions)
        self.writes = sum(call.mutates for call in world.api.calls[begun:]) + evicted

    @property
    def deeds(self) -> Counter[str]:
        """How often a host was reset or booted."""
        return Counter(deed.step for deed in self.world.jobs.deeds)

    def end(self) -> object:
        """What counts: the node's spec, our keys and the operands, live pods, what became of the sessions,
        deeds, Jobs, and restarts of the device plugin."""
        world = self.world
        node = world.api.get(NODES, "n1")
        return (
            node["spec"].get("unschedulable", False),
            {key for key in node["metadata"]["annotations"] if key.startswith("sickbay.dev/")},
            {key: value for key, value in node["metadata"]["labels"].items() if key.startswith(OPERANDS)},
            world.spec_of("n1").device_release,
            sorted((pod.asks_for(("nvidia.com/gpu",)), pod.status.phase) for pod in world.pods.on("n1")),
            [
                (one.current.phase, one.current.reason, one.current.repair and one.current.repair.done)
                for one in world.sessions(opened=False)
            ],
            self.deeds,
            len(world.api.objects[JOBS]),
            len({name for _, name in world.pods.deletions if name.startswith("kube-system")}),
        )


@cache
def undisturbed(plan: str, operator: bool) -> Journey:
    return Journey(plan, operator)


POINTS_EACH = 2
"""Writes at which each trouble is tried in the fast tests, drawn by a fixed seed."""


@pytest.mark.parametrize(("plan", "operator"), WAYS)
def test_an_undisturbed_plan_repairs_once_and_gives_everything_back(plan: str, operator: bool) -> None:
    without_devices = 3 if operator else 2
    assert undisturbed(plan, operator).end() == (
        False,
        set(),
        OPERAND_LABELS if operator else {},
        None,
        [(False, "Running")] * without_devices,
        [(Phase.RELEASED, "Healthy", (plan,))],
        {plan: 1},
        1,
        0 if operator or plan == "Reboot" else 1,
    )
    assert undisturbed(plan, operator).writes >= 20


def leads_to_the_same_end(plan: str, operator: bool, trouble: Trouble, spared: int) -> None:
    disturbed = Journey(plan, operator, spared=spared, trouble=trouble)
    assert not disturbed.world.plan, f"after {spared} writes there was no other"
    assert disturbed.deeds == {plan: 1}, f"after {spared} writes"
    assert disturbed.end() == undisturbed(plan, operator).end(), f"after {spared} writes"


@pytest.mark.parametrize("trouble", AT_A_WRITE)
@pytest.mark.parametrize(("plan", "operator"), WAYS)
def test_trouble_at_a_write_repairs_once_and_ends_alike(plan: str, operator: bool, trouble: Trouble) -> None:
    drawn = random.Random(f"{plan} {operator} {trouble.name}")
    for spared in drawn.sample(range(undisturbed(plan, operator).writes), POINTS_EACH):
        leads_to_the_same_end(plan, operator, trouble, spared)


@pytest.mark.deep
@pytest.mark.parametrize("trouble", AT_A_WRITE)
@pytest.mark.parametrize(("plan", "operator"), WAYS)
def test_trouble_at_any_write_repairs_once_and_ends_alike(
    plan: str, operator: bool, trouble: Trouble
) -> None:
    for spared in range(undisturbed(plan, operator).writes):
        leads_to_the_same_end(plan, operator, trouble, spared)
