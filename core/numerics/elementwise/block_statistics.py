"""Go through the blocks of a tensor to complete selections: thresholds, and factors that restore L1 norms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..lazy_torch import torch
from ..tensor_inputs import BlockwiseInputs
from .block_selection import BlockSelection
from .blocks import block_elements
from .expert_inputs import other_task_vectors

_THRESHOLD_BLOCK = 1 << 17  # elements: half a megabyte, of which some fit the second-level cache
_SAMPLE_BLOCK = 1 << 14  # elements: several rows
_SAMPLE_STRIDE = 3
_SAMPLED = 1 << 18  # elements of the tensor for each block of the sample
_FEWEST_SAMPLES = 8
_MOST_SAMPLES = 64


def complete_selections(inputs: BlockwiseInputs, selections: Mapping[int, BlockSelection], *, rescale: bool) -> None:
    """Make the passes that selections want, and set the factors of `sparsify.rescale_selection` where asked for.

    Afterwards `apply` may be called for the first block.

    Cost: 1 ns per entry and expert for each pass.

    Parameters
    ----------
    selections : by the index of the expert
    """
    if any(one.wants_pass for one in selections.values()):
        _sample(inputs, selections)
    while any(one.wants_pass for one in selections.values()):
        wanting = [one for one in selections.values() if one.wants_pass]
        for index, delta in _task_vector_blocks(inputs, _THRESHOLD_BLOCK):
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


def _sample(inputs: BlockwiseInputs, selections: Mapping[int, BlockSelection]) -> None:
    """Give blocks from places all over the tensor to the selections that want passes."""
    num_samples = min(max(inputs.num_elements // _SAMPLED, _FEWEST_SAMPLES), _MOST_SAMPLES)
    step = max(1, inputs.num_elements // (_SAMPLE_BLOCK * num_samples))
    samples: dict[int, list[torch.Tensor]] = {index: [] for index, one in selections.items() if one.wants_pass}
    for number, block in enumerate(inputs.blocks(_SAMPLE_BLOCK)):
        if number % step == 0:
            for index, delta in other_task_vectors(block):
                if index in samples:
                    samples[index].append(delta[::_SAMPLE_STRIDE])
    for index, blocks in samples.items():
        selections[index].see_sample(blocks)


def _set_factors(inputs: BlockwiseInputs, selections: Mapping[int, BlockSelection]) -> None:
    # The sums are those of `blocks.absolute_sum`: float64, in the same blocks.
    selecting = [index for index, one in selections.items() if not one.keeps_all]
    sums = dict.fromkeys(selecting, (0.0, 0.0))
    for index, delta in _task_vector_blocks(inputs, block_elements(torch.device("cpu"))):
        if index not in sums:
            continue
        before, after = sums[index]
        before += delta.abs().sum(dtype=torch.float64).item()
        kept = selections[index].select(delta).abs_()
        sums[index] = before, after + kept.sum(dtype=torch.float64).item()
    for index, (before, after) in sums.items():
        # as mergekit: no factor for task vectors with an L1 norm below 1e-7
        selections[index].factor = 1.0 if min(before, after) < 1e-7 else before / after


def _task_vector_blocks(inputs: BlockwiseInputs, size: int) -> Iterator[tuple[int, torch.Tensor]]:
    for block in inputs.blocks(size):
        yield from other_task_vectors(block)
