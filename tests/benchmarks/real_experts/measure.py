"""Merge and evaluate every row of the benchmark on the trained experts.

    python tests/benchmarks/real_experts/measure.py [--work .experts] [--parts sides methods ...] [--sets 0 1 2]

Each measurement is a line of WORK/results/FAMILY-setN-DTYPE.jsonl: the correct answers on test and validation items,
per task. What is there is not measured again. Models are evaluated in bfloat16, which is four times faster than
float32 where the processor has the instructions, and the same for every row.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import eigenmerge

sys.path.insert(0, str(Path(__file__).parents[2] / "demo"))
from combine import COMBINATIONS, combine
from data import Archives, Task
from encoder import Encoder
from families import FAMILIES, fetch_packages
from real_tasks import load_real_tasks
from rows import PARTS, ROWS, Row
from safetensors.torch import load_file, save_file
from training import ExpertSet

BASE, EXPERTS = "base", "experts"  # rows that are no merge
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Cell:
    """One set of experts as stored in one dtype, and the file of its measurements."""

    experts: ExpertSet
    tasks: list[Task]
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.experts.family.name}-set{self.experts.number}-{self.dtype}"

    @property
    def results(self) -> Path:
        return self.experts.work / "results" / f"{self.name}.jsonl"

    @property
    def scratch(self) -> Path:
        return self.experts.work / "scratch" / self.name

    def measured(self) -> set[str]:
        """Return the names of the rows that are measured; a line that a kill has cut does not count."""
        return {line["row"] for line in read_lines(self.results)}

    def folder(self, source: Path) -> Path:
        """Return the checkpoint of the base or an expert in the dtype of the cell, and make it where it is missing."""
        if self.dtype == "float32":
            return source
        target = self.scratch / "rounded" / source.name
        if not (target / "model.safetensors").exists():
            shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
            tensors = {name: t.to(DTYPES[self.dtype]) for name, t in load_file(source / "model.safetensors").items()}
            save_file(tensors, target / "part", metadata={"format": "pt"})
            (target / "part").rename(target / "model.safetensors")
        return target

    def recipe(self, row: Row) -> dict[str, Any]:
        return {
            "base_model": str(self.folder(self.experts.base)),
            "models": [{"model": str(self.folder(self.experts.expert(task)))} for task in self.tasks],
            "dtype": "float32",
            **row.keys,
        }

    def merge(self, row: Row) -> Path:
        """Return the folder of a merged checkpoint, which a later row may combine with another one."""
        out = self.scratch / row.name.replace(" ", "_").replace("/", "_")
        if (out / "model.safetensors").exists():
            return out
        if row.of:
            sources = [self.merge(ROWS[name]) for name in row.of]
            base = self.folder(self.experts.base)
            experts = [self.folder(self.experts.expert(task)) for task in self.tasks]
            combine(COMBINATIONS[row.combine], base, sources, experts, out)
        else:
            eigenmerge.merge(
                self.recipe(row), out, store=self.scratch / "store", workers=1, overwrite=True, use_prefect=False
            )
        return out

    def write(self, name: str, answers: dict[str, dict[str, str]], seconds: float) -> None:
        self.results.parent.mkdir(parents=True, exist_ok=True)
        line = {"row": name, "seconds": round(seconds, 1), "date": time.strftime("%Y-%m-%d"), "answers": answers}
        with self.results.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the measurements of a cell; the last line may be cut."""
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def answers_of(
    checkpoint: Path, experts: ExpertSet, tasks: list[Task], *, validation: bool = True
) -> dict[str, dict[str, str]]:
    """Return for each task its correct (1) and wrong (0) answers on test and validation items, as text of 0 and 1.

    Without `validation` there are none on validation items, which saves a quarter of the time.
    """
    encoder = Encoder.load(checkpoint)
    encoder.model.to(torch.bfloat16)
    found = {}
    for task in tasks:
        items = [*task.test, *(task.validation if validation else ())]
        cosines = encoder.embed_all([text for text, _ in items]).float() @ experts.head(task).T
        right = (cosines.argmax(-1) == torch.tensor([label for _, label in items])).int().tolist()
        bits = "".join(map(str, right))
        found[task.name] = {"test": bits[: len(task.test)], "validation": bits[len(task.test) :]}
    return found


def measure(cell: Cell, rows: tuple[Row, ...]) -> None:
    """Measure the base, the experts and the rows that are missing in a cell."""
    done = cell.measured()
    if BASE not in done:
        cell.write(BASE, answers_of(cell.folder(cell.experts.base), cell.experts, cell.tasks), 0.0)
    if EXPERTS not in done:
        found: dict[str, dict[str, str]] = {}
        for task in cell.tasks:
            found |= answers_of(cell.folder(cell.experts.expert(task)), cell.experts, [task])
        cell.write(EXPERTS, found, 0.0)
    for row in rows:
        if row.name in done or cell.dtype not in row.stored:
            continue
        started = time.process_time()
        out = cell.merge(row)
        merged = time.process_time() - started
        validation = row.group in ("side", "choice")
        cell.write(row.name, answers_of(out, cell.experts, cell.tasks, validation=validation), merged)
        if row.name not in _kept():
            shutil.rmtree(out)
        total = time.process_time() - started
        print(f"{time.strftime('%H:%M:%S')} {cell.name}: {row.name}, {merged:.0f} s, {total:.0f} s", flush=True)


def _kept() -> set[str]:
    """Return the rows whose checkpoints other rows combine."""
    return {name for row in ROWS.values() for name in row.of}


def cells(work: Path, archives: Archives, families: list[str], sets: list[int], dtypes: list[str]) -> Iterator[Cell]:
    """Yield the cells whose experts are all trained."""
    for dtype in dtypes:
        for number in sets:
            for name in families:
                family = FAMILIES[name]
                tasks = load_real_tasks(archives, number, max_train=family.train_items)[: family.tasks]
                experts = ExpertSet(family, number, work)
                if experts.is_complete(tasks):
                    yield Cell(experts, tasks, dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".experts"), help="folder for all files of the benchmark")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="NAME", help="these rows of the parts only")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--sets", nargs="+", type=int, default=[0, 1, 2], help="numbers of the sets")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    work = options.work.resolve()
    archives = fetch_packages(work)
    for part in options.parts:
        for cell in cells(work, archives, options.families, options.sets, options.dtypes):
            measure(cell, tuple(row for row in PARTS[part] if not options.rows or row.name in options.rows))


if __name__ == "__main__":
    main()
