"""Spectral filters: functions f of the eigenvalues lambda. Each returns f and f / lambda, accurate as lambda goes to 0.

f = 1 replaces the anchor by the least-squares solution in a direction, f = 0 keeps the anchor. Filters are evaluated in
float64, whatever the dtype of the spectrum.

Shapes: K = in features (D2), R = number of directions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .lazy_torch import torch
from .noise.shrinkage import shrink_singular_values

FilterName = Literal["exponential", "none", "tikhonov", "landweber", "wiener", "shrinkage"]

EIGENVALUE_FLOOR = 1e-8  # as in the published code: rank rules and the Wiener filter raise smaller eigenvalues to it


@dataclass(frozen=True, slots=True)
class FilterValues:
    """A filter evaluated at the eigenvalues; both tensors are (R,) float64.

    passed : f(lambda)
    gain : f(lambda) / lambda
    """

    passed: torch.Tensor
    gain: torch.Tensor

    def where(self, keep: torch.Tensor) -> FilterValues:
        """Return the values where `keep` (R,) is true, and 0 elsewhere."""
        zero = torch.zeros_like(self.passed)
        return FilterValues(torch.where(keep, self.passed, zero), torch.where(keep, self.gain, zero))

    def times(self, factor: torch.Tensor | float) -> FilterValues:
        """Return the values multiplied by a factor, (R,) or a number."""
        return FilterValues(self.passed * factor, self.gain * factor)


def no_filter(values: torch.Tensor, resolved: torch.Tensor) -> FilterValues:
    """Return f = 1 on the range of C: the truncated pseudo-inverse.

    Its gain 1 / lambda has no upper bound, so directions that are not `resolved` (the eigenvalue is rounding noise) get
    0: with them the result had errors of 20% to 870%.

    Parameters
    ----------
    values : Tensor, (R,)
    resolved : Tensor, (R,), bool
    """
    values = values.double()
    keep = resolved & (values > 0)
    return FilterValues(keep.double(), torch.where(keep, 1.0 / torch.where(keep, values, 1.0), 0.0))


def exponential(values: torch.Tensor, exp_time: float) -> FilterValues:
    """Return f = 1 - exp(-t lambda): gradient flow stopped at time t. The gain is at most t.

    References
    ----------
    SWUDI, arXiv:2606.07289
    """
    values = values.double()
    passed = -torch.expm1(-exp_time * values)
    return FilterValues(passed, _gain(passed, values, at_zero=exp_time))


def tikhonov(values: torch.Tensor, alpha: float) -> FilterValues:
    """Return f = lambda / (lambda + alpha), alpha > 0: ridge regression. The gain is at most 1 / alpha."""
    gain = 1.0 / (values.double() + alpha)
    return FilterValues(values.double() * gain, gain)


def landweber(values: torch.Tensor, step: float, num_steps: int) -> FilterValues:
    """Return f = 1 - (1 - step lambda)^n: n steps of gradient descent.

    The gain is at most n step while step lambda < 2; for larger steps descent, and f, diverge. The gradient of WUDI is
    2 (theta C - D), so a learning rate r is step = 2 r.
    """
    values = values.double()
    reach = step * values
    # expm1 and log1p are accurate for small reach; above 1 the power alternates in sign, as the iterates do
    contracted = -torch.expm1(num_steps * torch.log1p(-reach.clamp(max=0.5)))
    passed = torch.where(reach <= 0.5, contracted, 1.0 - (1.0 - reach) ** num_steps)
    return FilterValues(passed, _gain(passed, values, at_zero=num_steps * step))


def heavy_ball(values: torch.Tensor, learning_rate: float, momentum: float, num_steps: int) -> FilterValues:
    """Return the filter of n steps of torch.optim.SGD with momentum on the gradient 2 (theta C - D).

    In each direction the error e follows b <- m b + 2 lambda e, e <- e - r b, and f = 1 - e. The decrements of e are
    summed divided by lambda, which gives the gain without a division.
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


def wiener(values: torch.Tensor, rank: int, num_columns: int, resolved: torch.Tensor) -> FilterValues:
    """Return f = lambda^2 / (lambda^2 + nu), nu = mean of the eigenvalues after the first `rank` (none: median of all).

    Parameters
    ----------
    values : Tensor, (R,), descending
    rank : int
        Number of directions kept, 1 to num_columns. The caller sets the others to 0.
    num_columns : int
        K. The K - R eigenvalues that the spectrum does not hold count as 0.
    resolved : Tensor, (R,), bool
        False where an eigenvalue is rounding noise: it counts as 0 too, or the noise level would be that of float32.

    References
    ----------
    "ASWUDI" filter "wiener" with noise floor "tail_mean", published code of arXiv:2606.07289
    """
    values = values.double()
    known = torch.where(resolved, values, 0.0)
    floored = pad_with_zeros(known, num_columns).clamp(min=EIGENVALUE_FLOOR)
    noise = float(floored[rank:].mean() if rank < num_columns else floored.median())
    noise = max(noise, EIGENVALUE_FLOOR)
    gain = values / (values**2 + noise)
    return FilterValues(values * gain, gain)


def shrinkage(
    values: torch.Tensor, resolved: torch.Tensor, noise_shape: tuple[int, int], deviation: float
) -> FilterValues:
    """Return f = shrunk(s) / s with s = sqrt(lambda), the singular values of the experts on top of each other.

    Parameters
    ----------
    values : Tensor, (R,)
    resolved : Tensor, (R,), bool; others get 0
    noise_shape, deviation : of the noise in these singular values, as in `shrink_singular_values`; deviation 0 gives
        `no_filter`
    """
    plain = no_filter(values, resolved)
    roots = values.double().clamp(min=0).sqrt()
    share = shrink_singular_values(roots, noise_shape, deviation) / torch.where(roots > 0, roots, 1.0)
    return plain.times(share)


def raise_to_power(filtered: FilterValues, gamma: float, values: torch.Tensor, resolved: torch.Tensor) -> FilterValues:
    """Return f^gamma. Below gamma = 1 the gain has no upper bound, so only `resolved` directions are passed."""
    if gamma == 1.0:
        return filtered
    passed = filtered.passed.clamp(min=0.0, max=1.0) ** gamma
    if gamma < 1.0:
        passed = torch.where(resolved, passed, 0.0)
    return FilterValues(passed, _gain(passed, values.double(), at_zero=0.0))


def pad_with_zeros(values: torch.Tensor, length: int) -> torch.Tensor:
    """Return all `length` eigenvalues: those that a spectrum does not hold are 0."""
    return torch.cat([values, values.new_zeros(length - len(values))])


def is_finite(filtered: FilterValues) -> bool:
    """Return False when a factor, or the sum of the factors, overflows."""
    return bool(torch.isfinite(filtered.gain).all()) and all(
        math.isfinite(float(bound)) for bound in (filtered.passed.sum(), filtered.gain.sum())
    )


def _gain(passed: torch.Tensor, values: torch.Tensor, at_zero: float) -> torch.Tensor:
    positive = values > 0
    return torch.where(positive, passed / torch.where(positive, values, 1.0), at_zero)
