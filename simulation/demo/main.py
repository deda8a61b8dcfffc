"""`sickbay demo`: what can be said before it begins, signals, and an end that leaves nothing behind."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from simulation.demo import scenario as scenarios
from simulation.demo.processes import PROJECT, CannotBeginError, DemoError

if TYPE_CHECKING:
    from simulation.demo.run import Outlet

EXIT_HEALED, EXIT_NOT_HEALED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

_MODULES = (
    "grpc",
    "kubernetes",
    "msgspec",
    "opentelemetry.sdk",
    "prometheus_client",
    "pynvml",
    "rich",
    "tenacity",
    "urllib3",
    "yaml",
)
"""What the demo and the processes that it starts import."""


def main(flags: argparse.Namespace) -> int:
    """The exit code: 0 healed and schedulable, 1 it was not, 2 it cannot run here, 130 ended by Ctrl-C before."""
    try:
        if flags.list:
            return _listed()
        if flags.lab:
            return _lab(flags)
        scenario = _checked(flags)
    except (CannotBeginError, scenarios.ScenarioError) as error:
        sys.stderr.write(f"sickbay demo: {error}\n")
        return EXIT_USAGE
    return _told(flags, scenario)


def _listed() -> int:
    """Raises ScenarioError."""
    for name in scenarios.names():
        sys.stdout.write(f"{name:<20} {scenarios.load(name).title}\n")
    return EXIT_HEALED


def _lab(flags: argparse.Namespace) -> int:
    """The same story on the lab, which lives beside the tests. Raises CannotBeginError."""
    if not (PROJECT / "tests" / "lab" / "demo.py").exists():
        raise CannotBeginError("--lab runs from a checkout of the project, where tests/ lies beside it")
    sys.path.insert(0, str(PROJECT))
    demo = importlib.import_module("tests.lab.demo")
    code: int = demo.main(["--exit"] if flags.exit else [])
    return code


def _checked(flags: argparse.Namespace) -> scenarios.Scenario:
    """The scenario, if the demo can run here at all. Raises CannotBeginError, ScenarioError."""
    if missing := missing_modules(_MODULES):
        raise CannotBeginError(f"missing Python modules: {', '.join(missing)}; `make demo` installs them")
    if not (PROJECT / "deploy" / "repair" / "templates.yaml").exists():
        raise CannotBeginError("runs from a checkout of the project, where deploy/ lies beside it: make demo")
    if not 0 <= flags.port <= 65535:
        raise CannotBeginError(f"--port {flags.port}: expected 0 to 65535")
    return scenarios.load(flags.scenario)


def missing_modules(wanted: tuple[str, ...]) -> list[str]:
    """Those of them that this Python does not have."""
    return [name for name in wanted if not _is_there(name)]


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False


def _told(flags: argparse.Namespace, scenario: scenarios.Scenario) -> int:
    with _stop_signals() as came:
        from simulation.demo.prometheus import Prometheus
        from simulation.demo.run import Run
        from simulation.demo.world import StoppedError, World

        outlet = _outlet(plain=flags.plain)
        healed, world = False, None
        try:
            prometheus = Prometheus.found() if flags.prometheus else None
            world = World(port=flags.port, stopping=lambda: bool(came))
            run = Run(world, scenario, outlet)
            run.set_up()
            address = prometheus.start(world) if prometheus else ""
            run.tell()
            healed = True
            if not flags.exit and sys.stdout.isatty():
                # A terminal that is closed is none any more, also where its hang-up does not reach us.
                run.stay(watched=sys.stdout.isatty, prometheus=address)
        except StoppedError:
            return EXIT_HEALED if healed else EXIT_INTERRUPTED
        except DemoError as error:
            outlet.close()
            sys.stderr.write(f"sickbay demo: {error}\n")
            return EXIT_USAGE if isinstance(error, CannotBeginError) else EXIT_NOT_HEALED
        finally:
            outlet.close()
            if world is not None:
                world.close()
    return EXIT_HEALED


def _outlet(*, plain: bool) -> Outlet:
    if plain or not sys.stdout.isatty():
        from simulation.demo.plain import PlainOutlet

        return PlainOutlet(sys.stdout)
    from rich.console import Console

    from simulation.demo.screen import ScreenOutlet

    return ScreenOutlet(Console())


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """The signals that came. Nothing is torn by an exception in the middle: the world looks between its steps."""
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda got, _: came.append(got)) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
