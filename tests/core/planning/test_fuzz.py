"""Arbitrary headers and configs give a plan or an Eigenmerge error, no other exception."""

from __future__ import annotations

import pickle
import re
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eigenmerge.core.errors import EigenmergeError
from eigenmerge.core.planning.summary import summarize_plan

FUZZ = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])

values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ADAPTER_KEYS = [
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out", "peft_type", "use_dora",
    "init_lora_weights", "task_type", "modules_to_save", "target_modules",
]  # fmt: skip
MODEL_KEYS = [
    "quantization_config", "text_config", "tie_word_embeddings", "num_hidden_layers", "vocab_size", "torch_dtype",
    "num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim", "layer_types",
]  # fmt: skip
quantization = st.fixed_dictionaries(
    {"quant_method": st.sampled_from(["fp8", "gptq", "modelopt"]) | values}, optional={"weight_block_size": values}
)
parts = st.sampled_from(
    ["model", "layers", "0", "7", "lora_A", "lora_B", "weight", "default", "lm_head", "embed_tokens", "experts", "bias",
     "attn", "qkv", "base_layer", "modules_to_save", "lora_embedding_A", "base_model", "..", "\u0665", "w"]
)  # fmt: skip
names = st.lists(parts, min_size=1, max_size=6).map(".".join)
shapes = st.lists(st.integers(0, 6), max_size=4).map(tuple)
tensors = st.dictionaries(names, shapes, min_size=1, max_size=6)


def plan_or_refuse(plan_of: Any, text: str, *models: Any) -> None:
    try:
        plan = plan_of(text, *models)
    except EigenmergeError as error:
        assert "\n" not in str(error)
        assert re.search(r"\w", str(error))
    else:
        assert pickle.loads(pickle.dumps(plan)) == plan
        summarize_plan(plan)


@FUZZ
@given(config=st.dictionaries(st.sampled_from(ADAPTER_KEYS), values, max_size=4), more=tensors)
def test_adapters(config: dict[str, Any], more: dict[str, Any], model: Any, adapter: Any, plan_of: Any) -> None:
    at = "base_model.model.layers.0.w"
    lora = adapter("a", {f"{at}.lora_A.weight": (2, 4), f"{at}.lora_B.weight": (4, 2), **more}, config)
    base = model("base", {"layers.0.w.weight": (4, 4), "lm_head.weight": (6, 4)})
    for output in ("", "output: adapter\n"):
        plan_or_refuse(plan_of, f"merge_method: swudi\nbase_model: base\nmodels: [a]\n{output}", base, lora)


@FUZZ
@given(
    config=st.dictionaries(st.sampled_from(MODEL_KEYS), values, max_size=4),
    quantized=st.none() | quantization,
    dtype=st.sampled_from(["F32", "F8_E4M3", "U8"]),
)
def test_model_configs(config: dict[str, Any], quantized: Any, dtype: str, model: Any, plan_of: Any) -> None:
    if quantized is not None:
        config = {**config, "quantization_config": quantized}
    names = {"layers.0.attn.qkv.weight": (12, 4), "layers.1.w.weight": (4, 4), "embed_tokens.weight": (6, 4)}
    models = [model(name, names, dtype=dtype, config=config) for name in ("base", "a")]
    plan_or_refuse(plan_of, "merge_method: swudi\nbase_model: base\nmodels: [a]\nqkv: split\n", *models)
    slices = "slices: [{sources: [{model: a, layer_range: [0, 1]}, {model: base, layer_range: [1, 2]}]}]"
    plan_or_refuse(plan_of, f"merge_method: swudi\nbase_model: base\n{slices}\n", *models)


@FUZZ
@given(base=tensors, expert=tensors, method=st.sampled_from(["swudi", "ties", "linear"]), missing=st.booleans())
def test_names_and_shapes(
    base: dict[str, Any], expert: dict[str, Any], method: str, missing: bool, model: Any, plan_of: Any
) -> None:
    text = f"merge_method: {method}\nbase_model: base\nmodels: [a, b]\nconv: matrix\n" + "missing: base\n" * missing
    models = [model("base", base), model("a", {**base, **expert}), model("b", expert)]
    plan_or_refuse(plan_of, text, *models)
