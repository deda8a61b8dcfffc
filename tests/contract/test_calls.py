"""The list of calls is what the product does, no less and no more, and every line of it has its contract tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import yaml

from tests.contract.calls import CALLS, KUBELET, Call
from tests.contract.product import drive
from tests.contract.sent import (
    PRODUCT,
    RECEIVERS,
    ROOT,
    Sent,
    call_sites,
    names_of_sessions,
    recording,
    sources,
)
from tests.contract.world import World

HERE = Path(__file__).parent


def test_every_call_site_in_the_product_is_in_the_list() -> None:
    listed = {site for call in CALLS for site in call.sites}
    assert call_sites() - listed - KUBELET == set()
    assert (listed | KUBELET) - call_sites() == set()


def test_no_session_goes_by_a_name_that_the_search_does_not_know() -> None:
    assert names_of_sessions() <= RECEIVERS


def test_every_path_of_the_api_is_written_in_a_module_that_calls_it() -> None:
    """A call that the search for sites cannot see would still have to name its path."""
    callers = {site.partition(":")[0] for call in CALLS for site in call.sites}
    named = {
        file
        for file, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.match(r"/apis?/", node.value)
        and " " not in node.value
    }
    assert named <= callers


def test_nothing_else_in_the_product_opens_a_connection_to_the_api() -> None:
    """Only `runtime.transport` has HTTP in it, but for what speaks to collectors and to the kubelet's socket."""
    users = {
        file
        for file, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names])
        if name and name.split(".")[0] in ("urllib3", "kubernetes", "requests", "httpx", "aiohttp")
    }
    assert users <= {
        "runtime/transport.py",
        "runtime/watch_stream.py",
        "runtime/kubernetes_auth.py",
        "runtime/span_export.py",
        "runtime/tracing.py",
    }


def test_every_line_has_contract_tests_that_exist_and_run_on_both() -> None:
    known = {
        f"{path.name}:{node.name}"
        for path in HERE.glob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and "world" in {one.arg for one in node.args.args}
    }
    assert [call for call in CALLS if not call.tests] == []
    assert {test for call in CALLS for test in call.tests} - known == set()


def test_what_the_product_sends_is_in_the_list_and_the_list_is_sent(world: World) -> None:
    with recording() as sent:
        drive(world, world.session.clone())
    ours = {one for one in sent if one.site.partition("/")[0] in PRODUCT}
    assert {one for one in ours if not any(fits(one, call) for call in CALLS)} == set()
    assert [call for call in CALLS if not any(fits(one, call) for one in ours)] == []
    # Every place, not only every call.
    assert call_sites() - KUBELET - {one.site for one in ours} == set()


def test_what_the_server_was_asked_is_in_the_list(world: World) -> None:
    """The server's own account of the same, under the User-Agent of the product."""
    session = world.session.clone()
    session.user_agent = f"{world.fresh('sickbay-product')}/1"
    drive(world, session)
    assert set(_audited(world, session.user_agent)) == {(call.verb, call.resource) for call in CALLS}


def test_what_is_granted_is_what_is_called() -> None:
    """The roles in `deploy/` and the list agree; the kubelet's own port is granted besides."""
    called = {(call.verb, call.resource) for call in CALLS if not call.resource.startswith("/")}
    granted = {
        (verb, f"{resource}.{group}" if group else resource)
        for role in _roles()
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert called - granted == set()
    assert granted - called == {("get", "nodes/pods"), ("get", "nodes/metrics")}


def _roles() -> list[dict[str, Any]]:
    files = [*(ROOT / "deploy" / "manifests").glob("*.yaml"), *(ROOT / "deploy").glob("repair/*.yaml")]
    documents = [item for path in files for item in yaml.safe_load_all(path.read_text()) if item]
    return [item for item in documents if item["kind"] in ("Role", "ClusterRole")]


def fits(sent: Sent, call: Call) -> bool:
    same = (sent.verb, sent.resource, sent.patch) == (call.verb, call.resource, call.patch)
    return same and sent.query <= call.query and sent.site in call.sites


def _audited(world: World, agent: str) -> list[tuple[str, str]]:
    """Verb and resource of what this User-Agent has asked for, from the server's audit log."""
    if world.name == "real":
        events = [one for one in world.server.audit_events() if one.get("userAgent") == agent]
        return [(one["verb"], _audited_name(one)) for one in events]
    entries = [entry for entry in world.server.audit.entries() if entry.user_agent == agent]
    return [(entry.verb, _name(entry.resource, entry.subresource) or entry.uri) for entry in entries]


def _name(resource: str, subresource: str) -> str:
    """As in RBAC. An eviction is of a pod, whatever its own group."""
    plural, _, group = resource.partition(".")
    whole = f"{plural}/{subresource}" if subresource else plural
    return f"{whole}.{group}" if group and subresource != "eviction" else whole


def _audited_name(event: dict[str, Any]) -> str:
    about = event.get("objectRef", {})
    group = f".{about['apiGroup']}" if "apiGroup" in about else ""
    return _name(f"{about.get('resource', '')}{group}", about.get("subresource", "")) or event["requestURI"]
