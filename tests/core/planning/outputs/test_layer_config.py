"""Entries of config.json that describe layers, after a merge of slices."""

from __future__ import annotations

from typing import Any

import pytest

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.planning.outputs.layer_config import config_of_layers

SWAPPED = [0, 1, 1, 2, 3, 5]  # six output layers of a model with six layers; layer 4 is left out


@pytest.mark.parametrize(
    ("key", "value", "changed"),
    [
        ("layer_types", list("abcdef"), list("abbcdf")),
        ("num_key_value_heads", [1, 2, 3, 4, 5, 6], [1, 2, 2, 3, 4, 6]),
        ("block_configs", [{"n": i} for i in range(6)], [{"n": i} for i in SWAPPED]),
        ("hybrid_override_pattern", "M*M*-E", "M**M*E"),
        ("no_rope_layers", [1, 1, 1, 0, 1, 0], [1, 1, 1, 1, 0, 0]),
        ("moe_layer_freq", [0, 1, 1, 0, 1, 1], [0, 1, 1, 1, 0, 1]),
        (
            "attention_types",
            [[["global", "local"], 3]],
            [[["global", "local", "local", "global", "local", "local"], 1]],
        ),
        # indices of layers
        ("moe_layers", [1, 3, 5], [1, 2, 4, 5]),
        ("mlp_only_layers", [4], []),
        ("full_attn_idxs", [2, 4], [3]),
        ("cross_attention_layers", [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),
        # the number of first layers
        ("first_k_dense_replace", 2, 3),
        ("num_dense_layers", 1, 1),
        ("moe_layer_start_index", 1, 1),
        ("moe_layer_end_index", 5, 5),
        # what is no description of layers
        ("mrope_section", [16, 24, 24], [16, 24, 24]),
        ("eos_token_id", [1, 2], [1, 2]),
        ("max_window_layers", 4, 4),  # without sliding windows
        ("decoder_sparse_step", 1, 1),
        ("moe_layer_freq", 1, 1),
        ("vision_config", {"num_hidden_layers": 6, "layers": [1]}, {"num_hidden_layers": 6, "layers": [1]}),
    ],
)
def test_entries_follow_the_layers(key: str, value: Any, changed: Any) -> None:
    found = config_of_layers({"num_hidden_layers": 6, "hidden_size": 6, key: value}, 6, SWAPPED)
    assert found == ({} if changed == value else {key: changed})


def test_indices_that_count_from_one() -> None:
    """Kimi Linear; one of the lists names the last layer."""
    part = {"kda_layers": [1, 2, 3, 5], "full_attn_layers": [4, 6], "head_dim": 6}
    found = config_of_layers({"linear_attn_config": part}, 6, SWAPPED)
    assert found == {"linear_attn_config": {**part, "kda_layers": [1, 2, 3, 4], "full_attn_layers": [5, 6]}}


@pytest.mark.parametrize(
    ("key", "value", "origins"),
    [
        ("first_k_dense_replace", 2, [2, 0, 1]),
        ("num_dense_layers", 1, [0, 1, 0, 1]),
        ("decoder_sparse_step", 2, [0, 1, 1, 2]),
        ("full_attention_interval", 4, [1, 2, 3]),
        ("attn_layer_period", 2, [1, 2]),
        ("moe_layer_interval", 3, [0, 2]),
        ("global_attn_every_n_layers", 3, [0, 2]),
        ("num_kv_shared_layers", 2, [4, 5, 0]),
    ],
)
def test_what_cannot_describe_the_new_layers_is_refused(key: str, value: int, origins: list[int]) -> None:
    with pytest.raises(RecipeError, match=f"{key} in config.json is {value}") as caught:
        config_of_layers({key: value}, 6, origins)
    assert "\n" not in str(caught.value)


def test_a_list_of_layers_replaces_the_period_that_it_was_made_of() -> None:
    config = {"full_attention_interval": 2, "layer_types": ["a", "b"] * 3}
    assert config_of_layers(config, 6, [1, 2]) == {"layer_types": ["b", "a"]}
    with pytest.raises(RecipeError, match="full_attention_interval"):
        config_of_layers({"full_attention_interval": 2}, 6, [1, 2])


def test_layers_that_keep_their_kind_need_no_change() -> None:
    config = {"decoder_sparse_step": 2, "first_k_dense_replace": 2, "full_attention_interval": 2}
    assert config_of_layers(config, 6, [0, 1, 2, 3, 2, 3, 4, 5]) == {}
    assert config_of_layers({"num_kv_shared_layers": 2}, 6, [0, 1, 4, 5]) == {}
    assert config_of_layers({"first_k_dense_replace": 2}, 6, [0]) == {}
    assert config_of_layers({**config, "moe_layers": [7]}, 6, list(range(6))) == {}
