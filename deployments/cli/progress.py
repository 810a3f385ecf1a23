"""Progress bar of a merge on a terminal."""

from __future__ import annotations

import threading

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...core.cache.reports import ShardReport
from ...core.run import Run
from ...core.steps.listener import Listener
from .options import show_bytes, show_count


class TerminalListener(Listener):
    """Shows finished tensors, bytes read, rate and time left on standard error, in at most 80 columns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes_read = 0
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=8),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("planning", total=None, detail="")
        self._progress.start()

    def planned(self, run: Run, workers: int) -> None:
        description = f"merging, {show_count(workers, 'worker')}"
        self._progress.update(self._task, description=description, total=run.plan.num_tensors)

    def tensor_done(self, name: str, bytes_read: int) -> None:
        with self._lock:
            self._bytes_read += bytes_read
            self._progress.advance(self._task)
            self._show()

    def shard_done(self, report: ShardReport) -> None:
        with self._lock:
            if report.reused:
                self._progress.advance(self._task, len(report.tensors))
            self._show()

    def _show(self) -> None:
        elapsed = self._progress.tasks[0].elapsed or 0.0
        rate = f" at {show_bytes(self._bytes_read / elapsed)}/s" if elapsed > 0 else ""
        detail = f"tensors, {show_bytes(self._bytes_read)}{rate}"
        self._progress.update(self._task, detail=detail)

    def assembling(self, run: Run) -> None:
        self._progress.update(self._task, description="assembling")

    def close(self) -> None:
        self._progress.stop()


def make_listener(*, quiet: bool, terminal: bool) -> Listener:
    """Return a progress bar for a terminal unless `quiet`, otherwise a listener that prints nothing."""
    return TerminalListener() if terminal and not quiet else Listener()
