"""The `x-kubernetes-validations` of the deployed definitions, by their text.

This is no CEL: each rule that occurs has its Python below, and a definition with another rule is refused when it is
loaded. A rule with `oldSelf` is asked when there is an old value and a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from simulation.cluster.errors import Cause

Schema = Mapping[str, Any]


def _same(new: Any, old: Any) -> bool:
    """`self == oldSelf` (nodeName, nodeUID, bootID, mode of a remediation)."""
    return bool(new == old)


def _policy_stays(new: Any, old: Any) -> bool:
    """The remediation's policy neither changes nor appears nor goes."""
    return bool(new.get("policy") == old.get("policy") and ("policy" in new) == ("policy" in old))


def _is_default(new: Any, _old: Any) -> bool:
    """There is one AcceleratorControl."""
    return bool(new.get("metadata", {}).get("name") == "default")


RULES: dict[str, tuple[bool, Callable[[Any, Any], bool]]] = {
    "self == oldSelf": (True, _same),
    "has(self.policy) == has(oldSelf.policy) && (!has(self.policy) || self.policy == oldSelf.policy)": (
        True,
        _policy_stays,
    ),
    "self.metadata.name == 'default'": (False, _is_default),
}
"""Every rule that this server knows: whether it needs an old value, and what it asks."""


class UnknownRuleError(ValueError):
    """A validation rule that has no Python here."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule at its place. `path` is empty for the object itself."""

    path: tuple[str, ...]
    transition: bool
    holds: Callable[[Any, Any], bool]
    message: str
    field_path: str
    kind: str

    def ask(self, new: Any, old: Any) -> Cause | None:
        """What is wrong with `new`, where `old` was before (None at a create)."""
        value, before = _at(new, self.path), _at(old, self.path)
        if value is None or (self.transition and before is None) or self.holds(value, before):
            return None
        place = ".".join(self.path) + self.field_path
        shown = f'"{value}": ' if self.kind == "string" else ""
        return Cause("FieldValueInvalid", f"Invalid value: {shown}{self.message}", place or "<nil>")


def rules_of(schema: Schema, path: tuple[str, ...] = ()) -> Iterator[Rule]:
    """The rules of a schema, outermost first. Raises UnknownRuleError, also for a rule inside of a list."""
    for rule in schema.get("x-kubernetes-validations", ()):
        text = rule["rule"]
        if text not in RULES or "[]" in path:
            raise UnknownRuleError(f"{'.'.join(path) or 'object'}: no such rule is known here: {text}")
        transition, holds = RULES[text]
        yield Rule(path, transition, holds, rule["message"], rule.get("fieldPath", ""), schema["type"])
    for key, below in sorted(schema.get("properties", {}).items()):
        yield from rules_of(below, (*path, key))
    if "items" in schema:
        yield from rules_of(schema["items"], (*path, "[]"))


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value
