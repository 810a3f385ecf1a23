"""KnOTS: experts aligned by one SVD of their concatenation and merged by TIES in that space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from ..apply_filter import Factors
from ..elementwise.sign_consensus import trim_elect_average
from ..lazy_torch import torch
from ..linear_algebra import qr, svd
from ..method import ExpertParameters, SpectralMethod, SpectralParameters
from ..products.matrix_product import product
from ..spectrum import Spectrum
from ..svd.compact_svd import compact_svd, lift_svd, relative_cut, stays_low_rank, svd_elements, svd_flops
from ..svd.core_coordinates import stacked_basis
from ..svd.delta_sum import svd_spectrum
from ..task_vectors import LowRank, TaskVectors


class KnotsParameters(SpectralParameters):
    density: float = Field(
        0.2, gt=0.0, le=1.0, description="share of its aligned coordinates that each expert keeps, the largest ones"
    )


class Knots(SpectralMethod[KnotsParameters, ExpertParameters]):
    """[v_1 .. v_N] = U S [V_1 .. V_N]^T; result U T, where T is the TIES merge of the aligned S V_i^T.

    S V_i^T = U^T v_i, so only U is needed. It is computed from the M x M matrix sum_i v_i v_i^T, without an SVD of the
    M x N K concatenation. TIES trims each expert's coordinates tensor by tensor; the published code trims over the
    whole model.

    References
    ----------
    Model merging with SVD to tie the Knots, arXiv:2410.19735 (KnOTS-TIES); code: github.com/gstoica27/KnOTS,
    task_merger.SVDMerger with merge_method "ties", merging_type "mean", s_on_V; its topK is `density` in percent
    """

    name = "knots"
    summary = "LoRA experts aligned by one SVD of their concatenation, then merged by TIES (KnOTS-TIES)"
    source = "arXiv:2410.19735"
    Parameters = KnotsParameters

    def decomposition(self, parameters: KnotsParameters) -> Mapping[str, object]:
        return {"kind": self.name, "density": parameters.density}

    def decompose(self, task_vectors: TaskVectors, parameters: KnotsParameters) -> Spectrum:
        """Decompose the merged delta. Cost: two passes, one SVD, one eigendecomposition of size M (LoRA: P)."""
        basis = _compute_left_basis(task_vectors)
        merged = trim_elect_average(_AlignedExperts(basis, task_vectors), parameters.density)
        triplets = lift_svd(compact_svd(merged, cut=0.0), basis, None)
        return svd_spectrum(self.name, triplets, task_vectors.num_experts, {"aligned_rank": basis.shape[0]})

    def factors(self, spectrum: Spectrum, parameters: KnotsParameters) -> Factors:
        return Factors({"left": parameters.scale * spectrum.values}, spectrum.num_directions)

    def flops(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> float:
        rows, columns = shape
        aligned = min(rows, sum(max_ranks))
        if stays_low_rank(shape, max_ranks, all_low_rank):
            each = sum(4.0 * aligned * rank * sum(shape) for rank in max_ranks)
            return svd_flops((aligned, columns)) + svd_flops(shape, aligned) + each
        each = 2.0 * rows * rows * columns + 4.0 * aligned * rows * columns
        return len(max_ranks) * each + 9.0 * rows**3 + svd_flops((aligned, columns)) + 2.0 * aligned**2 * rows

    def peak_elements(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> int:
        rows, columns = shape
        aligned = min(rows, sum(max_ranks))
        merging = 12 * aligned * columns + aligned * rows + (1 << 19)  # 1 << 19: histogram that finds the threshold
        result = svd_elements((aligned, columns)) + 3 * aligned * rows
        if stays_low_rank(shape, max_ranks, all_low_rank):
            stacking = 6 * aligned * sum(shape)
            return max(merging, result, stacking) + aligned * sum(shape) + rows * columns
        return max(11 * rows**2, merging, result) + 2 * rows * columns


@dataclass(frozen=True, slots=True)
class _AlignedExperts:
    """Iterable over U^T v_i, (R, K), one expert at a time."""

    basis: torch.Tensor  # (R, M)
    source: TaskVectors

    def __iter__(self) -> Iterator[torch.Tensor]:
        for vector in self.source:
            if isinstance(vector, LowRank):
                yield product(product(self.basis, vector.left), vector.right)
            else:
                yield product(self.basis, vector)


def _compute_left_basis(task_vectors: TaskVectors) -> torch.Tensor:
    """Return the left singular vectors of [v_1 .. v_N] with non-zero values as rows, (R, M)."""
    shape = task_vectors.shape
    if not stays_low_rank(shape, task_vectors.max_ranks, task_vectors.all_low_rank):
        basis, dtype = stacked_basis(task_vectors, by_rows=False)
        return basis.to(dtype)
    stack = [vector for vector in task_vectors if isinstance(vector, LowRank)]
    # The left factors span the column space: orthonormal basis of it, then the SVD of the small block row.
    orthonormal, cores = qr(torch.cat([vector.left for vector in stack], dim=1).double())
    blocks = torch.split_with_sizes(cores, [vector.rank for vector in stack], dim=1)
    # A_i = T_i Q_i with orthonormal rows Q_i: [C_1 A_1 .. C_N A_N] has the left singular vectors of [C_1 T_1 ..]
    aligned = torch.cat(
        [block @ qr(vector.right.double().T)[1].T for block, vector in zip(blocks, stack, strict=True)],
        dim=1,
    )
    left, values, _ = svd(aligned)
    keep = values > relative_cut(shape) * values[:1]
    return (orthonormal @ left[:, keep]).T.to(stack[0].left.dtype).contiguous()
