"""Print the tables of docs/real-experts.md from the measurements, or write them into pages.

    python tests/benchmarks/real_experts/report.py [--work .experts] [--write docs/real-experts.md docs/sides.md]

A row has the sets in which it is measured. In a page, a table stands between `<!-- table: NAME -->` and
`<!-- end of table -->`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from measurements import FAMILY_NAMES, load
from page_tables import write
from rows import CHOICES, LARV, METHODS, MORE_METHODS, MORE_SIDES, ROUNDED, ROWS, SIDES, SWEEP, TRIED
from tables import choice_table, paired_table, set_table, share_table


def tables(work: Path) -> dict[str, str]:
    """Return every table by its name."""
    results = [found for family in FAMILY_NAMES if (found := load(work, family)).sets]
    validation = [load(work, found.family, split="validation") for found in results]
    rounded = [found for family in FAMILY_NAMES if (found := load(work, family, "bfloat16")).sets]
    unscaled = [ROWS[name] for name in ("swudi_a", "swudi_a both", "dc_merge", "tsv_m", "iso_c 1.5")]
    found = {
        "experts": set_table(results),
        "methods": share_table(results, [*METHODS, *MORE_METHODS, *SIDES]),
        "sides": share_table(results, [*SIDES, *MORE_SIDES], per_set=True),
        "choices": choice_table(results, validation),
        "factors": share_table(results, [*CHOICES, *unscaled]),
        "larv": paired_table(results, LARV),
        "tried": share_table(results, [*TRIED, SIDES[0], SIDES[2]]),
        "sweep": share_table(results, SWEEP),
    }
    stored = [row for row in (*METHODS, *SIDES, *TRIED) if "bfloat16" in row.stored]
    found["rounded"] = share_table(rounded, [*stored, *ROUNDED]) if rounded else iter(())
    return {name: "\n".join(lines) for name, lines in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".experts"), help="folder for all files of the benchmark")
    parser.add_argument("--write", type=Path, nargs="+", default=[], help="pages whose tables are replaced")
    options = parser.parse_args()
    found = tables(options.work)
    for page in options.write:
        write(page, found)
    if not options.write:
        for name, text in found.items():
            print(f"\n## {name}\n", text, sep="\n")


if __name__ == "__main__":
    main()
