"""The Kubernetes API, raw: bytes in, bytes out, typed errors, for the agent and the controller alike.

Nothing is retried here. A mutation whose answer is lost may have been carried out, and only the caller
knows what makes it safe to send again (a resourceVersion, a UID, a name that is taken). Bodies are bytes:
callers encode and decode msgspec structs that hold only the fields they use, where the `kubernetes` client
takes 150 ms to make 500 typed pods.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from runtime.api_errors import ApiError, ConnectionFailed, Unauthorized, Unavailable
from runtime.kubernetes_auth import (
    SERVICE_ACCOUNT,
    Access,
    Elsewhere,
    FileCredentials,
    InClusterCredentials,
    KubeconfigError,
    NodeIdentity,
    node_identity,
)
from runtime.transport import DEFAULT_TIMEOUT, Query, Response, Timeout, Transport
from runtime.watch_stream import WatchStream

__all__ = ["KubeconfigError", "NodeIdentity", "Page", "Response", "Session", "WatchStream", "session_from"]

_MERGE_PATCH = "application/merge-patch+json"
_STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"
_JSON_PATCH = "application/json-patch+json"


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list: the whole List object as JSON, and the list's resourceVersion."""

    body: bytes
    resource_version: str


class _ListMeta(msgspec.Struct, frozen=True):
    resource_version: str = msgspec.field(default="", name="resourceVersion")
    token: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct, frozen=True):
    metadata: _ListMeta


_decode_list = msgspec.json.Decoder(_List).decode


def session_from(kubeconfig: Path | None, *, user_agent: str) -> "Session":
    """The session of a kubeconfig's current context, or without one that of the pod we run in.

    Raises KubeconfigError.
    """
    if kubeconfig is None:
        return Session.in_cluster(user_agent=user_agent)
    return Session.from_kubeconfig(kubeconfig, user_agent=user_agent)


class Session(Transport):
    """One API server as one user: the verbs of Kubernetes over `Transport.request` and `Transport.watch`."""

    @classmethod
    def in_cluster(
        cls,
        *,
        user_agent: str,
        directory: Path = SERVICE_ACCOUNT,
        environ: Mapping[str, str] = os.environ,
    ) -> "Session":
        """As the pod's ServiceAccount. Raises KubeconfigError outside of a pod."""
        return cls(InClusterCredentials(directory, environ), user_agent=user_agent)

    @classmethod
    def from_kubeconfig(cls, path: Path, *, user_agent: str) -> "Session":
        """As the user of the file's current context. Raises KubeconfigError."""
        return cls(FileCredentials(path), user_agent=user_agent)

    def clone(self) -> "Session":
        """The same user with connections of its own, so that a busy neighbour cannot delay it."""
        return Session(self._credentials, user_agent=self.user_agent, max_body=self._max_body)

    def toward(self, access: Access) -> "Session":
        """The same user at another server, such as the node's own kubelet. Its certificate is what `access` demands."""
        return Session(
            Elsewhere(self._credentials, access), user_agent=self.user_agent, max_body=self._max_body
        )

    def node_identity(self) -> NodeIdentity | None:
        """The node that our token is bound to, if it is."""
        return node_identity(self._credentials.authorization())

    def check(self) -> str:
        """The server's version, such as `v1.37.2`.

        Raises KubeconfigError when the server cannot be reached, does not prove its identity, or refuses us.
        """
        try:
            version = msgspec.json.decode(self.get("/version", timeout=(5.0, 5.0)).body, type=dict[str, Any])
            return str(version.get("gitVersion", "unknown"))
        except ConnectionFailed as error:
            why = f"cannot be reached: {error.message}"
        except Unauthorized as error:
            why = f"refuses the credentials: {error.message}"
        except ApiError as error:
            why = f"answers {error}"
        except (msgspec.MsgspecError, UnicodeDecodeError):
            why = "answers, but not as a Kubernetes API server"
        raise KubeconfigError(f"{self._credentials.source}: {self.server} {why}")

    def get(self, path: str, *, query: Query | None = None, timeout: Timeout = DEFAULT_TIMEOUT) -> Response:
        """Read one object, or one page. Raises NotFound."""
        return self.request("GET", path, query=query, timeout=timeout)

    def list_pages(
        self, path: str, *, query: Query | None = None, limit: int = 500, timeout: Timeout = (3.0, 30.0)
    ) -> Iterator[Page]:
        """The pages of a collection, as they are asked for. Raises Gone when the listing took too long."""
        token = ""
        while True:
            paging: Query = {"limit": limit, "continue": token} if token else {"limit": limit}
            response = self.request("GET", path, query={**(query or {}), **paging}, timeout=timeout)
            try:
                meta = _decode_list(response.body).metadata
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise Unavailable(
                    f"not a list: {error}", status=response.status, request=f"GET {path}"
                ) from error
            yield Page(response.body, meta.resource_version)
            if not meta.token:
                return
            token = meta.token

    def post(
        self, path: str, body: bytes, *, query: Query | None = None, timeout: Timeout = DEFAULT_TIMEOUT
    ) -> Response:
        """Create. Raises Conflict with `already_exists` when the name is taken."""
        return self.request("POST", path, query=query, body=body, timeout=timeout)

    def put(
        self, path: str, body: bytes, *, query: Query | None = None, timeout: Timeout = DEFAULT_TIMEOUT
    ) -> Response:
        """Replace. Raises Conflict when the body's resourceVersion is not the current one."""
        return self.request("PUT", path, query=query, body=body, timeout=timeout)

    def merge_patch(
        self, path: str, body: bytes, *, query: Query | None = None, timeout: Timeout = DEFAULT_TIMEOUT
    ) -> Response:
        """RFC 7386. A `metadata.resourceVersion` in it is a precondition (409 Conflict); so is a `metadata.uid`, which
        is 422 Invalid where it differs, and ignored in the `/status` of a custom resource (seen on 1.37)."""
        return self.request("PATCH", path, query=query, body=body, content_type=_MERGE_PATCH, timeout=timeout)

    def strategic_merge_patch(
        self, path: str, body: bytes, *, query: Query | None = None, timeout: Timeout = DEFAULT_TIMEOUT
    ) -> Response:
        """Lists are merged by their key, as Node conditions are by `type`. Built-in types only, no CRDs."""
        return self.request(
            "PATCH", path, query=query, body=body, content_type=_STRATEGIC_MERGE_PATCH, timeout=timeout
        )

    def json_patch(
        self, path: str, body: bytes, *, query: Query | None = None, timeout: Timeout = DEFAULT_TIMEOUT
    ) -> Response:
        """RFC 6902. A `test` that does not hold is Invalid (422)."""
        return self.request("PATCH", path, query=query, body=body, content_type=_JSON_PATCH, timeout=timeout)

    def delete(
        self,
        path: str,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        grace_seconds: int | None = None,
        propagation: str | None = None,
        timeout: Timeout = DEFAULT_TIMEOUT,
    ) -> Response:
        """Delete, if the preconditions hold (else Conflict). `propagation` as in metav1.DeleteOptions."""
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        options = {
            "gracePeriodSeconds": grace_seconds,
            "preconditions": {key: value for key, value in preconditions.items() if value is not None}
            or None,
            "propagationPolicy": propagation,
        }
        given = {key: value for key, value in options.items() if value is not None}
        body = msgspec.json.encode({"apiVersion": "v1", "kind": "DeleteOptions", **given})
        return self.request("DELETE", path, body=body, timeout=timeout)
