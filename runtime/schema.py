"""Plain values (of YAML, or of anything like it) into typed ones, with errors a person can act on.

msgspec converts; this walks beside it, because msgspec's own message neither names the key of a mapping
nor knows which word was meant. The types are msgspec structs (unknown keys are errors, whatever the struct
says), lists, tuples, dicts, enums, literals, optionals, scalars, `pathlib.Path`, and any class with a
`parse(value)` classmethod, such as those of `runtime.quantities`.
"""

import enum
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

import msgspec

from runtime.config_error import MISSING, ConfigError, UnknownKeyError, nearest

T = TypeVar("T")

_SEQUENCES = (list, tuple, set, frozenset)
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    types.NoneType: "null",
}


def convert(value: object, type_: type[T], *, file: Path | None = None, key: str = "") -> T:
    """`value` as a `type_`.

    Raises ConfigError for the first thing that does not fit: an unknown or missing key, a wrong type, a
    value outside its enum or bounds, or what the struct's own `__post_init__` refuses by ValueError.
    """
    try:
        return cast(T, _Walk(file).convert(value, type_, key))
    except RecursionError:
        raise ConfigError(
            file=file, key=key, value=MISSING, expected="a document less deeply nested"
        ) from None


def known_keys(struct: type[msgspec.Struct]) -> list[str]:
    """The keys that a mapping for `struct` may have, as they are written in a file."""
    tag = struct.__struct_config__.tag_field
    return [field.encode_name for field in msgspec.structs.fields(struct)] + ([tag] if tag else [])


def is_struct(type_: object) -> typing.TypeGuard[type[msgspec.Struct]]:
    return isinstance(type_, type) and issubclass(type_, msgspec.Struct)


def bare(type_: Any) -> Any:
    """`type_` without Annotated and without the None of an optional."""
    if get_origin(type_) is Annotated:
        return bare(get_args(type_)[0])
    if get_origin(type_) in (Union, types.UnionType):
        arms = [arm for arm in get_args(type_) if arm is not types.NoneType]
        return bare(arms[0]) if len(arms) == 1 else type_
    return type_


class _Walk:
    def __init__(self, file: Path | None) -> None:
        self._file = file

    def convert(self, value: object, type_: Any, key: str) -> object:
        """Children first, so that the deepest wrong thing is the one that is named."""
        arm = _arm(value, type_)
        origin = get_origin(arm) or arm
        if is_struct(origin):
            self._struct(value, arm, key)
        elif origin in _SEQUENCES:
            self._sequence(value, arm, key)
        elif origin is dict:
            self._mapping(value, arm, key)
        try:
            return msgspec.convert(value, type_, dec_hook=_custom)
        except msgspec.ValidationError as error:
            raise self._misfit(value, arm, key, error) from error

    def _struct(self, value: object, struct: type[msgspec.Struct], key: str) -> None:
        if not isinstance(value, Mapping):
            raise self._error(key, value, f"a mapping with the keys {', '.join(known_keys(struct))}")
        known = known_keys(struct)
        for name in value:
            if name not in known:
                raise UnknownKeyError(
                    file=self._file,
                    key=_join(key, str(name)),
                    value=value[name],
                    expected=", ".join(known),
                    nearest=nearest(str(name), known),
                )
        for field in msgspec.structs.fields(struct):
            if field.encode_name in value:
                self.convert(value[field.encode_name], field.type, _join(key, field.encode_name))
            elif field.required:
                raise self._error(_join(key, field.encode_name), MISSING, _describe(field.type))

    def _sequence(self, value: object, type_: Any, key: str) -> None:
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise self._error(key, value, "a list")
        arguments = get_args(type_)
        if arguments and (len(arguments) == 1 or arguments[-1] is Ellipsis):
            for index, item in enumerate(value):
                self.convert(item, arguments[0], f"{key}[{index}]")

    def _mapping(self, value: object, type_: Any, key: str) -> None:
        if not isinstance(value, Mapping):
            raise self._error(key, value, "a mapping")
        for name, item in value.items():
            self.convert(item, (get_args(type_) or (str, Any))[1], _join(key, str(name)))

    def _misfit(self, value: object, type_: Any, key: str, error: msgspec.ValidationError) -> ConfigError:
        choices = _choices(bare(type_))
        if choices:
            return self._error(key, value, _describe(type_), nearest(str(value), choices))
        if bare(type_) is str and isinstance(value, bool | int | float):
            return self._error(key, value, "text (in quotes)")
        return self._error(key, value, _explain(error, type_))

    def _error(self, key: str, value: object, expected: str, near: str | None = None) -> ConfigError:
        return ConfigError(file=self._file, key=key, value=value, expected=expected, nearest=near)


def _custom(type_: type, value: object) -> object:
    """msgspec's hook for the types that it does not know itself."""
    if isinstance(value, type_):
        return value
    if issubclass(type_, Path):
        if not isinstance(value, str) or not value or "\0" in value:
            raise ValueError("a path")
        return type_(value)
    return type_.parse(value)  # type: ignore[attr-defined]


def _arm(value: object, type_: Any) -> Any:
    """The member of a union that has the shape of `value`, `type_` itself where there is no choice."""
    if get_origin(type_) is Annotated:
        inner = get_args(type_)[0]
        return _arm(value, inner) if get_origin(inner) in (Union, types.UnionType) else inner
    if get_origin(type_) not in (Union, types.UnionType):
        return type_
    arms = [arm for arm in get_args(type_) if arm is not types.NoneType]
    if len(arms) == 1:
        return bare(arms[0]) if value is not None else type_
    if isinstance(value, Mapping):
        arms = [arm for arm in arms if is_struct(arm) and _tag_fits(value, arm)] or arms
    elif isinstance(value, list):
        arms = [arm for arm in arms if (get_origin(arm) or arm) in _SEQUENCES]
    return arms[0] if len(arms) == 1 else type_


def _tag_fits(value: Mapping[Any, Any], struct: type[msgspec.Struct]) -> bool:
    config = struct.__struct_config__
    return config.tag_field is None or value.get(config.tag_field) == config.tag


def _choices(type_: Any) -> list[str]:
    if isinstance(type_, type) and issubclass(type_, enum.Enum):
        return [str(member.value) for member in type_]
    if get_origin(type_) is Literal:
        return [str(choice) for choice in get_args(type_)]
    return []


def _describe(type_: Any) -> str:
    inner = bare(type_)
    if choices := _choices(inner):
        return f"one of {', '.join(choices)}"
    if is_struct(inner):
        return f"a mapping with the keys {', '.join(known_keys(inner))}"
    if inner is Path:
        return "a path"
    origin = get_origin(inner) or inner
    if origin in _SEQUENCES:
        return "a list"
    if origin is dict:
        return "a mapping"
    return _WORDS.get(inner) or str(getattr(inner, "expected", inner))


def _explain(error: msgspec.ValidationError, type_: Any) -> str:
    """msgspec's message in words: `Expected `int` <= 5` becomes `a whole number <= 5`."""
    message = str(error).partition(" - at ")[0]
    if not message.startswith("Expected `"):
        return message
    _, _, limit = message.removeprefix("Expected `").partition("`")
    return _describe(type_) if ", got" in limit else f"{_describe(type_)}{limit}"


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
