"""Faults on demand: what shall go wrong, for which requests, how often.

A fault strikes requests that fit it. Those with a probability draw from a generator of their own, seeded by the seed
and the fault's number, so that a run can be repeated whatever other faults there are. When several fit, delays, clock
skews and stale reads add to the first of the others.
"""

from __future__ import annotations

import difflib
import random
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from simulation.cluster.errors import too_many_requests
from simulation.cluster.interface import StoreError


class Kind(StrEnum):
    """What happens to a request."""

    DROP = "Drop"
    """The connection is cut before anything is done. With `established`: that of a watch that runs."""
    HALF_OPEN = "HalfOpen"
    """A watch that is accepted and then silent for ever; with `established`, one that runs falls silent. (On loopback
    the kernel still acknowledges keepalives.)"""
    LOSE_RESPONSE = "LoseResponse"
    """The request is carried out, then the connection is cut instead of an answer."""
    DELAY = "Delay"
    """The request is carried out, and answered, `seconds` later."""
    DELAY_RESPONSE = "DelayResponse"
    """The request is carried out at once, and answered `seconds` later."""
    CONFLICT = "Conflict"
    """409."""
    GONE = "Gone"
    """410; of a watch as an ERROR event, as the real server sends it, unless `as_status`."""
    TOO_MANY = "TooManyRequests"
    """429, with `retry_after` seconds or without."""
    ERROR = "InternalError"
    """500."""
    UNAVAILABLE = "ServiceUnavailable"
    """503, with `retry_after` seconds or without."""
    STALE = "StaleRead"
    """A get or list, or a watch's first objects, as of `behind` writes ago, or as far back as is known."""
    CLOCK_SKEW = "ClockSkew"
    """The server's clock is `seconds` off: the Date header, and every timestamp that the request writes."""


_ADDITIVE = frozenset({Kind.DELAY, Kind.DELAY_RESPONSE, Kind.STALE, Kind.CLOCK_SKEW})


class Fault(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel"
):
    """What shall go wrong. An empty pattern fits everything; patterns are those of shells (`n*`).

    `verb` is get, list, watch, create, update, patch, delete or deletecollection; `resource` as in RBAC (`nodes`,
    `deployments.apps`, `pods/eviction`, `acceleratorreports.sickbay.dev/status`).
    """

    kind: Kind
    verb: str = ""
    resource: str = ""
    namespace: str = ""
    name: str = ""
    user: str = ""
    user_agent: str = ""
    skip: int = 0
    """How many requests that fit pass before the first is struck."""
    count: int | None = None
    """How many requests are struck in all; None: until it is removed."""
    probability: float = 1.0
    seconds: float = 0.0
    retry_after: int = 0
    behind: int = 0
    as_status: bool = False
    established: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """A request, as faults see it."""

    verb: str
    resource: str
    namespace: str
    name: str
    user: str
    user_agent: str


@dataclass(frozen=True, slots=True)
class Strike:
    """What happens to one request. `kind` None: nothing that would stop it."""

    kind: Kind | None = None
    fault: Fault | None = None
    delay_seconds: float = 0.0
    response_delay_seconds: float = 0.0
    behind: int = 0
    skew_seconds: float = 0.0
    names: tuple[str, ...] = ()

    def error(self, target: Target) -> StoreError | None:
        """The refusal that it stands for, if it is one."""
        fault, name = self.fault, target.name
        if fault is None:
            return None
        retry = {"retryAfterSeconds": fault.retry_after} if fault.retry_after else {}
        match self.kind:
            case Kind.CONFLICT:
                text = f'Operation cannot be fulfilled on {target.resource} "{name}": the object has been modified; '
                text += "please apply your changes to the latest version and try again"
                return StoreError(409, "Conflict", text, details={"name": name, "kind": target.resource})
            case Kind.GONE:
                return StoreError(410, "Expired", "too old resource version: 1 (2)")
            case Kind.TOO_MANY:
                message = "The server has received too many requests and has asked us to try again later"
                return too_many_requests(message, retry_after=fault.retry_after)
            case Kind.ERROR:
                return StoreError(
                    500, "InternalError", "Internal error occurred: injected fault", details=retry
                )
            case Kind.UNAVAILABLE:
                return StoreError(
                    503,
                    "ServiceUnavailable",
                    "the server is currently unable to handle the request",
                    details=retry,
                )
        return None


@dataclass(slots=True)
class _Armed:
    number: int
    fault: Fault
    draw: random.Random
    seen: int = 0
    struck: int = 0


class FaultError(ValueError):
    """Not a fault; the text names the field and what is expected."""


@dataclass(slots=True)
class Faults:
    """The faults that are armed. Thread-safe."""

    seed: int = 0
    on_established: Callable[[Fault], int] | None = None
    """Strikes watches that run, and says how many: the server's."""
    _armed: dict[int, _Armed] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _next: int = 1

    def add(self, fault: Fault) -> int:
        """Arm a fault; its number. Raises FaultError."""
        _check(fault)
        with self._lock:
            number, self._next = self._next, self._next + 1
            armed = _Armed(number, fault, random.Random(f"{self.seed}/{number}"))  # noqa: S311 - to be repeated
            if not fault.established:
                self._armed[number] = armed
        if fault.established and self.on_established is not None:
            self.on_established(fault)
        return number

    def remove(self, number: int) -> bool:
        """Disarm a fault; whether there was one of this number."""
        with self._lock:
            return self._armed.pop(number, None) is not None

    def clear(self) -> None:
        """Disarm all."""
        with self._lock:
            self._armed.clear()

    def describe(self) -> list[dict[str, Any]]:
        """The armed faults with their numbers and how many requests each has struck."""
        with self._lock:
            return [
                {"number": armed.number, "struck": armed.struck, **msgspec.to_builtins(armed.fault)}
                for armed in self._armed.values()
            ]

    def struck(self, number: int) -> int:
        """How many requests a fault that is armed has struck; 0 for one that is not there."""
        with self._lock:
            return self._armed[number].struck if number in self._armed else 0

    def strike(self, target: Target) -> Strike:
        """What happens to a request."""
        if not self._armed:
            return _NOTHING
        with self._lock:
            found = [armed.fault for armed in self._armed.values() if _strikes(armed, target)]
        return _combined(found)


_NOTHING = Strike()


def parse(data: bytes) -> Fault:
    """A fault from JSON. Raises FaultError."""
    try:
        return msgspec.json.decode(data, type=Fault)
    except msgspec.MsgspecError as error:
        words = [item.encode_name for item in msgspec.structs.fields(Fault)] + [kind.value for kind in Kind]
        quoted = re.search(r"(?:value|field) [`'](\w+)", str(error))
        named = quoted[1] if quoted else ""
        near = difflib.get_close_matches(named, words, n=1)
        hint = (
            f"; did you mean {near[0]}?" if near else f"; kinds are {', '.join(kind.value for kind in Kind)}"
        )
        raise FaultError(f"not a fault: {error}{hint}") from error


def _check(fault: Fault) -> None:
    if not 0 <= fault.probability <= 1:
        raise FaultError(f"probability is a number from 0 to 1, not {fault.probability}")
    if fault.count is not None and fault.count < 1:
        raise FaultError(f"count is 1 or more, not {fault.count}")
    if fault.kind in (Kind.DELAY, Kind.DELAY_RESPONSE) and not fault.seconds > 0:
        raise FaultError(f"a {fault.kind.value} needs seconds above 0, not {fault.seconds}")
    if fault.kind is Kind.STALE and fault.behind < 1:
        raise FaultError(f"a StaleRead needs behind, in writes, of 1 or more, not {fault.behind}")
    if fault.established and fault.kind not in (Kind.DROP, Kind.HALF_OPEN):
        raise FaultError(f"established goes with Drop or HalfOpen, not with {fault.kind.value}")


def fits(fault: Fault, target: Target) -> bool:
    """Whether a fault is about a request."""
    if fault.kind is Kind.HALF_OPEN and target.verb != "watch":
        return False
    if fault.kind is Kind.STALE and target.verb not in ("get", "list", "watch"):
        return False
    pairs = (
        (fault.verb, target.verb),
        (fault.resource, target.resource),
        (fault.namespace, target.namespace),
        (fault.name, target.name),
        (fault.user, target.user),
        (fault.user_agent, target.user_agent),
    )
    return all(not pattern or fnmatchcase(value, pattern) for pattern, value in pairs)


def _strikes(armed: _Armed, target: Target) -> bool:
    fault = armed.fault
    if not fits(fault, target) or (fault.count is not None and armed.struck >= fault.count):
        return False
    armed.seen += 1
    if armed.seen <= fault.skip or armed.draw.random() >= fault.probability:
        return False
    armed.struck += 1
    return True


def _combined(found: Sequence[Fault]) -> Strike:
    strike = Strike(names=tuple(fault.kind.value for fault in found))
    for fault in found:
        match fault.kind:
            case Kind.DELAY:
                strike = replace(strike, delay_seconds=strike.delay_seconds + fault.seconds)
            case Kind.DELAY_RESPONSE:
                strike = replace(strike, response_delay_seconds=strike.response_delay_seconds + fault.seconds)
            case Kind.STALE:
                strike = replace(strike, behind=max(strike.behind, fault.behind))
            case Kind.CLOCK_SKEW:
                strike = replace(strike, skew_seconds=strike.skew_seconds + fault.seconds)
            case _ if strike.kind is None:
                strike = replace(strike, kind=fault.kind, fault=fault)
            case _:
                pass
    return strike
