"""What the demo says where it cannot begin: one clear line, no traceback, nothing started."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sickbay
from runtime.kubernetes_auth import NodeIdentity, node_identity
from simulation.demo import main as demo
from simulation.demo.world import agent_token, free_ports, kubeconfig


def said(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert sickbay.main(["demo", *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_an_unknown_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    assert 'no scenario "plugincrash"; did you mean "plugin-crash"' in said(
        capsys, "--scenario", "plugincrash"
    )


def test_a_port_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--port 99999: expected 0 to 65535" in said(capsys, "--port", "99999")


def test_a_module_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_MODULES", ("json", "nowhere_to_be_found", "neither.here"))
    assert "missing Python modules: nowhere_to_be_found, neither.here; `make demo`" in said(capsys)


def test_outside_of_a_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "PROJECT", tmp_path)
    assert "runs from a checkout of the project" in said(capsys)
    assert "--lab runs from a checkout of the project" in said(capsys, "--lab")


def test_no_prometheus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert "no program `prometheus` on the path" in said(capsys, "--prometheus")


def test_the_scenarios_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert sickbay.main(["demo", "--list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["ecc-uncorrectable", "gpu-lost", "plugin-crash"]


def test_without_its_modules_the_front_door_names_the_first() -> None:
    # -S: no site-packages, as on a Python into which nothing was installed.
    ran = subprocess.run(
        [sys.executable, "-S", "sickbay.py", "demo"],
        cwd=demo.PROJECT,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
    assert ran.stderr.startswith("sickbay: the Python module msgspec is missing")


def test_an_agents_token_is_bound_to_its_node() -> None:
    token = agent_token("n1", "uid-1")
    assert node_identity(f"Bearer {token}") == NodeIdentity(name="n1", uid="uid-1")
    user = kubeconfig("http://127.0.0.1:1", token)["users"][0]["user"]
    assert user == {"token": token}


def test_free_ports_are_different_ones() -> None:
    assert len(set(free_ports(5))) == 5
