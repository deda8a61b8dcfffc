"""However reads split a stream, the same lines come out; no bytes raise."""

from hypothesis import given
from hypothesis import strategies as st

from exporter.sources import kmsg
from exporter.sources.kmsg import Lines, parse_record, sequence_of

pieces = st.lists(st.sampled_from([b"\n", b"NVRM", b"x" * 50, b"\xff", b"6,1,2,-;t"]), max_size=30).map(
    b"".join
)


def framed(stream, cuts):
    lines = Lines()
    found = []
    start = 0
    for cut in [*sorted(cuts), len(stream)]:
        found += lines.feed(stream[start:cut])
        start = max(start, cut)
    return found, lines.dropped


@given(pieces, st.lists(st.integers(0, 500), max_size=10), st.sampled_from([60, 64 * 2**10]))
def test_any_split_of_the_reads_yields_the_same_lines(stream, cuts, limit):
    before, kmsg.LINE_LIMIT = kmsg.LINE_LIMIT, limit
    try:
        whole = [line for line in stream.split(b"\n")[:-1] if len(line) <= limit]
        found, dropped = framed(stream, [min(cut, len(stream)) for cut in cuts])
        unfinished = len(stream.rpartition(b"\n")[2]) > limit
    finally:
        kmsg.LINE_LIMIT = before
    assert found == whole
    assert dropped == stream.count(b"\n") - len(whole) + unfinished


@given(st.binary())
def test_any_bytes_are_judged_without_an_error(raw):
    record = parse_record(raw)
    assert (record is None) == (sequence_of(raw) is None)


@given(st.integers(0, 9999), st.integers(0, 2**62), st.integers(0, 2**62), st.text())
def test_a_record_of_the_kernel_is_always_read(prefix, sequence, microseconds, text):
    escaped = "".join(
        f"\\x{byte:02x}" if byte < 32 or byte >= 127 or byte == 0x5C else chr(byte)
        for byte in text.encode("utf-8", "surrogatepass")
    )
    record = parse_record(f"{prefix},{sequence},{microseconds},-;{escaped}\n KEY=value\n".encode())
    assert record is not None
    assert (record.facility, record.sequence, record.microseconds) == (prefix >> 3, sequence, microseconds)
    assert record.message == text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
