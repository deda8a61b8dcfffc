"""Where a contract test runs: one Kubernetes API behind the product's own client, and what people do to it there.

Everything a test does goes over the wire, so that it is the same on both. What differs is what no request of ours can
do: to shorten the API's history (`compact`, `age`), and to let the controllers of Kubernetes run (`controllers`).
"""

from __future__ import annotations

import itertools
import json
import secrets
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import urllib3

from runtime.api_errors import ApiError
from runtime.kubernetes import Session, WatchStream
from runtime.transport import Query

Object = dict[str, Any]

NODES = "/api/v1/nodes"
NAMESPACES = "/api/v1/namespaces"
SICKBAY = "/apis/sickbay.dev/v1alpha1"
REPORTS = f"{SICKBAY}/acceleratorreports"
SESSIONS = f"{SICKBAY}/acceleratorremediations"
CONTROLS = f"{SICKBAY}/acceleratorcontrols"
COORDINATION = "/apis/coordination.k8s.io/v1"
POLICY = "/apis/policy/v1"
APPS = "/apis/apps/v1"

AGENT = "sickbay-contract/1"
"""The User-Agent; what stands before the slash is the default field manager."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it came over the wire; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def object(self) -> Object:
        """The body as JSON."""
        return dict(json.loads(self.body))


@dataclass(frozen=True, slots=True)
class Wire:
    """Plain HTTP requests with nothing of the product in them."""

    server: str
    pool: urllib3.PoolManager

    @classmethod
    def to(cls, server: str, tls: ssl.SSLContext | None) -> Wire:
        """`tls` carries the client certificate; None for plain HTTP."""
        return cls(server, urllib3.PoolManager(retries=False, timeout=10, ssl_context=tls))

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Query | None = None,
        accept: str = "application/json",
        content_type: str = "application/json",
    ) -> Answer:
        """One request and its answer, whatever its status. `body` is bytes, or something to send as JSON."""
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        answer = self.pool.request(
            method,
            f"{self.server}{path}{f'?{urlencode(query)}' if query else ''}",
            body=sent,
            headers={"Accept": accept, "Content-Type": content_type, "User-Agent": AGENT},
        )
        return Answer(
            answer.status, {key.lower(): value for key, value in answer.headers.items()}, answer.data
        )


class Watch:
    """The events of a watch, one at a time; it ends with the `with` block."""

    def __init__(self, stream: WatchStream) -> None:
        self._stream = stream
        self._lines = iter(self._stream)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def raw(self) -> Iterator[Object]:
        """Every event that still comes, bookmarks and errors as well, until the server ends the watch."""
        for line in self._lines:
            yield json.loads(line)

    def next(self) -> tuple[str, Object]:
        """The type and the object of the next event that is no bookmark. Raises ApiError where none comes."""
        for event in self.raw():
            if event["type"] != "BOOKMARK":
                return event["type"], event["object"]
        raise AssertionError("the watch ended before the event came")

    def next_of(self, name: str) -> tuple[str, Object]:
        """The next event of the object of this name."""
        while True:
            kind, found = self.next()
            assert kind != "ERROR", found
            if found["metadata"]["name"] == name:
                return kind, found


@dataclass
class World:
    """One API. `compact` lets it forget its history up to now."""

    name: str
    session: Session
    kubeconfig: Path
    wire: Wire
    namespace: str
    compact: Callable[[], None]
    age: Callable[[str], str]
    """A `continue` token as if it had been given out before the last `compact`."""
    controllers: Callable[[], Any]
    """A context in which the controllers of Kubernetes run; outside of it nobody but the test changes anything."""
    bookmark_seconds: int
    """The shortest watch that gets a bookmark for certain."""
    patience: float = 8.0
    """Seconds that a test waits for an event that has to come."""
    server: Any = None
    """The EmbeddedApi, or the Lab."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def fresh(self, what: str) -> str:
        """A name that nothing has yet."""
        return f"{what}-{secrets.token_hex(3)}-{next(self._numbers)}"

    def collection(self, resource: str, *, group: str = "/api/v1", namespace: str = "") -> str:
        """The path of a namespaced collection, by default in the world's own namespace."""
        return f"{group}/namespaces/{namespace or self.namespace}/{resource}"

    @property
    def pods(self) -> str:
        return self.collection("pods")

    @property
    def config_maps(self) -> str:
        return self.collection("configmaps")

    @property
    def leases(self) -> str:
        return self.collection("leases", group=COORDINATION)

    @property
    def budgets(self) -> str:
        return self.collection("poddisruptionbudgets", group=POLICY)

    def get(self, path: str, query: Query | None = None) -> Object:
        return _object(self.session.get(path, query=query).body)

    def create(self, path: str, body: Object) -> Object:
        return _object(self.session.post(path, json.dumps(body).encode()).body)

    def replace(self, path: str, body: Object) -> Object:
        return _object(self.session.put(path, json.dumps(body).encode()).body)

    def merge(self, path: str, patch: Object, query: Query | None = None) -> Object:
        return _object(self.session.merge_patch(path, json.dumps(patch).encode(), query=query).body)

    def strategic(self, path: str, patch: Object) -> Object:
        return _object(self.session.strategic_merge_patch(path, json.dumps(patch).encode()).body)

    def json_patch(self, path: str, patch: list[Object]) -> Object:
        return _object(self.session.json_patch(path, json.dumps(patch).encode()).body)

    def delete(self, path: str, **options: Any) -> Object:
        return _object(self.session.delete(path, **options).body)

    def exists(self, path: str) -> bool:
        return self.wire.ask("GET", path).status == 200

    def names(self, path: str, **query: str) -> list[str]:
        """The names in a collection that a query finds."""
        return [item["metadata"]["name"] for item in self.get(path, query)["items"]]

    def version(self, path: str) -> str:
        """The resourceVersion of a collection as it is now."""
        return str(self.get(path, {"limit": 1})["metadata"]["resourceVersion"])

    def watch(self, path: str, version: str, *, seconds: int = 30, query: Query | None = None) -> Watch:
        stream = self.session.watch(
            path,
            query=query,
            resource_version=version,
            timeout_seconds=seconds,
            inactivity_seconds=self.patience,
        )
        return Watch(stream)


def _object(body: bytes) -> Object:
    return dict(json.loads(body))


@dataclass(frozen=True)
class Told:
    """What the product reads of a refusal: the class, the status, the reason, the causes' reasons and fields."""

    kind: type[ApiError]
    status: int
    reason: str
    causes: frozenset[tuple[str, str]] = frozenset()


@contextmanager
def refused(told: Told) -> Iterator[pytest.ExceptionInfo[ApiError]]:
    """Inside of it the API has to refuse, and in exactly this way."""
    with pytest.raises(ApiError) as caught:
        yield caught
    error = caught.value
    causes = frozenset((cause.reason, cause.field) for cause in error.causes)
    assert Told(type(error), error.status, error.reason, causes) == told, error
