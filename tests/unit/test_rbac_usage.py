"""What programs were granted is held against what they used."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.lab import conftest, rbac_usage
from tests.lab.rbac_usage import Permission, Refusal, Usage, complaints, granted, is_whole, read_audit

CONTROLLER = "system:serviceaccount:sickbay-system:sickbay-controller"
AGENT = "system:serviceaccount:sickbay-agent:sickbay-agent"


def event(**changes: Any) -> dict[str, Any]:
    """The controller reads a PodTemplate, and may."""
    return {
        "verb": "get",
        "requestURI": "/api/v1/namespaces/sickbay-repair/podtemplates/reset",
        "user": {"username": CONTROLLER},
        "userAgent": "sickbay-controller/0.1.0 epoch/3",
        "objectRef": {"resource": "podtemplates", "namespace": "sickbay-repair", "apiVersion": "v1"},
        "responseStatus": {"code": 200},
        "annotations": {"authorization.k8s.io/decision": "allow"},
        **changes,
    }


def log(*events: dict[str, Any]) -> list[bytes]:
    return [json.dumps(one).encode() + b"\n" for one in events]


READ = Permission("sickbay-controller", "get", "", "podtemplates", "sickbay-repair")
EVICT = {"resource": "pods", "subresource": "eviction", "namespace": "jobs", "name": "p", "apiGroup": ""}
FORBIDDEN = {"code": 403, "message": "forbidden"}
BY_POLICY = {"code": 403, "message": "ValidatingAdmissionPolicy 'p' denied request: no"}


def test_a_call_that_a_program_was_allowed_is_a_use() -> None:
    evicted = event(verb="create", objectRef=EVICT)
    assert read_audit(log(event(), event(), evicted)) == Usage(
        frozenset({READ, Permission("sickbay-controller", "create", "", "pods/eviction", "jobs")})
    )


@pytest.mark.parametrize("code", [404, 409, 429])
def test_a_call_that_was_allowed_and_found_nothing_is_a_use(code: int) -> None:
    assert read_audit(log(event(responseStatus={"code": code}))).used == {READ}


@pytest.mark.parametrize(
    "stranger",
    [
        {"userAgent": "sickbay-lab"},
        {"userAgent": "sickbay-agent/0.1.0"},
        {"userAgent": "sickbay-controller"},
        {"userAgent": "kubectl/v1.37.2"},
        {"user": {"username": "system:serviceaccount:sickbay-system:another"}},
        {"user": {"username": "jane"}, "impersonatedUser": {"username": CONTROLLER}},
    ],
)
def test_a_call_of_somebody_else_is_none(stranger: dict[str, Any]) -> None:
    assert read_audit(log(event(**stranger))) == Usage()
    refused = event(**stranger, responseStatus=FORBIDDEN, annotations={rbac_usage._DECISION: "forbid"})
    assert read_audit(log(refused)) == Usage()


def test_what_rbac_or_a_policy_refuses_is_told() -> None:
    by_rbac = event(responseStatus=FORBIDDEN, annotations={rbac_usage._DECISION: "forbid"})
    by_policy = event(verb="create", responseStatus=BY_POLICY)
    assert read_audit(log(by_rbac, by_policy)) == Usage(
        refused=frozenset(
            {
                Refusal(READ, by_policy=False, message="forbidden"),
                Refusal(READ._replace(verb="create"), by_policy=True, message=str(BY_POLICY["message"])),
            }
        )
    )


def test_a_namespace_that_is_going_is_no_refusal() -> None:
    going = {
        "code": 403,
        "message": "unable to create new content in namespace x because it is being terminated",
    }
    assert read_audit(log(event(responseStatus=going))) == Usage(frozenset({READ}))


def test_a_program_that_is_not_known_or_refused_is_found_among_events() -> None:
    unknown = event(user={}, objectRef=None, responseStatus={"code": 401}, annotations={})
    del unknown["objectRef"]
    denied = event(verb="create", responseStatus=BY_POLICY)
    forbid = {"responseStatus": FORBIDDEN, "annotations": {rbac_usage._DECISION: "forbid"}}
    listed = event(verb="list", **forbid)
    switched_off = event(**forbid)
    stolen = event(verb="list", userAgent="sickbay-lab", **forbid)
    going = event(responseStatus={"code": 403, "message": "namespace x is being terminated"})
    assert rbac_usage.refusals([event(), unknown, denied, listed, switched_off, stolen, going]) == [
        unknown,
        denied,
        listed,
    ]


def test_a_page_of_a_kubelet_is_used_when_the_kubelet_was_told_that_it_may_be() -> None:
    def review(*, user: str = AGENT, asker: str = "system:node:n1", allowed: bool = True) -> dict[str, Any]:
        attributes = {"verb": "get", "resource": "nodes", "subresource": "pods", "name": "n1"}
        return event(
            verb="create",
            user={"username": asker},
            userAgent="kubelet/v1.37.2",
            objectRef={"resource": "subjectaccessreviews", "apiGroup": "authorization.k8s.io"},
            requestObject={"spec": {"user": user, "resourceAttributes": attributes}},
            responseObject={"status": {"allowed": allowed}},
        )

    assert read_audit(log(review())).used == {Permission("sickbay-agent", "get", "", "nodes/pods")}
    others = (review(user="jane"), review(asker="sickbay-lab-admin"), review(allowed=False))
    assert read_audit(log(*others)) == Usage()


def test_a_line_that_is_still_being_written_is_left_out() -> None:
    (whole,) = log(event())
    assert read_audit([whole, whole[:40]]).used == {READ}


def role(kind: str, name: str, *rules: dict[str, Any], namespace: str = "") -> dict[str, Any]:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"kind": kind, "metadata": metadata, "rules": list(rules)}


def binding(
    kind: str, to: tuple[str, str], *, namespace: str = "", role_kind: str, name: str
) -> dict[str, Any]:
    subject = {"kind": "ServiceAccount", "namespace": to[0], "name": to[1]}
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {
        "kind": kind,
        "metadata": metadata,
        "roleRef": {"kind": role_kind, "name": name},
        "subjects": [subject],
    }


def test_grants_are_expanded_through_every_kind_of_binding() -> None:
    nodes = {"apiGroups": [""], "resources": ["nodes", "pods"], "verbs": ["get", "list"]}
    jobs = {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create"]}
    agent, controller = ("sickbay-agent", "sickbay-agent"), ("sickbay-system", "sickbay-controller")
    found = granted(
        [
            role("ClusterRole", "a", nodes),
            role("Role", "b", jobs, namespace="sickbay-repair"),
            role("ClusterRole", "b", nodes),
            binding("ClusterRoleBinding", agent, role_kind="ClusterRole", name="a"),
            binding("RoleBinding", controller, namespace="sickbay-repair", role_kind="Role", name="b"),
            binding("RoleBinding", controller, namespace="x", role_kind="ClusterRole", name="a"),
            binding("RoleBinding", ("x", "other"), namespace="sickbay-repair", role_kind="Role", name="b"),
        ]
    )
    assert found == {
        *(Permission("sickbay-agent", v, "", r) for v in ("get", "list") for r in ("nodes", "pods")),
        *(
            Permission("sickbay-controller", v, "", r, "x")
            for v in ("get", "list")
            for r in ("nodes", "pods")
        ),
        Permission("sickbay-controller", "create", "batch", "jobs", "sickbay-repair"),
    }


def test_the_projects_own_manifests_are_read() -> None:
    found = rbac_usage.granted_by(rbac_usage.MANIFESTS)
    switched = rbac_usage.granted_by(rbac_usage.REPAIR)
    assert not found & switched
    assert Permission("sickbay-controller", "create", "batch", "jobs", "sickbay-repair") in switched
    assert (
        Permission("sickbay-controller", "update", "coordination.k8s.io", "leases", "sickbay-system") in found
    )
    assert {permission.program for permission in found | switched} == set(rbac_usage.ACCOUNTS.values())


def test_nothing_is_said_where_every_grant_was_used() -> None:
    anywhere = Permission("sickbay-controller", "list", "", "pods")
    uses = frozenset({READ, anywhere._replace(namespace="jobs")})
    usage = Usage(uses)
    assert complaints(usage, always=frozenset({anywhere}), switched=frozenset({READ})) == []


def test_a_grant_that_nobody_used_a_use_that_nobody_granted_and_a_refusal_are_named() -> None:
    unused = Permission("sickbay-agent", "get", "", "nodes/metrics")
    elsewhere = READ._replace(namespace="default")
    listed = Permission("sickbay-agent", "list", "", "nodes")
    usage = Usage(frozenset({elsewhere}), frozenset({Refusal(listed, by_policy=False, message="forbidden")}))
    assert complaints(usage, always=frozenset({unused}), switched=frozenset({READ})) == [
        "granted and never used: sickbay-agent: get nodes/metrics",
        "granted and never used: sickbay-controller: get podtemplates in sickbay-repair",
        "used, and not granted by deploy: sickbay-controller: get podtemplates in default",
        "refused: sickbay-agent: list nodes: forbidden",
    ]


def test_what_rbac_refuses_where_the_repair_switch_is_off_is_no_complaint() -> None:
    usage = Usage(frozenset({READ}), frozenset({Refusal(READ, by_policy=False, message="forbidden")}))
    assert complaints(usage, always=frozenset(), switched=frozenset({READ})) == []
    usage = Usage(frozenset({READ}), frozenset({Refusal(READ, by_policy=True, message="denied")}))
    assert complaints(usage, always=frozenset(), switched=frozenset({READ})) == [
        "refused: sickbay-controller: get podtemplates in sickbay-repair: denied"
    ]


def test_what_labs_leave_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = tmp_path / "session"
    session.mkdir()
    monkeypatch.setenv(rbac_usage.FOLDER_VARIABLE, str(session))
    assert rbac_usage.load(session) is None
    refused = event(responseStatus=FORBIDDEN, annotations={rbac_usage._DECISION: "forbid"})
    for lab, lines in (
        ("a1", {"audit": event(), "audit-2026": refused}),
        ("b2", {"audit": event(verb="list")}),
    ):
        (tmp_path / lab).mkdir()
        for name, one in lines.items():
            (tmp_path / lab / f"{name}.log").write_bytes(b"".join(log(one)))
        rbac_usage.collect(tmp_path / lab)
    (tmp_path / "c3").mkdir()
    rbac_usage.collect(tmp_path / "c3")
    found = rbac_usage.load(session)
    assert found is not None
    assert found.used == {READ, READ._replace(verb="list")}
    assert len(found.refused) == 1
    assert len(list(session.iterdir())) == 2


def test_without_a_session_that_asks_a_lab_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(rbac_usage.FOLDER_VARIABLE, raising=False)
    (tmp_path / "audit.log").write_bytes(b"".join(log(event())))
    rbac_usage.collect(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["audit.log"]


@pytest.mark.parametrize(
    ("selected", "left_out", "deep", "whole"),
    [
        ("ab", "", "", True),
        ("a", "", "b", True),
        ("ab", "", "b", True),
        ("a", "", "", False),
        ("ab", "b", "", False),
        ("", "ab", "", False),
    ],
)
def test_a_run_is_whole_when_nothing_but_deep_tests_is_left_out(
    selected: str, left_out: str, deep: str, whole: bool
) -> None:
    found = is_whole(
        present={Path("a"), Path("b")},
        selected=set(map(Path, selected)),
        left_out=set(map(Path, left_out)),
        deep=set(map(Path, deep)),
    )
    assert found is whole


class Item:
    """As much of a test as the session's end looks at."""

    def __init__(self, path: Path, *, deep: bool = False) -> None:
        self.path = path
        self._deep = deep

    def get_closest_marker(self, name: str) -> object:
        return name if self._deep and name == "deep" else None


def finished(
    folder: Path, *, left_out: tuple[Item, ...] = (), args: tuple[str, ...] = (), code: int = 0
) -> tuple[int, list[str]]:
    """How a session over all lab tests ends whose labs left `folder`: its exit status, and what is said."""
    stash = pytest.Stash()
    stash[conftest.LEFT_OUT] = list(left_out)  # type: ignore[assignment]
    stash[conftest.USAGE] = folder
    items = [Item(path) for path in conftest.HERE.rglob("test_*.py")]
    config = SimpleNamespace(stash=stash, args=[*args])
    session = SimpleNamespace(config=config, items=items, exitstatus=code)
    conftest.pytest_sessionfinish(session, code)  # type: ignore[arg-type]
    return session.exitstatus, stash.get(conftest.COMPLAINTS, [])


@pytest.fixture
def idle_lab(tmp_path: Path) -> Path:
    """What a lab leaves in which no program asked for anything."""
    (tmp_path / "a1.json").write_text('{"used":[],"refused":[]}')
    return tmp_path


def test_a_whole_session_fails_where_permissions_were_not_used(idle_lab: Path) -> None:
    status, said = finished(idle_lab)
    assert status == pytest.ExitCode.TESTS_FAILED
    assert "granted and never used: sickbay-controller: create jobs.batch in sickbay-repair" in said
    deep = Item(conftest.HERE / "test_drain.py", deep=True)
    assert finished(idle_lab, left_out=(deep,))[0] == pytest.ExitCode.TESTS_FAILED


def test_a_session_that_is_not_whole_says_nothing(idle_lab: Path, tmp_path: Path) -> None:
    nothing = (0, [])
    assert finished(idle_lab, left_out=(Item(conftest.HERE / "test_drain.py"),)) == nothing
    assert finished(idle_lab, args=("tests/lab/test_drain.py::test_a",)) == nothing
    assert finished(idle_lab, code=1) == (1, [])
    (idle_lab / "a1.json").unlink()
    assert finished(idle_lab) == nothing


def test_a_whole_session_whose_programs_used_everything_passes(tmp_path: Path) -> None:
    granted_all = rbac_usage.granted_by(rbac_usage.MANIFESTS) | rbac_usage.granted_by(rbac_usage.REPAIR)
    (tmp_path / "a1.json").write_text(json.dumps({"used": sorted(granted_all), "refused": []}))
    assert finished(tmp_path) == (0, [])


def test_sessions_that_are_a_whole_together_are_judged_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rbac_usage.main([str(tmp_path)]) == 0
    assert "no lab ran" in capsys.readouterr().out
    everything = sorted(
        rbac_usage.granted_by(rbac_usage.MANIFESTS) | rbac_usage.granted_by(rbac_usage.REPAIR)
    )
    for name, used in (("a", everything[1:]), ("b", [])):
        (tmp_path / f"{name}.json").write_text(json.dumps({"used": used, "refused": []}))
    assert rbac_usage.main([str(tmp_path)]) == 1
    assert f"granted and never used: {everything[0]}" in capsys.readouterr().out
    (tmp_path / "b.json").write_text(json.dumps({"used": everything[:1], "refused": []}))
    assert rbac_usage.main([str(tmp_path)]) == 0
