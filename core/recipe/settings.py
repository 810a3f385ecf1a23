"""The forms a parameter can take in a recipe, as in mergekit: one value, a gradient over layers, or values by filter.

    weight: 0.5                                          one value
    weight: [0.2, 0.5, 1.0]                              a gradient: linear in the layer's place t from 0 to 1
    weight: [{filter: self_attn, value: [0, 1]}, {value: 0.5}]   the first whose filter stands in the tensor's name

`Setting` is the parsed form. What a value means (number, word, bounds) is the method's business: its pydantic model
gives one adapter per parameter, and a gradient interpolates what the adapter makes of its ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from ..errors import suggestion

Scalar = bool | int | float | str | None
MISSING = object()  # "this setting says nothing about this tensor": the next scope is asked


@dataclass(frozen=True, slots=True)
class Case:
    """One value of a setting; `filter` None holds for every tensor."""

    filter: str | None
    value: Scalar | tuple[Scalar, ...]  # a tuple is a gradient


Setting = tuple[Case, ...]  # the first case that matches the tensor's name decides


def parse_setting(raw: Any) -> Setting:
    """The parsed form of what stands in the YAML.

    Raises
    ------
    ValueError : neither a value, a list of values, nor {filter, value} or a list of them
    """
    if isinstance(raw, Mapping):
        return (_parse_case(raw),)
    if isinstance(raw, (list, tuple)) and any(isinstance(item, Mapping) for item in raw):
        if not all(isinstance(item, Mapping) for item in raw):
            raise ValueError("mixes plain values with {filter, value} entries; make every entry {filter, value}")
        return tuple(_parse_case(item) for item in raw)
    return (Case(None, _parse_value(raw)),)


def _parse_case(raw: Mapping[str, Any]) -> Case:
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
        if not raw:
            raise ValueError("is an empty list; expected one value or more")
        return tuple(_parse_scalar(item) for item in raw)
    return _parse_scalar(raw)


def _parse_scalar(raw: Any) -> Scalar:
    if raw is None or isinstance(raw, (bool, int, float, str)):
        return raw
    raise ValueError(f"is a {type(raw).__name__}; expected a number, a word, a list of them, or {{filter, value}}")


@cache
def adapters_of(model: type[BaseModel]) -> Mapping[str, TypeAdapter[Any]]:
    """One adapter per parameter of a method's pydantic model, under the name a recipe uses (the alias, if any)."""
    adapters: dict[str, TypeAdapter[Any]] = {}
    for name, field in model.model_fields.items():
        annotation: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        adapters[field.alias or name] = TypeAdapter(annotation)
    return adapters


def evaluate(setting: Setting, adapter: TypeAdapter[Any], tensor_name: str, t: float) -> Any:
    """The value for one tensor, or MISSING when no filter matches.

    A gradient of numbers is interpolated at t, one of words or switches takes the entry at int(t (n - 1)).

    Raises
    ------
    ValueError : the method's model does not accept the value
    """
    for case in setting:
        if case.filter is None or case.filter in tensor_name:
            if not isinstance(case.value, tuple):
                return accept(adapter, case.value)
            ends = [accept(adapter, value) for value in case.value]
            if not all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in ends):
                return ends[int(t * (len(ends) - 1))]
            position = t * (len(ends) - 1)
            lower = int(position)
            upper = min(len(ends) - 1, lower + 1)
            fraction = position - lower
            return accept(adapter, (1 - fraction) * ends[lower] + fraction * ends[upper])
    return MISSING


def check_values(setting: Setting, adapter: TypeAdapter[Any]) -> None:
    """Every value and every end of a gradient against the method's model: errors without a tensor in sight."""
    for case in setting:
        for value in case.value if isinstance(case.value, tuple) else (case.value,):
            accept(adapter, value)


def accept(adapter: TypeAdapter[Any], value: Any) -> Any:
    """The value as the method takes it ("1e-5", which YAML reads as a word, becomes a number).

    Raises
    ------
    ValueError : one line without pydantic's frame
    """
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise ValueError(f"is {value!r}: {error.errors()[0]['msg']}") from None
