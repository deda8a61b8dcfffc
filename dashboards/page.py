"""Whole dashboards as Grafana's classic JSON (schema version 42, which Grafana 10 to 13 import)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dashboards.panels import DATASOURCE, Instant, Json, Panel, Stat

SCHEMA_VERSION = 42
COLUMNS = 24
TAG = "sickbay"


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
        "color": {"mode": "thresholds" if isinstance(panel, Instant) else "palette-classic"},
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
