"""Measure this package beside mergekit and beside the published algorithm, write docs/benchmarks.md, or check ratios.

    python -m tests.benchmarks.peers --json FILE --page docs/benchmarks.md    measure all, and write the page
    python -m tests.benchmarks.peers --only layers --json FILE --page ...     one group; the other rows of FILE stay
    python -m tests.benchmarks.peers --only none --json FILE --page ...       write the page again
    python -m tests.benchmarks.peers --check FILE                             measure the quicker rows, and compare

mergekit is the command in MERGEKIT_YAML or on the PATH; it needs an environment of its own. Without it only this
package is timed, and a check compares the other ratios. A check fails where a ratio is 20% worse than in FILE.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from .case import Case
from .cases import kept, layers, merges, planning, reading
from .page import page
from .ratios import not_compared, worse_ratios
from .results import Results, Row, read_results, write_results
from .timing import machine
from .workplace import Workplace, mergekit_version

GROUPS: Mapping[str, Callable[[Workplace], Iterator[Case]]] = {
    "merges": merges.cases,
    "layers": lambda _: layers.cases(),
    "kept": kept.cases,
    "reading": lambda _: reading.cases(),
    "planning": planning.cases,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=[*GROUPS, "none"], action="append", help="default: all groups")
    parser.add_argument("--rows", metavar="TEXT", default="", help="only rows whose label contains this")
    parser.add_argument("--runs", type=int, metavar="N", help="of each contender; default: by row")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the runs here; other rows of the file stay")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page; needs --json")
    parser.add_argument("--check", type=Path, metavar="FILE", help="compare with the figures of a file")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="for models and stores, 10 GB; default: temporary")
    given = parser.parse_args(arguments)
    if given.page is not None and given.json is None:
        parser.error("--page needs --json, the figures that it shows")
    if given.check is not None and given.json is not None:
        parser.error("--check and --json exclude each other")
    mergekit = os.environ.get("MERGEKIT_YAML") or shutil.which("mergekit-yaml")
    reference = read_results(given.check) if given.check is not None else None
    is_partial = given.only is not None or bool(given.rows)
    results = (
        None
        if given.json is None
        else begin(given.json, is_partial=is_partial, is_page_alone=given.only == ["none"], mergekit=mergekit)
    )
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="eigenmerge-peers-", dir=given.work) as name:
        for case in _cases(Workplace(Path(name), mergekit), given.only or list(GROUPS)):
            num_runs = case.num_runs if reference is None else case.num_checks
            is_alone = len(case.contenders) == 1
            if given.rows not in case.label or not num_runs or (reference is not None and is_alone):
                continue
            rows.append(_measure(case, given.runs or num_runs))
            if results is not None:
                results = results.with_row(rows[-1])
                write_results(given.json, results)
    if given.page is not None and given.json is not None:
        given.page.write_text(page(read_results(given.json)))  # of the file, which holds fewer digits
    if reference is None:
        return 0
    worse = worse_ratios(rows, reference)
    verdict = f"rows measured: {len(rows)}; ratios that are 20% worse: {len(worse)}"
    print(*not_compared(rows, reference), *worse, verdict, sep="\n")
    return 1 if worse else 0


def _cases(place: Workplace, chosen: Sequence[str]) -> Iterator[Case]:
    if "merges" in chosen and place.mergekit is None:
        print("mergekit-yaml is not on the PATH, and MERGEKIT_YAML is not set: no comparison with it", flush=True)
    for group, cases in GROUPS.items():
        if group in chosen:
            yield from cases(place)


def _measure(case: Case, num_runs: int) -> Row:
    started = time.monotonic()
    row = case.measure(num_runs)
    medians = {
        name: {figure: f"{row.median(name, figure):.4g}" for figure in runs[0]} for name, runs in row.runs.items()
    }
    print(f"{row.group}, {row.label}: {medians} ({time.monotonic() - started:.0f} s)", flush=True)
    return row


def begin(file: Path, *, is_partial: bool, is_page_alone: bool, mergekit: str | None) -> Results:
    """Return the results to which rows are added: those of the file, or empty ones if all rows are to be measured.

    Raises
    ------
    SystemExit : some rows are to be measured, and the file has the others of another machine
    """
    if is_page_alone:
        return read_results(file)
    known = {name: version(name) for name in ("eigenmerge", "torch")}
    if mergekit is not None:
        known["mergekit"] = mergekit_version(mergekit)
    if not is_partial or not file.exists():
        return Results(machine(), known, [])
    before = read_results(file)
    if before.machine != machine():
        raise SystemExit(f"{file} has figures of another machine ({before.machine}); measure all of them here")
    return Results(before.machine, {**before.versions, **known}, before.rows)


if __name__ == "__main__":
    sys.exit(main())
