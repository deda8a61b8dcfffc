"""How structs of ours are spelled in Kubernetes objects: the base of all of them, and times."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

Time = Annotated[datetime, msgspec.Meta(tz=True)]
"""A time with its zone. One without, which the schema's `date-time` lets through, cannot be compared with others."""

_ACRONYMS = frozenset({"id", "uid", "uuid"})


def wire_name(name: str) -> str:
    """The Kubernetes spelling of a field: `boot_id` is `bootID`, `pci_address` is `pciAddress`."""
    first, *rest = name.split("_")
    return first + "".join(word.upper() if word in _ACRONYMS else word.title() for word in rest)


class Wire(msgspec.Struct, frozen=True, rename=wire_name, omit_defaults=True):
    """Base of all wire structs: Kubernetes spelling, defaults left out, unknown fields ignored when read."""
