"""`metadata.managedFields` of Nodes: who has set which field of `spec`, which label and which annotation.

The real server keeps it for every field of every object. Sickbay reads one thing of it, who has set
`spec.unschedulable` of a Node, so this is kept, for Nodes alone, in the same shape (FieldsV1).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simulation.cluster.interface import Object

_Path = tuple[str, ...]
_ITSELF = "."


def tracked(new: Object, old: Object | None, *, manager: str, subresource: str, now: str) -> list[Object]:
    """The entries after a write: what it has set is its manager's, what it has removed is nobody's.

    A Node that was created with nothing that is tracked never gets entries: the real server begins at a create or
    not at all (structured-merge-diff's skipNonAppliedManager).
    """
    known: list[Object] = (old or {}).get("metadata", {}).get("managedFields", [])
    if old is not None and not known:
        return []
    before = dict(_leaves(old)) if old is not None else {}
    after = dict(_leaves(new))
    changed = {path for path, value in after.items() if path not in before or before[path] != value}
    if not changed and before.keys() == after.keys():
        return known
    entries: list[Object] = []
    mine: set[_Path] = set()
    for entry in known:
        paths = (set(_parse(entry["fieldsV1"])) & after.keys()) - changed
        if entry["manager"] == manager and entry.get("subresource", "") == subresource and changed:
            mine = paths
        elif paths:
            entries.append({**entry, "fieldsV1": _fields(paths)})
    if changed:
        entries.append(_entry(manager, mine | changed, subresource=subresource, now=now))
    return sorted(entries, key=lambda entry: (entry["time"], entry["manager"]))


def manager_of(field_manager: str, user_agent: str) -> str:
    """The manager of a request: the query's `fieldManager`, else the User-Agent up to its first slash, cut to 128
    (staging/src/k8s.io/apiserver/pkg/endpoints/handlers/create.go, managerOrUserAgent)."""
    if field_manager:
        return field_manager
    name = user_agent.partition("/")[0]
    return "".join(letter for letter in name if letter.isprintable())[:128] or "unknown"


def _entry(manager: str, paths: set[_Path], *, subresource: str, now: str) -> Object:
    entry: Object = {
        "manager": manager,
        "operation": "Update",
        "apiVersion": "v1",
        "time": now,
        "fieldsType": "FieldsV1",
        "fieldsV1": _fields(paths),
    }
    return {**entry, "subresource": subresource} if subresource else entry


def _leaves(document: Object) -> Iterator[tuple[_Path, Any]]:
    for key, value in (document.get("spec") or {}).items():
        yield ("spec", key), value
    for place in ("labels", "annotations"):
        entries = document["metadata"].get(place) or {}
        if entries:
            yield ("metadata", place, _ITSELF), None
        for key, value in entries.items():
            yield ("metadata", place, key), value


def _fields(paths: set[_Path]) -> Object:
    tree: Object = {}
    for path in sorted(paths):
        below = tree
        for key in path:
            below = below.setdefault(key if key == _ITSELF else f"f:{key}", {})
    return tree


def _parse(fields: Object, path: _Path = ()) -> Iterator[_Path]:
    for key, below in fields.items():
        here = (*path, key.removeprefix("f:"))
        if below:
            yield from _parse(below, here)
        else:
            yield here
