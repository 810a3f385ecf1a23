"""Subspace Boosting: the sum of the task vectors with its small singular values raised to a common level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from ..apply_filter import Factors
from ..lazy_torch import torch
from ..method import ExpertParameters, SpectralMethod, SpectralParameters
from ..spectrum import Spectrum
from ..task_vectors import TaskVectors
from .iso_c import KIND, decompose_sum, sum_elements, sum_flops


class SubspaceBoostingParameters(SpectralParameters):
    beta: float = Field(
        0.01,
        ge=0.0,
        le=1.0,
        description="share of the sum of singular values held by the leading directions, which are unchanged; later"
        " singular values are raised to the last of these",
    )


class SubspaceBoosting(SpectralMethod[SubspaceBoostingParameters, ExpertParameters]):
    """M = sum_i v_i = U S V^T; result scale * U max(S, S_j) V^T, j the first index with cumsum(S)_j / sum(S) >= beta.

    This is the paper's first setting, applied to task arithmetic. S_1 alone often exceeds the default share of 0.01:
    then all singular values become S_1, and the authors scale the result down by the merging coefficient (`scale`).

    Of a rank-deficient sum only non-zero singular values are raised; the published code raises null directions too, an
    arbitrary basis that the SVD returns. The decomposition is shared with iso_c.

    References
    ----------
    Subspace-Boosted Model Merging, arXiv:2506.16506; code: github.com/ronskoro/Subspace-Boosting, subspace_boosting
    (svd_thresh, cumsum=True)
    """

    name = "subspace_boosting"
    summary = "Sum of the task vectors with its small singular values raised to a common level"
    source = "arXiv:2506.16506"
    Parameters = SubspaceBoostingParameters

    def decomposition(self, parameters: SubspaceBoostingParameters) -> Mapping[str, object]:
        return {"kind": KIND}

    def decompose(self, task_vectors: TaskVectors, parameters: SubspaceBoostingParameters) -> Spectrum:
        return decompose_sum(task_vectors)

    def factors(self, spectrum: Spectrum, parameters: SubspaceBoostingParameters) -> Factors:
        values = spectrum.values
        if spectrum.num_directions == 0:
            return Factors({"left": values}, 0)
        share = values.double().cumsum(0) / values.double().sum()
        # By rounding the last share may stay below beta = 1; then nothing is raised.
        num_kept = min(int((share < parameters.beta).sum().item()) + 1, spectrum.num_directions)
        boosted = torch.clamp(values, min=values[num_kept - 1].item())
        return Factors({"left": parameters.scale * boosted}, spectrum.num_directions)

    def flops(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> float:
        return sum_flops(shape, max_ranks, all_low_rank)

    def peak_elements(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> int:
        return sum_elements(shape, max_ranks, all_low_rank)
