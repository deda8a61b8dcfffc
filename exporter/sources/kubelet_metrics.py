"""The kubelet's own measure of device allocation, from its metrics page, where reading it is allowed.

The page has 211 kB and 2,300 lines on kubelet 1.37; the dozen lines of one histogram are picked by their beginning
and nothing else is parsed. Family: `kubelet_device_plugin_alloc_duration_seconds{resource_name}` (ALPHA).
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from health.vocabulary import SourceState
from runtime.api_errors import ApiError
from runtime.kubelet_page import PageUnavailableError, is_refused
from runtime.kubernetes import Session

KUBELET_METRICS = "kubelet-metrics"
"""The name of the source."""

INTERVAL_SECONDS = 30.0
FIRST_SECONDS = 1.0
NAME = "accelerator_kubelet_allocation_duration_seconds"

_FAMILY = b"kubelet_device_plugin_alloc_duration_seconds_"
_LINE = re.compile(
    rb'(?P<what>bucket|sum|count)\{(?:[^}]*,)?resource_name="(?P<resource>[^"]*)"(?:[^}]*?le="(?P<le>[^"]*)")?[^}]*\}'
    rb" (?P<value>[0-9.eE+-]+)"
)
_RESOURCE_LIMIT = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Allocations:
    """One resource's histogram: cumulative counts by upper bound as the kubelet writes it, and their sum in seconds."""

    buckets: tuple[tuple[str, float], ...]
    total: float


def parse(page: bytes) -> Mapping[str, Allocations]:
    """The histogram of each resource; lines that are not understood are passed over."""
    buckets: dict[str, list[tuple[str, float]]] = {}
    totals: dict[str, float] = {}
    for line in page.splitlines():
        if not line.startswith(_FAMILY):
            continue
        found = _LINE.match(line, len(_FAMILY))
        if found is None:
            continue
        resource, value = found["resource"].decode("utf-8", "replace"), _number(found["value"])
        if value is None or (resource not in buckets and len(buckets) >= _RESOURCE_LIMIT):
            continue
        if found["what"] == b"bucket" and found["le"]:
            buckets.setdefault(resource, []).append((found["le"].decode("ascii", "replace"), value))
        elif found["what"] == b"sum":
            totals[resource] = value
    return {
        name: Allocations(tuple(found), totals[name]) for name, found in buckets.items() if name in totals
    }


class KubeletMetrics:
    """Asks on a thread of its own, and is the collector of what was answered last."""

    def __init__(
        self,
        *,
        page: Callable[[], Session],
        on_state: Callable[[SourceState, str], None],
    ) -> None:
        self._page = page
        self._on_state = on_state
        self._closing = threading.Event()
        self._said: tuple[SourceState, str] | None = None
        self._found: Mapping[str, Allocations] = {}
        self._thread = threading.Thread(target=self._run, name="kubelet-metrics", daemon=True)

    def start(self) -> None:
        """Begin. Returns at once."""
        self._thread.start()

    def close(self, timeout: float = 1.0) -> bool:
        """End the thread. False if it does not end within `timeout` seconds."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def describe(self) -> Iterator[Metric]:
        """The family without samples."""
        yield _family()

    def collect(self) -> Iterator[Metric]:
        """The kubelet's buckets, unchanged; nothing while it does not answer."""
        family = _family()
        for resource, found in sorted(self._found.items()):
            family.add_metric([resource], list(found.buckets), found.total)
        yield family

    def _run(self) -> None:
        wait = 0.0
        while not self._closing.wait(wait):
            try:
                known = self._ask()
            except Exception:
                log.exception("the kubelet's metrics cannot be read, for a reason that nobody foresaw")
                known = False
            wait = INTERVAL_SECONDS if known else max(FIRST_SECONDS, min(2 * wait, INTERVAL_SECONDS))

    def _ask(self) -> bool:
        try:
            self._found = parse(self._page().get("/metrics", timeout=(2.0, 10.0)).body)
        except PageUnavailableError as error:
            self._say(SourceState.UNSUPPORTED, str(error))
            return False
        except ApiError as error:
            self._found = {}
            refused = is_refused(error)
            self._say(
                SourceState.UNSUPPORTED if refused else SourceState.FAILED, f"the kubelet's /metrics: {error}"
            )
            return refused
        self._say(SourceState.LIVE, "")
        return True

    def _say(self, state: SourceState, message: str) -> None:
        if (state, message) != self._said:
            self._said = (state, message)
            self._on_state(state, message)


def _family() -> HistogramMetricFamily:
    return HistogramMetricFamily(
        NAME,
        "How long device plugins took to allocate, as the kubelet measures it; its buckets.",
        labels=["resource"],
    )


def _number(text: bytes) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
