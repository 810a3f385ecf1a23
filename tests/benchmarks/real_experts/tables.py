"""The tables of the benchmark in Markdown. Shares are in percent, ± one standard error (shares.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from measurements import Results
from rows import CHOICES, LARV, SWEEP, Row
from shares import SetAnswers, accuracy, difference, share_kept

REFERENCE = "swudi_a"


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
            minus = "" if row.name == REFERENCE or not both else difference(both, row.name, REFERENCE).signed
            cells += [f"{100 * accuracy(sets, row.name):.1f}", f"{share}{_fewer(sets, found)}", minus]
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
    **{
        f"factor of {method}": [row.name for row in CHOICES if row.name.startswith(f"{method} x")]
        for method in ("dc_merge", "tsv_m", "iso_c")
    },
    **{
        f"variant of LARV on {name}": [row.name for row in LARV if row.of == (name,)]
        for name in dict.fromkeys(row.of[0] for row in LARV)
    },
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


def paired_table(results: Sequence[Results], rows: Sequence[Row]) -> Iterator[str]:
    """Yield the share of rows that change one other row, and the difference from the share of that row."""
    head = ["row"]
    for found in results:
        head += [f"{found.family}: share kept", "minus the method alone"]
    yield from _head(head)
    for row in rows:
        cells = [row.name]
        for found in results:
            sets = found.with_row(row.name, *row.of)
            if not sets:
                cells += ["", ""]
                continue
            cells += [
                f"{share_kept(sets, row.name)}{_fewer(sets, found)}",
                difference(sets, row.name, row.of[0]).signed,
            ]
        if any(cells[1:]):
            yield _line(cells)


def _fewer(sets: Sequence[SetAnswers], found: Results) -> str:
    return f" ({len(sets)} set{'s' if len(sets) > 1 else ''})" if len(sets) < len(found.sets) else ""


def _head(cells: Sequence[str]) -> Iterator[str]:
    yield _line(cells)
    yield "|---|" + "--:|" * (len(cells) - 1)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
