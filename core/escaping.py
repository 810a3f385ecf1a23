"""Escape text from outside for the place where it is shown: one function for each medium.

Names of models, files, tensors and tokens, and the content of configurations, are chosen by whoever made a model.
Without escapes they could command a terminal, reverse the order in which a line is read, or become a link on a page.

* a terminal, a log, a message: `printable`
* Markdown (the model card, Prefect's pages): `markdown_text`, `markdown_code`, `markdown_block`

JSON needs no function: `json.dumps` escapes everything outside ASCII.
"""

from __future__ import annotations

import re

# Characters that begin markup anywhere in a line. HTML needs "<" or "&".
_ACTIVE = re.compile(r"[\\`*\[\]<>|~$&#!]|(?<![^\W_])_|_(?![^\W_])")
# At the beginning of a line: list items, headings, lines below headings.
_BLOCK = re.compile(r"(?:[-+=]|\d+(?=[.)]))")
# Readers turn these words into links, also behind backslashes; in a code span they do not.
_ADDRESS = re.compile(r"[^\s`]*(?::|www\.|@)(?=[^\s`])[^\s`]*", re.IGNORECASE)
_PLAIN = re.compile(r"[\w ./-]+")
_TICKS = re.compile(r"`+")


def printable(text: str) -> str:
    r"""Return text with control, formatting and direction characters as escapes, such as `\x1b`.

    A name from a model then cannot command a terminal, add a line, or change the order in which a line is read.
    """
    return text if text.isprintable() else "".join(map(_printable_character, text))


def markdown_text(text: str) -> str:
    """Return text for a line of Markdown, also in a table or quotation, that is shown as it is, without links."""
    text = printable(text).strip()
    parts: list[str] = []
    position = 0
    for found in _ADDRESS.finditer(text):
        parts += [_escape(text[position : found.start()]), markdown_code(found[0])]
        position = found.end()
    line = "".join([*parts, _escape(text[position:])])
    first = _BLOCK.match(line)
    if first is None:
        return line
    digits = first[0].isdigit()
    return f"{first[0]}\\{line[first.end() :]}" if digits else f"\\{line}"


def markdown_code(text: str) -> str:
    """Return text as a code span for a line of Markdown, also in a table."""
    # A table ends a cell at "|" even inside of code, and some readers do so behind a backslash.
    text = printable(text).replace("|", "\\x7c")
    fence = "`" * (_longest_ticks(text) + 1)
    space = " " if not text.strip("` ") or text[:1] in "` " or text[-1:] in "` " else ""
    return f"{fence}{space}{text}{space}{fence}"


def markdown_name(name: str) -> str:
    """Return a name for a line of Markdown: as it is if it has no active character, otherwise as a code span."""
    is_plain = (
        _PLAIN.fullmatch(name) and name.isprintable() and "www." not in name.lower() and markdown_text(name) == name
    )
    return name if is_plain else markdown_code(name)


def markdown_block(text: str, language: str = "") -> list[str]:
    """Return the lines of a fenced code block, which no line of the text can end."""
    fence = "`" * max(3, _longest_ticks(text) + 1)
    return [f"{fence}{language}", *map(printable, text.split("\n")), fence]


def _printable_character(char: str) -> str:
    return char if char.isprintable() else ascii(char)[1:-1]


def _escape(text: str) -> str:
    return _ACTIVE.sub(lambda found: f"\\{found[0]}", text)


def _longest_ticks(text: str) -> int:
    return max((len(ticks) for ticks in _TICKS.findall(text)), default=0)
