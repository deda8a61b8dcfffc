"""The Xid catalogue: what each NVIDIA driver error code means and what to do about it.

The data is `xids.tsv` beside this module: names, meanings, families and the vendor's immediate action follow
NVIDIA's Xid catalogue (docs.nvidia.com/deploy/xid-errors, as of 2026-08); kind, severity, advice and what
clears it are Sickbay's. An operator's file in the same form (or YAML rows) may override any entry.
Codes whose vendor action is CONTACT_SUPPORT or empty, and codes nobody knows, alert and never act.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources
from typing import TypeVar

from health.vocabulary import Advice, ClearsOn, FaultKind, Severity

COLUMNS = ("xid", "name", "meaning", "families", "vendor_action", "kind", "severity", "advice", "clears_on")


Word = TypeVar("Word", bound=StrEnum)


class CatalogueError(ValueError):
    """A catalogue row that cannot be read; the text names file, line, column, value and what was expected."""


@dataclass(frozen=True, slots=True)
class Xid:
    """One code. `kind` is None for codes that are only counted; `families` names GPU generations."""

    code: int
    name: str
    meaning: str
    families: tuple[str, ...]
    vendor_action: str
    kind: FaultKind | None
    severity: Severity
    advice: Advice
    clears_on: ClearsOn

    @property
    def known(self) -> bool:
        """Whether the catalogue has the code at all."""
        return self.name != UNKNOWN_NAME


UNKNOWN_NAME = "UNKNOWN"


def unknown(code: int) -> Xid:
    """The entry of a code that the catalogue does not have: it alerts and never acts."""
    return Xid(
        code=code,
        name=UNKNOWN_NAME,
        meaning="not in the catalogue",
        families=(),
        vendor_action="",
        kind=FaultKind.UNKNOWN_XID,
        severity=Severity.DEGRADED,
        advice=Advice.NONE,
        clears_on=ClearsOn.DWELL,
    )


class Catalogue:
    """Xids by code; a code it does not have is `unknown`."""

    def __init__(self, entries: Iterable[Xid]) -> None:
        self._entries: Mapping[int, Xid] = {entry.code: entry for entry in entries}

    def __getitem__(self, code: int) -> Xid:
        return self._entries.get(code) or unknown(code)

    def __iter__(self) -> Iterator[Xid]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def overridden(self, entries: Iterable[Xid]) -> Catalogue:
        """This catalogue with the given entries in the place of its own."""
        return Catalogue([*self._entries.values(), *entries])


def parse(text: str, *, file: str) -> tuple[Xid, ...]:
    """The entries of a tab-separated catalogue whose first line names the columns.

    Raises CatalogueError for a missing column, a code that is no number, or a word that is not known.
    """
    rows = csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
    if missing:
        raise CatalogueError(f"{file}: line 1: missing column {missing[0]}; expected {' '.join(COLUMNS)}")
    return tuple(_entry(row, where=f"{file}: line {rows.line_num}") for row in rows)


def _entry(row: Mapping[str, str | None], *, where: str) -> Xid:
    cells = {column: (row.get(column) or "").strip() for column in COLUMNS}
    if not cells["xid"].isdecimal():
        raise CatalogueError(f"{where}: xid: {cells['xid']!r} is not a whole number")
    return Xid(
        code=int(cells["xid"]),
        name=_text(cells["name"]),
        meaning=_text(cells["meaning"]),
        families=tuple(family for family in _text(cells["families"]).split(",") if family),
        vendor_action=_text(cells["vendor_action"]),
        kind=None if cells["kind"] == "-" else _word(FaultKind, cells["kind"], where=where, column="kind"),
        severity=_word(Severity, cells["severity"], where=where, column="severity"),
        advice=_word(Advice, cells["advice"], where=where, column="advice"),
        clears_on=_word(ClearsOn, cells["clears_on"], where=where, column="clears_on"),
    )


def _text(cell: str) -> str:
    return "" if cell == "-" else cell


def _word(kind: type[Word], text: str, *, where: str, column: str) -> Word:
    try:
        return kind(text)
    except ValueError:
        words = [member.value for member in kind]
        near = difflib.get_close_matches(text, words, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise CatalogueError(f"{where}: {column}: {text!r} is not one of {' '.join(words)}{hint}") from None


@cache
def builtin() -> Catalogue:
    """The catalogue that ships with Sickbay."""
    text = resources.files("health").joinpath("xids.tsv").read_text(encoding="utf-8")
    return Catalogue(parse(text, file="xids.tsv"))
