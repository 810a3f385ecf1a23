"""Quantized weights are recognized by their tensors, and integers of plain models are not taken for weights."""

from __future__ import annotations

import pytest

from eigenmerge.core.listing import TensorSource
from eigenmerge.core.planning.inputs.packed import find_packed_weight

Stored = dict[str, tuple[str, tuple[int, ...]]]


def sources(tensors: Stored) -> dict[str, TensorSource]:
    return {name: TensorSource("/m", 0, 1, dtype, shape) for name, (dtype, shape) in tensors.items()}


def below(module: str, **tensors: tuple[str, tuple[int, ...]]) -> Stored:
    return {f"{module}.{name.replace('__', '.')}": stored for name, stored in tensors.items()}


MODULE = "model.layers.0.mlp.up_proj"
EXPERTS = "model.layers.0.mlp.experts"
PACKED: dict[str, Stored] = {
    "GPTQ": below(
        MODULE, qweight=("I32", (2, 32)), qzeros=("I32", (1, 4)), scales=("F16", (1, 32)), g_idx=("I32", (16,))
    ),
    "AWQ or GPTQ": below(MODULE, qweight=("I32", (16, 4)), qzeros=("I32", (1, 4)), scales=("F16", (1, 32))),
    "bitsandbytes": below(
        MODULE, weight=("U8", (256, 1)), weight__absmax=("U8", (8,)), weight__quant_map=("F32", (16,))
    ),
    "bitsandbytes, int8": below(MODULE, weight=("I8", (32, 16)), SCB=("F32", (32,))),
    "compressed-tensors": below(
        MODULE, weight_packed=("I32", (32, 2)), weight_scale=("BF16", (32, 1)), weight_shape=("I64", (2,))
    ),
    "NVFP4": below(
        MODULE,
        weight=("U8", (32, 8)),
        weight_scale=("F8_E4M3", (32, 1)),
        weight_scale_2=("F32", ()),
        input_scale=("F32", ()),
    ),
    "MXFP4": below(
        EXPERTS,
        gate_up_proj_bias=("BF16", (4, 32)),
        gate_up_proj_blocks=("U8", (4, 32, 1, 16)),
        gate_up_proj_scales=("U8", (4, 32, 1)),
    ),
    "MLX": below(MODULE, weight=("U32", (32, 2)), scales=("F16", (32, 1)), biases=("F16", (32, 1))),
    "HQQ": below(MODULE, W_q=("U8", (16, 16)), scale=("F16", (8, 1)), zero=("F16", (8, 1))),
    "EETQ": below(MODULE, weight=("I8", (32, 16)), weight_scales=("F16", (32,))),
    "AQLM": below(MODULE, codes=("I16", (32, 2, 1)), codebooks=("F16", (1, 256, 1, 8)), scales=("F16", (32, 1, 1, 1))),
    "EXL3": below(MODULE, trellis=("I16", (1, 2, 64)), suh=("F16", (16,)), svh=("F16", (32,))),
    "EXL2": below(MODULE, q_weight=("I32", (2, 32)), q_scale=("I32", (1, 4)), q_groups=("I16", (2,))),
    "Marlin": below(MODULE, B=("I32", (1, 64)), s=("F16", (1, 32))),
    "VPTQ": below(MODULE, indices=("I32", (1, 8, 4)), centroids__weight=("F16", (1, 32)), weight_scale=("F16", (16,))),
    "quanto": below(MODULE, weight___data=("I8", (32, 16)), weight___scale=("F16", (32, 1))),
    "torchao": below(MODULE, _weight_qdata=("I8", (32, 16)), _weight_scale=("F32", (32, 1))),
    "sparse": below(MODULE, compressed=("F16", (256,)), bitmask=("U8", (32, 2)), row_offsets=("I64", (32,))),
    "4-bit floats": below(MODULE, weight=("F4", (32, 16))),
    "6-bit floats": below(MODULE, weight=("F6_E2M3", (32, 16))),
    "MXFP8": below(MODULE, weight=("F8_E4M3", (32, 32)), weight_scale=("F8_E8M0", (32, 1))),
    "float8, scale of another name": below(MODULE, weight=("F8_E4M3", (32, 16)), scale=("F32", (1, 1))),
    "int8 stack of a mixture": below(EXPERTS, gate_up_proj=("I8", (4, 32, 16)), gate_up_proj_scale=("BF16", (4, 32))),
    "an unknown format": below(MODULE, blob=("U8", (32, 9)), bias=("F32", (32,))),
    "no scale": below(MODULE, weight=("I8", (32, 16))),
}


@pytest.mark.parametrize("form", PACKED)
def test_packed_weights_are_found(form: str) -> None:
    plain = {"model.embed_tokens.weight": ("BF16", (50, 16)), "model.layers.0.mlp.down_proj.weight": ("BF16", (16, 32))}
    found = find_packed_weight(sources({**plain, **PACKED[form]}))
    assert found is not None and "quantized weights" in found
    assert found.startswith(("model.layers.0.mlp.up_proj.", "model.layers.0.mlp.experts.gate_up_proj"))
    if form in ("NVFP4", "bitsandbytes"):
        assert found.startswith("model.layers.0.mlp.up_proj.weight is U8")
    label = form.partition(",")[0]
    if label in ("GPTQ", "AWQ or GPTQ", "bitsandbytes", "NVFP4", "MXFP4", "MLX", "HQQ", "EETQ", "AQLM", "EXL2", "EXL3"):
        assert f"({label})" in found


PLAIN: dict[str, Stored] = {
    "BERT": {"embeddings.position_ids": ("I64", (1, 512)), "embeddings.token_type_ids": ("I64", (1, 512))},
    "GPT-2": below("h.0.attn", bias=("U8", (1, 1, 8, 8)), masked_bias=("F32", ()))
    | below("h.0.attn.c_attn", weight=("F32", (4, 12))),
    "GPT-J": below("h.0.attn", bias=("BOOL", (1, 1, 8, 8)), masked_bias=("F32", ()), scale_attn=("F32", ())),
    "CodeGen": below("h.0.attn", causal_mask=("U8", (1, 1, 8, 8)), scale_attn=("F32", ())),
    "Swin": below(
        "l.0.attn", relative_position_index=("I64", (49, 49)), relative_position_bias_table=("F32", (169, 4))
    ),
    "Swin v2": below("l.0.attn", relative_position_index=("I64", (49, 49)), logit_scale=("F32", (4, 1, 1))),
    "converted with int32": below(
        "l.0.attn", relative_position_index=("I32", (49, 49)), logit_scale=("F32", (4, 1, 1))
    ),
    "batch norm": below("bn", weight=("F32", (4,)), running_mean=("F32", (4,)), num_batches_tracked=("I64", ())),
    "hash routing": below(
        "mlp.gate", weight=("BF16", (8, 4)), tid2eid=("I32", (50, 2)), e_score_correction_bias=("F32", (8,))
    ),
    "EAGLE": {"d2t": ("I64", (40,)), "t2d": ("BOOL", (50,)), "fc.weight": ("F16", (4, 8))},
    "pruned": below("q", weight_orig=("F32", (4, 4)), weight_mask=("BOOL", (4, 4))),
    "float8 cast without scales": below("q", weight=("F8_E4M3", (4, 4)), bias=("BF16", (4,)), input_scale=("F32", ())),
    "norm scales": below("norm", scale=("F32", (4,)), steps=("I32", ())),
}


@pytest.mark.parametrize("family", PLAIN)
def test_integers_of_plain_models_are_no_weights(family: str) -> None:
    assert find_packed_weight(sources(PLAIN[family])) is None


def test_a_float8_weight_with_its_scale_is_read() -> None:
    scale = TensorSource("/m", 0, 4, "F32", (1,))
    assert find_packed_weight({"q.weight": TensorSource("/m", 0, 1, "F8_E4M3", (4, 4), scale)}) is None
