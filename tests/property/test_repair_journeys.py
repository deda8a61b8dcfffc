"""What becomes of a node whose repairs go wrong in each of the ways a host knows, with the whole controller."""

from collections import Counter
from typing import Any

import pytest

from health.vocabulary import Phase
from remediation.cluster import NODES
from remediation.fleet import HOLD_KEY, SESSION_KEY
from remediation.objects import AcceleratorRemediation
from remediation.steps.release import PAUSED
from tests.property.remediation_pods import EXPORTER_OPERAND, OPERAND_LABELS
from tests.property.remediation_world import UPGRADE_KEY, World
from tests.unit.fake_cluster import JOBS, OPERANDS

HUNG = ("EngineHung", "GPU-0", "ResetDevice", "DeviceReset", "Fatal")
LOST = ("DeviceLost", "GPU-0", "RebootNode", "NewBoot", "Fatal")


def ill(*, hung: bool = True, operator: bool = True, **host: Any) -> World:
    """The first node has just fallen ill, and its host is as bad as said."""
    world = World(populated=True, repairs=True, operator=operator)
    world.let_pass(45)
    for key, value in host.items():
        setattr(world.agents["n1"].host, key, value)
    world.raise_fault("n1", *(HUNG if hung else LOST))
    world.run()
    return world


def until_step(world: World, reason: str) -> None:
    """Let time pass until the session is at a step, or has taken one."""
    for _ in range(40):
        if the_session(world).current.reason == reason:
            return
        world.let_pass(15)
    raise AssertionError(f"never at {reason}: {the_session(world).current.reason}")


def the_session(world: World) -> AcceleratorRemediation:
    (session,) = world.sessions(opened=False)
    return session


def deeds(world: World) -> Counter[str]:
    return Counter(deed.step for deed in world.jobs.deeds)


def in_the_end(world: World) -> tuple[Phase, str, str]:
    """Phase, reason and rung when the session is over, or a person's, within an hour and a half; nothing is lent any
    more, and nothing was done wrongly."""
    for _ in range(90):
        world.let_pass(60)
        if the_session(world).current.phase in (Phase.RELEASED, Phase.HELD):
            break
    world.rest()
    world.monitor.check()
    world.monitor.repairs.at_peace()
    node = world.api.get(NODES, "n1")
    status = the_session(world).current
    assert (SESSION_KEY in node["metadata"]["annotations"]) == (status.phase is Phase.HELD)
    return status.phase, status.reason, status.rung


RELEASED = (Phase.RELEASED, "Healthy")


@pytest.mark.parametrize(
    ("host", "end", "done"),
    [
        ({}, (*RELEASED, "ResetDevice"), {"Reset": 1}),
        ({"twice": True}, (*RELEASED, "ResetDevice"), {"Reset": 1}),
        ({"slow": True}, (*RELEASED, "ResetDevice"), {"Reset": 1}),
        ({"release": "late"}, (*RELEASED, "ResetDevice"), {"Reset": 1}),
        ({"release": "never"}, (*RELEASED, "RebootNode"), {"Reboot": 1}),
        ({"reset": "helps not"}, (*RELEASED, "RebootNode"), {"Reset": 1, "Reboot": 1}),
        ({"reset": "is held"}, (*RELEASED, "RebootNode"), {"Reboot": 1}),
        ({"reset": "fails"}, (*RELEASED, "RebootNode"), {"Reboot": 1}),
        ({"reset": "dies"}, (*RELEASED, "RebootNode"), {"Reset": 1, "Reboot": 1}),
        (
            {"reset": "helps not", "reboot": "helps not"},
            (Phase.HELD, "NotHealed", "RebootNode"),
            {"Reset": 1, "Reboot": 1},
        ),
        (
            {"reset": "is held", "reboot": "never back", "twice": True},
            (Phase.HELD, "RepairNotSeen", "RebootNode"),
            {"Reboot": 1},
        ),
        ({"image": False}, (Phase.HELD, "RepairNotSeen", "RebootNode"), {}),
    ],
)
def test_a_reset_that_does_not_help_gives_way_to_a_reboot(
    host: dict[str, Any], end: tuple[Phase, str, str], done: dict[str, int]
) -> None:
    world = ill(**host)
    assert in_the_end(world) == end
    assert deeds(world) == done


@pytest.mark.parametrize(
    ("host", "end", "done"),
    [
        ({}, RELEASED, 1),
        ({"twice": True}, RELEASED, 1),
        ({"reboot": "kubelet late"}, RELEASED, 1),
        ({"reboot": "agent late"}, RELEASED, 1),
        ({"reboot": "both late", "twice": True}, RELEASED, 1),
        ({"reboot": "helps not"}, (Phase.HELD, "NotHealed"), 1),
        ({"reboot": "never back"}, (Phase.HELD, "RepairNotSeen"), 1),
        ({"reboot": "fails"}, (Phase.HELD, "RepairFailed"), 0),
        ({"reboot": "dies"}, (Phase.HELD, "RepairNotSeen"), 0),
        ({"image": False}, (Phase.HELD, "RepairNotSeen"), 0),
    ],
)
def test_a_reboot_is_proven_by_the_boot_or_held(
    host: dict[str, Any], end: tuple[Phase, str], done: int
) -> None:
    world = ill(hung=False, **host)
    assert in_the_end(world) == (*end, "RebootNode")
    assert sum(deeds(world).values()) == done


@pytest.mark.parametrize("step", ["Drain", "ReleaseDevices", "Reset"])
@pytest.mark.parametrize("how", ["annotation", "session", "uncordon", "upgrade", "pause", "opt out"])
def test_somebody_who_steps_in_before_the_reset_is_done_stops_it(step: str, how: str) -> None:
    world = ill(image=False)
    until_step(world, step)
    session = the_session(world).metadata.name
    match how:
        case "annotation":
            world.annotate("n1", HOLD_KEY, on=True)
        case "session":
            world.say(session, "hold", {"user": "bob"})
        case "uncordon":
            world.uncordon("n1")
        case "upgrade":
            world.label("n1", UPGRADE_KEY, "drain-required")
        case "pause":
            world.switch(pause={"user": "alice"})
        case "opt out":
            world.switch(nodes=[{"name": "n1", "action": "OptOut", "user": "alice"}])
    world.agents["n1"].host.image = True
    jobs = len(world.api.objects[JOBS])
    world.let_pass(600)
    world.monitor.check()
    assert not world.jobs.deeds
    assert len(world.api.objects[JOBS]) == jobs, "a Job after somebody's word"
    labels = world.api.get(NODES, "n1")["metadata"]["labels"]
    assert {key: labels[key] for key in OPERAND_LABELS} == OPERAND_LABELS
    assert world.spec_of("n1").device_release is None


@pytest.mark.parametrize("step", ["Drain", "ReleaseDevices", "Reset"])
@pytest.mark.parametrize("seconds", [30.0, 900.0])
def test_a_person_who_lets_go_again_has_it_repaired_once(step: str, seconds: float) -> None:
    world = ill(image=False)
    until_step(world, step)
    world.say(the_session(world).metadata.name, "hold", {"user": "bob"})
    world.let_pass(seconds)
    world.say(the_session(world).metadata.name, "hold", None)
    until_step(world, "Reset")
    world.let_pass(15)
    world.agents["n1"].host.image = True
    assert in_the_end(world) == (*RELEASED, "ResetDevice")
    assert deeds(world) == {"Reset": 1}


def test_a_device_plugin_that_stayed_is_restarted_when_a_pause_after_the_reset_is_over() -> None:
    world = ill(operator=False)
    until_step(world, "Reset")
    world.jobs.work()
    world.switch(pause={"user": "alice"})
    plugin = next(pod.uid for pod in world.pods.on("n1") if pod.of_daemon_set)
    world.let_pass(120)
    assert plugin in world.pods.pods
    world.switch(pause=None)
    assert in_the_end(world) == (*RELEASED, "ResetDevice")
    assert plugin not in world.pods.pods
    assert deeds(world) == {"Reset": 1}


def test_an_operand_that_somebody_switches_off_during_the_reset_stays_off() -> None:
    world = ill(image=False)
    until_step(world, "Reset")
    labels = world.api.get(NODES, "n1")["metadata"]["labels"]
    assert [value for key, value in labels.items() if key.startswith(OPERANDS)].count(PAUSED) == 2
    world.label("n1", EXPORTER_OPERAND, "false")
    world.agents["n1"].host.image = True
    assert in_the_end(world) == (*RELEASED, "ResetDevice")
    labels = world.api.get(NODES, "n1")["metadata"]["labels"]
    assert {key: labels[key] for key in OPERAND_LABELS} == {**OPERAND_LABELS, EXPORTER_OPERAND: "false"}


def test_a_session_that_is_deleted_in_the_middle_of_a_reset_leaves_nothing_lent() -> None:
    world = ill(image=False)
    until_step(world, "Reset")
    world.forget(the_session(world).metadata.name)
    world.let_pass(90)
    world.agents["n1"].host.image = True
    assert in_the_end(world) == (*RELEASED, "ResetDevice")
    assert deeds(world) == {"Reset": 1}
    labels = world.api.get(NODES, "n1")["metadata"]["labels"]
    assert {key: labels[key] for key in OPERAND_LABELS} == OPERAND_LABELS
