"""The version of Sickbay, as it is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("sickbay")
except PackageNotFoundError:
    # A checkout that runs in place, without having been installed.
    VERSION = "0+checkout"
