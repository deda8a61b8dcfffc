"""The report as it goes to the API server and comes back."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from exporter.cadence import meaning
from health.report import AcceleratorReport, ReportStatus
from health.vocabulary import GROUP_VERSION
from health.wire import Wire, wire_name

_RENEWAL = ("sequence", "renew_time", "observed_time")
_RENEWED_IF_CHANGED = ("faults", "sources")

log = logging.getLogger(__name__)


class _Core(Wire, frozen=True):
    node_uid: str = ""
    sequence: int = 0


class _Bare(Wire, frozen=True):
    status: _Core = _Core()


def status_patch(status: ReportStatus, written: ReportStatus | None) -> bytes:
    """The merge patch that makes the report's status say this; small where it says it already.

    A merge patch keeps what it does not name, so every field is named: an emptied list as [], what is unknown
    as null. Where the meaning stands there already (`written`), counts and times are enough.
    """
    if written is not None and meaning(status) == meaning(written):
        changed = [name for name in _RENEWED_IF_CHANGED if getattr(status, name) != getattr(written, name)]
        names = [*_RENEWAL, *changed]
    else:
        names = list(status.__struct_fields__)
    fields = {wire_name(name): getattr(status, name) for name in names}
    for name in ("driver", "plugin"):
        if fields.get(name) is not None:
            fields[name] = _explicit(fields[name])
    return msgspec.json.encode({"status": fields})


def new_report(node: str, node_uid: str) -> bytes:
    """The object to create, which its node owns. Status comes by its own way, and spec from the controller."""
    metadata: dict[str, Any] = {"name": node}
    if node_uid:
        metadata["ownerReferences"] = [{"apiVersion": "v1", "kind": "Node", "name": node, "uid": node_uid}]
    return msgspec.json.encode(
        {"apiVersion": GROUP_VERSION, "kind": "AcceleratorReport", "metadata": metadata}
    )


def read_report(body: bytes) -> AcceleratorReport | None:
    """An answer of the API server; None, with a line in the log, if it is not a report that we can read."""
    try:
        return msgspec.json.decode(body, type=AcceleratorReport)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("the report in the cluster cannot be read", extra={"why": str(error)})
        return None


def read_core(body: bytes) -> tuple[str, int]:
    """(node UID, sequence) of a report, also of one that a newer agent wrote; ("", 0) of anything else."""
    try:
        core = msgspec.json.decode(body, type=_Bare).status
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "", 0
    return core.node_uid, core.sequence


def _explicit(value: msgspec.Struct) -> Mapping[str, Any]:
    """All fields: the encoder leaves out defaults, and an object inside the status is merged field by field."""
    return {wire_name(name): getattr(value, name) for name in value.__struct_fields__}
