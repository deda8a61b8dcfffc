"""The one error of configuration: where it is, what stands there, what was expected, what may be meant."""

import difflib
from collections.abc import Iterable
from pathlib import Path

_MAX_SHOWN = 80


class Missing:
    """Stands for the value of a key that is not there."""

    def __repr__(self) -> str:
        return "nothing"


MISSING = Missing()


class ConfigError(Exception):
    """A value that cannot be taken. `str()` is one line for a person.

    `file` is the file's path, or None when the value came from `source`, such as "environment variable
    SICKBAY_AGENT_LISTEN". `key` is dotted (`rules[2].mode`), empty for the document as a whole. `value` is
    what stands there, or MISSING. `expected` says what would be right. `nearest` is the known key or value
    closest to what was written, or None.
    """

    def __init__(
        self,
        *,
        key: str,
        value: object,
        expected: str,
        nearest: str | None = None,
        file: Path | None = None,
        source: str | None = None,
    ) -> None:
        self.file = file
        self.source = source
        self.key = key
        self.value = value
        self.expected = expected
        self.nearest = nearest
        super().__init__(str(self))

    def __str__(self) -> str:
        where = ": ".join(part for part in (str(self.file or self.source or ""), self.key) if part)
        got = "" if self.value is MISSING and not self.key else f", got {_shown(self.value)}"
        hint = f'; did you mean "{self.nearest}"?' if self.nearest else ""
        return (
            f"{where}: expected {self.expected}{got}{hint}"
            if where
            else f"expected {self.expected}{got}{hint}"
        )


class UnknownKeyError(ConfigError):
    """A key that nothing reads: most often a slip of the pen, so never passed over."""

    def __str__(self) -> str:
        where = str(self.file or self.source or "")
        hint = f'; did you mean "{self.nearest}"?' if self.nearest else f"; known keys: {self.expected}"
        text = f'unknown key "{self.key}" (value {_shown(self.value)}){hint}'
        return f"{where}: {text}" if where else text


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The entry of `known` that is written most like `word`, or None when none is close."""
    by_folded = {_folded(name): name for name in known}
    close = difflib.get_close_matches(_folded(word), by_folded, n=1, cutoff=0.6)
    return by_folded[close[0]] if close else None


def _folded(word: str) -> str:
    return word.casefold().replace("_", "").replace("-", "")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    text = text.encode("ascii", "backslashreplace").decode() if not text.isprintable() else text
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
