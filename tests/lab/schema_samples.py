"""Objects made from a custom resource's own schema: valid ones, the largest ones, and ones that break one bound."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]
Pointer = tuple[str | int, ...]

TIME = "2026-03-01T12:00:00Z"
WIDE = "\N{MATHEMATICAL SCRIPT CAPITAL X}"
"""Four bytes in UTF-8: lengths in a schema count characters, etcd's limit counts bytes."""


@dataclass(frozen=True, slots=True)
class Break:
    """One value that a schema must refuse, and the field that the refusal must name."""

    pointer: Pointer
    value: Any
    why: str

    @property
    def field(self) -> str:
        """The field as the API server spells it, such as `status.faults[0].kind`."""
        return spell(self.pointer)

    def applied_to(self, value: Any) -> Any:
        """Return a copy of an object with the break in it; a value of None removes the field."""
        broken = copy.deepcopy(value)
        *above, last = self.pointer
        parent = broken
        for step in above:
            parent = parent[step]
        if self.value is None:
            del parent[last]
        else:
            parent[last] = self.value
        return broken


def spell(pointer: Pointer) -> str:
    """Spell a pointer as the API server does."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in pointer).lstrip(".")


def sample(schema: Schema, values: Mapping[str, Any], *, largest: bool = False, name: str = "") -> Any:
    """Return a value with every field set. `values` holds values by field name, for what a schema cannot say.

    With `largest` every list and every string is as long as the schema allows.
    """
    if name in values:
        return values[name]
    match schema["type"]:
        case "object":
            return {
                field: sample(below, values, largest=largest, name=field)
                for field, below in schema["properties"].items()
            }
        case "array":
            item = sample(schema["items"], values, largest=largest)
            return [item] * (schema["maxItems"] if largest else 1)
        case "string":
            return _string(schema, largest=largest)
        case "integer" | "number":
            return schema.get("maximum", schema["minimum"] + 7)
        case "boolean":
            return True
        case other:
            raise AssertionError(f"no sample for a schema of type {other}")


def _string(schema: Schema, *, largest: bool) -> str:
    if "enum" in schema:
        return str(schema["enum"][-1])
    if schema.get("format") == "date-time":
        return TIME
    length = schema["maxLength"] if largest else min(schema["maxLength"], 12)
    pattern = schema.get("pattern", "")
    if "0-9a-f" in pattern:
        return "0" * int(schema["maxLength"])
    if pattern:
        return "A" * int(length)
    return (WIDE if largest else "x") * int(length)


def breaks(schema: Schema, pointer: Pointer, value: Any) -> Iterator[Break]:
    """Every bound of a schema, broken one at a time in a sample of it."""
    match schema["type"]:
        case "object":
            for field in schema.get("required", []):
                yield Break((*pointer, field), None, "required")
            for field, below in schema["properties"].items():
                yield from breaks(below, (*pointer, field), value[field])
        case "array":
            yield Break(pointer, [value[0]] * (schema["maxItems"] + 1), "maxItems")
            yield from breaks(schema["items"], (*pointer, 0), value[0])
        case "string":
            yield from (Break(pointer, bad, why) for why, bad in _bad_strings(schema))
        case "integer" | "number":
            yield Break(pointer, schema["minimum"] - 1, "minimum")
            if "maximum" in schema:
                yield Break(pointer, schema["maximum"] + 1, "maximum")
        case "boolean":
            yield Break(pointer, "yes", "type")


def _bad_strings(schema: Schema) -> Iterator[tuple[str, str]]:
    if "maxLength" in schema:
        yield "maxLength", "A" * (schema["maxLength"] + 1)
    if "minLength" in schema:
        yield "minLength", ""
    if "pattern" in schema:
        yield "pattern", "no word"
    if "enum" in schema:
        yield "enum", "Nonsense"
    if schema.get("format") == "date-time":
        yield "format", "yesterday"
