"""Which models take part in each slice: the base among them, and how many the method takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

from ...errors import RecipeError
from ...listing import ModelListing
from ...numerics.method import AnyMethod, SpectralMethod
from ...recipe.parts import OutputSlice
from ...recipe.precedence import Scope, model_scopes, shared_scopes, slice_scope, slice_source_scopes
from ...recipe.recipe import Recipe
from ...recipe.regions import Region
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


@final
class GroupBuilder:
    """Builds the groups of a region. What regions and slices share is computed once: 20,000 slices are possible.

    Parameters
    ----------
    bases : listings of `recipe.base_references`, by reference
    experts : listings of `recipe.expert_references`, and of the base where it is averaged without being listed
    warnings : one is appended where the base is listed among the models and dropped
    """

    def __init__(
        self,
        recipe: Recipe,
        method: AnyMethod,
        bases: Mapping[str, ModelListing],
        experts: Sequence[ModelListing],
        warnings: list[str],
    ) -> None:
        self._recipe = recipe
        self._method = method
        self._bases = bases
        self._base = bases[recipe.base_model] if recipe.base_model is not None else None
        self._experts = experts
        self._warnings = warnings
        references = recipe.expert_references
        self._expert_by_reference = {reference: expert for expert, reference in enumerate(references)}
        self._depths: dict[int, int] = {}

    def build(self, region: Region) -> tuple[list[Group], list[int] | None]:
        """Return the models of each slice and the slices' numbers of layers; for `models`, one group and None.

        Raises
        ------
        RecipeError : too few or too many models for the method, or a model lacks layers of a range
        """
        shared = shared_scopes(self._recipe, region)
        if region.models is not None:
            members = self._model_members(region)
            members = _drop_base_and_check_count(self._method, members, self._warnings, f"{region.place}models")
            return [Group(tuple(members), shared, base=self._recipe.base_model)], None
        built = [self._build_slice(region, part, index, shared) for index, part in enumerate(region.slices or ())]
        return [group for group, _ in built], [length for _, length in built]

    def _model_members(self, region: Region) -> list[Member]:
        """Return a member for each entry of `models`, and for the base where it is averaged without being listed."""
        scopes = model_scopes(region)
        if self._recipe.only_models is not None:
            experts = list(range(len(scopes)))
        else:
            experts = [self._expert_by_reference[reference] for reference in region.references]
        members = [
            Member(expert, self._is_base(expert, self._base), scope)
            for expert, scope in zip(experts, scopes, strict=True)
        ]
        averaged = len(self._recipe.expert_references)
        if averaged < len(self._experts) and not any(member.is_base for member in members):
            members.append(Member(averaged, True, None))
        return members

    def _build_slice(
        self, region: Region, part: OutputSlice, index: int, shared: tuple[Scope | None, ...]
    ) -> tuple[Group, int]:
        place = f"{region.place}slices[{index}]"
        spans = {source.layer_range[1] - source.layer_range[0] for source in part.sources}
        if len(spans) != 1:
            ranges = ", ".join(str(list(source.layer_range)) for source in part.sources)
            raise RecipeError(f"{place}: its sources have different numbers of layers ({ranges}); make them equal")
        if part.residual_weight:
            raise RecipeError(f"{place}.residual_weight: is {part.residual_weight}, and mergekit ignores it; remove it")
        reference = part.base_model or self._recipe.base_model
        base = self._bases[reference] if reference is not None else None
        members: list[Member] = []
        for number, (source, scope) in enumerate(
            zip(part.sources, slice_source_scopes(region, part, index), strict=True)
        ):
            expert = self._expert_by_reference[source.model]
            check_layer_range(f"{place}.sources[{number}]", source.layer_range, self._depth(expert), source.model)
            members.append(Member(expert, self._is_base(expert, base), scope, source.layer_range[0]))
        base_layers = [member.first_layer for member in members if member.is_base]
        base_first: int | None = None
        if base is not None:
            base_first = base_layers[0] if base_layers else part.sources[0].layer_range[0]
        members = _drop_base_and_check_count(self._method, members, self._warnings, place)
        scopes = (slice_scope(region, part, index), *shared)
        return Group(tuple(members), scopes, base_first, reference), spans.pop()

    def _is_base(self, expert: int, base: ModelListing | None) -> bool:
        return base is not None and is_same_model(self._experts[expert], base)

    def _depth(self, expert: int) -> int:
        """Return the number of layers of an expert's deepest stack; an adapter has those of its base."""
        if expert not in self._depths:
            tensors = self._experts[expert].tensors or (self._base.tensors if self._base is not None else {})
            self._depths[expert] = max(stack_depths(tensors).values(), default=0)
        return self._depths[expert]


def averages_unlisted_base(
    recipe: Recipe, method: AnyMethod, base: ModelListing | None, experts: Sequence[ModelListing]
) -> bool:
    """Return whether the base is averaged although the recipe does not list it, as in mergekit.

    mergekit adds the base to `models`. Methods with a weight for each model need one for the base too, so the recipe
    has a global weight; without it mergekit refuses the recipe, and Eigenmerge uses the base only for names and shapes.
    Methods without weights average it always.
    """
    if base is None or needs_base(method) or all(region.models is None for region in recipe.regions):
        return False
    listed = any(is_same_model(listing, base) for listing in experts)
    if listed and len(recipe.regions) == 1:
        return False
    if not method.Expert.model_fields:
        return True
    scopes = [parameters for parameters in (recipe.regions[0].parameters, recipe.parameters) if parameters]
    return any("weight" in parameters for parameters in scopes)


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
