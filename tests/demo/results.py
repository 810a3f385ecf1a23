"""The table of the demo: on the screen, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data import Task
from evaluate import Answers, KeptGain
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Merge:
    """Facts of a merge: folder, duration of the command, and the gain that it keeps."""

    folder: Path
    seconds: float
    kept: KeptGain


@dataclass(frozen=True, slots=True)
class Row:
    """One checkpoint on all tasks, or the experts, each on its own task."""

    name: str
    answers: dict[str, Answers]
    merge: Merge | None = None

    @property
    def kept_text(self) -> str:
        kept = self.merge.kept if self.merge else None
        return f"{100 * kept.share:.0f} ± {100 * kept.standard_error:.0f}" if kept else ""


@dataclass(frozen=True, slots=True)
class Results:
    """All measurements, in the order of the table."""

    tasks: Sequence[Task]
    rows: Sequence[Row]

    @property
    def header(self) -> list[str]:
        return ["accuracy, %", *(row.name for row in self.rows)]

    @property
    def lines(self) -> list[list[str]]:
        """The cells: a line for each task, then the facts of merges."""
        lines = [
            [task.name, *(f"{100 * row.answers[task.name].accuracy:.1f}" for row in self.rows)] for task in self.tasks
        ]
        lines.append(["gain kept, %", *(row.kept_text for row in self.rows)])
        lines.append(["merging, s", *(f"{row.merge.seconds:.1f}" if row.merge else "" for row in self.rows)])
        return lines

    @property
    def caption(self) -> str:
        worst = max(answers.standard_error for row in self.rows for answers in row.answers.values())
        sizes = sorted(len(task.test) for task in self.tasks)
        items = f"{sizes[0]}" if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"
        return (
            f"{items} held-out items a task; the standard error of one accuracy is at most {100 * worst:.1f} points. "
            "Gain kept: (merge - base) / (expert - base), averaged over the tasks. "
            "Best of 20: settings of SWUDI that were chosen on validation items, none below the base."
        )

    def show(self, console: Console) -> None:
        table = Table(caption=self.caption, box=SIMPLE_HEAD, padding=0)
        for number, name in enumerate(self.header):
            header = name.replace(" ", "\n") if number else name  # in 80 columns, numbers are not cut off
            table.add_column(header, justify="right" if number else "left", no_wrap=True)
        for number, line in enumerate(self.lines, 1):
            table.add_row(*line, end_section=number == len(self.tasks))
        console.print(table, soft_wrap=False)

    def write(self, folder: Path) -> None:
        """Write results.md and results.json."""
        cells = [self.header, ["---"] + ["--:"] * (len(self.header) - 1), *self.lines]
        table = "\n".join(f"| {' | '.join(line)} |" for line in cells)
        (folder / "results.md").write_text(f"{table}\n\n{self.caption}\n")
        (folder / "results.json").write_text(json.dumps(self._as_json(folder), indent=2) + "\n")

    def _as_json(self, folder: Path) -> dict[str, object]:
        tasks = {
            task.name: {"labels": len(task.labels), "train_items": len(task.train), "test_items": len(task.test)}
            for task in self.tasks
        }
        rows = []
        for row in self.rows:
            entry: dict[str, object] = {"name": slug(row.name)}
            entry["accuracy"] = {
                name: _share(answers.accuracy, answers.standard_error) for name, answers in row.answers.items()
            }
            if row.merge is not None:
                entry["gain_kept"] = _share(row.merge.kept.share, row.merge.kept.standard_error)
                entry["merge_seconds"] = round(row.merge.seconds, 2)
                entry["folder"] = row.merge.folder.relative_to(folder).as_posix()
            rows.append(entry)
        return {"tasks": tasks, "rows": rows}


def slug(name: str) -> str:
    """Return the name of a row for files and JSON."""
    return name.replace(" ", "_")


def _share(share: float, standard_error: float) -> dict[str, float]:
    return {"share": round(share, 5), "standard_error": round(standard_error, 5)}
