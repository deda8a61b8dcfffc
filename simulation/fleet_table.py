"""What came of a simulated fleet's run, as lines of a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from remediation.policy import Policy
from simulation.fleet import Fleet
from simulation.fleet_monitor import Monitor

_HOUR = 3600.0
_ROWS = 24


class Run(Protocol):
    """What a table is made of."""

    @property
    def fleet(self) -> Fleet: ...
    @property
    def monitor(self) -> Monitor: ...


def table(run: Run, *, hours: float, cpu: float) -> str:
    """The whole report. `cpu`: seconds of processor time that it took."""
    return "\n".join(_lines(run, hours, cpu))


def _lines(run: Run, hours: float, cpu: float) -> Iterator[str]:
    fleet, monitor = run.fleet, run.monitor
    nodes, gpus = len(fleet.nodes), fleet.profile.gpus
    gpu_hours = nodes * gpus * hours
    yield f"{nodes} nodes with {gpus} GPUs, {hours:g} h, {cpu:.1f} s of CPU"
    yield from _section("Faults by cause", "seen", "expected", "again")
    for cause in fleet.rates:
        expected = fleet.rates.per_gpu_hour(cause) * gpu_hours
        yield _row(
            cause.name, str(fleet.struck[cause.name]), f"{expected:.1f}", str(fleet.recurred[cause.name])
        )
    yield from _section("Sessions by outcome", "number")
    yield from _counts(monitor.outcomes())
    yield from _section("Repairs", "number", "needless")
    for step, count in sorted(monitor.deeds.items()):
        yield _row(step, str(count), str(monitor.unneeded[step]))
    yield from _section("Budgets", "most", "limit")
    yield from _budgets(monitor, monitor.policy, nodes)
    yield from _section("Nodes over time", "cordoned", "out")
    first = monitor.timeline[0][0] if monitor.timeline else 0.0
    for at, ours, out in _thinned(monitor.timeline):
        yield _row(f"after {(at - first) / _HOUR:.1f} h", str(ours), str(out))
    yield from _section("In all", "")
    yield _row("GPU-hours out of scheduling", f"{monitor.gpu_hours_out:.1f}")
    yield _row("of all GPU-hours", f"{100 * monitor.gpu_hours_out / gpu_hours:.2f} %")
    yield _row("reports written", str(fleet.reports_written().total()))
    yield _row("jobs completed", str(fleet.workloads.completed))
    yield _row("cordons that nobody will lift", str(len(monitor.unsettled())))
    yield _row("wrong actions", str(len(monitor.wrong)))
    yield from (f"  {line}" for line in monitor.wrong[:_ROWS])


def _section(title: str, *columns: str) -> Iterator[str]:
    yield ""
    yield _row(title, *columns, indent="")


def _row(name: str, *cells: str, indent: str = "  ") -> str:
    return f"{indent + name:<44}" + "".join(f"{cell:>12}" for cell in cells)


def _counts(counts: Mapping[str, int]) -> Iterator[str]:
    for name, count in sorted(counts.items()):
        yield _row(name, str(count))
    if not counts:
        yield _row("none", "0")


def _budgets(monitor: Monitor, policy: Policy, nodes: int) -> Iterator[str]:
    budgets = policy.budgets
    for name, most, limit in (
        ("fenced (by cordons of ours)", monitor.most_fenced, budgets.max_fenced),
        ("disrupted", monitor.most_disrupted, budgets.max_disrupted),
    ):
        yield _row(name, str(most), str(limit.of(nodes, floor=budgets.floor)))


def _thinned(timeline: Iterable[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
    """A few rows of many, the last one among them."""
    rows = list(timeline)
    every = max(1, len(rows) // _ROWS)
    return [*rows[::every], *(rows[-1:] if (len(rows) - 1) % every else [])]
