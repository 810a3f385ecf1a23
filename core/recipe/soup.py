"""Soups: `models: {glob: ckpts/step-*, last: 8, weights: 1-sqrt}` instead of a list of checkpoints.

The weights emulate a decay of the learning rate over the checkpoints (WSM, arXiv:2507.17634). Merging the checkpoints
0, 1, ..., k of one run with weights c_j is the model of the run whose updates after checkpoint i - 1 are multiplied by
w_i = c_i + ... + c_k, so a decay w gives c_k = w_k, c_j = w_j - w_(j+1) and c_0 = 1 - w_1. The decay is taken at
x = i / (k + 1), so that it reaches 0 one checkpoint after the last one and every checkpoint has a weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

from pydantic import Field, ValidationError, model_validator

from ..errors import RecipeError, suggestion
from .fields import Address, ParameterSettings
from .parts import StrictModel

WeightRule = Literal["uniform", "linear", "cosine", "1-sqrt"]

_DECAYS: Mapping[str, Callable[[float], float]] = {
    "linear": lambda x: 1.0 - x,
    "cosine": lambda x: 0.5 * (1.0 + math.cos(math.pi * x)),
    "1-sqrt": lambda x: 1.0 - math.sqrt(x),
}


class SoupModels(StrictModel):
    """Checkpoints by a pattern."""

    glob: Address = Field(
        min_length=1, description="pattern of directories or files, local or on a store: ckpts/step-*"
    )
    first: int | None = Field(default=None, gt=0, description="only this many, from the first, by number in the name")
    last: int | None = Field(default=None, gt=0, description="only this many, up to the last, by number in the name")
    every: int = Field(default=1, gt=0, description="only each n-th, counted back from the last")
    weights: WeightRule = Field(default="uniform", description="weights in the order of the checkpoints")
    parameters: ParameterSettings | None = Field(default=None, description="other parameters of each model")

    @model_validator(mode="after")
    def _check(self) -> SoupModels:
        if self.first is not None and self.last is not None:
            raise ValueError("has both first and last; keep one of them")
        if self.weights != "uniform" and "weight" in (self.parameters or {}):
            raise ValueError("has weights and parameters.weight; keep one of them")
        return self


def parse_soup(keys: Mapping[str, Any], place: str) -> SoupModels:
    """Return the validated keys of a soup.

    Raises
    ------
    RecipeError : an unknown key or an invalid value
    """
    try:
        return SoupModels.model_validate(keys)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join([place, *map(str, first["loc"])])
        raise RecipeError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None


def number_key(path: str) -> tuple[tuple[int, int | str], ...]:
    """Return a sort key by the numbers in a name: step-900 before step-1000."""
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", path))


def choose_checkpoints(soup: SoupModels, found: Sequence[str], place: str) -> list[str]:
    """Return the checkpoints to merge.

    Parameters
    ----------
    found : what the pattern matches, in the order of the numbers in the names
    place : "models", for messages

    Raises
    ------
    RecipeError : fewer than two are found, or fewer than `first` or `last`
    """
    if not found:
        raise RecipeError(f"{place}.glob: {soup.glob} matches nothing; correct the pattern")
    chosen = list(found[::-1][:: soup.every][::-1])
    wanted = soup.first or soup.last
    if wanted is not None and len(chosen) < wanted:
        raise RecipeError(
            f"{place}: {'first' if soup.first else 'last'} is {wanted}; {soup.glob} matches {len(found)} checkpoints"
            + (f", every {soup.every} leaves {len(chosen)}" if soup.every > 1 else "")
        )
    if wanted is not None:
        chosen = chosen[:wanted] if soup.first else chosen[-wanted:]
    if len(chosen) < 2:
        raise RecipeError(f"{place}: only {chosen[0]} is left of {soup.glob}; expected at least two checkpoints")
    return chosen


def checkpoint_weights(rule: WeightRule, count: int) -> list[float]:
    """Return the weight of each of `count` checkpoints in their order; they sum to 1.

    References
    ----------
    WSM, arXiv:2507.17634
    """
    if rule == "uniform":
        return [1.0 / count] * count
    decay = [_DECAYS[rule](step / count) for step in range(count)] + [0.0]
    return [decay[step] - decay[step + 1] for step in range(count)]


def soup_entries(soup: SoupModels, chosen: Sequence[str]) -> list[dict[str, Any]]:
    """Return the entries of `models` for the chosen checkpoints. Uniform weights are those of the method."""
    shared = dict(soup.parameters or {})
    if soup.weights == "uniform":
        return [{"model": path, "parameters": shared} if shared else {"model": path} for path in chosen]
    weights = checkpoint_weights(soup.weights, len(chosen))
    return [
        {"model": path, "parameters": {**shared, "weight": weight}}
        for path, weight in zip(chosen, weights, strict=True)
    ]


def soup_keys(models: Any) -> Mapping[str, Any] | None:
    """Return the mapping of a soup, None for a list of models.

    Raises
    ------
    RecipeError : a mapping without `glob`
    """
    if not isinstance(models, Mapping):
        return None
    keys = cast("Mapping[str, Any]", models)
    if "glob" not in keys:
        near = suggestion(str(next(iter(keys), "")), ("glob",))
        raise RecipeError(f"models: is a mapping without glob; expected a list, or {{glob: ckpts/step-*}}{near}")
    return keys
