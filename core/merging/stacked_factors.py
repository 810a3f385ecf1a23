"""The deltas of adapters on the matrices of a stack: factors of one matrix, or the dense delta of the stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..listing import LoraPart, LoraSource, Region
from ..numerics.task_vectors import LowRank


@dataclass(slots=True)
class ReadPart:
    """The factors of one part of a stack in the arithmetic dtype: delta = left @ right, in the shape of the part."""

    part: LoraPart
    left: torch.Tensor
    right: torch.Tensor


def oriented(up: torch.Tensor, down: torch.Tensor, lora: LoraSource) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors whose product is the delta as the weight is stored, the scaling multiplied into them."""
    if lora.fan_in_fan_out:  # the weight is stored (in, out), its adapter (out, in)
        return down.T * lora.scaling, up.T
    return up * lora.scaling, down


def factors_in(parts: Sequence[ReadPart], shape: tuple[int, ...], region: Region) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors of the delta in one region of a stack, as stored; without columns where nothing changes it.

    Parameters
    ----------
    parts : at least one, all of which change entries of the region
    shape : of the stack, (E, M, K)
    """
    lefts: list[torch.Tensor] = []
    rights: list[torch.Tensor] = []
    entries = slice(region.start, region.stop, region.step)
    for one in parts:
        left, right = one.left, one.right
        if not _is_same(one.part, region):
            left, right = _placed(one, shape)
            left, right = (left[entries], right) if region.axis == 0 else (left, right[:, entries])
        lefts.append(left)
        rights.append(right)
    return torch.cat(lefts, dim=1), torch.cat(rights)


def dense_delta(parts: Sequence[ReadPart], base: torch.Tensor) -> torch.Tensor:
    """Return the delta of the whole stack, (E, M, K), in the dtype and on the device of `base`."""
    delta = torch.zeros_like(base)
    for one in parts:
        matrix = delta[one.part.index]
        entries = slice(one.part.start, one.part.stop, one.part.step)
        target = matrix[entries] if one.part.axis == 0 else matrix[:, entries]
        target += LowRank(one.left, one.right).dense()
    return delta


def _is_same(part: LoraPart, region: Region) -> bool:
    same = (part.axis, part.start, part.stop, part.step) == (region.axis, region.start, region.stop, region.step)
    return same and part.index == region.index


def _placed(one: ReadPart, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors of one part as factors of its whole matrix, with zeros outside of the part."""
    part, rank = one.part, one.left.shape[1]
    entries = slice(part.start, part.stop, part.step)
    if part.axis == 0:
        left = one.left.new_zeros((shape[1], rank))
        left[entries] = one.left
        return left, one.right
    right = one.right.new_zeros((rank, shape[2]))
    right[:, entries] = one.right
    return one.left, right
