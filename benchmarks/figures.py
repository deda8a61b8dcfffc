"""Percentiles, and what a process uses."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p99 and the maximum in milliseconds (nearest rank)."""
    ordered = sorted(seconds)

    def rank(share: float) -> float:
        return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))] * 1000

    return {"p50": rank(0.50), "p99": rank(0.99), "max": ordered[-1] * 1000}


def line(name: str, milliseconds: float, target: float | None) -> str:
    """One line of a table, with the target where there is one."""
    if target is None:
        return f"  {name:<4} {milliseconds:8.1f} ms"
    verdict = "met" if milliseconds <= target else "MISSED"
    return f"  {name:<4} {milliseconds:8.1f} ms   target {target:g} ms: {verdict}"


@dataclass(frozen=True, slots=True)
class Usage:
    """Proportional set size in MiB (/proc/PID/smaps_rollup) and CPU seconds so far (/proc/PID/stat)."""

    pss_mib: float
    cpu_seconds: float


def usage_of(pid: int) -> Usage:
    """What a process uses now. Raises OSError where there is none."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    pss = next(int(row.split()[1]) for row in rollup.splitlines() if row.startswith("Pss:"))
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return Usage(pss_mib=pss / 1024, cpu_seconds=ticks / os.sysconf("SC_CLK_TCK"))
