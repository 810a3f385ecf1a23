"""The forms of a parameter in a recipe, as in mergekit: one value, a gradient over the layers, or values by filter.

    weight: 0.5                                          one value
    weight: [0.2, 0.5, 1.0]                              a gradient: linear in the layer's position t from 0 to 1
    weight: [{filter: self_attn, value: [0, 1]}, {value: 0.5}]   the first whose filter occurs in the tensor's name

`Setting` is the parsed form. The method's pydantic model decides which values are valid: it supplies one type adapter
per parameter, and a gradient interpolates between the converted values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, cast

from pydantic import BaseModel, TypeAdapter, ValidationError

from ..errors import suggestion

Scalar = bool | int | float | str | None
MISSING = object()  # the setting has no value for the tensor; the scope of next lower precedence applies


@dataclass(frozen=True, slots=True)
class Case:
    """One value of a setting. `filter` is None where the value applies to every tensor; a tuple value is a gradient."""

    filter: str | None
    value: Scalar | tuple[Scalar, ...]


Setting = tuple[Case, ...]  # the first case that matches the tensor's name applies


def parse_setting(raw: Any) -> Setting:
    """Return the parsed form of a parameter's YAML value.

    Raises
    ------
    ValueError : not a value, a list of values, {filter, value} or a list of {filter, value}
    """
    if isinstance(raw, Mapping):
        return (_parse_case(cast("Mapping[Any, Any]", raw)),)
    if isinstance(raw, (list, tuple)):
        entries = cast("list[Any] | tuple[Any, ...]", raw)
        cases = [cast("Mapping[Any, Any]", entry) for entry in entries if isinstance(entry, Mapping)]
        if cases:
            if len(cases) < len(entries):
                raise ValueError("mixes plain values with {filter, value} entries; make every entry {filter, value}")
            return tuple(_parse_case(case) for case in cases)
    return (Case(None, _parse_value(raw)),)


def _parse_case(raw: Mapping[Any, Any]) -> Case:
    for key in raw:
        if key not in ("filter", "value"):
            raise ValueError(f"unknown key {key!r}{suggestion(str(key), ('filter', 'value'))}")
    if "value" not in raw:
        raise ValueError("has no `value`; expected {filter, value}")
    pattern = raw.get("filter")
    if pattern is not None and (not isinstance(pattern, str) or not pattern):
        raise ValueError(f"has filter {pattern!r}; expected a part of a tensor name, or '*'")
    return Case(None if pattern == "*" else pattern, _parse_value(raw["value"]))


def _parse_value(raw: Any) -> Scalar | tuple[Scalar, ...]:
    if isinstance(raw, (list, tuple)):
        entries = cast("list[Any] | tuple[Any, ...]", raw)
        if not entries:
            raise ValueError("is an empty list; expected at least one value")
        return tuple(_parse_scalar(entry) for entry in entries)
    return _parse_scalar(raw)


def _parse_scalar(raw: Any) -> Scalar:
    if raw is None or isinstance(raw, (bool, int, float, str)):
        return raw
    raise ValueError(f"is a {type(raw).__name__}; expected a number, a word, a list of them, or {{filter, value}}")


@cache
def type_adapters(model: type[BaseModel]) -> Mapping[str, TypeAdapter[Any]]:
    """Return one type adapter per parameter of a method's pydantic model, by the name that recipes use (the alias)."""
    adapters: dict[str, TypeAdapter[Any]] = {}
    for name, field in model.model_fields.items():
        annotation: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        adapters[field.alias or name] = TypeAdapter(annotation)
    return adapters


def evaluate(setting: Setting, adapter: TypeAdapter[Any], tensor_name: str, t: float) -> Any:
    """Return the value for one tensor, or MISSING when no filter matches.

    A gradient of n numbers is interpolated at t. A gradient of words or booleans gives entry int(t (n - 1)).

    Raises
    ------
    ValueError : the method's model refuses the value
    """
    for case in setting:
        if case.filter is None or case.filter in tensor_name:
            if not isinstance(case.value, tuple):
                return accept_value(adapter, case.value)
            points = [accept_value(adapter, value) for value in case.value]
            position = t * (len(points) - 1)
            lower = int(position)
            if not all(isinstance(point, (int, float)) and not isinstance(point, bool) for point in points):
                return points[lower]
            upper = min(len(points) - 1, lower + 1)
            fraction = position - lower
            return accept_value(adapter, (1 - fraction) * points[lower] + fraction * points[upper])
    return MISSING


def check_values(setting: Setting, adapter: TypeAdapter[Any]) -> None:
    """Check every value and every point of a gradient before any tensor is known.

    Raises
    ------
    ValueError : the method's model refuses a value
    """
    for case in setting:
        for value in case.value if isinstance(case.value, tuple) else (case.value,):
            accept_value(adapter, value)


def accept_value(adapter: TypeAdapter[Any], value: Any) -> Any:
    """Return the value in the type of the parameter: the str "1e-5", as YAML reads it, becomes a float.

    Raises
    ------
    ValueError : the value is invalid; one line
    """
    try:
        accepted = adapter.validate_python(value)
    except ValidationError as error:
        raise ValueError(f"is {value!r}: {error.errors()[0]['msg']}") from None
    if isinstance(value, bool) and not isinstance(accepted, bool):  # `yes` in YAML, which pydantic takes for 1
        raise ValueError(f"is {value!r}: expected a number")
    return accepted
