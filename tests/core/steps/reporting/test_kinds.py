"""Kinds of weights by their names in several families."""

from __future__ import annotations

import pytest

from eigenmerge.core.steps.reporting.kinds import KINDS, depth_of, kind_of, row_of, stack_of


@pytest.mark.parametrize(
    ("name", "kind", "row"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "query", "self_attn.q_proj"),
        ("model.layers.3.self_attn.o_proj.weight", "output", "self_attn.o_proj"),
        ("encoder.layer.2.attention.self.key.weight", "key", "attention.self.key"),
        ("encoder.layer.2.attention.output.dense.weight", "output", "attention.output.dense"),
        ("encoder.layer.2.output.dense.weight", "down", "output.dense"),
        ("encoder.layer.2.intermediate.dense.weight", "up", "intermediate.dense"),
        ("transformer.h.0.attn.c_attn.weight", "qkv", "attn.c_attn"),
        ("transformer.h.0.attn.c_proj.weight", "output", "attn.c_proj"),
        ("transformer.h.0.mlp.c_proj.weight", "down", "mlp.c_proj"),
        ("model.layers.0.mlp.experts.5.gate_proj.weight", "gate", "mlp.experts.*.gate_proj"),
        ("model.layers.0.block_sparse_moe.experts.3.w3.weight", "up", "block_sparse_moe.experts.*.w3"),
        ("encoder.block.0.layer.0.SelfAttention.v.weight", "value", "layer.*.SelfAttention.v"),
        ("model.embed_tokens.weight", "embedding", "model.embed_tokens"),
        ("pooler.dense.weight", "other", "pooler.dense"),
    ],
)
def test_kind_and_row(name: str, kind: str, row: str) -> None:
    assert (kind_of(name), row_of(name)) == (kind, row) and kind in KINDS


def test_stack_and_depth() -> None:
    assert (stack_of("model.layers.3.q.weight"), depth_of("model.layers.3.q.weight")) == ("model.layers", 3)
    assert (stack_of("lm_head.weight"), depth_of("lm_head.weight")) == (None, None)
