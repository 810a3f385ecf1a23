"""Spectral filters: eigenvalues -> factors. Every filter returns f and f / lambda, both stable as lambda goes to 0.

f = 1 takes a direction from the anchor all the way to the least-squares solution, f = 0 leaves the anchor. Computed in
float64 whatever the spectrum's dtype: there are only R numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .lazy_torch import torch

FilterName = Literal["exponential", "none", "tikhonov", "landweber", "wiener"]

EIGENVALUE_FLOOR = 1e-8  # of the published code: rank rules and the Wiener filter see no smaller eigenvalue


@dataclass(frozen=True, slots=True)
class FilterValues:
    """What a filter makes of eigenvalues, both (R,) float64.

    passed : f(lambda)
    gain : f(lambda) / lambda
    """

    passed: torch.Tensor
    gain: torch.Tensor

    def where(self, keep: torch.Tensor) -> FilterValues:
        """Zero elsewhere."""
        zero = torch.zeros_like(self.passed)
        return FilterValues(torch.where(keep, self.passed, zero), torch.where(keep, self.gain, zero))

    def times(self, factor: torch.Tensor | float) -> FilterValues:
        return FilterValues(self.passed * factor, self.gain * factor)


def no_filter(values: torch.Tensor, resolved: torch.Tensor) -> FilterValues:
    """f = 1 on the range of C: the truncated pseudo-inverse.

    The only filter whose gain has no bound, so it alone must not pass a direction that is not `resolved`
    (its eigenvalue is rounding noise): there it was measured off by 20% to 870%.
    """
    values = values.double()
    keep = resolved & (values > 0)
    return FilterValues(keep.double(), torch.where(keep, 1.0 / torch.where(keep, values, 1.0), 0.0))


def exponential(values: torch.Tensor, exp_time: float) -> FilterValues:
    """f = 1 - exp(-t lambda): gradient flow stopped at time t. Gain at most t.

    References
    ----------
    SWUDI, arXiv:2606.07289
    """
    values = values.double()
    passed = -torch.expm1(-exp_time * values)
    return FilterValues(passed, _gain(passed, values, at_zero=exp_time))


def tikhonov(values: torch.Tensor, alpha: float) -> FilterValues:
    """f = lambda / (lambda + alpha): ridge regression. Gain at most 1 / alpha; alpha > 0."""
    gain = 1.0 / (values.double() + alpha)
    return FilterValues(values.double() * gain, gain)


def landweber(values: torch.Tensor, step: float, num_steps: int) -> FilterValues:
    """f = 1 - (1 - step lambda)^n: n steps of gradient descent. Gain at most n step while step lambda < 2.

    WUDI's gradient is 2 (theta C - D), so a learning rate r is step = 2 r. Beyond step lambda = 2 descent diverges, and
    so does f.
    """
    values = values.double()
    reach = step * values
    # expm1 and log1p keep the digits of small reach; beyond 1 the power alternates in sign, which is what descent does
    contracted = -torch.expm1(num_steps * torch.log1p(-reach.clamp(max=0.5)))
    passed = torch.where(reach <= 0.5, contracted, 1.0 - (1.0 - reach) ** num_steps)
    return FilterValues(passed, _gain(passed, values, at_zero=num_steps * step))


def heavy_ball(values: torch.Tensor, learning_rate: float, momentum: float, num_steps: int) -> FilterValues:
    """Exactly n steps of SGD with momentum on the gradient 2 (theta C - D), as torch.optim.SGD takes them.

    Per direction the error e obeys b <- m b + 2 lambda e, e <- e - r b; f = 1 - e. Summing e's decrements as multiples
    of lambda gives the gain without a division.
    """
    values = values.double()
    remaining = torch.ones_like(values)
    velocity = torch.zeros_like(values)  # b / lambda
    gain = torch.zeros_like(values)
    for _ in range(num_steps):
        velocity = momentum * velocity + 2.0 * remaining
        gain = gain + learning_rate * velocity
        remaining = 1.0 - values * gain
    return FilterValues(values * gain, gain)


def wiener(values: torch.Tensor, rank: int, num_columns: int) -> FilterValues:
    """f = lambda^2 / (lambda^2 + nu), nu = mean of the eigenvalues beyond `rank` (the median of all if none is).

    Parameters
    ----------
    values : Tensor, (R,), descending; the missing num_columns - R are exact zeros
    rank : int
        Directions kept, 1 to num_columns. The caller zeroes the others.

    References
    ----------
    "ASWUDI" filter "wiener" with noise floor "tail_mean", published code of arXiv:2606.07289
    """
    values = values.double()
    floored = pad_with_zeros(values, num_columns).clamp(min=EIGENVALUE_FLOOR)
    noise = float(floored[rank:].mean() if rank < num_columns else floored.median())
    noise = max(noise, EIGENVALUE_FLOOR)
    gain = values / (values**2 + noise)
    return FilterValues(values * gain, gain)


def raise_to_power(filtered: FilterValues, gamma: float, values: torch.Tensor, resolved: torch.Tensor) -> FilterValues:
    """f^gamma. Below 1 it lets more of the small eigenvalues through, with no bound on the gain: resolved ones only."""
    if gamma == 1.0:
        return filtered
    passed = filtered.passed.clamp(min=0.0, max=1.0) ** gamma
    if gamma < 1.0:
        passed = torch.where(resolved, passed, 0.0)
    return FilterValues(passed, _gain(passed, values.double(), at_zero=0.0))


def pad_with_zeros(values: torch.Tensor, length: int) -> torch.Tensor:
    """The full list of eigenvalues: those that a spectrum left out are exact zeros."""
    return torch.cat([values, values.new_zeros(length - len(values))])


def is_finite(filtered: FilterValues) -> bool:
    return bool(torch.isfinite(filtered.gain).all()) and all(
        math.isfinite(float(bound)) for bound in (filtered.passed.sum(), filtered.gain.sum())
    )


def _gain(passed: torch.Tensor, values: torch.Tensor, at_zero: float) -> torch.Tensor:
    positive = values > 0
    return torch.where(positive, passed / torch.where(positive, values, 1.0), at_zero)
