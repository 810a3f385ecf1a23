"""Convert a plan to one whose output is a PEFT adapter: factors of each merged weight, nothing of the base.

The row and column spaces of the experts' factors contain the merged delta, so rank = sum of ranks represents it
exactly. With a smaller rank, chosen by the user, the truncation error is reported after the merge. Weights that no
adapter changes, or that keep the base's values, are not written. The rank is fixed before weights are read: if the
factors are linearly dependent, the merged factors are padded with zeros.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from ...errors import RecipeError
from ...formats.digest import hash_json
from ...formats.dtypes import element_bytes
from ...formats.file_names import ADAPTER_CONFIG_NAME
from ...listing import LoraSource, StackedLora
from ...numerics.method import SpectralMethod
from ...numerics.registry import get_method
from ...numerics.svd.compact_svd import stays_low_rank
from ...recipe.recipe import Recipe
from ..cost import projection as cost
from ..inputs.checkpoint import Checkpoint
from ..keys import calibration_key
from ..plan import AdapterFactors, RunSettings, SideFile, TensorPlan, decompositions
from .adapter_whole_tensors import PREFIX, WholeTensors, plan_whole_tensors
from .tensor_planner import PlannedTensor


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """The tensors of the adapter and its adapter_config.json."""

    tensors: tuple[PlannedTensor, ...]
    config: SideFile


def convert_to_adapter(
    recipe: Recipe,
    settings: RunSettings,
    base_name: str,
    checkpoints: Sequence[Checkpoint],
    planned: Sequence[PlannedTensor],
) -> AdapterPlan:
    """Return the adapter's plan for the planned tensors of a checkpoint.

    Raises
    ------
    RecipeError : an expert is a full model, the method's result is not a low-rank delta, the recipe has slices, or the
        vocabulary changes
    """
    if any(region.slices for region in recipe.regions):
        raise RecipeError("output: adapter: slices change the model's layers; write a checkpoint")
    used = {expert.expert for item in planned for expert in item.plan.experts}  # the base may be listed and not merged
    for index, checkpoint in enumerate(checkpoints):
        if index in used and not checkpoint.on_base:
            raise RecipeError(
                f"output: adapter: {checkpoint.name} is a full model; every expert must be a LoRA adapter of base_model"
            )
    names = {name: own for checkpoint in reversed(checkpoints) for name, own in checkpoint.adapter_names.items()}
    changed = [item for item in planned if item.plan.action != "copy" and item.plan.name in names]
    as_factors = [item for item in changed if all(expert.full is None for expert in item.plan.experts)]
    tensors = [_plan_factors(recipe, settings, item, names[item.plan.name]) for item in as_factors]
    whole = plan_whole_tensors(planned, names, {item.plan.name for item in as_factors})
    tensors += whole.tensors
    if not tensors:
        raise RecipeError(
            "output: adapter: no weight that an adapter changes is merged, so the output is empty; change the rules"
        )
    order = {item.plan.name: position for position, item in enumerate(planned)}
    tensors.sort(key=lambda item: order[item.plan.name])
    transposed = any(checkpoint.sets_fan_in_fan_out for checkpoint in checkpoints)
    config = _config(base_name, checkpoints, tensors, names, whole, transposed)
    return AdapterPlan(tuple(tensors), SideFile(ADAPTER_CONFIG_NAME, None, config))


def _plan_factors(recipe: Recipe, settings: RunSettings, item: PlannedTensor, adapter_name: str) -> PlannedTensor:
    """Return the plan of one weight's factors.

    Parameters
    ----------
    adapter_name : the weight's name in the experts' adapters
    """
    loras = [expert.lora for expert in item.plan.experts if expert.lora is not None]
    if any(isinstance(lora, StackedLora) or lora.is_shared for lora in loras):
        raise RecipeError(
            f"output: adapter: {item.plan.name} is of a mixture whose experts are stacked, or adapted together"
            " (target_parameters); write a checkpoint"
        )
    factors = [lora for lora in loras if isinstance(lora, LoraSource)]
    mean = rewrite_as_mean(item.plan)
    # SVC decomposes the mean in factors: other roundings than those of the whole matrix, so another key
    calibrated = item.plan.spectrum_key if mean is not item.plan and item.plan.calibration else None
    plan = mean if calibrated is None else replace(item.plan, spectrum_key=calibration_key(calibrated, "factors"))
    if plan.views or plan.matrix_shape is not None:
        raise RecipeError(f"output: adapter: {plan.name} is cut into matrices; use qkv: stored")
    if plan.base_rows is not None:
        raise RecipeError(f"output: adapter: {plan.name} changes its rows with tokenizer_source; write a checkpoint")
    rows, columns = plan.shape
    ranks = [lora.down.shape[0] for lora in factors]
    rank = min(sum(ranks), rows, columns, recipe.output.rank or rows)
    module = adapter_name.removesuffix(".weight")
    is_embedding = any(lora.is_embedding for lora in factors)
    stem = f"{PREFIX}{module}.lora_" + ("embedding_{}" if is_embedding else "{}.weight")
    stored = AdapterFactors(rank, stem.format("A"), stem.format("B"), None, factors[0].fan_in_fan_out)
    widest = max((lora.down.dtype for lora in factors), key=element_bytes)
    dtype = widest if recipe.out_dtype is None and recipe.dtype is None else plan.out_dtype
    sides = _decomposed_shapes(plan)
    held = _peak_elements(plan, (rows, columns), ranks) * cost.arithmetic_bytes(settings, plan.arithmetic)
    if not stays_low_rank((rows, columns), ranks * len(sides), True) or _is_iterated(plan):
        # The stacked factors are as large as the weight, or an optimizer works on the dense weight.
        held = max(held, plan.peak_bytes)
    plan = replace(
        plan,
        adapter=stored,
        out_dtype=dtype,
        base=None,
        bytes_read=cost.bytes_read(None, plan.experts, 1 if calibrated is None else 2),
        peak_bytes=held,
        flops=max(0.0, plan.flops - sum(2.0 * min(inner, sum(ranks)) * prod(plan.shape) for _, inner in sides)),
    )
    return PlannedTensor(plan, hash_json([item.identity, plan.parameters, dtype, rank, stored.down, stored.up]))


def _peak_elements(plan: TensorPlan, shape: tuple[int, int], ranks: Sequence[int]) -> int:
    """Return the elements held at the peak: the stacked factors, orthonormalized in float64, and rank x rank matrices.

    Measured with 8 experts of rank 16: 8 to 11 times the stacked factors, 13 times with SVC.
    """
    sides = _decomposed_shapes(plan)
    stacked = sum(ranks) * len(sides)  # the factors of every side are stacked
    factors = (16 if plan.calibration else 14) * stacked * sum(shape) + 24 * stacked * stacked
    method = get_method(plan.method) if plan.method is not None else None
    if not isinstance(method, SpectralMethod):
        return factors
    # minus the dense delta, which the method's projection includes and an adapter output does not compute
    return max(factors, *(method.peak_elements(side, ranks, True) - prod(shape) for side in sides))


def _decomposed_shapes(plan: TensorPlan) -> list[tuple[int, int]]:
    """Return the shape of the matrices that each side of a weight decomposes; its own where there is no spectrum."""
    rows, columns = plan.shape
    planned = decompositions(plan, None)
    return [(columns, rows) if one.over_outputs else (rows, columns) for one in planned] or [(rows, columns)]


def _is_iterated(plan: TensorPlan) -> bool:
    """Return whether the decomposition is the result of an optimizer, which is dense for low-rank experts too."""
    method = get_method(plan.method) if plan.method is not None else None
    if not isinstance(method, SpectralMethod):
        return False
    decomposition = method.decomposition(method.Parameters.model_validate(dict(plan.parameters)))
    return str(decomposition["kind"]).endswith("_iterate")


def rewrite_as_mean(plan: TensorPlan) -> TensorPlan:
    """Return a direct method that is a weighted sum of deltas as a scaled mean, which is exact in factors.

    Other plans are returned as they are. The calibration of a direct method is left out: it follows the mean.

    Raises
    ------
    RecipeError : another direct method
    """
    if plan.method is None or isinstance(get_method(plan.method), SpectralMethod):
        return plan
    weights = [_number(expert.parameters.get("weight", 1.0)) for expert in plan.experts]
    parameters, count, total = plan.parameters, len(weights), sum(weights)
    if plan.method == "average":
        scale = _number(parameters["scale"])
    elif plan.method == "task_arithmetic":
        scale = _number(parameters["lambda"]) * _number(parameters["scale"]) * count
        scale = scale / total if parameters["normalize"] and abs(total) >= 1e-8 else scale
    elif plan.method == "linear" and parameters["normalize"] and total != 0:
        scale = count / total
    else:
        raise RecipeError(
            f"output: adapter: {get_method(plan.method).name} does not give a low-rank delta of {plan.name}; use a"
            " spectral method, task_arithmetic or average, or write a checkpoint"
        )
    experts = tuple(
        replace(expert, parameters={"weight": weight}) for expert, weight in zip(plan.experts, weights, strict=True)
    )
    return replace(
        plan,
        action="mean",
        method=None,
        parameters={"scale": scale},
        experts=experts,
        calibration={},
        spectrum_key=None,
    )


def _number(value: object) -> float:
    assert isinstance(value, (int, float)), value
    return float(value)


def _config(
    base_name: str,
    checkpoints: Sequence[Checkpoint],
    tensors: Sequence[PlannedTensor],
    names: Mapping[str, str],
    whole: WholeTensors,
    transposed: bool,
) -> bytes:
    """Return adapter_config.json with lora_alpha = r for every module: scaling 1, because the factors include it."""
    modules = {
        names[item.plan.name].removesuffix(".weight"): item.plan.adapter.rank
        for item in tensors
        if item.plan.adapter is not None and item.plan.adapter.down is not None
    }
    rank = max(modules.values(), default=1)
    pattern = {f"^{_escape_dots(name)}": own_rank for name, own_rank in modules.items() if own_rank != rank}
    configs = [item.listing.adapter.config for item in checkpoints if item.listing.adapter is not None]
    tasks = {str(config.get("task_type")) for config in configs}
    content: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": configs[0].get("task_type") if len(tasks) == 1 else None,
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": sorted(modules),
        "modules_to_save": sorted(whole.modules) or None,
        "fan_in_fan_out": transposed,
        "lora_dropout": 0.0,
        "bias": whole.bias,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    return (json.dumps(content, indent=2) + "\n").encode()


def _escape_dots(name: str) -> str:
    return name.replace(".", r"\.")
