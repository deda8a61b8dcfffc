"""Protobuf messages declared as annotated classes: one table with numbers for the wire and types for mypy.

Descriptors are built from it at import, without protoc and generated code, because what we need of a few frozen
interfaces fits on two pages, while generated code is longer, untyped, and refuses other protobuf releases.

    @message
    class Device(Message):
        name: Annotated[str, 1] = ""
        ports: Annotated[Sequence[int], 2] = ()
        topology: Annotated[Topology, 3] = ABSENT

Only what is on the wire counts: field and message names are ours, and fields that are not declared are skipped.
`int` stands for int32, int64, uint64 below 2^63 and for enums, which are all written alike (protobuf.dev,
encoding, "base 128 varints"); sint, fixed and floating types are not supported.
"""

from __future__ import annotations

import collections.abc
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar, dataclass_transform, get_args, get_origin
from typing import get_type_hints as _type_hints

from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

__all__ = ["ABSENT", "DecodeError", "Message", "message"]

ABSENT: Any = None
"""The default of a field that holds a message: not there, which `HasField` tells from an empty one."""

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    str: _Field.TYPE_STRING,
    bytes: _Field.TYPE_BYTES,
    bool: _Field.TYPE_BOOL,
    int: _Field.TYPE_INT64,
}
# Not the process's default pool: other programs' messages of the same name would be in the way.
_POOL = descriptor_pool.DescriptorPool()

_Declared = TypeVar("_Declared")


class Message:
    """What every message has. Reading an absent field gives its default; for a message that is an empty one."""

    if TYPE_CHECKING:

        def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's own names
            """The message's bytes."""

        def HasField(self, name: str) -> bool:  # noqa: N802
            """Whether this field, which holds a message, is there. Raises ValueError for any other field."""

        @classmethod
        def FromString(cls, data: bytes) -> Self:  # noqa: N802
            """The message in these bytes. Raises DecodeError."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
def message(declared: type[_Declared]) -> type[_Declared]:
    """The protobuf class of a declaration. Messages that it refers to have to be declared before it."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{declared.__module__}.{declared.__name__}.proto", package=declared.__module__, syntax="proto3"
    )
    described = file.message_type.add(name=declared.__name__)
    for name, hint in _type_hints(declared, include_extras=True).items():
        if get_origin(hint) is not Annotated:
            raise TypeError(f"{declared.__name__}.{name}: expected Annotated[TYPE, NUMBER], not {hint}")
        kind, number = get_args(hint)
        field = described.field.add(name=name, number=number, label=_Field.LABEL_OPTIONAL)
        if get_origin(kind) is collections.abc.Mapping:
            field.label, field.type = _Field.LABEL_REPEATED, _Field.TYPE_MESSAGE
            entry = _add_entry(described, name, get_args(kind), file)
            field.type_name = f".{file.package}.{declared.__name__}.{entry}"
        elif get_origin(kind) is collections.abc.Sequence:
            field.label = _Field.LABEL_REPEATED
            _set_type(field, get_args(kind)[0], file)
        else:
            _set_type(field, kind, file)
    _POOL.AddSerializedFile(file.SerializeToString())
    descriptor = _POOL.FindMessageTypeByName(f"{file.package}.{declared.__name__}")
    built: type[_Declared] = message_factory.GetMessageClass(descriptor)
    return built


def _add_entry(described: Any, name: str, kinds: tuple[Any, ...], file: Any) -> str:
    """Declare the pairs that a map is made of on the wire; their type's name, which protobuf prescribes."""
    entry = described.nested_type.add(name="".join(word.title() for word in name.split("_")) + "Entry")
    entry.options.map_entry = True
    for number, (part, kind) in enumerate(zip(("key", "value"), kinds, strict=True), start=1):
        _set_type(entry.field.add(name=part, number=number, label=_Field.LABEL_OPTIONAL), kind, file)
    return str(entry.name)


def _set_type(field: Any, kind: Any, file: Any) -> None:
    """Give a field its type; a message's file becomes a dependency of this one."""
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
        return
    descriptor = getattr(kind, "DESCRIPTOR", None)
    if descriptor is None:
        raise TypeError(f"{field.name}: {kind} is none of str, bytes, bool, int and the messages before it")
    field.type, field.type_name = _Field.TYPE_MESSAGE, f".{descriptor.full_name}"
    if descriptor.file.name not in file.dependency:
        file.dependency.append(descriptor.file.name)
