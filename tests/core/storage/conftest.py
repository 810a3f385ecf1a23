"""Small checkpoints for the tests of storage."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from safetensors.torch import save

from eigenmerge.core.storage.store import Store


def tensors_of(layers: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, torch.Tensor] = {"embed.weight": torch.randn(11, 4, generator=generator).to(torch.bfloat16)}
    for layer in range(layers):
        found[f"layers.{layer}.weight"] = torch.randn(6, 4, generator=generator)
        found[f"layers.{layer}.bias"] = torch.randn(6, generator=generator).half()
    return found


def write_model(store: Store, tensors: Mapping[str, torch.Tensor], *, files: int = 1, config: object = None) -> None:
    """A Hugging Face directory: one file, or several with an index."""
    names = list(tensors)
    if files == 1:
        store.write("model.safetensors", save(dict(tensors), {"format": "pt"}))
    else:
        weight_map = {}
        for number in range(files):
            file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
            store.write(file, save({name: tensors[name] for name in names[number::files]}, {"format": "pt"}))
            weight_map.update(dict.fromkeys(names[number::files], file))
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        store.write("model.safetensors.index.json", json.dumps(index).encode())
    store.write("config.json", json.dumps(config or {"model_type": "test"}).encode())
    store.write("tokenizer.json", b"{}")
