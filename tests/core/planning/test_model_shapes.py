"""Shapes from a configuration are those of the model that transformers makes of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.planning.model_shapes import FAMILIES, NAMED, ModelShape, find_shape, shape_listing

SMALL = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "moe_intermediate_size": 24, "num_local_experts": 4, "num_experts": 4,
    "n_routed_experts": 4, "n_shared_experts": 2, "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 12,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6, "n_group": 1, "topk_group": 1,
}  # fmt: skip
PARAMETERS = {  # of the published models, in units of 1e9
    "llama-1b": 1.236, "llama-8b": 8.030, "llama-70b": 70.55, "llama-405b": 405.9, "mistral-7b": 7.248,
    "qwen2.5-7b": 7.616, "qwen2.5-72b": 72.71, "qwen3-8b": 8.191, "qwen3-30b-a3b": 30.53, "mixtral-8x7b": 46.70,
    "deepseek-v3": 671.0,
}  # fmt: skip


def transformers_model(config: dict[str, Any]) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(config)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_transformers(family: str) -> None:
    config = {"model_type": family, **SMALL}
    model = transformers_model(config)
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = ModelShape("small", config).tensors()
    assert sum(map(math.prod, found.values())) == sum(map(math.prod, state.values()))
    # Stacks of experts have other names in the files than in memory; all other names are equal.
    plain = {name: shape for name, shape in found.items() if "experts" not in name and "moe.gate" not in name}
    assert plain.items() <= state.items()


@pytest.mark.parametrize(
    ("flag", "family"), [("attention_bias", "llama"), ("mlp_bias", "llama"), ("attention_bias", "qwen3")]
)
def test_biases(flag: str, family: str) -> None:
    config = {"model_type": family, **SMALL, flag: True}
    state = {name: tuple(tensor.shape) for name, tensor in transformers_model(config).state_dict().items()}
    assert ModelShape("small", config).tensors() == state


@pytest.mark.parametrize("name", PARAMETERS)
def test_named_shapes_have_the_published_size(name: str) -> None:
    found = sum(map(math.prod, find_shape(name).tensors().values()))
    assert found / 1e9 == pytest.approx(PARAMETERS[name], rel=1e-3)
    assert set(PARAMETERS) <= set(NAMED)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"model_type": "llama", "hidden_size": 8}, "vocab_size is None; expected a positive number"),
        ({**SMALL, "model_type": "llama", "hidden_size": "8"}, "hidden_size is '8'"),
        ({**SMALL, "model_type": "deepseek_v3", "kv_lora_rank": -1}, "kv_lora_rank is -1"),
    ],
)
def test_what_is_no_shape_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ModelShape("x.json", config)


def test_adapters_change_every_matrix_of_the_blocks_but_routers() -> None:
    listing = shape_listing(ModelShape("small", {"model_type": "qwen3_moe", **SMALL}), "base+a", 2)
    assert listing.adapter is not None
    names = {name.split(".lora_")[0].removeprefix("base_model.model.") + ".weight" for name in listing.adapter.tensors}
    matrices = {name for name, source in listing.tensors.items() if ".layers." in name and len(source.shape) == 2}
    assert names == {name for name in matrices if not name.endswith("mlp.gate.weight")}
