"""A real Prometheus and a real Alertmanager, as Debian packages them, on loopback and under a lab's processes."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from tests.lab.api import Object
from tests.lab.lab import Lab
from tests.lab.processes import run, wait_until

PROGRAMS = ("prometheus", "promtool", "prometheus-alertmanager")
SCRAPE_SECONDS = 0.5


def missing_programs() -> list[str]:
    """Which of them this machine does not have."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


def promtool(*words: str | Path, page: str | None = None) -> tuple[int, str]:
    """promtool's exit code and all that it says. It needs a time zone of its own, or its output depends on ours."""
    done = run(["promtool", *words], input_text=page, env={**os.environ, "TZ": "UTC"})
    return done.returncode, done.stdout + done.stderr


class Prometheus:
    """Scrapes what is put into `targets`, evaluates rules each second, and tells an Alertmanager."""

    def __init__(self, lab: Lab, folder: Path, *, rules: Sequence[Path], alertmanager: str) -> None:
        self.address = f"127.0.0.1:{lab.port()}"
        self.started = time.time()
        self._targets = folder / "targets.json"
        self._targets.write_text("[]")
        (folder / "prometheus.yaml").write_text(
            yaml.safe_dump(
                {
                    "global": {
                        "scrape_interval": f"{SCRAPE_SECONDS * 1000:.0f}ms",
                        "evaluation_interval": "1s",
                    },
                    "rule_files": [str(rule) for rule in rules],
                    "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
                    "scrape_configs": [
                        {"job_name": "sickbay", "file_sd_configs": [{"files": [str(self._targets)]}]}
                    ],
                }
            )
        )
        self.child = lab.processes.start(
            "prometheus",
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address={self.address}",
                "--log.level=warn",
            ],
        )
        wait_until(self._ready, 30, "Prometheus", logs=[self.child.log], ignoring=(OSError,))

    def _ready(self) -> bool:
        self.child.check()
        with urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)

    def scrape(self, *targets: Mapping[str, str]) -> None:
        """Scrape these from now on: their labels, of which `__address__` is where."""
        groups = [
            {
                "targets": [target["__address__"]],
                "labels": {name: value for name, value in target.items() if name != "__address__"},
            }
            for target in targets
        ]
        fresh = self._targets.with_suffix(".new")
        fresh.write_text(json.dumps(groups))
        fresh.replace(self._targets)

    def values(self, expr: str) -> list[float]:
        """All values that are numbers which the expression has had since the start, each second, of all series.

        Raises AssertionError with Prometheus' own words where it cannot be evaluated.
        """
        words = {"query": expr, "start": self.started, "end": time.time(), "step": "1s"}
        data = self._ask("query_range", words)
        found = [float(value) for series in data["result"] for _, value in series["values"]]
        return [value for value in found if not math.isnan(value)]

    def now(self, expr: str) -> list[Object]:
        """The samples that the expression has now."""
        return list(self._ask("query", {"query": expr})["result"])

    def rules(self) -> list[Object]:
        """The rules that are loaded, with their state and health."""
        return [rule for group in self._ask("rules", {})["groups"] for rule in group["rules"]]

    def _ask(self, what: str, words: Mapping[str, object]) -> Object:
        url = f"http://{self.address}/api/v1/{what}?{urllib.parse.urlencode(words)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                data: Object = json.load(answer)["data"]
                return data
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{words}: {error.read().decode()}") from error


class Alertmanager:
    """An Alertmanager with a configuration of ours."""

    def __init__(self, lab: Lab, folder: Path, configuration: Path) -> None:
        self.address = f"127.0.0.1:{lab.port()}"
        self.child = lab.processes.start(
            "alertmanager",
            [
                "prometheus-alertmanager",
                f"--config.file={configuration}",
                f"--storage.path={folder / 'alertmanager'}",
                f"--web.listen-address={self.address}",
                "--cluster.listen-address=",
                "--log.level=warn",
            ],
        )
        wait_until(
            lambda: self.alerts() is not None,
            30,
            "Alertmanager",
            logs=[self.child.log],
            ignoring=(OSError,),
        )

    def alerts(self) -> list[Object]:
        """The alerts that it has."""
        with urllib.request.urlopen(f"http://{self.address}/api/v2/alerts", timeout=5) as answer:
            found: list[Object] = json.load(answer)
            return found
