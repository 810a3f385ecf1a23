"""`output: {float8: block}` or `channel`: which weights are stored as float8, under which names, and config.json.

block : E4M3 with one scale for each 128 x 128 block, `<weight>_scale_inv`, as DeepSeek publishes its models;
    transformers and vLLM read it as quant_method "fp8"
channel : E4M3 with one scale for each row, `<weight>_scale`, in the form of compressed-tensors, with dynamic activation
    scales for each token
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from math import prod
from typing import Any, cast

from ...errors import RecipeError
from ...formats.digest import hash_json
from ...formats.dtypes import SCALE_BLOCK_SIZE
from ..inputs.layouts.layout import Layout
from ..names import layer_of, tensor_kind, with_layer
from ..plan import Float8Form, TensorPlan
from .tensor_planner import PlannedTensor

_DTYPE = "F8_E4M3"
_VERSION = 1  # of the rounding; part of the keys
_SMALLEST_SIZE = 16  # of a side: float8 kernels need multiples of 16, and smaller weights save nothing
# Readers keep the weights of routers and of other modalities in the model's dtype, as published float8 models do.
_KEPT_MODULE = re.compile(r"(^|[._])(gate|router|wg|vision|visual|vit|audio|image)([._]|$)")
_SWIGLU_GATE = re.compile(r"\.gate_(up_)?proj(\.|$)")
_NUM_EXPERTS_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
_OUTPUT_HEAD = "lm_head"  # a tied head is not stored, and readers would still replace it


def convert_to_float8(
    planned: Sequence[PlannedTensor], form: Float8Form, config: Mapping[str, object] | None, layout: Layout
) -> tuple[list[PlannedTensor], dict[str, object], list[str]]:
    """Return the plan with float8 weights, the quantization_config that readers need, and warnings.

    Linear layers whose weights are stored (in, out) keep the dtype of the model: readers expect scales of (out, in).

    Parameters
    ----------
    layout : of the model that gives the output its names

    Raises
    ------
    RecipeError : no weight can be stored as float8, a stack of experts is stored (in, out), or `channel` with experts
        in one stacked tensor
    """
    if config is None:
        raise RecipeError("output.float8: the base has no config.json, which tells readers that weights are float8")
    router_rows = _expert_counts(config)
    in_out = {with_layer(name, 0) for name in layout.shapes if layer_of(name) is not None and layout.in_out(name)}
    eligible = {item.plan.name for item in planned if _is_eligible(item.plan, router_rows)}
    transposed = {item.plan.name for item in planned if item.plan.name in eligible and _is_in_out(item.plan, in_out)}
    wrong = next((item.plan for item in planned if item.plan.name in transposed and len(item.plan.shape) == 3), None)
    if wrong is not None:
        raise RecipeError(
            f"output.float8: {wrong.name} is a stack of experts stored (in, out), found {list(wrong.shape)}, and"
            " readers of float8 expect (experts, out, in); leave the key out"
        )
    items = [_as_float8(item, form) if item.plan.name in eligible - transposed else item for item in planned]
    converted = [item.plan for item in items if item.plan.float8 is not None]
    if not converted:
        raise RecipeError("output.float8: the output has no linear layers to store as float8; leave the key out")
    stack = next((plan.name for plan in converted if len(plan.shape) == 3), None)
    if form == "channel" and stack is not None:
        raise RecipeError(
            f"output.float8: channel: {stack} is a stack of experts, which compressed-tensors cannot hold; use block"
        )
    ignored = [
        item.plan.name.removesuffix(".weight")
        for item in items
        if item.plan.float8 is None and len(item.plan.shape) == 2 and item.plan.name.endswith(".weight")
        if tensor_kind(item.plan.name, item.plan.shape, "BF16") in ("matrix", "lm_head")
    ]
    return items, _quantization_config(form, list(dict.fromkeys([*ignored, _OUTPUT_HEAD]))), _warnings(converted, form)


def _warnings(converted: Sequence[TensorPlan], form: Float8Form) -> list[str]:
    cut = [
        plan
        for plan in converted
        if any(size > SCALE_BLOCK_SIZE and size % SCALE_BLOCK_SIZE for size in plan.shape[-2:])
    ]
    if form != "block" or not cut:
        return []
    return [
        f"output.float8: block: {len(cut)} weights have sides that {SCALE_BLOCK_SIZE} does not divide, the first is"
        f" {cut[0].name} {list(cut[0].shape)}; their last blocks are smaller, as in DeepSeek's models, but transformers"
        " cannot read these on a CPU and vLLM refuses some; use channel if you need them there"
    ]


def _is_eligible(plan: TensorPlan, router_rows: frozenset[int]) -> bool:
    """Return whether a tensor is the weight of a linear layer inside a layer of the language model."""
    kind = tensor_kind(plan.name, plan.shape, plan.out_dtype)
    if kind not in ("matrix", "expert_stack") or layer_of(plan.name) is None:
        return False
    if kind == "matrix" and not plan.name.endswith(".weight"):
        return False
    if min(plan.shape[-2:]) < _SMALLEST_SIZE or prod(plan.shape) % 4:  # scales start at a multiple of 4 bytes
        return False
    if kind == "matrix" and plan.shape[0] in router_rows and plan.name.endswith(("gate.weight", "router.weight")):
        return False
    return _KEPT_MODULE.search(_SWIGLU_GATE.sub(".", plan.name)) is None


def _is_in_out(plan: TensorPlan, in_out: Set[str]) -> bool:
    """Return whether a weight is stored (in, out).

    Parameters
    ----------
    in_out : names of such weights, with layer 0 for any layer
    """
    return plan.in_out or with_layer(plan.name, 0) in in_out


def _as_float8(item: PlannedTensor, form: Float8Form) -> PlannedTensor:
    plan = replace(item.plan, float8=form, out_dtype=_DTYPE)
    return PlannedTensor(plan, hash_json([item.identity, "float8", form, _VERSION]))


def _expert_counts(config: Mapping[str, object]) -> frozenset[int]:
    parts = [config, *(cast("Mapping[str, object]", part) for part in config.values() if isinstance(part, Mapping))]
    values = (part.get(key) for part in parts for key in _NUM_EXPERTS_KEYS)
    return frozenset(value for value in values if isinstance(value, int))


def _quantization_config(form: Float8Form, ignored: list[str]) -> dict[str, object]:
    if form == "block":
        return {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [SCALE_BLOCK_SIZE, SCALE_BLOCK_SIZE],
            "modules_to_not_convert": ignored,
        }
    number: dict[str, Any] = {"num_bits": 8, "type": "float", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**number, "strategy": "channel", "dynamic": False},
        "input_activations": {**number, "strategy": "token", "dynamic": True},
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "config_groups": {"group_0": group},
        "ignore": ignored,
    }
