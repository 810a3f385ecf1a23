"""Forms of mergekit's recipes that mean the same as another form here, and parameters that have no effect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, cast

from ..errors import RecipeError
from ..numerics.method import AnyMethod
from ..numerics.registry import get_method
from .settings import type_adapters

METHODS = (
    "arcee_fusion",
    "breadcrumbs",
    "breadcrumbs_ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "karcher",
    "linear",
    "model_stock",
    "multislerp",
    "nearswap",
    "nuslerp",
    "passthrough",
    "ram",
    "ramplus_tl",
    "sce",
    "slerp",
    "task_arithmetic",
    "ties",
)
# Parameters of earlier versions, without effect in the current one.
_EARLIER_PARAMETERS = frozenset({"embed_slerp", "rescale_norm"})
_MIXTURE_KEYS = ("experts", "gate_mode", "experts_per_token")


def normalize_forms(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mapping of a recipe in the forms that `Recipe` reads.

    `random_seed` is `seed`; `tokenizer_source: model:PATH`, of earlier versions, is PATH; a base_model that only slices
    have is that of the recipe too.

    Raises
    ------
    RecipeError : the recipe is one of mergekit-moe
    """
    found = next((key for key in _MIXTURE_KEYS if key in data), None)
    if found is not None and "merge_method" not in data:
        raise RecipeError(
            f"{found}: is a key of mergekit-moe, which makes a mixture of several dense models; Eigenmerge merges"
            " models of one architecture"
        )
    normal = dict(data)
    if "random_seed" in normal and "seed" not in normal:
        normal["seed"] = normal.pop("random_seed")
    source = normal.get("tokenizer_source")
    if isinstance(source, str) and source.startswith("model:"):
        normal["tokenizer_source"] = source.removeprefix("model:")
    slices = normal.get("slices")
    if normal.get("base_model") is None and isinstance(slices, list):
        parts: list[dict[str, Any]] = [part for part in cast("list[Any]", slices) if isinstance(part, dict)]
        bases = [part.get("base_model") for part in parts]
        base = next((base for base in bases if base is not None), None)
        if base is not None:
            normal["base_model"] = base
    return normal


@cache
def known_parameters() -> frozenset[str]:
    """Return the parameters of all methods of mergekit, and those of its earlier versions."""
    names = set(_EARLIER_PARAMETERS)
    for method in map(get_method, METHODS):
        names |= {*type_adapters(method.Parameters), *type_adapters(method.Expert)}
    return frozenset(names)


def has_no_effect(name: str, method: AnyMethod) -> bool:
    """Return whether a parameter that `method` lacks is one of another method of mergekit, which ignores it there."""
    return method.name in METHODS and name in known_parameters()


def describe_ineffective(places: Iterable[tuple[str, str, str]]) -> list[str]:
    """Return one warning for each parameter that has no effect.

    Parameters
    ----------
    places : (place in the recipe, parameter, method)
    """
    by_parameter: dict[tuple[str, str], list[str]] = {}
    for place, name, method in places:
        by_parameter.setdefault((name, method), []).append(place)
    return [
        f"{found[0]}.{name}{f' and {len(found) - 1} more' if len(found) > 1 else ''}: {name} has no effect on {method}"
        for (name, method), found in by_parameter.items()
    ]
