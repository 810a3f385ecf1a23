"""Progress of a sweep: a bar on a terminal, one line per candidate in a pipe."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from ...core.cache.sweep_tables import SweepRow
from ...core.escaping import printable
from ...core.sweep.listener import SweepListener
from .status import set_status
from .terminal import show_error


class _Bar(Progress):
    """A rich progress bar with the best candidate below it."""

    best = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.best:
            yield Text(f"  {printable(self.best)}", overflow="ellipsis", no_wrap=True)


class TerminalSweep(SweepListener):
    """Shows finished candidates and the best so far on standard error, in at most 80 columns."""

    def __init__(self, metric: str | None) -> None:
        self._metric = metric
        self._lock = threading.Lock()
        self._progress = _Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=40),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("planning", total=None, detail="")
        self._scored = 0
        self._total: int | None = None
        set_status("")
        self._progress.start()

    def decomposing(self, num_tensors: int) -> None:
        self._progress.update(self._task, description="decomposing", total=num_tensors, completed=0, detail="tensors")

    def tensor_done(self, name: str, bytes_read: int) -> None:
        self._progress.advance(self._task)

    def scoring(self, num_candidates: int) -> None:
        self._total = num_candidates
        self._progress.update(self._task, description="scoring", total=num_candidates, completed=0, detail="")

    def scored(self, row: SweepRow, label: str, best: SweepRow | None, best_label: str, reused: bool) -> None:
        with self._lock:
            self._scored += 1
            self._progress.best = f"best so far: {best_text(best, best_label, self._metric)}"
            self._progress.update(
                self._task, description="scoring", total=self._total, completed=self._scored, detail=""
            )

    def close(self) -> None:
        self._progress.stop()


class LineSweep(SweepListener):
    """Prints one line for each candidate on standard error."""

    def __init__(self, metric: str | None) -> None:
        self._metric = metric
        self._scored = 0
        self._total = 0
        self._lock = threading.Lock()

    def decomposing(self, num_tensors: int) -> None:
        set_status(f"decomposing {num_tensors} tensors")

    def scoring(self, num_candidates: int) -> None:
        self._total = num_candidates
        set_status(lambda: f"{self._scored} of {self._total} candidates scored")

    def scored(self, row: SweepRow, label: str, best: SweepRow | None, best_label: str, reused: bool) -> None:
        with self._lock:
            self._scored += 1
            found = (
                row.error
                if row.status == "failed"
                else row.status
                if row.status == "pruned"
                else score_text(row, self._metric)
            )
            is_best = best is not None and best.candidate == row.candidate
            notes = ["best so far"] * is_best + ["from the table"] * reused
            ends = f" ({', '.join(notes)})" if notes else ""
            show_error(f"{self._scored} of {self._total}: {label}: {found}{ends}")


def score_text(row: SweepRow, metric: str | None) -> str:
    """Return a metric of a row as text, the first by default: "accuracy 0.853"."""
    name = metric or next(iter(row.metrics), "")
    value = row.metrics.get(name)
    return f"{name} {value:.6g}" if value is not None else f"{name} undefined"


def best_text(best: SweepRow | None, label: str, metric: str | None) -> str:
    """Return the best candidate as text: "accuracy 0.853 at exp_time=300"."""
    return f"{score_text(best, metric)} at {label}" if best is not None else "none that keeps all limits"


def make_sweep_listener(metric: str | None, *, quiet: bool, terminal: bool) -> SweepListener:
    """Return a progress bar for a terminal, lines for a pipe, and nothing where `quiet`."""
    if quiet:
        return SweepListener()
    return TerminalSweep(metric) if terminal else LineSweep(metric)
