"""The flags of `sickbay demo`, apart from the rest: every command of the front door pays for what this imports."""

from __future__ import annotations

import argparse

DEFAULT_SCENARIO = "gpu-lost"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add them; `flags.run` runs the demo."""
    parser.add_argument(
        "--scenario", default=DEFAULT_SCENARIO, metavar="NAME", help="the fault (default: %(default)s)"
    )
    parser.add_argument("--list", action="store_true", help="name the scenarios, and end")
    parser.add_argument("--exit", action="store_true", help="end when the story is told")
    parser.add_argument("--plain", action="store_true", help="lines of text, also on a terminal")
    parser.add_argument(
        "--port", type=int, default=0, help="of the embedded Kubernetes API (default: one that is free)"
    )
    parser.add_argument(
        "--prometheus", action="store_true", help="run Prometheus with our alerts, where it is installed"
    )
    parser.add_argument(
        "--lab", action="store_true", help="on a real Kubernetes instead (root and the lab's binaries)"
    )
    parser.set_defaults(run=_run)


def _run(flags: argparse.Namespace) -> int:
    from simulation.demo.main import main

    return main(flags)
