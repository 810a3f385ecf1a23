"""Hook of MkDocs: links to files of the repository, and the folder where mkdocstrings finds the source files."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]

REPOSITORY = "https://github.com/eigenmerge/eigenmerge"
_BLOB = f"{REPOSITORY}/blob/main/"
_TREE = f"{REPOSITORY}/tree/main/"

_LINK = re.compile(r"(?P<begin>\]\()(?P<target>[^)\s]+)(?P<end>\))")
_CELL = re.compile(r"<td[^>]*>.*?</td>", re.DOTALL)
_CODE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)
# Pages of the site that are files at the top of the repository.
AT_THE_TOP = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def on_startup(**_: Any) -> None:
    """Make build/links/eigenmerge: in an editable install `eigenmerge` is the folder deployments/face alone."""
    folder = _ROOT / "build" / "links" / "eigenmerge"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("core", "tasks", "flows", "deployments"):
        place = folder / name
        place.unlink(missing_ok=True)
        place.symlink_to(_ROOT / name)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace links that leave the folder of the pages. Called by MkDocs for each page."""
    source = page.file.src_uri
    return adapt_links(markdown, f"docs/{source}", source)


def on_page_content(html: str, **_: Any) -> str:
    r"""Show `\|` in the code of a table as a bar, as GitHub does. Called by MkDocs for each page."""
    return _CELL.sub(lambda cell: cell[0].replace("\\|", "|"), html)


def adapt_links(markdown: str, origin: str, page: str) -> str:
    """Return the text of a page with links as the site needs them.

    Parameters
    ----------
    origin : path in the repository of the file that has the text; its links are relative to it
    page : path of the page in the site
    """

    def replace(found: re.Match[str]) -> str:
        return f"{found['begin']}{site_link(found['target'], origin, page)}{found['end']}"

    # Odd pieces are fenced code, which may show links as text.
    pieces = _CODE.split(markdown)
    return "".join(piece if number % 2 else _LINK.sub(replace, piece) for number, piece in enumerate(pieces))


def site_link(target: str, origin: str, page: str) -> str:
    """Return one link: to a page of the site where there is one, else to the repository; others as they are."""
    for prefix in (_BLOB, _TREE):
        if target.startswith(prefix):
            path, mark, anchor = target.removeprefix(prefix).partition("#")
            break
    else:
        if "://" in target or target.startswith(("#", "mailto:")):
            return target
        path, mark, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
    if path.rstrip("/") == "docs/decisions":
        path = "docs/decisions/README.md"
    if path.startswith("docs/"):
        wanted = path.removeprefix("docs/")
    elif path in AT_THE_TOP:
        wanted = AT_THE_TOP[path]
    else:
        return (_BLOB if "." in posixpath.basename(path) else _TREE) + path + mark + anchor
    return posixpath.relpath(wanted, posixpath.dirname(page) or ".") + mark + anchor
