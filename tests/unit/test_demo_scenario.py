"""Scenario files are taken strictly: what is wrong is named, with what would be right."""

from pathlib import Path

import msgspec
import pytest

from remediation.policy import RUNG_STEPS, StepName
from simulation.demo import scenario
from simulation.demo.scenario import Fault, ScenarioError, kernel_line, load, names, with_fault
from simulation.machine import h100_machine

GOOD = """
title: t
watch: w
fault: {device: "0000:3b:00.0", set: {lost: "true"}, xid: 79, says: "pid=1, name=a, gone"}
healedBy: Reboot
"""


def written(folder: Path, text: str) -> Path:
    (folder / "mine.yaml").write_text(text)
    return folder


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(ScenarioError) as found:
        load("mine", written(folder, text))
    return str(found.value)


def test_the_projects_own_scenarios_are_usable() -> None:
    assert {"gpu-lost", "ecc-uncorrectable", "plugin-crash"} <= set(names())
    known = {step for steps in RUNG_STEPS.values() for step in steps}
    assert all(load(name).healed_by in known for name in names())


def test_a_scenario_is_read(tmp_path: Path) -> None:
    told = load("mine", written(tmp_path, GOOD))
    assert (told.node, told.healed_by, told.fault.xid) == ("n1", StepName.REBOOT, 79)
    assert kernel_line(told) == "NVRM: Xid (PCI:0000:3b:00): 79, pid=1, name=a, gone"


def test_a_fault_that_is_none_of_the_drivers_has_no_kernel_line(tmp_path: Path) -> None:
    told = load(
        "mine", written(tmp_path, "{title: t, watch: w, fault: {plugin: crashes}, healedBy: RestartPlugin}")
    )
    assert kernel_line(told) == ""


def test_a_fault_changes_the_one_device_that_it_names() -> None:
    before = h100_machine("n1")
    after = with_fault(before, Fault(device="1", set={"lost": "true", "recovery_action": "2"}))
    changed = [
        index for index, (a, b) in enumerate(zip(before.devices, after.devices, strict=True)) if a != b
    ]
    assert changed == [1]
    assert (after.devices[1].lost, after.devices[1].recovery_action) == (True, 2)
    assert msgspec.structs.replace(after.devices[1], lost=False, recovery_action=None) == before.devices[1]


def test_an_unknown_scenario_is_answered_with_the_nearest() -> None:
    with pytest.raises(ScenarioError, match='no scenario "gpu-lots"; did you mean "gpu-lost"'):
        load("gpu-lots")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("title: t", "titel: t"), ["mine.yaml", 'unknown key "titel"', 'did you mean "title"']),
        (("xid: 79", "xids: 79"), ["unknown key", "xids", 'did you mean "xid"']),
        (("healedBy: Reboot", "healedBy: Rebot"), ["healedBy", "Rebot", "Reboot"]),
        (("healedBy: Reboot", ""), ["mine.yaml", "healedBy"]),
        (("title: t", "title: t\nnode: n3"), ["node", "n1, n2", "n3"]),
        (("lost:", "lots:"), ["fault.set", "lots", "'lost'"]),
        (('lost: "true"', 'lost: "perhaps"'), ["fault.set", "perhaps"]),
        (("0000:3b:00.0", "0000:3c:00.0"), ["fault.device", "0000:3c:00.0", "the nearest is"]),
        (("0000:3b:00.0", "1"), ["fault.device", "a PCI address"]),
        (("xid: 79", "plugin: crash"), ["fault.plugin", "crash"]),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, change: tuple[str, str], words: list[str]) -> None:
    said = refusal(tmp_path, GOOD.replace(*change))
    assert "\n" not in said
    assert [word for word in words if word not in said] == [], said


def test_a_fault_in_which_nothing_happens_is_refused(tmp_path: Path) -> None:
    assert "nothing happens" in refusal(tmp_path, "{title: t, watch: w, fault: {}, healedBy: Reboot}")


def test_a_file_that_is_not_yaml_is_named(tmp_path: Path) -> None:
    assert "mine.yaml" in refusal(tmp_path, "fault: [")


def test_all_scenarios_happen_to_a_node_of_the_demo() -> None:
    assert {load(name).node for name in names()} <= set(scenario.NODES)
