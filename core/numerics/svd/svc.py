"""SVC: singular value calibration of a merged delta of any method.

A merge counts a direction that experts share several times. Along each left singular vector u_r of the merged delta,
SVC measures the ratio s_ri of the merged response to the response of each expert, and divides the singular value by the
mean ratio. Experts whose task vector is 0 do not count: they share nothing.

The SVD and the ratios s_ri are expensive and do not depend on alpha: `svc_decompose` returns them as a spectrum, which
can be cached, and `svc_factors` is cheap.

Shapes: M = out features, K = in features, R = number of directions, N = experts whose task vector is not 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

from ..apply_filter import Factors, apply_factors, low_rank_form
from ..lazy_torch import torch
from ..linear_algebra import vector_norms
from ..noise.storage_noise import StorageNoise, allowed_energy
from ..products.matrix_product import product
from ..spectrum import Spectrum
from ..task_vectors import LowRank, TaskVectors, noise_of, noises_of
from .compact_svd import compact_svd, gram, svd_elements, svd_flops, task_vector_norm

Count = Literal["changing", "all"]

_KIND = "svc"
#: Part of the keys: increase it when the results of `svc_decompose` change.
ALGORITHM_VERSION = 2
#: s_ri is 0 where an expert has less than this fraction of its norm along u_r. That is rounding of float32 data, and
#: s_ri, a quotient of noise and squared noise, would be arbitrary (measured: a result of 0.90 instead of 3.08). A
#: larger cut takes weak directions that experts share for rounding and multiplies them by N^2 (measured with 1e-4: 64).
RESPONSE_CUT = 1e-5
#: Singular values closer than this, relative to the largest, have no definite directions in float32 data.
_TIE = 2e-6
#: Methods that make singular values equal: SVC after them is ill-posed.
_FLATTENING_METHODS = frozenset({"iso_c", "iso_cts", "subspace_boosting"})
_BLOCK = 1024  # rows or columns converted to float64 at a time


def default_alpha(method: str | None, num_experts: int) -> float:
    """Return 1.0 after TSV-M, as in the published results of SVC, and 1/N after other methods."""
    return 1.0 if method in ("tsv_m", "tsvm") else 1.0 / max(1, num_experts)


def svc_decompose(merged_delta: torch.Tensor | LowRank, task_vectors: TaskVectors) -> Spectrum:
    """Return the singular triplets of the merged delta M and the ratios of responses along them.

        s_ri = <u_r^T M, u_r^T v_i> / ||u_r^T v_i||^2

    Projections are computed in float64: for experts orthogonal to each other the denominator is rounding noise.

    Cost: one SVD; one pass over the experts, 4 R M K flops each in float64, or 2 R r (M + K) for factors of rank r.
    No M x K matrix is formed where the delta and the expert are factors.

    Returns
    -------
    Spectrum of kind "svc": values sigma_r, right v_r, block "left" u_r, statistics["projection"] (R, N);
    `num_experts` is N; without experts that are not 0 there are no statistics

    References
    ----------
    When Shared Knowledge Hurts: Spectral Over-Accumulation in Model Merging, arXiv:2602.05536, algorithm 1;
    code: github.com/lyymuwu/SVC, merge_func.Align
    """
    svd = compact_svd(merged_delta, cut=0.0)
    return _calibrated_spectrum(svd.values, svd.left, svd.right, task_vectors)


def svc_of_filtered(spectrum: Spectrum, factors: Factors, task_vectors: TaskVectors) -> Spectrum:
    """Return `svc_decompose` of a filtered spectrum, without an SVD where its directions are singular vectors.

    Where left and right vectors are orthonormal (Iso-C, Iso-CTS, TSV-M, ...), the weights are the singular values. The
    directions are then also definite where singular values are equal (all of them after Iso-C); those of an SVD are
    not.

    Cost: 2 R^2 (M + K) flops instead of an SVD; otherwise that of `svc_decompose`.
    """
    if factors.anchor is not None:
        return svc_decompose(apply_factors(spectrum, factors), task_vectors)
    weights = factors.weights.get("left")
    if set(factors.weights) != {"left"} or weights is None or not _are_orthonormal(spectrum):
        left, right = low_rank_form(spectrum, factors)
        rows, columns = spectrum.shape
        is_smaller = left.shape[1] * (rows + columns) < rows * columns
        return svc_decompose(LowRank(left, right) if is_smaller else product(left, right), task_vectors)
    order = weights.abs().argsort(descending=True, stable=True)
    order = order[: int((weights != 0).sum())]
    sign = weights[order].sign().unsqueeze(1)
    return _calibrated_spectrum(
        weights[order].abs(), spectrum.left["left"][order] * sign, spectrum.right[order], task_vectors
    )


def svc_factors(
    spectrum: Spectrum, alpha: float | None = None, count: Count = "changing", after: str | None = None
) -> Factors:
    """Return the factors gamma_r sigma_r, gamma_r = N / sum_i max(alpha, s_ri).

    Parameters
    ----------
    spectrum : of `svc_decompose`
    alpha : lower bound of the ratios, above 0; None for `default_alpha`
    count : "changing": N and the sum are over the experts whose task vector is not 0; "all": those whose task vector is
        0 count in N, and with alpha in the sum, as in the published code
    after : the method that made the delta, for the default of alpha
    """
    unchanged = cast("int", spectrum.info["num_unchanged"]) if count == "all" else 0
    num_experts = spectrum.num_experts + unchanged
    if spectrum.num_experts == 0:
        return Factors({"left": spectrum.values}, spectrum.num_directions)
    floor = default_alpha(after, num_experts) if alpha is None else alpha
    assert floor > 0, "alpha must be positive"
    projection = spectrum.statistics["projection"].double()
    gamma = num_experts / (projection.clamp_min(floor).sum(dim=1) + unchanged * floor)
    calibrated = (gamma * spectrum.values.double()).to(spectrum.values.dtype)
    return Factors({"left": calibrated}, spectrum.num_directions)


def apply_svc(
    merged_delta: torch.Tensor | LowRank,
    task_vectors: TaskVectors,
    alpha: float | None = None,
    count: Count = "changing",
) -> torch.Tensor:
    """Return the calibrated delta, (M, K); parameters as for `svc_decompose` and `svc_factors`."""
    spectrum = svc_decompose(merged_delta, task_vectors)
    return apply_factors(spectrum, svc_factors(spectrum, alpha, count))


def calibration_warning(method: str) -> str | None:
    """Return a warning where SVC after that method is ill-posed, else None; reads no data."""
    if method not in _FLATTENING_METHODS:
        return None
    return (
        f"calibration: svc after {method} is ill-posed: {method} makes singular values equal, so the merged matrix no"
        " longer determines the directions (in published codes a change of 1e-12 changes the result by 20%). The"
        f" directions of {method}'s decomposition are used; consider removing {method} or svc"
    )


def flat_spectrum_warning(spectrum: Spectrum) -> str | None:
    """Return a warning where singular values of the merged delta are equal, else None.

    With more than 1% of the energy in directions whose singular values are equal, the result is arbitrary: any rotation
    of these directions gives other singular vectors and another result.
    """
    values = spectrum.values.double()
    if values.shape[0] < 2:
        return None
    ties = (values[:-1] - values[1:]) < _TIE * values[0]
    tied = torch.zeros_like(values, dtype=torch.bool)
    tied[:-1] |= ties
    tied[1:] |= ties
    share = (values[tied].square().sum() / values.square().sum()).item()
    if share <= 0.01:
        return None
    return (
        f"svc is ill-posed: {int(tied.sum())} of {values.shape[0]} singular values of the merged delta are equal"
        f" ({share:.0%} of its energy), so their directions are arbitrary"
    )


def svc_flops(
    shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool, delta_rank: int | None = None
) -> float:
    """Return the projected flops of `svc_decompose`; `delta_rank` is given where the merged delta is factors."""
    rank = min(shape) if delta_rank is None else delta_rank
    if all_low_rank:
        each = sum(2.0 * rank * own * sum(shape) for own in max_ranks)
    else:
        each = 2.0 * len(max_ranks) * rank * shape[0] * shape[1]
    return svd_flops(shape, delta_rank) + each


def svc_elements(
    shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool, delta_rank: int | None = None
) -> int:
    """Return the projected peak elements of `svc_decompose` and of applying its factors, the delta included."""
    rows, columns = shape
    rank = min(shape) if delta_rank is None else delta_rank
    kept = rank * (rows + columns) + (0 if delta_rank is not None else rows * columns)
    if all_low_rank:
        projecting = 2 * rank * rows + 6 * max(max_ranks, default=0) * (rows + columns)
    else:
        block = min(_BLOCK, max(shape))
        projecting = rows * columns + 2 * rank * columns + 2 * block * (2 * rank + columns)
    return max(svd_elements(shape, delta_rank), kept + projecting, kept + 2 * rows * columns)


def _calibrated_spectrum(
    values: torch.Tensor, left: torch.Tensor, right: torch.Tensor, task_vectors: TaskVectors
) -> Spectrum:
    found: list[torch.Tensor | None] = []
    for index, vector in enumerate(task_vectors):
        noise = noise_of(task_vectors, index)
        found.append(_responses(left, values, right, vector, noise))
    responses = [response for response in found if response is not None]
    shape = (left.shape[1], right.shape[1])
    statistics = {"projection": torch.stack(responses, dim=1).to(values.dtype)} if responses else {}
    if responses and any(noise is not None for noise in noises_of(task_vectors)):
        # along a direction to which no expert responds more than by its rounding, nothing is known to be shared
        statistics["projection"][(statistics["projection"] == 0).all(dim=1)] = 1.0
    info = {"rank": values.shape[0], "full_rank": min(shape), "num_unchanged": len(found) - len(responses)}
    return Spectrum(_KIND, shape, len(responses), values, right, {"left": left}, statistics, info)


def _are_orthonormal(spectrum: Spectrum) -> bool:
    """Return True when the left and the right vectors are orthonormal up to the rounding of polar factors."""
    tolerance = 1e-9 if spectrum.right.dtype == torch.float64 else 1e-4
    for vectors in (spectrum.left["left"], spectrum.right):
        products = gram(vectors)
        products.diagonal().sub_(1.0)
        if products.numel() > 0 and products.abs().max().item() > tolerance:
            return False
    return True


def _responses(
    left: torch.Tensor,
    values: torch.Tensor,
    right: torch.Tensor,
    vector: torch.Tensor | LowRank,
    noise: StorageNoise | None,
) -> torch.Tensor | None:
    """Return the ratios s_r of one expert, (R,) float64; None where it is 0.

    A response that is at most the largest singular value of the expert's noise counts as 0, where the noise explains
    all such responses.

    u_r^T M = sigma_r v_r, so s_r = sigma_r <v_r, a_r> / ||a_r||^2 with a_r = u_r^T v.
    """
    norm = task_vector_norm(vector)
    if norm == 0:
        return None
    if isinstance(vector, LowRank):
        coefficients = left.double() @ vector.left.double()  # a_r = coefficients_r A
        down = vector.right.double()
        squares = ((coefficients @ (down @ down.T)) * coefficients).sum(dim=1).clamp_min(0.0)
        inner = (coefficients * (right.double() @ down.T)).sum(dim=1)
    else:
        projected = torch.zeros((left.shape[0], vector.shape[1]), dtype=torch.float64, device=left.device)
        for start in range(0, vector.shape[0], _BLOCK):
            span = slice(start, start + _BLOCK)
            projected.addmm_(left[:, span].double(), vector[span].double())
        squares = vector_norms(projected, dim=1).square()
        inner = torch.zeros_like(squares)
        for start in range(0, vector.shape[1], _BLOCK):
            span = slice(start, start + _BLOCK)
            inner += (projected[:, span] * right[:, span]).sum(dim=1)
    responds = squares.sqrt() > RESPONSE_CUT * norm
    if noise is not None:
        below = squares <= noise.level**2
        expected = left[below].double().square() @ noise.rows.to(left.device)
        num_entries = max(1, len(expected)) * right.shape[1]
        if float(squares[below].sum()) <= allowed_energy(float(expected.sum()), num_entries):
            responds &= ~below
    return torch.where(responds, values.double() * inner / squares.where(responds, 1.0), 0.0)
