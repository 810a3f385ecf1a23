"""Go through the blocks of a tensor to complete selections: thresholds, and factors that restore L1 norms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..lazy_torch import torch
from ..tensor_inputs import BlockwiseInputs
from .block_selection import BlockSelection
from .blocks import block_elements
from .expert_inputs import other_task_vectors


def complete_selections(inputs: BlockwiseInputs, selections: Mapping[int, BlockSelection], *, rescale: bool) -> None:
    """Make the passes that selections want, and set the factors of `sparsify.rescale_selection` where asked for.

    Afterwards `apply` may be called for the first block.

    Cost: 1 ns per entry and expert for each pass.

    Parameters
    ----------
    selections : by the index of the expert
    """
    while any(one.wants_pass for one in selections.values()):
        wanting = [one for one in selections.values() if one.wants_pass]
        for index, delta in _task_vector_blocks(inputs):
            if selections[index].wants_pass:
                selections[index].see(delta)
        for one in wanting:
            one.end_pass()
    for index, one in selections.items():
        if one.wants_tensor:
            one.see_tensor(inputs.task_vector(index))
    for one in selections.values():
        one.rewind()
    if rescale:
        _set_factors(inputs, selections)
        for one in selections.values():
            one.rewind()


def _set_factors(inputs: BlockwiseInputs, selections: Mapping[int, BlockSelection]) -> None:
    # The sums are those of `blocks.absolute_sum`: float64, in the same blocks.
    sums = dict.fromkeys(selections, (0.0, 0.0))
    masked: set[int] = set()
    for index, delta in _task_vector_blocks(inputs):
        mask = selections[index].mask(delta)
        if mask is None:
            continue
        masked.add(index)
        before, after = sums[index]
        magnitudes = delta.abs_()
        before += magnitudes.sum(dtype=torch.float64).item()
        magnitudes.view(mask.dtype).bitwise_and_(mask)
        sums[index] = before, after + magnitudes.sum(dtype=torch.float64).item()
    for index in masked:
        before, after = sums[index]
        # as mergekit: no factor for task vectors with an L1 norm below 1e-7
        selections[index].factor = 1.0 if min(before, after) < 1e-7 else before / after


def _task_vector_blocks(inputs: BlockwiseInputs) -> Iterator[tuple[int, torch.Tensor]]:
    for block in inputs.blocks(block_elements(torch.device("cpu"))):
        yield from other_task_vectors(block)
