"""JSON merge patch (RFC 7386) and JSON patch (RFC 6902), as the API server applies them.

Nothing is changed in place: what a patch does not touch is shared between the old value and the new one, so that
a small patch of a large object costs little.
"""

from __future__ import annotations

from typing import Any

Json = Any


class PatchError(ValueError):
    """A patch that cannot be applied; the text says which part."""


def merge(target: Json, patch: Json) -> Json:
    """RFC 7386. Where the patch brings something new, its nulls are dropped, also inside of lists, which is what
    evanphx/json-patch (the API server's) does."""
    if not isinstance(patch, dict) or not isinstance(target, dict):
        return without_nulls(patch)
    merged = dict(target)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def without_nulls(value: Json) -> Json:
    """The value without those keys of its objects that are null; items of lists stay."""
    if isinstance(value, dict):
        return {key: without_nulls(below) for key, below in value.items() if below is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def apply_json_patch(target: Json, operations: Json) -> Json:
    """RFC 6902. Raises PatchError for what is no patch, for a path that is not there, and for a failed test."""
    if not isinstance(operations, list):
        raise PatchError("a JSON patch is a list of operations")
    for operation in operations:
        if not isinstance(operation, dict):
            raise PatchError(f"not an operation: {operation!r}")
        target = _apply(target, operation)
    return target


def _apply(target: Json, operation: dict[str, Json]) -> Json:
    name, path = operation.get("op"), _pointer(operation.get("path"))
    match name:
        case "test":
            if not same(_value_at(target, path), operation.get("value")):
                raise PatchError(f"testing value {operation.get('path')} failed")
            return target
        case "add":
            return _put(target, path, _value_of(operation), insert=True)
        case "replace":
            _value_at(target, path)
            return _put(target, path, _value_of(operation), insert=False)
        case "remove":
            return _remove(target, path)
        case "move":
            source = _pointer(operation.get("from"))
            if path[: len(source)] == source and path != source:
                raise PatchError("a value cannot be moved into itself")
            value = _value_at(target, source)
            return _put(_remove(target, source), path, value, insert=True)
        case "copy":
            return _put(target, path, _value_at(target, _pointer(operation.get("from"))), insert=True)
    raise PatchError(f"unexpected operation {name!r}")


def same(one: Json, other: Json) -> bool:
    """Equality of JSON: true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def _value_of(operation: dict[str, Json]) -> Json:
    if "value" not in operation:
        raise PatchError(f"operation {operation.get('op')} has no value")
    return operation["value"]


def _pointer(path: Json) -> list[str]:
    if not isinstance(path, str) or (path and not path.startswith("/")):
        raise PatchError(f"not a JSON pointer: {path!r}")
    return [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]


def _index(items: list[Json], part: str, *, end: bool) -> int:
    """The place in a list that a part of a pointer names; with `end`, the place after the last as well."""
    if part == "-" and end:
        return len(items)
    if not (part.isascii() and part.isdigit()) or (len(part) > 1 and part[0] == "0"):
        raise PatchError(f"not an index: {part!r}")
    place = int(part)
    if place > len(items) or (place == len(items) and not end):
        raise PatchError(f"index {part} is out of range")
    return place


def _value_at(target: Json, path: list[str]) -> Json:
    for part in path:
        if isinstance(target, dict) and part in target:
            target = target[part]
        elif isinstance(target, list):
            target = target[_index(target, part, end=False)]
        else:
            raise PatchError(f"nonexistent path: /{'/'.join(path)}")
    return target


def _put(target: Json, path: list[str], value: Json, *, insert: bool) -> Json:
    if not path:
        return value
    part, rest = path[0], path[1:]
    if isinstance(target, dict):
        if rest and part not in target:
            raise PatchError(f"nonexistent path: /{part}")
        return {**target, part: _put(target.get(part), rest, value, insert=insert)}
    if not isinstance(target, list):
        raise PatchError(f"nonexistent path: /{part}")
    place = _index(target, part, end=insert and not rest)
    if rest:
        value = _put(target[place], rest, value, insert=insert)
    tail = target[place:] if insert and not rest else target[place + 1 :]
    return [*target[:place], value, *tail]


def _remove(target: Json, path: list[str]) -> Json:
    if not path:
        raise PatchError("the whole object cannot be removed")
    part, rest = path[0], path[1:]
    if isinstance(target, dict):
        if part not in target:
            raise PatchError(f"nonexistent path: /{part}")
        if rest:
            return {**target, part: _remove(target[part], rest)}
        return {key: value for key, value in target.items() if key != part}
    if isinstance(target, list):
        place = _index(target, part, end=False)
        return [*target[:place], *([_remove(target[place], rest)] if rest else []), *target[place + 1 :]]
    raise PatchError(f"nonexistent path: /{part}")
