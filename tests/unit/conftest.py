"""Fixtures of the unit tests."""

from collections.abc import Iterator

import pytest

from tests.api_server import ScriptedApi


@pytest.fixture
def api() -> Iterator[ScriptedApi]:
    """A scripted API server on loopback."""
    server = ScriptedApi()
    yield server
    server.close()
