"""Match module names with the patterns of an adapter's config, in time that is linear in the name.

PEFT matches each key of rank_pattern and alpha_pattern as a regular expression with the end of the module's name, after
a dot; the first key that matches counts. Python's engine takes exponential time for some expressions, so a file from
outside could stop a merge. Here names are compared, and expressions are matched by RE2, which is part of pyarrow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAME = re.compile(r"[\w.-]+")
_MOST_EXPRESSIONS = 1000
_LONGEST_EXPRESSION = 1000


class ModulePatterns:
    """Values by pattern.

    Parameters
    ----------
    values : from pattern to value, in the order of the file

    Raises
    ------
    ValueError : not an expression of RE2, which has no look-around and no back-references; too many or too long ones
    """

    def __init__(self, values: Mapping[str, float]) -> None:
        self._names: dict[str, tuple[int, float]] = {}
        self._expressions: list[tuple[int, str, float]] = []
        for position, (pattern, value) in enumerate(values.items()):
            name = pattern.removesuffix("$").replace("\\.", ".")
            if _NAME.fullmatch(name):
                self._names.setdefault(name, (position, value))
            else:
                self._expressions.append((position, pattern, value))
        if len(self._expressions) > _MOST_EXPRESSIONS:
            raise ValueError(f"has {len(self._expressions)} regular expressions, expected at most {_MOST_EXPRESSIONS}")
        for _, pattern, _ in self._expressions:
            _matches(pattern, "x")

    def find(self, module: str) -> float | None:
        """Return the value of the first pattern that matches a module, None if there is none."""
        found: list[tuple[int, float]] = []
        name = module
        while name:
            if name in self._names:
                found.append(self._names[name])
            name = name.partition(".")[2]
        first = min(found, default=None)
        for position, pattern, value in self._expressions:
            if first is not None and position > first[0]:
                break
            if _matches(pattern, module):
                return value
        return None if first is None else first[1]


def _matches(pattern: str, module: str) -> bool:
    import pyarrow as pa  # 0.1 s, and few adapters have expressions
    import pyarrow.compute as pc

    if len(pattern) > _LONGEST_EXPRESSION:
        raise ValueError(f"has an expression of {len(pattern)} characters, expected at most {_LONGEST_EXPRESSION}")
    try:
        found = pc.match_substring_regex(pa.array([module]), pattern=rf"^(.*\.)?({pattern})$")
    except (pa.ArrowException, ValueError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(
            f"has {pattern[:100]!r}, which is not a regular expression of RE2, without look-around and back-references"
            f" ({reason})"
        ) from None
    return bool(found[0].as_py())
