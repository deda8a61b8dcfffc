"""Records of /dev/kmsg and lines of a stand-in, as bytes."""

import pytest

from exporter.sources.kmsg import LINE_LIMIT, Lines, Record, bare_message, parse_record, sequence_of


def test_a_record_is_taken_apart():
    raw = (
        b"3,1234,5140900,-;NVRM: Xid (PCI:0000:3b:00): 79, pid=1\n SUBSYSTEM=pci\n DEVICE=+pci:0000:3b:00.0\n"
    )
    assert parse_record(raw) == Record(0, 1234, 5140900, "NVRM: Xid (PCI:0000:3b:00): 79, pid=1")
    assert sequence_of(raw) == 1234


def test_the_facility_is_what_the_prefix_holds_above_the_level():
    assert parse_record(b"12,1,2,-;text").facility == 1
    assert parse_record(b"6,1,2,-;text").facility == 0


def test_further_fields_and_any_flag_are_passed_over():
    assert parse_record(b"6,7,8,c,caller=T1946;text").message == "text"
    assert parse_record(b"6,7,8,+;text").message == "text"


def test_what_the_kernel_escaped_is_read_as_it_was_written():
    assert parse_record(b"6,1,2,-;a\\x0ab\\x5cc\\xc3\\xa9").message == "a\nb\\c\u00e9"


def test_bytes_that_are_not_utf8_are_replaced():
    assert parse_record(b"6,1,2,-;a\xffb\\xfe").message == "a\ufffdb\ufffd"


def test_a_semicolon_in_the_text_belongs_to_the_text():
    assert parse_record(b"6,1,2,-;a;b").message == "a;b"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b";",
        b"6,1,2;text",
        b"6,1,2,-text",
        b"-6,1,2,-;text",
        b"6,x,2,-;text",
        b"6,1,2,-\n;text",
        b"6,99999999999999999999999,2,-;text",
        b"\xff\xfe\x00",
        b"NVRM: Xid (PCI:0000:3b:00): 79",
    ],
)
def test_what_is_no_record_is_none(raw):
    assert parse_record(raw) is None
    assert sequence_of(raw) is None


def test_a_bare_message_must_begin_with_the_drivers_own_prefix():
    assert bare_message(b"NVRM: Xid (PCI:0000:3b:00): 79") == "NVRM: Xid (PCI:0000:3b:00): 79"
    assert bare_message(b"nvidia-nvswitch0: SXid (PCI:0000:00:08.0): 1, Fatal, x") is not None
    assert bare_message(b"[1.0] NVRM: Xid (PCI:0000:3b:00): 79") is None


def test_a_line_without_a_newline_waits_for_its_end():
    lines = Lines()
    assert lines.feed(b"one\ntw") == [b"one"]
    assert lines.feed(b"o\n\n") == [b"two", b""]


def test_an_endless_line_is_dropped_and_the_next_one_is_read():
    lines = Lines()
    assert lines.feed(b"x" * (LINE_LIMIT + 1)) == []
    assert lines.feed(b"x" * LINE_LIMIT) == []
    assert lines.feed(b"end\nnext\n") == [b"next"]
    assert lines.dropped == 1


def test_the_longest_line_is_read():
    assert Lines().feed(b"x" * LINE_LIMIT + b"\n") == [b"x" * LINE_LIMIT]
