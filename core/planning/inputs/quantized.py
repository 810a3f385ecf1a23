"""Quantised checkpoints: float8 weights with scales that can be read back exactly; everything else is refused.

Listing a checkpoint has attached each scale to its weight. Here its shape is checked: one number, one for each row
(compressed-tensors, FBGEMM), or one for each block of 128 x 128 (DeepSeek). The output is written without quantisation.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import CheckpointError
from ...formats.dtypes import FLOAT8_DTYPES, SCALE_BLOCK_SIZE
from ...listing import TensorSource

_ACTIVATION_SCALES = (".input_scale", ".input_activation_scale", ".k_scale", ".v_scale", ".activation_scale")
_FLOAT8_METHODS = frozenset({"fp8", "fbgemm_fp8", "compressed-tensors", "modelopt"})


def is_quantized(config: Mapping[str, object] | None) -> bool:
    """True when config.json says that the weights are stored quantised."""
    return bool((config or {}).get("quantization_config"))


def unquantized(config: Mapping[str, object]) -> dict[str, object]:
    """The config of the same model with plain weights."""
    return {key: value for key, value in config.items() if key != "quantization_config"}


def weights_only(
    tensors: Mapping[str, TensorSource], config: Mapping[str, object] | None, name: str
) -> Mapping[str, TensorSource]:
    """The tensors that are weights: activation scales of a float8 checkpoint are left out.

    Raises
    ------
    CheckpointError : quantised in a way that cannot be read back exactly (4 bits, int8, packed), or a scale that does
        not fit; names model and tensor
    """
    quantization = (config or {}).get("quantization_config")
    method = str(quantization.get("quant_method", "")) if isinstance(quantization, Mapping) else ""
    has_float8 = any(source.dtype in FLOAT8_DTYPES for source in tensors.values())
    if method and (method not in _FLOAT8_METHODS or not has_float8):
        raise CheckpointError(
            f"{name}: weights are quantised ({method}), expected float32, bfloat16, float16 or float8;"
            " give the unquantised model"
        )
    if not has_float8:
        return tensors
    block = quantization.get("weight_block_size") if isinstance(quantization, Mapping) else None
    if block not in (None, [SCALE_BLOCK_SIZE, SCALE_BLOCK_SIZE]):
        raise CheckpointError(
            f"{name}: weight_block_size is {block!r}, supported is [{SCALE_BLOCK_SIZE}, {SCALE_BLOCK_SIZE}]"
        )
    for tensor_name, source in tensors.items():
        if source.scale is not None:
            _check_scale(source, f"{name}: {tensor_name}")
    return {key: value for key, value in tensors.items() if not key.endswith(_ACTIVATION_SCALES)}


def _check_scale(weight: TensorSource, where: str) -> None:
    scale = weight.scale
    assert scale is not None
    rows = weight.shape[0] if weight.shape else 1
    allowed: list[tuple[int, ...]] = [(), (1,), (rows,), (rows, 1)]
    if len(weight.shape) == 2:
        allowed.append((-(-rows // SCALE_BLOCK_SIZE), -(-weight.shape[1] // SCALE_BLOCK_SIZE)))
    if scale.shape not in allowed or scale.dtype not in {"F32", "BF16", "F16"}:
        raise CheckpointError(
            f"{where}: float8 {list(weight.shape)} has a scale {scale.dtype} {list(scale.shape)}; expected one number,"
            f" one for each row, or one for each block of {SCALE_BLOCK_SIZE} x {SCALE_BLOCK_SIZE}; give the"
            " unquantised model"
        )
