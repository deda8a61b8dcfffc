"""Label and field selectors, and the columns and ages that kubectl prints."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.clock import ManualClock
from simulation.cluster.cells import human
from simulation.cluster.selectors import selection
from simulation.cluster.store import ClusterStore
from tests.unit.embedded_rig import pod, refusal

STORE = ClusterStore(clock=ManualClock())
PODS = STORE.resource("pods")
NODES = STORE.resource("nodes")
KEYS = st.sampled_from(["a", "b", "x/y"])
VALUES = st.sampled_from(["", "1", "true", "v-1"])
LABELS = st.dictionaries(KEYS, VALUES)


def selects(labels: dict[str, str], text: str) -> bool:
    data = msgspec.json.encode({"metadata": {"name": "n", "labels": labels}})
    return selection(PODS, labels=text).passes(data)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("a=1", True),
        ("a==1", True),
        ("a=2", False),
        ("a!=2", True),
        ("none!=2", True),
        ("a", True),
        ("!a", False),
        ("!none", True),
        ("a in (1,2)", True),
        ("a in ( 2 )", False),
        ("a notin (2,3)", True),
        ("none notin (1)", True),
        ("a=1,x/y=v-1", True),
        ("a=1, !b ,a in (1, 2)", True),
        ("", True),
        ("empty=", True),
        ("a=", False),
    ],
)
def test_a_label_selector_says_what_kubernetes_says(text: str, holds: bool) -> None:
    assert selects({"a": "1", "x/y": "v-1", "empty": ""}, text) is holds


@given(LABELS, KEYS, VALUES)
def test_equal_and_unequal_are_opposites_and_a_set_of_one_is_equality(
    labels: dict[str, str], key: str, value: str
) -> None:
    equal = selects(labels, f"{key}={value}")
    assert equal is (labels.get(key) == value)
    assert selects(labels, f"{key}!={value}") is not equal
    assert selects(labels, f"{key} in ({value})") is equal
    assert selects(labels, f"{key} notin ({value})") is not equal


@pytest.mark.parametrize("text", ["a b", "a in 1", "a in (1", "=", "a=b=c", "a=1,,!"])
def test_what_is_no_label_selector_is_a_bad_request(text: str) -> None:
    assert refusal(lambda: selection(PODS, labels=text)).code == 400


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("spec.nodeName=n1", True),
        ("spec.nodeName!=n1", False),
        ("spec.nodeName=n1,status.phase=Running", False),
        ("metadata.name=p", True),
        ("metadata.name!=p", False),
        ("metadata.namespace=default", True),
        ("status.phase!=Running", True),
        ("spec.hostNetwork=false", True),
        ("", True),
    ],
)
def test_a_field_selector_looks_at_the_fields_of_its_kind(text: str, holds: bool) -> None:
    store = ClusterStore(clock=ManualClock())
    store.create("pods", pod("p"))
    data = store.read(PODS, "default", "p")
    assert selection(PODS, fields=text).matches("default/p", data) is holds


def test_a_node_that_says_nothing_is_not_unschedulable() -> None:
    for spec, value in (({}, "false"), ({"unschedulable": True}, "true")):
        data = msgspec.json.encode({"metadata": {"name": "n"}, "spec": spec})
        assert selection(NODES, fields=f"spec.unschedulable={value}").passes(data)


def test_a_field_that_a_kind_has_not_is_a_bad_request() -> None:
    error = refusal(lambda: selection(NODES, fields="spec.nodeName=n1"))
    assert (error.code, error.message) == (400, "field label not supported: spec.nodeName")
    assert refusal(lambda: selection(NODES, fields="metadata.name")).code == 400


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "<invalid>"),
        (-1, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (150, "2m30s"),
        (600, "10m"),
        (3 * 3600 - 1, "179m"),
        (3 * 3600, "3h"),
        (7 * 3600 + 300, "7h5m"),
        (8 * 3600 + 300, "8h"),
        (47 * 3600, "47h"),
        (49 * 3600, "2d1h"),
        (8 * 86400, "8d"),
        (729 * 86400, "729d"),
        (731 * 86400, "2y1d"),
        (3000 * 86400, "8y"),
    ],
)
def test_ages_are_written_as_kubectl_writes_them(seconds: int, text: str) -> None:
    """apimachinery, pkg/util/duration: HumanDuration."""
    assert human(seconds) == text
