"""Panels: what each shows in words, in which unit, what it says when there is nothing to show, and how it is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}

GREEN, YELLOW, RED = "green", "yellow", "red"
Thresholds = tuple[tuple[float | None, str], ...]
"""From which value on which colour; None is the lowest."""

NEUTRAL: Thresholds = ((None, "blue"),)
ANY_IS_BAD: Thresholds = ((None, GREEN), (1, RED))
ANY_IS_A_WARNING: Thresholds = ((None, GREEN), (1, YELLOW))
NONE_IS_BAD: Thresholds = ((None, RED), (1, GREEN))


@dataclass(frozen=True, slots=True)
class Query:
    """An expression and how its series are called (`{{label}}`); in a table, the heading of its values."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel. `unit` is Grafana's word for it, `empty` what is shown instead of "No data"."""

    title: str
    description: str
    unit: str
    empty: str
    queries: tuple[Query, ...]
    width: int = 8
    height: int = 8
    thresholds: Thresholds = NEUTRAL
    minimum: float | None = None
    maximum: float | None = None

    kind = "timeseries"

    def options(self) -> Json:
        """What is particular to this kind of panel."""
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }

    def custom(self) -> Json:
        """How values are drawn."""
        return {"fillOpacity": 10, "lineWidth": 1, "showPoints": "never", "thresholdsStyle": {"mode": "off"}}

    def overrides(self) -> list[Json]:
        """Exceptions for single fields."""
        return []

    def transformations(self) -> list[Json]:
        """What is done to the answers before they are drawn."""
        return []

    def target(self, place: int, query: Query) -> Json:
        """One query."""
        return {
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": query.expr,
            "legendFormat": query.legend or "__auto",
            "range": True,
            "refId": chr(ord("A") + place),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSeries(Panel):
    """Lines over time; `stacked` areas where the sum means something."""

    stacked: bool = False
    limits: bool = False
    """Draw the thresholds as lines."""

    def custom(self) -> Json:
        custom = Panel.custom(self)
        if self.stacked:
            custom |= {"fillOpacity": 40, "stacking": {"group": "A", "mode": "normal"}}
        if self.limits:
            custom["thresholdsStyle"] = {"mode": "dashed"}
        return custom


class Instant(Panel):
    """A panel that shows what is so at the end of the range."""

    __slots__ = ()

    def target(self, place: int, query: Query) -> Json:
        return {**Panel.target(self, place, query), "instant": True, "range": False}

    def custom(self) -> Json:
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat(Instant):
    """One figure; `words` says in a word what a value means."""

    width: int = 4
    height: int = 4
    words: tuple[tuple[int, str, str], ...] = ()
    """(value, text, colour)."""

    kind = "stat"

    def options(self) -> Json:
        return {
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "auto",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars(Instant):
    """A bar for each series."""

    kind = "bargauge"

    def options(self) -> Json:
        return {
            "displayMode": "gradient",
            "minVizHeight": 16,
            "orientation": "horizontal",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "showUnfilled": True,
            "valueMode": "color",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Table(Instant):
    """Rows of labels with one column of values for each query.

    `columns` are the labels that are shown and their headings, in order; a query without a legend only gives rows.
    `units` has the units of columns, by heading; `links` the addresses that a column's cells lead to.
    """

    width: int = 12
    columns: tuple[tuple[str, str], ...]
    units: Mapping[str, str]
    links: Mapping[str, str]
    sort: str = ""

    kind = "table"

    def target(self, place: int, query: Query) -> Json:
        return {**Instant.target(self, place, query), "format": "table", "legendFormat": ""}

    def options(self) -> Json:
        sort = [{"desc": True, "displayName": self.sort}] if self.sort else []
        return {"cellHeight": "sm", "showHeader": True, "sortBy": sort}

    def transformations(self) -> list[Json]:
        """One table of all answers, with the columns that are wanted and no others."""
        several = len(self.queries) > 1
        values = {
            f"Value #{chr(ord('A') + place)}" if several else "Value": query.legend
            for place, query in enumerate(self.queries)
        }
        headings = {**dict(self.columns), **{field: name for field, name in values.items() if name}}
        organize = {
            "indexByName": {field: place for place, field in enumerate(headings)},
            "renameByName": headings,
        }
        keep = {"include": {"names": list(headings)}}
        merge: list[Json] = [{"id": "merge", "options": {}}] if several else []
        return [
            *merge,
            {"id": "filterFieldsByName", "options": keep},
            {"id": "organize", "options": organize},
        ]

    def overrides(self) -> list[Json]:
        units = [_override(name, "unit", unit) for name, unit in self.units.items()]
        links = [
            _override(name, "links", [{"title": "Open", "url": url}]) for name, url in self.links.items()
        ]
        return [*units, *links]


def _override(field: str, key: str, value: object) -> Json:
    return {
        "matcher": {"id": "byName", "options": field},
        "properties": [{"id": key, "value": value}],
    }
