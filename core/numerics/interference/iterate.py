"""Adam on the WUDI objective, iterated with C and D: the published solver, as the baseline.

A step costs one product theta C, whatever the number of experts. Adam divides entry by entry, so its result is no
function of the eigenvalues of C; the spectrum is the singular value decomposition of the result. Gradient descent is
such a function (`filters.landweber`, `filters.heavy_ball`) and is not iterated.

Shapes: M = out features (D1), K = in features (D2), R = min(M, K).
"""

from __future__ import annotations

import math

from ..apply_filter import Factors
from ..lazy_torch import torch
from ..linear_algebra import svd
from ..products.matrix_product import add_product
from ..spectrum import Spectrum
from .operator import InterferenceOperator

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8  # torch.optim.Adam's defaults, which the published code uses


def adam_displacement(
    C: torch.Tensor, residual: torch.Tensor, *, iterations: int, learning_rate: float
) -> torch.Tensor:
    """Return theta - theta_0 after that many Adam steps on the gradient 2 (theta C - D).

    With theta = theta_0 + x the gradient is 2 (x C - residual), residual = D - theta_0 C. x is iterated instead of
    theta, because Adam divides by the size of the gradient: where theta_0 is a solution, the rounding noise of
    theta C - D would move theta by whole steps.

    Cost: 2 M K^2 flops per step; 5 M K elements besides the inputs.

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
        add_product(torch.mul(residual, -2.0, out=gradient), moved, C, alpha=2.0)
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
    """Return the result of the iteration as a spectrum: its singular values, with u_k in the block "left".

    Parameters
    ----------
    anchor_factor : float
        The start theta_0 as a multiple of the sum of the experts.
    one_expert_is_solution : bool
        True if D = v C when a single expert is not 0: the residual then needs no difference.
    """
    theta = operator.S * anchor_factor
    if operator.num_nonzero > 0:
        if one_expert_is_solution and operator.num_nonzero == 1:
            residual = operator.D * (1.0 - anchor_factor)
        else:
            residual = add_product(operator.D.clone(), theta, operator.C, alpha=-1.0)
        theta += adam_displacement(operator.C, residual, iterations=iterations, learning_rate=learning_rate)
    left, sigma, right = svd(theta)
    kept = int((sigma > 0).sum())
    return Spectrum(
        kind=kind,
        shape=operator.shape,
        num_experts=operator.num_experts,
        values=sigma[:kept],
        right=right[:kept],
        left={"left": left.T[:kept].contiguous()},
        info={"route": "iteration", "expert_norms": [float(norm) for norm in operator.norms]},
    )


def factors_of_iterate(spectrum: Spectrum, scale: float) -> Factors:
    """Return the factors that give the result of the iteration, times `scale`."""
    return Factors({"left": scale * spectrum.values}, spectrum.num_directions)


def iterate_flops(shape: tuple[int, int], num_experts: int, iterations: int) -> float:
    """Return the projected flops of the sums, the iteration and the SVD."""
    rows, columns = shape
    order = min(shape)
    return (4.0 * num_experts + 2.0 * iterations) * rows * columns**2 + 25.0 * order**2 * max(shape)


def iterate_elements(shape: tuple[int, int]) -> int:
    """Return the projected peak elements of the iteration and the SVD."""
    rows, columns = shape
    order = min(shape)
    iterating = 7 * rows * columns + 2 * columns**2
    decomposing = 6 * rows * columns + columns**2 + 8 * order**2
    return max(iterating, decomposing)
