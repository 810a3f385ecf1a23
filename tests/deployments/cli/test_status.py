"""The status line: at once on a terminal, every few seconds in a pipe, and never in the way of what is printed."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator

import pytest

from eigenmerge.deployments.cli.app import main
from eigenmerge.deployments.cli.status import process_start, set_status, start_status, stop_status
from eigenmerge.deployments.cli.terminal import show, show_error


class Stream(io.StringIO):
    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    stop_status()


def screen(text: str) -> list[str]:
    """The lines that a terminal shows after this text."""
    lines = [""]
    for part in text.replace("\r\x1b[K", "\0").split("\n"):
        lines[-1] = (lines[-1] + part).rpartition("\0")[2]
        lines.append("")
    return lines[:-1]


def wait_for(stream: Stream, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in stream.getvalue():
        assert time.monotonic() < deadline, stream.getvalue()
        time.sleep(0.01)


def test_a_terminal_shows_it_at_once_and_loses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(terminal=True)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    start_status("eigenmerge plan", every=60)
    assert screen(stream.getvalue())[-1].startswith("eigenmerge plan: starting")
    set_status("reading headers")
    assert screen(stream.getvalue())[-1].startswith("eigenmerge plan: reading headers")
    show_error("a server is slow")
    show("result")
    stop_status()
    assert [line for line in screen(stream.getvalue()) if line] == ["eigenmerge: a server is slow", "result"]


def test_a_long_text_stays_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = Stream(terminal=True)
    start_status("eigenmerge merge", stream=stream, every=60)
    set_status("waiting for " + "x" * 100)
    assert len(screen(stream.getvalue())[-1]) < 40 and screen(stream.getvalue())[-1].endswith("…")


def test_a_pipe_gets_whole_lines_now_and_then() -> None:
    stream = Stream(terminal=False)
    start_status("eigenmerge merge", stream=stream, every=0.05)
    assert stream.getvalue() == ""
    wait_for(stream, "eigenmerge merge: starting")
    count = iter(range(1000))
    set_status(lambda: f"{next(count)} of 3 shards\x1b[2J")
    wait_for(stream, "eigenmerge merge: 1 of 3 shards\\x1b[2J")
    assert "\x1b" not in stream.getvalue() and "\r" not in stream.getvalue()
    set_status("")
    before = stream.getvalue()
    time.sleep(0.15)
    assert stream.getvalue() == before


def test_main_shows_it_before_the_command_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(terminal=True)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "argv", ["eigenmerge", "plan", "no-such-recipe.yml"])
    with pytest.raises(SystemExit):
        main()
    assert stream.getvalue().startswith("eigenmerge plan: starting")
    (line,) = [line for line in screen(stream.getvalue()) if line]
    assert line.startswith("eigenmerge: error: no-such-recipe.yml: recipe cannot be read")


def test_the_start_of_the_process_is_in_the_past() -> None:
    first = process_start()
    time.sleep(0.5)
    assert first < time.monotonic() and abs(process_start() - first) < 0.4


@pytest.mark.parametrize(("seconds", "lines"), [("0", 0), ("0.02", 1), ("often", 0)])
def test_the_environment_sets_the_seconds_of_a_pipe(seconds: str, lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EIGENMERGE_STATUS_SECONDS", seconds)
    stream = Stream(terminal=False)
    start_status("eigenmerge merge", stream=stream)
    set_status("reading headers")
    if lines:
        wait_for(stream, "eigenmerge merge: reading headers")
    else:
        time.sleep(0.3)
    stop_status()
    assert bool(stream.getvalue()) == bool(lines)
