"""Kubernetes quantities and shares as whole numbers. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|([numkMGTPE]|[KMGTPE]i)?)", re.ASCII)
_FACTORS = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    **{f"{prefix}i": Decimal(1024**power) for power, prefix in enumerate("KMGTPE", start=1)},
}

PODS_RESOURCE = "pods"


class QuantityError(ValueError):
    """A text that is not a quantity, or neither a number nor a percentage."""


@lru_cache(maxsize=4096)
def milli(quantity: str) -> int:
    """A quantity in thousandths, rounded up: `1500m` and `1.5` are 1500. Raises QuantityError."""
    match = _QUANTITY.fullmatch(quantity.strip())
    if match is None:
        raise QuantityError(f"{quantity!r} is not a quantity such as 500m, 2 or 16Gi")
    number, exponent, suffix = match.groups()
    value = Decimal(number + (exponent or "")) * _FACTORS.get(suffix or "", Decimal(1))
    return math.ceil(value * 1000)


def amounts(resources: Mapping[str, Any] | None) -> dict[str, int]:
    """Resources in thousandths by name. Raises QuantityError."""
    return {name: milli(str(quantity)) for name, quantity in (resources or {}).items()}


def pod_requests(pod_spec: Mapping[str, Any]) -> dict[str, int]:
    """What a pod takes of a node, in thousandths, itself included as one pod.

    The sum of its containers, or its largest init container where that is more (component-helpers' PodRequests). A
    limit without a request is the request, as the API server defaults it. Raises QuantityError.
    """
    total: dict[str, int] = {}
    for container in pod_spec.get("containers") or ():
        for name, amount in container_requests(container).items():
            total[name] = total.get(name, 0) + amount
    for container in pod_spec.get("initContainers") or ():
        for name, amount in container_requests(container).items():
            total[name] = max(total.get(name, 0), amount)
    for name, amount in amounts(pod_spec.get("overhead")).items():
        total[name] = total.get(name, 0) + amount
    total[PODS_RESOURCE] = 1000
    return total


def container_requests(container: Mapping[str, Any]) -> dict[str, int]:
    """What one container asks for, in thousandths. Raises QuantityError."""
    resources = container.get("resources") or {}
    return amounts({**(resources.get("limits") or {}), **(resources.get("requests") or {})})


def scaled(value: int | str | None, total: int, *, round_up: bool) -> int:
    """A number as it is, or a percentage of `total` (intstr.GetScaledValueFromIntOrPercent). Raises QuantityError."""
    if value is None:
        return 0
    if isinstance(value, int):
        return value
    number = value.removesuffix("%")
    if number == value or not number.isdecimal():
        raise QuantityError(f"{value!r} is neither a number nor a percentage such as 25%")
    product = int(number) * total
    return -(-product // 100) if round_up else product // 100
