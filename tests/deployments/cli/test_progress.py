"""Which listener a command gets, and what the progress bar shows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from eigenmerge.core.cache.reports import ShardReport, TensorReport
from eigenmerge.core.steps.listener import Listener
from eigenmerge.deployments.cli.progress import TerminalListener, make_listener


def test_no_bar_without_a_terminal_or_when_quiet() -> None:
    assert type(make_listener(quiet=False, terminal=False)) is Listener
    assert type(make_listener(quiet=True, terminal=True)) is Listener


def report(index: int, *, reused: bool) -> ShardReport:
    tensors = tuple(TensorReport(f"{index}.{name}", "merge", "ties", 0.1, "0") for name in "ab")
    return ShardReport(index, "parts/0", 10, 8, "0", "", 0.1, 100, tensors, reused=reused)


def test_tensors_of_reused_shards_are_counted() -> None:
    listener = make_listener(quiet=False, terminal=True)
    assert isinstance(listener, TerminalListener)
    try:
        plan = SimpleNamespace(num_tensors=6)
        listener.planned(cast(Any, SimpleNamespace(plan=plan)), workers=2)
        listener.tensor_done("0.a", 3000)
        listener.tensor_done("0.b", 2000)
        listener.shard_done(report(0, reused=False))
        listener.shard_done(report(1, reused=True))
        task = listener._progress.tasks[0]
        assert (task.completed, task.total, task.description) == (4, 6, "merging, 2 workers")
        assert task.fields["detail"].startswith("tensors, 5 KB at ")
    finally:
        listener.close()
