"""The custom resource definitions beside the Python structs, and where the two differ."""

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import msgspec.inspect
import yaml

from health.report import ReportSpec, ReportStatus
from remediation.objects import ControlSpec, ControlStatus, RemediationSpec, RemediationStatus

CRDS = Path(__file__).parents[1] / "deploy" / "crds"

STRUCTS: dict[str, tuple[type[msgspec.Struct], type[msgspec.Struct]]] = {
    "AcceleratorReport": (ReportSpec, ReportStatus),
    "AcceleratorRemediation": (RemediationSpec, RemediationStatus),
    "AcceleratorControl": (ControlSpec, ControlStatus),
}

ENUM_OF_A_STRING = {"AcceleratorRemediation.status.conditions[].status": ["True", "False", "Unknown"]}
"""Where the API server is stricter than the struct: the words of meta/v1, which only Kubernetes may add to."""

Schema = dict[str, Any]
DEFINITIONS: dict[str, Schema] = {
    definition["spec"]["names"]["kind"]: definition
    for definition in (yaml.safe_load(path.read_text()) for path in sorted(CRDS.glob("*.yaml")))
}


def version_of(kind: str) -> Schema:
    """The one version of a definition."""
    version: Schema
    (version,) = DEFINITIONS[kind]["spec"]["versions"]
    return version


def schema_of(kind: str) -> Schema:
    """The schema of the whole object."""
    return dict(version_of(kind)["schema"]["openAPIV3Schema"])


def nodes(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Every schema below and with this one, with its path."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")


def differences(found: msgspec.inspect.Type, schema: Schema, path: str) -> list[str]:
    """Where a Python type and a schema do not say the same."""
    match found:
        case msgspec.inspect.UnionType(types=types):
            (inner,) = (item for item in types if not isinstance(item, msgspec.inspect.NoneType))
            return differences(inner, schema, path)
        case msgspec.inspect.StructType(fields=fields):
            return expect(schema, path, type="object") + struct_differences(fields, schema, path)
        case msgspec.inspect.VarTupleType(item_type=item):
            return expect(schema, path, type="array") + differences(
                item, schema.get("items", {}), f"{path}[]"
            )
        case msgspec.inspect.EnumType(cls=words):
            return expect(schema, path, type="string", enum=[word.value for word in words])
        case msgspec.inspect.DateTimeType():
            return expect(schema, path, type="string", format="date-time", enum=None)
        case msgspec.inspect.StrType():
            return expect(schema, path, type="string", format=None, enum=ENUM_OF_A_STRING.get(path))
        case msgspec.inspect.IntType():
            return expect(schema, path, type="integer", format="int64")
        case msgspec.inspect.FloatType():
            return expect(schema, path, type="number", format="double")
        case msgspec.inspect.BoolType():
            return expect(schema, path, type="boolean")
    return [f"{path}: no schema is known for {found}"]


def struct_differences(fields: tuple[msgspec.inspect.Field, ...], schema: Schema, path: str) -> list[str]:
    properties = schema.get("properties", {})
    names = {field.encode_name for field in fields}
    wrong = [f"{path}.{name}: not in the struct" for name in properties.keys() - names]
    required = {field.encode_name for field in fields if field.required}
    if set(schema.get("required", [])) != required:
        wrong.append(f"{path}: required {schema.get('required', [])}, in the struct {sorted(required)}")
    for field in fields:
        where = f"{path}.{field.encode_name}"
        if field.encode_name not in properties:
            wrong.append(f"{where}: not in the schema")
            continue
        below = properties[field.encode_name]
        wrong += differences(field.type, below, where)
        wrong += expect(below, where, default=default_of(field))
    return wrong


def default_of(field: msgspec.inspect.Field) -> object:
    """The default that the API server fills in: what an absent field means, unless it means nothing."""
    value = field.default
    if value is msgspec.NODEFAULT or isinstance(value, msgspec.Struct) or not value:
        return None
    return value.value if isinstance(value, Enum) else value


def expect(schema: Schema, path: str, **wanted: object) -> list[str]:
    return [
        f"{path}: {key} is {schema.get(key)!r}, in the struct {value!r}"
        for key, value in wanted.items()
        if schema.get(key) != value
    ]


def all_differences(kind: str, schema: Schema) -> list[str]:
    spec, status = STRUCTS[kind]
    properties = schema["properties"]
    return [
        *differences(msgspec.inspect.type_info(spec), properties["spec"], f"{kind}.spec"),
        *differences(msgspec.inspect.type_info(status), properties["status"], f"{kind}.status"),
    ]
