"""Tensors in small safetensors files, and plans of one output tensor, for the tests of merging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from eigenmerge.core.listing import LoraSource, TensorSource
from eigenmerge.core.planning.plan import ExpertTensor, TensorPlan
from eigenmerge.core.storage.object_header import read_header
from eigenmerge.core.storage.store import Store

NAME = "layers.0.mlp.up_proj.weight"


def random(seed: int, *shape: int, size: float = 1.0) -> torch.Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorSource]:
    """Write a safetensors file and return the location of each tensor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    entries = read_header(Store(str(path.parent)), path.name).tensors
    return {
        name: TensorSource(str(path), entry.start, entry.stop, entry.dtype, tuple(entry.shape))
        for name, entry in entries.items()
    }


def write_tensor(path: Path, tensor: torch.Tensor) -> TensorSource:
    return write_tensors(path, {NAME: tensor})[NAME]


def write_lora(
    path: Path, up: torch.Tensor, down: torch.Tensor, scaling: float = 1.0, fan_in_fan_out: bool = False
) -> LoraSource:
    places = write_tensors(path, {"lora_A": down, "lora_B": up})
    return LoraSource(places["lora_B"], places["lora_A"], scaling, fan_in_fan_out)


class Weight:
    """One weight of a base and of dense experts, stored in files below a folder."""

    def __init__(self, folder: Path, base: torch.Tensor | None, experts: Sequence[torch.Tensor]) -> None:
        self.folder = folder
        self.base = base
        self.experts = list(experts)
        self.base_source = None if base is None else write_tensor(folder / "base.safetensors", base)
        self.sources = [write_tensor(folder / f"expert{i}.safetensors", tensor) for i, tensor in enumerate(experts)]

    @classmethod
    def random(cls, folder: Path, *shape: int, num_experts: int = 3, size: float = 0.1) -> Weight:
        base = random(1, *shape)
        return cls(folder, base, [base + random(seed, *shape, size=size) for seed in range(2, 2 + num_experts)])

    @property
    def deltas(self) -> list[torch.Tensor]:
        return [expert if self.base is None else expert - self.base for expert in self.experts]

    def plan(
        self, *indices: int, weights: Sequence[float] = (), density: float | None = None, **keys: Any
    ) -> TensorPlan:
        """The plan of a merge of these experts, all by default."""
        chosen = indices or range(len(self.experts))
        shared: dict[str, object] = {} if density is None else {"density": density}
        entries = [
            ExpertTensor(
                index,
                self.sources[index],
                parameters=shared | ({"weight": weights[position]} if weights else {}),
            )
            for position, index in enumerate(chosen)
        ]
        return plan(entries, tuple(self.experts[0].shape), self.base_source, **keys)


def plan(
    experts: Sequence[ExpertTensor], shape: tuple[int, ...], base: TensorSource | None = None, **keys: Any
) -> TensorPlan:
    """A plan with the given experts that writes float32 by default."""
    dtype = keys.pop("out_dtype", "F32")
    action = keys.pop("action", "merge")
    return TensorPlan(NAME, shape, dtype, action, "2-D weight", base, tuple(experts), **keys)
