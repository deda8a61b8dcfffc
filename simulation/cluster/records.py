"""What passes between the store and its users, and how objects are kept: keys, bytes, writers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from simulation.cluster.errors import Cause, bad_request, invalid
from simulation.cluster.interface import Object
from simulation.cluster.resources import ResourceType

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, object]).decode


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes, how wrong their server's clock is, and whether a field that is not in the schema is refused."""

    manager: str = "simulation"
    skew_seconds: float = 0.0
    strict: bool = False


SIMULATION = Writer()


@dataclass(frozen=True, slots=True)
class Written:
    """What a write left: the object's bytes, whether it was created by it, and which fields were not taken."""

    data: bytes
    created: bool = False
    pruned: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Removed:
    """What a delete left: the object as it was last, and whether it is gone."""

    data: bytes
    gone: bool


def key_of(resource: ResourceType, namespace: str, name: str) -> str:
    """An object's key in its table."""
    return f"{namespace}/{name}" if resource.namespaced else name


def refuse_unknown(
    resource: ResourceType, pruned: Sequence[str], writer: Writer, *, patched: bool = False
) -> None:
    """Raises StoreError 400, to a patch 422, where fields were pruned that the writer wants to hear of."""
    if pruned and writer.strict:
        unknown = ", ".join(f'unknown field "{path}"' for path in pruned)
        if patched:
            message = f"Invalid value: strict decoding error: {unknown}"
            raise invalid("", "", "", [Cause("FieldValueInvalid", message, "patch")])
        kind = resource.kind
        raise bad_request(
            f'{kind} in version "{resource.version}" cannot be handled as a {kind}: strict decoding error: {unknown}'
        )


def encoded(resource: ResourceType, document: Object) -> bytes:
    """An object, without kind and apiVersion, as it is kept: with them, in front."""
    return resource.prefix + _encode(document)[1:]


def loads(data: bytes) -> Object:
    """A fresh copy of an object that is kept."""
    return _decode(data)


def own(resource: ResourceType, body: Object) -> Object:
    """The object without kind and apiVersion. Raises StoreError 400 where they are of another kind."""
    if not isinstance(body, dict):
        raise bad_request("an object is expected")
    kind, version = body.get("kind"), body.get("apiVersion")
    if resource.custom and version not in (None, "", resource.api_version):
        raise bad_request(_other_version(resource, version))
    if kind not in (None, "", resource.kind):
        raise bad_request(
            f"{version}, Kind={kind} is not a {resource.kind}: the object provided is unrecognized "
            f"(must be of type {resource.kind})"
        )
    if version not in (None, "", resource.api_version):
        raise bad_request(_other_version(resource, version))
    return {key: value for key, value in body.items() if key not in ("kind", "apiVersion")}


def _other_version(resource: ResourceType, version: object) -> str:
    return f"the API version in the data ({version}) does not match the expected API version ({resource.api_version})"
