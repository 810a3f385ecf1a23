"""Model Stock: base plus a multiple of the mean task vector that grows with the agreement of the experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import Field

from ...errors import RecipeError
from ..elementwise.blocks import block_elements, blockwise_norm
from ..elementwise.expert_inputs import TASK_VECTOR_TENSORS, other_indices, other_task_vectors, require_base
from ..lazy_torch import torch
from ..linear_algebra import vector_norms
from ..method import DirectMethod, MethodParameters, TensorInputs

_MIN_NORM_PRODUCT = 1e-6  # lower bound of ||v_i|| ||v_j|| in the cosine, as in mergekit
_SINGULAR = 1e-6  # smaller denominators of the ratio count as zero, and the base is kept
_CHUNK = 1 << 18  # elements of the [rows, N, N] and [rows, N, columns] work space of the exact route


class ModelStockParameters(MethodParameters):
    filter_wise: bool = Field(False, description="one ratio per row instead of one for the whole tensor")


class ModelStock(DirectMethod[ModelStockParameters, MethodParameters]):
    """base + t mean_i v_i, where t = N c / (1 + (N-1) c) and c is the mean cosine over all pairs of task vectors.

    With u_i = v_i/||v_i||, sum_{i<j} u_i.u_j = (||sum_i u_i||^2 - N)/2, so one sum over the experts is enough. mergekit
    bounds ||v_i|| ||v_j|| from below. In rows where the bound applies (norms around 1e-3) the identity does not hold;
    their pairs are computed in column blocks of bounded size, which needs further passes.

    Cost: one pass, six operations per entry and expert; N norms per row are kept with `filter_wise`.

    References
    ----------
    Model Stock: All we need is just a few fine-tuned models, arXiv:2403.19522
    """

    name = "model_stock"
    summary = "base plus the mean task vector, shortened the less the experts agree"
    source = "arXiv:2403.19522"
    Parameters = ModelStockParameters
    Expert = MethodParameters
    min_experts = 2
    passes = 1  # ceil(N/2) more for tensors with tiny task vectors

    def merge(
        self, inputs: TensorInputs, parameters: ModelStockParameters, experts: Sequence[MethodParameters]
    ) -> torch.Tensor:
        """
        Raises
        ------
        RecipeError : there is no base, or fewer than two other models
        """
        base = require_base(inputs, self.name)
        count = len(other_indices(inputs))
        if count < 2:
            raise RecipeError(
                f"model_stock needs at least 2 models beside the base; found {count} for tensor {inputs.name!r}"
            )

        def as_rows(tensor: torch.Tensor) -> torch.Tensor:
            one_row = tensor.ndim < 2 or not parameters.filter_wise
            return tensor.reshape(1, -1) if one_row else tensor.reshape(-1, tensor.shape[-1])

        total = torch.zeros_like(as_rows(base))
        directions = torch.zeros_like(total)
        norms_of_experts: list[torch.Tensor] = []
        for _, delta in other_task_vectors(inputs):
            rows = as_rows(delta)
            norms = _compute_row_norms(rows)
            norms_of_experts.append(norms)
            total += rows
            directions.addcdiv_(rows, norms.masked_fill(norms == 0, 1).to(rows.dtype)[:, None])
            del delta, rows
        norms = torch.stack(norms_of_experts)  # (N, rows)
        num_nonzero = (norms > 0).sum(dim=0)
        cosine_sums = (_compute_row_norms(directions).square() - num_nonzero) / 2
        bounded = _find_bounded_rows(norms)
        if bounded.any():
            cosine_sums[bounded] = _sum_cosines_of_pairs(inputs, as_rows, norms[:, bounded], bounded, total)
        ratio = _compute_ratio(cosine_sums / (count * (count - 1) / 2), count)
        return total.mul_((ratio / count).to(total.dtype)[:, None]).reshape(base.shape).add_(base)

    def peak_tensors(self, num_experts: int) -> float:
        return TASK_VECTOR_TENSORS + 4  # two sums, and column blocks of all experts in the exact route


def _compute_row_norms(rows: torch.Tensor) -> torch.Tensor:
    """Return the norm of every row in float64, without a float64 copy of the tensor."""
    if rows.shape[0] == 1:
        return torch.tensor([blockwise_norm(rows)], dtype=torch.float64, device=rows.device)
    norms = torch.empty(rows.shape[0], dtype=torch.float64, device=rows.device)
    step = max(1, block_elements(rows.device) // max(1, rows.shape[1]))
    for start in range(0, rows.shape[0], step):
        norms[start : start + step] = vector_norms(rows[start : start + step].double(), dim=1)
    return norms


def _compute_ratio(cosine: torch.Tensor, count: int) -> torch.Tensor:
    denominator = 1 + (count - 1) * cosine
    singular = denominator.abs() < _SINGULAR
    return (count * cosine / denominator.masked_fill(singular, 1)).masked_fill(singular, 0)


def _find_bounded_rows(norms: torch.Tensor) -> torch.Tensor:
    """Return the rows in which two non-zero norms have a product below the bound. norms: (N, rows)."""
    smallest_two = norms.masked_fill(norms == 0, float("inf")).topk(2, dim=0, largest=False).values
    return smallest_two.prod(dim=0) < _MIN_NORM_PRODUCT


def _sum_cosines_of_pairs(
    inputs: TensorInputs,
    as_rows: Callable[[torch.Tensor], torch.Tensor],
    norms: torch.Tensor,
    bounded: torch.Tensor,
    like: torch.Tensor,
) -> torch.Tensor:
    """Return the sum over pairs of v_i.v_j / max(||v_i|| ||v_j||, bound) for the rows where `bounded` is true.

    Cost: N^2 operations per entry; as many passes as keep the columns of N experts within two tensors.

    Parameters
    ----------
    norms : Tensor, (N, R), norms of the R bounded rows
    bounded : Tensor, (rows,), bool
    like : Tensor, (rows, columns), with shape, dtype and device of a task vector as rows
    """
    count, num_rows = norms.shape
    num_columns = like.shape[1]
    width = min(num_columns, max(1, 2 * like.numel() // (count * num_rows)))
    gathered = torch.empty(count, num_rows, width, dtype=like.dtype, device=like.device)
    sums = torch.zeros(num_rows, dtype=torch.float64, device=like.device)
    rows_at_once = max(1, _CHUNK // count**2)
    for start in range(0, num_columns, width):
        stop = min(start + width, num_columns)
        position = 0
        for _, delta in other_task_vectors(inputs):
            gathered[position, :, : stop - start] = as_rows(delta)[:, start:stop][bounded]
            position += 1  # noqa: SIM113 (see `indexed`)
            del delta
        for first in range(0, num_rows, rows_at_once):
            part = slice(first, first + rows_at_once)
            norms_RN = norms[:, part].T
            bounds_RNN = (norms_RN[:, :, None] * norms_RN[:, None, :]).clamp_(min=_MIN_NORM_PRODUCT)
            cosines_RNN = _compute_gram(gathered[:, part, : stop - start]).div_(bounds_RNN)
            cosines_RNN.diagonal(dim1=1, dim2=2).zero_()
            sums[part] += cosines_RNN.sum(dim=(1, 2)) / 2
    return sums


def _compute_gram(vectors_NRK: torch.Tensor) -> torch.Tensor:
    """Return the inner products of all pairs for every row, (R, N, N), float64; computed in chunks of columns."""
    count, num_rows, num_columns = vectors_NRK.shape
    gram = torch.zeros(num_rows, count, count, dtype=torch.float64, device=vectors_NRK.device)
    width = max(1, _CHUNK // (count * num_rows))
    for start in range(0, num_columns, width):
        chunk_RNK = vectors_NRK[:, :, start : start + width].transpose(0, 1).double()
        gram.baddbmm_(chunk_RNK, chunk_RNK.mT)
    return gram
