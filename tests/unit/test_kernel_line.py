"""Kernel lines as drivers have printed them over the years, and lines that only look like them."""

import csv
from pathlib import Path

import pytest

from health.kernel_line import (
    RECOVERY_ACTIONS,
    GpuAtLine,
    SxidLine,
    XidLine,
    normal_address,
    parse,
    parse_pasted,
    recovery_advice,
)
from health.vocabulary import Advice

SAMPLES = Path(__file__).parents[1] / "data" / "kernel_log_samples.tsv"


def samples():
    with SAMPLES.open(encoding="utf-8", newline="") as file:
        return [row[0] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row]


def test_every_xid_line_that_was_ever_seen_is_read_and_nothing_else_is():
    lines = samples()
    xids = [line for line in lines if isinstance(parse_pasted(line), XidLine)]
    assert len(xids) == 38
    assert xids == [line for line in lines if "NVRM: Xid (" in line]


def test_the_samples_hold_one_nvswitch_line_and_three_that_name_a_gpu():
    found = [parse_pasted(line) for line in samples()]
    assert [type(line) for line in found if isinstance(line, SxidLine)] == [SxidLine]
    assert {line.address for line in found if isinstance(line, GpuAtLine)} == {
        "0000:02:00.0",
        "0000:09:00.0",
        "0000:01:00.0",
    }


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python, GPU has fallen off the bus.",
            XidLine(
                address="0000:3b:00.0",
                code=79,
                text="GPU has fallen off the bus.",
                pid="1234",
                process="python",
            ),
        ),
        ("NVRM: Xid (PCI:0000:3b:00): 46", XidLine(address="0000:3b:00.0", code=46)),
        (
            "NVRM: Xid (0000:01:00): 31, Ch 0000000b, engmask 00000120, intr 10000000",
            XidLine(address="0000:01:00.0", code=31, text="Ch 0000000b, engmask 00000120, intr 10000000"),
        ),
        (
            "NVRM: Xid (PCI:0000:07:00): 48, pid='<unknown>', name=<unknown>, A double bit error",
            XidLine(address="0000:07:00.0", code=48, text="A double bit error"),
        ),
        (
            "NVRM: Xid (PCI:000f:01:00): 119, pid=3849, name=KMS thread, Timeout after 45s",
            XidLine(
                address="000f:01:00.0", code=119, text="Timeout after 45s", pid="3849", process="KMS thread"
            ),
        ),
        (
            "NVRM: Xid (PCI:0000:01:00 GPU-I:05 GPU-CI:01): 94, pid=7194, Contained: CE User Channel (0x9).",
            XidLine(
                address="0000:01:00.0",
                code=94,
                text="Contained: CE User Channel (0x9).",
                pid="7194",
                gpu_instance="05",
                compute_instance="01",
            ),
        ),
        (
            "NVRM: Xid (PCI:0000:06:00): 48, pid=2187734, name=python",
            XidLine(address="0000:06:00.0", code=48, pid="2187734", process="python"),
        ),
    ],
)
def test_an_xid_line_is_taken_apart(line, expected):
    assert parse(line) == expected


def test_xid_154_tells_the_target_action_in_the_drivers_words():
    line = parse(
        "NVRM: Xid (PCI:0000:55:00): 154, GPU recovery action changed from 0x0 (None) to 0x4 (Drain and Reset)"
    )
    assert isinstance(line, XidLine)
    assert line.recovery_action == "Drain and Reset"


def test_only_xid_154_has_a_recovery_action():
    line = parse("NVRM: Xid (PCI:0000:55:00): 13, GPU recovery action changed from 0x0 (None) to 0x2 (x)")
    assert isinstance(line, XidLine)
    assert line.recovery_action == ""


def test_an_nvswitch_line_is_taken_apart():
    assert parse(
        "nvidia-nvswitch1: SXid (PCI:0000:00:08.0): 11004, Non-fatal, Link 36 ingress invalid ACL"
    ) == (
        SxidLine(
            address="0000:00:08.0", switch=1, code=11004, fatal=False, link=36, text="ingress invalid ACL"
        )
    )
    soe = parse("nvidia-nvswitch0: SXid (PCI:0000:00:08.0): 10003, Fatal, SOE watchdog")
    assert isinstance(soe, SxidLine)
    assert (soe.fatal, soe.link, soe.text) == (True, None, "SOE watchdog")


def test_a_line_that_names_the_gpu_at_an_address_is_read():
    line = parse("NVRM: GPU at PCI:0000:02:00: GPU-660d987e-5b28-3bf6-2a2d-1d5ecae7f6df")
    assert line == GpuAtLine(address="0000:02:00.0", uuid="GPU-660d987e-5b28-3bf6-2a2d-1d5ecae7f6df")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "NVRM: Xid",
        "NVRM: Xid (PCI:0000:3b",
        "NVRM: Xid (PCI:0000:3b:00): ",
        "NVRM: Xid (PCI:0000:3b:00): 79x",
        "NVRM: Xid (PCI:0000:3b:00): 123456, too long a code",
        "NVRM: Xid (PCI:zz:3b:00): 79, no address",
        'audit: comm="NVRM: Xid (PCI:0000:3b:00): 79, pid=1"',
        " NVRM: Xid (PCI:0000:3b:00): 79, a space before it",
        "NVRM: GPU at PCI:0000:02:00: GPU-660d987e",
        "nvidia-nvswitch1: SXid (PCI:0000:00:08.0): 11004, Severity 1 Engine instance 36",
        "NVRM: GPU 0000:09:00.0: GPU has fallen off the bus.",
    ],
)
def test_a_line_that_is_not_whole_or_does_not_begin_with_the_driver_is_none(line):
    assert parse(line) is None


def test_a_pasted_line_may_have_any_prefix_but_the_kernels_own_may_not():
    pasted = "Aug 10 15:36:05 gpu-node-a kernel: [12.3] [ T9] NVRM: Xid (PCI:0000:55:00): 48, text"
    assert parse(pasted) is None
    assert parse_pasted(pasted) == XidLine(address="0000:55:00.0", code=48, text="text")


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("0000:3B:00", "0000:3b:00.0"),
        ("00000000:3B:00.0", "0000:3b:00.0"),
        ("3b:00.1", "0000:3b:00.1"),
        ("000f:01:00", "000f:01:00.0"),
        ("00010000:01:00.0", "10000:01:00.0"),
    ],
)
def test_every_way_of_writing_an_address_comes_to_the_same(written, normal):
    assert normal_address(written) == normal
    assert normal_address(normal) == normal


def test_the_recovery_actions_have_advice_and_unknown_words_have_none():
    assert [recovery_advice(action) for action in RECOVERY_ACTIONS] == [
        Advice.NONE,
        Advice.RESET_DEVICE,
        Advice.REBOOT_NODE,
        Advice.NONE,
        Advice.RESET_DEVICE,
        Advice.RESTART_SERVICE,
        Advice.RESET_DEVICE,
        Advice.REBOOT_NODE,
    ]
    assert recovery_advice("Replace The Rack") is None
