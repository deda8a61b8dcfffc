"""Quantities of configuration files: durations, percentages, listen addresses.

Each is a type that a configuration struct can use for a field; `runtime.config` calls its `parse` for
the text of the file, the environment variable or the flag. `parse` raises ValueError, whose text says
what was expected and, where it can, how to write what was meant.
"""

import re
from decimal import Decimal
from fractions import Fraction
from typing import ClassVar, Self

_UNITS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}
_DURATION = re.compile(r"(?:\d{1,9}(?:\.\d{1,6})?(?:ms|s|m|h|d))+", re.ASCII)
_PART = re.compile(r"([\d.]+)(ms|s|m|h|d)", re.ASCII)
_PERCENTAGE = re.compile(r"(\d{1,3}(?:\.\d{1,4})?) ?%", re.ASCII)
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", re.ASCII)
_IPV6 = re.compile(r"[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9._-]{1,32})?", re.ASCII)


class Duration(float):
    """Seconds, written `30s`, `5m`, `1h30m`, `250ms` or `2d`."""

    expected: ClassVar[str] = "a duration such as 30s, 5m or 1h30m"

    @classmethod
    def parse(cls, value: object) -> Self:
        """A plain number is refused: nobody knows whether its writer meant seconds or minutes."""
        if isinstance(value, cls):
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise cls._without_unit(value)
        text = value.strip() if isinstance(value, str) else ""
        if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
            raise cls._without_unit(text)
        if not _DURATION.fullmatch(text):
            raise ValueError(cls.expected)
        units = [unit for _, unit in _PART.findall(text)]
        if units != sorted(set(units), key=lambda unit: -_UNITS[unit]):
            raise ValueError(f"{cls.expected}: each unit once, the largest first")
        return cls(sum(Decimal(number) * _UNITS[unit] for number, unit in _PART.findall(text)))

    @classmethod
    def _without_unit(cls, number: object) -> ValueError:
        return ValueError(f'{cls.expected}: a number needs a unit, write "{number}s" if seconds were meant')

    def __str__(self) -> str:
        """The shortest form that `parse` reads back, exact to the millisecond."""
        rest = round(self * 1000)
        parts = []
        for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
            count, rest = divmod(rest, size)
            if count:
                parts.append(f"{count}{unit}")
        return "".join(parts) or "0s"

    def __repr__(self) -> str:
        return f"Duration({str(self)!r})"


class Percentage(Fraction):
    """A share of a whole, written `30%` or `2.5%`, from 0 to 100; the value is the exact ratio."""

    expected: ClassVar[str] = "a percentage from 0% to 100% such as 30%"

    @classmethod
    def parse(cls, value: object) -> Self:
        if isinstance(value, cls):
            return value
        match = _PERCENTAGE.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None or (ratio := Fraction(match[1]) / 100) > 1:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            hint = f': write "{value}%" if percent was meant' if number else ""
            raise ValueError(cls.expected + hint)
        return cls(ratio)

    def of(self, total: int) -> int:
        """This share of `total`, rounded down, exactly: 30 % of 10 is 3 and never 2.9999."""
        return int(self * total // 1)

    def __str__(self) -> str:
        return f"{float(self * 100):g}%"

    def __repr__(self) -> str:
        return f"Percentage({str(self)!r})"


class ListenAddress(str):
    """Where to listen, written `0.0.0.0:9400`, `[::1]:9400`, `localhost:9400` or `:9400`.

    `host` is empty for every address of the machine; `port` 0 lets the kernel choose.
    """

    __slots__ = ("host", "port")
    host: str
    port: int

    expected: ClassVar[str] = "ADDRESS:PORT such as 0.0.0.0:9400, [::1]:9400 or :9400"

    def __new__(cls, text: str) -> Self:
        """Raises ValueError for a text that is not an address and a port."""
        address = super().__new__(cls, text.strip())
        host, colon, port = address.rpartition(":")
        if not colon or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > 65535:
            raise ValueError(f"{cls.expected}, with a port from 0 to 65535")
        address.host, address.port = cls._host(host), int(port)
        return address

    @classmethod
    def parse(cls, value: object) -> Self:
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls(value)
        number = isinstance(value, int) and not isinstance(value, bool)
        hint = f': write ":{value}" to listen on every address' if number else ""
        raise ValueError(cls.expected + hint)

    @classmethod
    def _host(cls, host: str) -> str:
        if host.startswith("[") and host.endswith("]") and ":" in host and _IPV6.fullmatch(host[1:-1]):
            return host[1:-1]
        if ":" in host:
            raise ValueError(f"{cls.expected}: an IPv6 address stands in brackets")
        if host and not _HOST_NAME.fullmatch(host):
            raise ValueError(cls.expected)
        return host
