"""Which models take part, slice by slice: the base among them, duplicates, and how many the method takes."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import RecipeError
from ...listing import ModelListing
from ...numerics.method import AnyMethod, SpectralMethod
from ...recipe.recipe import Recipe
from ...recipe.scopes import scope
from ..names import stack_depths
from .slots import Group, Member, check_layer_range, shared_scopes


def needs_base(method: AnyMethod) -> bool:
    """True when the method works on task vectors."""
    return isinstance(method, SpectralMethod) or method.needs_base


def is_same_model(one: ModelListing, other: ModelListing) -> bool:
    """The same place with the same adapter: one model that stands in the recipe twice."""
    adapters = [item.adapter.uri if item.adapter is not None else None for item in (one, other)]
    return one.uri == other.uri and one.kind == other.kind and adapters[0] == adapters[1]


def groups_of(
    recipe: Recipe, method: AnyMethod, base: ModelListing | None, experts: Sequence[ModelListing], warnings: list[str]
) -> tuple[list[Group], list[int] | None]:
    """The models of each slice, and the number of its layers; one group and None for `models`.

    Raises
    ------
    RecipeError : too few or too many models for the method, a layer range that a model does not have
    """
    if recipe.input_models is not None:
        owns = [scope(f"models[{index}].parameters", item.parameters) for index, item in enumerate(recipe.input_models)]
        owns += [None] * (len(experts) - len(owns))  # the base, where it is averaged without being listed
        members = [
            Member(index, base is not None and is_same_model(listing, base), own)
            for index, (listing, own) in enumerate(zip(experts, owns, strict=True))
        ]
        members = _as_the_method_wants(method, members, warnings, "models")
        return [Group(tuple(members), shared_scopes(recipe))], None
    by_reference = {reference: index for index, reference in enumerate(recipe.expert_references)}
    groups: list[Group] = []
    lengths: list[int] = []
    for index, part in enumerate(recipe.output_slices or ()):
        place = f"slices[{index}]"
        spans = {source.layer_range[1] - source.layer_range[0] for source in part.sources}
        if len(spans) != 1:
            ranges = ", ".join(str(list(source.layer_range)) for source in part.sources)
            raise RecipeError(f"{place}: its sources have different numbers of layers ({ranges}); make them equal")
        members = []
        base_first: int | None = None
        for number, source in enumerate(part.sources):
            expert = by_reference[source.model]
            listing = experts[expert]
            is_base = base is not None and is_same_model(listing, base)
            tensors = listing.tensors or (base.tensors if base is not None else {})
            depth = max(stack_depths(tensors).values(), default=0)
            check_layer_range(f"{place}.sources[{number}]", source.layer_range, depth, source.model)
            own = scope(f"{place}.sources[{number}].parameters", source.parameters)
            members.append(Member(expert, is_base, own, source.layer_range[0]))
            if is_base and base_first is None:
                base_first = source.layer_range[0]
        if base is not None and base_first is None:
            base_first = part.sources[0].layer_range[0]
        shared = shared_scopes(recipe, part, index)
        members = _as_the_method_wants(method, members, warnings, place)
        groups.append(Group(tuple(members), shared, base_first, place))
        lengths.append(spans.pop())
    return groups, lengths


def averages_unlisted_base(
    recipe: Recipe, method: AnyMethod, base: ModelListing | None, experts: Sequence[ModelListing]
) -> bool:
    """True where mergekit adds the base to the models by itself: `linear` with a global weight and a base_model.

    Without a global weight mergekit refuses such a recipe; here the base then only names the output's tensors.
    """
    if base is None or needs_base(method) or recipe.input_models is None:
        return False
    if any(is_same_model(listing, base) for listing in experts):
        return False
    module = recipe.module.parameters if recipe.module is not None else None
    return any("weight" in (parameters or {}) for parameters in (module, recipe.parameters))


def _as_the_method_wants(method: AnyMethod, members: list[Member], warnings: list[str], place: str) -> list[Member]:
    """Task-vector methods drop the base from the models (its task vector is zero); others keep it as mergekit does."""
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
