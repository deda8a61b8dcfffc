"""Deliberate faults of the embedded API. They are put in before its server starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from simulation.cluster import (
    connection,
    deletion,
    evictions,
    handlers,
    history,
    listing,
    managers,
    metadata,
    pods,
    rules,
    schema,
    store,
    watching,
)
from simulation.cluster import strategy as strategies


def ignores_versions(patch: pytest.MonkeyPatch) -> None:
    asked = metadata.check_preconditions

    def without_version(resource: Any, given: Any, old: Any, **more: Any) -> None:
        kept = {key: value for key, value in (given or {}).items() if key != "resourceVersion"}
        asked(resource, kept, old, **more)

    patch.setattr(strategies, "check_preconditions", without_version)


def ignores_uids(patch: pytest.MonkeyPatch) -> None:
    asked = deletion.check_preconditions

    def without_uid(resource: Any, document: Any, options: Any) -> None:
        asked(resource, document, replace(options, uid=""))

    for module in (deletion, pods):
        patch.setattr(module, "check_preconditions", without_uid)


def _each_event(
    patch: pytest.MonkeyPatch, change: Callable[[Any, Any, Any], watching.WatchEvent | None]
) -> None:
    """Let `change` make another event of each: it gets the watch, the change in the store, and the event."""
    made = watching.Watch._event

    def changed(self: Any, what: Any) -> watching.WatchEvent | None:
        event = made(self, what)
        return None if event is None else change(self, what, event)

    patch.setattr(watching.Watch, "_event", changed)


def deletes_without_the_object(patch: pytest.MonkeyPatch) -> None:
    def bare(_watch: Any, _what: Any, event: watching.WatchEvent) -> watching.WatchEvent:
        if event.type != "DELETED":
            return event
        metadata = msgspec.json.decode(event.data)["metadata"]
        kept = {key: metadata[key] for key in ("name", "resourceVersion")}
        return watching.WatchEvent("DELETED", msgspec.json.encode({"metadata": kept}))

    _each_event(patch, bare)


def deletes_with_an_old_version(patch: pytest.MonkeyPatch) -> None:
    def old(_watch: Any, what: Any, event: watching.WatchEvent) -> watching.WatchEvent:
        return watching.WatchEvent("DELETED", what.before) if event.type == "DELETED" else event

    _each_event(patch, old)


def tells_no_leave(patch: pytest.MonkeyPatch) -> None:
    def silent(watch: Any, what: Any, event: watching.WatchEvent) -> watching.WatchEvent | None:
        return None if event.type == "DELETED" and what.type != "DELETED" else event

    _each_event(patch, silent)


def never_too_old(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(history.Table, "floor", property(lambda self: 0, lambda self, value: None), raising=False)


def too_old_is_refused_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(connection, "too_old", lambda error: False)


def _moves_the_start(patch: pytest.MonkeyPatch, by: int) -> None:
    begun = watching.Watch.__init__

    def moved(self: Any, *given: Any, version: str, **more: Any) -> None:
        begun(self, *given, version=version, **more)
        self._position = max(0, self._position + by)
        self._after = 0

    patch.setattr(watching.Watch, "__init__", moved)


def skips_an_event(patch: pytest.MonkeyPatch) -> None:
    _moves_the_start(patch, 1)


def repeats_an_event(patch: pytest.MonkeyPatch) -> None:
    _moves_the_start(patch, -1)


def evicts_beyond_the_budget(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(evictions, "charge", lambda pod, budgets, *, now: evictions.Charge())


def does_not_count_evictions(patch: pytest.MonkeyPatch) -> None:
    charge = evictions.charge
    patch.setattr(
        evictions, "charge", lambda pod, budgets, *, now: replace(charge(pod, budgets, now=now), status=None)
    )


def fills_nothing_in(patch: pytest.MonkeyPatch) -> None:
    made = schema.Node.__init__

    def bare(self: Any, *given: Any) -> None:
        made(self, *given)
        self._defaults = {}

    patch.setattr(schema.Node, "__init__", bare)


def drops_nothing(patch: pytest.MonkeyPatch) -> None:
    admit = schema.Node._object

    def whole(self: Any, value: Any, old: Any, path: str, found: Any) -> Any:
        return {**value, **admit(self, value, old, path, found)}

    patch.setattr(schema.Node, "_object", whole)


def lets_everything_be_changed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rules.Rule, "ask", lambda self, new, old: None)


def keeps_the_status_of_a_create(patch: pytest.MonkeyPatch) -> None:
    create = strategies.Strategy.create

    def kept(self: Any, body: Any) -> Any:
        made = create(self, body)
        return {**made, "status": body["status"]} if "status" in body else made

    patch.setattr(strategies.Strategy, "create", kept)


def counts_every_change_as_one_of_the_spec(patch: pytest.MonkeyPatch) -> None:
    updated = strategies.Strategy.updated

    def counted(self: Any, new: Any, old: Any, **more: Any) -> Any:
        document, pruned = updated(self, new, old, **more)
        generation = old["metadata"].get("generation", 0) + 1
        return {**document, "metadata": {**document["metadata"], "generation": generation}}, pruned

    patch.setattr(strategies.Strategy, "updated", counted)


def ignores_finalizers_and_grace(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(store, "fate", lambda *_: deletion.Fate(None, remove=True))


def pages_of_different_moments(patch: pytest.MonkeyPatch) -> None:
    origin = listing._origin
    patch.setattr(listing, "_origin", lambda store, ask: (origin(store, ask)[0], None))


def keeps_nulls(patch: pytest.MonkeyPatch) -> None:
    def merged(target: Any, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(target, dict):
            return given
        return {
            **target,
            **{key: merged(target.get(key), value) for key, value in given.items() if value is not None},
        }

    patch.setattr(handlers, "merge", merged)


def forgets_who_has_written(patch: pytest.MonkeyPatch) -> None:
    tracked = managers.tracked
    patch.setattr(
        managers, "tracked", lambda new, old, **more: tracked(new, old, **{**more, "manager": "somebody"})
    )
