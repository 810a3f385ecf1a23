"""Base class of the WUDI family: one decomposition, an anchor, and a filter on the top K directions.

merged delta = sum_k [c (1 - f_k) S q_k + f_k / lambda_k  D q_k] q_k^T,   c = 1 (sum), 1/N (mean), 0 (zero)

Shapes: D2 = in features, R = number of directions, K = number of directions that are filtered, N = experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, TypeVar, cast

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ...errors import RecipeError
from .. import filters
from ..apply_filter import Factors
from ..filters import FilterName, FilterValues
from ..lazy_torch import torch
from ..method import ExpertParameters, Side, SpectralMethod, SpectralParameters
from ..spectrum import Spectrum
from ..task_vectors import TaskVectors
from .decompose import choose_route, decompose_interference, decomposition_elements, decomposition_flops

Anchor = Literal["sum", "mean", "zero"]
SideName = Literal["inputs", "outputs", "both", "smaller"]


class AnchorParameters(SpectralParameters):
    """Parameters of every method of the family."""

    anchor: Anchor = Field("sum", description="the result where the filter is 0: sum or mean of the experts, or zero")
    side: SideName = Field(
        "inputs",
        description="what to solve over: inputs (columns) of a weight, outputs (rows), both (mean of the two merged"
        " deltas), or smaller (the smaller dimension; inputs if equal)",
    )
    outputs_share: float | None = Field(
        None, ge=0, le=1, description="share of the delta over the outputs, for side: both only (default: 0.5)"
    )

    @model_validator(mode="after")
    def _check_share(self) -> Self:
        if self.outputs_share is not None and self.side != "both":
            raise ValueError(
                f"outputs_share is {self.outputs_share:g} and side is {self.side}; outputs_share is for side: both,"
                " expected null or no value"
            )
        return self

    @model_serializer(mode="wrap")
    def _omit_default_side(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the default of `side`: keys of stored objects are those from before there was a choice."""
        content: dict[str, Any] = serialize(self)
        if self.side == "inputs":
            content.pop("side", None)
        if self.outputs_share is None:
            content.pop("outputs_share", None)
        return content


class FilterParameters(AnchorParameters):
    """Parameters of methods whose filter is a parameter."""

    filter: FilterName = Field(
        "exponential", description="exponential | none | tikhonov | landweber | wiener | shrinkage"
    )
    exp_time: float = Field(300.0, ge=0, description="time t of the exponential filter 1 - exp(-t lambda)")
    tikhonov_alpha: float | None = Field(
        None,
        ge=0,
        description="alpha of lambda / (lambda + alpha); with the exponential filter the two multiply"
        " (default: 0.01 for the tikhonov filter, off otherwise)",
    )
    gamma: float = Field(1.0, gt=0, description="power of the filter: above 1 steeper, below 1 gentler")
    landweber_steps: int = Field(150, ge=1, description="gradient steps n of the landweber filter")
    landweber_eta: float = Field(
        0.9, gt=0, le=1, description="step of the landweber filter, as a fraction of 1 / lambda_max"
    )


P = TypeVar("P", bound=AnchorParameters)

# Largest gain f(lambda)/lambda of a filter in float32. A gain g multiplies the rounding of D: measured on experts whose
# singular values fall by four decades, g = 1e4 makes an error of 1e-3, 1e5 1e-2, 1e6 8e-2, 1e9 70.
MAX_GAIN_FLOAT32 = 1e4
# A direction that is rounding noise passes while its gain times the noise of the eigenvalues is at most this.
_HARMLESS = 0.1


class InterferenceMethod(SpectralMethod[P, ExpertParameters]):
    """Abstract base class of methods on the interference spectrum; subclasses implement `factors`."""

    # 2: products x^T x are computed by blocks, whose sums round otherwise
    # 3: the row-space route multiplies the left vectors of several experts together
    algorithm_version = 3

    def decomposition(self, parameters: P) -> Mapping[str, object]:
        return {"kind": "interference"}

    def sides(self, parameters: P, shape: tuple[int, int]) -> tuple[Side, ...]:
        if parameters.side == "both":
            share = 0.5 if parameters.outputs_share is None else parameters.outputs_share
            return Side(False, 1.0 - share), Side(True, share)
        rows, columns = shape
        return (Side(parameters.side == "outputs" or (parameters.side == "smaller" and rows < columns)),)

    def decompose(self, task_vectors: TaskVectors, parameters: P) -> Spectrum:
        return decompose_interference(task_vectors)

    def flops(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> float:
        return decomposition_flops(shape, max_ranks, choose_route(shape, max_ranks))

    def peak_elements(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> int:
        route = choose_route(shape, max_ranks)
        directions = shape[1] if route == "gram" else min(sum(max_ranks), shape[1])
        # the spectrum with two blocks, its selected rows, their combination for some outputs, and the delta
        applying = directions * (2 * shape[1] + 3 * shape[0]) + shape[0] * shape[1]
        return max(decomposition_elements(shape, max_ranks, route), applying)


def anchor_factor(anchor: Anchor, num_experts: int) -> float:
    """Return c of the anchor theta_0 = c S, S = sum of the experts."""
    return {"sum": 1.0, "mean": 1.0 / num_experts, "zero": 0.0}[anchor]


def resolved_directions(spectrum: Spectrum) -> torch.Tensor:
    """Return a mask (R,) of the directions whose eigenvalue is above rounding noise."""
    return spectrum.statistics["resolved"] > 0


def rank_by_ratio(rank_ratio: float | None, columns: int) -> int:
    """Return K of a rank ratio r: int(D2 r + 0.999), at least 1, as in the published code; None keeps all."""
    return columns if rank_ratio is None else max(1, int((columns * rank_ratio + 0.999) // 1))


def evaluate_filter(spectrum: Spectrum, parameters: FilterParameters, rank: int) -> FilterValues:
    """Return the filter of the parameters at all eigenvalues; only the noise of the Wiener filter depends on `rank`."""
    values, resolved = spectrum.values, resolved_directions(spectrum)
    if parameters.filter == "none":
        return filters.no_filter(values, resolved)
    if parameters.filter == "tikhonov":
        alpha = 0.01 if parameters.tikhonov_alpha is None else parameters.tikhonov_alpha
        if alpha == 0.0:  # without a ridge, 1 / lambda has no bound: only resolved directions pass
            return filters.no_filter(values, resolved)
        chosen = filters.tikhonov(values, alpha)
    elif parameters.filter == "landweber":
        largest = float(values[0]) if len(values) else 1.0
        chosen = filters.landweber(values, parameters.landweber_eta / largest, parameters.landweber_steps)
    elif parameters.filter == "shrinkage":
        known = cast("Mapping[str, Any]", spectrum.info.get("storage_noise", {}))
        rows, order = known.get("shape", spectrum.shape)
        deviation = known["deviation"] if known.get("cut") else 0.0
        chosen = filters.shrinkage(values, resolved, (rows, order), deviation)
    elif parameters.filter == "wiener":
        chosen = filters.wiener(values, rank, spectrum.shape[1], resolved)
    else:
        chosen = filters.exponential(values, parameters.exp_time)
    noise = cast("float", spectrum.info["value_cut"])
    chosen = chosen.where(resolved | (chosen.gain * noise <= _HARMLESS))
    chosen = filters.raise_to_power(chosen, parameters.gamma, values, resolved)
    if parameters.filter == "exponential" and parameters.tikhonov_alpha:
        # the power applies to the exponential factor only, as in the published code
        chosen = chosen.times(filters.tikhonov(values, parameters.tikhonov_alpha).passed)
    return chosen


def amplifies_rounding(parameters: FilterParameters) -> bool:
    """Return True where the gain of the filter may exceed what float32 allows, so that it needs float64."""
    if parameters.filter in ("none", "shrinkage") or parameters.gamma < 1.0:
        return True
    if parameters.filter == "tikhonov":
        return parameters.tikhonov_alpha is not None and parameters.tikhonov_alpha <= 1.0 / MAX_GAIN_FLOAT32
    if parameters.filter == "landweber":  # the largest eigenvalue is about 1 or more
        return parameters.landweber_steps * parameters.landweber_eta >= MAX_GAIN_FLOAT32
    return parameters.filter == "exponential" and parameters.exp_time >= MAX_GAIN_FLOAT32


def factors_of_filter(spectrum: Spectrum, chosen: FilterValues, rank: int, anchor: Anchor, scale: float) -> Factors:
    """Return the factors of a filter on the first `rank` directions and of the anchor on the rest, times `scale`.

    Raises
    ------
    RecipeError : the filter overflows, because the learning rate is too large
    """
    index = torch.arange(spectrum.num_directions, device=spectrum.values.device)
    chosen = chosen.where(index < rank)
    if not filters.is_finite(chosen):
        raise RecipeError(
            "the factors of the filter overflow, because gradient descent diverges at this learning rate;"
            f" choose one below {1.0 / float(spectrum.values[0]):.3g} (1 / lambda_max)"
        )
    weights = {"target": scale * chosen.gain}
    factor = scale * anchor_factor(anchor, spectrum.num_experts)
    if factor != 0.0:
        weights["sum"] = factor * (1.0 - chosen.passed)
    kept = int((resolved_directions(spectrum) & (index < rank)).sum())
    return Factors(weights, kept)
