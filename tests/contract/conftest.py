"""Fixtures: a contract test that asks for `world` runs on the real API server and on the embedded one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.world import World
from tests.contract.worlds import embedded, real


def pytest_itemcollected(item: pytest.Item) -> None:
    # Workers of xdist share one control plane, as in tests/lab.
    if item.get_closest_marker("lab") and item.config.pluginmanager.hasplugin("xdist"):
        item.add_marker(pytest.mark.xdist_group("lab"))


@pytest.fixture(scope="package", params=[pytest.param("real", marks=pytest.mark.lab), "embedded"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """The API under test. Package-wide: tests use names of their own and leave what they made."""
    with real() if request.param == "real" else embedded() as made:
        yield made


@pytest.fixture(scope="package")
def embedded_world() -> Iterator[World]:
    """An embedded API for what only it can be asked."""
    with embedded() as made:
        yield made
