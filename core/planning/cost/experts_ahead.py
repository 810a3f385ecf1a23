"""How many experts of one tensor are read ahead of the one that is used, and the memory that this takes.

A remote store answers after milliseconds. Small tensors, such as the factors of adapters, take that long each unless
many requests are in flight; large ones are read in parallel pieces, and one expert ahead is enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ...listing import TensorSource
from ..plan import ExpertTensor, TensorPlan
from .projection import expert_bytes

_AHEAD_BYTES = 32 * 2**20
_MOST_AHEAD = 24  # an expert is one request or, for an adapter, two in turn; a store has 32 connections


def experts_ahead(experts: Sequence[ExpertTensor]) -> int:
    """Return the number of experts that are read ahead: one, or of a remote store as many as fit 32 MiB."""
    if not any(is_remote(source) for expert in experts for source in _sources(expert)):
        return 1
    return max(1, min(_MOST_AHEAD, _AHEAD_BYTES // max(1, _largest_bytes(experts))))


def plan_experts_ahead(tensor: TensorPlan) -> TensorPlan:
    """Return the plan with the experts that are read ahead, beyond the one that every peak counts, in its peak."""
    if tensor.in_blocks:  # reads windows of all experts at the same time
        return tensor
    held = min(experts_ahead(tensor.experts), len(tensor.experts) - 1) - 1
    return replace(tensor, peak_bytes=tensor.peak_bytes + held * _largest_bytes(tensor.experts)) if held > 0 else tensor


def _largest_bytes(experts: Sequence[ExpertTensor]) -> int:
    return max(map(expert_bytes, experts), default=0)


def _sources(expert: ExpertTensor) -> Iterable[TensorSource]:
    yield from () if expert.full is None else (expert.full,)
    yield from () if expert.lora is None else expert.lora.sources


def is_remote(source: TensorSource) -> bool:
    """Return whether a stored tensor is not on a disk of this machine."""
    protocol, separator, _ = source.uri.partition("://")
    return bool(separator) and protocol not in ("file", "local")
