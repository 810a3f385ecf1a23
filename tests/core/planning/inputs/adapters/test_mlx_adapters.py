"""Adapters of MLX: orientation, scale, and forms that are refused."""

from __future__ import annotations

from typing import Any

import pytest

from eigenmerge.core.errors import CheckpointError, EigenmergeError, ShapeError
from eigenmerge.core.listing import AdapterListing, LoraSource, TensorSource
from eigenmerge.core.planning.inputs.adapters.mlx_adapters import is_mlx
from eigenmerge.core.planning.inputs.adapters.read_adapter import correct_orientation, read_adapter

CONFIG = {"fine_tune_type": "lora", "num_layers": 4, "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0}}
Q = "model.layers.0.self_attn.q_proj"
FACTORS = {f"{Q}.lora_a": (8, 2), f"{Q}.lora_b": (2, 16)}


def listing(tensors: dict[str, tuple[int, ...]], config: dict[str, Any] = CONFIG) -> AdapterListing:
    placed = {name: TensorSource("/a", 0, 4, "F32", shape) for name, shape in tensors.items()}
    return AdapterListing("/a", config, placed, "f", 4)


def test_a_linear_layer_is_stored_out_in() -> None:
    assert is_mlx(listing(FACTORS)) and not is_mlx(listing(FACTORS, {"peft_type": "LORA"}))
    (factors,) = read_adapter(listing(FACTORS)).lora.values()
    assert factors.shape == (16, 8)  # (lora_a lora_b)^T
    assert (factors.down.shape[0], factors.scaling) == (2, 20.0)


def test_an_embedding_is_told_from_the_shape_of_the_base() -> None:
    names = {"model.embed_tokens.lora_a": (50, 2), "model.embed_tokens.lora_b": (2, 8)}
    base = {"model.embed_tokens.weight": (50, 8)}
    found = read_adapter(listing(names), base).lora["model.embed_tokens.weight"]
    assert isinstance(found, LoraSource) and found.is_embedding and found.shape == (50, 8)
    found = correct_orientation(read_adapter(listing(names)).lora, base)  # the base has another prefix
    assert found["model.embed_tokens.weight"].shape == (50, 8)


def test_whole_tensors() -> None:
    config = {"fine_tune_type": "full", "num_layers": 4}
    found = read_adapter(listing({f"{Q}.weight": (16, 8)}, config))
    assert not found.lora and found.full[f"{Q}.weight"].shape == (16, 8)


@pytest.mark.parametrize(
    ("config", "names", "kind", "says"),
    [
        ({**CONFIG, "fine_tune_type": "dora"}, FACTORS, CheckpointError, "fine_tune_type is 'dora'"),
        (CONFIG, {**FACTORS, f"{Q}.m": (16,)}, CheckpointError, "is a magnitude of DoRA"),
        ({**CONFIG, "lora_parameters": {"rank": 2}}, FACTORS, CheckpointError, "lora_parameters.scale = None"),
        (CONFIG, {f"{Q}.lora_a": (8, 2)}, CheckpointError, "lora_a and no lora_b"),
        (CONFIG, {f"{Q}.lora_a": (8, 2), f"{Q}.lora_b": (3, 16)}, ShapeError, r"expected (inputs, rank)"),
        (CONFIG, {"x.lora_a": (4, 2, 8), "x.lora_b": (4, 16, 2)}, CheckpointError, "adapts stacked experts"),
        (CONFIG, {}, CheckpointError, "holds no tensors"),
    ],
)
def test_refused(
    config: dict[str, Any], names: dict[str, tuple[int, ...]], kind: type[EigenmergeError], says: str
) -> None:
    with pytest.raises(kind) as caught:
        read_adapter(listing(names, config))
    assert says in str(caught.value) and "\n" not in str(caught.value)
