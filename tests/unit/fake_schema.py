"""What the API server does with a custom resource before it stores it: prune, fill in defaults, refuse."""

import re
from functools import lru_cache
from typing import Any

from tests.crds import DEFINITIONS, Schema, schema_of

PLURALS = {definition["spec"]["names"]["plural"]: kind for kind, definition in DEFINITIONS.items()}

_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}


class SchemaError(ValueError):
    """A value that the schema refuses; the text names the field."""


@lru_cache
def schema(plural: str) -> Schema:
    """The schema of a collection's spec and status."""
    return schema_of(PLURALS[plural])


def admitted(plural: str, document: dict[str, Any]) -> dict[str, Any]:
    """The document as it is stored. Raises SchemaError."""
    rules = schema(plural)
    kept: dict[str, Any] = {
        key: document[key] for key in ("apiVersion", "kind", "metadata") if key in document
    }
    for key in rules.get("required", ()):
        if key not in document:
            raise SchemaError(f"{key}: Required value")
    for key, below in rules["properties"].items():
        if document.get(key) is not None:
            kept[key] = _admitted(document[key], below, key)
    return kept


def _admitted(value: Any, rules: Schema, path: str) -> Any:
    kind = rules["type"]
    if not _is(value, kind):
        raise SchemaError(f"{path}: must be of type {kind}, got {value!r}")
    match kind:
        case "object":
            return _object(value, rules, path)
        case "array":
            if len(value) > rules.get("maxItems", len(value)):
                raise SchemaError(f"{path}: must have at most {rules['maxItems']} items, has {len(value)}")
            return [_admitted(item, rules["items"], f"{path}[{place}]") for place, item in enumerate(value)]
        case "string":
            _check_text(value, rules, path)
        case _:
            if value < rules.get("minimum", value):
                raise SchemaError(f"{path}: must be at least {rules['minimum']}, is {value}")
    return value


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _object(value: dict[str, Any], rules: Schema, path: str) -> dict[str, Any]:
    known = {}
    for key, below in rules.get("properties", {}).items():
        if value.get(key) is not None:
            known[key] = _admitted(value[key], below, f"{path}.{key}")
        elif "default" in below:
            known[key] = below["default"]
    for key in rules.get("required", ()):
        if key not in known:
            raise SchemaError(f"{path}.{key}: Required value")
    return known


def _check_text(value: str, rules: Schema, path: str) -> None:
    if len(value) > rules.get("maxLength", len(value)) or len(value) < rules.get("minLength", 0):
        raise SchemaError(f"{path}: is {len(value)} characters long")
    if "enum" in rules and value not in rules["enum"]:
        raise SchemaError(f"{path}: unsupported value {value!r}, supported: {rules['enum']}")
    if "pattern" in rules and not re.search(rules["pattern"], value):
        raise SchemaError(f"{path}: {value!r} does not match {rules['pattern']}")
