"""What the API answers to a call on a resource, watches apart: verbs on the store, with media types and queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from simulation.cluster import listing, pods
from simulation.cluster.deletion import DeleteOptions
from simulation.cluster.errors import (
    bad_request,
    method_not_allowed,
    success,
    unprocessable,
    unsupported_media_type,
)
from simulation.cluster.faults import Strike
from simulation.cluster.history import TooOldError
from simulation.cluster.interface import Object, StoreError
from simulation.cluster.metadata import check_place
from simulation.cluster.patches import PatchError, apply_json_patch, merge, without_nulls
from simulation.cluster.records import Writer, Written
from simulation.cluster.requests import Call
from simulation.cluster.selectors import selection
from simulation.cluster.store import ClusterStore
from simulation.cluster.strategic import strategic_merge
from simulation.cluster.tables import table, wants_table
from simulation.cluster.wire import Answer

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
_BODIES = ("application/json", "application/yaml", "application/vnd.kubernetes.protobuf")


def handle(store: ClusterStore, call: Call, strike: Strike) -> Answer:
    """Carry a call out. Raises StoreError."""
    handler = _HANDLERS.get((call.verb, call.subresource), _HANDLERS.get((call.verb, "*")))
    if handler is None or (call.subresource in ("eviction", "binding") and call.verb != "create"):
        raise method_not_allowed()
    return handler(store, call, strike)


def _get(store: ClusterStore, call: Call, strike: Strike) -> Answer:
    version = max(1, store.version - strike.behind) if strike.behind else None
    try:
        data = store.read(call.resource, call.namespace, call.name, version=version)
    except TooOldError:
        # As far back as is known: what was there before the window began.
        floor = store.table(call.resource).floor
        data = store.read(call.resource, call.namespace, call.name, version=floor)
    return _shown(store, call, data)


def _list(store: ClusterStore, call: Call, strike: Strike) -> Answer:
    query = call.request.query
    wanted = selection(
        call.resource,
        namespace=call.namespace,
        labels=query.get("labelSelector", ""),
        fields=query.get("fieldSelector", ""),
    )
    floor = store.table(call.resource).floor
    ask = listing.Ask(
        limit=_number(query, "limit"),
        token=query.get("continue", ""),
        version=query.get("resourceVersion", ""),
        match=query.get("resourceVersionMatch", ""),
        behind=min(strike.behind, store.version - floor) if strike.behind else 0,
    )
    found = listing.page(store, call.resource, wanted, ask)
    if wants_table(call.request.headers.get("accept", "")):
        body = table(
            call.resource,
            found.items,
            version=str(found.version),
            now=store.now(),
            include=query.get("includeObject", ""),
            token=found.token,
            remaining=found.remaining,
        )
        return Answer(200, body + b"\n")
    return Answer(200, listing.encoded(call.resource, found))


def _create(store: ClusterStore, call: Call, strike: Strike) -> Answer:
    if call.name:
        raise method_not_allowed()
    body = _body(call)
    _dry(call)
    written = store.insert(call.resource, call.namespace, body, writer=_writer(call, strike))
    return _written(store, call, written)


def _update(store: ClusterStore, call: Call, strike: Strike) -> Answer:
    if not call.name:
        raise method_not_allowed()
    body = _body(call)
    check_place(body.get("metadata"), name=call.name, namespace=call.namespace)
    written = store.modify(
        call.resource,
        call.namespace,
        call.name,
        lambda _old: body,
        subresource=call.subresource,
        writer=_writer(call, strike),
        replace=True,
        dry_run=_dry(call, allowed=True),
    )
    return _written(store, call, written)


def _patch(store: ClusterStore, call: Call, strike: Strike) -> Answer:
    if not call.name:
        raise method_not_allowed()
    change = _change(call)
    written = store.modify(
        call.resource,
        call.namespace,
        call.name,
        change,
        subresource=call.subresource,
        writer=_writer(call, strike),
        dry_run=_dry(call, allowed=True),
    )
    return _written(store, call, written)


def _delete(store: ClusterStore, call: Call, strike: Strike) -> Answer:
    options = DeleteOptions.parse(_decoded(call) if call.request.body else None, call.request.query)
    _dry(call)
    removed = store.remove(call.resource, call.namespace, call.name, options, writer=_writer(call, strike))
    if not removed.gone or call.resource.returns_deleted:
        return _shown(store, call, removed.data)
    uid = msgspec.json.decode(removed.data)["metadata"]["uid"]
    group = {"group": call.resource.group} if call.resource.group else {}
    details = {"name": call.name, **group, "kind": call.resource.plural, "uid": uid}
    return _json(200, success(details=details))


def _delete_collection(store: ClusterStore, call: Call, strike: Strike) -> Answer:
    """One after another, and not as one: as the real server does."""
    query = call.request.query
    wanted = selection(
        call.resource,
        namespace=call.namespace,
        labels=query.get("labelSelector", ""),
        fields=query.get("fieldSelector", ""),
    )
    options = DeleteOptions.parse(_decoded(call) if call.request.body else None, query)
    _dry(call)
    found = listing.page(store, call.resource, wanted, listing.Ask())
    for data in found.items:
        metadata = msgspec.json.decode(data)["metadata"]
        try:
            namespace = metadata.get("namespace", "")
            store.remove(call.resource, namespace, metadata["name"], options, writer=_writer(call, strike))
        except StoreError as error:
            if error.code != 404:
                raise
    return Answer(200, listing.encoded(call.resource, found))


def _evict(store: ClusterStore, call: Call, strike: Strike) -> Answer:
    pods.evict(store, call.namespace, call.name, _body(call), writer=_writer(call, strike))
    return _json(201, success(code=201))


def _bind(store: ClusterStore, call: Call, strike: Strike) -> Answer:
    pods.bind(store, call.namespace, call.name, _body(call), writer=_writer(call, strike))
    return _json(201, success(code=201))


_HANDLERS: dict[tuple[str, str], Callable[[ClusterStore, Call, Strike], Answer]] = {
    ("get", "*"): _get,
    ("list", ""): _list,
    ("create", ""): _create,
    ("create", "eviction"): _evict,
    ("create", "binding"): _bind,
    ("update", "*"): _update,
    ("patch", "*"): _patch,
    ("delete", ""): _delete,
    ("deletecollection", ""): _delete_collection,
}


def _writer(call: Call, strike: Strike) -> Writer:
    strict = call.request.query.get("fieldValidation") == "Strict"
    return Writer(call.request.manager, strike.skew_seconds, strict)


def _dry(call: Call, *, allowed: bool = False) -> bool:
    """Whether nothing is to be kept. Raises StoreError where that cannot be had here."""
    dry = call.request.query.get("dryRun", "")
    if dry not in ("", "All"):
        raise bad_request(f"dryRun: Unsupported value: {dry!r}")
    if dry and not allowed:
        raise bad_request("this server has no dry run of a create or a delete")
    return bool(dry)


def _change(call: Call) -> Callable[[Object], Object]:
    """Raises StoreError 415, 400 for what is no patch."""
    kind = call.request.headers.get("content-type", "").partition(";")[0].strip()
    accepted = (
        (JSON_PATCH, MERGE_PATCH) if call.resource.custom else (JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH)
    )
    if kind not in accepted:
        if kind not in (STRATEGIC_PATCH, "application/apply-patch+yaml"):
            raise StoreError(415, "UnsupportedMediaType", "415: Unsupported Media Type")
        raise unsupported_media_type((*accepted, "application/apply-patch+yaml"))
    patch = _decoded(call)
    if kind == JSON_PATCH and not (isinstance(patch, list) and all(isinstance(item, dict) for item in patch)):
        raise bad_request("error decoding patch: a JSON patch is a list of operations")
    if kind != JSON_PATCH and not isinstance(patch, dict):
        raise bad_request("error decoding patch: a patch is an object")

    def change(old: Object) -> Object:
        try:
            if kind == JSON_PATCH:
                return dict(apply_json_patch(old, patch))
            return dict(merge(old, patch) if kind == MERGE_PATCH else strategic_merge(old, patch))
        except PatchError as error:
            raise unprocessable() if kind == JSON_PATCH else StoreError(500, "", str(error)) from error

    return change


def _decoded(call: Call) -> Any:
    try:
        return msgspec.json.decode(call.request.body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(f"error decoding the body: {error}") from error


def _body(call: Call) -> Object:
    kind = call.request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if kind not in ("", "application/json"):
        raise unsupported_media_type(_BODIES[:1])
    body = _decoded(call)
    if not isinstance(body, dict):
        raise bad_request("an object is expected")
    if call.resource.custom and not call.subresource and not body.get("kind"):
        raise bad_request("Object 'Kind' is missing in the body")
    # A null of a built-in kind is a field that is not there: Go decodes it so.
    return body if call.resource.custom else dict(without_nulls(body))


def _written(store: ClusterStore, call: Call, written: Written) -> Answer:
    """The object; with a warning for each field that is not in its schema."""
    answer = _shown(store, call, written.data, status=201 if written.created else 200)
    if not written.pruned or call.request.query.get("fieldValidation", "Warn") == "Ignore":
        return answer
    warnings = "\n".join(f'299 - "unknown field \\"{path}\\""' for path in written.pruned)
    return Answer(answer.status, answer.body, answer.content_type, {"Warning": warnings})


def _shown(store: ClusterStore, call: Call, data: bytes, *, status: int = 200) -> Answer:
    if wants_table(call.request.headers.get("accept", "")):
        include = call.request.query.get("includeObject", "")
        version = str(msgspec.json.decode(data)["metadata"]["resourceVersion"])
        body = table(call.resource, [data], version=version, now=store.now(), include=include)
        return Answer(status, body + b"\n")
    return Answer(status, data + b"\n")


def _json(status: int, body: Object) -> Answer:
    return Answer(status, msgspec.json.encode(body) + b"\n")


def _number(query: Mapping[str, str], key: str) -> int:
    """Raises StoreError 400."""
    text = query.get(key, "") or "0"
    if not (text.isascii() and text.isdigit()) or len(text) > 12:
        raise bad_request(f"{key} is not a number: {text!r}")
    return int(text)
