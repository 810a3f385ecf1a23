"""Plan one output tensor: its action, its experts in a reproducible order, parameters, keys and costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal, final

from ...errors import CheckpointError
from ...formats.digest import hash_json
from ...formats.dtypes import FLOAT8_DTYPES, MERGEABLE_DTYPES, safetensors_name, tensor_bytes
from ...listing import TensorSource
from ...numerics.method import AnyMethod, DirectMethod, SpectralMethod
from ...recipe.precedence import Resolver, Resolvers, method_precedence, rule_scopes, source_precedence
from ...recipe.recipe import Recipe
from ...views import held_bytes
from ..cost import projection as cost
from ..inputs.checkpoint import UNCHANGED, Checkpoint
from ..inputs.layouts.layout import Layout
from ..inputs.names.token_matrices import Role
from ..inputs.reference_tensors import ReferenceTensors
from ..inputs.storage_precision import is_float64
from ..keys import SUM_VERSION, sums_key, tensor_identity
from ..names import Kind
from ..plan import ExpertTensor, RunSettings, TensorPlan
from .calibrated_direct import complete_calibrated
from .choose_action import ActionChoice, ActionChooser
from .expert_sources import BASE_SOURCE, ExpertSource, SourceFinder, Target
from .incremental import can_keep_sums
from .matrices import Matrices, matrices_of
from .members import needs_base
from .slots import Group, Slot
from .spectral import SpectralPlanner
from .vocabulary.fit_vocabulary import VocabularyPlanner


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of the plan and the hash of everything that determines its bytes."""

    plan: TensorPlan
    identity: str


@dataclass(frozen=True, slots=True)
class _GroupResolvers:
    """Resolvers of one method for one group under one rule.

    shared : the method's global parameters
    own : per-expert parameters, one resolver per member of the group
    """

    shared: Resolver
    own: tuple[Resolver, ...]


@final
class TensorPlanner:
    """Plans the tensors of one output; what tensors share is computed once.

    untouched : the reference's names of tensors that no expert has
    num_split_qkv : fused QKV weights that are decomposed as q, k and v
    rounded : experts with entries that their stored dtype may have rounded, and that dtype
    amplifying : number of tensors by method whose filter needs float64
    num_rounded_float64 : tensors with float64 inputs that the recipe's arithmetic rounds to float32
    """

    def __init__(
        self,
        recipe: Recipe,
        settings: RunSettings,
        *,
        actions: ActionChooser,
        bases: ReferenceTensors,
        experts: Sequence[Checkpoint],
        vocabulary: VocabularyPlanner,
        config: Mapping[str, object] | None,
        layout: Layout,
        roles: Mapping[str, Role],
    ) -> None:
        self._recipe = recipe
        self._settings = settings
        self._actions = actions
        self._bases = bases
        self._has_base = bases.has_base
        self._experts = experts
        self._config = config
        self._layout = layout
        self._roles = roles
        self._sources = SourceFinder(
            experts, bases, vocabulary, None if recipe.storage_noise == "ignore" else recipe.storage_noise
        )
        self._planners: dict[str, SpectralPlanner] = {}
        self._resolvers = Resolvers()
        self._group_resolvers: dict[tuple[int, str, int | None], _GroupResolvers] = {}
        self._positions: dict[int, tuple[int, ...]] = {}
        self._rule_scopes = rule_scopes(recipe)
        self.untouched: list[str] = []
        self.num_split_qkv = 0
        self.num_rounded_float64 = 0
        self.amplifying = Counter[str]()
        self._precise: dict[tuple[str, int], tuple[bool, Mapping[str, object]]] = {}
        self.rounded: dict[int, str] = {}

    def plan(self, slot: Slot) -> PlannedTensor:
        """Plan one tensor.

        Raises
        ------
        ShapeError, CheckpointError : a source does not fit
        RecipeError : the parameters are invalid for this tensor
        """
        reference = self._bases.tensor(slot.template, slot.group.base, slot.name)
        kind = self._layout.kind(slot.template, reference.shape, reference.dtype)
        if kind == "matrix" and self._roles.get(slot.template) == "lm_head":
            kind = "lm_head"
        choice = self._actions.choose(slot.name, kind)
        target = self._sources.make_target(slot, reference)
        if choice.action == "copy":
            if target.is_unchanged:
                return self._copy(target, choice.reason)
            choice = ActionChoice("mean", self._actions.method, f"{choice.reason}; new rows are the experts' mean")
            return self._merge(target, kind, choice, self._sources.find(target), scale=0.0)
        assert choice.method is not None
        sources = self._sources.find(target)
        if all(source is None for source in sources):
            if not self._has_base:
                raise CheckpointError(f"{slot.name}: none of the models has it; remove it from the first model")
            self.untouched.append(slot.template)
            return self._keep(target, kind, sources, "no expert has it: base kept")
        if needs_base(choice.method) and all(source is None or source.identity == UNCHANGED for source in sources):
            return self._keep(target, kind, sources, "no expert changes it: base kept")
        if any(source is None for source in sources) and (self._recipe.missing == "error" or not self._has_base):
            raise self._sources.missing_error(slot, sources)
        return self._merge(target, kind, choice, sources)

    @staticmethod
    def follow(leader: PlannedTensor, name: str) -> PlannedTensor:
        """Return the plan of a tensor that is tied to another one of the output: the same values under its own name."""
        plan = replace(leader.plan, name=name, tied_to=leader.plan.name, reason=f"tied to {leader.plan.name}")
        return PlannedTensor(plan, leader.identity)

    def _keep(self, target: Target, kind: Kind, sources: Sequence[ExpertSource | None], reason: str) -> PlannedTensor:
        """Return the plan of the base's tensor, in the rows of the output."""
        if target.is_unchanged:
            return self._copy(target, reason)
        return self._merge(target, kind, ActionChoice("mean", self._actions.method, reason), sources, scale=0.0)

    def _copy(self, target: Target, reason: str) -> PlannedTensor:
        reference = target.reference
        out_dtype = self._out_dtype(reference)
        size = cost.source_bytes(reference)
        casts = out_dtype != reference.dtype
        written = tensor_bytes(out_dtype, reference.shape) if casts else size
        plan = TensorPlan(
            name=target.slot.name,
            shape=reference.shape,
            out_dtype=out_dtype,
            action="copy",
            reason=reason,
            base=reference,
            bytes_read=size,
            peak_bytes=held_bytes(reference) + written + (4 * prod(reference.shape) if casts else 0),
        )
        return PlannedTensor(plan, tensor_identity(plan, target.identity, ()))

    def _out_dtype(self, reference: TensorSource) -> str:
        if reference.dtype not in MERGEABLE_DTYPES:
            return reference.dtype
        chosen = self._recipe.out_dtype or self._recipe.dtype
        if chosen is not None:
            return safetensors_name(chosen)
        return "BF16" if reference.dtype in FLOAT8_DTYPES else reference.dtype

    def _merge(
        self,
        target: Target,
        kind: Kind,
        choice: ActionChoice,
        sources: Sequence[ExpertSource | None],
        scale: float | None = None,
    ) -> PlannedTensor:
        """Plan a merge by the method, or a mean.

        Parameters
        ----------
        scale : float, optional
            Factor of the mean delta instead of the method's parameter.
        """
        method, slot, reference = choice.method, target.slot, target.reference
        assert method is not None
        resolvers = self._resolvers_of(slot.group, method, choice.rule)
        parameters = resolvers.shared.resolve(slot.name, slot.t)
        is_merge = choice.action == "merge"
        if not is_merge:
            parameters = {"scale": parameters.get("scale", 1.0) if scale is None else scale}
        experts, identities = self._order_experts(slot, method, resolvers, sources, only_weight=not is_merge)
        if self._has_base and (not is_merge or isinstance(method, SpectralMethod)):
            kept, kept_identities = _without_weight_zero(experts, identities)
            if kept:
                experts, identities = kept, kept_identities
            elif target.is_unchanged:
                return self._copy(target, "every expert has weight 0: base kept")
        arithmetic = self._arithmetic(reference, experts)
        if arithmetic is None and is_merge and self._needs_float64(method, parameters):
            arithmetic = "float64"
            self.amplifying[method.name] += 1
        plan = TensorPlan(
            name=slot.name,
            shape=target.shape,
            out_dtype=self._out_dtype(reference),
            action=choice.action,
            reason=choice.reason,
            base=reference if self._has_base else None,
            experts=experts,
            method=method.name if is_merge else None,
            method_package=method.package if is_merge else None,
            parameters=parameters,
            base_rows=target.base_rows,
            token_rows=target.token_rows,
            padding_start=target.padding_start,
            arithmetic=arithmetic,
        )
        base_identity = target.identity if self._has_base else None
        if not is_merge:
            plan = self._complete_mean(plan, target, identities)
        elif isinstance(method, SpectralMethod):
            matrices = self._matrices(slot.template, target.shape, kind, choice)
            self.num_split_qkv += bool(matrices.cuts) and kind == "matrix"
            plan = self._spectral(plan).complete(plan, method, matrices, target.identity, identities)
        else:
            if choice.calibrated and self._has_base:
                assert self._recipe.calibration is not None
                matrices = self._matrices(slot.template, target.shape, kind, choice)
                self.num_split_qkv += bool(matrices.cuts) and kind == "matrix"
                settings = self._settings_of(plan)
                plan = complete_calibrated(
                    plan, method, self._recipe.calibration, matrices, settings, target.identity, identities
                )
                return PlannedTensor(plan, tensor_identity(plan, base_identity, identities))
            plan = self._complete_direct(plan, method)
            seed, version = self._settings.seed, method.algorithm_version
            return PlannedTensor(plan, tensor_identity(plan, base_identity, identities, seed, version))
        return PlannedTensor(plan, tensor_identity(plan, base_identity, identities))

    def _matrices(self, name: str, shape: tuple[int, ...], kind: Kind, choice: ActionChoice) -> Matrices:
        """Return the matrices of a tensor, oriented as a rule says, or else as the model stores them."""
        has_orientation = kind in ("matrix", "expert_stack", "router")
        in_out = has_orientation and self._layout.in_out(name)
        if choice.orientation is not None and has_orientation:
            in_out = choice.orientation == "in_out"
        stack = self._layout.stack(name)
        return matrices_of(name, shape, kind, choice.split_qkv, self._config, in_out=in_out, stack=stack)

    def _arithmetic(self, reference: TensorSource, experts: Sequence[ExpertTensor]) -> Literal["float64"] | None:
        """Return the arithmetic of one tensor where it differs from the run's: float64 if any input is stored so."""
        if self._settings.arithmetic == "float64":
            return None
        sources = [reference, *(expert.full for expert in experts)]
        sources += [factor for expert in experts if expert.lora for factor in expert.lora.sources]
        if not any(map(is_float64, sources)):
            return None
        if self._recipe.arithmetic is not None:
            self.num_rounded_float64 += 1
            return None
        return "float64"

    def _needs_float64(self, method: AnyMethod, parameters: Mapping[str, object]) -> bool:
        """Return whether the method's filter needs more than the run's arithmetic."""
        if self._settings.arithmetic == "float64" or not isinstance(method, SpectralMethod):
            return False
        # By id, because a resolver returns one mapping for equal parameters; the entry keeps the mapping alive.
        key = (method.name, id(parameters))
        if key not in self._precise:
            self._precise[key] = (method.needs_float64(method.Parameters.model_validate(dict(parameters))), parameters)
        return self._precise[key][0]

    def _settings_of(self, plan: TensorPlan) -> RunSettings:
        return self._settings if plan.arithmetic is None else replace(self._settings, arithmetic=plan.arithmetic)

    def _element_bytes(self, plan: TensorPlan) -> int:
        return cost.arithmetic_bytes(self._settings, plan.arithmetic)

    def _spectral(self, plan: TensorPlan) -> SpectralPlanner:
        settings = self._settings_of(plan)
        if settings.arithmetic not in self._planners:
            self._planners[settings.arithmetic] = SpectralPlanner(self._recipe, settings)
        return self._planners[settings.arithmetic]

    def _order_experts(
        self,
        slot: Slot,
        method: AnyMethod,
        resolvers: _GroupResolvers,
        sources: Sequence[ExpertSource | None],
        *,
        only_weight: bool,
    ) -> tuple[tuple[ExpertTensor, ...], list[str]]:
        """Return the experts in the order in which they are merged, and their identities in the same order."""
        experts: list[ExpertTensor] = []
        identities: list[str] = []
        for position in self._merge_order(slot.group, method):
            member = slot.group.members[position]
            own = resolvers.own[position].resolve(slot.source_name(member), slot.t)
            if only_weight and set(own) != {"weight"}:
                own = {"weight": own.get("weight", 1.0)}
            source = sources[position] or BASE_SOURCE
            experts.append(
                ExpertTensor(
                    member.expert,
                    source.full,
                    source.lora,
                    own,
                    member.is_base,
                    source.rows,
                    source.rounded,
                    source.noise if needs_base(method) else None,
                )
            )
            if source.rounded and source.full is not None and needs_base(method):
                self.rounded.setdefault(member.expert, source.full.dtype)
            identities.append(source.identity)
        return tuple(experts), identities

    def _merge_order(self, group: Group, method: AnyMethod) -> Sequence[int]:
        """Return the members' positions: as in the recipe if the order matters, else by fingerprint.

        Then sums over experts are added in one order, and have equal bytes, for every order in the recipe.
        """
        if method.order_matters:
            return range(len(group.members))
        order = self._positions.get(id(group))
        if order is None:

            def key(position: int) -> tuple[str, str]:
                member = group.members[position]
                settings = repr(sorted(member.own.settings.items()) if member.own is not None else [])
                return self._experts[member.expert].fingerprint, settings

            order = self._positions[id(group)] = tuple(sorted(range(len(group.members)), key=key))
        return order

    def _resolvers_of(self, group: Group, method: AnyMethod, rule: int | None) -> _GroupResolvers:
        key = (id(group), method.name, rule)
        resolvers = self._group_resolvers.get(key)
        if resolvers is None:
            rule_scope = self._rule_scopes[rule] if rule is not None else None
            is_rule_method = method.name != self._actions.method.name
            shared = method_precedence(rule_scope, group.scopes, is_rule_method=is_rule_method)
            own = [source_precedence(rule_scope, member.own, group.scopes) for member in group.members]
            resolvers = self._group_resolvers[key] = _GroupResolvers(
                self._resolvers.get(method.Parameters, shared),
                tuple(self._resolvers.get(method.Expert, scopes) for scopes in own),
            )
        return resolvers

    def _complete_direct(self, plan: TensorPlan, method: DirectMethod[Any, Any]) -> TensorPlan:
        """Return the plan with the costs of a direct method."""
        work = method.peak_elements(prod(plan.shape), len(plan.experts)) * self._element_bytes(plan)
        return replace(
            plan,
            bytes_read=cost.bytes_read(plan.base, plan.experts, method.passes),
            flops=cost.direct_cost(method, plan.shape, len(plan.experts)),
            peak_bytes=work + tensor_bytes(plan.out_dtype, plan.shape),
        )

    def _complete_mean(self, plan: TensorPlan, target: Target, identities: Sequence[str]) -> TensorPlan:
        """Return the plan with the key of its sums and the costs of a mean."""
        element_bytes = self._element_bytes(plan)
        held = 4 * prod(plan.shape) * element_bytes  # base, sum, expert, task vector
        stored = cost.stored_working_set(plan.base, plan.experts)
        if self._settings.keep_sums and can_keep_sums(plan):
            weighted = zip(identities, plan.experts, strict=True)
            members = tuple(hash_json((identity, expert.parameters)) for identity, expert in weighted)
            form, settings = f"sum {list(plan.shape)}", self._settings_of(plan)
            key = sums_key(SUM_VERSION, settings.arithmetic, target.identity, form, members, tf32=settings.uses_tf32)
            plan = replace(
                plan,
                members=members,
                sums_key=key,
                sums_bytes=prod(plan.shape) * element_bytes,
            )
        return replace(
            plan,
            bytes_read=cost.bytes_read(plan.base, plan.experts, 1),
            flops=cost.mean_cost(plan.shape, len(plan.experts)),
            peak_bytes=held + stored + cost.cast_bytes(plan.shape, plan.out_dtype, element_bytes),
        )


def _without_weight_zero(
    experts: tuple[ExpertTensor, ...], identities: Sequence[str]
) -> tuple[tuple[ExpertTensor, ...], list[str]]:
    """Return the experts whose weight is not 0, and their identities: one of weight 0 is no expert of this tensor."""
    kept = [index for index, expert in enumerate(experts) if expert.parameters.get("weight", 1.0) != 0]
    return tuple(experts[index] for index in kept), [identities[index] for index in kept]
