"""Which weights are stored as float8: linear layers stored (out, in) only."""

from __future__ import annotations

import json
from typing import Any

import pytest

from eigenmerge.core.errors import RecipeError

RECIPE = "merge_method: {method}\nbase_model: base\nmodels: [a]\noutput: {{float8: block}}\n"


def models(model: Any, shapes: dict[str, tuple[int, ...]], config: dict[str, Any]) -> list[Any]:
    return [model(name, shapes, config=config) for name in ("base", "a")]


@pytest.mark.parametrize("method", ["linear", "swudi"])
def test_weights_stored_in_out_keep_their_dtype(model: Any, plan_of: Any, tensors_of: Any, method: str) -> None:
    shapes = {"h.0.attn.c_attn.weight": (32, 96), "h.0.attn.c_attn.bias": (96,), "h.0.mlp.up.weight": (64, 32)}
    plan = plan_of(RECIPE.format(method=method), *models(model, shapes, {"model_type": "x"}))
    found = {name: tensor.out_dtype for name, tensor in tensors_of(plan).items()}
    assert found["h.0.attn.c_attn.weight"] == "F32" and found["h.0.mlp.up.weight"] == "F8_E4M3"
    config = next(json.loads(file.content) for file in plan.side_files if file.name == "config.json")
    assert "h.0.attn.c_attn" in config["quantization_config"]["modules_to_not_convert"]


@pytest.mark.parametrize("method", ["linear", "swudi"])
def test_a_model_with_conv1d_layers_only_is_refused(model: Any, plan_of: Any, method: str) -> None:
    shapes = {"h.0.mlp.c_fc.weight": (32, 128), "h.0.mlp.c_proj.weight": (128, 32)}
    with pytest.raises(RecipeError, match=r"the output has no linear layers to store as float8"):
        plan_of(RECIPE.format(method=method), *models(model, shapes, {"model_type": "gpt2"}))


def test_stacks_stored_in_out_are_refused(model: Any, plan_of: Any) -> None:
    place = "model.layers.0.feed_forward.experts"
    shapes = {f"{place}.gate_up_proj": (4, 32, 96), f"{place}.down_proj": (4, 48, 32)}
    config = {"model_type": "llama4_text", "num_local_experts": 4, "hidden_size": 32}
    with pytest.raises(RecipeError, match=r"down_proj is a stack of experts stored \(in, out\), found \[4, 48, 32\]"):
        plan_of(RECIPE.format(method="linear"), *models(model, shapes, config))
