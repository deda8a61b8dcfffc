"""The report as it goes to the API server and comes back."""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from health.report import AcceleratorReport, ReportStatus
from health.vocabulary import GROUP_VERSION
from health.wire import Wire, wire_name

_TYPE = {"apiVersion": GROUP_VERSION, "kind": "AcceleratorReport"}

log = logging.getLogger(__name__)


class _Core(Wire, frozen=True):
    node_uid: str = ""
    sequence: int = 0


class _Bare(Wire, frozen=True):
    status: _Core = _Core()


def status_patch(status: ReportStatus) -> bytes:
    """The merge patch that makes the report's status say this, whatever it said before.

    A merge patch keeps what it does not name, so every field is named: an emptied list as [], what is unknown
    as null.
    """
    return msgspec.json.encode({"status": _fields(status)})


def status_update(node: str, status: ReportStatus, *, resource_version: str) -> bytes:
    """The object to put in the place of the report of this version. What it does not name is not there afterwards.

    It costs the API server less than a patch, which it first has to apply (1.37, a report of eight devices: 7.1 ms
    against 7.6 for a patch of one field, and 8.1 for one that names every field).
    """
    metadata = {"name": node, "resourceVersion": resource_version}
    known = {name: value for name, value in _fields(status).items() if value is not None}
    return msgspec.json.encode({**_TYPE, "metadata": metadata, "status": known})


def new_report(node: str, node_uid: str) -> bytes:
    """The object to create, which its node owns. Status comes by its own way, and spec from the controller."""
    metadata: dict[str, Any] = {"name": node}
    if node_uid:
        metadata["ownerReferences"] = [{"apiVersion": "v1", "kind": "Node", "name": node, "uid": node_uid}]
    return msgspec.json.encode({**_TYPE, "metadata": metadata})


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


def _fields(status: ReportStatus) -> dict[str, Any]:
    fields = _explicit(status)
    for name in ("driver", "plugin"):
        if fields[name] is not None:
            fields[name] = _explicit(fields[name])
    return fields


def _explicit(value: msgspec.Struct) -> dict[str, Any]:
    """All fields: the encoder leaves out defaults, and an object inside the status is merged field by field."""
    return {wire_name(name): getattr(value, name) for name in value.__struct_fields__}
