"""Print the tables of docs/real-experts.md from the measurements.

    python tests/benchmarks/real_experts/report.py [--work .experts] [--parts methods sides choices tried rounded]

Shares are in percent, ± one standard error (shares.py). A row has the sets in which it is measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rows import CHOICES, METHODS, MORE_METHODS, MORE_SIDES, ROUNDED, SIDES, SWEEP, TRIED, Row
from shares import Answers, SetAnswers, accuracy, difference, share_kept

sys.path.insert(0, str(Path(__file__).parents[2] / "demo"))
from measure import BASE, EXPERTS, read_lines

REFERENCE = "swudi_a"
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


def share_table(results: Sequence[Results], rows: Sequence[Row], *, per_set: bool = False) -> Iterator[str]:
    """Yield a Markdown table: for each family accuracy, share, and difference of the share from that of swudi_a."""
    head = ["row"]
    for found in results:
        head += [f"{found.family}: accuracy", "share kept", f"minus {REFERENCE}"]
        head += [f"set {number}" for number in range(len(found.sets))] if per_set else []
    yield from _head(head)
    order = sorted(rows, key=lambda row: -_mean_share(results, row.name))
    for row in order:
        cells = [row.name]
        for found in results:
            sets = found.with_row(row.name)
            if not sets:
                cells += [""] * (3 + (len(found.sets) if per_set else 0))
                continue
            share = share_kept(sets, row.name)
            both = found.with_row(row.name, REFERENCE)
            less = f" ({len(sets)} set{'s' if len(sets) > 1 else ''})" if len(sets) < len(found.sets) else ""
            minus = "" if row.name == REFERENCE or not both else difference(both, row.name, REFERENCE).signed
            cells += [f"{100 * accuracy(sets, row.name):.1f}", f"{share}{less}", minus]
            if per_set:
                values = [f"{100 * value:.1f}" for value in share.sets]
                cells += values + [""] * (len(found.sets) - len(values))
        if any(cells[1:]):
            yield _line(cells)


def _mean_share(results: Sequence[Results], name: str) -> float:
    shares = [share_kept(sets, name).value for found in results if (sets := found.with_row(name))]
    return sum(shares) / len(shares) if shares else -1e9


def set_table(results: Sequence[Results]) -> Iterator[str]:
    """Yield the accuracy of base and experts per task, the mean over sets, and the summed gain of each set."""
    tasks = list(results[0].sets[0].base)
    yield from _head(["", *(f"{found.family}: {what}" for found in results for what in ("base", "expert"))])
    for task in tasks:
        cells = [task]
        for found in results:
            if task not in found.sets[0].base:
                cells += ["", ""]
                continue
            base = sum(float(answers.base[task].mean()) for answers in found.sets) / len(found.sets)
            expert = sum(float(answers.experts[task].mean()) for answers in found.sets) / len(found.sets)
            cells += [f"{100 * base:.1f}", f"{100 * expert:.1f}"]
        yield _line(cells)
    cells = ["summed gain of a set, points"]
    for found in results:
        cells += ["", ", ".join(f"{100 * answers.gain:.0f}" for answers in found.sets)]
    yield _line(cells)


CHOSEN = {
    "factor of swudi_a": ["swudi_a", *(row.name for row in CHOICES if row.name.startswith("swudi_a x"))],
    "factor of swudi_a both": [
        "swudi_a both",
        *(row.name for row in CHOICES if row.name.startswith("swudi_a both x")),
    ],
    "share of the outputs": [
        "swudi_a both",
        *(row.name for row in CHOICES if row.name.startswith("swudi_a both, outputs")),
    ],
    "side": ["swudi_a", "swudi_a outputs", "swudi_a both", "swudi_a smaller"],
    "time and rank of swudi": [row.name for row in SWEEP],
}


def choice_table(test: Sequence[Results], validation: Sequence[Results]) -> Iterator[str]:
    """Yield what validation items choose of the rows that are measured on all sets, and its share on test items."""
    yield from _head(
        ["chosen on validation items", "family", "choice", "share kept", f"minus {REFERENCE}", "best on test"]
    )
    for title, names in CHOSEN.items():
        for found, held_out in zip(test, validation, strict=True):
            present = [name for name in names if len(held_out.with_row(name)) == len(held_out.sets)]
            if len(present) < 2:
                continue
            best = max(present, key=lambda name: share_kept(held_out.sets, name).value)
            top = max(present, key=lambda name: share_kept(found.sets, name).value)
            share = share_kept(found.sets, best)
            minus = "" if best == REFERENCE else difference(found.sets, best, REFERENCE).signed
            cells = [f"{title}, of {len(present)}", found.family, best, str(share), minus]
            yield _line([*cells, f"{top}, {share_kept(found.sets, top)}"])


def _head(cells: Sequence[str]) -> Iterator[str]:
    yield _line(cells)
    yield "|---|" + "--:|" * (len(cells) - 1)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".experts"), help="folder for all files of the benchmark")
    work = parser.parse_args().work
    results = [found for family in FAMILY_NAMES if (found := load(work, family)).sets]
    validation = [load(work, found.family, split="validation") for found in results]
    rounded = [found for family in FAMILY_NAMES if (found := load(work, family, "bfloat16")).sets]
    sections: list[tuple[str, Iterator[str]]] = [
        ("Experts", set_table(results)),
        ("Methods", share_table(results, [*METHODS, *MORE_METHODS, *SIDES])),
        ("Sides", share_table(results, [*SIDES, *MORE_SIDES], per_set=True)),
        ("Chosen on validation items", choice_table(results, validation)),
        ("Factors and shares", share_table(results, [*CHOICES, SIDES[0], SIDES[2]])),
        ("Tried", share_table(results, [*TRIED, SIDES[0], SIDES[2]])),
        ("Sweep", share_table(results, SWEEP)),
    ]
    if rounded:
        stored = [row for row in (*METHODS, *SIDES) if "bfloat16" in row.stored]
        sections.append(("Stored in bfloat16", share_table(rounded, [*stored, *ROUNDED])))
    for title, lines in sections:
        print(f"\n## {title}\n", *lines, sep="\n")


if __name__ == "__main__":
    main()
