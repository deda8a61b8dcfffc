"""The suite notices a wrong API: each deliberate fault of the embedded one fails every contract test that is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest

from runtime.api_errors import ApiError
from simulation.cluster import crds
from simulation.cluster.resources import ResourceType
from tests.contract import (
    mutants,
    test_custom_resources,
    test_deletions,
    test_evictions,
    test_leases,
    test_lists,
    test_nodes,
    test_objects,
    test_watches,
)
from tests.contract.world import SESSIONS, World
from tests.contract.worlds import embedded
from tests.lab.contracts import REPORT

PATIENCE = 0.3
"""Seconds that a contract test waits here for an event that the mutant may never send."""

Contract = Callable[[World], None]


@dataclass(frozen=True, slots=True)
class Mutant:
    """What is wrong, how it is put in, and who has to notice."""

    name: str
    put_in: Callable[[pytest.MonkeyPatch], None]
    caught_by: tuple[Contract, ...]


def _of_sessions(contract: Callable[[World, str], None]) -> Contract:
    """A contract test of one collection, for sessions."""
    return lambda world: contract(world, SESSIONS)


def _with_app(contract: Callable[[World, dict[str, str]], None]) -> Contract:
    """A contract test of evictions, with labels of its own."""
    return lambda world: contract(world, {"app": world.fresh("app")})


def _immutable(world: World) -> None:
    test_custom_resources.test_what_a_session_is_about_cannot_be_changed(world, "mode", "Auto")


def _reports(contract: Callable[[World, Any], None]) -> Contract:
    return lambda world: contract(world, REPORT)


MUTANTS = (
    Mutant(
        "resourceVersions in a write are ignored",
        mutants.ignores_versions,
        (
            test_objects.test_a_replacement_needs_the_current_resource_version,
            _of_sessions(test_objects.test_a_merge_patch_with_an_old_resource_version_is_a_conflict),
            test_objects.test_a_status_patch_with_an_old_resource_version_is_a_conflict,
            test_leases.test_of_two_who_take_a_lease_one_gets_it,
        ),
    ),
    Mutant(
        "UIDs of a deletion and an eviction are ignored",
        mutants.ignores_uids,
        (
            _of_sessions(test_deletions.test_a_deletion_holds_for_one_uid),
            test_evictions.test_an_eviction_holds_for_one_uid,
        ),
    ),
    Mutant(
        "DELETED comes without the object",
        mutants.deletes_without_the_object,
        (test_watches.test_what_is_deleted_comes_whole_with_the_version_of_its_end,),
    ),
    Mutant(
        "DELETED comes with the version of the last change",
        mutants.deletes_with_an_old_version,
        (
            test_watches.test_what_is_deleted_comes_whole_with_the_version_of_its_end,
            test_watches.test_a_selector_makes_a_change_into_an_arrival_or_a_leave,
        ),
    ),
    Mutant(
        "what leaves a selector is not told",
        mutants.tells_no_leave,
        (
            test_watches.test_a_selector_makes_a_change_into_an_arrival_or_a_leave,
            test_watches.test_a_field_selector_makes_a_change_into_an_arrival_or_a_leave,
        ),
    ),
    Mutant(
        "nothing is ever too old",
        mutants.never_too_old,
        (
            _of_sessions(
                test_watches.test_a_version_that_is_too_old_is_an_error_event_in_a_watch_that_was_accepted
            ),
            test_lists.test_a_page_that_is_asked_for_too_late_is_gone,
        ),
    ),
    Mutant(
        "a watch that starts too early is refused instead of accepted and ended",
        mutants.too_old_is_refused_at_once,
        (
            _of_sessions(
                test_watches.test_a_version_that_is_too_old_is_an_error_event_in_a_watch_that_was_accepted
            ),
        ),
    ),
    Mutant(
        "a watch that is resumed skips an event",
        mutants.skips_an_event,
        (test_watches.test_a_watch_resumes_after_each_event_without_a_gap_or_a_double,),
    ),
    Mutant(
        "a watch that is resumed repeats an event",
        mutants.repeats_an_event,
        (test_watches.test_a_watch_resumes_after_each_event_without_a_gap_or_a_double,),
    ),
    Mutant(
        "pods are evicted whatever their budget",
        mutants.evicts_beyond_the_budget,
        (
            _with_app(test_evictions.test_a_budget_that_is_used_up_refuses_with_its_cause),
            _with_app(test_evictions.test_evictions_at_the_same_moment_do_not_overdraw_a_budget),
        ),
    ),
    Mutant(
        "evictions are not counted",
        mutants.does_not_count_evictions,
        (
            _with_app(test_evictions.test_a_budget_lets_as_many_go_as_it_allows_and_counts_them),
            _with_app(test_evictions.test_evictions_at_the_same_moment_do_not_overdraw_a_budget),
        ),
    ),
    Mutant(
        "no default is filled in",
        mutants.fills_nothing_in,
        (
            _reports(test_custom_resources.test_what_is_absent_is_filled_in_from_the_definition),
            test_custom_resources.test_nothing_is_filled_into_a_part_that_is_not_there,
        ),
    ),
    Mutant(
        "unknown fields are kept",
        mutants.drops_nothing,
        (_reports(test_custom_resources.test_what_the_definition_does_not_know_is_dropped_at_every_depth),),
    ),
    Mutant(
        "what a session is about can be changed",
        mutants.lets_everything_be_changed,
        (_immutable, test_custom_resources.test_there_is_one_control_object),
    ),
    Mutant(
        "a new object keeps its status",
        mutants.keeps_the_status_of_a_create,
        (_reports(test_custom_resources.test_spec_and_status_are_written_apart),),
    ),
    Mutant(
        "every change raises the generation",
        mutants.counts_every_change_as_one_of_the_spec,
        (test_custom_resources.test_the_generation_counts_changes_of_the_spec_alone,),
    ),
    Mutant(
        "a deletion waits for nothing",
        mutants.ignores_finalizers_and_grace,
        (
            test_deletions.test_a_finalizer_holds_an_object_until_it_is_taken_off,
            test_deletions.test_a_bound_pod_has_its_grace_and_its_kubelet_ends_it,
        ),
    ),
    Mutant(
        "each page is of another moment",
        mutants.pages_of_different_moments,
        (test_lists.test_a_list_comes_in_pages_of_one_moment,),
    ),
    Mutant(
        "a null in a merge patch removes nothing",
        mutants.keeps_nulls,
        (test_objects.test_nulls_in_a_merge_patch_remove_and_lists_are_replaced,),
    ),
    Mutant(
        "who has cordoned a node is not kept",
        mutants.forgets_who_has_written,
        (test_nodes.test_the_api_keeps_who_has_cordoned_a_node,),
    ),
)


@cache
def _definitions() -> tuple[ResourceType, ...]:
    """Reading them takes longer than all that is done with them here."""
    return _load()


_load = crds.load


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_wrong_api_is_noticed(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crds, "load", _definitions)
    mutant.put_in(monkeypatch)
    with embedded() as made:
        world = replace(made, patience=PATIENCE)
        for contract in mutant.caught_by:
            with pytest.raises((AssertionError, ApiError, KeyError, pytest.fail.Exception)):
                contract(world)
        broken = [entry for entry in made.server.audit.entries() if entry.code >= 500]
        assert broken == [], "the mutant does not behave wrongly, it does not work"


def test_a_right_api_is_not_found_wrong(embedded_world: World) -> None:
    """The same contract tests, put to the same use, without a mutant."""
    world = replace(embedded_world, patience=PATIENCE)
    for mutant in MUTANTS:
        for contract in mutant.caught_by:
            contract(world)
