"""Table output, which `kubectl get` prints (`Accept: application/json;as=Table;v=v1;g=meta.k8s.io`)."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import msgspec

from simulation.cluster.columns import Column, columns_of
from simulation.cluster.interface import Object
from simulation.cluster.resources import ResourceType

_DATE_HELP = "CreationTimestamp is a timestamp representing the server time when this object was created."


def wants_table(accept: str) -> bool:
    """Whether the first form that a client accepts, and that there is, is a Table."""
    for part in accept.split(","):
        words = [word.strip() for word in part.split(";")]
        if words[0] in ("application/json", "*/*", "application/*"):
            if any(word.startswith("as=") for word in words):
                if "as=Table" in words and "v=v1" in words:
                    return True
                continue
            return False
    return False


def table(
    resource: ResourceType,
    items: Iterable[bytes],
    *,
    version: str,
    now: datetime,
    include: str,
    headed: bool = True,
    token: str = "",
    remaining: int | None = None,
) -> bytes:
    """The Table of some objects. `include` is None, Metadata (default) or Object: what each row holds of its own.

    `headed`: with column definitions, which only the first event of a watch has.
    """
    columns = columns_of(resource)
    meta: Object = {"resourceVersion": version} if version else {}
    if token:
        meta["continue"] = token
    if remaining is not None:
        meta["remainingItemCount"] = remaining
    return msgspec.json.encode(
        {
            "kind": "Table",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": meta,
            "columnDefinitions": [_definition(column) for column in columns] if headed else None,
            "rows": [_row(columns, data, now=now, include=include) for data in items],
        }
    )


def _definition(column: Column) -> Object:
    return {
        "name": column.name,
        "type": column.type,
        "format": "name" if column.name == "Name" else "",
        "description": column.description,
        "priority": column.priority,
    }


def _row(columns: tuple[Column, ...], data: bytes, *, now: datetime, include: str) -> Object:
    document = msgspec.json.decode(data)
    row: Object = {"cells": [column.cell(document, now) for column in columns]}
    if include == "Object":
        row["object"] = document
    elif include != "None":
        partial = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
        row["object"] = {**partial, "metadata": document["metadata"]}
    return row
