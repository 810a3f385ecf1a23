"""Select the entries of a task vector to keep: the largest, all but outliers, or a random part.

Every function returns a flat boolean mask over `delta.reshape(-1)` (a quarter of a float32 tensor), or None to keep all
entries. Thresholds of magnitude are found by counting bit patterns, without a sort or a copy: 1 ns per entry on one
core; argsort takes 36 to 93 ns.

Of entries with equal magnitude at the threshold, mergekit keeps those that an unstable `argsort` puts first; torch does
not define which. Here the same entries are kept in small tensors, by `argsort` itself, and where few entries tie, as
in float32 checkpoints, by tie_order.py. Where many tie, as in bfloat16 checkpoints, the first ones in the tensor are
kept.

References
----------
TIES-Merging, arXiv:2306.01708; DARE, arXiv:2311.03099; Model Breadcrumbs, arXiv:2312.06795; DELLA, arXiv:2406.11617;
conventions of mergekit 0.1.5 (how many entries a density keeps, rescaling to the L1 norm).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..lazy_torch import torch
from .bit_masks import from_array, integer_dtype, magnitude_bits
from .blocks import absolute_sum, block_elements, blocks
from .thresholds import Threshold, find_threshold

SMALL = 1 << 16  # elements; argsort takes 4 ms
TIE_TENSORS = 4.5  # work space of tie_order.py in float32 tensors: keys, up to half of the entries' 64-bit positions


@dataclass(frozen=True, slots=True)
class Selection:
    """The kept part of a task vector.

    keep : Tensor, bool, flat, or None for every entry
    factor : factor on the kept entries
    """

    keep: torch.Tensor | None = None
    factor: float = 1.0

    def apply(self, flat_delta: torch.Tensor, span: slice) -> torch.Tensor:
        """Return a block of the sparsified task vector as a new tensor."""
        block = flat_delta[span]
        kept = block.clone() if self.keep is None else block * self.keep[span]
        return kept if self.factor == 1.0 else kept.mul_(self.factor)


def rescale_selection(delta: torch.Tensor, keep: torch.Tensor | None) -> Selection:
    """Return the selection with the factor that restores the L1 norm of the task vector (mergekit's `rescale`)."""
    if keep is None:
        return Selection()
    before, after = absolute_sum(delta), absolute_sum(delta, keep)
    # as mergekit: no factor for task vectors with an L1 norm below 1e-7
    return Selection(keep, 1.0 if min(before, after) < 1e-7 else before / after)


def keep_largest(delta: torch.Tensor, density: float) -> torch.Tensor | None:
    """Keep the fraction `density` of entries of largest magnitude, at least one if density is above 0."""
    if density >= 1:
        return None
    if density <= 0 or delta.numel() == 0:
        return _empty_mask(delta)
    count = max(1, int(density * delta.numel()))
    if delta.numel() <= SMALL:
        return _repeat_argsort(delta, 0, count, descending=True)
    threshold = find_threshold(delta, count)
    if not threshold.ties_are_few(delta.numel()):
        return _mask_from(delta, threshold)
    if delta.device.type != "cpu":
        return _repeat_argsort(delta, 0, count, descending=True)
    return _mask_of_sort(delta, threshold, descending=True)


def drop_outliers(delta: torch.Tensor, density: float, gamma: float) -> torch.Tensor | None:
    """Drop the fraction `gamma` of entries of largest magnitude and keep the fraction `density` that follows.

    Fewer are dropped where density + gamma is above 1.
    """
    if density >= 1:
        return None
    total = delta.numel()
    num_kept = int(density * total)
    first = max(0, total - num_kept - int(gamma * total))  # number of smaller entries to drop
    if num_kept == 0:
        return _empty_mask(delta)
    if total <= SMALL:
        return _repeat_argsort(delta, first, first + num_kept, descending=False)
    upper = find_threshold(delta, total - first - num_kept)  # of the outliers
    lower = find_threshold(delta, total - first)  # of outliers and kept entries together
    few = upper.ties_are_few(total) or lower.ties_are_few(total)
    if few and delta.device.type != "cpu":
        return _repeat_argsort(delta, first, first + num_kept, descending=False)
    largest, outliers = (
        _mask_of_sort(delta, threshold, descending=False) if few else _mask_from(delta, threshold)
        for threshold in (lower, upper)
    )
    return largest.logical_and_(outliers.logical_not_())


def keep_at_random(delta: torch.Tensor, density: float, generator: torch.Generator) -> torch.Tensor | None:
    """Keep each entry with probability `density`."""
    if density >= 1:
        return None
    keep = _empty_mask(delta)
    for span in blocks(delta):
        draws = torch.rand(span.stop - span.start, generator=generator)
        keep[span] = (draws < density).to(delta.device)
    return keep


def keep_by_rank_at_random(
    delta: torch.Tensor, density: float, epsilon: float, generator: torch.Generator
) -> torch.Tensor | None:
    """Keep each entry with a probability that increases with the rank of its magnitude.

    From density - epsilon for the smallest to density + epsilon for the largest, on average `density`. Ranks are taken
    along the second dimension (the input features of a matrix); a 1-D tensor is one row.
    """
    if density >= 1:
        return None
    if density <= 0 or delta.numel() == 0:
        return _empty_mask(delta)
    from .rank_masks import RankMasks

    rows = delta.reshape(1, -1) if delta.ndim < 2 else delta.movedim(1, -1)
    moved_shape, length = rows.shape, rows.shape[-1]
    rows = rows.reshape(-1, length)
    masks = RankMasks(length, density, epsilon, generator)
    keep = torch.empty(rows.shape, dtype=torch.bool, device=delta.device)
    num_rows = max(1, block_elements(delta.device) // length)
    for start in range(0, rows.shape[0], num_rows):
        keep[start : start + num_rows] = masks.next(rows[start : start + num_rows]).to(delta.device)
    if delta.ndim > 2:
        keep = keep.reshape(moved_shape).movedim(-1, 1)
    return keep.reshape(-1)


def keep_largest_values(values: torch.Tensor, count: int) -> torch.Tensor:
    """Keep the `count` largest of non-negative values; among equal ones those of torch.topk where that is cheap."""
    total = values.numel()
    threshold = find_threshold(values, count)
    if total <= SMALL or threshold.ties_are_few(total):
        keep = _empty_mask(values)
        keep[torch.topk(values.reshape(-1), count).indices] = True
        return keep
    return _mask_from(values, threshold)


def kth_largest_magnitude(values: torch.Tensor, count: int) -> float:
    """Return the largest magnitude that at least `count` entries reach; count is 1 or more."""
    assert 1 <= count <= values.numel()
    bits = find_threshold(values, count).bits
    return torch.tensor(bits, dtype=integer_dtype(values)).view(values.dtype).item()


def _mask_from(delta: torch.Tensor, threshold: Threshold) -> torch.Tensor:
    """Return the mask of the threshold's `count` entries: those above it, and the first of those at it."""
    flat = delta.reshape(-1)
    keep = _empty_mask(delta)
    num_wanted = threshold.count - threshold.num_above
    for span in blocks(flat):
        bits = magnitude_bits(flat[span])
        if num_wanted >= threshold.num_equal:
            torch.ge(bits, threshold.bits, out=keep[span])
            continue
        torch.gt(bits, threshold.bits, out=keep[span])
        if num_wanted > 0:
            tied = (bits == threshold.bits).nonzero().squeeze(1)[:num_wanted]
            keep[span][tied] = True
            num_wanted -= tied.numel()
    return keep


def _empty_mask(delta: torch.Tensor) -> torch.Tensor:
    """Return a flat mask that keeps no entry."""
    return torch.zeros(delta.numel(), dtype=torch.bool, device=delta.device)


def _mask_of_sort(delta: torch.Tensor, threshold: Threshold, *, descending: bool) -> torch.Tensor:
    """Return the mask of the threshold's `count` entries: those above it, and of those at it the ones of argsort."""
    from .tie_order import kept_ties

    if not threshold.splits_ties:
        return _mask_from(delta, threshold)
    keep = _mask_from(delta, replace(threshold, count=threshold.num_above))
    keep[from_array(kept_ties(delta.reshape(-1), threshold, descending=descending))] = True
    return keep


def _repeat_argsort(delta: torch.Tensor, start: int, stop: int, *, descending: bool) -> torch.Tensor:
    """Return the mask of positions [start, stop) of torch's unstable argsort of magnitudes, as mergekit does."""
    order = torch.argsort(delta.reshape(-1).abs(), descending=descending)
    keep = _empty_mask(delta)
    keep[order[start:stop]] = True
    return keep
