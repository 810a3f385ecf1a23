"""Validation of a method's parameters given by name, for the method and for each expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from ..errors import RecipeError, suggestion
from .method import AnyMethod, MethodParameters


def parse_parameters(
    method: AnyMethod, given: Mapping[str, Any], num_experts: int
) -> tuple[MethodParameters, list[MethodParameters]]:
    """Return the method's parameters and those of each expert.

    Parameters
    ----------
    method : Method
    given : mapping
        Names as in a recipe. A per-expert parameter (weight, density) is one value for all experts or a list of
        `num_experts`.

    Raises
    ------
    RecipeError : unknown name (suggests the nearest), a value out of range, or a list of another length
    """
    own, per_expert = _accepted_names(method.Parameters), _accepted_names(method.Expert)
    shared: dict[str, Any] = {}
    each: list[dict[str, Any]] = [{} for _ in range(num_experts)]
    for name, value in given.items():
        if name in own:
            shared[own[name]] = value
        elif name in per_expert:
            for expert, own_value in zip(each, _expand(method, name, value, num_experts), strict=True):
                expert[per_expert[name]] = own_value
        else:
            raise RecipeError(f"{method.name} has no parameter {name!r}{suggestion(name, [*own, *per_expert])}")
    return _validate(method, method.Parameters, shared), [_validate(method, method.Expert, one) for one in each]


def _accepted_names(model: type[BaseModel]) -> dict[str, str]:
    """Return accepted name to pydantic's name: a field's name, and its alias where the name is a Python keyword."""
    names: dict[str, str] = {}
    for name, field in model.model_fields.items():
        names[name] = names[field.alias or name] = field.alias or name
    return names


def _expand(method: AnyMethod, name: str, value: Any, num_experts: int) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        return [value] * num_experts
    values = cast("Sequence[Any]", value)
    if len(values) != num_experts:
        raise RecipeError(
            f"{method.name}: {name} has {len(values)} values for {num_experts} experts; give one per expert, or one for"
            " all"
        )
    return values


def _validate(method: AnyMethod, model: type[MethodParameters], values: dict[str, Any]) -> MethodParameters:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise RecipeError(f"{method.name} needs the parameter {place!r}: {_describe(model, place)}") from None
        if not place:  # values that do not fit each other
            raise RecipeError(f"{method.name}: {first['msg'].removeprefix('Value error, ')}") from None
        raise RecipeError(f"{method.name}: {place} is {first['input']!r}: {first['msg']}") from None


def _describe(model: type[BaseModel], name: str) -> str:
    fields = {field.alias or own: field for own, field in model.model_fields.items()}
    return (fields[name].description if name in fields else None) or "it has no default"
