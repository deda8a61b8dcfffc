"""Merge, JSON and strategic-merge patches of the embedded API."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.cluster.patches import PatchError, apply_json_patch, merge, same, without_nulls
from simulation.cluster.strategic import strategic_merge

KEYS = st.sampled_from(["a", "b", "c", "d"])
SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "x", "y"])
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)
)
OBJECTS = st.dictionaries(KEYS, JSON, max_size=4)


def diff(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The merge patch from one object without nulls to another."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        if key not in old:
            patch[key] = value
        elif isinstance(old[key], dict) and isinstance(value, dict):
            patch[key] = diff(old[key], value)
        elif not same(old[key], value):
            patch[key] = value
    return patch


@given(OBJECTS, OBJECTS)
def test_the_merge_patch_from_one_object_to_another_leads_there(old: Any, new: Any) -> None:
    old, new = without_nulls(old), without_nulls(new)
    assert same(merge(old, diff(old, new)), new)


@given(OBJECTS, OBJECTS)
def test_a_merge_patch_changes_nothing_in_place_and_a_second_time_nothing_at_all(
    old: Any, patch: Any
) -> None:
    before, given_patch = copy.deepcopy(old), copy.deepcopy(patch)
    once = merge(old, patch)
    assert same(old, before)
    assert same(patch, given_patch)
    assert same(merge(once, patch), once)


@given(OBJECTS)
def test_an_empty_merge_patch_keeps_the_object(old: Any) -> None:
    assert same(merge(old, {}), old)


def test_nulls_inside_of_a_new_list_are_dropped_from_its_objects_alone() -> None:
    assert merge({}, {"list": [{"a": None, "b": 1}, None, [{"c": None}]]}) == {"list": [{"b": 1}, None, [{}]]}
    assert merge({"list": [1]}, {"list": [{"a": None}]}) == {"list": [{}]}


@given(OBJECTS, KEYS, JSON)
def test_what_json_patch_adds_it_can_test_and_remove(old: Any, key: str, value: Any) -> None:
    added = apply_json_patch(old, [{"op": "add", "path": f"/{key}", "value": value}])
    assert same(apply_json_patch(added, [{"op": "test", "path": f"/{key}", "value": value}]), added)
    removed = apply_json_patch(added, [{"op": "remove", "path": f"/{key}"}])
    assert same(removed, {name: below for name, below in old.items() if name != key})


@given(OBJECTS, st.lists(st.fixed_dictionaries({"op": st.text(max_size=6), "path": JSON}) | JSON, max_size=3))
def test_json_patch_never_raises_anything_but_its_own_error(old: Any, operations: Any) -> None:
    before = copy.deepcopy(old)
    with contextlib.suppress(PatchError):
        apply_json_patch(old, operations)
    assert same(old, before)


def test_json_patch_does_what_rfc_6902_shows() -> None:
    """Examples of its appendix A."""
    cases: list[tuple[Any, Any, Any]] = [
        (
            {"foo": ["bar", "baz"]},
            {"op": "add", "path": "/foo/1", "value": "q"},
            {"foo": ["bar", "q", "baz"]},
        ),
        ({"foo": ["a", "b", "c"]}, {"op": "remove", "path": "/foo/1"}, {"foo": ["a", "c"]}),
        ({"foo": ["a"]}, {"op": "add", "path": "/foo/-", "value": ["b"]}, {"foo": ["a", ["b"]]}),
        ({"a": {"x": 1}, "b": {}}, {"op": "move", "from": "/a/x", "path": "/b/y"}, {"a": {}, "b": {"y": 1}}),
        ({"foo": ["a", "b"]}, {"op": "move", "from": "/foo/0", "path": "/foo/1"}, {"foo": ["b", "a"]}),
        ({"a": 1}, {"op": "copy", "from": "/a", "path": "/b"}, {"a": 1, "b": 1}),
        ({"/": 9, "~1": 10}, {"op": "test", "path": "/~01", "value": 10}, {"/": 9, "~1": 10}),
        ({"a": 1}, {"op": "replace", "path": "", "value": {"b": 2}}, {"b": 2}),
    ]
    for old, operation, new in cases:
        assert apply_json_patch(old, [operation]) == new, operation


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/a", "value": True},
        {"op": "remove", "path": "/nope"},
        {"op": "replace", "path": "/nope", "value": 1},
        {"op": "add", "path": "/nope/x", "value": 1},
        {"op": "add", "path": "/list/5", "value": 1},
        {"op": "add", "path": "/list/01", "value": 1},
        {"op": "add", "path": "a", "value": 1},
        {"op": "add", "path": "/a"},
        {"op": "move", "from": "/deep", "path": "/deep/er"},
        {"op": "frob", "path": "/a"},
    ],
)
def test_a_json_patch_that_cannot_be_applied_is_refused(operation: Any) -> None:
    with pytest.raises(PatchError):
        apply_json_patch({"a": 1, "list": [1], "deep": {"er": 1}}, [operation])


def condition(kind: str, status: str = "True") -> dict[str, str]:
    return {"type": kind, "status": status}


def test_conditions_are_merged_by_their_type_and_new_ones_come_first() -> None:
    old = {"status": {"conditions": [condition("Ready"), condition("Disk")]}}
    patch = {"status": {"conditions": [condition("New"), condition("Disk", "False")]}}
    merged = strategic_merge(old, patch)["status"]["conditions"]
    assert merged == [condition("New"), condition("Ready"), condition("Disk", "False")]


@given(
    st.lists(st.sampled_from("ABCDE"), unique=True),
    st.lists(st.sampled_from("ABCDE"), unique=True, min_size=1),
)
def test_a_strategic_merge_keeps_every_condition_and_both_orders(old: list[str], new: list[str]) -> None:
    merged = strategic_merge(
        {"conditions": [condition(kind) for kind in old]},
        {"conditions": [condition(kind, "False") for kind in new]},
    )["conditions"]
    kinds = [item["type"] for item in merged]
    assert sorted(kinds) == sorted({*old, *new})
    assert [kind for kind in kinds if kind in new] == new
    assert [kind for kind in kinds if kind not in new] == [kind for kind in old if kind not in new]
    assert {item["type"]: item["status"] for item in merged if item["type"] in new} == dict.fromkeys(
        new, "False"
    )


def test_strategic_directives_delete_and_replace() -> None:
    old = {
        "metadata": {"finalizers": ["a", "b"]},
        "conditions": [condition("A"), condition("B")],
        "map": {"x": 1},
    }
    patch = {
        "metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]},
        "conditions": [{"$patch": "delete", "type": "A"}],
        "map": {"$patch": "replace", "y": 2},
    }
    assert strategic_merge(old, patch) == {
        "metadata": {"finalizers": ["b"]},
        "conditions": [condition("B")],
        "map": {"y": 2},
    }


def test_a_list_without_a_merge_key_is_replaced_and_finalizers_are_added() -> None:
    old = {"spec": {"taints": [{"key": "a"}]}, "metadata": {"finalizers": ["a"]}}
    patch = {"spec": {"taints": [{"key": "b"}]}, "metadata": {"finalizers": ["b"]}}
    assert strategic_merge(old, patch) == {
        "spec": {"taints": [{"key": "b"}]},
        "metadata": {"finalizers": ["b", "a"]},
    }


def test_a_condition_without_a_type_cannot_be_merged() -> None:
    with pytest.raises(PatchError, match="merge key: type"):
        strategic_merge({"conditions": []}, {"conditions": [{"status": "True"}]})
