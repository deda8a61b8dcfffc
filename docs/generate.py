"""Writes the reference pages that are made from the code: `python docs/generate.py [--check]`.

`docs/metrics.md` comes from what the two programs' registries describe, `docs/configuration.md` from the
configuration structs and the text under each of their fields.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import msgspec
from prometheus_client.metrics_core import Metric

from exporter.configuration import ENVIRONMENT_PREFIX as AGENT_PREFIX
from exporter.configuration import AgentConfiguration
from exporter.dispatch_outlet import DispatchOutlet
from exporter.metrics import publish_histogram
from exporter.metrics import registry as agent_registry
from exporter.sources.kubelet_metrics import KubeletMetrics
from remediation.configuration import ENVIRONMENT_PREFIX as CONTROLLER_PREFIX
from remediation.configuration import ControllerConfiguration
from remediation.metrics import ControllerMetrics
from remediation.metrics import registry as controller_registry
from runtime.exposition import Registry
from runtime.tracing import TracingOff

HERE = Path(__file__).parent
MADE = "<!-- Made by docs/generate.py from the code; do not edit. -->"


def metrics_page() -> str:
    """Every metric of both programs: name, type, labels, meaning."""
    return "\n".join(
        [
            MADE,
            "# Metrics",
            "",
            "Base units, `_total` on counters. Node and cluster are target labels, added by the scraper. `device` is",
            "the vendor tool's index, `partition` is empty for whole devices. A series of a lost device disappears;",
            "nothing is frozen or zeroed. A metric whose value the driver does not give is absent.",
            "",
            *_metric_table("The agent (`sickbay agent`, port 9400)", registry_of_agent()),
            *_metric_table("The controller (`sickbay controller`, port 9401)", registry_of_controller()),
        ]
    )


def registry_of_agent() -> Registry:
    """The agent's metrics, to be described only."""
    outlet = DispatchOutlet(TracingOff(), node="")
    return agent_registry(
        _no_value,
        publish_histogram(),
        (
            *outlet.collectors,
            ("kubelet metrics", KubeletMetrics(page=_no_value, on_state=lambda _state, _message: None)),
            ("tracing", TracingOff()),
        ),
    )


def registry_of_controller() -> Registry:
    """The controller's metrics, to be described only."""
    return controller_registry(ControllerMetrics(), TracingOff())


def _no_value() -> NoReturn:
    """To describe a metric needs no value of it."""
    raise AssertionError


def _metric_table(title: str, registry: Registry) -> list[str]:
    labels = registry.labels()
    rows = [
        f"| `{_exposed(metric)}` | {metric.type} | {_names(labels[metric.name])} | {metric.documentation} |"
        for metric in sorted(registry.describe(), key=lambda metric: metric.name)
    ]
    return [f"## {title}", "", "| Name | Type | Labels | Meaning |", "|---|---|---|---|", *rows, ""]


def _exposed(metric: Metric) -> str:
    return f"{metric.name}_total" if metric.type == "counter" else metric.name


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "-"


def configuration_page() -> str:
    """Every key of both programs: file key, variable, default, meaning."""
    return "\n".join(
        [
            MADE,
            "# Configuration",
            "",
            "A flag outranks the environment, which outranks the file of `--config`, which outranks the default.",
            "The file is YAML; a key that is not known is an error that names the nearest known one. Durations are",
            "written `30s`, `5m`, `1h30m`. Most keys have a flag of the same name (`sickbay agent --help`).",
            "",
            *_configuration_table("`sickbay agent`", AgentConfiguration, AGENT_PREFIX),
            *_configuration_table("`sickbay controller`", ControllerConfiguration, CONTROLLER_PREFIX),
        ]
    )


def _configuration_table(title: str, struct: type[msgspec.Struct], prefix: str) -> list[str]:
    texts = _field_texts(struct)
    rows = [
        f"| `{field.encode_name}` | `{prefix}{field.name.upper()}` | {_default(field)} | {texts.get(field.name, '')} |"
        for field in msgspec.structs.fields(struct)
    ]
    return [f"## {title}", "", "| Key | Variable | Default | Meaning |", "|---|---|---|---|", *rows, ""]


def _default(field: msgspec.structs.FieldInfo) -> str:
    value = field.default
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value is None or value is msgspec.NODEFAULT or value == "":
        return "-"
    if isinstance(value, tuple):
        return "the built-in worker"
    return f"`{value}`"


def _field_texts(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The string under each field, as the source has it."""
    (definition,) = ast.parse(inspect.getsource(struct)).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for before, after in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr):
            value = after.value
            if isinstance(value, ast.Constant) and isinstance(before.target, ast.Name):
                texts[before.target.id] = " ".join(str(value.value).split())
    return texts


PAGES = {"metrics.md": metrics_page, "configuration.md": configuration_page}


def main(arguments: list[str]) -> int:
    """Write the pages, or with --check say which are out of date (exit code 1)."""
    stale = [name for name, page in PAGES.items() if _read(HERE / name) != page()]
    if "--check" in arguments:
        for name in stale:
            print(f"docs/{name} is out of date: run python docs/generate.py", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        (HERE / name).write_text(PAGES[name](), encoding="utf-8")
    return 0


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
