"""Decompose task vectors into the interference spectrum, by one of two routes with equal results.

* gram: sum C, D and S over the experts, then the eigenvectors of C. Memory does not depend on the number of experts.
* row_space: decompose the stacked experts, if they have fewer rows than columns, as LoRA factors do; no K x K matrix.

Shapes: M = out features (D1), K = in features (D2), P = sum of the experts' row dimensions, N = experts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from ..spectrum import Spectrum
from ..task_vectors import TaskVectors
from .gram_route import expert_energies, spectrum_of_operator
from .operator import accumulate
from .row_space_route import decompose_row_space
from .summed_task_vectors import SummedTaskVectors

Route = Literal["gram", "row_space"]

# Measured cost in flops of matrix products: 10 n^3 for an eigendecomposition of order n, 2.5 times that for an SVD;
# Householder QR has about half the speed of a product. All products of x^T x are counted, as a GPU computes them; a CPU
# computes about half of them.
_EIGH = 10.0
_SVD = 25.0
_QR = 8.0
_ACCURACY = 1.4  # how many times the flops of the gram route the row-space route may have


def decompose_interference(
    task_vectors: TaskVectors, *, route: Route | None = None, with_expert_energy: bool = False
) -> Spectrum:
    """Return the interference spectrum: eigenvalues of C, D q_k ("target") and S q_k ("sum").

    Cost: see `decomposition_flops` and `decomposition_elements`.

    Parameters
    ----------
    task_vectors : TaskVectors, (M, K), float32 or float64
        SummedTaskVectors are decomposed from their sums, by the gram route, without reading the experts.
    route : "gram" or "row_space"; None for the choice of `choose_route`
    with_expert_energy : bool
        Add the statistic "expert_energy" (R, N), w_i ||v_i q_k||^2; a second pass over the experts on the gram route.

    Returns
    -------
    Spectrum of kind "interference", without directions when every expert is 0

    References
    ----------
    WUDI-Merging, arXiv:2503.08099; SWUDI, arXiv:2606.07289
    """
    if isinstance(task_vectors, SummedTaskVectors):
        spectrum = spectrum_of_operator(task_vectors.take_operator())
    elif (route or choose_route(task_vectors.shape, task_vectors.max_ranks)) == "row_space":
        return decompose_row_space(task_vectors)  # includes the experts' energies
    else:
        spectrum = spectrum_of_operator(accumulate(task_vectors))
    if with_expert_energy:
        statistics = {**spectrum.statistics, "expert_energy": expert_energies(spectrum, task_vectors)}
        spectrum = dataclasses.replace(spectrum, statistics=statistics)
    return spectrum


def choose_route(shape: tuple[int, int], max_ranks: Sequence[int]) -> Route:
    """Return row_space where the stacked experts have fewer rows than columns and it costs at most 1.4 times as much.

    It is the more accurate route: it squares no singular value (docs/decisions/011).
    """
    if sum(max_ranks) >= shape[1]:
        return "gram"
    row_space = decomposition_flops(shape, max_ranks, "row_space")
    return "row_space" if row_space < _ACCURACY * decomposition_flops(shape, max_ranks, "gram") else "gram"


def decomposition_flops(shape: tuple[int, int], max_ranks: Sequence[int], route: Route) -> float:
    """Return the projected cost of a route, in flops of matrix products."""
    rows, columns = shape
    if route == "gram":
        per_expert = 2.0 * rows * columns**2 + min(2.0 * rows * columns**2, 4.0 * rows**2 * columns)
        return len(max_ranks) * per_expert + _EIGH * columns**3 + 4.0 * rows * columns**2
    stacked = min(sum(max_ranks), columns)
    factors = sum(_QR * rows * rank**2 + 2.0 * rank**2 * columns for rank in max_ranks if rank < rows)
    blocks = sum(4.0 * rank**2 * stacked + (4.0 * rows * rank * stacked if rank < rows else 0.0) for rank in max_ranks)
    return factors + _QR * columns * stacked**2 + _SVD * stacked**3 + 2.0 * columns * stacked**2 + blocks


def decomposition_elements(shape: tuple[int, int], max_ranks: Sequence[int], route: Route) -> int:
    """Return the projected peak number of elements (arithmetic dtype) of a route, with one expert and the result."""
    rows, columns = shape
    matrix, square = rows * columns, columns * columns
    if route == "gram":
        accumulating = 4 * matrix + 2 * square  # C, D, S; one expert, and its transpose on a GPU; its Gram matrix
        decomposing = 2 * matrix + 5 * square  # C, D, S; eigenvectors and LAPACK's work space
        projecting = 4 * matrix + 3 * square  # two left blocks and right, and copies of their resolved rows
        return max(accumulating, decomposing, projecting)
    stacked = sum(max_ranks)
    order = min(stacked, columns)
    factors = sum(2 * rank * (rows + columns) if rank < rows else 2 * matrix for rank in max_ranks)
    return factors + 4 * stacked * columns + 8 * order * order + 3 * order * rows
