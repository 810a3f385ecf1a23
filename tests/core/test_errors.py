"""Exceptions: each is also a built-in exception, and hints about unknown words are short."""

from __future__ import annotations

import pytest

from eigenmerge.core import errors
from eigenmerge.core.errors import EigenmergeError, one_line, suggestion

CLASSES = [
    found
    for found in vars(errors).values()
    if isinstance(found, type) and issubclass(found, EigenmergeError) and found is not EigenmergeError
]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_is_also_a_built_in_exception(kind: type[EigenmergeError]) -> None:
    builtin = [base for base in kind.__mro__ if base.__module__ == "builtins" and base not in (Exception, object)]
    assert builtin and builtin[0] is not BaseException
    assert kind.exit_code in {1, 2, 130}
    assert kind.__doc__


def test_messages_on_one_line() -> None:
    assert one_line(ValueError("first\n  second\tthird ")) == "first second third"


def test_suggestions() -> None:
    assert suggestion("wieght", ["density", "weight"]) == "; did you mean 'weight'?"
    assert suggestion("zzz", ["density", "weight"]) == "; known: density, weight"
    assert suggestion("zzz", []) == "; none is known here"
    assert suggestion("zzz", [f"name{number}" for number in range(41)]) == ""
