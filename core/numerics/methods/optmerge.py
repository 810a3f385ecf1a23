"""OptMerge: WUDI on denoised experts, by the published iterations or in closed form under the spectral filters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from ..apply_filter import Factors
from ..filters import heavy_ball
from ..interference.iterate import factors_of_iterate, iterate_elements, iterate_flops, spectrum_of_iterate
from ..interference.optmerge_operator import optmerge_operator, optmerge_spectrum, truncation_rank
from ..interference.wudi_family import (
    MAX_GAIN_FLOAT32,
    Anchor,
    FilterParameters,
    InterferenceMethod,
    amplifies_rounding,
    anchor_factor,
    evaluate_filter,
    factors_of_filter,
    rank_by_ratio,
)
from ..spectrum import Spectrum
from ..task_vectors import TaskVectors

_ITERATE = "optmerge_iterate"
_LORA_MOMENTUM = 0.9


class OptMergeParameters(FilterParameters):
    anchor: Anchor | None = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        None,
        description="start of the solver: sum or mean of the experts, or zero (default: sum for full, mean for lora)",
    )
    variant: Literal["full", "lora"] = Field(
        "full",
        description="full: experts denoised relative to their mean, Adam from the sum;"
        " lora: experts denoised one by one, SGD with momentum 0.9 from the mean",
    )
    solver: Literal["iteration", "closed_form"] = Field(
        "iteration",
        description="iteration: gradient steps, as published; closed_form: a filter on the spectrum of the same"
        " equations",
    )
    iterations: int = Field(300, ge=0, description="number of gradient steps of the iteration")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="step size of the iteration (default: 1e-5 for full, 1e-4 for lora)",
    )
    rank_ratio: float | None = Field(
        None,
        gt=0,
        le=1,
        description="closed form: number of directions to keep, as a fraction of the input dimensions; null keeps all",
    )


class OptMerge(InterferenceMethod[OptMergeParameters]):
    """minimize sum_i w_i ||(theta - tau_i) B_i^T||_F^2 over theta, with B_i = S_k V_k^T of v_i, k = min(D1, D2) // N.

    tau_i is the rank-k SVD of v_i - mean, plus the mean (variant full), or the rank-k SVD of v_i (variant lora);
    w_i is 1 / ||v_i||_F^2. Adam leaves the row space of the experts, so its result is stored instead of a spectrum. SGD
    with momentum is a filter on the eigenvalues, as are the closed forms.

    References
    ----------
    OptMerge, ICLR 2026; code: github.com/WalkerWorldPeace/MLLMerging
    """

    name = "optmerge"
    aliases = ("wudi2",)
    summary = "WUDI on experts reduced to their top singular directions, iterated as published or in closed form"
    source = "OptMerge, ICLR 2026"
    Parameters = OptMergeParameters
    algorithm_version = 1  # it has sums of its own
    passes = 2  # the mean, then the experts relative to it

    def needs_float64(self, parameters: OptMergeParameters) -> bool:
        if parameters.solver == "closed_form":
            return amplifies_rounding(parameters)
        gain = 2.0 * _resolve_learning_rate(parameters) * parameters.iterations / (1.0 - _LORA_MOMENTUM)
        return parameters.variant == "lora" and gain >= MAX_GAIN_FLOAT32

    def decomposition(self, parameters: OptMergeParameters) -> Mapping[str, object]:
        if not _uses_adam(parameters):
            return {"kind": "optmerge", "variant": parameters.variant}
        return {
            "kind": _ITERATE,
            "iterations": parameters.iterations,
            "learning_rate": _resolve_learning_rate(parameters),
            "anchor": _resolve_anchor(parameters),
        }

    def decompose(self, task_vectors: TaskVectors, parameters: OptMergeParameters) -> Spectrum:
        if not _uses_adam(parameters):
            return optmerge_spectrum(task_vectors, parameters.variant)
        rank = truncation_rank(task_vectors.shape, task_vectors.num_experts)
        return spectrum_of_iterate(
            _ITERATE,
            optmerge_operator(task_vectors, parameters.variant, rank),
            anchor_factor(_resolve_anchor(parameters), task_vectors.num_experts),
            iterations=parameters.iterations,
            learning_rate=_resolve_learning_rate(parameters),
            one_expert_is_solution=task_vectors.num_experts == 1,
        )

    def factors(self, spectrum: Spectrum, parameters: OptMergeParameters) -> Factors:
        if spectrum.kind == _ITERATE:
            return factors_of_iterate(spectrum, parameters.scale)
        if parameters.solver == "iteration":
            chosen = heavy_ball(
                spectrum.values, _resolve_learning_rate(parameters), _LORA_MOMENTUM, parameters.iterations
            )
            return factors_of_filter(spectrum, chosen, spectrum.shape[1], _resolve_anchor(parameters), parameters.scale)
        rank = rank_by_ratio(parameters.rank_ratio, spectrum.shape[1])
        return factors_of_filter(
            spectrum, evaluate_filter(spectrum, parameters, rank), rank, _resolve_anchor(parameters), parameters.scale
        )

    def flops(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> float:
        svds = 2.0 * len(max_ranks) * 25.0 * min(shape) ** 2 * max(shape)
        return svds + iterate_flops(shape, len(max_ranks), OptMergeParameters().iterations)  # pyright: ignore[reportCallIssue]

    def peak_elements(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> int:
        rows, columns = shape
        building = 9 * rows * columns + columns**2 + 8 * min(shape) ** 2  # operator, one expert and its SVD
        decomposing = super().peak_elements(shape, max_ranks, all_low_rank)
        return max(building, decomposing, iterate_elements(shape))


def _uses_adam(parameters: OptMergeParameters) -> bool:
    return parameters.solver == "iteration" and parameters.variant == "full"


def _resolve_anchor(parameters: OptMergeParameters) -> Anchor:
    return parameters.anchor or ("sum" if parameters.variant == "full" else "mean")


def _resolve_learning_rate(parameters: OptMergeParameters) -> float:
    return parameters.learning_rate or (1e-5 if parameters.variant == "full" else 1e-4)
