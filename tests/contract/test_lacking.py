"""Nothing in the product relies on what the embedded API lacks, and the embedded API does not pretend to have it."""

from __future__ import annotations

import re

import pytest

from tests.contract.calls import CALLS, PAGES
from tests.contract.lacking import LACKING, MANAGED_FIELDS_ARE_READ_IN, Lacking
from tests.contract.sent import PRODUCT, ROOT
from tests.contract.world import World

ASKED = [one for one in LACKING if one.ask is not None]


def _files() -> dict[str, str]:
    return {
        str(path.relative_to(ROOT)): path.read_text()
        for package in PRODUCT
        for path in sorted((ROOT / package).rglob("*.py"))
    }


@pytest.mark.parametrize("lacking", LACKING, ids=lambda one: one.behaviour)
def test_the_product_does_not_speak_of_it(lacking: Lacking) -> None:
    found = [
        f"{file}: {match.group()}"
        for file, text in _files().items()
        for trace in lacking.traces
        if (match := re.search(trace, text))
    ]
    assert found == []
    assert lacking.reason.endswith(".")


def test_managed_fields_are_read_in_one_place() -> None:
    assert {file for file, text in _files().items() if "managedFields" in text} == MANAGED_FIELDS_ARE_READ_IN


def test_no_call_has_a_query_or_a_patch_that_the_suite_does_not_try() -> None:
    assert {key for call in CALLS for key in call.query} == PAGES | {
        "fieldManager",
        "fieldSelector",
        "labelSelector",
    }
    assert {call.patch for call in CALLS} == {"", "merge", "json"}


@pytest.mark.parametrize("lacking", ASKED, ids=lambda one: one.behaviour)
def test_the_embedded_api_refuses_what_it_lacks(embedded_world: World, lacking: Lacking) -> None:
    ask = lacking.ask
    assert ask is not None
    path = ask.path.replace("NAMESPACE", embedded_world.namespace)
    answer = embedded_world.wire.ask(
        ask.method, path, ask.body, query=ask.query, content_type=ask.content_type
    )
    assert answer.status in (400, 404, 405, 406, 415), answer.body
    assert not embedded_world.exists(f"{embedded_world.config_maps}/lacking")
