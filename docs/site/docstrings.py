"""Extension of griffe: read docstrings as this project writes them.

Types are in the signature, so after the colon of `name : ...` stands the meaning. numpydoc would take it for the type.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_SECTION = re.compile(
    r"^(?P<title>Parameters|Raises)\n-{3,}\n(?P<body>.*?)(?=^\w[^\n]*\n-{3,}\n|\Z)", re.MULTILINE | re.DOTALL
)
# An entry with an indented text below has a type after the colon, as numpydoc wants it.
_ENTRY = re.compile(r"^(?P<name>[\w*][\w*, ]*?) : (?P<meaning>[^\n]+(?:\n(?![^\n]* : )[ ]{4}[^\n]+)*)", re.MULTILINE)


class MeaningAfterColon(griffe.Extension):
    """Rewrite `name : meaning` into the form that griffe's parser of numpydoc expects."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one function, class or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = rewrite(obj.docstring.value)


def rewrite(text: str) -> str:
    """Return a docstring with each meaning on a line of its own."""
    return _SECTION.sub(lambda found: f"{found['title']}\n{'-' * len(found['title'])}\n{_entries(found['body'])}", text)


def _entries(body: str) -> str:
    def entry(found: re.Match[str]) -> str:
        first, *rest = found["meaning"].splitlines()
        if rest and not first.rstrip().endswith((",", ";", ":")) and rest[0].strip()[:1].isupper():
            return found[0]  # a type, and a sentence below
        return f"{found['name']}\n    {first}" + "".join(f"\n{line}" for line in rest)

    return _ENTRY.sub(entry, body)
