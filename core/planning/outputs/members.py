"""Which models take part in each slice: the base among them, and how many the method takes."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import RecipeError
from ...listing import ModelListing
from ...numerics.method import AnyMethod, SpectralMethod
from ...recipe.parts import OutputSlice
from ...recipe.precedence import model_scopes, shared_scopes, slice_source_scopes
from ...recipe.recipe import Recipe
from ..names import stack_depths
from .slots import Group, Member, check_layer_range


def needs_base(method: AnyMethod) -> bool:
    """Return whether the method merges task vectors."""
    return isinstance(method, SpectralMethod) or method.needs_base


def check_needs_base(recipe: Recipe, method: AnyMethod, has_base: bool) -> None:
    """Check that the recipe has a base_model if its method or a rule merges task vectors.

    Raises
    ------
    RecipeError : base_model is missing
    """
    if has_base:
        return
    if needs_base(method):
        raise RecipeError(f"base_model: is missing; {method.name} merges the differences of the experts from it")
    if any(rule.action in ("keep_base", "mean") or rule.method for rule in recipe.rules):
        raise RecipeError("base_model: is missing; rules with keep_base, mean or a method need it")


def is_same_model(one: ModelListing, other: ModelListing) -> bool:
    """Return whether two listings are of one model: same location, same adapter."""
    adapters = [item.adapter.uri if item.adapter is not None else None for item in (one, other)]
    return one.uri == other.uri and one.kind == other.kind and adapters[0] == adapters[1]


def build_groups(
    recipe: Recipe, method: AnyMethod, base: ModelListing | None, experts: Sequence[ModelListing], warnings: list[str]
) -> tuple[list[Group], list[int] | None]:
    """Return the models of each slice and the slices' numbers of layers; for `models`, one group and None.

    Parameters
    ----------
    warnings : list of str
        A warning is appended where the base is listed among the models and dropped.

    Raises
    ------
    RecipeError : too few or too many models for the method, or a model lacks layers of a range
    """
    if recipe.input_models is not None:
        scopes = model_scopes(recipe)
        scopes += [None] * (len(experts) - len(scopes))  # the base, where it is averaged without being listed
        members = [
            Member(index, base is not None and is_same_model(listing, base), scope)
            for index, (listing, scope) in enumerate(zip(experts, scopes, strict=True))
        ]
        members = _drop_base_and_check_count(method, members, warnings, "models")
        return [Group(tuple(members), shared_scopes(recipe))], None
    groups: list[Group] = []
    lengths: list[int] = []
    for index, part in enumerate(recipe.output_slices or ()):
        place = f"slices[{index}]"
        spans = {source.layer_range[1] - source.layer_range[0] for source in part.sources}
        if len(spans) != 1:
            ranges = ", ".join(str(list(source.layer_range)) for source in part.sources)
            raise RecipeError(f"{place}: its sources have different numbers of layers ({ranges}); make them equal")
        members = _slice_members(recipe, part, index, base, experts)
        base_layers = [member.first_layer for member in members if member.is_base]
        base_first: int | None = None
        if base is not None:
            base_first = base_layers[0] if base_layers else part.sources[0].layer_range[0]
        members = _drop_base_and_check_count(method, members, warnings, place)
        groups.append(Group(tuple(members), shared_scopes(recipe, part, index), base_first))
        lengths.append(spans.pop())
    return groups, lengths


def _slice_members(
    recipe: Recipe, part: OutputSlice, index: int, base: ModelListing | None, experts: Sequence[ModelListing]
) -> list[Member]:
    expert_by_reference = {reference: expert for expert, reference in enumerate(recipe.expert_references)}
    members: list[Member] = []
    scopes = slice_source_scopes(part, index)
    for number, (source, scope) in enumerate(zip(part.sources, scopes, strict=True)):
        expert = expert_by_reference[source.model]
        listing = experts[expert]
        tensors = listing.tensors or (base.tensors if base is not None else {})
        depth = max(stack_depths(tensors).values(), default=0)
        check_layer_range(f"slices[{index}].sources[{number}]", source.layer_range, depth, source.model)
        is_base = base is not None and is_same_model(listing, base)
        members.append(Member(expert, is_base, scope, source.layer_range[0]))
    return members


def averages_unlisted_base(
    recipe: Recipe, method: AnyMethod, base: ModelListing | None, experts: Sequence[ModelListing]
) -> bool:
    """Return whether mergekit adds the base to the models: a method like `linear`, a global weight and a base_model.

    Without a global weight mergekit refuses such a recipe; Eigenmerge then uses the base only for names and shapes.
    """
    if base is None or needs_base(method) or recipe.input_models is None:
        return False
    if any(is_same_model(listing, base) for listing in experts):
        return False
    module = recipe.module.parameters if recipe.module is not None else None
    return any("weight" in (parameters or {}) for parameters in (module, recipe.parameters))


def _drop_base_and_check_count(
    method: AnyMethod, members: list[Member], warnings: list[str], place: str
) -> list[Member]:
    """Drop the base where the method merges task vectors (its own is zero), and check the number of models."""
    if needs_base(method) and any(member.is_base for member in members):
        warnings.append(f"{place}: the base is listed among the models and is not merged as an expert")
        members = [member for member in members if not member.is_base]
    found = f"found {len(members)}"
    if len(members) < method.min_experts:
        raise RecipeError(f"{place}: {method.name} needs at least {method.min_experts} models; {found}")
    if method.max_experts is not None and len(members) > method.max_experts:
        raise RecipeError(f"{place}: {method.name} takes at most {method.max_experts} models; {found}")
    wanted, others = method.other_experts, sum(not member.is_base for member in members)
    if wanted is not None and others != wanted:
        plural = "s" if wanted > 1 else ""
        raise RecipeError(
            f"{place}: {method.name} merges exactly {wanted} model{plural} beside the base; found {others}"
        )
    return members
