"""No line, however malformed, raises; what the driver prints is always read."""

from hypothesis import given
from hypothesis import strategies as st

from health.kernel_line import XidLine, normal_address, parse, parse_pasted

HEX = "0123456789abcdefABCDEF"


def hexadecimal(low, high):
    return st.text(HEX, min_size=low, max_size=high)


addresses = st.builds("{}:{}:{}".format, hexadecimal(4, 8), hexadecimal(2, 2), hexadecimal(2, 2))
codes = st.integers(0, 9999)
tails = st.one_of(
    st.just(""),
    st.text().map(", {}".format),
    st.builds(", pid={}, name={}, {}".format, st.integers(0, 2**22), st.text(), st.text()),
)


@given(st.text())
def test_any_text_is_read_without_an_error(text):
    parse(text)
    parse_pasted(text)


@given(st.text(), st.integers(0, 80))
def test_a_line_cut_anywhere_is_read_without_an_error(tail, length):
    line = f"NVRM: Xid (PCI:0000:3b:00 GPU-I:05): 154, pid=1, name={tail}, GPU recovery action changed"
    parse(line[:length])
    parse_pasted(tail + line[:length])


@given(addresses, codes, tails)
def test_an_xid_is_read_whatever_follows_it(address, code, tail):
    line = parse(f"NVRM: Xid (PCI:{address}): {code}{tail}")
    assert isinstance(line, XidLine)
    assert line.code == code
    assert line.address == normal_address(address)


@given(addresses, codes, tails, st.text(min_size=1))
def test_a_line_with_anything_before_the_drivers_prefix_is_not_the_drivers(address, code, tail, prefix):
    assert parse(f"{prefix}NVRM: Xid (PCI:{address}): {code}{tail}") is None


@given(addresses)
def test_a_normal_address_is_its_own_normal_form(address):
    normal = normal_address(address)
    assert normal_address(normal) == normal
    assert normal == normal.lower()
