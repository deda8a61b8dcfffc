"""The Xid catalogue: what ships, what an operator may change, and what is refused."""

import pytest

from health import xids
from health.vocabulary import Advice, ClearsOn, FaultKind, Severity

HEADER = "\t".join(xids.COLUMNS)


def row(**changes):
    cells = {
        "xid": "79",
        "name": "NAME",
        "meaning": "what it means",
        "families": "A100,H100",
        "vendor_action": "RESTART_BM",
        "kind": "DeviceLost",
        "severity": "Fatal",
        "advice": "RebootNode",
        "clears_on": "NewBoot",
        **changes,
    }
    return "\t".join(cells[column] for column in xids.COLUMNS)


def parsed(*rows):
    return xids.parse("\n".join([HEADER, *rows]), file="own.tsv")


def test_the_catalogue_that_ships_is_read_whole():
    catalogue = xids.builtin()
    assert len(catalogue) == 178
    assert len({entry.code for entry in catalogue}) == 178


@pytest.mark.parametrize(
    ("code", "kind", "severity", "advice", "clears_on"),
    [
        (79, FaultKind.DEVICE_LOST, Severity.FATAL, Advice.REBOOT_NODE, ClearsOn.NEW_BOOT),
        (48, FaultKind.UNCORRECTABLE_MEMORY, Severity.FATAL, Advice.RESET_DEVICE, ClearsOn.DEVICE_RESET),
        (94, FaultKind.CONTAINED_MEMORY, Severity.DEGRADED, Advice.RESTART_WORKLOAD, ClearsOn.DWELL),
        (63, FaultKind.REMAP_PENDING, Severity.DEGRADED, Advice.NONE, ClearsOn.DEVICE_RESET),
        (13, FaultKind.APPLICATION_FAULT, Severity.INFO, Advice.RESTART_WORKLOAD, ClearsOn.DWELL),
        (154, None, Severity.INFO, Advice.NONE, ClearsOn.DRIVER_VERDICT),
    ],
)
def test_what_ships_for_the_codes_that_matter(code, kind, severity, advice, clears_on):
    entry = xids.builtin()[code]
    assert (entry.kind, entry.severity, entry.advice, entry.clears_on) == (kind, severity, advice, clears_on)
    assert entry.known


def test_a_code_that_the_vendor_leaves_to_support_never_acts():
    unguided = [entry for entry in xids.builtin() if entry.vendor_action in ("", "CONTACT_SUPPORT")]
    assert unguided
    assert {entry.advice for entry in unguided} <= {Advice.NONE}
    assert all(entry.severity is not Severity.FATAL for entry in unguided)


def test_only_fatal_entries_ask_for_a_reset_or_a_reboot_of_a_running_node():
    for entry in xids.builtin():
        if entry.severity is Severity.FATAL:
            assert entry.advice in (Advice.RESET_DEVICE, Advice.REBOOT_NODE, Advice.REPLACE_HARDWARE)


def test_a_code_that_nobody_knows_alerts_and_never_acts():
    entry = xids.builtin()[9999]
    assert not entry.known
    assert (entry.kind, entry.severity, entry.advice) == (
        FaultKind.UNKNOWN_XID,
        Severity.DEGRADED,
        Advice.NONE,
    )


def test_an_operators_entry_stands_in_the_place_of_ours_and_leaves_the_others():
    catalogue = xids.builtin().overridden(parsed(row(xid="94", kind="ContainedMemory", severity="Info")))
    assert catalogue[94].severity is Severity.INFO
    assert catalogue[79] == xids.builtin()[79]
    assert len(catalogue) == len(xids.builtin())


def test_an_operator_may_add_a_code():
    assert xids.builtin().overridden(parsed(row(xid="999")))[999].known


def test_a_dash_is_an_empty_cell():
    (entry,) = parsed(row(kind="-", families="-", meaning="-"))
    assert (entry.kind, entry.families, entry.meaning) == (None, (), "")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((row(), row(xid="7 9")), "own.tsv: line 3: xid: '7 9' is not a whole number"),
        ((row(severity="Fatl"),), "own.tsv: line 2: severity: 'Fatl' is not one of Info Degraded Fatal"),
        ((row(severity="Fatl"),), "did you mean Fatal?"),
        ((row(kind="DeviceLoss"),), "did you mean DeviceLost?"),
        ((row(advice=""),), "own.tsv: line 2: advice: '' is not one of"),
        (("79",), "own.tsv: line 2: kind: '' is not one of"),
    ],
)
def test_a_row_that_cannot_be_read_is_named_with_what_was_expected(rows, message):
    with pytest.raises(xids.CatalogueError) as error:
        parsed(*rows)
    assert message in str(error.value)


def test_a_file_without_a_column_is_refused_and_the_column_named():
    with pytest.raises(
        xids.CatalogueError, match=r"own\.tsv: line 1: missing column advice; expected xid name"
    ):
        xids.parse(HEADER.replace("advice", "advise"), file="own.tsv")


def test_an_empty_file_is_refused():
    with pytest.raises(xids.CatalogueError, match="missing column xid"):
        xids.parse("", file="own.tsv")
