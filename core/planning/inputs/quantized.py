"""Quantized checkpoints: float8 weights whose scales restore them exactly are read; every other format is refused.

`storage.checkpoints` has attached each scale to its weight. The shape of the scale is checked here: one number, one per
row (compressed-tensors, FBGEMM), or one per block of 128 x 128 (DeepSeek). The output is written without quantization.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from ...errors import CheckpointError
from ...formats.dtypes import FLOAT8_DTYPES, SCALE_BLOCK_SIZE
from ...listing import TensorSource

_SCALE_DTYPES = frozenset({"F32", "BF16", "F16"})
_ACTIVATION_SCALES = (".input_scale", ".input_activation_scale", ".k_scale", ".v_scale", ".activation_scale")
_FLOAT8_METHODS = frozenset({"fp8", "fbgemm_fp8", "compressed-tensors", "modelopt"})


def is_quantized(config: Mapping[str, object] | None) -> bool:
    """Return whether config.json declares quantized weights."""
    return bool((config or {}).get("quantization_config"))


def remove_quantization(config: Mapping[str, object]) -> dict[str, object]:
    """Return the config.json of the same model with unquantized weights."""
    return {key: value for key, value in config.items() if key != "quantization_config"}


def select_weights(
    tensors: Mapping[str, TensorSource], config: Mapping[str, object] | None, name: str
) -> Mapping[str, TensorSource]:
    """Return the tensors without the activation scales of a float8 checkpoint.

    Parameters
    ----------
    config : config.json of the model
    name : of the model, for errors

    Raises
    ------
    CheckpointError : the weights are quantized in a way that cannot be read exactly (4 bits, int8, packed), or a scale
        does not fit its weight; names model and tensor
    """
    quantization = (config or {}).get("quantization_config")
    options: Mapping[str, object] = {}
    if isinstance(quantization, Mapping):
        options = cast("Mapping[str, object]", quantization)
    method = str(options.get("quant_method", ""))
    has_float8 = any(source.dtype in FLOAT8_DTYPES for source in tensors.values())
    if method and (method not in _FLOAT8_METHODS or not has_float8):
        raise CheckpointError(
            f"{name}: weights are quantized ({method}), expected float32, bfloat16, float16 or float8;"
            " give the unquantized model"
        )
    if not has_float8:
        return tensors
    block = options.get("weight_block_size")
    if block not in (None, [SCALE_BLOCK_SIZE, SCALE_BLOCK_SIZE]):
        raise CheckpointError(
            f"{name}: weight_block_size is {block!r}, expected [{SCALE_BLOCK_SIZE}, {SCALE_BLOCK_SIZE}];"
            " give the unquantized model"
        )
    for tensor_name, source in tensors.items():
        if source.scale is not None:
            _check_scale(source, source.scale, f"{name}: {tensor_name}")
    return {key: value for key, value in tensors.items() if not key.endswith(_ACTIVATION_SCALES)}


def _check_scale(weight: TensorSource, scale: TensorSource, place: str) -> None:
    rows = weight.shape[0] if weight.shape else 1
    allowed: list[tuple[int, ...]] = [(), (1,), (rows,), (rows, 1)]
    if len(weight.shape) in (2, 3):  # 3: a stack of experts
        blocks = tuple(-(-size // SCALE_BLOCK_SIZE) for size in weight.shape[-2:])
        allowed.append((*weight.shape[:-2], *blocks))
    if scale.shape not in allowed or scale.dtype not in _SCALE_DTYPES:
        raise CheckpointError(
            f"{place}: float8 {list(weight.shape)} has a scale {scale.dtype} {list(scale.shape)}; expected one number,"
            f" one for each row, or one for each block of {SCALE_BLOCK_SIZE} x {SCALE_BLOCK_SIZE};"
            " give the unquantized model"
        )
