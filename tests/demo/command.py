"""`sickbay demo` as a subprocess, with a folder for temporary files of its own, and what is left of it afterwards."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

PROJECT = Path(__file__).resolve().parents[2]


class Demo:
    """One run: its lines as they come, and who belongs to it."""

    def __init__(
        self, *flags: str, temporary: Path, terminal: bool = False, output: int = subprocess.PIPE
    ) -> None:
        """`terminal`: it writes to a terminal, which is read here. `output`: to this file, which is not."""
        self.temporary = temporary
        self.begun = time.monotonic()
        self._lines: list[str] = []
        self._news = threading.Condition()
        command = [sys.executable, "-m", "sickbay", "demo", *flags]
        environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(PROJECT)}
        if terminal:
            ours, output = pty.openpty()
        self.process = subprocess.Popen(
            command,
            cwd=PROJECT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        stream: IO[str] | None = self.process.stdout
        if terminal:
            os.close(output)
            stream = os.fdopen(ours, encoding="utf-8", errors="replace")
        self._reader = threading.Thread(target=self._read, args=(stream or (),), daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        """All that it has said."""
        with self._news:
            return "".join(self._lines)

    def await_line(self, words: str, *, within: float = 60.0, after: int = 0) -> str:
        """The first line with these words that comes after so many lines."""
        found = self._await(
            lambda: next((line for line in self._lines[after:] if words in line), None), within
        )
        assert found is not None, f"no {words!r} within {within:g} s:\n{self.text}"
        return found

    def lines(self) -> int:
        """How many lines it has said."""
        with self._news:
            return len(self._lines)

    def ends(self, *, within: float = 60.0) -> int:
        """Its exit code."""
        try:
            code = self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end within {within:g} s:\n{self.text}") from None
        self._reader.join(5)
        return code

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> None:
        """As Ctrl-C does."""
        self.process.send_signal(number)

    def relatives(self) -> list[str]:
        """The command lines of all processes that were started with its folder for temporary files."""
        mark = f"TMPDIR={self.temporary}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdecimal() or int(folder.name) == self.process.pid:
                continue
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found

    def leaves_nothing(self) -> None:
        """No process and no file."""
        assert self.relatives() == []
        assert list(self.temporary.iterdir()) == []

    def _await(self, condition: Callable[[], str | None], within: float) -> str | None:
        deadline = time.monotonic() + within
        with self._news:
            while (found := condition()) is None:
                left = deadline - time.monotonic()
                if left <= 0 or (not self._reader.is_alive() and self.process.poll() is not None):
                    return condition()
                self._news.wait(min(left, 0.5))
            return found

    def _read(self, stream: Iterable[str]) -> None:
        # A terminal that is closed on the other side answers EIO.
        with contextlib.suppress(OSError):
            for line in stream:
                with self._news:
                    self._lines.append(line)
                    self._news.notify_all()


@contextlib.contextmanager
def demo(*flags: str, terminal: bool = False, output: int = subprocess.PIPE) -> Iterator[Demo]:
    """Run it; whatever happens, nothing of it runs on afterwards."""
    with tempfile.TemporaryDirectory(prefix="demo-", dir="/tmp") as folder:
        run = Demo(*flags, temporary=Path(folder), terminal=terminal, output=output)
        try:
            yield run
        finally:
            if run.process.poll() is None:
                run.process.kill()
                run.process.wait()
