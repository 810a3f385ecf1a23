"""Quantized checkpoints: float8 with exact scales is read, everything else is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from eigenmerge.core.errors import CheckpointError, EigenmergeError
from eigenmerge.core.listing import TensorSource
from eigenmerge.core.planning.inputs.quantized import is_quantized, remove_quantization, select_weights

SWUDI = "merge_method: swudi\nbase_model: base\n"


def refused(kind: type[EigenmergeError], call: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_quantized_weights(model: Any, plan_of: Any) -> None:
    config = {"quantization_config": {"quant_method": "gptq"}}
    models = [model("base", {"w.weight": (4, 4)}, config=config), model("a", {"w.weight": (4, 4)})]
    assert "quantized (gptq)" in refused(CheckpointError, lambda: plan_of(SWUDI + "models: [a]", *models))
    models = [model("base", {"w.weight": (4, 4)}), model("a", {"w.weight": (4, 4)}, dtype="U8")]
    assert "stores it as U8" in refused(CheckpointError, lambda: plan_of(SWUDI + "models: [a]", *models))


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


@pytest.mark.parametrize(
    ("config", "dtype", "expected"),
    [
        ({"quant_method": "bitsandbytes"}, "U8", "quantized (bitsandbytes)"),
        ({"quant_method": "awq"}, "F8_E4M3", "quantized (awq)"),
        ({"quant_method": "fp8"}, "I8", "quantized (fp8)"),
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, "F8_E4M3", "weight_block_size is [64, 64]"),
    ],
)
def test_other_formats_are_refused(config: dict[str, Any], dtype: str, expected: str) -> None:
    tensors = {"w.weight": TensorSource("/m", 0, 1, dtype, (1, 1))}
    message = refused(CheckpointError, lambda: select_weights(tensors, {"quantization_config": config}, "m"))
    assert expected in message
    assert message.endswith("give the unquantized model")


def test_the_output_config_has_no_quantization() -> None:
    config = {"model_type": "llama", "quantization_config": {"quant_method": "fp8"}}
    assert is_quantized(config)
    assert remove_quantization(config) == {"model_type": "llama"}
    assert not is_quantized(remove_quantization(config))
    assert not is_quantized(None)
