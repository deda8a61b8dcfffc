"""The custom resources on a real API server: what it takes, what it refuses, what it keeps, what kubectl shows."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.lab import manifests
from tests.lab.api import ApiError, Object
from tests.lab.contracts import CONTROL, REPORT, SESSION, VALUES, Contract
from tests.lab.lab import Lab
from tests.lab.manifests import CONTROLS, DRY_RUN, SESSIONS
from tests.lab.schema_samples import breaks, sample

CONTRACTS = pytest.mark.parametrize("contract", [REPORT, SESSION, CONTROL], ids=lambda item: item.kind)


@pytest.fixture(scope="module")
def cluster(lab: Lab, clean_cluster: None) -> Lab:
    manifests.apply(lab)
    return lab


@pytest.fixture
def stored(cluster: Lab, contract: Contract) -> Iterator[Object]:
    """The object with every field set, as the API server holds it."""
    yield store(cluster, contract, contract.body())
    cluster.api.delete(contract.url)


def remove(cluster: Lab, contract: Contract) -> None:
    if cluster.api.exists(contract.url):
        cluster.api.delete(contract.url)


def store(cluster: Lab, contract: Contract, body: Object) -> Object:
    remove(cluster, contract)
    cluster.api.create(contract.path, body)
    return cluster.api.patch(f"{contract.url}/status", {"status": body["status"]})


@CONTRACTS
def test_every_field_is_kept_and_read_back_by_the_structs(
    cluster: Lab, contract: Contract, stored: Object
) -> None:
    body = contract.body()
    assert stored["spec"] == body["spec"]
    assert stored["status"] == body["status"]
    read = msgspec.convert(stored, type=contract.whole)
    for part, struct in (("spec", contract.spec), ("status", contract.status)):
        value = getattr(read, part)
        assert isinstance(value, struct)
        written = {part: msgspec.to_builtins(value)}
        target = contract.url if part == "spec" else f"{contract.url}/status"
        assert cluster.api.patch(target, written)[part] == stored[part]


@CONTRACTS
def test_the_largest_object_that_the_bounds_allow_can_be_stored(cluster: Lab, contract: Contract) -> None:
    """Every list full, every string full, four bytes a character: still below etcd's limit."""
    body = contract.body(largest=True)
    remove(cluster, contract)
    # Raw, since the lab's client escapes such a character to twelve bytes.
    as_utf8 = json.dumps(body, ensure_ascii=False)
    created = json.loads(cluster.kubectl("create", "--raw", contract.path, "-f", "-", input=as_utf8))
    try:
        body["metadata"] = created["metadata"]
        as_utf8 = json.dumps(body, ensure_ascii=False)
        stored = json.loads(
            cluster.kubectl("replace", "--raw", f"{contract.url}/status", "-f", "-", input=as_utf8)
        )
        assert (stored["spec"], stored["status"]) == (body["spec"], body["status"])
    finally:
        cluster.api.delete(contract.url)


@CONTRACTS
def test_the_api_server_fills_in_what_an_absent_field_means_to_the_structs(
    cluster: Lab, contract: Contract
) -> None:
    body = contract.body()
    for part in ("spec", "status"):
        body[part] = least_of(contract.schema[part])
    body["metadata"]["labels"]["sickbay.dev/node-uid"] = body["spec"].get("nodeUID")
    try:
        stored = store(cluster, contract, body)
    finally:
        cluster.api.delete(contract.url)
    filled = 0
    for part, struct in (("spec", contract.spec), ("status", contract.status)):
        assert msgspec.convert(stored[part], type=struct) == msgspec.convert(body[part], type=struct)
        filled += stored[part] != body[part]
    assert filled == (0 if contract is CONTROL else 1)


def least_of(schema: dict[str, Any], name: str = "") -> Any:
    """The required fields alone, and one item in each list."""
    match schema["type"]:
        case "array":
            return [least_of(schema["items"])]
        case "object":
            wanted = {*schema.get("required", ()), *LISTS.intersection(schema["properties"])}
            return {
                field: least_of(below, field)
                for field, below in schema["properties"].items()
                if field in wanted
            }
        case _:
            return sample(schema, VALUES, name=name)


LISTS = {"devices", "faults", "incidents", "plan", "journal", "nodes"}


@CONTRACTS
def test_every_bound_is_refused_by_a_message_that_names_the_field(
    cluster: Lab, contract: Contract, stored: Object
) -> None:
    wrong = []
    tried = 0
    for part in ("spec", "status"):
        assert refusal(cluster, contract, part, stored) == (0, "")
        for one in breaks(contract.schema[part], (part,), stored[part]):
            tried += 1
            status, message = refusal(cluster, contract, part, one.applied_to(stored))
            if status != 422 or f"{one.field}: " not in message:
                wrong.append(f"{one.field} ({one.why}): {status} {message[:300]}")
    assert wrong == []
    assert tried > 10


def refusal(cluster: Lab, contract: Contract, part: str, body: Object) -> tuple[int, str]:
    """What the API server answers; (0, "") where it accepts. A session's spec is asked for as a new session's."""
    try:
        if contract is SESSION and part == "spec":
            fresh = {"name": "contract-another", "labels": body["metadata"]["labels"]}
            cluster.api.create(contract.path + DRY_RUN, body | {"metadata": fresh})
        else:
            target = contract.url if part == "spec" else f"{contract.url}/status"
            cluster.api.request("PUT", target + DRY_RUN, body)
    except ApiError as error:
        return error.status, str(error)
    return 0, ""


@CONTRACTS
def test_unknown_fields_are_pruned_at_every_depth(cluster: Lab, contract: Contract, stored: Object) -> None:
    extra = with_unknown_fields({"spec": stored["spec"], "status": stored["status"]})
    cluster.api.patch(contract.url, {"spec": extra["spec"], "tomorrow": 1})
    cluster.api.patch(f"{contract.url}/status", {"status": extra["status"]})
    kept = cluster.api.get(contract.url)
    assert (kept["spec"], kept["status"]) == (stored["spec"], stored["status"])
    assert "tomorrow" not in kept


def with_unknown_fields(value: Any) -> Any:
    if isinstance(value, list):
        return [with_unknown_fields(item) for item in value]
    if isinstance(value, dict):
        return {key: with_unknown_fields(item) for key, item in value.items()} | {"tomorrow": {"more": 1}}
    return value


@CONTRACTS
def test_status_is_a_subresource_and_dropped_on_create(cluster: Lab, contract: Contract) -> None:
    body = contract.body()
    remove(cluster, contract)
    created = cluster.api.create(contract.path, body)
    try:
        assert "status" not in created
        assert "status" not in cluster.api.patch(contract.url, {"status": body["status"]})
    finally:
        cluster.api.delete(contract.url)


@pytest.mark.parametrize("contract", [SESSION], ids=["AcceleratorRemediation"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("nodeName", "n2"),
        ("nodeUID", "uid-of-n2"),
        ("bootID", "boot-2"),
        ("mode", "Observe"),
        ("policy", {"name": "another"}),
        ("policy", None),
    ],
)
def test_what_a_session_is_about_cannot_be_changed(
    cluster: Lab, contract: Contract, stored: Object, field: str, value: object
) -> None:
    with pytest.raises(ApiError, match=f"spec.{field}: Invalid value: .*{field} is immutable") as refused:
        cluster.api.patch(contract.url, {"spec": {field: value}})
    assert refused.value.status == 422


def test_a_policy_cannot_be_given_to_a_session_that_was_opened_without(cluster: Lab) -> None:
    body = manifests.session("contract-bare", node="n1", node_uid="uid-of-n1")
    cluster.api.create(SESSIONS, body)
    try:
        with pytest.raises(ApiError, match=r"spec\.policy: Invalid value: .*policy is immutable"):
            cluster.api.patch(f"{SESSIONS}/contract-bare", {"spec": {"policy": {"name": "late"}}})
    finally:
        cluster.api.delete(f"{SESSIONS}/contract-bare")


def test_there_is_one_control_object(cluster: Lab) -> None:
    body = {"apiVersion": "sickbay.dev/v1alpha1", "kind": "AcceleratorControl", "metadata": {"name": "mine"}}
    with pytest.raises(ApiError, match=r"metadata\.name must be default") as refused:
        cluster.api.create(CONTROLS, body)
    assert refused.value.status == 422


@pytest.mark.parametrize(
    ("contract", "short", "columns", "wide"),
    [
        (
            REPORT,
            "acr",
            ["NAME", "FAULT", "SEVERITY", "ADVICE", "SINCE", "RENEWED"],
            ["ACCESS", "POOL", "DRIVER", "DEVICE", "CODE", "MESSAGE"],
        ),
        (
            SESSION,
            "acrem",
            ["NAME", "NODE", "PHASE", "MODE", "RUNG", "STEP", "FAULT", "SINCE", "REASON"],
            ["CODE", "DEVICE", "APPROVAL", "HELD-BY", "MESSAGE"],
        ),
        (CONTROL, "acctl", ["NAME", "PAUSED-BY", "REASON", "BREAKER", "SINCE"], ["TOKENS"]),
    ],
    ids=["acr", "acrem", "acctl"],
)
def test_kubectl_get_reads_like_a_ward_list(
    cluster: Lab, contract: Contract, stored: Object, short: str, columns: list[str], wide: list[str]
) -> None:
    for options, expected in ((), columns), (("-o", "wide"), [*columns, *wide]):
        header, row = cluster.kubectl("get", short, contract.name, *options).splitlines()
        assert header.split() == expected
        # Every value of the sample is one word, and an empty column shows as nothing.
        assert len(row.split()) == len(expected)
        assert row.split()[0] == contract.name


def test_sessions_of_a_node_are_found_by_its_name(cluster: Lab) -> None:
    names = ["contract-of-n1", "contract-of-n2"]
    for node, name in zip(("n1", "n2"), names, strict=True):
        cluster.api.create(SESSIONS, manifests.session(name, node=node, node_uid=f"uid-of-{node}"))
    try:
        found = json.loads(
            cluster.kubectl("get", "acrem", "--field-selector", "spec.nodeName=n2", "-o", "json")
        )
        assert [item["metadata"]["name"] for item in found["items"]] == ["contract-of-n2"]
    finally:
        for name in names:
            cluster.api.delete(f"{SESSIONS}/{name}")


def test_kubectl_explains_fields_in_words(cluster: Lab) -> None:
    assert "cheapest repair" in cluster.kubectl("explain", "acceleratorreport.status.faults.advice")
