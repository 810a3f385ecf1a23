"""Arguments of the Python functions: sizes as text, and errors that name arguments instead of options."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Collection
from typing import ParamSpec, TypeVar

from ..core.errors import EigenmergeError, RecipeError

P = ParamSpec("P")
R = TypeVar("R")

# An option in a message: `--overwrite`, `--rank R`, `--device`; a following word in capitals is its value.
_OPTION = re.compile(r"--([a-z][a-z0-9-]*)(?: ([A-Z]+)\b)?")


def number_of_bytes(name: str, value: int | str | None) -> int | None:
    """Return the bytes of 16000000000, "16GB" or "15GiB"; None for None.

    Parameters
    ----------
    name : of the argument, for the message

    Raises
    ------
    RecipeError : not a size
    """
    from ..core.recipe.fields import parse_bytes

    if value is None:
        return None
    try:
        return parse_bytes(value)
    except ValueError as error:
        raise RecipeError(f"{name} {error}") from None


def errors_name_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that its errors name its own arguments instead of options of the command line.

    Options that are no argument of the function stay as they are. The class of the error and its attributes stay.
    """
    signature = inspect.signature(function)
    flags = {name for name, one in signature.parameters.items() if one.default is False or one.default is True}
    names = set(signature.parameters)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except EigenmergeError as error:
            if error.args:
                error.args = (name_arguments(str(error.args[0]), names, flags), *error.args[1:])
            raise

    return call


def name_arguments(message: str, names: Collection[str], flags: Collection[str]) -> str:
    """Return a message with arguments instead of options.

    Parameters
    ----------
    names : of the function's arguments
    flags : those of them that are True or False
    """

    def replace(match: re.Match[str]) -> str:
        name = match[1].replace("-", "_")
        if name not in names:
            return match[0]
        return f"{name}=True" if name in flags else f"{name}={match[2]}" if match[2] else name

    return _OPTION.sub(replace, message)
