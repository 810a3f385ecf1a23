"""Which listener a command gets, and what the bar shows in 80 columns."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any, cast

from rich.console import Console

from eigenmerge.core.steps.listener import Listener
from eigenmerge.deployments.cli.progress import BarListener, LineListener, make_listener, notebook_listener
from eigenmerge.deployments.cli.status import start_status, stop_status

from .test_merge_progress import make_plan, report


def test_which_listener() -> None:
    assert type(make_listener(quiet=True, terminal=True)) is Listener
    assert type(make_listener(quiet=True, terminal=False)) is Listener
    assert type(make_listener(quiet=False, terminal=False)) is LineListener
    assert notebook_listener() is None


def test_the_bar_fits_in_80_columns() -> None:
    listener = BarListener(Console(file=io.StringIO(), width=80, force_terminal=True))
    console = Console(file=io.StringIO(), width=80)
    try:
        listener.planned(cast(Any, SimpleNamespace(plan=make_plan())), workers=2)
        listener.tensor_done("layer.0", 123_456)
        listener.shard_done(report(1, "layer.0", 123_456))
        console.print(listener._bar.get_renderable())
        first, second = cast(io.StringIO, console.file).getvalue().rstrip().splitlines()
        assert first.startswith("merging ") and "1/3 shards 123 KB of 1.12 MB" in first and first.endswith("s left")
        assert second == "  waiting for layer.1"
        files = (SimpleNamespace(name="model.safetensors"),)
        listener.assembling(cast(Any, SimpleNamespace(plan=SimpleNamespace(files=files, bytes_written=5000))))
        console.print(listener._bar.get_renderable())
        assert "assembling" in cast(io.StringIO, console.file).getvalue()
    finally:
        listener.close()


def test_the_lines_of_a_pipe() -> None:
    class Pipe(io.StringIO):
        lines = 0

        def write(self, text: str) -> int:
            self.lines += text.count("\n")
            return super().write(text)

    stream = Pipe()
    start_status("eigenmerge merge", stream=stream, every=0.02)
    try:
        listener = make_listener(quiet=False, terminal=False)
        listener.planned(cast(Any, SimpleNamespace(plan=make_plan())), workers=1)
        listener.shard_done(report(1, "layer.0", 500))
        start = stream.lines
        while stream.lines < start + 3:
            pass
        line = stream.getvalue().splitlines()[-1]
        assert line.startswith("eigenmerge merge: merging: 1/3 shards, 500 B of 1 MB, ")
        assert "; waiting for layer.1" in line
        listener.close()
    finally:
        stop_status()
