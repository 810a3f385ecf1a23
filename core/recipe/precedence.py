"""Precedence of parameters, rule > source > slice > module > global, and their values for one tensor.

A source is models[i] or slices[j].sources[i]. The order is mergekit's, with rules added on top. Ten thousand tensors
share a small number of results, so each distinct result is validated once and then shared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from ..errors import RecipeError
from .parts import OutputSlice
from .recipe import Recipe
from .regions import Region
from .settings import MISSING, Setting, evaluate, parse_setting, type_adapters


@dataclass(frozen=True, slots=True)
class Scope:
    """The parameters of one place in the recipe."""

    place: str  # "models[2].parameters"
    settings: Mapping[str, Setting]


def parse_scope(place: str, raw: Mapping[str, Any] | None) -> Scope | None:
    """Return the scope of a `parameters` mapping, None where it is missing or empty."""
    return Scope(place, {name: parse_setting(value) for name, value in raw.items()}) if raw else None


def rule_scopes(recipe: Recipe) -> list[Scope | None]:
    """Return one scope per rule."""
    return [parse_scope(f"rules[{index}].parameters", rule.parameters) for index, rule in enumerate(recipe.rules)]


def model_scopes(region: Region) -> list[Scope | None]:
    """Return one scope per entry of `models`."""
    return [
        parse_scope(f"{region.place}models[{index}].parameters", item.parameters)
        for index, item in enumerate(region.models or ())
    ]


def slice_source_scopes(region: Region, part: OutputSlice, index: int) -> list[Scope | None]:
    """Return one scope per source of `slices[index]`."""
    return [
        parse_scope(f"{region.place}slices[{index}].sources[{number}].parameters", source.parameters)
        for number, source in enumerate(part.sources)
    ]


def shared_scopes(recipe: Recipe, region: Region) -> tuple[Scope | None, ...]:
    """Return the scopes that all models of a region share: module > global."""
    return (
        parse_scope(f"{region.place}parameters", region.parameters),
        parse_scope("parameters", recipe.parameters),
    )


def slice_scope(region: Region, part: OutputSlice, index: int) -> Scope | None:
    """Return the scope that all sources of `slices[index]` share; it precedes `shared_scopes`."""
    return parse_scope(f"{region.place}slices[{index}].parameters", part.parameters)


def source_precedence(rule: Scope | None, source: Scope | None, shared: Sequence[Scope | None]) -> list[Scope | None]:
    """Return the scopes of one expert's parameters, from the highest to the lowest precedence."""
    return [rule, source, *shared]


def method_precedence(
    rule: Scope | None, shared: Sequence[Scope | None], *, is_rule_method: bool
) -> list[Scope | None]:
    """Return the scopes of a method's global parameters, from the highest to the lowest precedence.

    Parameters
    ----------
    is_rule_method : bool
        The rule selects another method than `merge_method`. The recipe's parameters belong to `merge_method`, so only
        the rule's apply.
    """
    return [rule] if is_rule_method else [rule, *shared]


def all_scopes(recipe: Recipe) -> Iterator[Scope]:
    """Yield every scope of the recipe that sets a parameter."""
    yield from filter(None, [parse_scope("parameters", recipe.parameters)])
    for region in recipe.regions:
        yield from filter(None, [shared_scopes(recipe, region)[0], *model_scopes(region)])
        for index, part in enumerate(region.slices or ()):
            yield from filter(None, [slice_scope(region, part, index), *slice_source_scopes(region, part, index)])
    yield from filter(None, rule_scopes(recipe))


class Resolver:
    """Values of the parameters of one pydantic model, read from scopes in order of precedence.

    `resolve` returns the same mapping object for equal results.
    """

    def __init__(self, model: type[BaseModel], scopes: Sequence[Scope | None]) -> None:
        self._model = model
        self._adapters = type_adapters(model)
        self._scopes = [
            scope for scope in scopes if scope is not None and any(name in self._adapters for name in scope.settings)
        ]
        cases = [
            case
            for scope in self._scopes
            for name, setting in scope.settings.items()
            if name in self._adapters
            for case in setting
        ]
        self._filters = sorted({case.filter for case in cases if case.filter is not None})
        self._has_gradient = any(isinstance(case.value, tuple) for case in cases)
        self._resolved: dict[object, Mapping[str, object]] = {}

    def resolve(self, tensor_name: str, t: float) -> Mapping[str, object]:
        """Return the validated parameters of a tensor by the names that recipes use, defaults included.

        Parameters
        ----------
        t : float
            Position of the tensor's layer at which gradients are evaluated, 0 to 1.

        Raises
        ------
        RecipeError : a value is out of bounds, or the values are incompatible; names the place in the recipe
        """
        key = (
            tuple(part for part in self._filters if part in tensor_name) if self._filters else (),
            t if self._has_gradient else 0.0,
        )
        resolved = self._resolved.get(key)
        if resolved is None:
            resolved = self._resolved[key] = self._compute(tensor_name, t)
        return resolved

    def _compute(self, tensor_name: str, t: float) -> Mapping[str, object]:
        values: dict[str, Any] = {}
        places: dict[str, str] = {}
        for name, adapter in self._adapters.items():
            for scope in self._scopes:
                setting = scope.settings.get(name)
                if setting is None:
                    continue
                try:
                    value = evaluate(setting, adapter, tensor_name, t)
                except ValueError as error:
                    raise RecipeError(f"{scope.place}.{name}: at tensor {tensor_name} {error}") from None
                if value is not MISSING:
                    values[name], places[name] = value, f"{scope.place}.{name}"
                    break
        try:
            parameters = self._model.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = str(first["loc"][0]) if first["loc"] else ""
            place = places.get(name, name or " and ".join(places.values()) or "parameters")
            message = first["msg"].removeprefix("Value error, ")
            raise RecipeError(f"{place}: at tensor {tensor_name}: {message}") from None
        return parameters.model_dump(mode="json", by_alias=True)


class Resolvers:
    """Resolvers by model and settings, so that 1000 experts with equal parameters share one."""

    def __init__(self) -> None:
        self._resolvers: dict[object, Resolver] = {}

    def get(self, model: type[BaseModel], scopes: Sequence[Scope | None]) -> Resolver:
        """Return the resolver of a model for these scopes."""
        # Scopes with equal settings are interchangeable, wherever they are in the recipe.
        key = (model, tuple(tuple(sorted(scope.settings.items())) for scope in scopes if scope is not None))
        resolver = self._resolvers.get(key)
        if resolver is None:
            resolver = self._resolvers[key] = Resolver(model, scopes)
        return resolver
