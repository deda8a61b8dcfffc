"""The command line: what it takes, what it says, and its exit codes."""

from __future__ import annotations

import gc
import io
import json
from pathlib import Path

import pytest

import sickbay
from runtime import garbage

LINE = "NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python, GPU has fallen off the bus."
KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: here
contexts: [{name: here, context: {cluster: nowhere, user: nobody}}]
clusters: [{name: nowhere, cluster: {server: "http://127.0.0.1:9"}}]
users: [{name: nobody, user: {token: secret-of-mine}}]
"""


def explained(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert sickbay.main(["explain", "--output", "json", *words]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("subject", ["79", "xid 79", "Xid:79", "XID79"])
def test_explain_takes_a_number(capsys: pytest.CaptureFixture[str], subject: str) -> None:
    found = explained(capsys, *subject.split())
    assert (found["code"], found["advice"], found["severity"]) == (79, "RebootNode", "Fatal")
    assert found["name"] == "ROBUST_CHANNEL_GPU_HAS_FALLEN_OFF_THE_BUS"


@pytest.mark.parametrize(
    "prefix",
    ["", "[74889.644138] ", "Aug 10 15:36:05 node kernel: ", "3,1234,567890,-;", "<3>"],
)
def test_explain_takes_a_kernel_line_as_people_paste_it(
    capsys: pytest.CaptureFixture[str], prefix: str
) -> None:
    found = explained(capsys, prefix + LINE)
    assert found["device"] == "0000:3b:00.0"
    assert (found["pid"], found["process"]) == ("1234", "python")


def test_explain_reads_a_line_from_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(LINE + "\n"))
    assert explained(capsys, "-")["code"] == 79


def test_the_drivers_verdict_outranks_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    line = "NVRM: Xid (PCI:0000:55:00): 154, GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)"
    found = explained(capsys, line)
    assert (found["recoveryAction"], found["advice"]) == ("Node Reboot Required", "RebootNode")
    assert (found["kind"], found["severity"]) == ("RecoveryRequired", "Fatal")


def test_an_xid_that_nobody_knows_is_said_to_be_unknown_and_never_acts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = explained(capsys, "999")
    assert (found["kind"], found["advice"]) == ("UnknownXid", "None")


def test_an_nvswitch_error_is_explained_with_its_switch(capsys: pytest.CaptureFixture[str]) -> None:
    line = "nvidia-nvswitch1: SXid (PCI:0000:00:08.0): 11004, Non-fatal, Link 36 ingress invalid ACL (First)"
    found = explained(capsys, line)
    assert (found["kind"], found["switch"]) == ("FabricFault", "nvswitch1")


@pytest.mark.parametrize("subject", ["hello", "-1", "12345678", "NVRM: Xid (PCI:zz): 79", ""])
def test_what_explain_does_not_know_has_its_own_exit_code(
    capsys: pytest.CaptureFixture[str], subject: str
) -> None:
    assert sickbay.main(["explain", "--", subject]) == sickbay.EXIT_UNKNOWN
    assert "sickbay explain 79" in capsys.readouterr().err


def test_an_override_takes_the_place_of_the_catalogues_entry(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "own.tsv"
    head = "xid\tname\tmeaning\tfamilies\tvendor_action\tkind\tseverity\tadvice\tclears_on\n"
    file.write_text(head + "63\tOURS\tours\t-\t-\tRemapPending\tFatal\tResetDevice\tDeviceReset\n")
    found = explained(capsys, "63", "--xid-overrides", str(file))
    assert (found["name"], found["advice"]) == ("OURS", "ResetDevice")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("xid\tname\n79\tx\n", "missing column meaning"),
        (
            "xid\tname\tmeaning\tfamilies\tvendor_action\tkind\tseverity\tadvice\tclears_on\n"
            "79\tx\tx\t-\t-\tDeviceLost\tFatal\tResetDevise\tNewBoot\n",
            "did you mean ResetDevice?",
        ),
    ],
)
def test_a_bad_override_names_file_value_and_what_was_meant(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, hint: str
) -> None:
    file = tmp_path / "own.tsv"
    file.write_text(text)
    assert sickbay.main(["explain", "79", "--xid-overrides", str(file)]) == sickbay.EXIT_USAGE
    error = capsys.readouterr().err
    assert str(file) in error
    assert hint in error


@pytest.mark.parametrize("program", ["agent", "controller"])
def test_an_unknown_key_of_the_configuration_names_the_nearest(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, program: str
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("kubeconfg: /nowhere\n")
    assert sickbay.main([program, "--config", str(file)]) == sickbay.EXIT_USAGE
    error = capsys.readouterr().err
    assert "kubeconfg" in error
    assert 'did you mean "kubeconfig"?' in error


def test_a_kubeconfig_that_is_missing_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    missing = tmp_path / "kubeconfig"
    assert sickbay.main(["controller", "--kubeconfig", str(missing)]) == sickbay.EXIT_USAGE
    error = capsys.readouterr().err
    assert str(missing) in error
    assert "Traceback" not in error


def test_an_api_server_that_does_not_answer_is_one_clear_line_without_the_token(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(KUBECONFIG)
    assert sickbay.main(["controller", "--kubeconfig", str(file)]) == sickbay.EXIT_USAGE
    error = capsys.readouterr().err
    assert "127.0.0.1:9" in error
    assert "secret-of-mine" not in error
    assert "Traceback" not in error


def test_once_without_anything_to_print_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        sickbay.main(["agent", "--once"])
    assert exit_.value.code == sickbay.EXIT_USAGE
    assert "--print-metrics" in capsys.readouterr().err


def test_a_missing_command_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as exit_:
        sickbay.main([])
    assert exit_.value.code == sickbay.EXIT_USAGE


def test_what_lives_since_the_start_is_in_no_later_garbage_collection() -> None:
    """Else a full collection stops agent or controller for 15 ms, just before a cordon perhaps."""
    try:
        garbage.settle()
        assert gc.get_freeze_count() > 10_000
        assert len(gc.get_objects()) < 1_000
    finally:
        gc.unfreeze()
