"""Label and field selectors: parsed once, asked about encoded objects.

An object is decoded only when it can match: a value that must be equal must be somewhere in its bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from simulation.cluster.errors import bad_request
from simulation.cluster.resources import ResourceType

_SET = re.compile(r"^\s*(?P<key>[^\s!=,()]+)\s+(?P<op>in|notin)\s+\((?P<values>[^()]*)\)\s*$")
_EQUAL = re.compile(r"^\s*(?P<key>[^\s!=,()]+)\s*(?P<op>==|=|!=)\s*(?P<value>[^\s!=,()]*)\s*$")
_EXISTS = re.compile(r"^\s*(?P<not>!?)\s*(?P<key>[^\s!=,()]+)\s*$")
_PLAIN = re.compile(r"^[A-Za-z0-9_.:/-]+$")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One term. `allowed` None: the key must be there; with `negate`, the term must not hold."""

    key: str
    allowed: frozenset[str] | None
    negate: bool

    def holds(self, values: Mapping[str, str]) -> bool:
        value = values.get(self.key)
        found = value is not None and (self.allowed is None or value in self.allowed)
        return found is not self.negate


class _Labelled(msgspec.Struct, frozen=True):
    labels: dict[str, str] | None = None


class _Object(msgspec.Struct, frozen=True):
    metadata: _Labelled = _Labelled()


_labels_of = msgspec.json.Decoder(_Object).decode


@dataclass(frozen=True, slots=True)
class Selection:
    """What a list or a watch asks for: a namespace (empty: all), a name (empty: all), and selectors."""

    namespace: str
    name: str
    labels: tuple[Requirement, ...]
    fields: tuple[Requirement, ...]
    paths: Mapping[str, Callable[[Any], str]]
    needles: tuple[bytes, ...]

    @property
    def selective(self) -> bool:
        """Whether there is more to it than namespace and name."""
        return bool(self.labels or self.fields)

    def matches(self, key: str, data: bytes) -> bool:
        """Whether an object, encoded, is selected. `key` is its `NAMESPACE/NAME`, or its name."""
        return self.covers(key) and self.passes(data)

    def covers(self, key: str) -> bool:
        """Whether a key is of the namespace and name that are asked for."""
        if self.namespace and not key.startswith(f"{self.namespace}/"):
            return False
        return not self.name or key.rpartition("/")[2] == self.name

    def passes(self, data: bytes) -> bool:
        """Whether the selectors hold."""
        if any(needle not in data for needle in self.needles):
            return False
        if self.labels:
            labels = _labels_of(data).metadata.labels or {}
            if not all(term.holds(labels) for term in self.labels):
                return False
        if not self.fields:
            return True
        document = msgspec.json.decode(data)
        values = {term.key: self.paths[term.key](document) for term in self.fields}
        return all(term.holds(values) for term in self.fields)


def selection(
    resource: ResourceType, *, namespace: str = "", name: str = "", labels: str = "", fields: str = ""
) -> Selection:
    """Raises StoreError 400 for a selector that cannot be parsed, or a field that the resource has not."""
    label_terms = _parse_labels(labels)
    field_terms = _parse_fields(fields, resource)
    for term in field_terms:
        if term.key == "metadata.name" and not term.negate and term.allowed:
            (wanted,) = term.allowed
            name = name or wanted
    return Selection(
        namespace=namespace,
        name=name,
        labels=label_terms,
        fields=tuple(term for term in field_terms if (term.key, term.negate, term.allowed) != _by_name(name)),
        paths=resource.fields,
        needles=tuple(_needles((*label_terms, *field_terms))),
    )


def everything(resource: ResourceType, *, labels: Mapping[str, str] | None = None) -> Selection:
    """All of a resource, or what has these labels."""
    terms = tuple(Requirement(key, frozenset({value}), False) for key, value in (labels or {}).items())
    return Selection("", "", terms, (), resource.fields, tuple(_needles(terms)))


def _by_name(name: str) -> tuple[str, bool, frozenset[str]]:
    return "metadata.name", False, frozenset({name})


def _needles(terms: Sequence[Requirement]) -> list[bytes]:
    """Bytes that an object must have to match. Booleans and numbers are not written as their text, and a default
    is not written at all: only what looks like a name is looked for."""
    found = []
    for term in terms:
        if term.negate or term.allowed is None or len(term.allowed) != 1:
            continue
        (value,) = term.allowed
        if _PLAIN.match(value) and value not in ("true", "false") and not value.isdigit():
            found.append(f'"{value}"'.encode())
    return found


def _parse_labels(text: str) -> tuple[Requirement, ...]:
    return tuple(_label_term(part) for part in _split(text) if part.strip())


def _label_term(part: str) -> Requirement:
    if match := _SET.match(part):
        values = frozenset(value.strip() for value in match["values"].split(","))
        return Requirement(match["key"], values, match["op"] == "notin")
    if match := _EQUAL.match(part):
        return Requirement(match["key"], frozenset({match["value"]}), match["op"] == "!=")
    if match := _EXISTS.match(part):
        return Requirement(match["key"], None, bool(match["not"]))
    raise bad_request(f"unable to parse requirement: {part.strip()!r} is not a requirement")


def _split(text: str) -> list[str]:
    """At the commas that are not in brackets."""
    return re.split(r",(?![^()]*\))", text)


def _parse_fields(text: str, resource: ResourceType) -> tuple[Requirement, ...]:
    terms = []
    for part in text.split(","):
        if not part.strip():
            continue
        match = re.match(r"^([^=!]+?)(!=|==|=)(.*)$", part)
        if match is None:
            raise bad_request(f"invalid selector: '{text}'; can't understand '{part}'")
        key, operator, value = match.groups()
        if key not in resource.fields:
            raise bad_request(f"field label not supported: {key}")
        terms.append(Requirement(key, frozenset({value}), operator == "!="))
    return tuple(terms)
