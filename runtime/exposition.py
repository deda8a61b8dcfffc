"""Metrics as bytes: several collectors, each guarded, in OpenMetrics or text by the Accept header.

prometheus_client renders; what it leaves to us is that one collector which raises, or one sample that
cannot be written, must not cost the whole scrape, and that nothing is collected at registration.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import prometheus_client
from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from runtime.clock import Clock, SystemClock

_EOF = b"# EOF\n"

log = logging.getLogger(__name__)


class Collector(Protocol):
    """Anything that yields metric families; prometheus_client's own metrics, made with `registry=None`, fit."""

    def collect(self) -> Iterable[Metric]:
        """The families with their samples, new with every call."""

    def describe(self) -> Iterable[Metric]:
        """The families without samples: names, help texts and labels, without measuring anything."""


class Registry:
    """Collectors in the order of their registration, under names that their failures are counted by."""

    def __init__(self) -> None:
        # A `_created` series beside every counter would double them.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()
        self._collectors: dict[str, Collector] = {}
        self._families: dict[str, str] = {}
        self._failures: dict[str, int] = {}
        self._failing: set[str] = set()

    def register(self, collector: Collector, *, name: str | None = None) -> None:
        """Add a collector. Raises ValueError when its name or one of its families is taken."""
        families = [family.name for family in collector.describe()]
        label = name or (families[0] if len(families) == 1 else type(collector).__name__)
        with self._lock:
            if label in self._collectors:
                raise ValueError(f"there is a collector named {label} already")
            for family in families:
                if family in self._families:
                    raise ValueError(f"{label} and {self._families[family]} both export {family}")
            self._collectors[label] = collector
            self._families.update(dict.fromkeys(families, label))
            self._failures[label] = 0

    def describe(self) -> list[Metric]:
        """Every family without samples, for documentation and for checks of rules and dashboards."""
        with self._lock:
            collectors = list(self._collectors.values())
        described = [family for collector in collectors for family in collector.describe()]
        return [*described, self._error_family()]

    def labels(self) -> dict[str, tuple[str, ...]]:
        """The label names of every family, by its name; prometheus_client keeps them on either object."""
        with self._lock:
            collectors = list(self._collectors.values())
        found: dict[str, tuple[str, ...]] = {self._error_family().name: ("collector",)}
        for collector in collectors:
            for family in collector.describe():
                holder = collector if hasattr(collector, "_labelnames") else family
                found[family.name] = tuple(getattr(holder, "_labelnames", ()))
        return found

    def render(self, accept: str) -> tuple[str, bytes]:
        """Content type and body for a scraper that accepts `accept`. Never raises for what a collector does."""
        encoder, content_type = choose_encoder(accept)
        parts: list[bytes] = []
        seen: set[str] = set()
        with self._lock:
            collectors = list(self._collectors.items())
        for label, collector in collectors:
            try:
                families = _new(collector.collect(), seen)
                parts.append(_encode(encoder, families))
                seen.update(family.name for family in families)
                self._failing.discard(label)
            except Exception:
                self._failed(label)
        parts.append(_encode(encoder, [self._error_family()]))
        if content_type.startswith("application/openmetrics-text"):
            parts.append(_EOF)
        return content_type, b"".join(parts)

    def _failed(self, label: str) -> None:
        self._failures[label] += 1
        # Once when it begins to fail, not with every scrape.
        if label not in self._failing:
            self._failing.add(label)
            log.exception("a collector failed, its metrics are missing", extra={"collector": label})

    def _error_family(self) -> Metric:
        family = CounterMetricFamily(
            "sickbay_collector_errors",
            "Scrapes in which a collector of this process failed, so that its metrics were missing.",
            labels=["collector"],
        )
        for label, count in sorted(self._failures.items()):
            family.add_metric([label], count)
        return family


class Exposition:
    """The registry's rendering, kept for each content type until its `generation` changes.

    `generation` names the state that is rendered (the number of a snapshot, say). Bytes are not kept longer
    than `max_age` seconds all the same: when nothing makes new snapshots, what the collectors then leave out
    must not live on in the cache.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        generation: Callable[[], object],
        clock: Clock | None = None,
        max_age: float = 1.0,
    ) -> None:
        self._registry = registry
        self._generation = generation
        self._clock = clock or SystemClock()
        self._max_age = max_age
        self._lock = threading.Lock()
        self._state: object = None
        self._rendered: dict[str, tuple[float, str, bytes]] = {}

    def __call__(self, accept: str) -> tuple[str, bytes]:
        """Content type and body; the same bytes object as long as it is kept."""
        _, content_type = choose_encoder(accept)
        with self._lock:
            now, state = self._clock.monotonic(), self._generation()
            if state != self._state:
                self._state = state
                self._rendered.clear()
            kept = self._rendered.get(content_type)
            if kept is not None and now - kept[0] < self._max_age:
                return kept[1:]
            rendered = self._registry.render(accept)
            self._rendered[content_type] = (now, *rendered)
            return rendered


class _Families:
    """What prometheus_client's encoders ask of a registry."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _new(families: Iterable[Metric], seen: set[str]) -> list[Metric]:
    """The families, of which none may be in the scrape already: Prometheus would refuse all of it."""
    found = list(families)
    if twice := [family.name for family in found if family.name in seen]:
        raise ValueError(f"families exported twice: {', '.join(twice)}")
    return found


def _encode(encoder: Callable[[Any], bytes], families: Iterable[Metric]) -> bytes:
    return encoder(_Families(families)).removesuffix(_EOF)
