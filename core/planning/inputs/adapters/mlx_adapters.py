"""Read LoRA adapters of MLX: adapters.safetensors with an adapter_config.json of mlx-lm or mlx-vlm.

    <module>.lora_a, (K, R), and <module>.lora_b, (R, M)    delta of a linear layer = scale (lora_a lora_b)^T
    <module>.lora_a, (V, R), and <module>.lora_b, (R, M)    delta of an embedding = scale lora_a lora_b
    <module>.weight                                         a whole tensor (fine_tune_type: full)

References
----------
github.com/ml-explore/mlx-lm, mlx_lm/tuner/lora.py, `LoRALinear.fuse`
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from ....errors import CheckpointError, ShapeError
from ....listing import AdapterListing, LoraSource, TensorSource
from ....views import transpose
from .base_names import BaseNames

_PARTS = {".lora_a": "a", ".lora_b": "b"}


def is_mlx(listing: AdapterListing) -> bool:
    """Return whether an adapter is in the format of MLX."""
    config = listing.config
    return "peft_type" not in config and ("fine_tune_type" in config or "lora_parameters" in config)


def read_mlx(listing: AdapterListing, base: BaseNames) -> tuple[dict[str, LoraSource], dict[str, TensorSource]]:
    """Return the factors and the whole tensors of an adapter, by weight name.

    The names do not tell an embedding from a linear layer: the shape of the base's weight does.

    Raises
    ------
    CheckpointError : DoRA, no scale in the config, factors of stacked experts, or one factor of a pair is missing
    ShapeError : the factors do not fit each other
    """
    config, uri = listing.config, listing.uri
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "full"):
        raise CheckpointError(
            f"adapter {uri}: fine_tune_type is {kind!r}, expected lora or full; fuse it into its base first"
            " (mlx_lm.fuse) and give the full model as expert"
        )
    factors: dict[str, dict[str, TensorSource]] = {}
    full: dict[str, TensorSource] = {}
    for name, source in listing.tensors.items():
        part = _PARTS.get(name[-7:])
        if part is not None:
            factors.setdefault(name[:-7], {})[part] = source
        else:
            full[name] = source
    for module in factors:
        if f"{module}.m" in full:
            raise CheckpointError(
                f"adapter {uri}: {module}.m is a magnitude of DoRA; fuse it into its base first (mlx_lm.fuse) and give"
                " the full model as expert"
            )
    if not factors and not full:
        raise CheckpointError(f"adapter {uri} holds no tensors; expected names such as X.lora_a")
    scale = _scale(config, uri) if factors else 1.0
    lora: dict[str, LoraSource] = {}
    for module, parts in factors.items():
        own = _pair(module, parts, scale, uri)
        name = base.find(f"{module}.weight")
        is_embedding = name is not None and base.shapes[name] == own.shape[::-1] != own.shape
        lora[f"{module}.weight"] = replace(own, fan_in_fan_out=is_embedding, is_embedding=is_embedding)
    return lora, full


def _scale(config: Mapping[str, object], uri: str) -> float:
    parameters = config.get("lora_parameters")
    value = cast("Mapping[str, object]", parameters).get("scale") if isinstance(parameters, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise CheckpointError(
            f"adapter {uri}: adapter_config.json has lora_parameters.scale = {value!r}, expected a number; fuse the"
            " adapter into its base first (mlx_lm.fuse) and give the full model as expert"
        )
    return float(value)


def _pair(module: str, parts: Mapping[str, TensorSource], scale: float, uri: str) -> LoraSource:
    if len(parts) != 2:
        present = next(iter(parts))
        raise CheckpointError(
            f"adapter {uri}: {module} has lora_{present} and no lora_{'b' if present == 'a' else 'a'}; the file is"
            " incomplete"
        )
    first, second = parts["a"], parts["b"]
    if len(first.shape) == 3:
        raise CheckpointError(
            f"adapter {uri}: {module} adapts stacked experts (lora_a {list(first.shape)}); fuse it into its base first"
            " (mlx_lm.fuse) and give the full model as expert"
        )
    if len(first.shape) != 2 or len(second.shape) != 2 or first.shape[1] != second.shape[0]:
        raise ShapeError(
            f"adapter {uri}: {module} has lora_a {list(first.shape)} and lora_b {list(second.shape)}; expected"
            " (inputs, rank) and (rank, outputs)"
        )
    return LoraSource(transpose(second), transpose(first), scale)
