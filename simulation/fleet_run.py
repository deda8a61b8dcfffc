"""`python -m simulation.fleet`: a fleet and the real remediation engine together, in virtual or real time, and a table
of what came of it."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from health.vocabulary import Mode
from remediation.policy import Policy, Pool, Rule, Selector, load_policy
from runtime.clock import ManualClock, SystemClock
from runtime.config_error import ConfigError
from simulation.cluster import crds
from simulation.cluster.kubelet_node import Timings
from simulation.cluster.server import EmbeddedApi
from simulation.cluster.store import ClusterStore
from simulation.fleet import Fleet, Profile
from simulation.fleet_controller import VirtualController, install
from simulation.fleet_live import LiveFleet
from simulation.fleet_monitor import Monitor
from simulation.fleet_node import POOL_LABEL
from simulation.fleet_rates import Rates, RatesError, builtin, parse
from simulation.fleet_table import table

_HOUR = 3600.0
_LONGEST_SLEEP = 0.5
_ROUNDS = 10_000


COARSE = Profile(timings=Timings(status=60.0, lease=60.0), node_grace=200.0)
"""Kubelets that renew their Leases every minute: a third of the work, and silence is noticed two minutes later."""


class UnsettledRunError(Exception):
    """Fleet and controller keep each other busy at one moment."""


def auto_policy(pools: Sequence[str] = ()) -> Policy:
    """Everything in mode Auto, with the default budgets."""
    return Policy(
        pools=tuple(Pool(name, Selector({POOL_LABEL: name})) for name in pools),
        rules=(Rule(name="repair", mode=Mode.AUTO),),
    )


@dataclass(slots=True)
class Simulation:
    """A fleet, a controller and a monitor on one store under one virtual clock."""

    clock: ManualClock
    store: ClusterStore
    fleet: Fleet
    monitor: Monitor
    controller: VirtualController

    @classmethod
    def begin(
        cls,
        *,
        nodes: int,
        seed: int,
        rates: Rates | None = None,
        policy: Policy | None = None,
        pools: Sequence[str] = (),
        profile: Profile | None = None,
    ) -> Simulation:
        """Everything is set up, the agents have started and the controller leads."""
        clock = ManualClock()
        store = ClusterStore(clock=clock, custom=crds.load())
        profile = profile or Profile()
        chosen = policy or auto_policy(pools)
        monitor = Monitor(store, clock, chosen, profile.gpus)
        fleet = Fleet(store, size=nodes, seed=seed, clock=clock, rates=rates, pools=pools, profile=profile)
        fleet.on_deed = monitor.deed
        install(store)
        controller = VirtualController(store, clock=clock, policy=chosen)
        controller.take_over()
        run = cls(clock, store, fleet, monitor, controller)
        run.settle()
        return run

    def settle(self) -> None:
        """Do all that is due now. Raises UnsettledRunError."""
        now = self.clock.monotonic()
        for _ in range(_ROUNDS):
            self.fleet.step(now)
            if not self.controller.step(now):
                return
        raise UnsettledRunError(f"after {_ROUNDS} rounds there is still work due at the same moment")

    def advance(self, seconds: float, *, speed: float = 0.0) -> None:
        """Let time pass; `speed`: at most so many times faster than the real one, 0 for no bound."""
        start, real = self.clock.monotonic(), time.monotonic()
        end = start + seconds
        while True:
            self.settle()
            due = min(self.fleet.next_due(), self.controller.next_due())
            now = self.clock.monotonic()
            if speed:
                _wait_for(real + (min(due, end) - start) / speed)
            if due > end:
                self.clock.advance(end - now)
                return
            self.clock.advance(max(0.0, due - now))

    def fail_over(self) -> int:
        """The controller's process dies, and another one takes over; its epoch."""
        policy, epoch = self.controller.engine.policy, self.controller.engine.epoch
        self.controller.stop()
        self.controller = VirtualController(self.store, clock=self.clock, policy=policy)
        return self.controller.take_over(epoch)


def _wait_for(moment: float) -> None:
    while (left := moment - time.monotonic()) > 0:
        time.sleep(min(left, _LONGEST_SLEEP))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, 1 if anything went wrong that never may, 2 for what cannot be run."""
    options = _parser().parse_args(arguments)
    try:
        rates = parse(options.rates.read_text(), file=str(options.rates)) if options.rates else builtin()
        policy = load_policy(options.policy) if options.policy else auto_policy(options.pools)
    except (OSError, RatesError, ConfigError, UnicodeDecodeError) as error:
        print(f"simulation.fleet: {error}", file=sys.stderr)  # noqa: T201
        return 2
    if options.serve is not None:
        return _serve(options, rates.multiplied(options.multiply))
    began = time.process_time()
    run = Simulation.begin(
        nodes=options.nodes,
        seed=options.seed,
        rates=rates.multiplied(options.multiply),
        policy=policy,
        pools=options.pools,
        profile=COARSE if options.coarse else None,
    )
    if options.storm:
        run.advance(min(_HOUR, options.hours * _HOUR / 2), speed=options.speed)
        run.fleet.storm(options.storm, 60.0)
    begun = run.clock.monotonic()
    left = options.hours * _HOUR - (begun - ManualClock().monotonic())
    run.advance(max(0.0, left), speed=options.speed)
    run.monitor.finish()
    print(table(run, hours=options.hours, cpu=time.process_time() - began))  # noqa: T201
    return 1 if run.monitor.wrong or run.monitor.unsettled() else 0


def _serve(options: argparse.Namespace, rates: Rates) -> int:
    """The fleet alone, in real time, behind the embedded API: for a controller that is a process of its own."""
    clock = SystemClock()
    try:
        with EmbeddedApi(clock=clock, port=options.serve, seed=options.seed) as api:
            install(api.store)
            size, seed, pools = options.nodes, options.seed, options.pools
            fleet = Fleet(api.store, size=size, seed=seed, clock=clock, rates=rates, pools=pools)
            with LiveFleet(fleet, api.store, clock):
                print(f"{size} nodes behind {api.url}", flush=True)  # noqa: T201
                threading.Event().wait(options.hours * _HOUR)
    except OSError as error:
        print(f"simulation.fleet: port {options.serve}: {error.strerror}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        return 0
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m simulation.fleet", description=__doc__)
    parser.add_argument("--nodes", type=_at_least_one, default=50)
    parser.add_argument("--hours", type=_positive, default=24.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speed", type=_speed, default=0.0, help="times the real time, or max (the default)")
    parser.add_argument(
        "--multiply", type=_positive, default=1.0, help="make all faults so much more frequent"
    )
    parser.add_argument(
        "--storm", type=_share, default=0.0, help="break this share of the nodes in one minute"
    )
    parser.add_argument(
        "--coarse", action="store_true", help="kubelets say little, so that days pass quickly"
    )
    parser.add_argument(
        "--serve", type=_port, metavar="PORT", help="the fleet alone, in real time (0: any port)"
    )
    parser.add_argument(
        "--pools", nargs="*", default=[], help="names of pools, which the nodes take turns at"
    )
    parser.add_argument("--policy", type=Path, help="a policy file; without one everything is in mode Auto")
    parser.add_argument(
        "--rates", type=Path, help="a table of rates in the place of simulation/fleet_rates.tsv"
    )
    return parser


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)


def _positive(text: str) -> float:
    return _bounded(text, "a number of more than 0", least=1e-9, most=1e9)


def _share(text: str) -> float:
    return _bounded(text, "a share from 0 to 1", least=0.0, most=1.0)


def _speed(text: str) -> float:
    return 0.0 if text == "max" else _bounded(text, "a number of more than 0, or max", least=1e-3, most=1e9)


def _bounded(text: str, expected: str, *, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
    return value
