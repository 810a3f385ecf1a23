"""Layer and kind of a tensor by its name."""

from __future__ import annotations

import pytest

from eigenmerge.core.planning.names import (
    gradient_position,
    layer_of,
    natural_key,
    stack_depths,
    tensor_kind,
    with_layer,
)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("model.layers.7.mlp.up_proj.weight", ("model.layers", 7)),
        ("model.layers.7.mlp.experts.3.up_proj.weight", ("model.layers", 7)),
        ("encoder.block.2.layer.1.DenseReluDense.wi.weight", ("encoder.block", 2)),
        ("transformer.h.11.attn.c_attn.weight", ("transformer.h", 11)),
        ("layers.0.w", ("layers", 0)),
        ("visual.blocks.31.attn.qkv.weight", ("visual.blocks", 31)),
        ("mm_projector.2.weight", None),
        ("model.norm.weight", None),
        ("lm_head.weight", None),
    ],
)
def test_layers(name: str, found: tuple[str, int] | None) -> None:
    assert layer_of(name) == found


def test_another_layer_has_the_same_name_but_for_its_number() -> None:
    assert with_layer("model.layers.7.mlp.experts.3.w", 12) == "model.layers.12.mlp.experts.3.w"


def test_each_stack_of_layers_has_its_own_depth() -> None:
    names = ["vision.layers.0.w", "vision.layers.1.w", "text.layers.0.w", "text.layers.4.w", "norm"]
    depths = stack_depths(names)
    assert depths == {"vision.layers": 2, "text.layers": 5}
    assert [gradient_position(name, depths) for name in names] == [0, 1, 0, 1, 0]
    assert gradient_position("only.layers.0.w", {"only.layers": 1}) == 1


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "kind"),
    [
        ("model.layers.0.mlp.up_proj.weight", (4, 4), "BF16", "matrix"),
        ("model.layers.0.mlp.gate.weight", (8, 4), "F32", "matrix"),
        ("model.embed_tokens.weight", (4, 4), "F32", "embedding"),
        ("bert.embeddings.word_embeddings.weight", (4, 4), "F32", "embedding"),
        ("bert.embeddings.position_embeddings.weight", (4, 4), "F32", "embedding"),
        ("text_model.embeddings.token_embedding.weight", (4, 4), "F32", "embedding"),
        ("transformer.wpe.weight", (4, 4), "F32", "embedding"),
        ("shared.weight", (4, 4), "F32", "embedding"),
        ("lm_head.weight", (4, 4), "F32", "lm_head"),
        ("output.weight", (4, 4), "F32", "lm_head"),
        ("cls.predictions.decoder.weight", (4, 4), "F32", "lm_head"),
        ("bert.encoder.layer.0.output.dense.weight", (4, 4), "F32", "matrix"),
        ("model.layers.0.attention.output.weight", (4, 4), "F32", "matrix"),
        ("lm_head.bias", (4,), "F32", "vector"),
        ("model.norm.weight", (4,), "F32", "vector"),
        ("logit_scale", (), "F32", "vector"),
        ("backbone.layers.0.mixer.A_log", (8, 4), "F32", "vector"),
        ("layers.0.ss2d.A_logs", (8, 4), "F32", "vector"),
        ("layers.0.catalog", (8, 4), "F32", "matrix"),
        ("vision_model.embeddings.patch_embedding.weight", (4, 3, 2, 2), "F32", "conv"),
        ("visual.patch_embed.proj.weight", (4, 3, 2, 2, 2), "F32", "conv"),
        ("backbone.layers.0.mixer.conv1d.weight", (4, 1, 4), "F32", "conv"),
        ("vit.pos_embed", (1, 5, 4), "F32", "vector"),
        ("vit.cls_token", (1, 1, 4), "F32", "vector"),
        ("model.layers.0.mlp.experts.gate_up_proj", (8, 4, 6), "BF16", "expert_stack"),
        ("model.layers.0.mlp.experts.gate_up_proj_bias", (8, 6), "BF16", "vector"),
        ("embeddings.position_ids", (1, 512), "I64", "buffer"),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", (4,), "F32", "buffer"),
        ("h.0.attn.bias", (1, 1, 4, 4), "F32", "buffer"),
        ("h.0.attn.c_attn.bias", (12,), "F32", "vector"),
        ("visual.attn.bias", (12,), "F32", "vector"),
        ("x.weight", (0, 4), "F32", "empty"),
        ("x.weight", (4, 4), "U8", "buffer"),
    ],
)
def test_kinds(name: str, shape: tuple[int, ...], dtype: str, kind: str) -> None:
    assert tensor_kind(name, shape, dtype) == kind


def test_natural_key_orders_2_before_10() -> None:
    names = ["a.10.w", "a.2.w", "a.2.b", "a", "b.1"]
    assert sorted(names, key=natural_key) == ["a", "a.2.b", "a.2.w", "a.10.w", "b.1"]
