"""How often what breaks in a fleet of GPU nodes, and which repair helps: `fleet_rates.tsv`, with each row's source.

A rate is a number of events in a number of GPU-hours, as it was published, so that anybody can check it. `reset` and
`reboot` are the probabilities that such a repair ends what is broken; nobody publishes those, so they are assumed.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib import resources

FILE = "fleet_rates.tsv"
COLUMNS = ("cause", "effect", "xid", "verdict", "events", "gpu_hours", "reset", "reboot", "source")


class Effect(StrEnum):
    """What a cause does. `Device` breaks a GPU that stays visible, `DeviceLost` one that does not; `Application` breaks
    nothing; a host is lost (it goes down, and perhaps comes back) or reboots by itself; a device plugin hangs or ends.
    """

    DEVICE = "Device"
    DEVICE_LOST = "DeviceLost"
    APPLICATION = "Application"
    HOST_LOST = "HostLost"
    HOST_REBOOTED = "HostRebooted"
    PLUGIN_HUNG = "PluginHung"
    PLUGIN_CRASHED = "PluginCrashed"


class RatesError(ValueError):
    """Rates that cannot be read; the text names file, line, column, value and what was expected."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One way to fail. `xid` is 0 where the driver prints none, `verdict` NVML's recovery action (field 230)."""

    name: str
    effect: Effect
    xid: int
    verdict: int
    events: float
    gpu_hours: float
    reset: float
    reboot: float
    source: str

    @property
    def per_gpu_hour(self) -> float:
        """Events in an hour of one GPU."""
        return self.events / self.gpu_hours


@dataclass(frozen=True, slots=True)
class Rates:
    """All causes, and by how much each is more frequent than was published."""

    causes: tuple[Cause, ...]
    factor: float = 1.0

    def __iter__(self) -> Iterator[Cause]:
        return iter(self.causes)

    def __getitem__(self, name: str) -> Cause:
        """Raises KeyError with the names that there are."""
        found = next((cause for cause in self.causes if cause.name == name), None)
        if found is None:
            raise KeyError(
                f"no cause is named {name!r}; there are {', '.join(one.name for one in self.causes)}"
            )
        return found

    def multiplied(self, factor: float) -> Rates:
        """The same, more (or less) frequent. Raises ValueError for a negative factor."""
        if not 0 <= factor < float("inf"):
            raise ValueError(f"rates are multiplied by a number of at least 0, not {factor}")
        return replace(self, factor=self.factor * factor)

    def only(self, *names: str) -> Rates:
        """Those causes alone. Raises KeyError."""
        return replace(self, causes=tuple(self[name] for name in names))

    def per_gpu_hour(self, cause: Cause) -> float:
        """How often a cause strikes one GPU in an hour, multiplied."""
        return cause.per_gpu_hour * self.factor

    def for_xid(self, xid: int) -> Cause:
        """The first cause that shows as this Xid. Raises KeyError with the Xids that there are."""
        found = next((cause for cause in self.causes if cause.xid == xid and xid), None)
        if found is None:
            known = sorted({one.xid for one in self.causes if one.xid})
            raise KeyError(f"no cause shows as Xid {xid}; there are {', '.join(map(str, known))}")
        return found


def parse(text: str, *, file: str = FILE) -> Rates:
    """The rates of a tab-separated table whose first line names the columns. Raises RatesError."""
    rows = csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
    if missing:
        raise RatesError(f"{file}: line 1: missing column {missing[0]}; expected {' '.join(COLUMNS)}")
    causes = [_cause(row, where=f"{file}: line {rows.line_num}") for row in rows]
    names = [cause.name for cause in causes]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise RatesError(f"{file}: column cause: {twice!r} is there twice")
    return Rates(tuple(causes))


def builtin() -> Rates:
    """The rates that come with the simulation."""
    return parse(resources.files("simulation").joinpath(FILE).read_text(encoding="utf-8"))


def _cause(row: Mapping[str, str | None], *, where: str) -> Cause:
    cells = {column: (row.get(column) or "").strip() for column in COLUMNS}
    if not cells["source"]:
        raise RatesError(f"{where}: column source: empty; expected where the figures are from")
    gpu_hours = _number(cells, "gpu_hours", where)
    if not gpu_hours:
        raise RatesError(f"{where}: column gpu_hours: '0'; expected more than 0")
    return Cause(
        name=cells["cause"],
        effect=_effect(cells["effect"], where, list(Effect)),
        xid=int(_number(cells, "xid", where, most=1023)),
        verdict=int(_number(cells, "verdict", where, most=7)),
        events=_number(cells, "events", where),
        gpu_hours=gpu_hours,
        reset=_number(cells, "reset", where, most=1),
        reboot=_number(cells, "reboot", where, most=1),
        source=cells["source"],
    )


def _effect(text: str, where: str, words: Sequence[Effect]) -> Effect:
    try:
        return Effect(text)
    except ValueError:
        raise RatesError(f"{where}: column effect: {text!r} is not one of {' '.join(words)}") from None


def _number(cells: Mapping[str, str], column: str, where: str, *, most: float = 1e15) -> float:
    try:
        value = float(cells[column])
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise RatesError(f"{where}: column {column}: {cells[column]!r} is not a number from 0 to {most:g}")
    return value
