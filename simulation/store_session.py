"""A session whose requests go to the embedded API's handlers, without a socket."""

from __future__ import annotations

from urllib.parse import urlencode

import msgspec

from runtime.api_errors import api_error
from runtime.kubernetes import Session
from runtime.kubernetes_auth import Access
from runtime.transport import DEFAULT_TIMEOUT, JSON, Query, Response, Timeout
from simulation.cluster.errors import status_of
from simulation.cluster.faults import Strike
from simulation.cluster.handlers import handle
from simulation.cluster.interface import StoreError
from simulation.cluster.requests import Request, call_of
from simulation.cluster.store import ClusterStore


class _Nowhere:
    """The credentials of a session that opens no connection."""

    source = "the embedded store"

    def access(self) -> Access:
        return Access("127.0.0.1", 0, "", None)

    def authorization(self) -> str | None:
        return None

    def refresh(self) -> None:
        """There is nothing to read again."""


class StoreSession(Session):
    """Requests are carried out by the embedded API's handlers in the caller's thread. It has no watches."""

    def __init__(self, store: ClusterStore, *, user_agent: str) -> None:
        super().__init__(_Nowhere(), user_agent=user_agent)
        self._store = store

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: bytes | None = None,
        content_type: str = JSON,
        timeout: Timeout = DEFAULT_TIMEOUT,
    ) -> Response:
        """As `Transport.request`."""
        target = f"{path}?{urlencode(query)}" if query else path
        headers = {"user-agent": self.user_agent, "content-type": content_type}
        call = call_of(Request(method, target, headers, body or b""), self._store.catalogue)
        if call is None:
            raise api_error(404, {}, b"404 page not found", request=f"{method} {path}")
        try:
            answer = handle(self._store, call, Strike())
        except StoreError as error:
            told = msgspec.json.encode(status_of(error))
            raise api_error(error.code, {}, told, request=f"{method} {path}") from error
        return Response(answer.status, {}, answer.body)
