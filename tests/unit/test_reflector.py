"""The reflector against an API server that pages, drops, compacts, babbles and falls silent."""

import queue
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from remediation.reflector import Event, Kind, Reflector
from tests.api_server import Recorded, Reply, ScriptedApi, Stream, status_object
from tests.lab.processes import wait_until

PATH = "/apis/sickbay.dev/v1alpha1/acceleratorreports"


class Meta(msgspec.Struct, frozen=True):
    name: str
    uid: str = ""


class Report(msgspec.Struct, frozen=True):
    metadata: Meta
    sequence: int = 0


def thing(name: str, version: int, *, uid: str = "", **fields: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": uid, "resourceVersion": str(version)}, **fields}


def change(kind: str, obj: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "object": obj}


def bookmark(version: int) -> dict[str, Any]:
    return change("BOOKMARK", {"metadata": {"resourceVersion": str(version)}})


class Collection:
    """The server's side: what a list finds, and one stream for each watch in its turn."""

    def __init__(self, api: ScriptedApi) -> None:
        self.items: list[Any] = []
        self.version = 10
        self.lists: list[Recorded] = []
        self.watches: list[Recorded] = []
        self.opened: queue.Queue[Stream] = queue.Queue()
        self.list_refusals: list[Reply] = []
        self.watch_refusals: list[Reply] = []
        api.route = self.route

    def route(self, request: Recorded) -> Reply:
        if request.query.get("watch") == "true":
            self.watches.append(request)
            if self.watch_refusals:
                return self.watch_refusals.pop(0)
            stream = Stream()
            self.opened.put(stream)
            return Reply(stream)
        self.lists.append(request)
        if self.list_refusals:
            return self.list_refusals.pop(0)
        start, limit = int(request.query.get("continue", 0)), int(request.query["limit"])
        metadata = {"resourceVersion": str(self.version)}
        if start + limit < len(self.items):
            metadata["continue"] = str(start + limit)
        body = {"kind": "List", "metadata": metadata, "items": self.items[start : start + limit]}
        return Reply(msgspec.json.encode(body))

    def stream(self) -> Stream:
        return self.opened.get(timeout=5)


def refusal(code: int, reason: str) -> Reply:
    return Reply(msgspec.json.encode(status_object(code, reason)), code)


class Events:
    def __init__(self) -> None:
        self.queue: queue.Queue[Event[Report]] = queue.Queue()

    def next(self) -> tuple[str, str]:
        event = self.queue.get(timeout=5)
        return event.kind.value, event.key

    def take(self, count: int) -> list[tuple[str, str]]:
        return [self.next() for _ in range(count)]

    def until_synced(self) -> list[tuple[str, str]]:
        taken = [self.next()]
        while taken[-1][0] != "Synced":
            taken.append(self.next())
        return taken[:-1]

    def none(self) -> bool:
        return self.queue.empty()


@pytest.fixture
def collection(api: ScriptedApi) -> Collection:
    return Collection(api)


@pytest.fixture
def events() -> Events:
    return Events()


Make = Callable[..., Reflector[Report]]


@pytest.fixture
def make(api: ScriptedApi, events: Events) -> Iterator[Make]:
    made: list[Reflector[Report]] = []

    def build(**given: Any) -> Reflector[Report]:
        settings: dict[str, Any] = {
            "key": lambda report: report.metadata.name,
            "sink": events.queue.put,
            "backoff_seconds": (0.01, 0.05),
        } | given
        reflector = Reflector(api.session(), PATH, Report, **settings)
        made.append(reflector)
        reflector.start()
        return reflector

    yield build
    for reflector in made:
        reflector.stop()


def test_a_list_comes_in_pages_and_ends_with_synced(
    collection: Collection, events: Events, make: Make
) -> None:
    collection.items = [thing(f"n{number}", number) for number in range(5)]
    reflector = make(page_size=2)
    assert reflector.synced.wait(5)
    assert events.take(6) == [("Added", f"n{number}") for number in range(5)] + [("Synced", "")]
    assert [request.query.get("continue") for request in collection.lists] == [None, "2", "4"]
    assert time.monotonic() - reflector.last_contact < 5


def test_a_watch_begins_at_the_lists_version_and_delivers_changes(
    collection: Collection, events: Events, make: Make
) -> None:
    collection.items = [thing("n1", 3)]
    make(query={"labelSelector": "gpu=true"})
    stream = collection.stream()
    events.until_synced()
    stream.line(
        change("MODIFIED", thing("n1", 11, sequence=4)),
        change("ADDED", thing("n2", 12)),
        change("DELETED", thing("n1", 13, sequence=5)),
    )
    modified, added, deleted = (events.queue.get(timeout=5) for _ in range(3))
    assert (modified.kind, modified.object) == (Kind.MODIFIED, Report(Meta("n1"), 4))
    assert (added.kind, added.key) == (Kind.ADDED, "n2")
    assert (deleted.kind, deleted.object) == (Kind.DELETED, Report(Meta("n1"), 5))
    assert modified.received <= added.received <= deleted.received <= time.monotonic()
    query = collection.watches[0].query
    assert (query["resourceVersion"], query["allowWatchBookmarks"]) == ("10", "true")
    assert query["labelSelector"] == "gpu=true"
    assert 300 <= int(query["timeoutSeconds"]) <= 600


def test_a_watch_that_ends_resumes_from_the_last_bookmark_without_a_list(
    collection: Collection, events: Events, make: Make
) -> None:
    make()
    first = collection.stream()
    first.line(change("ADDED", thing("n1", 11)), bookmark(99))
    first.end()
    second = collection.stream()
    second.line(change("MODIFIED", thing("n1", 100)))
    assert events.take(3) == [("Synced", ""), ("Added", "n1"), ("Modified", "n1")]
    assert collection.watches[1].query["resourceVersion"] == "99"
    assert len(collection.lists) == 1


def test_a_broken_connection_resumes_from_the_last_event(
    collection: Collection, events: Events, make: Make
) -> None:
    reflector = make()
    first = collection.stream()
    first.line(change("ADDED", thing("n1", 11)))
    events.take(2)
    first.drop()
    collection.stream()
    assert collection.watches[1].query["resourceVersion"] == "11"
    assert len(collection.lists) == 1
    assert reflector.counters.errors == 1


def test_a_connection_that_is_silent_for_too_long_is_given_up(
    collection: Collection, events: Events, make: Make
) -> None:
    reflector = make(inactivity_seconds=0.2)
    collection.stream()
    collection.stream()
    assert collection.watches[1].query["resourceVersion"] == "10"
    assert reflector.counters.errors >= 1


@pytest.mark.parametrize("in_the_stream", [True, False])
def test_a_version_that_is_gone_leads_to_a_new_list_and_vanished_objects_are_deleted(
    collection: Collection, events: Events, make: Make, in_the_stream: bool
) -> None:
    collection.items = [thing("n1", 1), thing("n2", 2), thing("n3", 3)]
    reflector = make()
    stream = collection.stream()
    events.until_synced()
    collection.items = [thing("n1", 1), thing("n2", 20), thing("n4", 21)]
    collection.version = 30
    if in_the_stream:
        stream.line(change("ERROR", status_object(410, "Expired", "too old resource version")))
    else:
        collection.watch_refusals.append(refusal(410, "Expired"))
        stream.end()
    # n1 is as it was, so there is nothing to say of it.
    assert events.until_synced() == [("Modified", "n2"), ("Added", "n4"), ("Deleted", "n3")]
    collection.stream()
    assert collection.watches[-1].query["resourceVersion"] == "30"
    assert reflector.counters.lists == 2


def test_a_list_that_breaks_off_deletes_nothing(
    api: ScriptedApi, collection: Collection, events: Events, make: Make
) -> None:
    collection.items = [thing(f"n{number}", number) for number in range(4)]
    make(page_size=2)
    stream = collection.stream()
    events.until_synced()
    served = 0

    def expire_on_the_second_page(request: Recorded) -> Reply:
        nonlocal served
        if "watch" not in request.query:
            served += 1
            if served == 2:
                return refusal(410, "Expired")
        return collection.route(request)

    api.route = expire_on_the_second_page
    stream.line(change("ERROR", status_object(410, "Expired")))
    assert events.until_synced() == []
    assert served == 4


def test_objects_that_do_not_decode_are_passed_over_and_counted(
    collection: Collection, events: Events, make: Make
) -> None:
    collection.items = [thing("good", 1), thing("bad", 2, sequence="many"), {"metadata": 5}, 7]
    reflector = make()
    stream = collection.stream()
    assert events.until_synced() == [("Added", "good")]
    assert reflector.counters.skipped == 3
    stream.line(
        change("MODIFIED", thing("good", 11, sequence="many")),
        change("ADDED", {"metadata": {"name": 5}}),
        change("ADDED", thing("other", 12)),
    )
    assert events.next() == ("Added", "other")
    assert reflector.counters.skipped == 5


def test_an_object_that_no_longer_decodes_is_not_taken_for_deleted(
    collection: Collection, events: Events, make: Make
) -> None:
    collection.items = [thing("n1", 1)]
    make()
    stream = collection.stream()
    events.until_synced()
    collection.items = [thing("n1", 20, sequence="many")]
    stream.line(change("ERROR", status_object(410, "Expired")))
    assert events.until_synced() == []
    collection.items = []
    collection.stream().line(change("ERROR", status_object(410, "Expired")))
    assert events.until_synced() == [("Deleted", "n1")]


@pytest.mark.parametrize("garbage", [b"{", b"\xff\xfe", b"null", b'{"type": "ADDED"}', b"[1]"])
def test_a_line_that_is_no_event_makes_the_view_anew(
    collection: Collection, events: Events, make: Make, garbage: bytes
) -> None:
    collection.items = [thing("n1", 1)]
    reflector = make()
    stream = collection.stream()
    events.until_synced()
    stream.line(garbage)
    assert events.until_synced() == []
    assert reflector.counters.lists == 2


def test_an_object_reborn_under_its_old_name_is_a_deletion_and_an_addition(
    collection: Collection, events: Events, make: Make
) -> None:
    collection.items = [thing("n1", 1, uid="first")]
    make(key=lambda report: report.metadata.uid)
    stream = collection.stream()
    events.until_synced()
    collection.items = [thing("n1", 20, uid="second")]
    stream.line(change("ERROR", status_object(410, "Expired")))
    assert events.until_synced() == [("Deleted", "first"), ("Added", "second")]


def test_objects_of_two_namespaces_with_one_name_are_two(
    collection: Collection, events: Events, make: Make
) -> None:
    first, second = thing("p", 1, uid="a"), thing("p", 2, uid="b")
    first["metadata"]["namespace"], second["metadata"]["namespace"] = "x", "y"
    collection.items = [first, second]
    make(key=lambda report: report.metadata.uid)
    assert events.until_synced() == [("Added", "a"), ("Added", "b")]


@pytest.mark.parametrize(
    "reply",
    [refusal(500, "InternalError"), refusal(403, "Forbidden"), refusal(401, "Unauthorized"), Reply(None)],
)
def test_a_refused_list_is_tried_again_until_it_works(
    collection: Collection, events: Events, make: Make, reply: Reply
) -> None:
    collection.list_refusals = [reply] * 3
    collection.items = [thing("n1", 1)]
    reflector = make()
    assert events.until_synced() == [("Added", "n1")]
    assert reflector.counters.errors == 3


def test_a_server_that_ends_every_watch_at_once_is_not_asked_as_fast_as_it_answers(
    collection: Collection, make: Make
) -> None:
    make(backoff_seconds=(0.1, 10.0))
    began = time.monotonic()
    for _ in range(4):
        collection.stream().end()
    # At least 0.05 + 0.1 + 0.2 s.
    assert time.monotonic() - began > 0.3


def test_a_consumer_that_fails_does_not_end_the_thread(
    collection: Collection, events: Events, make: Make
) -> None:
    collection.items = [thing("n1", 1)]
    failures = [RuntimeError("full")]

    def sink(event: Event[Report]) -> None:
        if failures:
            raise failures.pop()
        events.queue.put(event)

    reflector = make(sink=sink)
    events.until_synced()
    assert reflector.counters.errors == 1


def test_stop_is_prompt_in_the_middle_of_a_quiet_watch(collection: Collection, make: Make) -> None:
    reflector = make()
    stream = collection.stream()
    assert stream.opened.wait(5)
    began = time.monotonic()
    reflector.stop()
    assert time.monotonic() - began < 1
    assert not reflector._thread.is_alive()


def test_stop_is_prompt_while_waiting_to_try_again(collection: Collection, make: Make) -> None:
    collection.list_refusals = [Reply(None)] * 100
    reflector = make(backoff_seconds=(60.0, 60.0))
    wait_until(lambda: reflector.counters.errors, 5, "the first failure")
    began = time.monotonic()
    reflector.stop()
    assert time.monotonic() - began < 1


def test_bookmarks_are_contact(collection: Collection, events: Events, make: Make) -> None:
    reflector = make()
    stream = collection.stream()
    events.until_synced()
    before = reflector.last_contact
    stream.line(bookmark(50))
    wait_until(lambda: reflector.last_contact > before, 5, "contact")
    assert reflector.counters.bookmarks == 1


@pytest.mark.skipif(not hasattr(__import__("socket"), "TCP_INFO"), reason="needs Linux")
def test_a_quiet_watch_is_proven_alive_by_keepalive(
    collection: Collection, events: Events, make: Make
) -> None:
    reflector = make()
    collection.stream()
    events.until_synced()
    contact = reflector.last_contact
    assert reflector.proven_alive() == contact
    # The socket is asked after two idle seconds and every two from then on.
    wait_until(lambda: reflector.proven_alive() > contact + 2, 8, "an answered keepalive")
    assert reflector.last_contact == contact
    assert reflector.proven_alive() <= time.monotonic()
