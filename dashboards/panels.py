"""Panels and dashboards as Grafana's classic JSON (schema version 42, which Grafana 10 to 13 import).

A panel says what it shows in words, in which unit, and what it says when there is nothing to show; the functions here
turn it into JSON and lay panels out in rows of 24 columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

SCHEMA_VERSION = 42
COLUMNS = 24
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
TAG = "sickbay"

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


class _Instant(Panel):
    """A panel that shows what is so at the end of the range."""

    __slots__ = ()

    def target(self, place: int, query: Query) -> Json:
        return {**Panel.target(self, place, query), "instant": True, "range": False}

    def custom(self) -> Json:
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat(_Instant):
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
class Bars(_Instant):
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
class Table(_Instant):
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
        return {**_Instant.target(self, place, query), "format": "table", "legendFormat": ""}

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


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Annotation:
    """Marks on every graph, from an expression that has a series while something is so."""

    name: str
    expr: str
    title: str
    colour: str


def variable(name: str, label: str, query: str, *, all_value: str | None = None) -> Json:
    """A variable that is filled from the metrics; with `all_value` everything is chosen at first."""
    body: Json = {
        "datasource": DATASOURCE,
        "definition": query,
        "hide": 0,
        "label": label,
        "name": name,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "type": "query",
    }
    if all_value is not None:
        everything = {"selected": True, "text": "All", "value": "$__all"}
        body |= {"allValue": all_value, "current": everything, "includeAll": True}
    return body


def dashboard(
    *,
    uid: str,
    title: str,
    description: str,
    rows: Sequence[Row],
    variables: Sequence[Json],
    annotations: Sequence[Annotation] = (),
) -> Json:
    """The whole dashboard."""
    source = {"label": "Data source", "name": "datasource", "query": "prometheus", "type": "datasource"}
    link = {
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "tags": [TAG],
        "title": "Sickbay",
        "type": "dashboards",
    }
    return {
        "annotations": {"list": [_annotation(one) for one in annotations]},
        "description": description,
        "editable": False,
        "graphTooltip": 1,
        "links": [link],
        "panels": _laid_out(rows),
        "refresh": "30s",
        "schemaVersion": SCHEMA_VERSION,
        "tags": [TAG],
        "templating": {"list": [source, *variables]},
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "title": title,
        "uid": uid,
    }


def _annotation(annotation: Annotation) -> Json:
    return {
        "datasource": DATASOURCE,
        "enable": True,
        "expr": annotation.expr,
        "iconColor": annotation.colour,
        "name": annotation.name,
        "step": "15s",
        "textFormat": "",
        "titleFormat": annotation.title,
    }


def _laid_out(rows: Sequence[Row]) -> list[Json]:
    """Panels from left to right, and down when a line is full."""
    found: list[Json] = []
    top = 0
    for row in rows:
        place = {"h": 1, "w": COLUMNS, "x": 0, "y": top}
        found.append(
            {
                "collapsed": False,
                "gridPos": place,
                "id": len(found) + 1,
                "panels": [],
                "title": row.title,
                "type": "row",
            }
        )
        left, top, height = 0, top + 1, 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                left, top, height = 0, top + height, 0
            place = {"h": panel.height, "w": panel.width, "x": left, "y": top}
            found.append(_panel(panel, len(found) + 1, place))
            left, height = left + panel.width, max(height, panel.height)
        top += height
    return found


def _panel(panel: Panel, number: int, place: Json) -> Json:
    defaults: Json = {
        "color": {"mode": "thresholds" if isinstance(panel, _Instant) else "palette-classic"},
        "custom": panel.custom(),
        "mappings": _mappings(panel),
        "noValue": panel.empty,
        "thresholds": {
            "mode": "absolute",
            "steps": [{"color": colour, "value": value} for value, colour in panel.thresholds],
        },
        "unit": panel.unit,
    }
    if panel.minimum is not None:
        defaults["min"] = panel.minimum
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    return {
        "datasource": DATASOURCE,
        "description": panel.description,
        "fieldConfig": {"defaults": defaults, "overrides": panel.overrides()},
        "gridPos": place,
        "id": number,
        "options": panel.options(),
        "targets": [panel.target(place, query) for place, query in enumerate(panel.queries)],
        "title": panel.title,
        "transformations": panel.transformations(),
        "type": panel.kind,
    }


def _mappings(panel: Panel) -> list[Json]:
    if not isinstance(panel, Stat) or not panel.words:
        return []
    options = {str(value): {"color": colour, "text": text} for value, text, colour in panel.words}
    return [{"options": options, "type": "value"}]
