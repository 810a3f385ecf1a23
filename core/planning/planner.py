"""Plan a merge from the recipe and the listings of its models, without I/O and without torch.

Every error that can be detected without reading weights is raised here, in one line that names tensor and models.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

from ..errors import CheckpointError, RecipeError
from ..escaping import printable
from ..formats.digest import hash_json
from ..formats.file_names import ADAPTER_WEIGHTS_NAME, WEIGHTS_NAME
from ..formats.redaction import redact_strings
from ..listing import ModelListing, TensorSource
from ..numerics.registry import get_method
from ..numerics.svd.svc import calibration_warning
from ..recipe.recipe import Recipe
from .cost.block_projection import plan_blocks
from .cost.experts_ahead import plan_experts_ahead
from .cost.projection import check_budget
from .inputs.adapted_base import merge_adapter
from .inputs.chat_templates import choose_template
from .inputs.checkpoint import Checkpoint, MatchCache, reference_tensors, summarize
from .inputs.checks.architecture import check_architectures
from .inputs.checks.arrival import check_arrival, check_untouched, measure_arrival
from .inputs.layouts.layout import Layout
from .inputs.modules import assign_modules
from .inputs.names.tied import TiedWeights
from .inputs.reference_tensors import ReferenceTensors
from .keys import part_key, run_key
from .names import natural_key
from .outputs.adapter_output import convert_to_adapter
from .outputs.choose_action import ActionChooser
from .outputs.float8_output import convert_to_float8
from .outputs.incremental import incremental_warnings
from .outputs.members import GroupBuilder, averages_unlisted_base, check_needs_base, is_same_model
from .outputs.name_patterns import check_filters
from .outputs.side_files import plan_side_files
from .outputs.slots import OutputSlots, Slot, build_model_slots, build_slice_slots, join_slots
from .outputs.spectral import add_alignment, alignment_keys, top_warnings
from .outputs.tensor_planner import PlannedTensor, TensorPlanner
from .outputs.vocabulary.fit_vocabulary import VocabularyPlanner
from .outputs.vocabulary.token_ids import TokenIds
from .plan import LayerShard, Plan, RunSettings, TensorPlan
from .shards import Packing, pack_tensors, written_bytes

_MAX_TENSOR_NAME_LENGTH = 1000
_MAX_EXTRA_NAMES_SHOWN = 3


def run_settings(
    recipe: Recipe, *, device: str = "cpu", allow_tf32: bool = False, allow_nonfinite: bool = False
) -> RunSettings:
    """Return the settings of a run: those of the recipe and those of the caller."""
    return RunSettings(
        arithmetic=recipe.arithmetic_dtype,
        device=device,
        allow_tf32=allow_tf32,
        spectra=recipe.spectra,
        spectra_dtype=recipe.spectra_dtype,
        allow_nonfinite=allow_nonfinite,
        keep_sums=recipe.keep_sums,
        seed=recipe.seed,
    )


def plan_merge(
    recipe: Recipe,
    base: ModelListing | None,
    experts: Sequence[ModelListing],
    settings: RunSettings | None = None,
    *,
    max_memory: int | None = None,
    shard_bytes: int | None = None,
    tokenizer: ModelListing | None = None,
    side_file_contents: Mapping[str, bytes] | None = None,
    slice_bases: Mapping[str, ModelListing] | None = None,
) -> Plan:
    """Return the plan of a merge.

    Cost: O(T N) for T tensors and N experts; less than 0.5 s for a 70B model with 8 experts.

    Parameters
    ----------
    base : listing of `recipe.base_model`, None if the recipe has none
    experts : listings of `recipe.expert_references`, in that order
    settings : by default `run_settings(recipe)`
    max_memory : bytes of one worker; by default the recipe's
    shard_bytes : size limit of a shard of the output; by default from the size of the model
    tokenizer : listing of `recipe.vocabulary_source`, if that is a model
    side_file_contents : content by URI of the files that `tokenizer_files_needed` returns
    slice_bases : listings of the other `recipe.base_references`, by reference

    Raises
    ------
    RecipeError : the recipe does not fit the models: a pattern matches no tensor, too few models, no base
    CheckpointError, ShapeError : the models do not fit each other
    BudgetError : a tensor needs more memory than max_memory
    """
    settings = settings or run_settings(recipe)
    method = get_method(recipe.merge_method)
    check_needs_base(recipe, method, base is not None)
    references = recipe.expert_references
    assert len(experts) == len(references), f"{len(experts)} listings for {len(references)} experts"
    warnings: list[str] = list(recipe.ineffective_parameters)
    if averages_unlisted_base(recipe, method, base, experts):
        assert base is not None
        experts = [*experts, base]
        warnings.append("models: base_model is averaged too, as in mergekit")
    bases = {reference: merge_adapter(listing, warnings) for reference, listing in (slice_bases or {}).items()}
    if base is not None:
        assert recipe.base_model is not None
        base = bases[recipe.base_model] = merge_adapter(base, warnings)
    reference = base if base is not None else experts[0]
    role = "is set as base_model" if base is not None else "is the first model, and there is no base_model"
    tensors = reference_tensors(reference, role)
    _check_names(tensors, reference.name)
    by_layers = any(region.slices for region in recipe.regions)
    warnings += check_architectures(
        reference, experts, allow_mixed=recipe.allow_mixed_architectures, by_layers=by_layers
    )
    shapes = {name: source.shape for name, source in tensors.items()}
    layout = Layout(shapes, reference.config)
    cache = MatchCache()
    checkpoints = [Checkpoint(listing, layout, base, cache) for listing in experts]
    for checkpoint in checkpoints:
        layout.learn(checkpoint.in_out)
    tied = TiedWeights(
        reference,
        tensors,
        checkpoints,
        keeps_base=recipe.missing == "base",
        to_adapter=recipe.output.format == "adapter",
    )
    check_arrival(checkpoints, reference)
    output = _build_slots(recipe, tensors, GroupBuilder(recipe, method, bases, experts, warnings), reference)
    output_names = [slot.name for slot in output.slots]
    actions = ActionChooser(recipe, output_names)
    source_names = {
        slot.source_name(member) for slot in output.slots if slot.offset is not None for member in slot.group.members
    }
    warnings += actions.warnings + check_filters(recipe, sorted(source_names.union(output_names)))
    vocabulary = VocabularyPlanner(recipe, reference, experts, tokenizer, side_file_contents or {})
    planner = TensorPlanner(
        recipe,
        settings,
        actions=actions,
        bases=ReferenceTensors(tensors, base, bases),
        experts=checkpoints,
        vocabulary=vocabulary,
        config=reference.config,
        layout=layout,
        roles=tied.roles,
    )
    planned = _plan_slots(planner, output.slots, tied.followers)
    if recipe.missing == "error" and not by_layers:
        check_untouched(checkpoints, reference, planner.untouched)
    warnings += vocabulary.warnings + _collect_warnings(planner, base, experts, checkpoints)
    if recipe.calibration is not None and recipe.calibration.svc is not None:
        warnings += [warning for warning in [calibration_warning(method.name)] if warning is not None]
    if settings.keep_sums:
        warnings += incremental_warnings(item.plan for item in planned)
    warnings += top_warnings(item.plan for item in planned)
    if not planner.num_split_qkv and "split" in (recipe.qkv, *(rule.qkv for rule in recipe.rules)):
        raise RecipeError("qkv: split: no fused QKV weight is merged by a spectral method; remove it")
    planned = _add_alignment(planned)
    float8: dict[str, object] | None = None
    if recipe.output.float8 is not None:
        planned, float8, notes = convert_to_float8(planned, recipe.output.float8, reference.config, layout)
        warnings += notes
    changes = {**output.config_changes, **_vocabulary_changes(reference, planned, vocabulary)}
    contents = side_file_contents or {}
    ids = TokenIds(reference, tokenizer, vocabulary, contents)
    side_files = plan_side_files(
        recipe,
        reference,
        changes | ids.config_changes(),
        vocabulary.tokenizer,
        vocabulary.tokenizer_json(),
        contents,
        ids.generation_config(),
        float8,
        _choose_template(recipe, [*([base] if base else []), *experts], contents, warnings),
    )
    file_name, file_bytes = WEIGHTS_NAME, recipe.output.max_shard_size
    if recipe.output.format == "adapter":
        if base is None:
            raise RecipeError("base_model: is missing; an adapter needs it")
        if base.kind != "full":
            raise RecipeError(
                f"output: adapter: base_model {base.name} includes an adapter; merge it into the model first"
            )
        adapter = convert_to_adapter(recipe, settings, base.name, checkpoints, planned)
        planned, side_files = list(adapter.tensors), (adapter.config,)
        file_name, file_bytes = ADAPTER_WEIGHTS_NAME, sys.maxsize  # PEFT reads one file
    else:
        warnings += [*reference.notes, *ids.warnings]
        if vocabulary.tokenizer is not reference and vocabulary.tokenizer.tokenizer_code:
            code = ", ".join(sorted(vocabulary.tokenizer.tokenizer_code))
            warnings.append(f"{vocabulary.tokenizer.name}: code of its tokenizer goes with the merged model: {code}")
    planned = [PlannedTensor(plan_experts_ahead(plan_blocks(item.plan, settings)), item.identity) for item in planned]
    check_budget((item.plan for item in planned), max_memory if max_memory is not None else recipe.max_memory)
    packing = pack_tensors([item.plan for item in planned], file_bytes, shard_bytes, file_name)
    shards = _make_shards(planned, packing, settings)
    canonical = cast("dict[str, Any]", redact_strings(recipe.canonical()))  # addresses may be signed
    read = [listing for listing in (base, *experts, tokenizer) if listing is not None]
    return Plan(
        run_key=run_key(canonical, shards, packing.files, side_files),
        recipe=canonical,
        settings=settings,
        base=summarize(base) if base is not None else None,
        experts=tuple(summarize(item.listing, measure_arrival(item)) for item in checkpoints),
        shards=shards,
        files=packing.files,
        side_files=side_files,
        warnings=tuple(dict.fromkeys(map(printable, warnings))),
        input_folders=tuple(dict.fromkeys(uri for listing in read for uri in listing.folders)),
        input_uris=tuple(sorted({uri for listing in read for uri in listing.file_uris()})),
    )


def _plan_slots(planner: TensorPlanner, slots: Sequence[Slot], followers: Mapping[str, str]) -> list[PlannedTensor]:
    """Plan all tensors of the output. A tied weight takes the plan of the weight that it is tied to."""
    leaders = {slot.name: planner.plan(slot) for slot in slots if slot.name not in followers}
    return [
        planner.follow(leaders[followers[slot.name]], slot.name) if slot.name in followers else leaders[slot.name]
        for slot in slots
    ]


def _build_slots(
    recipe: Recipe, tensors: Mapping[str, TensorSource], builder: GroupBuilder, reference: ModelListing
) -> OutputSlots:
    """Return the slots of every region of the recipe."""
    names = assign_modules(tensors, [region.module or "default" for region in recipe.regions])
    parts: list[OutputSlots] = []
    for region, own in zip(recipe.regions, names.values(), strict=True):
        groups, lengths = builder.build(region)
        if lengths is None:
            parts.append(build_model_slots(own, groups[0]))
        else:
            parts.append(build_slice_slots(own, groups, lengths, reference.config))
    return join_slots(parts)


def _choose_template(
    recipe: Recipe, models: Sequence[ModelListing], contents: Mapping[str, bytes], warnings: list[str]
) -> str | None:
    if recipe.chat_template is None:
        return None
    template = choose_template(recipe.chat_template, models, contents)
    if template is None:
        warnings.append("chat_template: auto: none of the models has a chat template")
    return template


def _add_alignment(planned: Sequence[PlannedTensor]) -> list[PlannedTensor]:
    """Return the tensors with alignment keys where a filter depends on the eigenvalues of other layers."""
    keys = alignment_keys(item.plan for item in planned)
    if not keys:
        return list(planned)
    return [
        PlannedTensor(add_alignment(item.plan, own), hash_json([item.identity, *filter(None, own)])) if own else item
        for item in planned
        for own in [keys.get(item.plan.name)]
    ]


def _vocabulary_changes(
    reference: ModelListing, planned: Sequence[PlannedTensor], vocabulary: VocabularyPlanner
) -> dict[str, object]:
    """Return vocab_size for config.json, at the top level or in text_config, if the merge changes it."""
    config = reference.config
    if config is None or not (vocabulary.matches_tokens or reference.adapter is not None):
        return {}
    rows = next((item.plan.shape[0] for item in planned if vocabulary.is_by_token(item.plan.name)), None)
    text = config.get("text_config")
    if rows is None:
        return {}
    if "vocab_size" in config:
        return {} if config["vocab_size"] == rows else {"vocab_size": rows}
    if isinstance(text, Mapping):
        text_config = cast("Mapping[str, object]", text)
        if text_config.get("vocab_size", rows) != rows:
            return {"text_config": {**text_config, "vocab_size": rows}}
    return {}


def _make_shards(planned: Sequence[PlannedTensor], packing: Packing, settings: RunSettings) -> tuple[LayerShard, ...]:
    identities = {item.plan.name: item.identity for item in planned}
    return tuple(_make_shard(index, group, identities, settings) for index, group in enumerate(packing.shards))


def _make_shard(
    index: int, tensors: tuple[TensorPlan, ...], identities: Mapping[str, str], settings: RunSettings
) -> LayerShard:
    return LayerShard(
        index=index,
        tensors=tensors,
        part_key=part_key([(tensor.name, identities[tensor.name]) for tensor in tensors], settings),
        bytes_read=sum(tensor.bytes_read for tensor in tensors),
        bytes_written=sum(map(written_bytes, tensors)),
        flops=sum(tensor.flops for tensor in tensors),
        peak_bytes=max(tensor.peak_bytes for tensor in tensors),
    )


def _check_names(tensors: Mapping[str, TensorSource], model: str) -> None:
    """Check tensor names, which are untrusted input and are used in headers, reports and keys."""
    for name in tensors:
        bad = (
            not name
            or len(name) > _MAX_TENSOR_NAME_LENGTH
            or not name.isprintable()
            or name == "__metadata__"
            or name.startswith("/")
            or "\\" in name
            or ".." in name.split("/")
        )
        if bad:
            raise CheckpointError(
                f"{model}: tensor name {name[:100]!r} is refused: expected a printable name without '..', at most"
                f" {_MAX_TENSOR_NAME_LENGTH} characters"
            )


def _collect_warnings(
    planner: TensorPlanner,
    base: ModelListing | None,
    experts: Sequence[ModelListing],
    checkpoints: Sequence[Checkpoint],
) -> list[str]:
    found = [warning for checkpoint in checkpoints for warning in checkpoint.warnings]
    if planner.untouched:
        first = planner.untouched[0]
        found.append(f"tensors in no expert stay the base's: {len(planner.untouched)}, the first {first}")
    by_dtype: dict[str, list[str]] = {}
    for index, dtype in planner.rounded.items():
        by_dtype.setdefault(dtype, []).append(experts[index].name)
    for dtype, stored in by_dtype.items():
        others = f" and {len(stored) - 1} more" if len(stored) > 1 else ""
        found.append(
            f"{stored[0]}{others}: stored in {dtype}, which rounds the"
            f" base's values; where an entry equals the base rounded to {dtype}, it counts as unchanged"
        )
    found += [
        f"arithmetic: {count} tensors are merged in float64, because {name} with these parameters multiplies the"
        " rounding of float32 until it is visible"
        for name, count in planner.amplifying.items()
    ]
    if planner.num_rounded_float64:
        found.append(
            f"arithmetic: float32: {planner.num_rounded_float64} tensors have inputs in F64, and differences below 1e-7"
            " of their size are lost; remove the key to merge these tensors in float64"
        )
    extra = Counter[tuple[str, ...]]()
    for checkpoint in checkpoints:
        names = checkpoint.extra_names()
        if names:
            extra[tuple(sorted(names, key=natural_key))] += 1
    for names, count in extra.items():
        shown = ", ".join(names[:_MAX_EXTRA_NAMES_SHOWN]) + (", ..." if len(names) > _MAX_EXTRA_NAMES_SHOWN else "")
        who = "an expert has" if count == 1 else f"{count} experts have"
        tensors = "1 tensor" if len(names) == 1 else f"{len(names)} tensors"
        found.append(f"{who} {tensors} that the {'base' if base else 'first model'} does not have; left out: {shown}")
    by_fingerprint: dict[str, list[str]] = {}
    for listing in experts:
        by_fingerprint.setdefault(listing.fingerprint, []).append(listing.name)
    for names in by_fingerprint.values():
        if len(names) > 1:
            others = f" and {len(names) - 2} more" if len(names) > 2 else ""
            found.append(f"identical experts: {names[0]} and {names[1]}{others} have the same weights")
    if base is not None:
        same = [item.name for item in experts if item.fingerprint == base.fingerprint and not is_same_model(item, base)]
        if same:
            found.append(f"{same[0]} has the same weights as the base: its task vector is zero")
    return found
