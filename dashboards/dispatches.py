"""Panels about dispatches that both dashboards have, each over what it selects."""

from __future__ import annotations

from collections.abc import Callable

from dashboards.panels import Query, TimeSeries

Of = Callable[[str, str], Query]
"""`of_fleet` or `of_node`."""


def allocation_latency(of: Of, description: str, *more: Query) -> TimeSeries:
    """Median and 99 % of what our own histogram says."""
    quantiles = (("0.5", "median"), ("0.99", "99 %"))
    return TimeSeries(
        title="Allocation latency",
        description=description,
        unit="s",
        empty="No accelerator pod was started",
        queries=(
            *(
                of(
                    f"histogram_quantile({share}, sum by (resource, le) "
                    "(rate(accelerator_allocation_duration_seconds_bucket{HERE}[$__rate_interval]))) >= 0",
                    f"{{{{resource}}}}, {name}",
                )
                for share, name in quantiles
            ),
            *more,
        ),
        minimum=0,
    )


def where_the_time_goes(of: Of) -> TimeSeries:
    """The median of each stage."""
    return TimeSeries(
        title="Where dispatches spend their time",
        description="The median of each stage of an accelerator pod's way from creation to ready.",
        unit="s",
        empty="No accelerator pod was started",
        queries=(
            of(
                "histogram_quantile(0.5, sum by (stage, le) "
                "(rate(accelerator_dispatch_stage_duration_seconds_bucket{HERE}[$__rate_interval]))) >= 0",
                "{{stage}}",
            ),
        ),
        minimum=0,
    )
