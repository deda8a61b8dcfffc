"""Changes to a simulated machine by name, and the command `python -m simulation.machine` made of them."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin

import msgspec

from simulation.machine import (
    COUNTERS,
    Machine,
    MachineError,
    SimulatedDevice,
    h100_machine,
    load,
    save,
    update,
)

_Target = TypeVar("_Target", Machine, SimulatedDevice)

MACHINE = "machine"
"""In place of a device: the machine's own keys, such as `library_error`."""


def device_index(machine: Machine, selector: str) -> int:
    """The place of the device with this index, UUID or PCI address. Raises MachineError."""
    for index, device in enumerate(machine.devices):
        if selector.lower() in (str(index), device.uuid.lower(), device.pci_address):
            return index
    known = [name for device in machine.devices for name in (device.uuid, device.pci_address)]
    raise MachineError(
        f"no device {selector!r} on {machine.node_name}: expected an index below {len(machine.devices)}, "
        f"a UUID or a PCI address{_nearest(selector, known)}"
    )


def set_value(machine: Machine, selector: str, key: str, text: str) -> Machine:
    """The machine with one value changed; `text` is as typed by a person, `none` unsets. Raises MachineError.

    `selector` names a device (index, UUID, PCI address) or is `machine`. A key of a table is written
    `errors.nvmlDeviceGetPowerUsage` or `field_values.230`; names in a set are separated by commas.
    """
    if selector == MACHINE:
        changed: Machine = _with_value(machine, key, text, hidden={"devices", "changed_at"})
        return changed
    index = device_index(machine, selector)
    return replace_device(machine, index, _with_value(machine.devices[index], key, text))


def lose(machine: Machine, selector: str) -> Machine:
    """The machine with one device fallen off the bus. Raises MachineError."""
    index = device_index(machine, selector)
    return replace_device(machine, index, msgspec.structs.replace(machine.devices[index], lost=True))


def replace_device(machine: Machine, index: int, device: SimulatedDevice) -> Machine:
    """The machine with another device in this place."""
    devices = (*machine.devices[:index], device, *machine.devices[index + 1 :])
    return msgspec.structs.replace(machine, devices=devices)


def _with_value(target: _Target, key: str, text: str, hidden: Iterable[str] = ()) -> _Target:
    name, dot, entry = key.partition(".")
    types = {field.name: field.type for field in msgspec.structs.fields(target) if field.name not in hidden}
    if name not in types:
        raise MachineError(f"unknown key {key!r}{_nearest(name, types)}")
    if (get_origin(types[name]) is dict) != bool(dot):
        wanted = f"{name}.NAME" if not dot else name
        raise MachineError(f"key {key!r}: expected {wanted!r}")
    value = (
        _with_entry(getattr(target, name), types[name], key, entry, text)
        if dot
        else _parse(key, text, types[name])
    )
    if name in COUNTERS and value < getattr(target, name):
        raise MachineError(f"key {key!r}: a counter never goes back, and it is at {getattr(target, name)}")
    return msgspec.structs.replace(target, **{name: value})


def _with_entry(table: dict[Any, Any], table_type: Any, key: str, entry: str, text: str) -> dict[Any, Any]:
    key_type, value_type = get_args(table_type)
    changed = dict(table)
    changed[_parse(key, entry, key_type)] = _parse(key, text, value_type | None)
    return {name: value for name, value in changed.items() if value is not None}


def _parse(key: str, text: str, wanted: Any) -> Any:
    if text.lower() == "none" and type(None) in get_args(wanted):
        return None
    value: Any = [name for name in text.split(",") if name] if get_origin(wanted) is frozenset else text
    try:
        return msgspec.convert(value, wanted, strict=False)
    except msgspec.ValidationError as error:
        raise MachineError(f"key {key!r}: value {text!r}: {error}") from error


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f"; the nearest is {close[0]!r}" if close else ""


def main(arguments: list[str] | None = None) -> NoReturn:
    """The command. Exit codes: 0 done, 2 refused, with a message on standard error."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except MachineError as error:
        message = str(error) if str(options.path) in str(error) else f"{options.path}: {error}"
        sys.stderr.write(f"{message}\n")
        raise SystemExit(2) from None
    raise SystemExit(0)


def _run(options: argparse.Namespace) -> None:
    path: Path = options.path
    if options.action == "create":
        if path.exists():
            raise MachineError(f"{path}: exists already")
        save(path, h100_machine(options.node, seed=options.seed, devices=options.devices))
    elif options.action == "set":
        update(path, lambda machine: set_value(machine, options.device, options.key, options.value))
    elif options.action == "lose":
        update(path, lambda machine: lose(machine, options.device))
    else:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(load(path)), indent=2) + b"\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m simulation.machine", description="Create, change and show a simulated machine."
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="the machine's JSON file")
    actions = parser.add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", help="a new machine with H100 devices")
    create.add_argument(
        "node", metavar="NODE", help="the node's name; UUIDs and serial numbers follow from it"
    )
    create.add_argument("--seed", type=int, default=0, help="for other devices under the same name")
    create.add_argument("--devices", type=int, default=8, help="0 to 8, default 8")
    change = actions.add_parser("set", help="change one value")
    change.add_argument("device", metavar="DEVICE", help="index, UUID or PCI address, or `machine`")
    change.add_argument(
        "key", metavar="KEY", help="such as power_watts, errors.nvmlDeviceGetName, field_values.230"
    )
    change.add_argument("value", metavar="VALUE", help="`none` unsets")
    away = actions.add_parser("lose", help="a device falls off the bus")
    away.add_argument("device", metavar="DEVICE", help="index, UUID or PCI address")
    actions.add_parser("show", help="print the machine as JSON")
    return parser
