"""Two configs of one architecture, and of two."""

from __future__ import annotations

from typing import Any

import pytest

from eigenmerge.core.errors import CheckpointError
from eigenmerge.core.planning.inputs.checks.architecture import check_architectures, find_differences

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
QWEN = {"model_type": "qwen2", "hidden_size": 8, "num_attention_heads": 2, "rope_theta": 1e6, "hidden_act": "silu"}
VISION = {"model_type": "v", "hidden_size": 4, "num_attention_heads": 1, "hidden_act": "quick_gelu"}


def keys(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    assert [item.key for item in find_differences(other, one)] == [item.key for item in find_differences(one, other)]
    return [item.key for item in find_differences(one, other)]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "mistral"),
        ("architectures", ["MistralForCausalLM"]),
        ("num_hidden_layers", 3),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 4),
        ("hidden_act", "gelu"),
        ("rms_norm_eps", 1e-6),
        ("rope_theta", 500000.0),
    ],
)
def test_what_changes_the_function_of_the_same_weights(key: str, value: Any) -> None:
    assert keys(LLAMA, LLAMA | {key: value}) == [key]


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": ["LlamaModel"]},
        {"architectures": ["LlamaForSequenceClassification"], "num_labels": 2, "id2label": {"0": "a"}},
        {"architectures": ["LLaMAForCausalLM"], "torch_dtype": "bfloat16", "dtype": "float16"},
        {"_name_or_path": "x", "transformers_version": "4.1", "use_cache": False, "max_position_embeddings": 99},
        {"eos_token_id": [1, 2], "pad_token_id": 0, "vocab_size": 32002, "tie_word_embeddings": True},
        {"attention_dropout": 0.1, "initializer_range": 0.5, "pretraining_tp": 2, "unsloth_version": "1"},
        {"quantization_config": {"bits": 4}, "mm_vision_tower": "x", "auto_map": {"AutoModel": "y"}},
        {"rope_scaling": {"rope_type": "default"}},
        {"rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}},
        {"hidden_act": "swish"},
        {"rms_norm_eps": 0.00001, "head_dim": None},
    ],
)
def test_what_does_not(change: dict[str, Any]) -> None:
    assert keys(LLAMA, LLAMA | change) == []


def test_names_of_rotary_settings_in_two_versions() -> None:
    bare = {key: value for key, value in LLAMA.items() if not key.startswith("rope")}
    new = bare | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    assert keys(LLAMA, new) == []
    assert keys(LLAMA, bare) == []
    assert keys(LLAMA | {"rope_theta": 1e6}, new) == ["rope_theta"]
    scaled = LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}}
    assert keys(scaled, bare | {"rope_parameters": {"rope_type": "linear", "factor": 4, "rope_theta": 1e4}}) == []
    assert keys(bare, scaled) == ["rope_type"]
    assert keys(scaled, LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}) == ["rope_scaling.factor"]
    gemma = {"model_type": "gemma3_text", "rope_theta": 1e6, "rope_local_base_freq": 1e4}
    by_layer = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e5, "rope_type": "default"}}
    assert keys(gemma, {"model_type": "gemma3_text", "rope_parameters": by_layer}) == ["sliding_attention.rope_theta"]
    neox = {"model_type": "gpt_neox", "rotary_emb_base": 10000, "rotary_pct": 0.25}
    assert keys(neox, {"model_type": "gpt_neox", "rope_parameters": {"partial_rotary_factor": 0.5}}) == [
        "partial_rotary_factor"
    ]


@pytest.mark.parametrize(
    "composite",
    [
        {"model_type": "qwen2_vl", **{k: v for k, v in QWEN.items() if k != "model_type"}, "vision_config": VISION},
        {"model_type": "qwen2_vl", "text_config": QWEN | {"model_type": "qwen2_vl_text"}, "vision_config": VISION},
        {"model_type": "llava", "text_config": QWEN, "vision_config": VISION, "hidden_size": 99},
        {"model_type": "internvl_chat", "llm_config": QWEN, "vision_config": VISION},
        {"model_type": "qwen2_5_omni", "thinker_config": {"text_config": QWEN, "vision_config": VISION}},
        {"model_type": "qwen2_5_vl", "text_config": {k: QWEN[k] for k in ("hidden_size",)}, "vision_config": VISION},
    ],
)
def test_a_text_expert_on_a_vision_language_base(composite: dict[str, Any]) -> None:
    assert keys(composite, QWEN) == []
    assert keys(composite, LLAMA)[0] == "model_type"
    assert "hidden_size" in keys(composite, QWEN | {"hidden_size": 16})


def test_a_tower_of_a_model_with_two() -> None:
    clip = {"model_type": "clip", "text_config": QWEN | {"model_type": "clip_text_model"}, "vision_config": VISION}
    assert keys(clip, VISION | {"model_type": "clip_vision_model"}) == []
    assert keys(clip, VISION | {"model_type": "clip_vision_model", "hidden_act": "gelu"}) == ["hidden_act"]
    assert keys(clip, QWEN | {"model_type": "clip_text_model"}) == []
    assert keys(clip, clip | {"vision_config": VISION | {"hidden_act": "gelu"}}) == ["vision_config.hidden_act"]


def test_the_error_names_both_values_and_the_recipe_can_allow_it(model: Any, plan_of: Any, llama_tensors: Any) -> None:
    base = model("base", llama_tensors(), config=LLAMA)
    expert = model("a", llama_tensors(), config=LLAMA | {"rope_theta": 5e5, "sliding_window": 8})
    text = "merge_method: swudi\nbase_model: base\nmodels: [a]\n"
    with pytest.raises(CheckpointError, match=r"rope_theta is 10000.0 in base and 500000.0 in a; .*allow_mixed"):
        plan_of(text, base, expert)
    plan = plan_of(text + "allow_mixed_architectures: true\n", base, expert)
    assert any("rope_theta is 10000.0 in base" in warning for warning in plan.warnings)


def test_shorter_attention_is_a_warning(model: Any) -> None:
    one, other = (model(name, {}, config=LLAMA | {"sliding_window": size}) for name, size in (("a", 8), ("b", 4)))
    (warning,) = check_architectures(one, [other], allow_mixed=False, by_layers=False)
    assert "sliding_window is 8 in a and 4 in b" in warning


def test_slices_may_take_layers_of_models_of_other_depth(model: Any) -> None:
    one, other = model("a", {}, config=LLAMA), model("b", {}, config=LLAMA | {"num_hidden_layers": 3})
    assert check_architectures(one, [other], allow_mixed=False, by_layers=True) == []
    with pytest.raises(CheckpointError, match="num_hidden_layers is 2 in a and 3 in b"):
        check_architectures(one, [other], allow_mixed=False, by_layers=False)


def test_adapters_and_models_without_config_are_not_compared(model: Any, adapter: Any) -> None:
    base = model("base", {}, config=LLAMA)
    experts = [adapter("a", {}), model("b", {})]
    assert check_architectures(base, experts, allow_mixed=False, by_layers=False) == []
    assert check_architectures(model("c", {}), [base], allow_mixed=False, by_layers=False) == []
