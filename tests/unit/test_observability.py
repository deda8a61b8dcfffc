"""Dashboards, rules and runbooks speak of metrics and labels that exist, and of each other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path

import pytest
import yaml

from dashboards import build
from docs.generate import registry_of_agent, registry_of_controller
from exporter.sources.plugin_target import PluginState
from health.vocabulary import DeviceHealth, FaultKind, Mode, Phase, Severity, SourceState
from remediation.steps import plugin as plugin_step
from tests.unit.promql_labels import TARGET_LABELS, Reading, read

ROOT = Path(__file__).parents[2]
RULE_FILES = sorted((ROOT / "alerts").glob("*.rules.yaml"))
RULE_TESTS = sorted((ROOT / "alerts" / "tests").glob("*.test.yaml"))
RUNBOOKS = ROOT / "docs" / "runbooks"
RUNBOOK_URL = "https://github.com/sickbay/sickbay/blob/main/docs/runbooks/{}.md"
GRAFANA_VARIABLES = {"$cluster": ".*", "$node": "n", "$__rate_interval": "1m", "$__range": "1h"}
HEADINGS = ["Meaning", "Look", "What Sickbay does", "What to do", "When to escalate"]
VALUES: Mapping[tuple[str, str], type[StrEnum]] = {
    ("accelerator_fault_active", "kind"): FaultKind,
    ("accelerator_fault_active", "severity"): Severity,
    ("accelerator_health_state", "state"): DeviceHealth,
    ("accelerator_plugin_state", "state"): PluginState,
    ("sickbay_source_state", "state"): SourceState,
    ("sickbay_sessions", "phase"): Phase,
    ("sickbay_sessions", "mode"): Mode,
    ("sickbay_session_phase_timestamp_seconds", "phase"): Phase,
    ("sickbay_session_phase_timestamp_seconds", "mode"): Mode,
}


def series() -> dict[str, frozenset[str]]:
    """Every series that is scraped or recorded, and its labels."""
    found = {"up": TARGET_LABELS}
    for registry in (registry_of_agent(), registry_of_controller()):
        labels = registry.labels()
        for family in registry.describe():
            have = TARGET_LABELS | set(labels[family.name])
            if family.type == "counter":
                found[f"{family.name}_total"] = have
            elif family.type == "histogram":
                found |= {f"{family.name}_{part}": have for part in ("sum", "count")}
                found[f"{family.name}_bucket"] = have | {"le"}
            else:
                found[family.name] = have
    return found


SERIES = series()


def rules() -> list[dict]:
    groups = [group for file in RULE_FILES for group in yaml.safe_load(file.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDS = {rule["record"]: rule for rule in rules() if "record" in rule}
BOARDS = {name: json.loads((ROOT / "dashboards" / name).read_text()) for name in build.DASHBOARDS}


def panels() -> Iterator[tuple[str, dict]]:
    for name, board in BOARDS.items():
        yield from ((f"{name}: {panel['title']}", panel) for panel in board["panels"])


PANELS = {name: panel for name, panel in panels() if panel["type"] != "row"}


def filled(expr: str) -> str:
    for name, value in GRAFANA_VARIABLES.items():
        expr = expr.replace(name, value)
    return expr


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression that we publish, by where it is."""
    for name, rule in {**ALERTS, **RECORDS}.items():
        yield name, rule["expr"]
    for name, panel in PANELS.items():
        yield from ((f"{name} {target['refId']}", target["expr"]) for target in panel["targets"])
    for name, board in BOARDS.items():
        yield from ((f"{name}: {one['name']}", one["expr"]) for one in board["annotations"]["list"])
    for page in [*RUNBOOKS.glob("*.md"), ROOT / "alerts" / "README.md"]:
        for place, block in enumerate(re.findall(r"```promql\n(.*?)```", page.read_text(), flags=re.DOTALL)):
            yield f"{page.name} {place}", block


EXPRESSIONS = {where: filled(expr) for where, expr in expressions()}


def looked_at(expr: str) -> Reading:
    recorded = {name: read(rule["expr"], SERIES).result for name, rule in RECORDS.items()}
    return read(expr, {**SERIES, **recorded})


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_every_metric_and_label_of_an_expression_exists(where: str) -> None:
    assert looked_at(EXPRESSIONS[where]).wrong == []


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_every_value_that_a_label_is_compared_with_is_one_that_it_may_have(where: str) -> None:
    for metric, label, value in looked_at(EXPRESSIONS[where]).asked:
        if allowed := VALUES.get((metric, label)):
            assert value in set(allowed), f"{metric} {label}"


@pytest.mark.parametrize(
    ("expr", "wrong"),
    [
        ("sickbay_node", ["no metric sickbay_node"]),
        ('up{jobs="a"}', ["up has no label jobs"]),
        ("sum by (uuid) (sickbay_nodes)", ["sum over a label that is not there: uuid"]),
        ("max without (pol) (sickbay_nodes)", ["max over a label that is not there: pol"]),
        ("up * on (uuid) sickbay_nodes", ["* matches by a label that is not there: uuid"] * 2),
        (
            "histogram_quantile(0.5, sickbay_report_publish_duration_seconds_count)",
            ["histogram_quantile without label le"],
        ),
    ],
)
def test_what_does_not_exist_is_found(expr: str, wrong: list[str]) -> None:
    assert read(expr, SERIES).wrong == wrong


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert ALERTS
    assert {page.stem for page in RUNBOOKS.glob("*.md")} == ALERTS.keys()


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_how_grave_it_is_what_it_means_and_where_to_read_on(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    notes = rule["annotations"]
    assert notes.keys() == {"summary", "description", "runbook_url"}
    assert "{{" not in notes["summary"]
    assert notes["runbook_url"] == RUNBOOK_URL.format(name)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_names_only_labels_that_it_has(name: str) -> None:
    result = looked_at(ALERTS[name]["expr"]).result
    assert set(re.findall(r"\$labels\.(\w+)", ALERTS[name]["annotations"]["description"])) <= result


# Whether there is a failure at all, while no write has ever succeeded.
@pytest.mark.parametrize("name", sorted(ALERTS.keys() - {"SickbayReportStale"}))
def test_an_alert_compares_no_counter_but_its_increase(name: str) -> None:
    bare = re.sub(r"\b(?:increase|rate)\([^()]*\)", "", ALERTS[name]["expr"])
    assert re.findall(r"\w+_total\b", bare) == []


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_is_tested_to_fire_and_to_stay_quiet(name: str) -> None:
    checks = [
        check
        for file in RULE_TESTS
        for test in yaml.safe_load(file.read_text())["tests"]
        for check in test.get("alert_rule_test", [])
        if check["alertname"] == name
    ]
    fires = [check for check in checks if check.get("exp_alerts")]
    assert fires, "no test in which it fires"
    assert len(checks) - len(fires) >= 2, "no near miss, or no test that it resolves"


def test_every_recorded_series_is_tested() -> None:
    tested = "".join(file.read_text() for file in RULE_TESTS)
    assert [name for name in RECORDS if name not in tested] == []


@pytest.mark.parametrize("name", ALERTS)
def test_a_runbook_has_the_same_parts_as_all_others(name: str) -> None:
    page = (RUNBOOKS / f"{name}.md").read_text()
    assert page.startswith(f"# {name}\n")
    assert re.findall(r"^## (.+)$", page, flags=re.MULTILINE) == HEADINGS


def test_every_reason_for_a_hold_has_a_line_in_the_runbook_about_held_nodes() -> None:
    sources = [*(ROOT / "remediation").glob("*.py"), Path(plugin_step.__file__)]
    text = "".join(file.read_text() for file in sources)
    found = set(re.findall(r'hold\(\s*at, session, status, "(\w+)"', text))
    found |= set(re.findall(r'hold="(\w+)"', text)) | {
        "NotHealed",
        "DeviceFenced",
        "DrainBlocked",
        "DrainDeadline",
    }
    assert len(found) >= 14
    page = (RUNBOOKS / "SickbayNodeHeld.md").read_text()
    assert [reason for reason in sorted(found) if f"`{reason}`" not in page] == []


@pytest.mark.parametrize("name", build.DASHBOARDS)
def test_a_dashboard_is_what_its_source_makes(name: str) -> None:
    committed = (ROOT / "dashboards" / name).read_text(encoding="utf-8")
    assert committed == build.text(name), "run: python -m dashboards.build"


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_has_a_title_a_description_a_unit_and_words_for_nothing(name: str) -> None:
    panel = PANELS[name]
    defaults = panel["fieldConfig"]["defaults"]
    assert all([panel["title"], panel["description"], defaults["unit"], defaults["noValue"]])
    assert panel["targets"]
    assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_names_only_labels_that_its_series_have(name: str) -> None:
    panel = PANELS[name]
    results = [looked_at(filled(target["expr"])).result for target in panel["targets"]]
    for target, result in zip(panel["targets"], results, strict=True):
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= result
    if panel["type"] == "table":
        (kept,) = [one for one in panel["transformations"] if one["id"] == "filterFieldsByName"]
        columns = {one for one in kept["options"]["include"]["names"] if not one.startswith("Value")}
        assert columns <= frozenset().union(*results)


@pytest.mark.parametrize("name", build.DASHBOARDS)
def test_panels_do_not_overlap_and_have_ids_of_their_own(name: str) -> None:
    found = BOARDS[name]["panels"]
    assert len({panel["id"] for panel in found}) == len(found)
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in found)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_the_dashboards_lead_to_each_other() -> None:
    tags = {name: set(board["tags"]) for name, board in BOARDS.items()}
    for board in BOARDS.values():
        assert any(all(set(link["tags"]) <= mine for mine in tags.values()) for link in board["links"])
    assert f"/d/{BOARDS['node.json']['uid']}?" in json.dumps(BOARDS["fleet.json"])


@pytest.mark.parametrize("name", build.DASHBOARDS)
def test_the_check_says_which_file_is_out_of_date(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "HERE", tmp_path)
    assert build.main(["--check"]) == 1
    assert f"dashboards/{name} is out of date" in capsys.readouterr().err
    assert build.main([]) == 0
    assert build.main(["--check"]) == 0
