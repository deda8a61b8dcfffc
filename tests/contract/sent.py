"""What the product asks of the Kubernetes API: read from its source, and recorded while it runs."""

from __future__ import annotations

import ast
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

from runtime.transport import JSON, Query, Transport

ROOT = Path(__file__).parents[2]
PRODUCT = ("health", "runtime", "exporter", "remediation")

METHODS = frozenset(
    {
        "get",
        "post",
        "put",
        "delete",
        "request",
        "list_pages",
        "watch",
        "merge_patch",
        "strategic_merge_patch",
        "json_patch",
    }
)
UNMISTAKABLE = frozenset({"list_pages", "merge_patch", "strategic_merge_patch", "json_patch"})
"""Nothing but a session has these."""

RECEIVERS = frozenset(
    {"session", "_session", "api", "_api", "page", "_page", "_kubelet", "kubelet_page", "with_token"}
)
"""What the product calls a session, or what gives one. `names_of_sessions` finds any other."""

_SURELY = frozenset({"session", "_session", "_api"})
"""Receivers whose other names are sessions as well."""

SESSION_TYPES = frozenset({"Session", "Transport", "ReportApi"})
PATCHES = {
    "application/merge-patch+json": "merge",
    "application/strategic-merge-patch+json": "strategic",
    "application/json-patch+json": "json",
}


@dataclass(frozen=True, slots=True)
class Sent:
    """One request. `site` is the function of the product that sent it; `resource` has the group and subresource."""

    site: str
    verb: str
    resource: str
    patch: str
    query: frozenset[str]


# From the source.


@cache
def sources() -> tuple[tuple[str, ast.Module], ...]:
    """Every module of the product, with its path from the root."""
    files = [path for package in PRODUCT for path in sorted((ROOT / package).rglob("*.py"))]
    return tuple((str(path.relative_to(ROOT)), ast.parse(path.read_text())) for path in files)


def call_sites() -> set[str]:
    """Every `FILE:FUNCTION:METHOD` at which the product asks a session for something."""
    found: set[str] = set()
    for file, tree in sources():
        for function, call in _calls(tree, ""):
            if file in ("runtime/kubernetes.py", "runtime/transport.py") and call.attr in (
                "request",
                "watch",
            ):
                continue
            receiver = _last_name(call.value)
            if call.attr in UNMISTAKABLE or (call.attr in METHODS and _is_session(receiver, file)):
                found.add(f"{file}:{function}:{call.attr}")
    return found


def names_of_sessions() -> set[str]:
    """Every name in the product that is annotated as a session, or assigned from what makes one."""
    found: set[str] = set()
    for _file, tree in sources():
        for node in ast.walk(tree):
            match node:
                case ast.arg(arg=name, annotation=ast.expr() as kind) if _mentions_session(kind):
                    found.add(name)
                case ast.AnnAssign(target=target, annotation=kind) if _mentions_session(kind):
                    found.add(_last_name(target))
                case ast.Assign(targets=[target], value=ast.Call(func=made)) if _last_name(made) in (
                    "session_from",
                    "from_kubeconfig",
                    "in_cluster",
                    "toward",
                    "clone",
                    "kubelet_session",
                ):
                    found.add(_last_name(target))
                case ast.Assign(targets=[target], value=ast.Name() | ast.Attribute() as value) if (
                    _last_name(value) in _SURELY
                ):
                    found.add(_last_name(target))
    return found - {""}


def _is_session(receiver: str, file: str) -> bool:
    return receiver in RECEIVERS or (receiver == "self" and file == "runtime/kubernetes.py")


def _calls(node: ast.AST, function: str) -> Iterator[tuple[str, ast.Attribute]]:
    for child in ast.iter_child_nodes(node):
        inside = function
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            inside = f"{function}.{child.name}" if function else child.name
        if isinstance(child, ast.Call) and isinstance(child.func, ast.Attribute):
            yield inside, child.func
        yield from _calls(child, inside)


def _last_name(node: ast.AST) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Call(func=called):
            return _last_name(called)
    return ""


def _mentions_session(annotation: ast.expr) -> bool:
    named = {child.id for child in ast.walk(annotation) if isinstance(child, ast.Name)}
    quoted = {child.value for child in ast.walk(annotation) if isinstance(child, ast.Constant)}
    return bool((named | quoted) & SESSION_TYPES)


# While it runs.


@contextmanager
def recording() -> Iterator[list[Sent]]:
    """Every request that any session sends inside, whether it succeeds or not."""
    found: list[Sent] = []
    lock = threading.Lock()
    request, watch = Transport.request, Transport.watch

    def note(verb: str, path: str, patch: str, query: Query | None) -> None:
        method = "watch" if verb == "watch" else "request"
        sent = Sent(_site(sys._getframe(2), method), verb, resource_of(path), patch, frozenset(query or ()))
        with lock:
            found.append(sent)

    def noting_request(self: Transport, method: str, path: str, **given: Any) -> Any:
        query = given.get("query")
        patch = PATCHES.get(given.get("content_type", JSON), "")
        note(verb_of(method, path, query), path, patch, query)
        return request(self, method, path, **given)

    def noting_watch(self: Transport, path: str, **given: Any) -> Any:
        note("watch", path, "", given.get("query"))
        return watch(self, path, **given)

    with (
        mock.patch.object(Transport, "request", noting_request),
        mock.patch.object(Transport, "watch", noting_watch),
    ):
        yield found


_RESOURCE = re.compile(
    r"/(?:api/v1|apis/(?P<group>[^/]+)/[^/]+)(?:/namespaces/[^/]+(?=/))?/(?P<plural>[^/]+)"
    r"(?:/(?P<name>[^/]+)(?:/(?P<subresource>[^/]+))?)?"
)


def resource_of(path: str) -> str:
    """As in RBAC, such as `pods/eviction` or `jobs.batch`; the path itself where it is no resource's."""
    found = _RESOURCE.fullmatch(path)
    if found is None:
        return path
    name = found["plural"] + (f"/{found['subresource']}" if found["subresource"] else "")
    return f"{name}.{found['group']}" if found["group"] else name


def verb_of(method: str, path: str, query: Query | None) -> str:
    """The verb as in RBAC."""
    if method != "GET":
        return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[method]
    found = _RESOURCE.fullmatch(path)
    return "get" if found is None or found["name"] else "list"


def _site(frame: FrameType | None, method: str) -> str:
    """The nearest function of the product's above the session, as `call_sites` spells it."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if not path.is_relative_to(ROOT):
            break
        file = str(path.relative_to(ROOT))
        name = re.sub(r"\.<\w+>", "", frame.f_code.co_qualname)
        if file not in ("runtime/kubernetes.py", "runtime/transport.py") or name == "Session.check":
            return f"{file}:{name}:{method}"
        method = frame.f_code.co_name
        frame = frame.f_back
    return f"elsewhere:{method}"
