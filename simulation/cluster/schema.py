"""Structural schemas of custom resources: prune what they do not name, fill in defaults, refuse what they forbid.

A schema is compiled once into a tree of nodes. What an update has not touched (the same Python object as before) has
been through it already and is passed over, which makes a renewal of a report cheap. Messages are those of
staging/src/k8s.io/apiextensions-apiserver/pkg/apiserver/validation and of k8s.io/kube-openapi.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from runtime.clock import TimestampError, parse_rfc3339
from simulation.cluster.errors import Cause

Schema = Mapping[str, Any]

_KNOWN = {"type", "description", "properties", "items", "required", "enum", "default", "format"} | {
    "minLength",
    "maxLength",
    "pattern",
    "minimum",
    "maximum",
    "maxItems",
    "x-kubernetes-list-type",
    "x-kubernetes-validations",
}
_INT64 = 1 << 63
_TYPES = {"object": dict, "array": list, "string": str, "boolean": bool}
BLOCKING = frozenset(
    {
        "FieldValueNotSupported",
        "FieldValueRequired",
        "FieldValueTooLong",
        "FieldValueTooMany",
        "FieldValueTypeInvalid",
    }
)
"""Causes after which rules are not asked."""


class UnknownKeywordError(ValueError):
    """A schema that says more than this server enforces."""


@dataclass(slots=True)
class Admitted:
    """What became of a value: causes of a refusal, and the paths that were pruned."""

    causes: list[Cause] = field(default_factory=list)
    pruned: list[str] = field(default_factory=list)

    def refuse(self, reason: str, path: str, message: str) -> None:
        self.causes.append(Cause(reason, message, path))


class Node:
    """One schema. `admit` returns the value as it is stored."""

    __slots__ = (
        "_checks",
        "_defaults",
        "_items",
        "_max_items",
        "_properties",
        "_required",
        "_schema",
        "_type",
    )

    def __init__(self, schema: Schema, path: str = "") -> None:
        """Raises UnknownKeywordError, so that a definition cannot ask for what is not enforced."""
        unknown = schema.keys() - _KNOWN
        if unknown:
            raise UnknownKeywordError(f"{path or 'schema'}: {', '.join(sorted(unknown))} is not known here")
        self._schema = schema
        self._type: str = schema["type"]
        self._properties = {
            key: Node(below, f"{path}.{key}") for key, below in schema.get("properties", {}).items()
        }
        self._items = Node(schema["items"], f"{path}[]") if "items" in schema else None
        self._max_items: int | None = schema.get("maxItems")
        self._required: tuple[str, ...] = tuple(schema.get("required", ()))
        self._defaults = {
            key: below["default"] for key, below in schema.get("properties", {}).items() if "default" in below
        }
        self._checks = tuple(_checks(schema))

    def admit(self, value: Any, old: Any, path: str, found: Admitted) -> Any:
        """Prune, default and check `value`. `old` is what was stored there before, None for nothing."""
        if value is old and value is not None:
            return value
        kind = self._type
        if not _is(value, kind):
            text = f'{path} in body must be of type {kind}: "{_name(value)}"'
            if kind == "integer" and isinstance(value, float):
                self._no_int64(path, found)
                return value
            found.refuse("FieldValueTypeInvalid", path, f'Invalid value: "{_name(value)}": {text}')
            if "enum" in self._schema and not isinstance(value, list | dict):
                found.causes.append(_not_supported(value, self._schema["enum"], path))
            return value
        if kind == "object":
            return self._object(value, old if isinstance(old, dict) else {}, path, found)
        if kind == "array":
            return self._array(value, path, found)
        if kind == "integer":
            # Go writes a whole number without a point.
            value = int(value)
            if not -_INT64 <= value < _INT64:
                self._no_int64(path, found)
                return value
        for check in self._checks:
            if (cause := check(value, path)) is not None:
                found.causes.append(cause)
        return value

    def _no_int64(self, path: str, found: Admitted) -> None:
        """A number that Go can only hold as a float64: the real server refuses it twice."""
        text = f'Invalid value: "float64": {path} in body must be of type int64: "float64"'
        found.refuse("FieldValueTypeInvalid", path, text)
        parent, _, name = path.rpartition(".")
        text = f'Invalid value: "": Checked value must be of type integer with format int64 in {name}'
        found.refuse("FieldValueInvalid", parent, text)

    def _object(
        self, value: dict[str, Any], old: dict[str, Any], path: str, found: Admitted
    ) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for key, below in value.items():
            node = self._properties.get(key)
            place = f"{path}.{key}" if path else key
            if node is None:
                found.pruned.append(place)
            elif below is not None:
                # A null is a field that is not there, since none of ours is nullable.
                kept[key] = node.admit(below, old.get(key), place, found)
        for key, default in self._defaults.items():
            if key not in kept:
                kept[key] = default
        for key in self._required:
            if key not in kept:
                found.refuse("FieldValueRequired", f"{path}.{key}" if path else key, "Required value")
        return kept

    def _array(self, value: list[Any], path: str, found: Admitted) -> list[Any]:
        if self._max_items is not None and len(value) > self._max_items:
            message = f"Too many: {len(value)}: must have at most {self._max_items} items"
            found.refuse("FieldValueTooMany", path, message)
        node = self._items
        if node is None:
            return value
        return [node.admit(item, None, f"{path}[{place}]", found) for place, item in enumerate(value)]


def _is(value: Any, kind: str) -> bool:
    if kind == "integer":
        whole = isinstance(value, float) and value.is_integer()
        return (isinstance(value, int) and not isinstance(value, bool)) or whole
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, _TYPES[kind])


def _name(value: Any) -> str:
    """The JSON type of a value, in the validator's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


Check = Callable[[Any, str], Cause | None]


def _checks(schema: Schema) -> list[Check]:
    made: list[Check] = []
    if "maxLength" in schema:
        made.append(_longest(schema["maxLength"]))
    if "minLength" in schema:
        made.append(_shortest(schema["minLength"]))
    if "pattern" in schema:
        made.append(_pattern(schema["pattern"]))
    if "minimum" in schema:
        made.append(_minimum(schema["minimum"]))
    if "maximum" in schema:
        made.append(_maximum(schema["maximum"]))
    if "enum" in schema:
        made.append(_enum(tuple(schema["enum"])))
    if schema.get("format") == "date-time":
        made.append(_time)
    return made


def _longest(limit: int) -> Check:
    message = f"Too long: may not be more than {limit} bytes"
    return lambda value, path: Cause("FieldValueTooLong", message, path) if len(value) > limit else None


def _shortest(limit: int) -> Check:
    def check(value: str, path: str) -> Cause | None:
        if len(value) >= limit:
            return None
        return _wrong(value, path, f"should be at least {limit} chars long")

    return check


def _pattern(pattern: str) -> Check:
    search = re.compile(pattern).search

    def check(value: str, path: str) -> Cause | None:
        return None if search(value) else _wrong(value, path, f"should match '{pattern}'")

    return check


def _minimum(limit: float) -> Check:
    def check(value: float, path: str) -> Cause | None:
        return None if value >= limit else _wrong(value, path, f"should be greater than or equal to {limit}")

    return check


def _maximum(limit: float) -> Check:
    def check(value: float, path: str) -> Cause | None:
        return None if value <= limit else _wrong(value, path, f"should be less than or equal to {limit}")

    return check


def _enum(words: tuple[str, ...]) -> Check:
    allowed = frozenset(words)
    return lambda value, path: None if value in allowed else _not_supported(value, words, path)


def _not_supported(value: Any, words: Sequence[str], path: str) -> Cause:
    shown = f'"{value}"' if isinstance(value, str) else msgspec.json.encode(value).decode()
    supported = ", ".join(f'"{word}"' for word in words)
    message = f"Unsupported value: {shown}: supported values: {supported}"
    return Cause("FieldValueNotSupported", message, path)


def _time(value: str, path: str) -> Cause | None:
    try:
        parse_rfc3339(value)
    except TimestampError:
        text = f'{path} in body must be of type date-time: "{value}"'
        return Cause("FieldValueTypeInvalid", f'Invalid value: "{value}": {text}', path)
    return None


def _wrong(value: Any, path: str, why: str) -> Cause:
    shown = f'"{value}"' if isinstance(value, str) else str(value)
    return Cause("FieldValueInvalid", f"Invalid value: {shown}: {path} in body {why}", path)
