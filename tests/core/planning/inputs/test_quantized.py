"""Quantized checkpoints: float8 with exact scales is read, everything else is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from eigenmerge.core.errors import CheckpointError, EigenmergeError
from eigenmerge.core.listing import TensorSource
from eigenmerge.core.planning.inputs.quantized import remove_quantization, select_weights, stores_float8

SWUDI = "merge_method: swudi\nbase_model: base\n"


def refused(kind: type[EigenmergeError], call: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


LINEAR = {"q.weight": (4, 4)}


def test_an_expert_of_another_shape_is_refused_as_quantized(model: Any, plan_of: Any) -> None:
    packed = model("a", {"q.weight": (8, 1), "q.weight.absmax": (1,)}, dtype={"q.weight": "U8"})
    message = refused(CheckpointError, lambda: plan_of(SWUDI + "models: [a]", model("base", LINEAR), packed))
    assert message.startswith("a: q.weight is U8 [8, 1] beside q.weight.absmax: quantized weights (bitsandbytes)")


@pytest.mark.parametrize("method", ["linear", "passthrough", "slerp", "swudi"])
@pytest.mark.parametrize("quantized", ["base", "a", "first"])
def test_refused_with_every_method_in_every_role(model: Any, plan_of: Any, method: str, quantized: str) -> None:
    names = {"q.weight": (4, 4), "q.scales": (4, 1), "q.biases": (4, 1)}
    roles = ["base", "a"]
    models = [
        model(role, names, dtype={"q.weight": "U32" if quantized in (role, "first") else "F32"}) for role in roles
    ]
    text = f"merge_method: {method}\nmodels: [a]\nparameters: {{t: 0.5}}\nbase_model: base"
    if method in ("linear", "passthrough"):
        text = f"merge_method: {method}\nmodels: [a]" if quantized != "base" else text
    if method != "slerp":
        text = text.replace("parameters: {t: 0.5}\n", "")
    assert "(MLX)" in refused(CheckpointError, lambda: plan_of(text, *models))


@pytest.mark.parametrize("config", [{"quantization_config": {"quant_method": "gptq"}}, {"quantization": {"bits": 4}}])
def test_plain_weights_with_a_stale_entry_are_merged(model: Any, plan_of: Any, config: dict[str, Any]) -> None:
    config = {"model_type": "llama", "torch_dtype": "float16", **config, "text_config": {**config, "hidden_size": 4}}
    sides = ("tokenizer.json", "hf_quant_config.json", "quantize_config.json")
    models = [model(name, LINEAR, dtype="F16", config=config, side_files=sides) for name in ("base", "a")]
    files = {item.name: item.content for item in plan_of(SWUDI + "models: [a]", *models).side_files}
    assert set(files) == {"config.json", "tokenizer.json"}
    expected = {"model_type": "llama", "torch_dtype": "float16", "text_config": {"hidden_size": 4}}
    assert json.loads(files["config.json"]) == expected


def float8(shape: tuple[int, ...], scale_shape: tuple[int, ...], scale_dtype: str = "F32") -> TensorSource:
    scale = TensorSource("/m", 0, 4, scale_dtype, scale_shape)
    return TensorSource("/m", 0, 1, "F8_E4M3", shape, scale)


@pytest.mark.parametrize("scale_shape", [(), (1,), (256,), (256, 1), (2, 3)])
def test_scales_that_restore_a_weight_of_256_by_300(scale_shape: tuple[int, ...]) -> None:
    tensors = {"w.weight": float8((256, 300), scale_shape, "BF16")}
    assert select_weights(tensors, {"quantization_config": {"quant_method": "fp8"}}, "m") == tensors


@pytest.mark.parametrize(("scale_shape", "dtype"), [((300,), "F32"), ((3, 2), "F32"), ((2,), "F32"), ((), "U8")])
def test_other_scales_are_refused_with_the_tensors_name(scale_shape: tuple[int, ...], dtype: str) -> None:
    tensors = {"w.weight": float8((256, 300), scale_shape, dtype)}
    message = refused(CheckpointError, lambda: select_weights(tensors, None, "m"))
    assert message.startswith(f"m: w.weight: float8 [256, 300] has a scale {dtype} {list(scale_shape)}; expected")


def test_activation_scales_are_not_weights() -> None:
    tensors = {"w.weight": float8((4, 4), ()), "w.input_scale": TensorSource("/m", 0, 4, "F32", ())}
    assert list(select_weights(tensors, None, "m")) == ["w.weight"]
    plain = {"a.k_scale": TensorSource("/m", 0, 4, "F32", (1,))}  # without float8 it is a tensor like any other
    assert select_weights(plain, None, "m") == plain


def test_other_block_sizes_are_refused() -> None:
    tensors = {"w.weight": float8((4, 4), ())}
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}}
    message = refused(CheckpointError, lambda: select_weights(tensors, config, "m"))
    assert "weight_block_size is [64, 64]" in message and message.endswith("give the unquantized model")


def test_float8_is_told_from_the_tensors() -> None:
    assert stores_float8({"w.weight": float8((4, 4), ())})
    assert not stores_float8({"w.weight": TensorSource("/m", 0, 32, "BF16", (4, 4))})


def test_the_output_config_has_no_quantization() -> None:
    inner = {"hidden_size": 8, "compression_config": {"format": "pack-quantized"}}
    config = {"model_type": "llama", "quantization_config": {"quant_method": "fp8"}, "text_config": inner}
    assert remove_quantization(config) == {"model_type": "llama", "text_config": {"hidden_size": 8}}
    codec = {"quantization": {"num_codebooks": 8}}  # not a format of weights
    assert remove_quantization(codec) == codec
