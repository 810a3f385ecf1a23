"""Listeners that show the progress of a merge: a bar on a terminal or in a notebook, lines in a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from ...core.cache.reports import ShardReport
from ...core.escaping import printable
from ...core.run import Run
from ...core.steps.listener import Listener
from .merge_progress import MergeProgress
from .options import show_bytes, show_count
from .status import set_status

LineFunction: TypeAlias = Callable[[], str]


class MergeListener(Listener):
    """Counts the events of a run, and shows them in one way or another."""

    def __init__(self) -> None:
        self.progress: MergeProgress | None = None

    def planned(self, run: Run, workers: int) -> None:
        self.progress = MergeProgress(run.plan)
        self.show("merging", self.progress.line)

    def tensor_done(self, name: str, bytes_read: int) -> None:
        if self.progress is not None:
            self.progress.tensor_done(name, bytes_read)
            self.refresh()

    def shard_done(self, report: ShardReport) -> None:
        if self.progress is not None:
            self.progress.shard_done(report)
            self.refresh()

    def assembling(self, run: Run) -> None:
        files = show_count(len(run.plan.files), "file")
        self.show("assembling", lambda: f"writing {files}, {show_bytes(run.plan.bytes_written)}, to the destination")

    def show(self, phase: str, line: LineFunction) -> None:
        """Begin a phase; `line` returns what there is to say."""

    def refresh(self) -> None:
        """React to a change of the counts."""


class LineListener(MergeListener):
    """Gives the status line its text: a pipe gets a line every ten seconds."""

    def show(self, phase: str, line: LineFunction) -> None:
        set_status(lambda: f"{phase}: {line()}")

    def close(self) -> None:
        set_status("")


class BarListener(MergeListener):
    """A bar in at most 80 columns, and a second line with what is waited for. In a notebook rich displays it there."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        set_status("")
        self._waiting = ""
        self._bar = _Bar(self, console or Console(stderr=True))
        self._task = self._bar.add_task("starting", total=1.0, facts="")
        self._bar.start()

    @property
    def second_line(self) -> str:
        """What is being waited for."""
        return printable(self._waiting)

    def show(self, phase: str, line: LineFunction) -> None:
        self._waiting = line() if phase == "assembling" else ""
        self._bar.update(self._task, description=phase)
        self.refresh()

    def refresh(self) -> None:
        assert self.progress is not None
        waiting = self.progress.waiting_for
        if waiting is not None:
            self._waiting = f"waiting for {waiting}"
        self._bar.update(self._task, completed=self.progress.share, facts=" ".join(self.progress.facts()))

    def close(self) -> None:
        self._bar.stop()


class _Bar(Progress):
    """A rich progress bar with a line below it."""

    def __init__(self, owner: BarListener, console: Console) -> None:
        self._owner = owner
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=6),
            TextColumn("{task.fields[facts]}", markup=False),
            console=console,
            transient=True,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self._owner.second_line:
            yield Text("  " + self._owner.second_line, overflow="ellipsis", no_wrap=True)


def make_listener(*, quiet: bool, terminal: bool) -> Listener:
    """Return a bar for a terminal, lines for a pipe, or a listener that prints nothing if `quiet`."""
    if quiet:
        return Listener()
    return BarListener() if terminal else LineListener()


def notebook_listener() -> BarListener | None:
    """Return a bar in a Jupyter notebook, None anywhere else."""
    console = Console()
    return BarListener(console) if console.is_jupyter else None
