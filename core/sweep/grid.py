"""The parameters that a sweep varies, and their values: `exp_time=100,300,1300`, `rank_ratio=0.5:0.95:0.05`.

Names and values are checked against the method's own model before anything is computed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, cast

from ..errors import RecipeError, suggestion
from ..numerics.method import AnyMethod
from ..numerics.registry import get_method
from ..recipe.settings import Scalar, accept_value, type_adapters
from ..recipe.strict_yaml import parse_yaml_mapping

# A larger grid is more likely a mistake in a step than intended: a thousand candidates are a day of evaluation.
MOST_CANDIDATES = 10_000

Settings = Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class Interval:
    """All numbers from `low` to `high`, for an optimizer; on a logarithmic scale with `log`."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """One parameter with its values in the order given, or an interval instead of values."""

    name: str
    values: tuple[Scalar, ...] = ()
    interval: Interval | None = None

    @property
    def ends(self) -> tuple[Scalar, ...]:
        """The values, or both ends of the interval."""
        return self.values if self.interval is None else (self.interval.low, self.interval.high)


def parse_grid(texts: Iterable[str]) -> dict[str, str]:
    """Return the specification of each parameter of `NAME=VALUES` arguments.

    Raises
    ------
    RecipeError : no name, no values, or the same name twice
    """
    grid: dict[str, str] = {}
    for text in texts:
        name, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not name or not values:
            raise RecipeError(
                f"--grid {text!r}: expected NAME=VALUES, such as exp_time=100,300 or rank_ratio=0.5:0.9:0.1"
            )
        if name in grid:
            raise RecipeError(f"--grid {name}: is given twice; give all its values once: {name}={grid[name]},{values}")
        grid[name] = values
    return grid


def make_axes(
    grid: Mapping[str, str | Scalar | Sequence[Scalar]], merge_method: str, *, intervals: bool = False
) -> tuple[Axis, ...]:
    """Return the axes of a grid, with every value in the type of the method's parameter.

    Parameters
    ----------
    grid : parameter to values: a sequence, or text as on the command line ("0.5:0.95:0.05", "100,300", "10..3000:log")
    intervals : whether "low..high" is allowed, which an optimizer needs no step for

    Raises
    ------
    RecipeError : the method has no such parameter (suggests the nearest), a value that it refuses, or the same value
        twice
    """
    if not grid:
        raise RecipeError("--grid: is missing; expected at least one, such as --grid exp_time=100,300,1300")
    method = get_method(merge_method)
    axes = tuple(_make_axis(name, given, method, intervals) for name, given in grid.items())
    count = math.prod(len(axis.values) for axis in axes if axis.interval is None)
    if count > MOST_CANDIDATES and not intervals:
        raise RecipeError(f"--grid: makes {count} candidates; expected at most {MOST_CANDIDATES}: use larger steps")
    return axes


def all_settings(axes: Sequence[Axis]) -> Iterator[dict[str, Scalar]]:
    """Yield every combination of values; the last axis changes fastest. For axes without intervals."""
    for values in itertools.product(*(axis.values for axis in axes)):
        yield dict(zip((axis.name for axis in axes), values, strict=True))


def corner_settings(axes: Sequence[Axis]) -> Iterator[dict[str, Scalar]]:
    """Yield the first setting, and each that differs from it in one parameter: every value of every axis occurs."""
    first = {axis.name: axis.ends[0] for axis in axes}
    yield first
    for axis in axes:
        for value in axis.ends[1:]:
            yield {**first, axis.name: value}


def describe(settings: Settings) -> str:
    """Return settings as text: "exp_time=300, rank_ratio=0.85"."""
    return ", ".join(f"{name}={show_value(value)}" for name, value in settings.items())


def show_value(value: Scalar) -> str:
    """Return a value as it is written in a grid."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _make_axis(name: str, given: object, method: AnyMethod, intervals: bool) -> Axis:
    own, per_expert = type_adapters(method.Parameters), type_adapters(method.Expert)
    adapter = own.get(name) or per_expert.get(name)
    if adapter is None:
        known = suggestion(name, {**own, **per_expert})
        raise RecipeError(f"--grid {name}: {method.name} has no such parameter{known}")
    interval, raw = _parse_values(name, given)
    if interval is not None and not intervals:
        raise RecipeError(f"--grid {name}: an interval without a step needs --optimizer; or give low:high:step")
    try:
        for end in (interval.low, interval.high) if interval is not None else ():
            accept_value(adapter, end)
        values = tuple(accept_value(adapter, value) for value in raw)
    except ValueError as error:
        raise RecipeError(f"--grid {name}: {error}") from None
    for value in values:
        if isinstance(value, float) and not math.isfinite(value):
            raise RecipeError(f"--grid {name}: has {value}; expected finite numbers")
    twice = [value for index, value in enumerate(values) if value in values[:index]]
    if twice:
        raise RecipeError(f"--grid {name}: has {show_value(twice[0])} twice")
    return Axis(name, values, interval)


def _parse_values(name: str, given: object) -> tuple[Interval | None, tuple[Any, ...]]:
    if not isinstance(given, str):
        if not isinstance(given, Iterable):
            return None, (given,)
        values = tuple(cast("Iterable[Any]", given))
        for value in values:
            if not (value is None or isinstance(value, (bool, int, float, str))):
                raise RecipeError(f"--grid {name}: has a {type(value).__name__}; expected numbers or words")
        if not values:
            raise RecipeError(f"--grid {name}: has no values")
        return None, values
    if ".." in given:
        return _parse_interval(name, given), ()
    if ":" in given:  # YAML would read 1:2 as 62, a number to the base 60
        return None, _parse_range(name, given)
    return None, tuple(_parse_scalar(name, word) for word in given.split(","))


def _parse_range(name: str, text: str) -> tuple[int | float, ...]:
    """Return start, start + step, ..., up to and with stop. Decimal, so that 0.5:0.95:0.05 ends with 0.95."""
    try:
        start, stop, step = (Decimal(word.strip()) for word in text.split(":"))
        is_bounded = all(math.isfinite(float(number)) for number in (start, stop, step))
    except (InvalidOperation, ValueError):
        raise RecipeError(
            f"--grid {name}: {text!r} is no range; expected start:stop:step, such as 0.5:0.95:0.05"
        ) from None
    if not is_bounded:
        raise RecipeError(f"--grid {name}: {text!r} has no end; expected finite numbers")
    if float(step) == 0 or (stop - start) * step < 0:
        raise RecipeError(f"--grid {name}: {text!r} never reaches its stop; expected a step towards it, not 0")
    steps = (stop - start) / step
    if steps >= MOST_CANDIDATES:
        raise RecipeError(f"--grid {name}: {text!r} has {steps:.0e} values; expected at most {MOST_CANDIDATES}")
    count = int(steps) + 1
    whole = all(number == number.to_integral_value() for number in (start, step))
    return tuple(int(value) if whole else float(value) for value in (start + index * step for index in range(count)))


def _parse_interval(name: str, text: str) -> Interval:
    bounds, _, scale = text.partition(":")
    low, _, high = bounds.partition("..")
    try:
        interval = Interval(float(low), float(high), log=scale == "log")
    except ValueError:
        raise RecipeError(f"--grid {name}: {text!r} is no interval; expected low..high or low..high:log") from None
    if scale not in ("", "log"):
        raise RecipeError(f"--grid {name}: unknown scale {scale!r}{suggestion(scale, ['log'])}")
    if not (math.isfinite(interval.low) and math.isfinite(interval.high) and interval.low < interval.high):
        raise RecipeError(f"--grid {name}: {text!r} is empty; expected two finite numbers, the smaller one first")
    if interval.log and interval.low <= 0:
        raise RecipeError(f"--grid {name}: {text!r} has no logarithm; expected numbers above 0")
    return interval


def _parse_scalar(name: str, word: str) -> Any:
    """Return a number, word, true, false or null, as YAML reads it in a recipe."""
    word = word.strip()
    if not word:
        raise RecipeError(f"--grid {name}: has an empty value; expected values with a comma between two")
    try:
        value = parse_yaml_mapping(f"value: {word}", f"--grid {name}")["value"]
    except RecipeError:
        raise RecipeError(
            f"--grid {name}: {word!r} is not a value; expected a number, a word, true, false or null"
        ) from None
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise RecipeError(f"--grid {name}: {word!r} is not one value; expected a number, a word, true, false or null")
    return value
