"""Read the measurements of the benchmark, by family of models, dtype and split of the items."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from shares import Answers, SetAnswers

sys.path.insert(0, str(Path(__file__).parents[2] / "demo"))
from measure import BASE, EXPERTS, read_lines

FAMILY_NAMES = ("minilm", "smollm")


@dataclass(frozen=True, slots=True)
class Results:
    """The sets of a family in one dtype, on one split of the items."""

    family: str
    sets: list[SetAnswers]

    def with_row(self, *names: str) -> list[SetAnswers]:
        return [answers for answers in self.sets if all(name in answers.rows for name in names)]


def load(
    work: Path, family: str, dtype: str = "float32", split: str = "test", numbers: Sequence[int] | None = None
) -> Results:
    """Read the measurements of a family, of all sets or of those with the given numbers.

    A set counts from the time when its base and experts are measured.
    """
    sets = []
    names = "*" if numbers is None else f"[{''.join(map(str, numbers))}]"
    for path in sorted((work / "results").glob(f"{family}-set{names}-{dtype}.jsonl")):
        lines = {line["row"]: _answers(line, split) for line in read_lines(path)}
        if BASE in lines and EXPERTS in lines:
            sets.append(SetAnswers(lines.pop(BASE), lines.pop(EXPERTS), lines))
    return Results(family, sets)


def _answers(line: dict[str, Any], split: str) -> Answers:
    return {
        task: torch.tensor([float(bit) for bit in bits[split]], dtype=torch.float64)
        for task, bits in line["answers"].items()
    }
