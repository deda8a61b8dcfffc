"""Where a real part cannot run: its tests skip and say so, but in CI they fail."""

import os
from typing import NoReturn

import pytest


def cannot_run(reason: str) -> NoReturn:
    """Skip the test, or fail it where CI is set."""
    if os.environ.get("CI", "").lower() in {"true", "1"}:
        pytest.fail(f"{reason} (CI is set, where tests of real parts may not be skipped)", pytrace=False)
    pytest.skip(reason)
