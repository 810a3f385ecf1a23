"""Combine merged checkpoints: what a method of Eigenmerge would be, before it is one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from larv import ScalesOfScores, block_scores, continuous_scale, scales_of_tensors, tiered_scales
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sources:
    """What a combination is made from.

    base : tensors of the base, float32
    merged : for each merged checkpoint its difference from the base
    experts : folders of the experts
    """

    base: Mapping[str, Tensor]
    merged: Sequence[Mapping[str, Tensor]]
    experts: Sequence[Path]

    def task_vectors(self, name: str) -> list[Tensor]:
        """Return expert minus base of one tensor, for each expert."""
        found = []
        for folder in self.experts:
            with safe_open(folder / "model.safetensors", framework="pt") as file:
                found.append(file.get_tensor(name).float() - self.base[name])
        return found


Combination = Callable[[Sources], Mapping[str, Tensor]]  # to the combined difference from the base


def _by_tensor(combine_tensors: Callable[[Sequence[Tensor]], Tensor]) -> Combination:
    return lambda sources: {name: combine_tensors([deltas[name] for deltas in sources.merged]) for name in sources.base}


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


def interference_left(delta: Tensor, task_vectors: Sequence[Tensor]) -> float:
    """Return the sum of WUDI's objectives over inputs and over outputs, each relative to its value at delta = 0."""
    total = 0.0
    for side in (lambda matrix: matrix, lambda matrix: matrix.T):
        left = before = 0.0
        for vector in task_vectors:
            own = side(vector)
            weight = 1.0 / max(float(own.norm()) ** 2, 1e-30)
            left += weight * float(((side(delta) - own) @ own.T).norm()) ** 2
            before += weight * float((own @ own.T).norm()) ** 2
        total += left / before if before else 0.0
    return total


def least_interference(sources: Sources) -> dict[str, Tensor]:
    """Return for each matrix the merged delta that leaves the least interference; of vectors the first."""
    chosen = {}
    for name, start in sources.base.items():
        deltas = [merged[name] for merged in sources.merged]
        is_matrix = start.ndim == 2 and "embed" not in name  # tables of tokens are merged by their mean
        if is_matrix and not all(torch.equal(delta, deltas[0]) for delta in deltas[1:]):
            vectors = sources.task_vectors(name)
            deltas.sort(key=lambda delta: interference_left(delta, vectors))
        chosen[name] = deltas[0]
    return chosen


_scores: dict[tuple[Path, ...], dict[int, float]] = {}  # of LARV, by experts: they take longer than a merge


def larv(sources: Sources, rule: ScalesOfScores) -> dict[str, Tensor]:
    """Return the merged delta with a factor for each block of layers, from LARV's scores."""
    (merged,) = sources.merged
    experts = tuple(sources.experts)
    if experts not in _scores:
        _scores[experts] = block_scores(sources.base, sources.task_vectors)
        print("scores of LARV:", [round(score, 2) for score in _scores[experts].values()], flush=True)
    scales = scales_of_tensors(sources.base, _scores[experts], rule)
    return {name: scales.get(name, 1.0) * delta for name, delta in merged.items()}


COMBINATIONS: dict[str, Combination] = {
    "mean": _by_tensor(mean),
    "norms kept": _by_tensor(norms_kept),
    "smaller norm": _by_tensor(smaller_norm),
    "larger norm": _by_tensor(larger_norm),
    "least interference": least_interference,
    "larv tiers": lambda sources: larv(sources, tiered_scales((0.5, 1.0, 1.5))),
    "larv narrow tiers": lambda sources: larv(sources, tiered_scales((0.8, 1.0, 1.2))),
    "larv continuous": lambda sources: larv(sources, continuous_scale),
}


def combine(combination: Combination, base: Path, merged: Sequence[Path], experts: Sequence[Path], out: Path) -> None:
    """Write a checkpoint whose difference from the base is a combination of those of merged checkpoints."""
    origin = {name: value.float() for name, value in load_file(base / "model.safetensors").items()}
    deltas = []
    for folder in merged:
        model = load_file(folder / "model.safetensors")
        deltas.append({name: model[name].float() - start for name, start in origin.items()})
    combined = combination(Sources(origin, deltas, experts))
    shutil.copytree(merged[0], out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = {name: start + combined[name] for name, start in origin.items()}
    save_file(tensors, out / "part", metadata={"format": "pt"})
    (out / "part").rename(out / "model.safetensors")
