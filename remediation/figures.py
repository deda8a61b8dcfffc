"""Whether what a verification Job measured is as good as it must be. Pure."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from remediation.repair_policy import Baseline


def judge(exit_code: int, message: str, baseline: Baseline | None) -> str:
    """What is wrong with a container's result; empty where nothing is.

    `message` is its termination message: a JSON object of figures where there is a baseline. A figure that the
    baseline names and the result lacks is wrong, as is one that is no finite number.
    """
    said = " ".join(message.split())[:200]
    if exit_code != 0:
        return f"it ended with {exit_code}{f': {said}' if said else ''}"
    if baseline is None:
        return ""
    try:
        figures = msgspec.json.decode(message, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return f"its termination message is not a JSON object of figures: {said!r}"
    complaints = [
        *(_complaint(figures, name, least, at_least=True) for name, least in baseline.minimum.items()),
        *(_complaint(figures, name, most, at_least=False) for name, most in baseline.maximum.items()),
    ]
    return "; ".join(complaint for complaint in complaints if complaint)


def _complaint(figures: dict[str, Any], name: str, bound: float, *, at_least: bool) -> str:
    value = figures.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
        return f"{name} is {'missing' if value is None else f'no number ({value!r:.60})'}"
    if value < bound if at_least else value > bound:
        return f"{name} is {value:g}, and must be {'at least' if at_least else 'at most'} {bound:g}"
    return ""


def _finite(value: float) -> bool:
    """JSON has integers that no machine number is as large as."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
