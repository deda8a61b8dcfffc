"""Credentials: a pod's ServiceAccount, kubeconfigs good and bad, and what is read out of a token."""

import base64
import json
import ssl
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from runtime.api_errors import ConnectionFailed, Unauthorized
from runtime.kubernetes import KubeconfigError, NodeIdentity, Session, session_from
from runtime.kubernetes_auth import expiry, node_identity
from tests.api_server import ScriptedApi
from tests.certificates import Authority
from tests.unit.test_kubernetes_session import free_port

VERSION = {"gitVersion": "v1.37.2"}


def jwt(claims: object) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'RS256'})}.{part(claims)}.c2lnbmF0dXJl"


BOUND = {"kubernetes.io": {"namespace": "s", "node": {"name": "n1", "uid": "u-1"}}, "exp": 4102444800}


def test_a_bound_token_tells_its_node() -> None:
    assert node_identity(f"Bearer {jwt(BOUND)}") == NodeIdentity("n1", "u-1")
    assert expiry(f"Bearer {jwt(BOUND)}") == 4102444800


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer opaque",
        "Basic dXNlcjpwYXNz",
        "Bearer a.b.c",
        "Bearer ..",
        "Bearer é.é.é",
        f"Bearer {jwt({})}",
        f"Bearer {jwt([])}",
        f"Bearer {jwt({'kubernetes.io': {}})}",
        f"Bearer {jwt({'kubernetes.io': 7})}",
        f"Bearer {jwt({'kubernetes.io': {'node': {'name': 'n1'}}})}",
        f"Bearer {jwt({'kubernetes.io': {'node': {'name': '', 'uid': ''}}})}",
        f"Bearer {jwt({'kubernetes.io': {'node': {'name': 5, 'uid': 'u'}}})}",
    ],
)
def test_any_other_credential_tells_no_node(authorization: str | None) -> None:
    assert node_identity(authorization) is None


@given(
    st.one_of(
        st.text(), st.from_regex(r"Bearer [A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*", fullmatch=True)
    )
)
def test_garbage_in_place_of_a_token_never_raises(authorization: str) -> None:
    node_identity(authorization)
    expiry(authorization)


# In a pod


class Pod:
    """The files and variables that a pod has."""

    def __init__(self, directory: Path, api: ScriptedApi, authority: Authority) -> None:
        self.directory = directory
        self.environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(api.port)}
        directory.mkdir()
        self.token = directory / "token"
        self.token.write_text("first\n")
        self.ca = directory / "ca.crt"
        self.ca.write_bytes(authority.file.read_bytes())

    def session(self) -> Session:
        return Session.in_cluster(user_agent="t/1", directory=self.directory, environ=self.environ)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


def tls_server(authority: Authority, *, client_ca: Path | None = None) -> ScriptedApi:
    pair = authority.issue("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    if client_ca is not None:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return ScriptedApi(context)


@pytest.fixture
def tls_api(authority: Authority) -> Iterator[ScriptedApi]:
    server = tls_server(authority)
    yield server
    server.close()


@pytest.fixture
def pod(tmp_path: Path, tls_api: ScriptedApi, authority: Authority) -> Pod:
    return Pod(tmp_path / "serviceaccount", tls_api, authority)


def test_a_pod_speaks_as_its_service_account(pod: Pod, tls_api: ScriptedApi) -> None:
    pod.token.write_text(jwt(BOUND) + "\n")
    tls_api.answer("GET", VERSION)
    session = pod.session()
    assert session.check() == "v1.37.2"
    assert session.server == f"https://127.0.0.1:{tls_api.port}"
    assert session.node_identity() == NodeIdentity("n1", "u-1")
    assert tls_api.requests[0].headers["authorization"] == f"Bearer {jwt(BOUND)}"


def test_a_rotated_token_is_used_after_a_refusal_and_after_a_minute(
    pod: Pod, tls_api: ScriptedApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls_api.refuse("GET", 401, "Unauthorized")
    tls_api.answer("GET", VERSION)
    session = pod.session()
    pod.token.write_text("second")
    with pytest.raises(Unauthorized):
        session.get("/version")
    session.get("/version")
    pod.token.write_text("third")
    session.get("/version")
    later = time.monotonic() + 61
    monkeypatch.setattr(time, "monotonic", lambda: later)
    session.get("/version")
    sent = [request.headers["authorization"] for request in tls_api.requests]
    assert sent == ["Bearer first", "Bearer second", "Bearer second", "Bearer third"]


@pytest.mark.parametrize("content", ["", "two words", "line\nbreak", "\x00", "ümlaut"])
def test_a_token_that_becomes_unreadable_is_not_taken(pod: Pod, tls_api: ScriptedApi, content: str) -> None:
    tls_api.refuse("GET", 401, "Unauthorized")
    session = pod.session()
    pod.token.write_text(content)
    for _ in range(2):
        with pytest.raises(Unauthorized):
            session.get("/version")
    assert tls_api.requests[1].headers["authorization"] == "Bearer first"


def test_a_rotated_ca_is_taken_when_the_server_no_longer_verifies(
    pod: Pod, tls_api: ScriptedApi, tmp_path: Path
) -> None:
    right = pod.ca.read_bytes()
    pod.ca.write_bytes(Authority(tmp_path / "old", "old").file.read_bytes())
    tls_api.answer("GET", VERSION)
    session = pod.session()
    pod.ca.write_bytes(right)
    with pytest.raises(ConnectionFailed, match="certificate"):
        session.get("/version")
    assert session.get("/version").status == 200


def test_an_expired_token_is_named_when_it_is_refused(pod: Pod, tls_api: ScriptedApi) -> None:
    pod.token.write_text(jwt({"exp": 1700000000}))
    tls_api.refuse("GET", 401, "Unauthorized")
    with pytest.raises(KubeconfigError) as refused:
        pod.session().check()
    assert "expired at 2023-11-14T22:13:20.000000Z" in str(refused.value)
    assert str(pod.directory) in str(refused.value)


@pytest.mark.parametrize("exp", [1e30, -1e30, 0])
def test_an_impossible_expiry_does_not_hide_the_refusal(pod: Pod, tls_api: ScriptedApi, exp: float) -> None:
    pod.token.write_text(jwt({"exp": exp}))
    tls_api.refuse("GET", 401, "Unauthorized")
    with pytest.raises(Unauthorized):
        pod.session().get("/version")


def test_outside_of_a_pod_the_way_out_is_named() -> None:
    with pytest.raises(KubeconfigError, match="--kubeconfig FILE"):
        Session.in_cluster(user_agent="t", environ={})


@pytest.mark.parametrize(
    ("name", "content"), [("token", None), ("token", ""), ("ca.crt", None), ("ca.crt", "junk")]
)
def test_a_pod_without_its_files_is_told_which(pod: Pod, name: str, content: str | None) -> None:
    file = pod.directory / name
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    with pytest.raises(KubeconfigError) as failed:
        pod.session()
    assert str(file) in str(failed.value)


def test_a_pod_does_not_import_the_large_client() -> None:
    script = "import sys, runtime.kubernetes, remediation.lease; sys.exit('kubernetes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# With a kubeconfig

Write = Callable[..., Path]


def kubeconfig(server: str, user: dict[str, Any], **cluster: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": server, **cluster}}],
        "users": [{"name": "u", "user": user}],
    }


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(content: Any) -> Path:
        path = tmp_path / "kubeconfig"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return to_file


def test_a_token_of_a_kubeconfig_is_sent(write: Write, tls_api: ScriptedApi, authority: Authority) -> None:
    tls_api.answer("GET", VERSION)
    server = f"https://127.0.0.1:{tls_api.port}/prefix/"
    path = write(kubeconfig(server, {"token": jwt(BOUND)}, **{"certificate-authority": str(authority.file)}))
    session = session_from(path, user_agent="t/1")
    assert session.check() == "v1.37.2"
    assert session.node_identity() == NodeIdentity("n1", "u-1")
    request = tls_api.requests[0]
    assert (request.path, request.headers["authorization"]) == ("/prefix/version", f"Bearer {jwt(BOUND)}")


def test_a_client_certificate_is_shown_and_its_key_is_not_left_on_disk(
    write: Write, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    server = tls_server(authority, client_ca=authority.file)
    server.answer("GET", VERSION)
    pair = authority.issue("admin", organization="system:masters")

    def data(file: Path) -> str:
        return base64.b64encode(file.read_bytes()).decode()

    user = {"client-certificate-data": data(pair.certificate), "client-key-data": data(pair.key)}
    cluster = {"certificate-authority-data": data(authority.file)}
    session = session_from(
        write(kubeconfig(f"https://127.0.0.1:{server.port}", user, **cluster)), user_agent="t"
    )
    assert list(scratch.iterdir()) == []
    assert session.check() == "v1.37.2"
    assert "authorization" not in server.requests[0].headers
    server.close()


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_an_insecure_cluster_and_a_plain_one_are_spoken_to(
    write: Write, tls_api: ScriptedApi, api: ScriptedApi
) -> None:
    for server, url in (
        (tls_api, f"https://127.0.0.1:{tls_api.port}"),
        (api, f"http://127.0.0.1:{api.port}"),
    ):
        server.answer("GET", VERSION)
        content = kubeconfig(url, {"token": "t"}, **{"insecure-skip-tls-verify": True})
        assert session_from(write(content), user_agent="t").check() == "v1.37.2"


def test_an_exec_plugin_gives_the_token(write: Write, api: ScriptedApi, tmp_path: Path) -> None:
    api.answer("GET", VERSION)
    plugin = tmp_path / "plugin"
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "from-plugin"},
    }
    plugin.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(credential)}\nEND\n")
    plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)
    user = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": str(plugin),
            "interactiveMode": "Never",
        }
    }
    session_from(write(kubeconfig(f"http://127.0.0.1:{api.port}", user)), user_agent="t").check()
    assert api.requests[0].headers["authorization"] == "Bearer from-plugin"


def test_a_rewritten_kubeconfig_is_used_after_a_refusal(
    write: Write, api: ScriptedApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.refuse("GET", 401, "Unauthorized")
    api.answer("GET", VERSION)
    url = f"http://127.0.0.1:{api.port}"
    session = session_from(write(kubeconfig(url, {"token": "old"})), user_agent="t")
    write(kubeconfig(url, {"token": "new"}))
    later = time.monotonic() + 6
    monkeypatch.setattr(time, "monotonic", lambda: later)
    with pytest.raises(Unauthorized):
        session.get("/version")
    session.get("/version")
    assert api.requests[-1].headers["authorization"] == "Bearer new"


GOOD = kubeconfig("https://127.0.0.1:1", {"token": "t"}, **{"insecure-skip-tls-verify": True})


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name != key}


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("", "empty"),
        ("just text", ""),
        ("- a\n- b\n", ""),
        ("a: [", ""),
        ("\x00", ""),
        ("{}", "current-context"),
        (without("current-context"), "current-context"),
        (without("contexts"), "contexts"),
        (without("clusters"), "clusters"),
        (GOOD | {"current-context": "other"}, "other"),
        (GOOD | {"users": 5}, ""),
        (kubeconfig("https://127.0.0.1:1", {}), "no credentials"),
        (kubeconfig("ftp://x", {"token": "t"}), "ftp://x"),
        (kubeconfig("https://127.0.0.1:port", {"token": "t"}), "127.0.0.1:port"),
        (kubeconfig("https://h", {"token": "t"}, **{"certificate-authority": "/nowhere/ca"}), "/nowhere/ca"),
        (kubeconfig("https://h", {"token": "t"}, **{"certificate-authority-data": "anVuaw=="}), "PEM"),
        (
            kubeconfig("https://h", {"client-certificate": "/nowhere/c", "client-key": "/nowhere/k"}),
            "/nowhere/c",
        ),
        (
            kubeconfig("https://h", {"exec": {"apiVersion": "v1", "command": "/nowhere/plugin"}}),
            "no credentials",
        ),
    ],
)
def test_a_wrong_kubeconfig_is_named_with_its_fault(write: Write, content: Any, hint: str) -> None:
    path = write(content)
    with pytest.raises(KubeconfigError) as failed:
        session_from(path, user_agent="t")
    text = str(failed.value)
    assert str(path) in text and hint in text
    assert "\n" not in text


def test_a_kubeconfig_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "absent", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(KubeconfigError, match=why):
            session_from(path, user_agent="t")


def test_a_server_that_cannot_be_reached_is_named_with_its_file(write: Write) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    path = write(kubeconfig(url, {"token": "t"}))
    with pytest.raises(KubeconfigError) as failed:
        session_from(path, user_agent="t").check()
    assert str(failed.value).startswith(f"kubeconfig {path}: {url} cannot be reached: ")


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>"), (200, b"[]"), (404, b"no"), (503, b"busy")])
def test_something_that_is_no_api_server_is_said_to_be_none(
    write: Write, api: ScriptedApi, status: int, body: bytes
) -> None:
    api.answer("GET", body, status=status)
    path = write(kubeconfig(f"http://127.0.0.1:{api.port}", {"token": "t"}))
    with pytest.raises(KubeconfigError, match="answers"):
        session_from(path, user_agent="t").check()
