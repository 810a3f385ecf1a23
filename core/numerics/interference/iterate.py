"""Adam on the WUDI objective, iterated on C and D: the published solver, kept as the baseline.

Every step costs one product theta C, whatever the number of experts. Adam divides element by element, so its result
is not a function of C's eigenvalues: what is kept of it is the singular value decomposition of the outcome. Plain
descent is one (`filters.landweber`, `filters.heavy_ball`) and is never iterated.

Shapes: M = out features (D1), K = in features (D2), R = min(M, K).
"""

from __future__ import annotations

import math

from ..apply_filter import Factors
from ..lazy_torch import torch
from ..spectrum import Spectrum
from .operator import InterferenceOperator

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8  # torch.optim.Adam's defaults, which the published code uses


def adam_displacement(
    C: torch.Tensor, residual: torch.Tensor, *, iterations: int, learning_rate: float
) -> torch.Tensor:
    """How far so many Adam steps on the gradient 2 (theta C - D) lead away from their start.

    With theta = theta_0 + x the gradient is 2 (x C - residual), residual = D - theta_0 C. Iterating x instead of theta
    keeps a solution a solution: at a gradient of pure rounding noise Adam, which divides by its size, walks off.

    Cost: 2 M K^2 flops a step; 5 M K elements beyond the inputs.

    Parameters
    ----------
    C : Tensor, (K, K)
    residual : Tensor, (M, K)

    Returns
    -------
    Tensor, (M, K)

    References
    ----------
    WUDI-Merging, arXiv:2503.08099; Adam, arXiv:1412.6980
    """
    moved, gradient = torch.zeros_like(residual), torch.empty_like(residual)
    first, second = torch.zeros_like(residual), torch.zeros_like(residual)
    for step in range(1, iterations + 1):
        torch.addmm(residual, moved, C, beta=-2.0, alpha=2.0, out=gradient)
        first.lerp_(gradient, 1.0 - _BETA1)
        second.mul_(_BETA2).addcmul_(gradient, gradient, value=1.0 - _BETA2)
        torch.sqrt(second, out=gradient)
        gradient.div_(math.sqrt(1.0 - _BETA2**step)).add_(_EPSILON)
        moved.addcdiv_(first, gradient, value=-learning_rate / (1.0 - _BETA1**step))
    return moved


def spectrum_of_iterate(
    kind: str,
    operator: InterferenceOperator,
    anchor_factor: float,
    *,
    iterations: int,
    learning_rate: float,
    one_expert_is_solution: bool = True,
) -> Spectrum:
    """The iteration's outcome as a spectrum: singular values, with u_k in the block "left".

    Parameters
    ----------
    anchor_factor : float
        The start, as a multiple of the sum of the experts.
    one_expert_is_solution : bool
        True where D = v C when a single expert is not zero: the residual is then known without a difference.
    """
    theta = operator.S * anchor_factor
    if operator.num_nonzero > 0:
        if one_expert_is_solution and operator.num_nonzero == 1:
            residual = operator.D * (1.0 - anchor_factor)
        else:
            residual = torch.addmm(operator.D, theta, operator.C, alpha=-1.0)
        theta += adam_displacement(operator.C, residual, iterations=iterations, learning_rate=learning_rate)
    U, sigma, Vh = torch.linalg.svd(theta, full_matrices=False)
    kept = int((sigma > 0).sum())
    return Spectrum(
        kind=kind,
        shape=operator.shape,
        num_experts=operator.num_experts,
        values=sigma[:kept],
        right=Vh[:kept],
        left={"left": U.T[:kept].contiguous()},
        info={"route": "iteration", "expert_norms": operator.norms.tolist()},
    )


def factors_of_iterate(spectrum: Spectrum, scale: float) -> Factors:
    """The iterate itself, times `scale`."""
    return Factors({"left": scale * spectrum.values}, spectrum.num_directions)


def iterate_flops(shape: tuple[int, int], num_experts: int, iterations: int) -> float:
    rows, columns = shape
    order = min(shape)
    return (4.0 * num_experts + 2.0 * iterations) * rows * columns**2 + 25.0 * order**2 * max(shape)


def iterate_elements(shape: tuple[int, int]) -> int:
    rows, columns = shape
    order = min(shape)
    iterating = 7 * rows * columns + 2 * columns**2
    decomposing = 6 * rows * columns + columns**2 + 8 * order**2
    return max(iterating, decomposing)
