"""A scenario: one fault as a data file, `simulation/scenarios/NAME.yaml`.

title: A GPU falls off the bus
watch: what there is to see, a sentence or two
node: n1
fault:
  device: "0000:3b:00.0"
  set: {lost: "true"}        # as `python -m simulation.machine FILE set` takes them
  xid: 79
  says: "pid=1234, name=python, GPU has fallen off the bus."
healedBy: Reboot             # the step of the journal that heals it
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from remediation.policy import StepName
from runtime.config import load_yaml_document
from runtime.config_error import ConfigError, nearest
from simulation.control import device_index, set_value
from simulation.machine import Machine, MachineError, h100_machine

FOLDER = Path(__file__).resolve().parents[1] / "scenarios"
NODES = ("n1", "n2")


class ScenarioError(Exception):
    """There is no such scenario, or its file cannot be used; the text says what would be right."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """What happens to the node. All of it that is given happens, in the order of the fields."""

    device: str = "0000:3b:00.0"
    """Index, UUID or PCI address of the device."""
    set: dict[str, str] = {}
    """Values of the simulated device."""
    xid: int | None = None
    """The driver's error: a line of the kernel log, and an event that the device plugin hears."""
    says: str = ""
    """The rest of the kernel's line."""
    plugin: Literal["", "crashes"] = ""
    """`crashes`: the plugin's process is killed, and again at each start, until its pod is another one."""


class Scenario(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """One fault and what heals it."""

    title: str
    watch: str
    fault: Fault
    healed_by: StepName
    node: str = NODES[0]


def names(folder: Path = FOLDER) -> list[str]:
    """All scenarios."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load(name: str, folder: Path = FOLDER) -> Scenario:
    """The scenario of this name. Raises ScenarioError."""
    known = names(folder)
    if name not in known:
        close = nearest(name, known)
        hint = f'; did you mean "{close}"?' if close else ""
        raise ScenarioError(f'no scenario "{name}"{hint} (there are {", ".join(known)})')
    path = folder / f"{name}.yaml"
    try:
        scenario = load_yaml_document(path, Scenario)
        _check(scenario, path)
    except ConfigError as error:
        raise ScenarioError(str(error)) from error
    return scenario


def kernel_line(scenario: Scenario) -> str:
    """What the kernel says; empty where the fault is none of the driver's."""
    fault = scenario.fault
    if fault.xid is None:
        return ""
    address = fault.device.rpartition(".")[0] or fault.device
    return f"NVRM: Xid (PCI:{address}): {fault.xid}, {fault.says}"


def with_fault(machine: Machine, fault: Fault) -> Machine:
    """The machine with the fault's values set. Raises MachineError."""
    for key, text in fault.set.items():
        machine = set_value(machine, fault.device, key, text)
    return machine


def _check(scenario: Scenario, path: Path) -> None:
    """What the types do not say. Raises ConfigError."""
    fault = scenario.fault
    if scenario.node not in NODES:
        close = nearest(scenario.node, NODES)
        raise ConfigError(
            file=path, key="node", value=scenario.node, expected=f"one of {', '.join(NODES)}", nearest=close
        )
    if fault.xid is None and not fault.set and not fault.plugin:
        raise ConfigError(
            file=path,
            key="fault",
            value={},
            expected="at least one of set, xid and plugin, or nothing happens",
        )
    if fault.xid is not None and ":" not in fault.device:
        raise ConfigError(
            file=path,
            key="fault.device",
            value=fault.device,
            expected="a PCI address, which the kernel names",
        )
    machine = h100_machine(scenario.node)
    try:
        device_index(machine, fault.device)
    except MachineError as error:
        raise ConfigError(
            file=path, key="fault.device", value=fault.device, expected=f"a device that is there ({error})"
        ) from error
    try:
        with_fault(machine, fault)
    except MachineError as error:
        raise ConfigError(
            file=path, key="fault.set", value=fault.set, expected=f"what a device takes ({error})"
        ) from error
