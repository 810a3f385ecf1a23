"""Parameters of one tensor out of the recipe's scopes: filters, gradients, precedence, and the method's own check.

Precedence as in mergekit, rules on top: rule > source (models[i] or slices[j].sources[i]) > slice > module > global.
Ten thousand tensors share a handful of outcomes, so each distinct one is validated once and then shared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from ..errors import RecipeError
from .settings import MISSING, Setting, adapters_of, evaluate, parse_setting


@dataclass(frozen=True, slots=True)
class Scope:
    """The parameters that stand at one place of the recipe."""

    place: str  # "models[2].parameters"
    settings: Mapping[str, Setting]


def scope(place: str, raw: Mapping[str, Any] | None) -> Scope | None:
    """The scope of what stands there, None for nothing."""
    return Scope(place, {name: parse_setting(value) for name, value in raw.items()}) if raw else None


class Resolver:
    """The parameters of one pydantic model, read through scopes of falling precedence.

    `resolve` returns the same mapping object for the same outcome.
    """

    def __init__(self, model: type[BaseModel], scopes: Sequence[Scope | None]) -> None:
        self._model = model
        self._adapters = adapters_of(model)
        self._scopes = [
            item for item in scopes if item is not None and any(name in self._adapters for name in item.settings)
        ]
        cases = [
            case
            for item in self._scopes
            for name, setting in item.settings.items()
            if name in self._adapters
            for case in setting
        ]
        self._filters = sorted({case.filter for case in cases if case.filter is not None})
        self._has_gradient = any(isinstance(case.value, tuple) for case in cases)
        self._known: dict[object, Mapping[str, object]] = {}

    def resolve(self, tensor_name: str, t: float) -> Mapping[str, object]:
        """The parameters of this tensor, under the recipe's names, validated, defaults included.

        Raises
        ------
        RecipeError : the values do not go together, or one is out of bounds; names the place
        """
        key = (
            tuple(part for part in self._filters if part in tensor_name) if self._filters else (),
            t if self._has_gradient else 0.0,
        )
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._compute(tensor_name, t)
        return known

    def _compute(self, tensor_name: str, t: float) -> Mapping[str, object]:
        values: dict[str, Any] = {}
        places: dict[str, str] = {}
        for name, adapter in self._adapters.items():
            for item in self._scopes:
                setting = item.settings.get(name)
                if setting is None:
                    continue
                try:
                    value = evaluate(setting, adapter, tensor_name, t)
                except ValueError as error:
                    raise RecipeError(f"{item.place}.{name}: at tensor {tensor_name} {error}") from None
                if value is not MISSING:
                    values[name], places[name] = value, f"{item.place}.{name}"
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
    """Resolvers by what they read, so that 1000 experts with equal parameters share one."""

    def __init__(self) -> None:
        self._known: dict[object, Resolver] = {}

    def get(self, model: type[BaseModel], scopes: Sequence[Scope | None]) -> Resolver:
        # Scopes are compared by what they say, not by where they stand.
        key = (model, tuple(tuple(sorted(item.settings.items())) for item in scopes if item is not None))
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = Resolver(model, scopes)
        return found
