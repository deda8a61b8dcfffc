"""Lists in pages and watches of the embedded API: what a client that follows them knows in the end."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.clock import ManualClock
from simulation.cluster import listing
from simulation.cluster.interface import StoreError
from simulation.cluster.resources import ResourceType
from simulation.cluster.selectors import selection
from simulation.cluster.store import ClusterStore
from simulation.cluster.watching import Watch
from tests.unit.embedded_rig import refusal

NAMES = ("a", "b", "c", "d")
WRITES = st.tuples(
    st.sampled_from(["set", "set", "set", "delete"]), st.sampled_from(NAMES), st.sampled_from(["red", "blue"])
)


def new_store(**window: int) -> ClusterStore:
    return ClusterStore(clock=ManualClock(), **window)


def write(store: ClusterStore, kind: str, name: str, colour: str) -> None:
    present = f"default/{name}" in store.table(store.resource("configmaps")).objects
    if kind == "delete":
        if present:
            store.delete("configmaps", name, namespace="default")
    elif present:
        store.patch("configmaps", name, {"metadata": {"labels": {"colour": colour}}}, namespace="default")
    else:
        store.create("configmaps", {"metadata": {"name": name, "labels": {"colour": colour}}})


class Follower:
    """A client that lists, watches, and lists again when it is told that it is too far behind."""

    def __init__(self, store: ClusterStore, labels: str) -> None:
        self.store = store
        self.resource: ResourceType = store.resource("configmaps")
        self.labels = labels
        self.known: dict[str, str] = {}
        self.version = ""
        self.relists = 0
        self.watch: Watch | None = None
        self.relist()

    @property
    def wanted(self) -> Any:
        return selection(self.resource, labels=self.labels)

    def relist(self) -> None:
        self.relists += 1
        self.known.clear()
        token = ""
        while True:
            page = listing.page(self.store, self.resource, self.wanted, listing.Ask(limit=2, token=token))
            for item in page.items:
                self.note(item)
            token = page.token
            if not token:
                break
        self.version = str(page.version)

    def note(self, data: bytes) -> None:
        document = msgspec.json.decode(data)
        self.known[document["metadata"]["name"]] = document["metadata"]["labels"]["colour"]
        self.version = document["metadata"]["resourceVersion"]

    def follow(self, most: int) -> bool:
        """Read up to `most` events; whether there was one."""
        try:
            if self.watch is None:
                self.watch = Watch(
                    self.store, self.resource, self.wanted, version=self.version, initial=False
                )
            events = self.watch.pull(most)
        except StoreError as error:
            assert error.code == 410
            self.watch = None
            self.relist()
            return True
        for event in events:
            document = msgspec.json.decode(event.data)
            name = document["metadata"]["name"]
            if event.type == "DELETED":
                assert name in self.known
                del self.known[name]
                self.version = document["metadata"]["resourceVersion"]
            else:
                assert (event.type == "ADDED") == (name not in self.known)
                self.note(event.data)
        return bool(events)

    def lose_connection(self) -> None:
        self.watch = None


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(WRITES, st.integers(0, 3), st.booleans())),
    st.sampled_from(["", "colour=red", "!none"]),
)
def test_a_watcher_with_any_breaks_ends_with_what_a_list_shows(steps: Any, labels: str) -> None:
    store = new_store(window_changes=4)
    follower = Follower(store, labels)
    for (kind, name, colour), reads, breaks in steps:
        write(store, kind, name, colour)
        for _ in range(reads):
            follower.follow(1)
        if breaks:
            follower.lose_connection()
    while follower.follow(2):
        pass
    fresh = Follower(store, labels)
    assert follower.known == fresh.known


@settings(max_examples=300, deadline=None)
@given(st.lists(WRITES, max_size=12), st.lists(WRITES, max_size=12), st.integers(1, 3))
def test_all_pages_of_a_list_show_one_moment(before: Any, between: Any, limit: int) -> None:
    store = new_store()
    resource = store.resource("configmaps")
    for item in before:
        write(store, *item)
    whole = listing.page(store, resource, selection(resource), listing.Ask()).items
    pending = list(between)
    found: list[bytes] = []
    ask = listing.Ask(limit=limit)
    while True:
        page = listing.page(store, resource, selection(resource), ask)
        found += page.items
        if not page.token:
            break
        assert page.remaining == len(whole) - len(found)
        if pending:
            write(store, *pending.pop())
        ask = listing.Ask(limit=limit, token=page.token)
    assert tuple(found) == whole


def test_a_continue_token_that_is_too_old_is_410_and_comes_with_another_that_goes_on() -> None:
    store = new_store()
    resource = store.resource("configmaps")
    for name in NAMES:
        write(store, "set", name, "red")
    first = listing.page(store, resource, selection(resource), listing.Ask(limit=2))
    write(store, "set", "a", "blue")
    store.compact()
    error = refusal(
        lambda: listing.page(store, resource, selection(resource), listing.Ask(limit=2, token=first.token))
    )
    assert (error.code, error.reason) == (410, "Expired")
    assert isinstance(error, listing.ExpiredListError)
    rest = listing.page(store, resource, selection(resource), listing.Ask(limit=2, token=error.token))
    names = [msgspec.json.decode(item)["metadata"]["name"] for item in rest.items]
    assert names == ["c", "d"]
    assert rest.version == store.version


def test_a_list_in_the_future_is_a_timeout_and_at_an_exact_version_it_is_the_past() -> None:
    store = new_store()
    resource = store.resource("configmaps")
    write(store, "set", "a", "red")
    then = str(store.version)
    write(store, "set", "b", "red")
    future = listing.Ask(version=str(store.version + 1))
    assert refusal(lambda: listing.page(store, resource, selection(resource), future)).code == 504
    exact = listing.page(store, resource, selection(resource), listing.Ask(version=then, match="Exact"))
    assert len(exact.items) == 1
    assert str(exact.version) == then


def test_a_watch_from_before_the_window_is_410() -> None:
    store = new_store(window_changes=2)
    resource = store.resource("configmaps")
    began = str(store.version)
    for name in NAMES:
        write(store, "set", name, "red")
    error = refusal(lambda: Watch(store, resource, selection(resource), version=began, initial=False))
    assert (error.code, error.reason) == (410, "Expired")


def test_a_slow_watch_that_the_window_has_left_behind_is_410() -> None:
    store = new_store(window_changes=2)
    resource = store.resource("configmaps")
    watch = Watch(store, resource, selection(resource), version=str(store.version), initial=False)
    for name in NAMES:
        write(store, "set", name, "red")
    assert refusal(lambda: watch.pull(10)).code == 410


def test_an_object_that_leaves_a_selector_is_deleted_as_it_was_at_the_version_of_the_change() -> None:
    store = new_store()
    resource = store.resource("configmaps")
    write(store, "set", "a", "red")
    wanted = selection(resource, labels="colour=red")
    watch = Watch(store, resource, wanted, version=str(store.version), initial=False)
    write(store, "set", "a", "blue")
    (event,) = watch.pull(10)
    document = msgspec.json.decode(event.data)
    assert event.type == "DELETED"
    assert document["metadata"]["labels"] == {"colour": "red"}
    assert document["metadata"]["resourceVersion"] == str(store.version)


def test_a_watch_with_initial_events_marks_their_end() -> None:
    store = new_store()
    resource = store.resource("configmaps")
    write(store, "set", "a", "red")
    events = Watch(store, resource, selection(resource), version="", initial=True).pull(10)
    assert [event.type for event in events] == ["ADDED", "BOOKMARK"]
    assert b'"k8s.io/initial-events-end":"true"' in events[1].data


@pytest.mark.parametrize("text", ["x", "-1", "1.5"])
def test_a_watch_of_what_is_no_version_is_500_as_the_real_server_has_it(text: str) -> None:
    store = new_store()
    resource = store.resource("configmaps")
    error = refusal(lambda: Watch(store, resource, selection(resource), version=text, initial=False))
    assert error.code == 500
    assert "invalid syntax" in error.message
