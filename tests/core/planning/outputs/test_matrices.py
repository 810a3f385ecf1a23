"""The matrices of a stored tensor."""

from __future__ import annotations

import pytest

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.planning.outputs.matrices import matrices_of

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 8}


def test_a_2d_weight_is_one_matrix() -> None:
    found = matrices_of("w.weight", (3, 5), "matrix", False, None)
    assert found.shapes((3, 5)) == [(3, 5)]
    assert found.matrix_shape is None


def test_a_stack_is_one_matrix_per_expert() -> None:
    found = matrices_of("mlp.experts.down_proj", (3, 4, 5), "expert_stack", False, None)
    assert found.matrix_shape is None
    assert [(cut.index, cut.start, cut.stop) for cut in found.cuts] == [(0, 0, 4), (1, 0, 4), (2, 0, 4)]
    assert found.shapes((3, 4, 5)) == [(4, 5)] * 3


def test_a_convolution_kernel_is_one_matrix_out_by_in_times_kernel() -> None:
    assert matrices_of("conv.weight", (6, 3, 2, 2), "conv", False, None).shapes((6, 3, 2, 2)) == [(6, 12)]


@pytest.mark.parametrize(
    ("name", "shape", "config", "cuts"),
    [
        ("visual.blocks.0.attn.qkv.weight", (24, 8), None, [("q", 0, 8, 0), ("k", 8, 16, 0), ("v", 16, 24, 0)]),
        ("attn.in_proj_weight", (24, 8), None, [("q", 0, 8, 0), ("k", 8, 16, 0), ("v", 16, 24, 0)]),
        ("self_attn.qkv_proj.weight", (16, 8), HEADS, [("q", 0, 8, 0), ("k", 8, 12, 0), ("v", 12, 16, 0)]),
        ("h.0.attn.c_attn.weight", (8, 24), "in_out", [("q", 0, 8, 1), ("k", 8, 16, 1), ("v", 16, 24, 1)]),
    ],
)
def test_fused_qkv_is_cut(
    name: str, shape: tuple[int, int], config: dict[str, object] | str | None, cuts: list[tuple[str, int, int, int]]
) -> None:
    in_out, config = config == "in_out", config if isinstance(config, dict) else None
    found = matrices_of(name, shape, "matrix", True, config, in_out=in_out)
    assert [(cut.label, cut.start, cut.stop, cut.axis) for cut in found.cuts] == cuts
    assert sum(rows * columns for rows, columns in found.shapes(shape)) == shape[0] * shape[1]
    assert matrices_of(name, shape, "matrix", False, config).cuts == ()


def test_only_fused_weights_are_cut() -> None:
    assert matrices_of("self_attn.q_proj.weight", (24, 8), "matrix", True, None).cuts == ()


def test_qkv_interleaved_by_head_cannot_be_cut() -> None:
    with pytest.raises(RecipeError, match="head by head"):
        matrices_of("attention.query_key_value.weight", (24, 8), "matrix", True, None)
    with pytest.raises(RecipeError, match="neither the heads"):
        matrices_of("attn.qkv.weight", (25, 8), "matrix", True, None)
