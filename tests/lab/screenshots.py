"""Pictures of both dashboards with data of the lab: `python -m tests.lab.screenshots`, or `make screenshots`.

The bad day of `test_prometheus` is lived through, then `dashboards/screenshots` draws the committed JSON with Grafana's
own React components from that Prometheus, and a headless Chromium takes the pictures into `docs/images`. It needs npm,
Chromium, Prometheus and the lab.
"""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlencode

from tests.lab import binaries, manifests
from tests.lab.gpu_node import TICK, GpuNode
from tests.lab.images import PROJECT
from tests.lab.lab import Lab
from tests.lab.processes import wait_until
from tests.lab.prometheus import Prometheus, missing_programs
from tests.lab.test_prometheus import BLIND, NODE, BadDay
from tests.otlp_receiver import Mode, OtlpReceiver

PAGE = PROJECT / "dashboards" / "screenshots"
PICTURES = PROJECT / "docs" / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, MARGIN, CELL, GAP = 1600, 16, 30, 8


def main() -> int:
    """The exit code: 0 when both pictures are there, 2 where something is missing for them."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    problems = [*binaries.missing(), *missing_programs()]
    problems += [] if browser else ["no Chromium"]
    problems += [] if shutil.which("npm") else ["no npm"]
    if problems or browser is None:
        print(f"no pictures can be taken here: {'; '.join(problems)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="sickbay-page-") as folder:
        page = _built(Path(folder))
        with Lab() as lab, OtlpReceiver("http/protobuf") as receiver:
            receiver.mode = Mode.REFUSE
            manifests.apply(lab)
            watched, blind = lab.add_nodes(NODE, BLIND, status_frequency=TICK)
            gpus = GpuNode(lab, watched)
            gpus.namespace = "default"
            day = BadDay(gpus, blind, receiver, Path(folder))
            day.live()
            _take(browser, page, day.prometheus)
            day.rig.stop()
            gpus.observer.close()
            gpus.stop_plugins()
    return 0


def _built(folder: Path) -> Path:
    """The page, built outside of the project: nothing of npm's is left in it."""
    sources = folder / "dashboards" / "screenshots"
    shutil.copytree(PAGE, sources)
    for file in (PROJECT / "dashboards").glob("*.json"):
        shutil.copy(file, sources.parent)
    quiet = ("--no-package-lock", "--no-audit", "--no-fund", "--legacy-peer-deps", "--loglevel=error")
    subprocess.run(["npm", "install", *quiet], cwd=sources, check=True)
    subprocess.run(["npx", "vite", "build", "--logLevel=error"], cwd=sources, check=True)
    return sources / "dist"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


def _take(browser: str, page: Path, prometheus: Prometheus) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(page)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    PICTURES.mkdir(exist_ok=True)
    wait_until(lambda: prometheus.now("max(sickbay_leader_epoch) > 0"), 30, "a leader")
    now = time.time()
    for name in ("fleet", "node"):
        words = {
            "dashboard": name,
            "prometheus": f"http://{prometheus.address}",
            "node": NODE,
            "from": f"{prometheus.started:.3f}",
            "to": f"{now:.3f}",
            "step": "2",
            "interval": "30s",
        }
        target = PICTURES / f"{name}.png"
        target.unlink(missing_ok=True)
        command = [
            *(browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            f"--window-size={WIDTH + 2 * MARGIN},{_height(name)}",
            "--virtual-time-budget=30000",
            f"--screenshot={target}",
            f"http://127.0.0.1:{server.server_port}/?{urlencode(words)}",
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        wait_until(target.exists, 5, f"the picture {target}")
        print(target.relative_to(PROJECT))
    server.shutdown()


def _height(name: str) -> int:
    panels = json.loads((PROJECT / "dashboards" / f"{name}.json").read_text())["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    return int(rows * (CELL + GAP) + 2 * MARGIN)


if __name__ == "__main__":
    sys.exit(main())
