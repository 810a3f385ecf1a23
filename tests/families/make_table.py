"""Merge every family in every form, and write the table of docs/models.md.

    .venv/bin/python tests/families/make_table.py            # all families, about three minutes
    .venv/bin/python tests/families/make_table.py Llama BERT # prints these only

A cell is "yes" if the merged checkpoint loads in transformers without missing or unexpected keys, and
every parameter and the outputs equal those of the merge by hand; "refused" if nothing is merged and an error says why.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.families.check_case import check_form  # noqa: E402
from tests.families.families import FAMILIES  # noqa: E402
from tests.families.forms import FORMS  # noqa: E402

PAGE = ROOT / "docs/models.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("families", nargs="*", help="names of families; all by default")
    names = parser.parse_args().families
    torch.set_num_threads(1)
    chosen = [family for family in FAMILIES if not names or family.name in names]
    lines = ["| family | " + " | ".join(FORMS) + " |\n", "|---" * (len(FORMS) + 1) + "|\n"]
    notes: list[str] = []
    for family in chosen:
        cells = []
        for form in FORMS:
            with tempfile.TemporaryDirectory() as folder:
                result = check_form(family, form, Path(folder)).replace(f"{folder}/", "")
            if result not in {"yes", "-"}:
                notes.append(f"{len(notes) + 1}. {family.name}, {form}: {result}\n")
                result = f"{'refused' if result.startswith('refused') else 'no'} ({len(notes)})"
            cells.append(result)
        lines.append(f"| {family.name} | " + " | ".join(cells) + " |\n")
        print(lines[-1], end="", flush=True)
    print(*notes, sep="")
    if not names:
        text = PAGE.read_text()
        before, rest = text.split(BEGIN)
        table = "".join(lines) + ("\n" + "".join(notes) if notes else "")
        PAGE.write_text(before + BEGIN + "\n" + table + "\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
