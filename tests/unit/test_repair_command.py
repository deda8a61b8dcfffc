"""The flags of `sickbay repair`: what is refused before anything is done."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

import sickbay
from remediation.repair import command
from remediation.repair.reset import ANSWER, RESET
from tests.unit.test_front_door import KUBECONFIG

ORDER = ["--session", "n1-0123456789", "--attempt", "2", "--boot-id", "b4c7"]
LOOK = ["--session", "s", "--step", "Reset", "--node", "n1", "--node-uid", "u", "--boot-id", "b"]


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_commands(parser)
    return parser.parse_args(words)


def test_the_defaults_are_those_of_nvidias_driver() -> None:
    flags = parsed("reset", *ORDER, "--devices", "GPU-1,GPU-2,GPU-1")
    assert (flags.devices, flags.reset_command, flags.answer_command) == (("GPU-1", "GPU-2"), RESET, ANSWER)
    assert (flags.host_root, flags.keep_modes) == (Path("/host"), True)
    assert parsed("reboot", *ORDER).orderly_timeout == 120


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["reset", *ORDER], "--devices"),
        (["reset", *ORDER, "--devices", ""], "expected a name of letters"),
        (["reset", *ORDER, "--devices", "GPU-1,"], "expected a name of letters"),
        (["reset", *ORDER, "--devices=--help"], "got '--help'"),
        (["reset", *ORDER, "--devices", "GPU-1;reboot"], "got 'GPU-1;reboot'"),
        (["reset", *ORDER, "--devices", ",".join(f"G{n}" for n in range(65))], "at most 64 devices, got 65"),
        (
            ["reset", *ORDER, "--devices", "G", "--reset-command", "nvidia-smi -r"],
            "one of them with {device}",
        ),
        (["reset", *ORDER, "--devices", "G", "--persistence-unit=-x.service"], "expected a systemd unit"),
        (["reset", *ORDER, "--devices", "G", "--reset-timeout", "0"], "expected seconds, above 0"),
        (["reset", *ORDER, "--devices", "G", "--reset-timeout", "nan"], "expected seconds, above 0"),
        (["reboot", *ORDER, "--attempt", "0"], "expected a number from 1 on, got '0'"),
        (["reboot", *ORDER, "--attempt", "$(SICKBAY_ATTEMPT)"], "expected a number from 1 on"),
        (["reboot", *ORDER, "--session", "../x"], "got '../x'"),
        (["reboot", *ORDER, "--boot-id", ""], "--boot-id"),
        (["reboot", *ORDER, "--orderly-timeout", "soon"], "got 'soon'"),
        (["restart-service", *ORDER, "--service", "sshd"], "fabric-manager"),
        (["restart-service", *ORDER, "--service", ""], "invalid choice: ''"),
        (["restart-service", *ORDER, "--service", "kubelet", "--unit", "kubelet"], "such as kubelet.service"),
        (["check", "--session", "s"], "--step"),
        (["heal"], "invalid choice: 'heal'"),
        ([], "PROGRAM"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error_that_names_it(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        sickbay.main(["repair", *words])
    assert exit_.value.code == sickbay.EXIT_USAGE
    assert hint in capsys.readouterr().err


def test_a_check_outside_of_a_pod_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert sickbay.main(["repair", "check", *LOOK]) == sickbay.EXIT_USAGE
    assert "not inside a cluster" in capsys.readouterr().err


def test_an_api_server_that_cannot_be_reached_has_its_own_exit_code(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remediation.repair.check.RETRY_SECONDS", 0.01)
    file = tmp_path / "kubeconfig"
    file.write_text(KUBECONFIG)
    assert sickbay.main(["repair", "check", *LOOK, "--kubeconfig", str(file)]) == 5
    assert "sickbay repair check: not known whether it is still allowed" in capsys.readouterr().err
