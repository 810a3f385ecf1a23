"""One output tensor: its sources checked and put in order, what happens to it, its parameters, keys and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, final

from ...errors import CheckpointError, RecipeError, ShapeError
from ...formats.digest import hash_json
from ...formats.dtypes import FLOAT8_DTYPES, MERGEABLE_DTYPES, safetensors_name
from ...listing import LoraSource, TensorSource
from ...numerics.method import AnyMethod, DirectMethod, SpectralMethod
from ...recipe.recipe import Recipe
from ...recipe.scopes import Resolver, Resolvers, scope
from ..cost import projection as cost
from ..inputs.checkpoint import Checkpoint
from ..keys import SUM_VERSION, sums_key, tensor_identity
from ..names import Kind, tensor_kind
from ..plan import ExpertTensor, Rows, RunSettings, TensorPlan
from .incremental import adds_up
from .matrices import matrices_of
from .members import needs_base
from .rules import Decision, RuleBook
from .slots import Group, Member, Slot
from .spectral import SpectralPlanner
from .vocabulary import VocabularyPlanner, is_row_by_token


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of the plan and the hash of all that decides its bytes."""

    plan: TensorPlan
    identity: str


@dataclass(frozen=True, slots=True)
class _Readers:
    """Resolvers of one method in one group under one rule."""

    method: AnyMethod
    shared: Resolver
    own: tuple[Resolver, ...]  # one per member of the group


@dataclass(frozen=True, slots=True)
class _Target:
    """The tensor at hand: the reference's, and its shape in the output."""

    slot: Slot
    reference: TensorSource
    shape: tuple[int, ...]
    base_rows: Rows | None
    identity: str  # of the reference's tensor, for keys


@dataclass(frozen=True, slots=True)
class _Given:
    """What one checkpoint gives to it, in the output's rows."""

    full: TensorSource | None
    lora: LoraSource | None
    identity: str
    rows: Rows | None = None


_COUNTS_AS_BASE = _Given(None, None, "base")


@dataclass(frozen=True, slots=True)
class _Source:
    """The same with its parameters, as the plan keeps it."""

    identity: str
    expert: ExpertTensor


@final
class TensorPlanner:
    """Plans the tensors of one output, one after the other; what they share is computed once."""

    def __init__(
        self,
        recipe: Recipe,
        settings: RunSettings,
        *,
        rules: RuleBook,
        reference: Mapping[str, TensorSource],
        base_fingerprint: str | None,
        experts: Sequence[Checkpoint],
        vocabulary: VocabularyPlanner,
        config: Mapping[str, object] | None,
    ) -> None:
        self._recipe = recipe
        self._settings = settings
        self._rules = rules
        self._reference = reference
        self._base = base_fingerprint
        self._experts = experts
        self._vocabulary = vocabulary
        self._config = config
        self._resolvers = Resolvers()
        self._readers: dict[tuple[int, str, int | None], _Readers] = {}
        self._spectral = SpectralPlanner(recipe, settings)
        self._order: dict[int, tuple[int, ...]] = {}
        self._rule_scopes = [
            scope(f"rules[{index}].parameters", rule.parameters) for index, rule in enumerate(recipe.rules)
        ]
        self._element = cost.element_bytes(settings)
        self.untouched = 0  # tensors that no expert has
        self.first_untouched = ""
        self.split_qkv = 0

    def plan(self, slot: Slot) -> PlannedTensor:
        """Plan one tensor.

        Raises
        ------
        ShapeError, CheckpointError : a source does not fit
        RecipeError : the parameters do not
        """
        reference = self._reference[slot.template]
        kind = tensor_kind(slot.template, reference.shape, reference.dtype)
        decision = self._rules.decide(slot.name, kind)
        target = self._target(slot, reference)
        if decision.action == "copy":
            if target.base_rows is None and target.shape == reference.shape:
                return self._copy(target, decision.reason)
            decision = Decision("mean", self._rules.method, f"{decision.reason}; new rows are the experts' mean")
            return self._merge(target, kind, decision, self._sources(target), scale=0.0)
        assert decision.method is not None
        sources = self._sources(target)
        if all(source is None for source in sources):
            if self._base is None:
                raise CheckpointError(f"{slot.name}: none of the models has it; remove it from the first model")
            self.untouched += 1
            self.first_untouched = self.first_untouched or slot.name
            return self._copy(target, "no expert has it: base kept")
        if needs_base(decision.method) and all(source is None or source.identity == "base" for source in sources):
            return self._copy(target, "no expert changes it: base kept")
        if any(source is None for source in sources) and (self._recipe.missing == "error" or self._base is None):
            raise self._missing(slot, sources)
        return self._merge(target, kind, decision, sources)

    def _target(self, slot: Slot, reference: TensorSource) -> _Target:
        identity = f"{self._base or self._experts[0].fingerprint}/{slot.template}"
        if not (self._vocabulary.goes_by_token and is_row_by_token(slot.template) and reference.shape):
            return _Target(slot, reference, reference.shape, None, identity)
        fit = self._vocabulary.fit_base(reference)
        shape = (self._vocabulary.output_rows(reference.shape[0]), *reference.shape[1:])
        if fit.rows is not None or shape != reference.shape:
            identity += f"{fit.mark}->{shape[0]}"
        return _Target(slot, reference, shape, fit.rows, identity)

    def _copy(self, target: _Target, reason: str) -> PlannedTensor:
        reference = target.reference
        out_dtype = self._out_dtype(reference)
        size = cost.source_bytes(reference)
        written = size if out_dtype == reference.dtype else cost.output_bytes(reference.shape, out_dtype)
        plan = TensorPlan(
            name=target.slot.name,
            shape=reference.shape,
            out_dtype=out_dtype,
            action="copy",
            reason=reason,
            base=reference,
            bytes_read=size,
            peak_bytes=size + written + (0 if out_dtype == reference.dtype else 4 * prod(reference.shape)),
        )
        return PlannedTensor(plan, tensor_identity(plan, target.identity, ()))

    def _out_dtype(self, reference: TensorSource) -> str:
        if reference.dtype not in MERGEABLE_DTYPES:
            return reference.dtype
        chosen = self._recipe.out_dtype or self._recipe.dtype
        if chosen is not None:
            return safetensors_name(chosen)
        return "BF16" if reference.dtype in FLOAT8_DTYPES else reference.dtype

    def _sources(self, target: _Target) -> list[_Given | None]:
        """What each member of the group gives, in the group's order."""
        slot, reference = target.slot, target.reference
        by_token = is_row_by_token(slot.template) and bool(reference.shape)
        found: list[_Given | None] = []
        for member in slot.group.members:
            checkpoint = self._experts[member.expert]
            given = checkpoint.contribution(slot.source_name(member), reference)
            if given is None or given.full is None:
                if given is not None and given.lora is not None and target.shape != reference.shape:
                    raise CheckpointError(
                        f"{slot.name}: {checkpoint.name} adapts it and tokenizer_source changes its rows; merge the"
                        " adapter into its base first"
                    )
                found.append(None if given is None else _Given(None, given.lora, given.identity))
                continue
            full, rows, identity = given.full, None, given.identity
            if full.dtype not in MERGEABLE_DTYPES:
                raise CheckpointError(
                    f"{slot.name}: {checkpoint.name} stores it as {full.dtype}, expected a float as in the base"
                    f" ({reference.dtype}); give the unquantised model"
                )
            if full.shape != target.shape or (by_token and self._vocabulary.goes_by_token):
                if not by_token or full.shape[1:] != target.shape[1:] or not full.shape:
                    raise self._misfit(slot, reference, full, checkpoint)
                fit = self._vocabulary.fit_expert(slot.name, member.expert, full, reference.shape[0])
                if fit.rows is not None or fit.source is not full:
                    full, rows, identity = fit.source, fit.rows, identity + fit.mark
            found.append(_Given(full, given.lora, identity, rows))
        return found

    def _misfit(self, slot: Slot, reference: TensorSource, full: TensorSource, checkpoint: Checkpoint) -> ShapeError:
        role = "the base" if self._base is not None else "the first model"
        hint = "give experts that were fine-tuned from this base"
        if full.shape == reference.shape[::-1]:
            hint = "it is stored transposed; " + hint
        return ShapeError(
            f"{slot.name}: {checkpoint.name} has shape {list(full.shape)}, {role} has {list(reference.shape)}; {hint}"
        )

    def _missing(self, slot: Slot, sources: Sequence[_Given | None]) -> CheckpointError:
        without = [
            self._experts[member.expert].name
            for member, source in zip(slot.group.members, sources, strict=True)
            if source is None
        ]
        others = f" and {len(without) - 1} more" if len(without) > 1 else ""
        advice = "give base_model, or models with the same tensors"
        if self._base is not None:
            advice = (
                "set `missing: base` to count the base's tensor there,"
                f" or add a rule {{match: {slot.name!r}, action: keep_base}}"
            )
        return CheckpointError(f"{slot.name}: {without[0]}{others} does not have it, other models do; {advice}")

    def _merge(
        self,
        target: _Target,
        kind: Kind,
        decision: Decision,
        found: Sequence[_Given | None],
        scale: float | None = None,
    ) -> PlannedTensor:
        method, slot, reference = decision.method, target.slot, target.reference
        assert method is not None
        readers = self._readers_of(slot.group, method, decision.rule)
        parameters = readers.shared.resolve(slot.name, slot.t)
        merges = decision.action == "merge"
        if not merges:
            parameters = {"scale": parameters.get("scale", 1.0) if scale is None else scale}
        sources = self._in_order(slot, method, readers, found, only_weight=not merges)
        identities = [source.identity for source in sources]
        plan = TensorPlan(
            name=slot.name,
            shape=target.shape,
            out_dtype=self._out_dtype(reference),
            action=decision.action,
            reason=decision.reason,
            base=reference if self._base is not None else None,
            experts=tuple(source.expert for source in sources),
            method=method.name if merges else None,
            method_package=method.package if merges else None,
            parameters=parameters,
            base_rows=target.base_rows,
        )
        if merges and isinstance(method, SpectralMethod):
            matrices = matrices_of(slot.template, target.shape, kind, decision.split_qkv, self._config)
            self.split_qkv += bool(matrices.cuts) and kind == "matrix"
            plan = self._spectral.complete(plan, method, matrices, target.identity, identities)
        elif merges:
            assert isinstance(method, DirectMethod)
            plan = self._direct(plan, method)
        else:
            plan = self._mean(plan, target, sources)
        base_identity = target.identity if self._base is not None else None
        if merges and isinstance(method, DirectMethod):
            seed, version = self._settings.seed, method.algorithm_version
            return PlannedTensor(plan, tensor_identity(plan, base_identity, identities, seed, version))
        return PlannedTensor(plan, tensor_identity(plan, base_identity, identities))

    def _in_order(
        self,
        slot: Slot,
        method: AnyMethod,
        readers: _Readers,
        found: Sequence[_Given | None],
        *,
        only_weight: bool,
    ) -> list[_Source]:
        """Experts in the recipe's order where it matters, else by fingerprint: then the sums, too, have equal bytes."""
        sources: list[_Source] = []
        for position in self._positions(slot.group, method):
            member = slot.group.members[position]
            own = readers.own[position].resolve(slot.source_name(member), slot.t)
            if only_weight and own.keys() != {"weight"}:
                own = {"weight": own.get("weight", 1.0)}
            given = found[position] or _COUNTS_AS_BASE
            expert = ExpertTensor(member.expert, given.full, given.lora, own, member.is_base, given.rows)
            sources.append(_Source(given.identity, expert))
        return sources

    def _positions(self, group: Group, method: AnyMethod) -> Sequence[int]:
        if method.order_matters:
            return range(len(group.members))
        order = self._order.get(id(group))
        if order is None:

            def key(position: int) -> tuple[str, str]:
                member: Member = group.members[position]
                settings = sorted((member.own.settings if member.own is not None else {}).items())
                return self._experts[member.expert].fingerprint, repr(settings)

            order = self._order[id(group)] = tuple(sorted(range(len(group.members)), key=key))
        return order

    def _readers_of(self, group: Group, method: AnyMethod, rule: int | None) -> _Readers:
        key = (id(group), method.name, rule)
        readers = self._readers.get(key)
        if readers is None:
            own_method = method.name == self._rules.method.name
            rule_scope = self._rule_scopes[rule] if rule is not None else None
            # The global parameters belong to merge_method; a rule's other method has only the rule's.
            shared = self._resolvers.get(method.Parameters, [rule_scope, *(group.scopes if own_method else ())])
            own = tuple(
                self._resolvers.get(method.Expert, [rule_scope, member.own, *group.scopes]) for member in group.members
            )
            readers = self._readers[key] = _Readers(method, shared, own)
        return readers

    def _direct(self, plan: TensorPlan, method: DirectMethod[Any, Any]) -> TensorPlan:
        work = method.peak_elements(prod(plan.shape), len(plan.experts)) * self._element
        return replace(
            plan,
            bytes_read=cost.bytes_read(plan.base, plan.experts, method.passes),
            flops=cost.direct_cost(method, plan.shape, len(plan.experts)),
            peak_bytes=work + cost.output_bytes(plan.shape, plan.out_dtype),
        )

    def _mean(self, plan: TensorPlan, target: _Target, sources: Sequence[_Source]) -> TensorPlan:
        held = 4 * prod(plan.shape) * self._element  # base, sum, expert, task vector
        stored = cost.stored_working_set(plan.base, plan.experts)
        if self._settings.keep_sums and adds_up(plan):
            members = tuple(hash_json((source.identity, source.expert.parameters)) for source in sources)
            form = f"sum {list(plan.shape)}"
            plan = replace(
                plan,
                members=members,
                sums_key=sums_key(SUM_VERSION, self._settings.arithmetic, target.identity, form, members),
                sums_bytes=prod(plan.shape) * self._element,
            )
        return replace(
            plan,
            bytes_read=cost.bytes_read(plan.base, plan.experts, 1),
            flops=cost.mean_cost(plan.shape, len(plan.experts)),
            peak_bytes=held + stored + cost.cast_bytes(plan.shape, plan.out_dtype, self._element),
        )


def check_needs_base(recipe: Recipe, method: AnyMethod, has_base: bool) -> None:
    """
    Raises
    ------
    RecipeError : the method, or a rule's, works on task vectors and the recipe has no base_model
    """
    if has_base:
        return
    if needs_base(method):
        raise RecipeError(f"base_model: is missing; {method.name} works on the difference of each expert to it")
    if any(rule.action in ("keep_base", "mean") or rule.method for rule in recipe.rules):
        raise RecipeError("base_model: is missing; rules with keep_base, mean or a method need it")
