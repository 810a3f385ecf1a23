"""Replace the tables of a page: what stands between `<!-- table: NAME -->` and `<!-- end of table -->`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

TABLE = re.compile(r"(<!-- table: ([a-z ]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def write(page: Path, found: Mapping[str, str]) -> None:
    """Replace the tables of a page."""

    def replaced(match: re.Match[str]) -> str:
        return f"{match[1]}{found[match[2]]}\n{match[3]}"

    page.write_text(TABLE.sub(replaced, page.read_text()))
