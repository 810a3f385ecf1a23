"""What the shapes of a model show: stacks and convolution kernels, routers, orientation."""

from __future__ import annotations

import pytest

from eigenmerge.core.planning.inputs.layouts.layout import Layout
from eigenmerge.core.planning.inputs.layouts.mixtures import expert_counts
from eigenmerge.core.planning.inputs.layouts.stacks import Stack

AT = "model.layers.0"


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        (f"{AT}.block_sparse_moe.input_linear.weight", (8, 12, 5), "expert_stack"),
        (f"{AT}.self_attention.experts.output_linear.weight", (8, 5, 6), "expert_stack"),
        (f"{AT}.mlp.switch_mlp.up_proj.weight", (8, 6, 5), "expert_stack"),
        (f"{AT}.ffn.experts.mlp.w1", (48, 5), "expert_stack"),
        (f"{AT}.mamba.conv1d.weight", (8, 1, 4), "conv"),  # as many channels as experts
        ("encoder.conv1.weight", (8, 6, 3), "conv"),
        ("vision.patch_embed.proj.weight", (8, 6, 3), "conv"),
        ("embeddings.class_token", (1, 1, 5), "vector"),
    ],
)
def test_a_stack_is_told_from_a_kernel(name: str, shape: tuple[int, ...], kind: str) -> None:
    layout = Layout({name: shape}, {"num_local_experts": 8, "hidden_size": 5})
    assert layout.kind(name, shape, "BF16") == kind


def test_the_router_shows_the_number_of_experts_without_a_config() -> None:
    shapes = {f"{AT}.moe.gate.weight": (4, 5), f"{AT}.moe.up_proj.weight": (4, 6, 5), f"{AT}.moe.router_bias": (4,)}
    layout = Layout(shapes, None)
    kinds = [layout.kind(name, shape, "F32") for name, shape in shapes.items()]
    assert kinds == ["router", "expert_stack", "router_vector"]
    assert layout.stack(f"{AT}.moe.up_proj.weight") == Stack(4)


def test_two_projections_of_fitting_shapes_are_stacks_without_config_and_router() -> None:
    at = f"{AT}.block_sparse_moe"
    layout = Layout({f"{at}.input_linear.weight": (4, 32, 16), f"{at}.output_linear.weight": (4, 16, 16)}, None)
    assert layout.stack(f"{at}.input_linear.weight") == Stack(4, "concatenated")
    assert layout.stack(f"{at}.output_linear.weight") == Stack(4)
    assert Layout({"a.fc1.weight": (4, 5, 3), "a.fc2.weight": (6, 7, 3)}, None).mixtures == []


def test_a_shared_expert_and_its_gate_are_no_router() -> None:
    shapes = {
        f"{AT}.mlp.gate.weight": (4, 5),
        f"{AT}.mlp.shared_expert_gate.weight": (1, 5),
        f"{AT}.mlp.shared_expert.gate_proj.weight": (6, 5),
        **{f"{AT}.mlp.experts.{i}.gate_proj.weight": (6, 5) for i in range(4)},
    }
    layout = Layout(shapes, {"num_experts": 4})
    assert [name for name, shape in shapes.items() if layout.kind(name, shape, "F32") == "router"] == [
        f"{AT}.mlp.gate.weight"
    ]


@pytest.mark.parametrize(
    ("first", "down", "family", "expected"),
    [
        ((4, 12, 5), (4, 5, 6), {}, Stack(4, "concatenated", False)),
        ((4, 5, 12), (4, 6, 5), {}, Stack(4, "concatenated", True)),
        ((4, 5, 12), (4, 6, 5), {"model_type": "gpt_oss"}, Stack(4, "interleaved", True)),
        ((4, 10, 5), (4, 5, 5), {"model_type": "llama4"}, Stack(4, "concatenated", False)),  # shapes before families
        ((4, 6, 5), (4, 5, 6), {"hidden_size": 5}, Stack(4)),  # one projection, without a gate
        ((4, 5, 6), (4, 6, 5), {"hidden_size": 5}, Stack(4, None, True)),
    ],
)
def test_shapes_show_how_a_stack_is_divided(
    first: tuple[int, ...], down: tuple[int, ...], family: dict[str, object], expected: Stack
) -> None:
    names = (f"{AT}.mlp.experts.gate_up_proj", f"{AT}.mlp.experts.down_proj")
    layout = Layout(dict(zip(names, (first, down), strict=True)), {"num_experts": 4, **family})
    assert layout.stack(names[0]) == expected
    assert layout.in_out(names[1]) == expected.in_out


def test_numbers_of_experts_in_a_config() -> None:
    config = {
        "num_experts_per_tok": 2,
        "n_shared_experts": 3,
        "text_config": {"n_routed_experts": 64, "moe_num_experts": [16, 32], "expert_layer_period": 5},
    }
    assert expert_counts(config) == {64, 16, 32}


@pytest.mark.parametrize(
    ("shapes", "config", "found"),
    [
        ({"h.0.mlp.c_fc.weight": (4, 16), "h.0.mlp.c_proj.weight": (16, 4)}, {"model_type": "gpt2"}, True),
        ({"h.0.mlp.c_fc.weight": (16, 4), "h.0.mlp.c_fc.bias": (16,)}, {"model_type": "gpt2"}, False),  # nanoGPT
        ({"h.0.mlp.c_fc.weight": (16, 4), "h.0.mlp.c_fc.bias": (16,)}, {"model_type": "gpt_bigcode"}, False),
        ({"h.0.mlp.c_fc.weight": (4, 16), "h.0.mlp.c_fc.bias": (16,)}, None, True),
        ({"h.0.attn.c_proj.weight": (4, 4), "h.0.attn.c_attn.weight": (4, 12)}, None, True),
        ({"h.0.attn.c_proj.weight": (4, 4), "h.0.attn.c_attn.weight": (12, 4)}, {"model_type": "qwen"}, False),
        ({"layers.0.proj_in.weight": (3, 7), "layers.0.proj_in.bias": (7,)}, None, True),
        ({"visual.proj": (4, 3)}, None, True),
        ({"text_projection.weight": (4, 3)}, {"model_type": "clip"}, False),
        ({"params.dense.kernel": (4, 3)}, None, True),
        ({"layers.0.up_proj.weight": (7, 3)}, {"model_type": "llama"}, False),
    ],
)
def test_orientation(shapes: dict[str, tuple[int, ...]], config: dict[str, object] | None, found: bool) -> None:
    assert Layout(shapes, config).in_out(next(iter(shapes))) == found
