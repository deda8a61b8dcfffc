"""Layered configuration: flag, then environment, then file, then default, into a frozen struct.

A program describes its configuration once, as a msgspec struct with defaults. `load` fills it:

    class AgentConfig(msgspec.Struct, frozen=True, rename="camel"):
        listen: ListenAddress = ListenAddress(":9400")
        sample_interval: Duration = Duration(1)

    loaded = load(AgentConfig, file=path, environ=os.environ, flags=given, prefix="SICKBAY_AGENT_")
    loaded.value.sample_interval, loaded.origin["sampleInterval"]  # "flag" | "env" | "file" | "default"

The file's key is the struct's encoded name, the variable is the prefix and the Python name in upper case
(`SICKBAY_AGENT_SAMPLE_INTERVAL`); a struct inside the struct adds its own name before those of its fields.
A variable that is set but empty counts as not set.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

import msgspec

from runtime.config_error import MISSING, ConfigError, UnknownKeyError, nearest
from runtime.schema import bare, convert, is_struct
from runtime.yaml_document import parse_yaml, read_yaml

__all__ = [
    "ConfigError",
    "Loaded",
    "Origin",
    "UnknownKeyError",
    "decode_yaml_document",
    "load",
    "load_yaml_document",
]

T = TypeVar("T")
Origin = Literal["flag", "env", "file", "default"]

# In every pod Kubernetes sets variables for every Service of the namespace (`enableServiceLinks`): a
# Service called `sickbay-agent` would otherwise look like configuration.
_SERVICE_LINK = re.compile(
    r"(.*_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """A configuration and where each of its values comes from; `origin` is by dotted file key."""

    value: T
    origin: Mapping[str, Origin]


@dataclass(frozen=True, slots=True)
class _Leaf:
    """One value of the configuration: its path in Python names, in file keys, and its type."""

    names: tuple[str, ...]
    keys: tuple[str, ...]
    type: Any

    @property
    def name(self) -> str:
        return ".".join(self.names)

    @property
    def key(self) -> str:
        return ".".join(self.keys)

    def variable(self, prefix: str) -> str:
        return prefix + "_".join(self.names).upper()


def load(
    struct_type: type[T],
    *,
    file: Path | None,
    environ: Mapping[str, str],
    flags: Mapping[str, object],
    prefix: str,
) -> Loaded[T]:
    """The configuration of this process.

    `flags` are by dotted Python name (`kernel_log`, `kubelet.port`) with text or typed values; None is a flag
    that was not given. Raises ConfigError, which names the file, variable or flag that holds the wrong value.
    """
    leaves = list(_leaves(struct_type))
    document = _file_layer(file)
    origin: dict[str, Origin] = {
        leaf.key: "file" if _has(document, leaf.keys) else "default" for leaf in leaves
    }
    sources: dict[str, str] = {}
    _refuse_unknown_variables(leaves, environ, prefix)
    for leaf, layer, source, value in _overrides(leaves, environ, flags, prefix):
        _put(document, leaf.keys, _plain(value, leaf, source))
        origin[leaf.key] = layer
        sources[leaf.key] = source
    try:
        value = convert(document, struct_type, file=file)
    except ConfigError as error:
        raise _blame(error, sources) from error
    return Loaded(value, origin)


def load_yaml_document(path: Path, struct_type: type[T]) -> T:
    """The YAML file at `path` as a `struct_type`. Raises ConfigError."""
    return _document(read_yaml(path), struct_type, path)


def decode_yaml_document(text: bytes | str, struct_type: type[T], *, file: Path | None = None) -> T:
    """YAML text as a `struct_type`; `file` is for the error's text. Raises ConfigError."""
    return _document(parse_yaml(text, file=file), struct_type, file)


def _document(document: object, struct_type: type[T], file: Path | None) -> T:
    if document is None:
        raise ConfigError(file=file, key="", value=MISSING, expected="a document, it is empty")
    return convert(document, struct_type, file=file)


def _file_layer(file: Path | None) -> dict[str, Any]:
    document = read_yaml(file) if file else None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(file=file, key="", value=document, expected="a mapping of keys to values")
    return document


def _leaves(struct: Any, names: tuple[str, ...] = (), keys: tuple[str, ...] = ()) -> Iterator[_Leaf]:
    for field in msgspec.structs.fields(struct):
        path = (*names, field.name), (*keys, field.encode_name)
        if is_struct(inner := bare(field.type)):
            yield from _leaves(inner, *path)
        else:
            yield _Leaf(*path, field.type)


def _overrides(
    leaves: list[_Leaf], environ: Mapping[str, str], flags: Mapping[str, object], prefix: str
) -> Iterator[tuple[_Leaf, Origin, str, object]]:
    """What environment and flags say, the stronger one last."""
    by_name = {leaf.name: leaf for leaf in leaves}
    for leaf in leaves:
        variable = leaf.variable(prefix)
        if (text := environ.get(variable)) and not _is_service_link(variable.removeprefix(prefix), text):
            yield leaf, "env", f"environment variable {variable}", text
    for name, value in flags.items():
        if value is not None:
            yield by_name[name], "flag", f"flag --{name.replace('.', '-').replace('_', '-')}", value


def _refuse_unknown_variables(leaves: list[_Leaf], environ: Mapping[str, str], prefix: str) -> None:
    known = {leaf.variable(prefix) for leaf in leaves}
    for variable, text in environ.items():
        rest = variable.removeprefix(prefix)
        if variable.startswith(prefix) and variable not in known and not _is_service_link(rest, text):
            raise UnknownKeyError(
                source="environment",
                key=variable,
                value=text,
                expected=", ".join(sorted(known)),
                nearest=nearest(variable, known),
            )


def _is_service_link(rest: str, text: str) -> bool:
    return bool(_SERVICE_LINK.fullmatch(rest)) or (rest.endswith("PORT") and "://" in text)


def _plain(value: object, leaf: _Leaf, source: str) -> object:
    """What a file would hold for the text of a variable or flag."""
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, str):
        return value
    inner = bare(leaf.type)
    if (get_origin(inner) or inner) in (list, tuple, set, frozenset, dict):
        return _collection(value, leaf, source)
    return _scalar(value, inner)


def _scalar(text: str, type_: Any) -> object:
    if type_ not in (bool, int, float):
        return text
    try:
        return msgspec.convert(text.strip(), type_, strict=False)
    except msgspec.ValidationError:
        return text


def _collection(text: str, leaf: _Leaf, source: str) -> object:
    """`a,b` or YAML's `[a, b]` and `{k: v}`."""
    if text.lstrip()[:1] not in ("[", "{"):
        items = get_args(bare(leaf.type)) or (str,)
        return [_scalar(part.strip(), bare(items[0])) for part in text.split(",")]
    try:
        return parse_yaml(text, file=None)
    except ConfigError as error:
        raise ConfigError(source=source, key=leaf.key, value=text, expected=error.expected) from error


def _has(document: object, keys: tuple[str, ...]) -> bool:
    for key in keys:
        if not isinstance(document, Mapping) or key not in document:
            return False
        document = document[key]
    return True


def _put(document: dict[str, Any], keys: tuple[str, ...], value: object) -> None:
    for key in keys[:-1]:
        inner = document.get(key)
        document[key] = dict(inner) if isinstance(inner, Mapping) else {}
        document = document[key]
    document[keys[-1]] = value


def _blame(error: ConfigError, sources: Mapping[str, str]) -> ConfigError:
    """The same error, but of the variable or flag where the value came from one."""
    for key, source in sources.items():
        if error.key == key or error.key.startswith((f"{key}.", f"{key}[")):
            return type(error)(
                source=source,
                key=error.key,
                value=error.value,
                expected=error.expected,
                nearest=error.nearest,
            )
    return error
