"""Quantized checkpoints: float8 weights whose scales restore them exactly are read; every other format is refused.

`storage.checkpoints` has attached each scale to its weight. The shape of the scale is checked here: one number, one per
row (compressed-tensors, FBGEMM), or one per block of 128 x 128 (DeepSeek). The tensors decide, not config.json, which
may name a quantization that plain weights no longer have. The output is written without quantization.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from ...errors import CheckpointError
from ...formats.dtypes import FLOAT8_DTYPES, SCALE_BLOCK_SIZE
from ...listing import TensorSource
from .packed import find_packed_weight

_SCALE_DTYPES = frozenset({"F32", "BF16", "F16"})
_ACTIVATION_SCALES = (".input_scale", ".input_activation_scale", ".k_scale", ".v_scale", ".activation_scale")
# Entries of config.json, at any depth, that tell a library to load quantized weights.
_CONFIG_KEYS = frozenset({"quantization_config", "compression_config"})


def stores_float8(tensors: Mapping[str, TensorSource]) -> bool:
    """Return whether weights are stored as float8."""
    return any(source.dtype in FLOAT8_DTYPES for source in tensors.values())


def remove_quantization(config: Mapping[str, object]) -> dict[str, object]:
    """Return the config.json of the same model with unquantized weights, nested configs (text_config) included."""
    kept: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            inner = cast("Mapping[str, object]", value)
            is_mlx = key == "quantization" and not {"bits", "group_size"}.isdisjoint(inner)
            if key not in _CONFIG_KEYS and not is_mlx:
                kept[key] = remove_quantization(inner)
        elif key not in _CONFIG_KEYS:
            kept[key] = value
    return kept


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
    packed = find_packed_weight(tensors)
    if packed is not None:
        raise CheckpointError(
            f"{name}: {packed}; expected float32, bfloat16, float16 or float8 with scales; give the unquantized model"
        )
    if not stores_float8(tensors):
        return tensors
    quantization = (config or {}).get("quantization_config")
    options: Mapping[str, object] = {}
    if isinstance(quantization, Mapping):
        options = cast("Mapping[str, object]", quantization)
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
