"""Combine merged checkpoints matrix by matrix: what a method of Eigenmerge would be, before it is one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Combination = Callable[[Sequence[Tensor]], Tensor]


def mean(deltas: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(deltas)).mean(0)


def norms_kept(deltas: Sequence[Tensor]) -> Tensor:
    """Return the mean, scaled to the mean of the norms: deltas with independent errors have a mean of smaller norm."""
    merged = mean(deltas)
    norm = merged.norm()
    return merged if norm == 0 else merged * (sum(delta.norm() for delta in deltas) / len(deltas) / norm)


def smaller_norm(deltas: Sequence[Tensor]) -> Tensor:
    return min(deltas, key=lambda delta: float(delta.norm()))


def larger_norm(deltas: Sequence[Tensor]) -> Tensor:
    return max(deltas, key=lambda delta: float(delta.norm()))


COMBINATIONS: dict[str, Combination] = {
    "mean": mean,
    "norms kept": norms_kept,
    "smaller norm": smaller_norm,
    "larger norm": larger_norm,
}


def combine(combination: Combination, base: Path, sources: Sequence[Path], out: Path) -> None:
    """Write a checkpoint whose every tensor is base + combination of (source - base)."""
    origin = load_file(base / "model.safetensors")
    merged = [load_file(source / "model.safetensors") for source in sources]
    tensors = {}
    for name, value in origin.items():
        start = value.float()
        tensors[name] = start + combination([model[name].float() - start for model in merged])
    shutil.copytree(sources[0], out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(tensors, out / "part", metadata={"format": "pt"})
    (out / "part").rename(out / "model.safetensors")
