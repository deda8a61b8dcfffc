"""Lists: in pages with continue tokens, now or as of a resourceVersion, as the bytes that are sent.

From staging/src/k8s.io/apiserver/pkg/storage/{continue.go,etcd3/store.go}.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

import msgspec

from simulation.cluster.errors import (
    Cause,
    ExpiredListError,
    bad_request,
    expired,
    invalid,
    too_large_version,
)
from simulation.cluster.history import TooOldError
from simulation.cluster.interface import StoreError
from simulation.cluster.resources import ResourceType
from simulation.cluster.selectors import Selection
from simulation.cluster.store import ClusterStore

INCONSISTENT = -1


class _Token(msgspec.Struct, frozen=True):
    v: str
    rv: int
    start: str


@dataclass(frozen=True, slots=True)
class Page:
    """Objects in their order, encoded. `remaining` is None where it is not known."""

    items: tuple[bytes, ...]
    version: int
    token: str
    remaining: int | None


@dataclass(frozen=True, slots=True)
class Ask:
    """What a list asks for besides its selection. `limit` 0: all. `behind`: answer from that many versions ago."""

    limit: int = 0
    token: str = ""
    version: str = ""
    match: str = ""
    behind: int = 0


def page(store: ClusterStore, resource: ResourceType, wanted: Selection, ask: Ask) -> Page:
    """Raises StoreError: 410 for a token or an exact version that is too old, 400 for what is none, 504 for the
    future."""
    with store.lock:
        table = store.table(resource)
        start, version = _origin(store, ask)
        # From version 0 on the real server lists its cache, which knows no pages.
        limit = 0 if ask.version == "0" and not ask.token else ask.limit
        found: list[bytes] = []
        last = ""
        more = 0
        try:
            items = table.items(namespace=wanted.namespace, start=start, version=version)
            for key, data in items:
                if wanted.name and not wanted.covers(key):
                    continue
                if limit and len(found) == limit:
                    # One more that matches is enough to know that there is more; without a selector all are counted.
                    if wanted.selective and not wanted.passes(data):
                        continue
                    more += 1
                    if wanted.selective:
                        break
                elif wanted.passes(data):
                    found.append(data)
                    last = key
        except TooOldError:
            if ask.token:
                raise ExpiredListError(_encode(INCONSISTENT, start)) from None
            raise expired(version or 0, table.floor) from None
        shown = store.version if version is None else version
        token = _encode(shown, f"{last}\0") if more else ""
        return Page(tuple(found), shown, token, more if more and not wanted.selective else None)


def invalid_version(text: str) -> str:
    """The server's words for what is no resourceVersion."""
    return f'resourceVersion: Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax'


def parse_version(text: str) -> int:
    """Raises StoreError 400 for what is no resourceVersion."""
    if not (text.isascii() and text.isdigit()) or len(text) > 19:
        raise bad_request(f"invalid resource version: {invalid_version(text)}")
    return int(text)


def _origin(store: ClusterStore, ask: Ask) -> tuple[str, int | None]:
    """Where to start, and as of which version; None for now."""
    if ask.token:
        if ask.version not in ("", "0"):
            raise bad_request("specifying resource version is not allowed when using continue")
        token = _decode(ask.token)
        return token.start, None if token.rv == INCONSISTENT else token.rv
    if ask.match and not ask.version:
        raise invalid_match("resourceVersionMatch is forbidden unless resourceVersion is provided")
    if ask.version not in ("", "0"):
        version = parse_version(ask.version)
        if version > store.version:
            raise too_large_version(version, store.version)
        if ask.match == "Exact":
            return "", version
    if ask.behind:
        return "", max(1, store.version - ask.behind)
    return "", None


def invalid_match(why: str) -> StoreError:
    """422 for a resourceVersionMatch that does not go with the rest."""
    cause = Cause("FieldValueForbidden", f"Forbidden: {why}", "resourceVersionMatch")
    return invalid("ListOptions", "meta.k8s.io", "", [cause])


def _encode(version: int, start: str) -> str:
    token = msgspec.json.encode(_Token("meta.k8s.io/v1", version, start))
    return base64.urlsafe_b64encode(token).rstrip(b"=").decode()


def _decode(text: str) -> _Token:
    try:
        padded = text + "=" * (-len(text) % 4)
        return msgspec.json.decode(base64.urlsafe_b64decode(padded), type=_Token)
    except (binascii.Error, msgspec.MsgspecError, UnicodeError, ValueError) as error:
        raise bad_request(f"invalid continue token: continue key is not valid: {error}") from error


def encoded(resource: ResourceType, found: Page) -> bytes:
    """The List object. Items of built-in kinds come without their kind, as the real server sends them."""
    meta: dict[str, object] = {"resourceVersion": str(found.version)}
    if found.token or resource.custom:
        meta["continue"] = found.token
    if found.remaining is not None:
        meta["remainingItemCount"] = found.remaining
    head = {"kind": resource.list_kind, "apiVersion": resource.api_version, "metadata": meta}
    cut = 0 if resource.custom else len(resource.prefix)
    items = b",".join(b"{" + data[cut:] if cut else data for data in found.items)
    return b'%s,"items":[%s]}\n' % (msgspec.json.encode(head)[:-1], items)
