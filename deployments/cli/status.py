"""The status line: what a command waits for, from its first moment on a terminal, every ten seconds in a pipe.

`main` starts it, commands change its text, and everything that is printed removes it first. Where it was not started
the functions do nothing, so that commands can be called from Python.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from ...core.escaping import printable

PIPE_SECONDS = 10.0  # between two lines in a pipe
#: Environment variable with other seconds; 0 turns the lines of a pipe off.
SECONDS_VARIABLE = "EIGENMERGE_STATUS_SECONDS"
_TERMINAL_SECONDS = 1.0  # between two changes of the line on a terminal
_COLUMNS = 80  # where the terminal does not tell

Text = str | Callable[[], str]


class Status:
    """One line on a stream. A terminal shows it at once and removes it; a pipe gets a line every `every` seconds.

    Parameters
    ----------
    started : time of the monotonic clock from which seconds are counted
    every : seconds between two lines; None: 1 on a terminal, 10 in a pipe
    """

    def __init__(self, command: str, stream: TextIO, *, started: float, every: float | None = None) -> None:
        self._command = command
        self._stream = stream
        self._terminal = stream.isatty()
        self._started = started
        self._every = every or (_TERMINAL_SECONDS if self._terminal else PIPE_SECONDS)
        self._text: Text = "starting"
        self._visible = False
        self._lock = threading.RLock()
        self._ended = threading.Event()
        if self._terminal:
            self._draw()
        threading.Thread(target=self._repeat, name="status", daemon=True).start()

    @property
    def seconds(self) -> float:
        """Since the start of the command."""
        return time.monotonic() - self._started

    def set(self, text: Text) -> None:
        """Change the text; "" shows nothing until the next change. A function is called whenever a line is printed."""
        with self._lock:
            self._text = text
            if self._terminal:
                self.clear()
                self._draw()

    def clear(self) -> None:
        """Remove the line from the terminal, so that something else can be printed."""
        with self._lock:
            if self._visible:
                self._visible = False
                self._write("\r\x1b[K")

    def stop(self) -> None:
        """End the thread and remove the line."""
        self._ended.set()
        with self._lock:
            self._text = ""
            self.clear()

    def _repeat(self) -> None:
        while not self._ended.wait(self._every):
            with self._lock:
                self.clear()
                self._draw()

    def _draw(self) -> None:
        text = self._text if isinstance(self._text, str) else self._text()
        if not text:
            return
        seconds = self.seconds
        after = f" ({seconds:.0f} s)" if seconds >= 2 else ""
        line = printable(f"{self._command}: {text}{after}")
        if self._terminal:
            width = shutil.get_terminal_size((_COLUMNS, 24)).columns
            self._visible = True
            self._write(line if len(line) < width else line[: width - 2] + "…")
        else:
            self._write(f"{line}\n")

    def _write(self, text: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        with suppress(OSError, ValueError):  # the reader of the pipe has ended
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()


_status: Status | None = None


def start_status(command: str, *, stream: TextIO | None = None, every: float | None = None) -> None:
    """Show on standard error that this command works, from now on until `stop_status`."""
    global _status  # noqa: PLW0603
    stop_status()
    target = stream or sys.stderr
    if every is None and not target.isatty():
        every = _pipe_seconds()
        if every == 0:
            return
    _status = Status(command, target, started=process_start(), every=every)


def _pipe_seconds() -> float:
    """Return the seconds between two lines in a pipe, 0 for no lines; a value that is no number changes nothing."""
    try:
        return max(0.0, float(os.environ.get(SECONDS_VARIABLE, "")))
    except ValueError:
        return PIPE_SECONDS


def set_status(text: Text) -> None:
    """Say what the command is waiting for; "" for nothing."""
    if _status is not None:
        _status.set(text)


def clear_status() -> None:
    """Remove the line from the terminal before something else is printed."""
    if _status is not None:
        _status.clear()


def stop_status() -> None:
    """Show nothing any more."""
    global _status  # noqa: PLW0603
    if _status is not None:
        _status.stop()
        _status = None


def process_start() -> float:
    """Return when this process started, on the monotonic clock: before the interpreter and any import.

    Where the system does not tell, this is now.
    """
    now = time.monotonic()
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[19])  # field 22 of proc(5): starttime, in clock ticks since boot
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return now
    return now - age if age >= 0 else now
