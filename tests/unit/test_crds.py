"""The custom resource definitions and the Python structs are one contract: neither can drift from the other."""

import copy
import re
from collections.abc import Callable, Iterator
from enum import Enum, StrEnum

import msgspec
import pytest

from health.receipt import RECEIPT_DEVICES_LIMIT, RECEIPT_MESSAGE_LIMIT, RECEIPTS_LIMIT
from health.report import AcceleratorReport
from health.vocabulary import API_GROUP, API_VERSION, Advice, ClearsOn, FaultKind
from remediation.objects import JOURNAL_LIMIT, AcceleratorControl, AcceleratorRemediation
from tests.crds import DEFINITIONS, STRUCTS, Schema, all_differences, nodes, schema_of, version_of

SHORT_NAMES = {"AcceleratorReport": "acr", "AcceleratorRemediation": "acrem", "AcceleratorControl": "acctl"}
WORD = "[A-Z][A-Za-z0-9]*"


def test_every_definition_has_its_structs_and_every_struct_its_definition():
    assert DEFINITIONS.keys() == STRUCTS.keys()


@pytest.mark.parametrize("kind", STRUCTS)
def test_schema_and_structs_have_the_same_names_types_words_required_fields_and_defaults(kind):
    assert all_differences(kind, schema_of(kind)) == []


@pytest.mark.parametrize(
    ("struct", "kind"),
    [
        (AcceleratorReport, "AcceleratorReport"),
        (AcceleratorRemediation, "AcceleratorRemediation"),
        (AcceleratorControl, "AcceleratorControl"),
    ],
)
def test_the_whole_object_demands_spec_and_status_as_the_schema_does(struct, kind):
    required = {field.encode_name for field in msgspec.structs.fields(struct) if field.required}
    assert set(schema_of(kind).get("required", [])) == required - {"metadata"}
    assert schema_of(kind)["properties"].keys() == {"spec", "status"}


def rename(schema: Schema) -> None:
    faults = schema["properties"]["status"]["properties"]["faults"]["items"]["properties"]
    faults["deviceUuid"] = faults.pop("deviceUUID")


def drop_word(schema: Schema) -> None:
    schema["properties"]["status"]["properties"]["deviceAccess"]["enum"].remove("Released")


def drop_required(schema: Schema) -> None:
    schema["properties"]["status"]["properties"]["devices"]["items"]["required"].remove("index")


def change_type(schema: Schema) -> None:
    schema["properties"]["status"]["properties"]["sequence"]["type"] = "string"


def drop_format(schema: Schema) -> None:
    del schema["properties"]["spec"]["properties"]["drill"]["properties"]["until"]["format"]


def change_default(schema: Schema) -> None:
    schema["properties"]["status"]["properties"]["faults"]["items"]["properties"]["scope"]["default"] = "Node"


@pytest.mark.parametrize(
    ("drift", "named"),
    [
        (rename, "status.faults[].deviceUUID: not in the schema"),
        (rename, "status.faults[].deviceUuid: not in the struct"),
        (drop_word, "status.deviceAccess: enum"),
        (drop_required, "status.devices[]: required"),
        (change_type, "status.sequence: type"),
        (drop_format, "spec.drill.until: format"),
        (change_default, "status.faults[].scope: default"),
    ],
)
def test_a_drift_is_found_and_named(drift: Callable[[Schema], None], named: str):
    schema = copy.deepcopy(schema_of("AcceleratorReport"))
    drift(schema)
    assert any(f"AcceleratorReport.{named}" in line for line in all_differences("AcceleratorReport", schema))


@pytest.mark.parametrize("kind", STRUCTS)
def test_a_definition_is_named_as_the_design_says(kind):
    spec = DEFINITIONS[kind]["spec"]
    plural = f"{kind.lower()}s"
    assert DEFINITIONS[kind]["metadata"]["name"] == f"{plural}.{API_GROUP}"
    assert (spec["group"], spec["scope"], version_of(kind)["name"]) == (API_GROUP, "Cluster", API_VERSION)
    assert spec["names"] == {
        "kind": kind,
        "listKind": f"{kind}List",
        "plural": plural,
        "singular": kind.lower(),
        "shortNames": [SHORT_NAMES[kind]],
        "categories": ["sickbay"],
    }
    assert version_of(kind)["subresources"] == {"status": {}}


def shortcomings(path: str, schema: Schema) -> Iterator[str]:
    """What a field lacks besides its type: a description that is a sentence, bounds, atomic lists."""
    if not re.fullmatch(r"[A-Z].*\.", schema.get("description", "")):
        yield f"{path}: the description is not a sentence"
    if "x-kubernetes-preserve-unknown-fields" in schema:
        yield f"{path}: keeps unknown fields"
    match schema["type"]:
        case "string":
            if not schema.keys() & {"maxLength", "enum"} and schema.get("format") != "date-time":
                yield f"{path}: a string without a bound"
        case "array":
            if schema.get("maxItems", 0) < 1 or schema.get("x-kubernetes-list-type") != "atomic":
                yield f"{path}: a list that is not bounded and atomic"
        case "integer" | "number":
            if schema.get("minimum", -1) < 0:
                yield f"{path}: a number that may be negative"
        case "object":
            if not schema.get("properties"):
                yield f"{path}: an object without fields, which would keep nothing"


@pytest.mark.parametrize("kind", STRUCTS)
def test_every_field_is_described_and_bounded(kind):
    assert [
        line for path, schema in nodes(schema_of(kind), kind) for line in shortcomings(path, schema)
    ] == []


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "description": "No bound."},
        {"type": "string", "description": "no sentence", "maxLength": 8},
        {"type": "array", "description": "Not atomic.", "maxItems": 8},
        {"type": "array", "description": "Not bounded.", "x-kubernetes-list-type": "atomic"},
        {"type": "integer", "description": "May be negative."},
        {"type": "object", "description": "Keeps nothing."},
    ],
)
def test_a_field_that_falls_short_is_found(schema):
    assert len(list(shortcomings("status.field", schema))) == 1


@pytest.mark.parametrize("kind", STRUCTS)
def test_what_a_struct_writes_by_default_passes_the_bounds(kind):
    """Fields with a default may be written with it: an empty string must then pass the pattern."""
    for struct in STRUCTS[kind]:
        for path, schema, default in defaults(
            msgspec.inspect.type_info(struct), schema_at(kind, struct), kind
        ):
            assert len(default) >= schema.get("minLength", 0), path
            assert re.search(schema.get("pattern", ""), default), path


def schema_at(kind: str, struct: type[msgspec.Struct]) -> Schema:
    return schema_of(kind)["properties"]["spec" if struct is STRUCTS[kind][0] else "status"]


def defaults(found: msgspec.inspect.Type, schema: Schema, path: str) -> Iterator[tuple[str, Schema, str]]:
    match found:
        case msgspec.inspect.UnionType(types=types):
            for item in types:
                yield from defaults(item, schema, path)
        case msgspec.inspect.VarTupleType(item_type=item):
            yield from defaults(item, schema["items"], f"{path}[]")
        case msgspec.inspect.StructType(fields=fields):
            for field in fields:
                below, where = schema["properties"][field.encode_name], f"{path}.{field.encode_name}"
                yield from defaults(field.type, below, where)
                if isinstance(field.default, str) and not isinstance(field.default, Enum):
                    yield where, below, field.default


@pytest.mark.parametrize(
    ("field", "words"),
    [("kind", FaultKind), ("advice", Advice), ("clearsOn", ClearsOn)],
)
@pytest.mark.parametrize(
    ("kind", "faults"), [("AcceleratorReport", "faults"), ("AcceleratorRemediation", "incidents")]
)
def test_open_words_of_a_fault_stay_open_and_hold_all_of_ours(kind, faults, field, words: type[StrEnum]):
    schema = schema_of(kind)["properties"]["status"]["properties"][faults]["items"]["properties"][field]
    assert "enum" not in schema
    assert schema["pattern"] == f"^{WORD}$"
    assert all(re.search(schema["pattern"], word) and len(word) <= schema["maxLength"] for word in words)


@pytest.mark.parametrize(
    ("kind", "path", "limit"),
    [
        ("AcceleratorReport", "devices", 128),
        ("AcceleratorReport", "faults", 256),
        ("AcceleratorReport", "sources", 32),
        ("AcceleratorReport", "receipts", RECEIPTS_LIMIT),
        ("AcceleratorRemediation", "journal", JOURNAL_LIMIT),
    ],
)
def test_lists_are_as_long_as_the_design_says(kind, path, limit):
    assert schema_of(kind)["properties"]["status"]["properties"][path]["maxItems"] == limit


def test_an_excerpt_has_at_most_512_characters():
    fault = schema_of("AcceleratorReport")["properties"]["status"]["properties"]["faults"]["items"]
    assert fault["properties"]["evidence"]["properties"]["excerpt"]["maxLength"] == 512


def test_a_receipt_may_hold_what_is_written_into_one():
    receipt = schema_of("AcceleratorReport")["properties"]["status"]["properties"]["receipts"]["items"]
    assert receipt["properties"]["message"]["maxLength"] == RECEIPT_MESSAGE_LIMIT
    assert receipt["properties"]["devices"]["maxItems"] == RECEIPT_DEVICES_LIMIT


@pytest.mark.parametrize("kind", STRUCTS)
def test_printer_columns_and_selectable_fields_lead_to_fields(kind):
    known = {path.removeprefix(kind) for path, _ in nodes(schema_of(kind), kind)}
    known.add(".metadata.creationTimestamp")
    version = version_of(kind)
    paths = [column["jsonPath"] for column in columns(kind)]
    paths += [field["jsonPath"] for field in version.get("selectableFields", [])]
    assert paths
    for path in paths:
        assert path.replace("[0]", "[]") in known
    assert all(column["description"].endswith(".") for column in columns(kind))


def columns(kind: str) -> list[Schema]:
    return version_of(kind)["additionalPrinterColumns"]


def test_what_a_session_is_about_is_immutable():
    spec = schema_of("AcceleratorRemediation")["properties"]["spec"]
    for name in ("nodeName", "nodeUID", "bootID", "mode"):
        (rule,) = spec["properties"][name]["x-kubernetes-validations"]
        assert rule["rule"] == "self == oldSelf"
        assert name in rule["message"]
    (rule,) = spec["x-kubernetes-validations"]
    assert "self.policy == oldSelf.policy" in rule["rule"]
    assert (rule["fieldPath"], rule["message"]) == (".policy", "policy is immutable")
