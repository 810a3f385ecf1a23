"""Where each parameter of a merged tensor came from: a rule, a model or slice, a module, the recipe, or the default.

This follows `core/recipe/precedence.py` from the recipe in the manifest, and compares what it finds with the value that
the manifest records. Where the two disagree, the place is not stated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...output.read_manifest import Manifest, ManifestTensor
from ...planning.inputs.modules import assign_modules
from ...planning.names import layer_of
from ...planning.outputs.name_patterns import compile_pattern
from ...recipe.precedence import (
    Scope,
    method_precedence,
    model_scopes,
    rule_scopes,
    shared_scopes,
    slice_scope,
    slice_source_scopes,
    source_precedence,
)
from ...recipe.presets import PRESETS
from ...recipe.recipe import Recipe
from ...recipe.regions import Region
from ...recipe.settings import Case

UNKNOWN = "the recipe (place not determined)"
DEFAULT = "default"


def parameter_origins(recipe: Recipe, manifest: Manifest, tensor: ManifestTensor) -> dict[str, str]:
    """Return the place of every parameter of a tensor's method, by the parameter's name.

    Examples: "rules[0].parameters", "parameters (filter 'mlp')", "slices[1].parameters (gradient)", "default".
    """
    rule = _rule_of(recipe, tensor.name)
    rule_scope = rule_scopes(recipe)[rule] if rule is not None else None
    region, part = _region_of(recipe, manifest, tensor.name)
    shared = _shared_scopes(recipe, region, part)
    is_rule_method = rule is not None and tensor.method is not None and tensor.method != recipe.merge_method
    scopes = method_precedence(rule_scope, shared, is_rule_method=is_rule_method)
    return {
        name: _with_preset(recipe, name, _origin(scopes, name, value, tensor.name))
        for name, value in tensor.parameters.items()
    }


def weight_origins(recipe: Recipe, manifest: Manifest, tensor: ManifestTensor) -> list[str]:
    """Return the place of the weight of each expert of the manifest, by its index; UNKNOWN for sources of slices."""
    rule = _rule_of(recipe, tensor.name)
    rule_scope = rule_scopes(recipe)[rule] if rule is not None else None
    region, part = _region_of(recipe, manifest, tensor.name)
    if region is None:
        return [UNKNOWN] * len(manifest.experts)
    shared = _shared_scopes(recipe, region, part)
    if region.models is not None:
        own, references = model_scopes(region), region.references
    elif part is not None:
        sources = (region.slices or [])[part]
        own, references = slice_source_scopes(region, sources, part), [source.model for source in sources.sources]
    else:
        return [UNKNOWN] * len(manifest.experts)
    weights = dict(zip(_order(manifest, tensor), tensor.weights or (), strict=False))
    origins: list[str] = []
    for index, expert in enumerate(manifest.experts):
        # The experts of a recipe without modules and slices are its `models`, entry by entry.
        found = [position for position, reference in enumerate(references) if reference == expert.name]
        at = index if recipe.only_models is not None else found[0] if found else -1
        source = own[at] if 0 <= at < len(own) else None
        scopes = source_precedence(rule_scope, source, shared)
        origins.append(_origin(scopes, "weight", weights.get(index, 1.0), tensor.name))
    return origins


def _order(manifest: Manifest, tensor: ManifestTensor) -> Sequence[int]:
    index = tensor.expert_order
    return manifest.expert_orders[index] if index is not None and index < len(manifest.expert_orders) else ()


def _rule_of(recipe: Recipe, name: str) -> int | None:
    """Return the first rule that matches the name and sets an action, a method or parameters."""
    for index, rule in enumerate(recipe.rules):
        decides = rule.action is not None or rule.method is not None or rule.parameters is not None
        if decides and any(compile_pattern(pattern).search(name) for pattern in rule.patterns):
            return index
    return None


def _region_of(recipe: Recipe, manifest: Manifest, name: str) -> tuple[Region | None, int | None]:
    """Return the region of a tensor and its slice; None where the name does not tell."""
    region: Region | None = recipe.regions[0]
    if recipe.modules:
        owned = assign_modules([row.name for row in manifest.tensors], list(recipe.modules))
        region = next((one for one in recipe.regions if one.module is not None and name in owned[one.module]), None)
    layer = layer_of(name)
    if region is None or region.slices is None or layer is None:
        return region, None
    first = 0
    for index, part in enumerate(region.slices):
        start, stop = part.sources[0].layer_range
        if first <= layer[1] < first + stop - start:
            return region, index
        first += stop - start
    return region, None


def _shared_scopes(recipe: Recipe, region: Region | None, part: int | None) -> list[Scope | None]:
    if region is None:
        return []
    own = slice_scope(region, (region.slices or [])[part], part) if part is not None else None
    return [own, *shared_scopes(recipe, region)]


def _origin(scopes: Sequence[Scope | None], name: str, value: object, tensor: str) -> str:
    for scope in scopes:
        setting = scope.settings.get(name) if scope is not None else None
        case = next((case for case in setting or () if case.filter is None or case.filter in tensor), None)
        if scope is not None and case is not None:
            return _describe(scope, case) if _gives(case, value) else UNKNOWN
    return DEFAULT


def _describe(scope: Scope, case: Case) -> str:
    facts = [f"filter {case.filter!r}"] if case.filter is not None else []
    facts += ["gradient over the layers"] if isinstance(case.value, tuple) else []
    return scope.place + (f" ({', '.join(facts)})" if facts else "")


def _gives(case: Case, value: object) -> bool:
    """Return whether a setting can have given the value that was used; "1e-5" of YAML is the number 1e-5."""
    if isinstance(case.value, tuple) or case.value == value:
        return True
    try:
        return float(str(case.value)) == float(str(value))
    except ValueError:
        return str(case.value) == str(value)


def _with_preset(recipe: Recipe, name: str, origin: str) -> str:
    """Say that a global parameter may be the preset's: the recorded recipe has both in one mapping."""
    preset = PRESETS.get(recipe.preset) if recipe.preset is not None else None
    given: Mapping[str, Any] = preset.methods.get(recipe.merge_method, {}) if preset is not None else {}
    same = name in given and (recipe.parameters or {}).get(name) == given[name]
    return f"{origin}, as in preset {recipe.preset}" if origin == "parameters" and same else origin
