"""Strategic merge patch: lists of objects are merged by a key, lists of words as sets.

What a merged list holds comes in the patch's order, with what only the old list had put where it stood relative to it
(staging/src/k8s.io/apimachinery/pkg/util/strategicpatch, mergeSortedSlice).

Which list has which key is written in Go tags (`patchMergeKey`) of the types in staging/src/k8s.io/api; those that
the kinds of this server have are below. A list that is not named is replaced as a whole. `$setElementOrder` is
accepted, and changes no order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from simulation.cluster.patches import Json, PatchError, without_nulls

_KEYS: dict[str, str] = {
    "conditions": "type",
    "addresses": "type",
    "ownerReferences": "uid",
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
    "schedulingGates": "name",
    "podIPs": "ip",
    "secrets": "name",
}
_SETS = frozenset({"finalizers", "podCIDRs"})
_PORT_KEYS = {"containers": "containerPort", "initContainers": "containerPort", "spec": "port"}


def strategic_merge(target: Json, patch: Json) -> Json:
    """The object with the patch applied; nothing is changed in place. Raises PatchError."""
    if not isinstance(patch, dict):
        raise PatchError("a strategic merge patch is an object")
    return _merge(target, patch, "")


def _merge(target: Json, patch: dict[str, Json], place: str) -> Json:
    match patch.get("$patch"):
        case "replace":
            return _plain(patch)
        case "delete":
            return {}
        case None | "merge":
            pass
        case other:
            raise PatchError(f"unknown patch type: {other} in map: {patch}")
    kept = patch.get("$retainKeys")
    merged: dict[str, Json] = dict(target) if isinstance(target, dict) else {}
    if isinstance(kept, list):
        merged = {key: value for key, value in merged.items() if key in kept}
    for key, value in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            name = key.partition("/")[2]
            merged[name] = [item for item in merged.get(name) or [] if item not in value]
        elif key.startswith("$"):
            continue
        elif value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value, key, place)
    return merged


def _merged(target: Json, value: Json, key: str, place: str) -> Json:
    if isinstance(value, dict):
        return _merge(target, value, key)
    if not isinstance(value, list):
        return value
    if key in _SETS:
        return _ordered(
            target or [], list(dict.fromkeys(value)), [*(target or []), *value], lambda item: item
        )
    merge_key = _PORT_KEYS.get(place) if key == "ports" else _KEYS.get(key)
    if merge_key is None:
        return without_nulls(value)
    return _merge_list(target if isinstance(target, list) else [], value, merge_key, key)


def _merge_list(target: list[Json], patch: list[Json], merge_key: str, name: str) -> list[Json]:
    if any(not isinstance(item, dict) for item in patch):
        raise PatchError(f"{name}: every item must be an object")
    if any(item.get("$patch") == "replace" for item in patch):
        return [_plain(item) for item in patch if set(item) != {"$patch"}]
    merged = list(target)
    wanted = []
    for item in patch:
        if merge_key not in item:
            raise PatchError(f"map: {item} does not contain declared merge key: {merge_key}")
        found = _find(merged, merge_key, item[merge_key])
        if item.get("$patch") == "delete":
            merged = [old for old in merged if old.get(merge_key) != item[merge_key]]
            continue
        wanted.append(item[merge_key])
        if found is None:
            merged.append(_plain(item))
        else:
            merged[found] = _merge(merged[found], item, name)
    return _ordered(target, wanted, merged, lambda item: item.get(merge_key))


def _find(items: list[Any], key: str, value: Json) -> int | None:
    return next((place for place, item in enumerate(items) if item.get(key) == value), None)


def _ordered(
    target: list[Json], wanted: list[Json], merged: list[Json], key: Callable[[Json], Json]
) -> list[Json]:
    """Those of the patch in its order, each other before the first of them that it stood before."""
    before = [key(item) for item in target]
    patched = [next(item for item in merged if key(item) == name) for name in wanted]
    others = [item for item in merged if key(item) not in wanted]
    placed: list[Json] = []
    while others or patched:
        if not patched or (others and _stood_before(before, key(others[0]), key(patched[0]))):
            placed.append(others.pop(0))
        else:
            placed.append(patched.pop(0))
    return placed


def _stood_before(order: list[Json], one: Json, other: Json) -> bool:
    return one in order and other in order and order.index(one) < order.index(other)


def _plain(patch: dict[str, Json]) -> dict[str, Json]:
    """What a patch brings where nothing was: without its directives and nulls."""
    plain: dict[str, Json] = without_nulls({key: value for key, value in patch.items() if key[:1] != "$"})
    return plain
