"""Writes the dashboards' JSON beside this file: `python -m dashboards.build [--check]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dashboards.fleet import fleet
from dashboards.node import node

HERE = Path(__file__).parent
DASHBOARDS = {"fleet.json": fleet, "node.json": node}


def text(name: str) -> str:
    """The file's content, the same bytes for the same source."""
    return json.dumps(DASHBOARDS[name](), indent=2, sort_keys=True) + "\n"


def main(arguments: list[str]) -> int:
    """Write the files, or with --check say which are out of date (exit code 1)."""
    stale = [name for name in DASHBOARDS if _read(HERE / name) != text(name)]
    if "--check" in arguments:
        for name in stale:
            print(f"dashboards/{name} is out of date: run python -m dashboards.build", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        (HERE / name).write_text(text(name), encoding="utf-8")
    return 0


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
