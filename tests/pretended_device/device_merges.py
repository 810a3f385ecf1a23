"""Merges on the pretended device, with counts for each tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from eigenmerge.core.steps.listener import Listener

from .ledger import Counts, Ledger
from .mode import pretended_device

WEIGHT, NORM = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"


@dataclass
class TensorCounts(Listener):
    """Assigns what a merge counts to the tensor that it was merging. For merges in one thread."""

    ledger: Ledger
    tensors: dict[str, Counts] = field(default_factory=dict[str, Counts])

    def tensor_done(self, name: str, num_bytes: int) -> None:
        self.tensors[name] = self.ledger.take()


def merge_on_device(pipeline: Callable[..., Any], recipe: Any, out: Path, **keys: Any) -> tuple[Any, TensorCounts]:
    """Run the whole merge on the pretended device; returns its result and the counts of each tensor."""
    with pretended_device() as ledger:
        counts = TensorCounts(ledger)
        return pipeline(recipe, out, device="cuda:0", listeners=[counts], **keys), counts


def save_layer(
    folder: Path, shape: tuple[int, int] = (24, 40), num_experts: int = 3, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Write a base and experts of one matrix and one vector, and return a recipe without a method."""
    generator = torch.Generator().manual_seed(0)

    def draw(size: float, start: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        shapes = {WEIGHT: shape, NORM: shape[1:]}
        drawn = {name: size * torch.randn(form, generator=generator) for name, form in shapes.items()}
        return {name: value if start is None else start[name] + value for name, value in drawn.items()}

    base = draw(1.0)
    places: list[str] = []
    for index, tensors in enumerate([base, *(draw(0.1, base) for _ in range(num_experts))]):
        place = folder / f"model{index}.safetensors"
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.to(dtype) for name, value in tensors.items()}, place)
        places.append(str(place))
    return {"base_model": places[0], "models": [{"model": place} for place in places[1:]]}
