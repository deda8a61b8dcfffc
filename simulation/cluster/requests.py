"""An HTTP request as Kubernetes reads it: who asks for which verb on which object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import parse_qsl, unquote

from simulation.cluster.faults import Target
from simulation.cluster.managers import manager_of
from simulation.cluster.resources import Catalogue, ResourceType

ANONYMOUS = "system:anonymous"
_VERBS = {
    "POST": "create",
    "PUT": "update",
    "PATCH": "patch",
    "DELETE": "delete",
    "GET": "get",
    "HEAD": "get",
}


@dataclass(frozen=True)
class Request:
    """What came over the wire. Header names are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @cached_property
    def path(self) -> str:
        return unquote(self.target.partition("?")[0])

    @cached_property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self.target.partition("?")[2], keep_blank_values=True))

    @property
    def user(self) -> str:
        """The bearer token is the name of the user, who may speak for another (`kubectl --as`)."""
        if spoken_for := self.headers.get("impersonate-user", ""):
            return spoken_for
        kind, _, token = self.headers.get("authorization", "").partition(" ")
        return token.strip() if kind.lower() == "bearer" and token.strip() else ANONYMOUS

    @property
    def user_agent(self) -> str:
        return self.headers.get("user-agent", "")

    @property
    def manager(self) -> str:
        """The field manager of what this request writes."""
        return manager_of(self.query.get("fieldManager", ""), self.user_agent)


@dataclass(frozen=True, slots=True)
class Call:
    """A request on a resource. `name` is empty for a collection."""

    request: Request
    resource: ResourceType
    verb: str
    namespace: str
    name: str
    subresource: str

    @property
    def target(self) -> Target:
        """The call as faults see it."""
        resource = f"{self.resource.id}/{self.subresource}" if self.subresource else self.resource.id
        request = self.request
        return Target(self.verb, resource, self.namespace, self.name, request.user, request.user_agent)


def call_of(request: Request, catalogue: Catalogue) -> Call | None:
    """The call that a request is; None where its path names no resource that is served."""
    match request.path.strip("/").split("/"):
        case ["api", version, *rest]:
            group = ""
        case ["apis", group, version, *rest]:
            pass
        case _:
            return None
    namespace = ""
    # `namespaces/NAME` alone, or with a subresource of its own, is the namespace itself.
    if len(rest) > 2 and rest[0] == "namespaces" and not (group == "" and rest[2] in ("status", "finalize")):
        namespace, rest = rest[1], rest[2:]
    if not 1 <= len(rest) <= 3 or "" in rest:
        return None
    resource = catalogue.find(group, version, rest[0])
    if resource is None or (namespace and not resource.namespaced):
        return None
    name = rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 else ""
    if subresource and subresource not in resource.subresources:
        return None
    if name and resource.namespaced and not namespace:
        return None
    return Call(request, resource, _verb(request, name), namespace, name, subresource)


def _verb(request: Request, name: str) -> str:
    verb = _VERBS.get(request.method, request.method.lower())
    if not name:
        # Of one object there is no watch: the real server answers with the object.
        if verb == "get" and request.query.get("watch", "").lower() in ("1", "true"):
            return "watch"
        return {"get": "list", "delete": "deletecollection"}.get(verb, verb)
    return verb
