"""The two worlds: the lab's control plane, whose controllers stand still, and the embedded API."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import urllib3
import yaml

from runtime.kubernetes import Session
from simulation.cluster.control_plane import ControlPlane
from simulation.cluster.server import EmbeddedApi
from tests.cannot_run import cannot_run
from tests.contract.world import AGENT, NAMESPACES, Wire, World
from tests.lab import binaries
from tests.lab.lab import Lab
from tests.lab.processes import sigterm_as_ctrl_c, wait_until

CRDS = sorted((Path(__file__).parents[2] / "deploy" / "crds").glob("*.yaml"))
CONTROLLERS = ("kube-controller-manager", "kube-scheduler")


@contextlib.contextmanager
def real() -> Iterator[World]:
    """The lab's control plane. Its controllers are stopped, so that nobody but the test changes anything."""
    if problems := binaries.missing():
        reason = f"the lab cannot run here: {'; '.join(problems)}"
        cannot_run(reason)
    sigterm_as_ctrl_c()
    with Lab() as lab:
        lab.kubectl("apply", *(word for path in CRDS for word in ("-f", path)))
        session = Session.from_kubeconfig(lab.kubeconfig, user_agent=AGENT)
        made = World(
            name="real",
            session=session,
            kubeconfig=lab.kubeconfig,
            wire=Wire.to(session.server, session.tls),
            namespace="contract",
            compact=lambda: _compact_etcd(lab),
            age=_aged,
            controllers=lambda: _running(lab),
            bookmark_seconds=4,
            server=lab,
        )
        _settle(made)
        wait_until(
            lambda: made.exists(f"{NAMESPACES}/contract/serviceaccounts/default"), 15, "the ServiceAccount"
        )
        _signal(lab, signal.SIGSTOP)
        try:
            yield made
        finally:
            _signal(lab, signal.SIGCONT)
            session.close()


@contextlib.contextmanager
def embedded() -> Iterator[World]:
    """A fresh embedded API without controllers."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedApi() as api:
        kubeconfig = Path(folder, "kubeconfig")
        kubeconfig.write_text(json.dumps(kubeconfig_of(api.url)))
        session = Session.from_kubeconfig(kubeconfig, user_agent=AGENT)
        made = World(
            name="embedded",
            session=session,
            kubeconfig=kubeconfig,
            wire=Wire.to(api.url, None),
            namespace="contract",
            compact=api.store.compact,
            age=lambda token: token,
            controllers=lambda: _control_plane(api),
            bookmark_seconds=3,
            server=api,
        )
        _settle(made)
        yield made
        session.close()


@contextlib.contextmanager
def _control_plane(api: EmbeddedApi) -> Iterator[None]:
    collected = [f"{path.stem}.sickbay.dev" for path in CRDS]
    plane = ControlPlane(api.store, clock=api.clock, collected=collected)
    plane.start()
    try:
        yield
    finally:
        assert plane.stop()


def kubeconfig_of(server: str) -> dict[str, object]:
    """A kubeconfig for plain HTTP without credentials."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "embedded", "cluster": {"server": server}}],
        "users": [{"name": "anybody", "user": {}}],
        "contexts": [{"name": "embedded", "context": {"cluster": "embedded", "user": "anybody"}}],
        "current-context": "embedded",
    }


@cache
def _collections() -> tuple[str, ...]:
    definitions = [yaml.safe_load(path.read_text())["spec"] for path in CRDS]
    return tuple(f"/apis/{one['group']}/v1alpha1/{one['names']['plural']}" for one in definitions)


def _settle(world: World) -> None:
    """Wait for the definitions to be served, and make the namespace of the tests."""
    for path in _collections():
        wait_until(partial(world.exists, path), 30, f"{path} to be served")
    world.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": world.namespace}})


def _signal(lab: Lab, number: signal.Signals) -> None:
    for name in CONTROLLERS:
        os.kill(lab.processes.children[name].pid, number)


@contextlib.contextmanager
def _running(lab: Lab) -> Iterator[None]:
    _signal(lab, signal.SIGCONT)
    try:
        yield
    finally:
        _signal(lab, signal.SIGSTOP)


def _aged(token: str) -> str:
    """The token with the first version there was: the API server keeps younger ones alive in its cache for a while."""
    meant = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    return base64.urlsafe_b64encode(json.dumps({**meant, "rv": 1}).encode()).decode().rstrip("=")


def _compact_etcd(lab: Lab) -> None:
    """Throw away etcd's history, as the API server does every five minutes."""
    flag = "--listen-client-urls="
    words = lab.processes.children["etcd"].popen.args
    assert isinstance(words, list)
    etcd = next(str(word).removeprefix(flag) for word in words if str(word).startswith(flag))
    pool = urllib3.PoolManager(retries=False, timeout=10)
    now = json.loads(pool.request("POST", f"{etcd}/v3/kv/range", json={"key": "AA=="}).data)
    revision = now["header"]["revision"]
    answer = pool.request("POST", f"{etcd}/v3/kv/compaction", json={"revision": revision, "physical": True})
    assert answer.status == 200, answer.data
