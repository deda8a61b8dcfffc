"""A small JSON client of the lab's API server, for polling without the price of starting kubectl."""

import json
from pathlib import Path
from typing import Any

import urllib3

Object = dict[str, Any]


class ApiError(Exception):
    """The API server refused; `status` is the HTTP status, the text its message."""

    def __init__(self, status: int, method: str, path: str, message: str) -> None:
        super().__init__(f"{method} {path}: {status}: {message}")
        self.status = status


class Api:
    """One user's view of the API server; safe to use from several threads."""

    def __init__(
        self,
        server: str,
        ca: Path,
        *,
        certificate: Path | None = None,
        key: Path | None = None,
        token: str | None = None,
    ) -> None:
        self.server = server
        self._headers = {"User-Agent": "sickbay-lab"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._pool = urllib3.PoolManager(
            maxsize=8,
            retries=False,
            timeout=urllib3.Timeout(connect=5, read=30),
            ca_certs=str(ca),
            cert_file=str(certificate) if certificate else None,
            key_file=str(key) if key else None,
        )

    def get(self, path: str) -> Object:
        """GET a path such as `/api/v1/nodes/n1`. Raises ApiError; urllib3's errors pass."""
        return self.request("GET", path)

    def exists(self, path: str) -> bool:
        """Whether a GET of the path finds something. Raises ApiError for anything but 200 and 404."""
        try:
            self.get(path)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    def items(self, path: str) -> list[Object]:
        """GET a list and return its items."""
        return list(self.get(path)["items"])

    def create(self, path: str, body: Object) -> Object:
        """POST an object to a collection."""
        return self.request("POST", path, body)

    def delete(self, path: str, body: Object | None = None) -> Object:
        """DELETE an object or a collection."""
        return self.request("DELETE", path, body)

    def patch(self, path: str, body: Object | list[Object], kind: str = "merge-patch+json") -> Object:
        """PATCH; `kind` is "merge-patch+json", "strategic-merge-patch+json" or "json-patch+json"."""
        return self.request("PATCH", path, body, content_type=f"application/{kind}")

    def text(self, path: str) -> str:
        """GET a path that answers with text (`/readyz`, logs, metrics). Raises ApiError."""
        return self._send("GET", path, None, "application/json").decode(errors="replace")

    def request(
        self,
        method: str,
        path: str,
        body: Object | list[Object] | None = None,
        *,
        content_type: str = "application/json",
    ) -> Object:
        """Send one request, return the answer's JSON. Raises ApiError."""
        answer = json.loads(self._send(method, path, body, content_type))
        return dict(answer)

    def _send(self, method: str, path: str, body: object, content_type: str) -> bytes:
        response = self._pool.request(
            method,
            f"{self.server}{path}",
            body=None if body is None else json.dumps(body).encode(),
            headers={**self._headers, "Content-Type": content_type},
        )
        if response.status >= 300:
            raise ApiError(response.status, method, path, _message(response.data))
        return response.data


def _message(data: bytes) -> str:
    try:
        return str(json.loads(data)["message"])
    except (ValueError, KeyError, TypeError):
        return data.decode(errors="replace")
